"""Every teacher counts the same.

Trade: nothing to fit and hard to beat, but a weak teacher pulls as hard as a strong one. The mean of
probabilities keeps every opinion; the geometric mean is sharper and lets any teacher veto a class.
"""

from dataclasses import dataclass

from pipeline.errors import unknown_name
from pipeline.fusion.base import FusedTargets, Fusion, Outputs
from pipeline.fusion.distributions import disagreement, mixture, pooled, soften, uniform_weights

MEANS = ("probabilities", "logits", "geometric")


@dataclass(frozen=True)
class Mean(Fusion):
    """The mean of the teachers' probabilities, logits or log-probabilities at the temperature.

    `of="logits"` and `of="geometric"` are two names of one distribution: a teacher's log-probabilities
    are its logits minus a constant per row, which the softmax of the mean does not see.
    Source: Hinton 2015; You 2017.
    """

    of: str = "probabilities"

    def __post_init__(self) -> None:
        if self.of not in MEANS:
            raise unknown_name("fusion 'mean'", "of", str(self.of), MEANS)

    def fuse(self, outputs: Outputs, *, temperature: float) -> FusedTargets:
        """Return the mean of the teachers; the disagreement is always about the mixture."""
        soft = soften(outputs.logits, temperature=temperature)
        weights = uniform_weights(soft)
        if self.of == "probabilities":
            return mixture(soft, weights)
        return FusedTargets(pooled(soft.log_probs, weights), weights, disagreement(soft, weights))
