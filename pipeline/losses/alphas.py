"""Rules for alpha: how much the label counts in a row beside the teachers, fixed, read from the row, or learned.

Trade: rules that look at the row or at the clock have nothing to tune; those that learn have state, which a checkpoint
must hold, and their weights follow the losses' scales. Every rule leaves rows without a label to the teachers: (0, 1).
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from pipeline.losses.base import Targets, label_cross_entropy, summed_dtype
from pipeline.losses.divergences import lesson_weights
from pipeline.losses.options import Option, number, one_of, whole
from pipeline.sparse import SparseTargets


@dataclass(frozen=True, eq=False)
class Seen:
    """A batch as a rule for alpha sees it.

    `targets` log-probabilities at `temperature`; `labels` int64 [...], -1 where there is none; `unmixed` and `labelled`
    bool [...]; `ce` and `soft` [...], the two losses with their gradients; `progress` from 0 to under 1.
    """

    targets: Targets
    temperature: float
    labels: Tensor
    unmixed: Tensor
    labelled: Tensor
    ce: Tensor
    soft: Tensor
    progress: float

    @property
    def judged(self) -> Tensor:
        """Which rows have a single label that the target can be held against: bool [...]."""
        return self.unmixed & self.labelled


class Alpha(nn.Module):
    """A rule for alpha. Its parameters, if any, learn from the student's own backward pass: Adam at `lr`, no decay.

    `follows_training` says that it needs more than the batch: the progress, or its own state from step to step.
    """

    lr: float = 1e-3
    options: ClassVar[Mapping[str, Option]] = {}
    follows_training: ClassVar[bool] = False

    def forward(self, seen: Seen) -> tuple[Tensor, Tensor]:
        """Return the weights of the cross-entropy and of the soft loss, each [...]; (0, 1) on rows without a label."""
        raise NotImplementedError

    def term(self) -> Tensor | None:
        """Return a scalar to add to every case's loss of the batch seen last, None where there is none."""
        return None


def conditional_alpha(targets: Targets, labels: Tensor, *, unmixed: Tensor, labelled: Tensor) -> Tensor:
    """Return 1.0 where the target's first choice is not the label, else 0.0: `[..., C], [...] -> [...]`.

    The label speaks where the teachers are wrong, the teachers everywhere else; a mixed row has no
    single label to be wrong about, so there the teachers speak. Source: Meng 2019 (1904.12399).
    """
    choices = targets.argmax() if isinstance(targets, SparseTargets) else targets.argmax(dim=-1)
    return ((choices != labels) & unmixed & labelled).to(summed_dtype(targets))


class Fixed(Alpha):
    """The same alpha in every labelled row: 1 is labels only, 0 teachers only."""

    options: ClassVar = {"value": number(0, 1)}

    def __init__(self, value: float):
        super().__init__()
        self.value = value

    def forward(self, seen: Seen) -> tuple[Tensor, Tensor]:
        return shared(self.value, seen)


class Conditional(Alpha):
    """`conditional_alpha`: the label where the teachers are wrong."""

    def forward(self, seen: Seen) -> tuple[Tensor, Tensor]:
        alpha = conditional_alpha(seen.targets, seen.labels, unmixed=seen.unmixed, labelled=seen.labelled)
        return alpha, 1 - alpha


class Soft(Alpha):
    """alpha = 1 - p(label), p the target at the loss's temperature: the surer the teachers of it, the more they speak.

    Mixed rows are left to the teachers; a class that sparse targets don't name has probability 0. SCIENCE 4, A2.
    """

    def forward(self, seen: Seen) -> tuple[Tensor, Tensor]:
        log_prob = -label_cross_entropy(seen.targets, seen.labels, temperature=1.0)  # 1: as it is
        alpha = torch.where(seen.judged, -torch.expm1(log_prob.clamp(max=0)), 0.0)
        return alpha, 1 - alpha


class Annealed(Alpha):
    """alpha = progress: from the teachers to the labels. Source: Clark 2019 (1907.04829)."""

    follows_training = True

    def forward(self, seen: Seen) -> tuple[Tensor, Tensor]:
        return shared(seen.progress, seen)


class Scheduled(Alpha):
    """alpha from `start` to `end` over the training, in a straight line or along half a cosine."""

    options: ClassVar = {"start": number(0, 1), "end": number(0, 1), "shape": one_of("linear", "cosine")}
    follows_training = True

    def __init__(self, start: float, end: float, shape: str = "linear"):
        super().__init__()
        self.start, self.end, self.shape = start, end, shape

    def forward(self, seen: Seen) -> tuple[Tensor, Tensor]:
        share = seen.progress if self.shape == "linear" else (1 - math.cos(math.pi * seen.progress)) / 2
        return shared(self.start + (self.end - self.start) * share, seen)


