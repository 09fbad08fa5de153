"""Teachers count by how well they predict rows that nobody was trained on.

Trade: one number per teacher, so it needs few calibration rows; it cannot know that a teacher is
good at some classes only.
"""

from dataclasses import dataclass, field
from typing import Any, Self

import torch
from torch import Tensor

from pipeline.errors import StillroomError
from pipeline.fusion.base import (
    FusedTargets,
    check_finite,
    check_positive,
    disagreement,
    log_mixture,
    row_weights,
    teacher_log_probs,
    with_fitted,
)


@dataclass(frozen=True)
class Weighted:
    """The mixture of the teachers' probabilities with w_k = softmax_k(-NLL_k / tau), NLL in nats.

    A small `tau` picks the best teacher, a large one is the plain mean. Source: SCIENCE 2,
    "performance weights" (Bayesian model averaging tempered as in Minka 2000).
    """

    tau: float = 0.1
    _weights: tuple[float, ...] | None = field(default=None, init=False)

    def __post_init__(self) -> None:
        check_positive("fusion 'weighted'", "tau", self.tau)

    def fit(self, logits: Tensor, labels: Tensor) -> Self:
        """Return a copy with the weights that calibration outputs `[T, N, ..., C]` and labels `[N, ...]` give.

        Raises: StillroomError when no row has a label or a logit is not finite.
        """
        labelled = labels >= 0
        if not labelled.any():
            raise StillroomError(
                f"fusion 'weighted': none of {labels.numel()} calibration rows has a label; expected at least one; "
                "give the calibration split labels or use fusion 'mean'"
            )
        check_finite("fusion 'weighted'", logits)
        losses = [torch.nn.functional.cross_entropy(z[labelled].double(), labels[labelled].long()) for z in logits]
        weights = torch.softmax(-torch.stack(losses) / self.tau, dim=0)
        return with_fitted(self, _weights=tuple(weights.tolist()))

    def fuse(self, logits: Tensor, *, temperature: float) -> FusedTargets:
        """Return the weighted mixture of `[T, B, ..., C]`.

        Raises: StillroomError before `fit`, or for another number of teachers than was fitted.
        """
        log_probs = teacher_log_probs(logits, temperature=temperature)
        weights = row_weights(self._weights_for(len(logits)), log_probs)
        return FusedTargets(log_mixture(log_probs, weights), weights, disagreement(log_probs, weights))

    def fitted(self) -> dict[str, Any]:
        return {} if self._weights is None else {"weights": list(self._weights)}

    def _weights_for(self, num_teachers: int) -> Tensor:
        if self._weights is None:
            raise StillroomError(
                "fusion 'weighted': it has no weights yet; expected a fitted strategy; call fit on calibration outputs"
            )
        if len(self._weights) != num_teachers:
            raise StillroomError(
                f"fusion 'weighted': logits of {num_teachers} teachers; expected the {len(self._weights)} it was "
                "fitted on; fit again with these teachers"
            )
        return torch.tensor(self._weights)
