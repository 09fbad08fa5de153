"""Some real numbers about a sample: answers and targets are in standard units, figures in the targets' own."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Self

import numpy as np
import torch
from torch import Tensor

from pipeline.errors import StillroomError
from pipeline.real_metrics import regression_metrics
from pipeline.store.fields import VALUES, Truth
from pipeline.tasks.contract import Shapes
from pipeline.train import squared_loss
from pipeline.views import Batch, Split


@dataclass(frozen=True)
class Reals:
    """The numbers `names`, each in units of `std` about `mean`, which are those of the train rows that show it.

    `unit` is what people call the unit of all of them, "" where they have none in common.
    """

    names: tuple[str, ...]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    unit: str = ""
    steered_by: ClassVar[str] = "mse"
    ranked_by: ClassVar[str] = "rmse"
    is_real: ClassVar[bool] = True
    is_plain: ClassVar[bool] = True
    numbers: ClassVar[frozenset[str]] = frozenset({VALUES})

    @classmethod
    def of(cls, names: Sequence[str], targets: np.ndarray, unit: str = "") -> Self:
        """Return the task of train targets in their own unit: float [N, P], NaN where unknown or hidden.

        Raises: StillroomError for an output that no row shows.
        """
        for name, column in zip(names, targets.T, strict=True):
            if not np.isfinite(column).any():
                raise StillroomError(
                    f"data: no train row shows {name!r}; expected at least one; leave the column out, or show more rows"
                )
        spread = np.nanstd(targets.astype(np.float64), axis=0)
        return cls(
            tuple(names),
            tuple(np.nanmean(targets.astype(np.float64), axis=0).tolist()),
            tuple(np.where(spread > 0, spread, 1.0).tolist()),
            unit,
        )

    def standardised(self, targets: np.ndarray) -> np.ndarray:
        """Return targets in standard units: float [N, P] -> float32 [N, P]."""
        return ((targets - np.array(self.mean)) / np.array(self.std)).astype(np.float32)

    def in_units(self, values: Tensor) -> Tensor:
        """Return standard units as the targets' own: [..., P] -> float64 [..., P]."""
        mean, std = (torch.tensor(each, dtype=torch.float64) for each in (self.mean, self.std))
        return values.cpu().double() * std + mean

    @property
    def attributes(self) -> dict[str, Any]:
        """The scale: mean and standard deviation of each number, their unit."""
        return {"scale": {"mean": list(self.mean), "std": list(self.std), "unit": self.unit}}

    @property
    def shapes(self) -> Shapes:
        """One output: the numbers."""
        return {VALUES: (len(self.names),)}

    @property
    def truth_kept(self) -> Truth:
        """The numbers of each row."""
        return Truth((len(self.names),), "float32")

    def truth_at(self, output: str, labels: Tensor, targets: Tensor | None) -> Tensor:
        """Return the targets."""
        assert targets is not None
        return targets

    def answers(self, outputs: Tensor, truth: Tensor) -> Tensor:
        """Return the outputs as they are: [..., P]."""
        return outputs.float()

    def loss(self, outputs: Tensor, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        """Return the mean squared error of what each row shows: [B, P] -> [B]."""
        return squared_loss(outputs, batch)

    def truth(self, split: Split) -> Tensor:
        """Return the targets: float32 [N, P], NaN where unknown."""
        assert split.targets is not None
        return torch.from_numpy(split.targets)

    def truth_in(self, batch: Batch) -> Tensor:
        """Return the targets: float32 [B, P]."""
        assert batch.targets is not None
        return batch.targets

    def steering(self, answers: Tensor, truth: Tensor) -> dict[str, float]:
        """Return the mean squared and absolute errors in standard units: [N, P], [N, P]."""
        found = regression_metrics(answers, truth)
        return {"mse": found["rmse"] ** 2, "mae": found["mae"]}

    def metrics(self, answers: Tensor, truth: Tensor) -> dict[str, float]:
        """Return mae and rmse in the targets' unit, and r2 where the truth varies."""
        found = regression_metrics(self.in_units(answers), self.in_units(truth))
        return {name: figure for name, figure in found.items() if not math.isnan(figure)}

    def teacher_figures(self, outputs: Mapping[str, Tensor], truths: Mapping[str, Tensor]) -> dict[str, Any]:
        """Return the figures of each split; a number has no temperature."""
        return {"scores": {name: self.metrics(values, truths[name]) for name, values in outputs.items()}}
