"""From the student's features, the teacher's of the same row are to be told from those of other rows.

Trade: sees many more rows than the batch has, at the price of reading them from the store at every step; needs no match
of channels, only that rows can be told apart, which the teacher's own features may not do within a class.
"""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from pipeline.features.base import FeatureLoss, FeatureStart, Pair, check_number, check_whole, directions, projector


@dataclass(frozen=True)
class Crd(FeatureLoss):
    """-log e^(s.t / tau) / (e^(s.t / tau) + sum_n e^(s.t_n / tau)) of linear maps to `width` numbers, of length one.

    Both maps are learned. The source's estimator also draws negatives among the student's features of past steps; here
    the store alone is the memory, so only the student is asked, and the softmax needs no constant of its own.
    Source: Tian 2020 (1910.10699), section 3.1; van den Oord 2018 (1807.03748), eq. 4.
    """

    weight: ClassVar[float] = 0.8
    tau: float = 0.07
    width: int = 128
    negatives: int = 1024

    def __post_init__(self) -> None:
        check_number(self, "tau")
        check_whole(self, "width")
        check_whole(self, "negatives")

    @property
    def num_negatives(self) -> int:
        """How many rows of each store a batch must bring beside its own, none of them a row of the batch."""
        return self.negatives

    def pair(self, start: FeatureStart, teacher: int) -> Pair:
        """Return what compares the student with a teacher that has the layer."""
        draws = start.generator(teacher)
        own = projector(start.student_width, self.width, draws)
        return _Crd(own, projector(start.widths[teacher], self.width, draws), self.tau)


class _Crd(Pair):
    def __init__(self, student_map: nn.Linear, teacher_map: nn.Linear, tau: float):
        super().__init__()
        self.student_map, self.teacher_map, self._tau = student_map, teacher_map, tau

    def forward(self, student: Tensor, teacher: Tensor, weights: Tensor, negatives: Tensor | None) -> Tensor:
        if negatives is None:
            raise ValueError("the batch has no negatives; have the loader draw num_negatives rows of each store")
        anchors = directions(self.student_map(student)) / self._tau
        own = (anchors * directions(self.teacher_map(teacher))).sum(1, keepdim=True)
        others = anchors @ directions(self.teacher_map(negatives)).T
        return torch.cat([own, others], 1).logsumexp(1) - own.squeeze(1)
