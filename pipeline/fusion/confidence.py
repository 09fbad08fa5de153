"""Teachers count by how well they know a row's label.

Trade: the best judge there is of a teacher on a row, so where labels are plenty it drops every mistaken teacher; rows
without a label, mixed ones and those held out get the plain mean.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from pipeline.fusion.base import FusedTargets, Fusion, Outputs, check_positive
from pipeline.fusion.distributions import mixture, soften, softmax_teachers, uniform_weights
from pipeline.fusion.entropy import all_but, softmin_teachers


@dataclass(frozen=True)
class Confidence(Fusion):
    """The mixture with w_k = (1 - softmax_k(CE_k)) / (T - 1), CE_k = -log p_k(y) in nats at temperature 1.

    No weight is above 1 / (T - 1), so it only turns down teachers that are wrong; `sharp` follows the one that is most
    right instead: w_k = softmax_k(-CE_k / tau). A row without a label has equal weights: the label is all that the
    weights go by, and any guess at it would be made of the very teachers to be judged. The pool's temperature is
    fitted on such weights too, since rows to be judged hide their labels.
    Source: Zhang 2022 (CA-MKD, 2201.00007), equation 3, normalised.
    """

    sharp: bool = False
    tau: float = 0.3

    def __post_init__(self) -> None:
        check_positive("fusion 'confidence'", "tau", self.tau)

    def fuse(self, outputs: Outputs, *, temperature: float) -> FusedTargets:
        """Return the mixture with every row's own weights."""
        soft = soften(outputs.logits, temperature=temperature)
        labels = outputs.labels
        losses = label_losses(outputs.logits, labels.clamp(min=0).long())
        if self.sharp:
            weights = softmin_teachers(losses, tau=self.tau)
        else:
            weights = all_but(softmax_teachers(losses).movedim(-1, 0))
        return mixture(soft, torch.where((labels >= 0).unsqueeze(-1), weights, uniform_weights(soft)))


def label_losses(logits: Tensor, labels: Tensor) -> Tensor:
    """Return every teacher's -log p(label) in nats at temperature 1: `[T, ..., C], [...] -> [T, ...]`."""
    own = labels.expand(logits.shape[:-1]).unsqueeze(-1)
    return -soften(logits).log_probs.gather(-1, own).squeeze(-1)
