"""scikit-learn estimators as students: fitted to the teachers' distributions rather than to labels alone.

A regressor learns the probabilities, or their logs, as many outputs; a classifier, which takes labels only, learns each
row once per class that the target holds possible, weighted by its probability. Trade: squared error is not the KL, and
repeated rows cost as many rows as classes; in return a forest or a linear model can be a student.
"""

import json
import math
from pathlib import Path
from typing import Any, Self

import numpy as np
import torch
from torch import Tensor

from pipeline.errors import StillroomError, unknown_name
from pipeline.models.estimators import dump_sklearn, load_sklearn

ESTIMATOR, SETTINGS = "estimator.skops", "estimator.json"
SPACES = ("probs", "log")
FLOOR = 1e-6  # a probability below counts as this one: a forest says 0 to what no tree has seen, and log 0 is a veto
LIKELY = 0.01  # a classifier is shown a row as a class from this probability up: the rest adds rows, hardly weight


class SoftTargetEstimator:
    """A scikit-learn estimator that learns log-probabilities [N, C] and answers with them.

    The `estimator` is cloned, not changed. A classifier (it has `predict_proba`) must take `sample_weight`. A regressor
    learns in `space` "probs", which suits forests, or "log", which suits boosting and networks: those may predict
    probabilities below zero, and the floor is all that is left of them. One of a single output is fitted once per
    class. Raises StillroomError for an unknown space, or for something that is neither.
    """

    def __init__(self, estimator: Any, num_classes: int, *, space: str = "probs", where: str = "student") -> None:
        from sklearn.base import clone, is_regressor  # here, for importing scikit-learn takes a second

        if space not in SPACES:
            raise unknown_name(where, "space", space, SPACES)
        self.is_classifier = hasattr(estimator, "predict_proba")
        if not (self.is_classifier or is_regressor(estimator)):
            raise StillroomError(
                f"{where}: {type(estimator).__name__} is no regressor and has no predict_proba; expected one of these; "
                "choose another estimator"
            )
        estimator = clone(estimator)
        if not self.is_classifier and not predicts_many(estimator):
            from sklearn.multioutput import MultiOutputRegressor

            estimator = MultiOutputRegressor(estimator)
        self.estimator, self.num_classes, self.space, self.where = estimator, num_classes, space, where

    def fit(self, x: Tensor, log_probs: Tensor, sample_weight: Tensor | None = None, *, seed: int = 0) -> Self:
        """Fit to targets and return itself: float32 [N, ...], log-probabilities [N, C], weights [N].

        `seed` is the `random_state` of every part that has one and was given none: the same seed, the same estimator.
        Raises StillroomError when the estimator refuses the rows or cannot weigh them.
        """
        if log_probs.shape != (len(x), self.num_classes):
            raise ValueError(f"log_probs {tuple(log_probs.shape)}; expected ({len(x)}, {self.num_classes})")
        states = [key for key, value in self.estimator.get_params().items() if is_random_state(key) and value is None]
        self.estimator.set_params(**dict.fromkeys(states, seed & 0x7FFFFFFF))
        weights = None if sample_weight is None else sample_weight.double().cpu().numpy()
        rows, log_targets = flat_rows(x), log_probs.double().cpu()
        if self.is_classifier:
            row, labels, weights = repeated_rows(log_targets.exp().numpy(), weights)
            rows, targets = rows[row], labels
        else:
            targets = self.regression_targets(log_targets)
        try:
            # named only where there are weights: a regressor that cannot weigh rows need not
            self.estimator.fit(rows, targets, **({} if weights is None else {weight_name(self.estimator): weights}))
        except (TypeError, ValueError) as error:
            raise StillroomError(
                f"{self.where}: {type(self.estimator).__name__} refused soft targets ({error}); expected an estimator "
                "that learns from these rows, with sample_weight if it is a classifier; choose another, or its options"
            ) from error
        return self

    def log_probs(self, x: Tensor) -> Tensor:
        """Return log-probabilities, none below about log 1e-6: float32 [N, ...] -> float32 [N, C]."""
        rows = flat_rows(x)
        if self.is_classifier:
            answers = np.zeros((len(rows), self.num_classes))
            answers[:, np.asarray(self.estimator.classes_, np.int64)] = self.estimator.predict_proba(rows)
        else:
            answers = np.asarray(self.estimator.predict(rows), np.float64).reshape(len(rows), self.num_classes)
        known = torch.from_numpy(answers)
        logs = known if self.in_logs else known.clamp(min=FLOOR).log()
        # normalised before the floor too: what a regressor predicts for a row need not sum to one
        return logs.log_softmax(-1).clamp(min=math.log(FLOOR)).log_softmax(-1).float()

    @property
    def in_logs(self) -> bool:
        """Whether the estimator's own predictions are log-probabilities."""
        return self.space == "log" and not self.is_classifier

    def regression_targets(self, log_targets: Tensor) -> np.ndarray:
        """Return what a regressor learns: float64 [N, C] in its space, logs no lower than that of the floor."""
        return (log_targets.clamp(min=math.log(FLOOR)) if self.in_logs else log_targets.exp()).numpy()

    def num_parameters(self) -> int:
        """Return how many numbers were learnt: coefficients of linear models and networks, nodes of trees."""
        return count_learned(self.estimator)

    def save(self, folder: Path) -> list[str]:
        """Write the estimator and what it is asked for, and return the files' names; an old file is replaced whole."""
        folder.mkdir(parents=True, exist_ok=True)
        settings = {"num_classes": self.num_classes, "space": self.space}
        for name, content in ((ESTIMATOR, dump_sklearn(self.estimator)), (SETTINGS, json.dumps(settings).encode())):
            partial = folder / f"{name}.partial"
            partial.write_bytes(content)
            partial.replace(folder / name)
        return [ESTIMATOR, SETTINGS]

    @classmethod
    def load(cls, folder: Path, *, package: str = "sklearn") -> "SoftTargetEstimator":
        """Return a saved student, trusting types of scikit-learn and this package. Raises StillroomError if damaged."""
        estimator = load_sklearn(folder / ESTIMATOR, package=package)
        try:
            settings = json.loads((folder / SETTINGS).read_text())
            num_classes, space = settings["num_classes"], settings["space"]
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise StillroomError(
                f"{folder / SETTINGS}: found no usable settings ({error}); expected num_classes and space; retrain"
            ) from error
        student = cls(estimator, num_classes, space=space, where=str(folder))
        student.estimator = estimator  # the fitted one: a clone has forgotten
        return student


