"""What strategies that look at the student are given, return and are built from.

They weigh the teachers anew at every step, so nothing can be fused before: the student streams every teacher's logits
(T times the bytes of one target) and its loss is still one KL, to the mixture sum_k w_k p_k, whose weights sum to one.
So it weighs against the labels as an offline target does (SCIENCE 0.5), and every rule for alpha sees the mixture.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from pipeline.errors import StillroomError
from pipeline.models.taps import PENULTIMATE, last_linear, pool
from pipeline.objective import Objective
from pipeline.views import Batch
from pipeline.views.draws import stream_seed


@dataclass(frozen=True)
class Start:
    """What a strategy is begun with: T, C, D, and `labelled`, the train rows that show their label unmixed.

    `width` is D, that of the student's penultimate features, None for strategies that don't read them.
    """

    num_teachers: int
    num_classes: int
    width: int | None
    labelled: int
    seed: int

    def generator(self) -> torch.Generator:
        """Return what first weights are drawn from: numbers of their own, whatever the student drew."""
        return torch.Generator().manual_seed(stream_seed(self.seed, "lazy"))


@dataclass(frozen=True, eq=False)
class Rows:
    """A batch in training as a strategy sees it, at the temperature of the loss.

    `student_logits` float32 [B, C] with their gradient, as the student gives them, `student_log_probs` softened;
    `log_probs` float32 [T, B, C], the teachers'; `features` [B, D] and `classifier`, their last layer, where the
    strategy reads features; `progress` from 0 to under 1 over the training; `distil` gives the loss [B] that other
    student logits would have on these rows, under log weights [B, T].
    """

    student_logits: Tensor
    student_log_probs: Tensor
    log_probs: Tensor
    batch: Batch
    features: Tensor | None
    classifier: nn.Linear | None
    step: int
    progress: float
    distil: Callable[[Tensor, Tensor], Tensor]


class Weigher(nn.Module):
    """A strategy at work in one training. Its parameters follow Adam at `lr`, with `weight_decay`.

    They learn from the student's own backward pass, or from gradients that `forward` leaves on them.
    """

    lr: float = 1e-3
    weight_decay: float = 0.0

    def forward(self, rows: Rows) -> Tensor:
        """Return the log of each row's weights, which sum to one: [B, T]."""
        raise NotImplementedError

    def terms(self, rows: Rows, log_weights: Tensor) -> Mapping[str, Tensor]:
        """Return what is added to the loss, by name: each [B]."""
        return {}


@dataclass(frozen=True)
class Lazy:
    """A frozen dataclass whose fields are plain JSON options; a wrong option raises StillroomError at once."""

    reads_features: ClassVar[bool] = False

    def check(self, num_teachers: int) -> None:
        """Raise StillroomError when the options don't fit so many teachers."""

    def begin(self, start: Start) -> Weigher:
        """Return what weighs the teachers of one training. Raises: StillroomError when it cannot."""
        raise NotImplementedError


