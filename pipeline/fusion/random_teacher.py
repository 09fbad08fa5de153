"""Every row learns from one teacher, drawn by lot.

Trade: right on average over rows and views, and a target keeps the shape that one network gave it; any one row is
noisy, so it needs many views to be worth its mixture.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from pipeline.errors import StillroomError
from pipeline.fusion.base import FusedTargets, Fusion, Outputs
from pipeline.fusion.distributions import disagreement, row_weights, soften
from pipeline.views import RowKeys
from pipeline.views.draws import row_words, stream_seed, uniform

WHERE = "fusion 'random_teacher'"


@dataclass(frozen=True)
class RandomTeacher(Fusion):
    """One teacher's own distribution, drawn with chances `weights` (equal ones if None), anew for every row and view.

    `weights` are numbers from 0 on, one per teacher, and need not sum to one. The draw depends on the plan's seed, the
    view and the sample alone: the same row has the same teacher in any store of one plan. A target is an unbiased
    sample of the mixture at any temperature. Its weights are 1 for the teacher drawn; its disagreement is the
    mixture's, for a single teacher has none. Source: Fukuda 2017.
    """

    weights: Sequence[float] | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "weights", check_chances(self.weights, WHERE))

    def fuse(self, outputs: Outputs, *, temperature: float) -> FusedTargets:
        """Return the drawn teachers' targets. Raises: StillroomError without keys, or unless `weights` fit."""
        soft = soften(outputs.logits, temperature=temperature)
        chances = chances_of(self.weights, soft.num_teachers, WHERE)
        drawn = draw_teachers(outputs.keys, chances, WHERE)
        log_probs = soft.log_probs[drawn, torch.arange(len(drawn))]
        onehot = torch.nn.functional.one_hot(drawn, soft.num_teachers).to(soft.sums)
        rows = onehot.reshape(len(drawn), *[1] * (soft.sums.ndim - 2), -1).expand(*soft.sums.shape[1:], -1)
        return FusedTargets(log_probs, rows, disagreement(soft, row_weights(torch.from_numpy(chances), soft)))


def check_chances(weights: Sequence[float] | None, where: str) -> tuple[float, ...] | None:
    """Return weights as they are kept, None of none. Raises StillroomError unless chances can be made of them."""
    if weights is None:
        return None
    is_list = isinstance(weights, Sequence) and not isinstance(weights, str)
    if not is_list or not all(map(_is_weight, weights)) or not sum(weights) > 0:
        raise StillroomError(
            f"{where}: weights is {weights!r}; expected a list of finite numbers from 0 on, not all 0, one per "
            f"teacher; change weights"
        )
    return tuple(weights)


def chances_of(weights: Sequence[float] | None, num_teachers: int, where: str) -> np.ndarray:
    """Return each teacher's chance: float64 [T], equal ones of None. Raises StillroomError for other teachers."""
    found = [1.0] * num_teachers if weights is None else weights
    if len(found) != num_teachers:
        raise StillroomError(
            f"{where}: answers of {num_teachers} teachers; expected {len(found)}, one for each of weights; change "
            f"weights or the fusion's teachers"
        )
    chances = np.array(found, np.float64) / max(found)
    return chances / chances.sum()


def draw_teachers(keys: RowKeys | None, chances: np.ndarray, where: str) -> Tensor:
    """Return which teacher each row learns from, int64 [B]: chances [T] sum to one. Raises StillroomError."""
    if keys is None:
        raise StillroomError(
            f"{where}: rows without keys; expected each row's seed, view and sample; give Outputs keys"
        )
    words = row_words(stream_seed(keys.seed, "random teacher"), keys.ids, keys.view, 1)[:, 0]
    ends = chances.cumsum()
    return torch.from_numpy(np.searchsorted(ends / ends[-1], uniform(words), side="right"))  # the last end is 1 exactly


def _is_weight(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and 0 <= value < math.inf
