"""From a strategy for real numbers to what is stored: fitted on rows no teacher was trained on, and judged there.

There is no temperature to mend and no label to correct by: a label is one noisy draw of what is asked for.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Self

import numpy as np
import torch
from torch import Tensor

from pipeline.errors import StillroomError
from pipeline.fusion.base import Outputs, one_thread, with_fitted
from pipeline.fusion.real.base import FusedReals, RealFusion
from pipeline.real_metrics import regression_metrics

FOLDS = 5
FIGURES = ("mae", "r2", "rmse")  # as `judged` is kept
JUDGED = "judged"


@dataclass(frozen=True)
class RealTarget:
    """A strategy for real numbers, and the `metrics` of answers [N, P] and targets [N, P] that it is judged by.

    `judged` are its figures on the very rows it was fitted on, each from a fit that left the row out.
    """

    fusion: RealFusion
    metrics: Callable[[Tensor, Tensor], Mapping[str, float]] = regression_metrics
    judged: Mapping[str, float] = field(default_factory=dict, init=False)

    def fit(self, outputs: Outputs) -> Self:
        """Return a copy fitted on rows that no teacher was trained on; on one thread (see `one_thread`).

        Raises: StillroomError where they have no targets, or the strategy can't be fitted to them.
        """
        targets = _targets(outputs)
        with one_thread():
            fitted = with_fitted(self, fusion=_fit(self.fusion, outputs.logits, targets))
            values = fitted.fuse(outputs).mean if not self.fusion.is_fitted_on_rows else self._left_out(outputs)
        return with_fitted(fitted, judged=_known(self.metrics(values, targets)))

    def _left_out(self, outputs: Outputs) -> Tensor:
        """Return what the strategy says of each row, fitted without it: every fifth is left out in turn."""
        rows = torch.arange(len(outputs))
        values = torch.empty(outputs.logits.shape[1:])
        for fold in range(min(FOLDS, len(rows))):
            is_out = rows % FOLDS == fold
            some = outputs[rows[~is_out]]
            fitted = _fit(self.fusion, some.logits, _targets(some))
            values[is_out] = fitted.fuse(outputs.logits[:, is_out]).mean
        return values

    def fuse(self, outputs: Outputs) -> FusedReals:
        """Return the targets of rows. Raises: as the strategy does."""
        return self.fusion.fuse(outputs.logits, keys=outputs.keys)

    def fitted(self) -> dict[str, Any]:
        """Return what was fitted, as JSON for people."""
        return self.fusion.fitted()

    @property
    def state(self) -> dict[str, np.ndarray]:
        """Everything that was fitted, as arrays: with it no fit has to be repeated."""
        arrays = {name: values.numpy() for name, values in self.fusion.state.items()}
        return {**arrays, JUDGED: np.array([self.judged.get(name, math.nan) for name in FIGURES])}

    def restored(self, state: Mapping[str, np.ndarray]) -> Self:
        """Return a copy that holds what was fitted before. Raises: KeyError, ValueError where that is not it."""
        own = {name: values for name, values in state.items() if name != JUDGED}
        judged = _known(dict(zip(FIGURES, map(float, state[JUDGED]), strict=True)))
        return with_fitted(self, fusion=self.fusion.with_state(**own), judged=judged)


def _fit(fusion: RealFusion, values: Tensor, targets: Tensor) -> RealFusion:
    is_known = targets.isfinite()
    return fusion.fit(values, targets.nan_to_num(), is_known)


def _known(figures: Mapping[str, float]) -> dict[str, float]:
    """Return the figures that are numbers: r2 is none where the targets do not vary."""
    return {name: figure for name, figure in figures.items() if not math.isnan(figure)}


def _targets(outputs: Outputs) -> Tensor:
    if outputs.targets is None:
        raise StillroomError(
            "fusion: found rows without targets; expected those of real numbers; fuse classes by their own strategies"
        )
    return outputs.targets
