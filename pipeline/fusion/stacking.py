"""A scikit-learn estimator learns the answer itself from what all teachers say.

Trade: the one strategy here that can answer what no teacher did, so it mends teachers that mix classes up in the same
way; it has many parameters, wants thousands of calibration rows, and what comes out is no mixture: no teacher has a
weight in it, and several copies of one teacher need not give that teacher.
"""

import functools
import warnings
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Self

import numpy as np
import torch
from torch import Tensor

from pipeline.errors import StillroomError
from pipeline.fusion.base import FusedTargets, Fusion, Outputs, one_thread
from pipeline.fusion.distributions import disagreement, log_softmax, soften, uniform_weights

WHERE = "fusion 'stacking'"
LOGISTIC = "sklearn.linear_model:LogisticRegression"
LOWEST = -20.0  # of a log-probability that the estimator sees
SMALLEST_SPREAD = 1e-6  # of an input: less is a constant
SHARED = 1e-4  # of the probability, spread over all classes: a forest says exactly 0, and some class may have no row
PREDICTED_ROWS, PREDICTED_VALUES = 1024, 1 << 20  # that the estimator answers at once, always just as many
MAX_BYTES = 60 << 20  # of an estimator: a store reads no larger array of what was fitted


@dataclass(frozen=True)
class Stacking(Fusion):
    """An estimator's probabilities, softened as softmax(log p / temperature), 0.0001 of them spread over all classes.

    It sees the teachers' log-probabilities at T = 1, not below -20, side by side and standardised: [N, T * C].
    `estimator` is a scikit-learn classifier by import path, with `options`; a `random_state` that is left open is 0.
    The weights are uniform, for it has none. Source: Wolpert 1992; Ting & Witten 1999 (probabilities as inputs).
    """

    estimator: str = LOGISTIC
    options: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not isinstance(self.estimator, str) or ":" not in self.estimator:
            raise StillroomError(
                f"{WHERE}: estimator is {self.estimator!r}; expected package.module:attribute of a scikit-learn "
                f"classifier; for example {LOGISTIC!r}"
            )
        if not isinstance(self.options, Mapping):
            raise StillroomError(f"{WHERE}: options is {self.options!r}; expected a table of the estimator's options")
        self._build(2, 2)

    def fit(self, outputs: Outputs) -> Self:
        """Return a copy with a fitted estimator.

        Raises: StillroomError without a label, when the estimator fails or has not converged, or is too large to keep.
        """
        from pipeline.models.estimators import dump_sklearn, read_sklearn

        logits, labels = outputs.labelled(WHERE)
        inputs = side_by_side(logits)
        mean, spread = inputs.mean(axis=0), inputs.std(axis=0)
        scale = np.where(spread > SMALLEST_SPREAD, spread, 1.0)  # unscaled, lbfgs doesn't converge in a thousand steps
        inputs = (inputs - mean) / scale
        estimator = self._fitted(self._build(outputs.num_classes, inputs.shape[1]), inputs, labels.numpy())
        content = dump_sklearn(estimator)
        read_sklearn(content, package=self._package, where=WHERE)  # what cannot be read must not be kept
        if len(content) > MAX_BYTES:
            raise StillroomError(
                f"{WHERE}: the fitted estimator has {len(content):,} bytes; expected at most {MAX_BYTES:,}; choose "
                f"options that keep it small"
            )
        size = torch.tensor([outputs.num_teachers, outputs.num_classes])
        return self.with_state(estimator=np.frombuffer(content, np.uint8).copy(), mean=mean, scale=scale, size=size)

    def fuse(self, outputs: Outputs, *, temperature: float) -> FusedTargets:
        """Return the estimator's answers. Raises: StillroomError before `fit`, or for other teachers or classes."""
        soft = soften(outputs.logits, temperature=temperature)
        content = self.fitted_state("estimator").numpy().tobytes()
        wanted, found = self.fitted_state("size").tolist(), [outputs.num_teachers, outputs.num_classes]
        if found != wanted:
            raise StillroomError(
                f"{WHERE}: logits of {found[0]} teachers, {found[1]} classes; expected the {wanted[0]} and {wanted[1]} "
                f"it was fitted on; fit again with these teachers"
            )
        mean, scale = self.fitted_state("mean").numpy(), self.fitted_state("scale").numpy()
        inputs = (side_by_side(outputs.logits) - mean) / scale
        probs = predict(_loaded(content, self._package), inputs, outputs.num_classes)
        log_probs = log_softmax(probs.log(), temperature=temperature).reshape(outputs.logits.shape[1:])
        weights = uniform_weights(soft)
        return FusedTargets(log_probs, weights, disagreement(soft, weights))

    @property
    def _package(self) -> str:
        return self.estimator.partition(":")[0].split(".")[0]

    def _build(self, num_classes: int, width: int) -> Any:
        from pipeline.models import build_model, is_estimator  # here, for they bring torchvision

        # lbfgs stops after 100 steps, which inputs that nobody scaled may exceed
        usual = {"max_iter": 1000} if self.estimator == LOGISTIC else {}
        options = {**usual, **self.options}
        built = build_model(self.estimator, num_classes=num_classes, in_shape=(1, 1, width), where=WHERE, **options)
        if not is_estimator(built):
            raise StillroomError(
                f"{WHERE}: {self.estimator} is a {type(built).__name__}; expected a scikit-learn classifier with "
                f"predict_proba; name one of these"
            )
        drawn = {key: value for key, value in built.get_params().items() if key.split("__")[-1] == "random_state"}
        return built.set_params(**{key: 0 for key, value in drawn.items() if value is None})

    def _fitted(self, estimator: Any, inputs: np.ndarray, labels: np.ndarray) -> Any:
        from sklearn.dummy import DummyClassifier  # here, for its import is slow
        from sklearn.exceptions import ConvergenceWarning

        if len(np.unique(labels)) == 1:  # most estimators refuse: there is nothing to tell apart
            return DummyClassifier().fit(inputs[:1], labels[:1])
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("error", ConvergenceWarning)
                return estimator.fit(inputs, labels)
        except ConvergenceWarning as warning:
            raise StillroomError(
                f"{WHERE}: {self.estimator} has not converged ({str(warning).splitlines()[0]}); expected it to; raise "
                f"options.max_iter"
            ) from warning
        except Exception as error:  # the estimator may be anybody's code
            raise StillroomError(
                f"{WHERE}: {self.estimator} failed on {len(inputs)} rows: {type(error).__name__}: {error}; expected it "
                f"to fit; change its options"
            ) from error


