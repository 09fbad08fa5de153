"""scikit-learn estimators as teachers: fitted on flattened pixels of a few views, answers through `predict_proba`.

Their logits are log-probabilities floored at PROBABILITY_FLOOR: a forest says exactly 0 to classes no tree voted for,
and log 0 would let one teacher veto a class for all. Saved with skops: no pickle is ever read.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pipeline.answers import Answers
from pipeline.lineage import write_durably
from pipeline.models.estimators import dump_sklearn
from pipeline.views import Replayer

ESTIMATOR = "estimator.skops"
PROBABILITY_FLOOR = 1e-4


class SklearnTeacher:
    """An estimator that answers with log-probabilities, its columns scattered to the data set's classes."""

    rows_at_once: int | None = 4096  # a forest's threads cost the same for 256 rows: four times slower a row

    def __init__(self, estimator: Any, num_classes: int):
        self.estimator, self.num_classes = estimator, num_classes
        self.feature_widths: Mapping[str, int] = {}
        self.head = None

    def predict(self, inputs: Tensor) -> Answers:
        """Return log-probabilities as logits: float32 [B, C, H, W] -> Answers without features."""
        known = self.estimator.predict_proba(inputs.flatten(1).cpu().numpy())
        probs = np.zeros((len(inputs), self.num_classes), np.float32)
        probs[:, np.asarray(self.estimator.classes_, np.int64)] = known
        return Answers(torch.from_numpy(probs).clamp_(min=PROBABILITY_FLOOR).log_())

    def save(self, folder: Path) -> list[str]:
        """Write `estimator.skops`."""
        write_durably(folder / ESTIMATOR, dump_sklearn(self.estimator))
        return [ESTIMATOR]


def fit_sklearn(estimator: Any, replayer: Replayer, *, views: Sequence[int], seed: int) -> Any:
    """Return the estimator fitted on the train rows whose label the replayer shows, in these views (unmixed ones).

    `random_state` and `n_jobs` are set where the estimator has them and the recipe left them alone.
    """
    known = estimator.get_params()
    automatic = {"random_state": seed & 0x7FFFFFFF, "n_jobs": -1}
    estimator.set_params(**{key: value for key, value in automatic.items() if key in known and known[key] is None})
    batches = [replayer.batch("train", view, replayer.labelled) for view in views]
    inputs = torch.cat([batch.inputs for batch in batches]).flatten(1).cpu().numpy()
    labels = torch.cat([batch.labels for batch in batches]).cpu().numpy()
    return estimator.fit(inputs, labels)
