"""What every fusion is given, returns and is built from.

A row's target has the same bits whatever rows share its block, so that stores made in other blocks
are equal byte for byte. Library reductions do not promise that: the order in which Tensor.sum adds
changes with the number of rows (seen over the teacher axis at any size, over classes at 40,000), and so
does that of a matrix product. So nothing that `fuse` calls but elementwise operations and maxima; sums are
`sum_classes` and `sum_teachers`. What `fit` calls may be anything: its result is kept in the store.
"""

import contextlib
import copy
import functools
import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Self

import numpy as np
import torch
from torch import Tensor

from pipeline.errors import StillroomError
from pipeline.views import RowKeys

LOWEST_LOG_PROB = -1e30  # a class masked by float32's minimum stays finite, also over a temperature under 1
SMALLEST_SUM = 1e-30  # a mixture below it is taken in log space: float32 ends at 1e-38


@dataclass(frozen=True, eq=False)
class Outputs:
    """What all teachers say of some rows, and what is known of the rows themselves.

    `logits` float [T, B, ..., C], each teacher's already divided by its fitted temperature; `labels` int64
    [B, ...], -1 where a row has none, may not show it, or is mixed and has no single one; `features` float
    [B, D] of each teacher, by layer, as far as a strategy asks for `layers`; `keys` what a row's random draws
    are made of.
    """

    logits: Tensor
    labels: Tensor
    features: Mapping[str, tuple[Tensor, ...]] = field(default_factory=dict)
    keys: RowKeys | None = None

    def __len__(self) -> int:
        return self.logits.shape[1]

    @property
    def num_teachers(self) -> int:
        """T."""
        return len(self.logits)

    @property
    def num_classes(self) -> int:
        """C."""
        return self.logits.shape[-1]

    def __getitem__(self, rows: slice | Tensor) -> "Outputs":
        """Return some of the rows."""
        chosen = rows if isinstance(rows, slice) else rows.numpy()
        return replace(
            self,
            logits=self.logits[:, rows],
            labels=self.labels[rows],
            features={layer: tuple(each[rows] for each in all_) for layer, all_ in self.features.items()},
            keys=None if self.keys is None else replace(self.keys, ids=self.keys.ids[chosen]),
        )

    def labelled(self, where: str) -> tuple[Tensor, Tensor]:
        """Return logits [T, N, C] and labels [N] of the cases that have a label, finite. Raises StillroomError."""
        labels = self.labels.reshape(-1)
        has_label = labels >= 0
        if not has_label.any():
            raise StillroomError(
                f"{where}: none of {labels.numel()} rows has a label; expected at least one; give the calibration "
                f"split labels or use fusion 'mean'"
            )
        check_finite(where, self.logits)
        logits = self.logits.reshape(self.num_teachers, -1, self.num_classes)[:, has_label]
        return logits.float(), labels[has_label].long()


@dataclass(frozen=True)
class FusedTargets:
    """What a fusion says of a block of rows, all float32.

    `log_probs [..., C]` at the temperature asked for; `weights [..., T]` sum to one; `disagreement
    [...]` is the generalised Jensen-Shannon divergence of the teachers in nats; `corrected [...]` the
    share of a row's target that is its label and not the teachers' (see `pipeline.fusion.target`).
    """

    log_probs: Tensor
    weights: Tensor
    disagreement: Tensor
    corrected: Tensor | None = None


@dataclass(frozen=True)
class Fusion:
    """A frozen dataclass whose fields are plain JSON options; a wrong option raises StillroomError at once.

    `state` holds what was fitted, as arrays by name: teachers run along the first axis of those that have one. A
    strategy without anything to fit inherits `fit`, any other returns `self.with_state(...)` from it. What is fitted
    must come from rows that no teacher was trained on: whoever calls `fit` sees to that.
    """

    state: Mapping[str, Tensor] = field(default_factory=dict, init=False, repr=False, compare=False)

    @property
    def is_fitted_on_rows(self) -> bool:
        """Whether `fit` looks at rows at all."""
        return type(self).fit is not Fusion.fit

    @property
    def layers(self) -> tuple[str, ...]:
        """The layers whose features it reads from each teacher."""
        return ()

    def fit(self, outputs: Outputs) -> Self:
        """Return a copy fitted on these rows; this very strategy where there is nothing to fit."""
        return self

    def fuse(self, outputs: Outputs, *, temperature: float) -> FusedTargets:
        """Return the targets of rows, each row by itself, at the temperature of the loss."""
        raise NotImplementedError

    def fitted(self) -> dict[str, Any]:
        """Return what was fitted, as JSON for people: the small arrays; lists run by teacher position."""
        return {name: values.tolist() for name, values in self.state.items() if values.numel() <= 1000}

    def with_state(self, **state: Tensor | np.ndarray) -> Self:
        """Return a copy that holds what was fitted."""
        return with_fitted(self, state={name: torch.as_tensor(values) for name, values in state.items()})

    def fitted_state(self, name: str, num_teachers: int | None = None) -> Tensor:
        """Return what was fitted. Raises StillroomError before `fit`, or for another number of teachers."""
        where = f"fusion {name_of(self)!r}"
        if name not in self.state:
            raise StillroomError(
                f"{where}: it has no {name} yet; expected a fitted strategy; call fit on calibration outputs"
            )
        found = self.state[name]
        if num_teachers is not None and len(found) != num_teachers:
            raise StillroomError(
                f"{where}: logits of {num_teachers} teachers; expected the {len(found)} it was fitted on; fit again "
                f"with these teachers"
            )
        return found


