"""Teachers count by how well they predict rows that nobody was trained on.

Trade: one number per teacher, so it needs few calibration rows; it cannot know that a teacher is
good at some classes only.
"""

from dataclasses import dataclass
from typing import Self

import torch

from pipeline.fusion.base import FusedTargets, Fusion, Outputs, check_positive, mixture, row_weights, soften


@dataclass(frozen=True)
class Weighted(Fusion):
    """The mixture of the teachers' probabilities with w_k = softmax_k(-NLL_k / tau), NLL in nats.

    A small `tau` picks the best teacher, a large one is the plain mean. Source: SCIENCE 2,
    "performance weights" (Bayesian model averaging tempered as in Minka 2000).
    """

    tau: float = 0.1

    def __post_init__(self) -> None:
        check_positive("fusion 'weighted'", "tau", self.tau)

    def fit(self, outputs: Outputs) -> Self:
        """Return a copy with the weights that these rows give. Raises: StillroomError when no row has a label."""
        logits, labels = outputs.labelled("fusion 'weighted'")
        losses = [torch.nn.functional.cross_entropy(z.double(), labels) for z in logits]
        return self.with_state(weights=torch.softmax(-torch.stack(losses) / self.tau, dim=0))

    def fuse(self, outputs: Outputs, *, temperature: float) -> FusedTargets:
        """Return the weighted mixture. Raises: StillroomError before `fit`, or for another number of teachers."""
        soft = soften(outputs.logits, temperature=temperature)
        return mixture(soft, row_weights(self.fitted_state("weights", soft.num_teachers), soft))
