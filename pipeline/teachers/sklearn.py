"""scikit-learn estimators as teachers: fitted on flattened numbers, or texts, of a few views; `predict_proba` answers.

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
from pipeline.errors import StillroomError
from pipeline.lineage import write_durably
from pipeline.models.estimators import dump_sklearn
from pipeline.views import Replayer

ESTIMATOR = "estimator.skops"
PROBABILITY_FLOOR = 1e-4


class SklearnTeacher:
    """An estimator that answers with log-probabilities, its columns scattered to the data set's classes."""

    rows_at_once: int | None = 4096  # a forest's threads cost the same for 256 rows: four times slower a row

    def __init__(self, estimator: Any, num_classes: int, *, where: str = "teacher"):
        self.estimator, self.num_classes, self.where = estimator, num_classes, where
        self.feature_widths: Mapping[str, int] = {}
        self.head = None

    def predict(self, inputs: Tensor | list[str]) -> Answers:
        """Return log-probabilities as logits: numbers [B, ...], or B texts -> Answers without features, float32.

        Raises: StillroomError for numbers where the estimator reads texts, and the other way round.
        """
        known = self.estimator.predict_proba(readable(self.estimator, inputs, self.where))
        probs = np.zeros((len(inputs), self.num_classes), np.float32)
        probs[:, np.asarray(self.estimator.classes_, np.int64)] = known
        return Answers(torch.from_numpy(probs).clamp_(min=PROBABILITY_FLOOR).log_())

    def save(self, folder: Path) -> list[str]:
        """Write `estimator.skops`."""
        write_durably(folder / ESTIMATOR, dump_sklearn(self.estimator))
        return [ESTIMATOR]


def fit_sklearn(estimator: Any, replayer: Replayer, *, views: Sequence[int], seed: int, where: str = "teacher") -> Any:
    """Return the estimator fitted on the train rows whose label the replayer shows, in these views (unmixed ones).

    `random_state`, also of its parts, and `n_jobs` are set where the estimator has them and the recipe left them alone.
    Raises: StillroomError for numbers where it reads texts and the other way round, and when it refuses the rows.
    """
    settings = unset(estimator.get_params(), seed)
    if type(estimator).__name__ == "LogisticRegression":
        settings.pop("n_jobs", None)  # without effect since scikit-learn 1.8, which warns of it
    estimator.set_params(**settings)
    batches = [replayer.batch("train", view, replayer.labelled) for view in views]
    rows = readable(estimator, joined([batch.inputs for batch in batches]), where)
    labels = torch.cat([batch.labels for batch in batches]).cpu().numpy()
    try:
        return estimator.fit(rows, labels)
    except ValueError as error:
        raise StillroomError(
            f"{where}: {type(estimator).__name__} refused {len(labels)} labelled rows ({first_line(error)}); expected "
            "rows that it can learn from; change its options, or choose another model"
        ) from error


def unset(known: Mapping[str, Any], seed: int) -> dict[str, Any]:
    """Return the parameters to set: the random states, also of parts (`classifier__random_state`), and `n_jobs`.

    The jobs of parts stay as they are: parts that run in parallel within a parallel whole get in each other's way.
    """
    states = [key for key in known if key.split("__")[-1] == "random_state"]
    automatic = {**dict.fromkeys(states, seed & 0x7FFFFFFF), "n_jobs": -1}
    return {key: value for key, value in automatic.items() if key in known and known[key] is None}


def joined(inputs: Sequence[Any]) -> Tensor | list[str]:
    """Return the rows of several views behind each other: tensors [N, ...], or lists of texts."""
    return torch.cat(list(inputs)) if isinstance(inputs[0], Tensor) else [text for texts in inputs for text in texts]


def readable(estimator: Any, inputs: Tensor | list[str], where: str) -> np.ndarray | list[str]:
    """Return inputs as scikit-learn takes them: numbers [B, ...] -> [B, P], texts as they are.

    Raises: StillroomError when the estimator is known to read the other of the two.
    """
    found, wanted = "numbers" if isinstance(inputs, Tensor) else "text", reads_of(estimator)
    if wanted not in (None, found):
        raise StillroomError(
            f"{where}: {type(estimator).__name__} reads {wanted}; found {found}; have 'reads' name an input of {wanted}"
        )
    return inputs.flatten(1).cpu().numpy() if isinstance(inputs, Tensor) else inputs


def reads_of(estimator: Any) -> str | None:
    """Return "text" or "numbers", or None for an estimator that reads both, or does not say.

    Told from scikit-learn's tags of a pipeline's first step. Only scikit-learn's own are believed that they read
    numbers, for that is the tag of a user's class that says nothing, and of one that hands its rows on to its parts.
    """
    from sklearn.utils import get_tags  # here, for its import is slow

    while hasattr(estimator, "steps"):
        estimator = estimator.steps[0][1]
    try:
        tags = get_tags(estimator)
    except (AttributeError, TypeError):  # a class that has fit and predict_proba, and nothing else of scikit-learn
        return None
    if tags.input_tags.string:
        return None if tags.input_tags.two_d_array else "text"
    hands_on = any("__" in key for key in estimator.get_params())
    is_sklearns = type(estimator).__module__.startswith("sklearn.")
    return "numbers" if is_sklearns and not hands_on and not tags.no_validation else None


def first_line(error: Exception) -> str:
    """Return the first line of an exception's words."""
    return str(error).partition("\n")[0]