def name_of(strategy: object) -> str:
    """Return a strategy's name in FUSIONS: "linear_pool" for LinearPool."""
    name = type(strategy).__name__
    return "".join(f"_{letter.lower()}" if letter.isupper() else letter for letter in name).removeprefix("_")


@dataclass(frozen=True, eq=False)
class Softened:
    """Teachers' distributions at a temperature, by their unnormalised parts, from which everything else is cheap.

    `shifted` [T, B, ..., C] are logits over the temperature with a maximum of 0; `exps` their exponentials; `sums`
    [T, B, ...] those summed over the classes.
    """

    shifted: Tensor
    exps: Tensor
    sums: Tensor

    @property
    def num_teachers(self) -> int:
        """T."""
        return len(self.shifted)

    @functools.cached_property
    def log_probs(self) -> Tensor:
        """Finite log-probabilities: [T, B, ..., C]."""
        return self.shifted - self.sums.log().unsqueeze(-1)

    @functools.cached_property
    def probs(self) -> Tensor:
        """Probabilities: [T, B, ..., C]."""
        return self.exps / self.sums.unsqueeze(-1)

    @functools.cached_property
    def entropies(self) -> Tensor:
        """Entropies in nats: [T, B, ...]."""
        return (self.sums.log() - sum_classes(self.exps * self.shifted) / self.sums).clamp(min=0)


def soften(logits: Tensor, *, temperature: float = 1.0) -> Softened:
    """Return the teachers' distributions softmax(logits / temperature): float [T, B, ..., C].

    Raises: StillroomError when a logit is not finite (names teacher and row) or temperature is not above 0.
    """
    check_positive("fuse", "temperature", temperature)
    check_finite("fuse", logits)
    logits = logits.float()
    shifted = ((logits - logits.amax(dim=-1, keepdim=True)) / temperature).clamp_(min=LOWEST_LOG_PROB)
    exps = shifted.exp()
    return Softened(shifted, exps, sum_classes(exps))


def mixture(soft: Softened, weights: Tensor) -> FusedTargets:
    """Return the mixture sum_k w_k p_k with its disagreement: weights [..., T], which sum to one.

    Finite where any weighted teacher is. KL to it and sum_k w_k KL(p_k ‖ student) have the same gradient in the
    student, so nothing is lost by fusing before training (SCIENCE 0.1, for weights that do not depend on the student).
    """
    scales = weights.movedim(-1, 0) / soft.sums
    mixed = sum_teachers(scale.unsqueeze(-1) * exps for scale, exps in zip(scales, soft.exps, strict=True))
    is_small = mixed.amin(dim=-1) < SMALLEST_SUM
    log_mixed = mixed.log()
    if is_small.any():
        log_mixed[is_small] = log_mixture(soft.log_probs[:, is_small], weights[is_small])
    return FusedTargets(log_mixed, weights, _divergence(soft, weights, mixed, log_mixed))


def disagreement(soft: Softened, weights: Tensor) -> Tensor:
    """Return sum_k w_k KL(p_k ‖ sum_k w_k p_k) in nats, 0 for teachers of one mind: weights [..., T] -> [...].

    It is at most the entropy of the weights. Source: Lin 1991, section V (generalised Jensen-Shannon).
    """
    return mixture(soft, weights).disagreement


def _divergence(soft: Softened, weights: Tensor, mixed: Tensor, log_mixed: Tensor) -> Tensor:
    """Return the entropy of the mixture less the mean entropy."""
    own = sum_teachers(w * h for w, h in zip(weights.movedim(-1, 0), soft.entropies, strict=True))
    return (-sum_classes(mixed * log_mixed) - own).clamp(min=0)


def log_mixture(log_probs: Tensor, weights: Tensor) -> Tensor:
    """Return log sum_k w_k p_k in log space: `[T, ..., C], [..., T] -> [..., C]`."""
    terms = log_probs + weights.log().movedim(-1, 0).unsqueeze(-1)
    peak = terms.amax(dim=0)
    return peak + sum_teachers((term - peak).exp() for term in terms).log()


