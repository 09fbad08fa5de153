"""The student's features, linearly mapped, are to be the teacher's.

Trade: the plainest of all, row by row and with a loss that is zero at the end; asks for every channel alike, also those
the teacher's classifier ignores, so it can bind a small student too tightly.
"""

from dataclasses import dataclass

from torch import Tensor, nn

from pipeline.features.base import FeatureLoss, FeatureStart, Pair, projector


@dataclass(frozen=True)
class Hint(FeatureLoss):
    """The squared difference to the teacher's features, mean over channels, through a linear regressor.

    The source maps whole maps in a first stage of training; here pooled features, beside the other losses.
    Source: Romero 2015 (1412.6550), eq. 3.
    """

    def pair(self, start: FeatureStart, teacher: int) -> Pair:
        """Return what compares the student with a teacher that has the layer."""
        return _Hint(projector(start.student_width, start.widths[teacher], start.generator(teacher)))


class _Hint(Pair):
    def __init__(self, regressor: nn.Linear):
        super().__init__()
        self.regressor = regressor

    def forward(self, student: Tensor, teacher: Tensor, weights: Tensor, negatives: Tensor | None) -> Tensor:
        return (self.regressor(student) - teacher).square().mean(1)
