"""Estimators that answer with several real numbers, float [N, D] -> [N, P], some of which a row may not know."""

from typing import Any, Self

import numpy as np
from sklearn.base import BaseEstimator, RegressorMixin, clone


class AsRead(RegressorMixin, BaseEstimator):
    """Answers with the numbers that it reads, a forecast made before: a rule, nothing is learned."""

    def fit(self, X: np.ndarray, y: np.ndarray) -> Self:
        """Learn nothing. Raises ValueError unless a row has as many numbers as are asked for."""
        if X.shape[1:] != y.shape[1:]:
            raise ValueError(f"rows of {X.shape[1]} numbers where {y.shape[1]} are asked for")
        self.width_ = X.shape[1]
        return self

    def predict(self, X: np.ndarray) -> np.ndarray:
        """Return the rows."""
        return X


class PerOutput(RegressorMixin, BaseEstimator):
    """A regressor for each number that is asked for, fitted to the rows that know it: gaps cost no other a row."""

    def __init__(self, estimator: Any):
        self.estimator = estimator

    def fit(self, X: np.ndarray, y: np.ndarray) -> Self:
        """Fit one copy a column of y [N, P], NaN where unknown. Raises ValueError where nothing is known of one."""
        known = np.isfinite(y)
        if not known.any(axis=0).all():
            raise ValueError(f"number {int(known.any(axis=0).argmin())} is known of no row")
        self.estimators_ = [clone(self.estimator).fit(X[own], y[own, place]) for place, own in enumerate(known.T)]
        return self

    def predict(self, X: np.ndarray) -> np.ndarray:
        """Return what each says: [N, P]."""
        return np.stack([each.predict(X) for each in self.estimators_], axis=1)