@functools.lru_cache(maxsize=4)
def _loaded(content: bytes, package: str) -> Any:
    """The estimator of a state: kept at hand, for rows come a few thousand at a time."""
    from pipeline.models.estimators import read_sklearn

    return read_sklearn(content, package=package, where=WHERE)


def side_by_side(logits: Tensor) -> np.ndarray:
    """Return what the estimator sees of each case, teacher after teacher: [T, ..., C] -> float64 [N, T * C]."""
    log_probs = soften(logits).log_probs.clamp(min=LOWEST).double()
    return log_probs.movedim(0, -2).reshape(-1, logits.shape[0] * logits.shape[-1]).numpy()


def predict(estimator: Any, inputs: np.ndarray, num_classes: int) -> Tensor:
    """Return probabilities float32 [N, C], every class's above 0.

    A matrix product's last bits change with its number of rows, so the estimator always gets equally many, the last
    ones padded; what a row's place among them may still change lies far below float32, to which it is rounded.
    """
    size = max(16, min(PREDICTED_ROWS, PREDICTED_VALUES // inputs.shape[1]))
    classes = np.asarray(estimator.classes_, np.int64)
    probs = np.full((len(inputs), num_classes), SHARED / num_classes)
    for start in range(0, len(inputs), size):
        some = inputs[start : start + size]
        padded = np.concatenate([some, np.zeros((size - len(some), inputs.shape[1]))])
        with one_thread():
            known = estimator.predict_proba(padded)[: len(some)]
        probs[start : start + size, classes] += (1 - SHARED) * known
    return torch.from_numpy(probs).float()