def predicts_many(estimator: Any) -> bool:
    """Return whether a regressor predicts several outputs at once."""
    from sklearn.neural_network import MLPRegressor
    from sklearn.utils import get_tags

    last = estimator[-1] if is_pipeline(estimator) else estimator
    # scikit-learn's network does, but its tags do not say so
    return isinstance(last, MLPRegressor) or bool(get_tags(last).target_tags.multi_output)


def is_pipeline(estimator: Any) -> bool:
    """Return whether this is a scikit-learn pipeline, whose last step is the one that predicts."""
    return hasattr(estimator, "steps")


def weight_name(estimator: Any) -> str:
    """Return the name by which `fit` takes the rows' weights: a pipeline hands on what is prefixed with a step."""
    return f"{estimator.steps[-1][0]}__sample_weight" if is_pipeline(estimator) else "sample_weight"


def is_random_state(parameter: str) -> bool:
    """Return whether a parameter, perhaps that of a part (`estimator__random_state`), is a random state."""
    return parameter.split("__")[-1] == "random_state"


def flat_rows(x: Tensor) -> np.ndarray:
    """Return rows for scikit-learn: [N, ...] -> float32 [N, P]."""
    return x.flatten(1).float().cpu().numpy()


def repeated_rows(probs: np.ndarray, weights: np.ndarray | None) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return the row, the class and the weight of each example for a classifier: [N, C], [N] -> [R], [R], [R].

    One for each class above LIKELY and for a row's likeliest class, whatever its probability; those of a row share its
    weight (1 without weights) in proportion to their probabilities.
    """
    shown = probs > LIKELY
    shown[np.arange(len(probs)), probs.argmax(1)] = True
    share = np.where(shown, probs, 0.0)
    share /= share.sum(1, keepdims=True)
    share *= 1.0 if weights is None else weights[:, None]
    row, label = np.nonzero(shown)
    return row, label, share[row, label]


def count_learned(estimator: Any) -> int:
    """Return the learnt coefficients and tree nodes of a fitted estimator and its parts; ValueError for other kinds."""
    if is_pipeline(estimator):
        return count_learned(estimator[-1])
    if hasattr(estimator, "tree_"):
        return int(estimator.tree_.node_count)
    if hasattr(estimator, "estimators_"):
        return sum(count_learned(part) for part in np.ravel(np.asarray(estimator.estimators_, dtype=object)))
    if hasattr(estimator, "_predictors"):  # histogram boosting: trees by round and class
        return sum(len(tree.nodes) for trees in estimator._predictors for tree in trees)
    for weights, biases in (("coefs_", "intercepts_"), ("coef_", "intercept_")):
        if hasattr(estimator, weights):
            return num_numbers(getattr(estimator, weights)) + num_numbers(getattr(estimator, biases))
    raise ValueError(f"{type(estimator).__name__} is of no kind whose parameters can be counted")


def num_numbers(value: Any) -> int:
    """Return how many numbers an array, or a list of arrays, holds."""
    return sum(np.size(part) for part in value) if isinstance(value, list) else int(np.size(value))
