"""What every fusion returns and is built from.

A row's target has the same bits whatever rows share its block, so that stores made in other blocks
are equal byte for byte. Library reductions do not promise that: the order in which Tensor.sum adds
changes with the number of rows (seen over the teacher axis at any size, over classes at 40,000).
So nothing here but elementwise operations and maxima; sums are `sum_classes` and `sum_teachers`.
"""

import copy
import functools
import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Protocol, Self

import torch
from torch import Tensor

from pipeline.errors import StillroomError

LOWEST_LOG_PROB = -1e30  # a class masked by float32's minimum stays finite, also over a temperature under 1


@dataclass(frozen=True)
class FusedTargets:
    """What a fusion says of a block of rows, all float32.

    `log_probs [..., C]` at the temperature asked for; `weights [..., T]` sum to one; `disagreement
    [...]` is the generalised Jensen-Shannon divergence of the teachers in nats.
    """

    log_probs: Tensor
    weights: Tensor
    disagreement: Tensor


class Fusion(Protocol):
    """A frozen dataclass whose fields are plain JSON options; a wrong option raises StillroomError at once.

    Logits come already divided by each teacher's fitted temperature (`pipeline.calibration`).
    """

    def fit(self, logits: Tensor, labels: Tensor) -> Self:
        """Return a copy fitted on calibration outputs `[T, N, ..., C]` and labels `[N, ...]` (-1: none)."""
        ...

    def fuse(self, logits: Tensor, *, temperature: float) -> FusedTargets:
        """Return the targets of rows `[T, B, ..., C]`, each row by itself, at the temperature of the loss."""
        ...

    def fitted(self) -> dict[str, Any]:
        """Return what was fitted, as JSON for the manifest; lists run by teacher position."""
        ...


def log_softmax(logits: Tensor, *, temperature: float = 1.0) -> Tensor:
    """Return log softmax(logits / temperature) over the class axis, finite, in float32: `[..., C] -> [..., C]`."""
    logits = logits.float()
    shifted = ((logits - logits.amax(dim=-1, keepdim=True)) / temperature).clamp(min=LOWEST_LOG_PROB)
    return shifted - sum_classes(shifted.exp()).log().unsqueeze(-1)


def teacher_log_probs(logits: Tensor, *, temperature: float) -> Tensor:
    """Return each teacher's log-probabilities at this temperature: `[T, B, ..., C]` in and out.

    Raises: StillroomError when a logit is not finite (names teacher and row) or temperature is not above 0.
    """
    check_positive("fuse", "temperature", temperature)
    check_finite("fuse", logits)
    return log_softmax(logits, temperature=temperature)


def log_mixture(log_probs: Tensor, weights: Tensor) -> Tensor:
    """Return log sum_k w_k p_k, finite where any weighted teacher is: `[T, ..., C], [..., T] -> [..., C]`.

    KL to it and sum_k w_k KL(p_k ‖ student) have the same gradient in the student, so nothing is lost
    by fusing before training (SCIENCE 0.1, for weights that do not depend on the student).
    """
    terms = log_probs + weights.log().movedim(-1, 0).unsqueeze(-1)
    peak = terms.amax(dim=0)
    return peak + sum_teachers((term - peak).exp() for term in terms).log()


def log_pool(log_probs: Tensor) -> Tensor:
    """Return log of the normalised geometric mean of the teachers: `[T, ..., C] -> [..., C]`."""
    return log_softmax(sum_teachers(log_probs / len(log_probs)))


def disagreement(log_probs: Tensor, weights: Tensor) -> Tensor:
    """Return sum_k w_k KL(p_k ‖ sum_k w_k p_k) in nats, 0 for teachers of one mind: `[T, ..., C], [..., T] -> [...]`.

    It is taken at the temperature of `log_probs`, and at most the entropy of the weights.
    Source: Lin 1991, section V (generalised Jensen-Shannon).
    """
    mixture = log_mixture(log_probs, weights)
    divergences = (weight * kl(p, mixture) for weight, p in zip(weights.movedim(-1, 0), log_probs, strict=True))
    return sum_teachers(divergences).clamp(min=0)


def kl(log_probs: Tensor, other_log_probs: Tensor) -> Tensor:
    """Return KL(first ‖ second) in nats of finite log-probabilities: `[..., C], [..., C] -> [...]`."""
    return sum_classes(log_probs.exp() * (log_probs - other_log_probs))


def uniform_weights(log_probs: Tensor) -> Tensor:
    """Return 1/T for every teacher and row: `[T, ..., C] -> [..., T]`."""
    return row_weights(torch.full((len(log_probs),), 1 / len(log_probs)), log_probs)


def row_weights(weights: Tensor, log_probs: Tensor) -> Tensor:
    """Return the teachers' weights `[T]` for every row of `log_probs [T, ..., C]`, as `[..., T]`."""
    return weights.to(log_probs).expand(*log_probs.shape[1:-1], len(log_probs))


def sum_teachers(terms: Iterable[Tensor]) -> Tensor:
    """Return the sum over teachers, added one after the other (see the module's first lines)."""
    return functools.reduce(torch.add, terms)


def sum_classes(values: Tensor) -> Tensor:
    """Return the sum over the class axis by halving, in the same order for every row: `[..., C] -> [...]`."""
    while (width := values.shape[-1]) > 1:
        half = width // 2
        paired = values[..., :half] + values[..., half : 2 * half]
        values = torch.cat([paired, values[..., 2 * half :]], dim=-1) if width % 2 else paired
    return values[..., 0]


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
    finite = logits.isfinite()
    if not finite.all():
        teacher, row = (int(i) for i in (~finite).nonzero()[0][:2])
        raise StillroomError(
            f"{where}: teacher {teacher}, row {row} has a logit that is not finite; expected finite logits; "
            "run 'stillroom verify' on that teacher's store"
        )
