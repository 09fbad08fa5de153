"""scikit-learn regressors as teachers of real numbers: they learn and answer in the targets' own unit."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pipeline.answers import Answers
from pipeline.errors import StillroomError
from pipeline.lineage import write_durably
from pipeline.models.estimators import dump_sklearn
from pipeline.teachers.sklearn import ESTIMATOR, first_line, joined, readable, unset
from pipeline.views import Replayer


class RegressorTeacher:
    """A regressor that answers with values; `standardised` turns its unit, float64 [B, P], to that of the answers."""

    rows_at_once: int | None = 4096

    def __init__(self, estimator: Any, standardised: Callable[[np.ndarray], np.ndarray], *, where: str = "teacher"):
        self.estimator, self.where = estimator, where
        self._standardised = standardised
        self.feature_widths: Mapping[str, int] = {}
        self.head = None

    def predict(self, inputs: Tensor | list[str]) -> Answers:
        """Return values as answers: numbers [B, ...] -> Answers without features, float32 [B, P], in standard units."""
        found = np.asarray(self.estimator.predict(readable(self.estimator, inputs, self.where)), np.float64)
        return Answers(torch.from_numpy(self._standardised(found.reshape(len(found), -1))))

    def save(self, folder: Path) -> list[str]:
        """Write `estimator.skops`."""
        write_durably(folder / ESTIMATOR, dump_sklearn(self.estimator))
        return [ESTIMATOR]


def fit_regressor(
    estimator: Any,
    replayer: Replayer,
    *,
    in_units: Callable[[Tensor], Tensor],
    views: Sequence[int],
    seed: int,
    where: str = "teacher",
) -> Any:
    """Return the estimator fitted on the train rows whose targets the replayer shows, in these views.

    `in_units` turns targets to their own unit. `random_state` and `n_jobs` are set where the recipe left them alone.
    Raises: StillroomError when it refuses the rows.
    """
    batches = [replayer.batch("train", view, replayer.labelled) for view in views]
    targets = in_units(torch.cat([batch.targets for batch in batches if batch.targets is not None]))
    return fit_rows(estimator, [batch.inputs for batch in batches], targets, seed=seed, where=where)


def fit_rows(estimator: Any, inputs: Sequence[Any], targets: Tensor, *, seed: int, where: str) -> Any:
    """Return the estimator fitted to rows, whose inputs come in pieces, and numbers in their own unit: float64 [N, P].

    Raises: StillroomError as `fit_regressor` does.
    """
    estimator.set_params(**unset(estimator.get_params(), seed))
    rows = readable(estimator, joined(inputs), where)
    try:
        return estimator.fit(rows, targets.numpy())
    except ValueError as error:
        raise StillroomError(
            f"{where}: {type(estimator).__name__} refused {len(targets)} rows ({first_line(error)}); expected rows "
            "that it can learn from; change its options, or choose another model"
        ) from error
