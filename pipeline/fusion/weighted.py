"""Teachers count by how well they predict rows that nobody was trained on.

Trade: a number or a few per teacher, so it needs few calibration rows; one number cannot know that a teacher is good
at some classes only, `by="class"` can, but looks at few rows of each class and at what the teachers believe the class
to be.
"""

from dataclasses import dataclass
from typing import Self

import torch
from torch import Tensor
from torch.nn import functional

from pipeline.errors import unknown_name
from pipeline.fusion.base import FusedTargets, Fusion, Outputs, check_positive
from pipeline.fusion.distributions import label_nll, mixture, normalised, row_weights, soften, sum_classes, sum_teachers

BASES = ("nll", "accuracy", "class")
PRIOR_ROWS = 10  # a class's NLL counts as far as its own rows outnumber these, which have the NLL of all rows


@dataclass(frozen=True)
class Weighted(Fusion):
    """The mixture of the teachers' probabilities, weighted by a teacher's figures on calibration rows.

    `by="nll"`: w_k = softmax_k(-NLL_k / tau), NLL in nats; a small `tau` picks the best teacher, a large one is the
    plain mean. `by="accuracy"`: w_k = accuracy_k / sum_j accuracy_j, which hardly tells good teachers apart; `tau`
    plays no part. `by="class"`: w_k(c) = softmax_k(-NLL_k(c) / tau) with the NLL of rows of class c, shrunk to that of
    all rows as if by 10 more of them; a row's weights are sum_c m(c) w_k(c), with m the plain mean of the teachers'
    probabilities of that row at temperature 1, so they sum to one and are the same at every temperature.
    Source: SCIENCE 2, "performance weights" (Bayesian model averaging tempered as in Minka 2000).
    """

    by: str = "nll"
    tau: float = 0.1

    def __post_init__(self) -> None:
        if self.by not in BASES:
            raise unknown_name("fusion 'weighted'", "by", str(self.by), BASES)
        check_positive("fusion 'weighted'", "tau", self.tau)

    def fit(self, outputs: Outputs) -> Self:
        """Return a copy with the weights that these rows give: [T], or [T, C] by class.

        Raises: StillroomError when no row has a label, or no teacher is right once and accuracy is what counts.
        """
        where = "fusion 'weighted'"
        logits, labels = outputs.labelled(where)
        if self.by == "accuracy":
            is_right = logits.argmax(dim=-1) == labels
            return self.with_state(weights=normalised(is_right.double().mean(dim=1), f"{where} by accuracy"))
        losses = label_nll(logits, labels)
        if self.by == "class":
            return self.with_state(
                class_weights=_sharpened(class_losses(losses, labels, outputs.num_classes), self.tau)
            )
        return self.with_state(weights=_sharpened(losses.mean(dim=1), self.tau))

    def fuse(self, outputs: Outputs, *, temperature: float) -> FusedTargets:
        """Return the weighted mixture. Raises: StillroomError before `fit`, or for another number of teachers."""
        soft = soften(outputs.logits, temperature=temperature)
        if self.by == "class":
            by_class = self.fitted_state("class_weights", soft.num_teachers).to(soft.sums)
            return mixture(soft, _weights_of_rows(outputs.logits, by_class))
        return mixture(soft, row_weights(self.fitted_state("weights", soft.num_teachers), soft))


def class_losses(losses: Tensor, labels: Tensor, num_classes: int) -> Tensor:
    """Return each teacher's mean loss on rows of a class, shrunk to its mean on all: `[T, N], [N] -> [T, C]`."""
    is_class = functional.one_hot(labels, num_classes).to(losses)
    overall = losses.mean(dim=1, keepdim=True)
    return (losses @ is_class + PRIOR_ROWS * overall) / (is_class.sum(dim=0) + PRIOR_ROWS)


def _sharpened(losses: Tensor, tau: float) -> Tensor:
    """Return softmax over the teachers of -losses / tau; the lowest loss is taken off first, so no tau is too small."""
    return torch.softmax(-(losses - losses.amin(dim=0)) / tau, dim=0)


def _weights_of_rows(logits: Tensor, by_class: Tensor) -> Tensor:
    """Return sum_c m(c) w_k(c) with m the teachers' mean probabilities: `[T, ..., C], [T, C] -> [..., T]`."""
    probs = soften(logits).probs
    mean = sum_teachers(probs) / len(probs)
    return torch.stack([sum_classes(mean * own) for own in by_class], dim=-1)
