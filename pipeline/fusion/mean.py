"""Every teacher counts the same.

Trade: nothing to fit and hard to beat, but a weak teacher pulls as hard as a strong one. The mean of
probabilities keeps every opinion; the geometric mean is sharper and lets any teacher veto a class.
"""

from dataclasses import dataclass
from typing import Any, Self

from torch import Tensor

from pipeline.errors import unknown_name
from pipeline.fusion.base import FusedTargets, disagreement, log_mixture, log_pool, teacher_log_probs, uniform_weights

MEANS = ("probabilities", "logits", "geometric")


@dataclass(frozen=True)
class Mean:
    """The mean of the teachers' probabilities, logits or log-probabilities at the temperature.

    `of="logits"` and `of="geometric"` are two names of one distribution: a teacher's log-probabilities
    are its logits minus a constant per row, which the softmax of the mean does not see.
    Source: Hinton 2015; You 2017.
    """

    of: str = "probabilities"

    def __post_init__(self) -> None:
        if self.of not in MEANS:
            raise unknown_name("fusion 'mean'", "of", str(self.of), MEANS)

    def fit(self, logits: Tensor, labels: Tensor) -> Self:
        """Return this very strategy: a plain mean has nothing to fit."""
        return self

    def fuse(self, logits: Tensor, *, temperature: float) -> FusedTargets:
        """Return the mean of `[T, B, ..., C]`; the disagreement is always about the mixture."""
        log_probs = teacher_log_probs(logits, temperature=temperature)
        weights = uniform_weights(log_probs)
        fused = log_mixture(log_probs, weights) if self.of == "probabilities" else log_pool(log_probs)
        return FusedTargets(fused, weights, disagreement(log_probs, weights))

    def fitted(self) -> dict[str, Any]:
        return {}
