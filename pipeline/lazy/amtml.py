"""Teachers count by what the student sees in a row, as learned with the student.

Trade: weights differ from row to row without any label; but what is learned makes the student's loss small, so it
favours teachers that are easy to follow, right or wrong.
"""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from pipeline.lazy.base import Lazy, Rows, Start, Weigher, check_count, dense


@dataclass(frozen=True)
class Amtml(Lazy):
    """AMTML-KD's logit part: w_k(x) = softmax_k(v^T (theta_k * a(x))), a(x) `dims` projections of penultimate features.

    theta and v learn from the student's loss, whose gradient also reaches the features through the weights. All theta
    are 1 at first: the plain mean, in whatever order the teachers come. Its angle loss and its hints, which compare
    inner layers, are not part of this. Source: Liu 2020 (2103.04062).
    """

    dims: int = 64
    reads_features: ClassVar[bool] = True

    def __post_init__(self) -> None:
        check_count("fusion 'amtml'", "dims", self.dims)

    def begin(self, start: Start) -> Weigher:
        """Return what weighs the teachers."""
        return _Attention(start, self.dims)


class _Attention(Weigher):
    def __init__(self, start: Start, dims: int):
        super().__init__()
        assert start.width is not None
        generator = start.generator()
        self.project = dense(start.width, dims, generator, bias=False)
        self.theta = nn.Parameter(torch.ones(start.num_teachers, dims))
        self.v = nn.Parameter(torch.randn(dims, generator=generator) / dims**0.5)

    def forward(self, rows: Rows) -> Tensor:
        scores = (self.project(rows.features) * self.v) @ self.theta.T
        return scores.log_softmax(-1)