class LazyLoss(nn.Module):
    """A student's loss on what several teachers say of its rows; a `Loss` and a `Companion` of `pipeline.train`.

    Called with student logits [B, C] and a batch with `teacher_logits` [T, B, C]; returns the loss [B] and its parts:
    those of `objective`, whose target is the mixture, and the strategy's own. `step` follows the student's optimiser
    step. Its state holds weights, optimiser and counts: a run that was killed goes on bit for bit. While it lives, a
    hook on the student's last layer keeps what that layer reads in training.

    Raises: StillroomError when the strategy can't be begun, or reads features of a student without an nn.Linear.
    """

    weight_sums: Tensor

    def __init__(
        self,
        strategy: Lazy,
        model: nn.Module,
        objective: Objective,
        *,
        num_teachers: int,
        num_classes: int,
        labelled: int,
        steps: int,
        seed: int,
    ):
        super().__init__()
        strategy.check(num_teachers)
        self._tap = _Tap(model, num_classes, strategy_where(strategy)) if strategy.reads_features else None
        width = None if self._tap is None else self._tap.classifier.in_features
        device = next(model.parameters()).device
        self.weigher = strategy.begin(Start(num_teachers, num_classes, width, labelled, seed)).to(device)
        self.register_buffer("weight_sums", torch.zeros(num_teachers, dtype=torch.float64, device=device))
        parameters = list(self.weigher.parameters())
        decay = self.weigher.weight_decay
        self._optimizer = torch.optim.Adam(parameters, self.weigher.lr, weight_decay=decay) if parameters else None
        self._steps, self._taken, self._rows = steps, 0, 0
        self.objective, self._temperature = objective, objective.temperature

    def forward(self, student_logits: Tensor, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        """Return the loss of each case and its parts, unweighted: [B, C] -> [B]."""
        rows = self._seen(student_logits, batch)
        log_weights = self.weigher(rows)
        loss, parts = self._distillation(batch, rows.log_probs, student_logits, log_weights)
        terms = dict(self.weigher.terms(rows, log_weights))
        features, compared = self.objective.features(student_logits, batch, mixed(rows.log_probs, log_weights.detach()))
        self.weight_sums += log_weights.detach().exp().double().sum(0)
        self._rows += len(batch)
        return sum(terms.values(), loss + features), parts | compared | terms

    def _seen(self, student_logits: Tensor, batch: Batch) -> Rows:
        if batch.teacher_logits is None:
            raise ValueError("the batch has no teacher_logits; stream it from a TeacherLoader")
        log_probs = (batch.teacher_logits.detach().float() / self._temperature).log_softmax(-1)

        def distil(logits: Tensor, log_weights: Tensor) -> Tensor:
            return self._distillation(batch, log_probs, logits, log_weights)[0]

        return Rows(
            student_logits,
            (student_logits / self._temperature).log_softmax(-1),
            log_probs,
            batch,
            None if self._tap is None else self._tap.take(),
            None if self._tap is None else self._tap.classifier,
            self._taken,
            self._taken / self._steps,
            distil,
        )

    def _distillation(
        self, batch: Batch, log_probs: Tensor, logits: Tensor, log_weights: Tensor
    ) -> tuple[Tensor, dict[str, Tensor]]:
        return self.objective.distil(logits, mixed(log_probs, log_weights), batch)

    def step(self, lr: float) -> None:
        """Learn from the gradients that are there, and forget them; its own rate does not follow the student's."""
        self._taken += 1
        self.objective.step(lr)
        if self._optimizer is not None:
            self._optimizer.step()
            self._optimizer.zero_grad(set_to_none=True)

    @property
    def mean_weights(self) -> list[float]:
        """Each teacher's mean weight over the rows shown so far."""
        return (self.weight_sums / max(1, self._rows)).tolist()

    def get_extra_state(self) -> dict[str, Any]:
        """Return what a checkpoint holds beside tensors by name."""
        optimizer = None if self._optimizer is None else self._optimizer.state_dict()
        return {"taken": self._taken, "rows": self._rows, "optimizer": optimizer}

    def set_extra_state(self, state: Mapping[str, Any]) -> None:
        """Go on from a checkpoint."""
        self._taken, self._rows = state["taken"], state["rows"]
        if self._optimizer is not None:
            self._optimizer.load_state_dict(state["optimizer"])


class _Tap:
    """Keeps what the student's last nn.Linear reads while it trains: [B, D] with its gradient, pooled."""

    def __init__(self, model: nn.Module, num_classes: int, where: str):
        self.classifier, self._where = last_linear(model, where), where
        if self.classifier.out_features != num_classes:
            raise StillroomError(
                f"{where}: the student's last nn.Linear gives {self.classifier.out_features} numbers; expected its "
                f"{num_classes} logits; give it a linear classifier, or use a strategy without features"
            )
        self._features: Tensor | None = None
        self.classifier.register_forward_pre_hook(self._keep)

    def _keep(self, layer: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        if layer.training:  # evaluation in between leaves nothing behind
            self._features = pool(inputs[0], PENULTIMATE, self._where).float()

    def take(self) -> Tensor:
        """Return the features of the last forward pass, and let go of them."""
        features, self._features = self._features, None
        if features is None:
            raise StillroomError(
                f"{self._where}: the student's last nn.Linear did not run; expected it in every forward pass; use a "
                f"strategy without features"
            )
        return features


def mixed(log_probs: Tensor, log_weights: Tensor) -> Tensor:
    """Return log sum_k w_k p_k with the weights' gradient: [T, B, C], [B, T] -> [B, C]."""
    return (log_probs + log_weights.T.unsqueeze(-1)).logsumexp(0)


def shared_by_all(rows: Rows, weights: Tensor) -> Tensor:
    """Return the log of the same weights for every row: [T] -> [B, T]."""
    return weights.to(rows.log_probs).log().expand(rows.log_probs.shape[1], -1)


def dense(in_width: int, out_width: int, generator: torch.Generator, *, bias: bool = True) -> nn.Linear:
    """Return a linear layer drawn from the generator alone: He's weights, no offset."""
    layer = nn.utils.skip_init(nn.Linear, in_width, out_width, bias=bias)
    nn.init.kaiming_normal_(layer.weight, nonlinearity="relu", generator=generator)
    if bias:
        nn.init.zeros_(layer.bias)
    return layer


def strategy_where(strategy: Lazy) -> str:
    """Return how errors name a strategy: "fusion 'meta_online'" for MetaOnline."""
    name = "".join(f"_{letter.lower()}" if letter.isupper() else letter for letter in type(strategy).__name__)
    return f"fusion {name.removeprefix('_')!r}"


def check_count(where: str, name: str, value: object) -> None:
    """Raise StillroomError unless the option is a whole number from 1."""
    if type(value) is not int or value < 1:
        raise StillroomError(f"{where}: {name} is {value!r}; expected a whole number from 1; change {name}")


def check_flag(where: str, name: str, value: object) -> None:
    """Raise StillroomError unless the option is true or false."""
    if type(value) is not bool:
        raise StillroomError(f"{where}: {name} is {value!r}; expected true or false; change {name}")
