"""Every row takes one teacher's numbers whole, drawn by lot.

For answers that are draws, such as pictures: the mean of two of them is none. Trade: right on average over rows, and
any one row is as good as one teacher makes it; a bad teacher spoils its share of the rows.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from pipeline.errors import StillroomError
from pipeline.fusion.random_teacher import chances_of, check_chances, draw_teachers
from pipeline.fusion.real.base import FusedReals, RealFusion, checked, together
from pipeline.views import RowKeys


@dataclass(frozen=True)
class Draw(RealFusion):
    """One teacher's own numbers, drawn with chances `weights` (equal ones if None), anew for every row.

    `weights` are numbers from 0 on, one per teacher, and need not sum to one. The draw depends on the plan's seed and
    the sample alone. Its weights are 1 for the teacher drawn; variance and disagreement are those of the mixture it is
    drawn from. Source: Fukuda 2017, of numbers; that a pair of noise and sample is one teacher's: Luhman & Luhman 2021.
    """

    weights: Sequence[float] | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "weights", check_chances(self.weights, self.where))

    def fuse(self, values: Tensor, *, mask: Tensor | None = None, keys: RowKeys | None = None) -> FusedReals:
        """Return the drawn teachers' numbers. Raises: StillroomError without keys, or unless `weights` fit."""
        values = checked(values, mask, self.where)
        chances = chances_of(self.weights, len(values), self.where)
        drawn = draw_teachers(keys, chances, self.where)
        if len(drawn) != values.shape[1]:
            raise StillroomError(
                f"{self.where}: keys of {len(drawn)} rows, values of {values.shape[1]}; expected a key a row; give "
                f"both for the same rows"
            )
        column = torch.from_numpy(chances).reshape(-1, *[1] * (values.ndim - 1))
        mixture = together(values, column, mask)
        onehot = torch.nn.functional.one_hot(drawn, len(values)).float()
        return replace(mixture, mean=values[drawn, torch.arange(len(drawn))].float(), weights=onehot)