def log_softmax(logits: Tensor, *, temperature: float = 1.0) -> Tensor:
    """Return log softmax(logits / temperature) over the class axis, finite, in float32: `[..., C] -> [..., C]`."""
    logits = logits.float()
    shifted = ((logits - logits.amax(dim=-1, keepdim=True)) / temperature).clamp_(min=LOWEST_LOG_PROB)
    return shifted - sum_classes(shifted.exp()).log().unsqueeze(-1)


def pooled(log_probs: Tensor, weights: Tensor) -> Tensor:
    """Return log of the normalised product prod_k p_k^w_k: `[T, ..., C], [..., T] -> [..., C]`."""
    terms = (w.unsqueeze(-1) * p for w, p in zip(weights.movedim(-1, 0), log_probs, strict=True))
    return log_softmax(sum_teachers(terms))


def kl(log_probs: Tensor, other_log_probs: Tensor) -> Tensor:
    """Return KL(first ‖ second) in nats of finite log-probabilities: `[..., C], [..., C] -> [...]`."""
    return sum_classes(log_probs.exp() * (log_probs - other_log_probs))


def uniform_weights(soft: Softened) -> Tensor:
    """Return 1/T for every teacher and row: `[..., T]`."""
    return row_weights(torch.full((soft.num_teachers,), 1 / soft.num_teachers), soft)


def row_weights(weights: Tensor, soft: Softened) -> Tensor:
    """Return the teachers' weights `[T]` for every row, as `[..., T]`."""
    return weights.to(soft.sums).expand(*soft.sums.shape[1:], len(weights))


def normalised(weights: Tensor, where: str) -> Tensor:
    """Return weights `[..., T]` over their sum. Raises StillroomError where a row's are negative or sum to nothing."""
    total = sum_teachers(weights.movedim(-1, 0))
    wrong = ~((weights >= 0).all(dim=-1) & (total > 0) & total.isfinite())
    if wrong.any():
        row = [int(i) for i in wrong.nonzero()[0]]
        raise StillroomError(
            f"{where}: the weights of row {row[0] if row else 0} are "
            f"{weights[tuple(row)].tolist() if row else weights.tolist()}; expected none below 0 and a sum above 0; "
            f"use another strategy or its options"
        )
    return weights / total.unsqueeze(-1)


def sum_teachers(terms: Iterable[Tensor]) -> Tensor:
    """Return the sum over teachers, added one after the other (see the module's first lines)."""
    return functools.reduce(torch.add, terms)


def sum_classes(values: Tensor) -> Tensor:
    """Return the sum over the class axis by halving, in the same order for every row: `[..., C] -> [...]`."""
    while (width := values.shape[-1]) > 1:
        half = width // 2
        paired = values[..., :half] + values[..., half : 2 * half]
        if width % 2:
            paired[..., 0] += values[..., -1]
        values = paired
    return values[..., 0]


def softmax_teachers(scores: Tensor) -> Tensor:
    """Return softmax over the teachers' scores: `[T, ...] -> [..., T]`."""
    exps = (scores - scores.amax(dim=0)).exp()
    return (exps / sum_teachers(exps)).movedim(0, -1)


@contextlib.contextmanager
def one_thread() -> Iterator[None]:
    """Let torch and BLAS use one thread: sums come out the same whatever machine adds them, and the small problems of
    fitting lose thirty times their time where threads wait for each other on cores that others use.
    """
    from threadpoolctl import threadpool_limits  # here, for it looks through every loaded library

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with threadpool_limits(limits=1):
            yield
    finally:
        torch.set_num_threads(threads)


def with_fitted[F](strategy: F, **found: object) -> F:
    """Return a copy of a frozen strategy that holds what was fitted in its non-option fields."""
    fitted = copy.copy(strategy)
    for name, value in found.items():
        object.__setattr__(fitted, name, value)
    return fitted


def check_positive(where: str, name: str, value: object) -> None:
    """Raise StillroomError unless the option is a finite number above 0."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < math.inf:
        raise StillroomError(f"{where}: {name} is {value!r}; expected a finite number above 0; change {name}")


def check_finite(where: str, logits: Tensor) -> None:
    """Raise StillroomError that names the first teacher and row `[T, B, ...]` with a nan or infinite logit."""
    if not logits.numel() or all(end.isfinite() for end in logits.aminmax()):
        return
    finite = logits.isfinite()
    teacher, row = (int(i) for i in (~finite).nonzero()[0][:2])
    raise StillroomError(
        f"{where}: teacher {teacher}, row {row} has a logit that is not finite; expected finite logits; "
        "run 'stillroom verify' on that teacher's store"
    )
