"""The student's features, linearly mapped and normalised over the batch, are to be the teacher's, the worst rows first.

Trade: the best measured of the cheap ones and the default; its logarithm keeps the gradient alive however small the
difference, so it never comes to rest, and the value depends on the batch and says little by itself.
"""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from pipeline.features.base import FeatureLoss, FeatureStart, Pair, check_number, projector

EPSILON = 1e-4  # beside a channel's variance over the batch, as in the source's code
SMALLEST = 1e-6  # beside the sum: a logarithm of nothing, as for a batch of one row, would be infinite


@dataclass(frozen=True)
class Srd(FeatureLoss):
    """log sum |BN(W f_s) - BN(f_t)|^power, summed over the batch's rows and channels; one value, which every row has.

    With weights that differ from row to row, a row counts in the sum by its weight over the batch's mean weight.
    Source: Miles & Mikolajczyk 2024 (2303.11098), and their code for what is summed.
    """

    weight: ClassVar[float] = 2.0
    power: float = 4.0

    def __post_init__(self) -> None:
        check_number(self, "power", smallest=1, is_allowed=True)

    def pair(self, start: FeatureStart, teacher: int) -> Pair:
        """Return what compares the student with a teacher that has the layer."""
        draws = start.generator(teacher)
        # no offset: the normalisation would take it off again
        return _Srd(projector(start.student_width, start.widths[teacher], draws, bias=False), self.power)


class _Srd(Pair):
    def __init__(self, adapter: nn.Linear, power: float):
        super().__init__()
        self.adapter, self._power = adapter, power

    def forward(self, student: Tensor, teacher: Tensor, weights: Tensor, negatives: Tensor | None) -> Tensor:
        gap = normalised_over_rows(self.adapter(student)) - normalised_over_rows(teacher)
        mean_weight = weights.mean()
        counts = weights / mean_weight.where(mean_weight > 0, 1)
        total = (gap.abs().pow(self._power).sum(1) * counts).sum()
        return (total + SMALLEST).log().expand(len(student))


def normalised_over_rows(features: Tensor) -> Tensor:
    """Return each channel less its mean over the rows, over its deviation: [B, D]; 0 for one row. No running state."""
    variance, mean = torch.var_mean(features, 0, correction=0)
    return (features - mean) * (variance + EPSILON).rsqrt()
