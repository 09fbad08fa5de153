"""Distributions of several teachers, softened, mixed and pooled: what strategies compute with.

No sum here depends on the rows beside it (see `pipeline.fusion.base`), and steps that change nothing are left out: the
rows of one call lie in the cache, where a pass costs as much as reading them.
"""

import functools
from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from pipeline.errors import StillroomError
from pipeline.fusion.base import FusedTargets, check_finite, check_positive
from pipeline.metrics import num_pieces

LOWEST_LOG_PROB = -1e30  # a class masked by float32's minimum stays finite, also over a temperature under 1
NARROW = 16  # classes: 10 or 100 are then added up in half the time
SMALLEST_SUM = 1e-30  # a mixture below it is taken in log space: float32 ends at 1e-38


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
    shifted = _shifted(logits, temperature)
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


def label_nll(logits: Tensor, labels: Tensor) -> Tensor:
    """Return every teacher's -log p(label) in nats, for fits: `[T, N, C], [N] -> [T, N]`, float64."""
    count = num_pieces(*logits.shape[1:])  # in double precision all rows at once would take twice what they are
    pieces = list(zip(logits.tensor_split(count, dim=1), labels.tensor_split(count), strict=True))
    return torch.stack(
        [
            torch.cat([functional.cross_entropy(rows[k].double(), own, reduction="none") for rows, own in pieces])
            for k in range(len(logits))
        ]
    )


def log_mixture(log_probs: Tensor, weights: Tensor) -> Tensor:
    """Return log sum_k w_k p_k in log space: `[T, ..., C], [..., T] -> [..., C]`."""
    terms = log_probs + weights.log().movedim(-1, 0).unsqueeze(-1)
    peak = terms.amax(dim=0)
    return peak + sum_teachers((term - peak).exp() for term in terms).log()


def log_softmax(logits: Tensor, *, temperature: float = 1.0) -> Tensor:
    """Return log softmax(logits / temperature) over the class axis, finite, in float32: `[..., C] -> [..., C]`."""
    shifted = _shifted(logits, temperature)
    return shifted - sum_classes(shifted.exp()).log().unsqueeze(-1)


def _shifted(logits: Tensor, temperature: float) -> Tensor:
    """Return (logits - max) / temperature, finite, in memory of its own: `[..., C] -> [..., C]`."""
    logits = logits.float()
    shifted = logits - logits.amax(dim=-1, keepdim=True)
    if temperature != 1:
        shifted.div_(temperature)
    return shifted.clamp_(min=LOWEST_LOG_PROB)


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
    while (width := values.shape[-1]) > NARROW:
        half = width // 2
        paired = values[..., :half] + values[..., half : 2 * half]
        if width % 2:
            paired[..., 0] += values[..., -1]
        values = paired
    columns = list(values.unbind(dim=-1))  # a loop over rows costs less than one over a row's last few classes
    while half := len(columns) // 2:
        sums = [first + second for first, second in zip(columns[:half], columns[half : 2 * half], strict=True)]
        if len(columns) % 2:
            sums[0] = sums[0] + columns[-1]
        columns = sums
    return columns[0]


def softmax_teachers(scores: Tensor) -> Tensor:
    """Return softmax over the teachers' scores: `[T, ...] -> [..., T]`."""
    exps = (scores - scores.amax(dim=0)).exp()
    return (exps / sum_teachers(exps)).movedim(0, -1)