class Lesson(Alpha):
    """1 for the label, `weight` w_i for the teachers, w_i that of the loss "wsl" and 1 on mixed rows.

    For soft loss "kl": with "wsl" the w_i would count twice. It takes the student's cross-entropy as the batch has it,
    so smoothed where the label is. Source: Zhou 2021 (2102.00650).
    """

    options: ClassVar = {"weight": number(0)}

    def __init__(self, weight: float = 2.5):
        super().__init__()
        self.weight = weight

    def forward(self, seen: Seen) -> tuple[Tensor, Tensor]:
        target_ce = label_cross_entropy(seen.targets, seen.labels, temperature=seen.temperature)
        weights = torch.where(seen.judged, lesson_weights(seen.ce.detach(), target_ce), 1.0)
        labelled = seen.labelled.to(weights.dtype).expand_as(weights)
        return labelled, torch.where(seen.labelled, self.weight * weights, 1.0)


class Uncertainty(Alpha):
    """e^-s1 for the label, e^-s2 for the teachers, s1 + s2 added to the loss; both s learn, within [-2, 2].

    At best s is the log of its loss, so what is minimised is log CE + log KD, and a loss that reaches 0 takes all the
    weight it may: hence the bounds. s1 + s2 counts for labelled rows only, as the weights do: on all rows it would push
    both s down wherever labels are few. Source: Kendall 2018 (1705.07115).
    """

    BOUND = 2.0
    options: ClassVar = {"lr": number(0, is_open=True)}
    follows_training = True

    def __init__(self, lr: float = 1e-3):
        super().__init__()
        self.lr = lr
        self.log_variances = nn.Parameter(torch.zeros(2))
        self._labelled: Tensor | None = None

    def forward(self, seen: Seen) -> tuple[Tensor, Tensor]:
        with torch.no_grad():  # moved back rather than cut off: beyond a cut the gradient is 0 and s would stay there
            self.log_variances.clamp_(-self.BOUND, self.BOUND)
        self._labelled = seen.labelled.to(self.log_variances.dtype).mean()
        ce, soft = (-self.log_variances).exp().unbind()
        return torch.where(seen.labelled, ce, 0.0), torch.where(seen.labelled, soft, 1.0)

    def term(self) -> Tensor | None:
        return None if self._labelled is None else self.log_variances.sum() * self._labelled


class WeightAverage(Alpha):
    """2 softmax_j(r_j / 2), r_j how much of loss j the last `every` steps left of what it was the `every` before.

    1 and 1 until two such spans have passed. Losses count on labelled rows only, so that both speak of the same rows.
    Source: Liu 2019 (1803.10704), there with epochs for spans.
    """

    options: ClassVar = {"every": whole(1)}
    follows_training = True
    sums: Tensor
    steps: Tensor
    latest: Tensor
    earlier: Tensor

    def __init__(self, every: int = 100):
        super().__init__()
        self.every = every
        self.register_buffer("sums", torch.zeros(3, dtype=torch.float64))  # of CE, of the soft loss, and of rows
        self.register_buffer("steps", torch.zeros((), dtype=torch.int64))
        self.register_buffer("latest", torch.full((2,), math.nan, dtype=torch.float64))
        self.register_buffer("earlier", torch.full((2,), math.nan, dtype=torch.float64))

    def forward(self, seen: Seen) -> tuple[Tensor, Tensor]:
        ratio = (self.latest / self.earlier).nan_to_num(1.0, posinf=1.0)
        ce, soft = (2 * (ratio / 2).softmax(0)).to(seen.ce.dtype).unbind()
        if self.training:
            self._count(seen)
        return torch.where(seen.labelled, ce, 0.0), torch.where(seen.labelled, soft, 1.0)

    @torch.no_grad()
    def _count(self, seen: Seen) -> None:
        losses = torch.stack([seen.ce, seen.soft, torch.ones_like(seen.ce)]).double()
        self.sums += torch.where(seen.labelled, losses, 0.0).flatten(1).sum(1)
        self.steps += 1
        is_over = self.steps >= self.every  # no `if`: it would wait for the device at every step
        self.earlier.copy_(torch.where(is_over, self.latest, self.earlier))
        self.latest.copy_(torch.where(is_over, self.sums[:2] / self.sums[2], self.latest))
        self.sums *= ~is_over
        self.steps *= ~is_over


def shared(alpha: float | Tensor, seen: Seen) -> tuple[Tensor, Tensor]:
    """Return the same alpha for every labelled row, and what it leaves: [...] each."""
    weights = seen.labelled.to(summed_dtype(seen.targets)) * alpha
    return weights, 1 - weights
