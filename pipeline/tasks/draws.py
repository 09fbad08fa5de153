"""Numbers of which many would do, such as the pixels of a picture: what is true of a row is one draw of them.

How far an answer is from that draw says little: the mean of all draws is nearest, and is none of them. So answers are
judged by how far they are, all together, from all that is true.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Self

import numpy as np
from torch import Tensor

from pipeline.generation import energy_distance
from pipeline.tasks.reals import Reals

JUDGED_ROWS = 1000  # at most: the distance goes by pairs of rows


@dataclass(frozen=True)
class Draws(Reals):
    """The numbers `names`, all in units of one deviation about one mean, so that none counts more than another."""

    steered_by: ClassVar[str] = "energy"
    ranked_by: ClassVar[str] = "energy"

    @classmethod
    def of(cls, names: Sequence[str], targets: np.ndarray, unit: str = "") -> Self:
        """Return the task of train targets in their own unit: float [N, P], NaN where hidden.

        Raises: StillroomError for an output that no row shows.
        """
        each = Reals.of(names, targets, unit)
        mean, count = float(np.mean(each.mean)), len(names)
        spread = float(np.nanmean(np.square(targets.astype(np.float64) - mean))) ** 0.5
        return cls(tuple(names), (mean,) * count, (spread or 1.0,) * count, unit)

    @property
    def attributes(self) -> dict[str, Any]:
        """The scale, and that there are many answers."""
        return {**super().attributes, "draws": True}

    def steering(self, answers: Tensor, truth: Tensor) -> dict[str, float]:
        """Return the energy distance and the mean squared error in standard units: [N, P], [N, P]."""
        return {"energy": _energy(answers, truth), "mse": super().steering(answers, truth)["mse"]}

    def metrics(self, answers: Tensor, truth: Tensor) -> dict[str, float]:
        """Return the energy distance beside the figures of numbers, which are nearer to a mean than to a draw."""
        return {**super().metrics(answers, truth), "energy": _energy(answers, truth)}


def _energy(answers: Tensor, truth: Tensor) -> float:
    """Return the energy distance of rows that are known, JUDGED_ROWS at most, in standard units."""
    is_known = truth.isfinite().all(dim=1)
    return energy_distance(answers[is_known][:JUDGED_ROWS], truth[is_known][:JUDGED_ROWS])
