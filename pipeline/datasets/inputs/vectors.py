"""A table's columns as vectors, by scikit-learn: it is imported only where a table is read, for it takes a second."""

import warnings
from collections.abc import Iterator, Mapping
from typing import Any, Self

import numpy as np
import pandas as pd
import torch
from sklearn.base import BaseEstimator, TransformerMixin
from sklearn.compose import ColumnTransformer
from sklearn.impute import MissingIndicator, SimpleImputer
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import MinMaxScaler, StandardScaler
from torch import Tensor

from pipeline.datasets.columns import as_numbers, as_texts
from pipeline.datasets.inputs.table import Scale, Table


class FittedTable:
    """A table's columns with what was learned of them: `numbers` maps those to their scales."""

    def __init__(self, numbers: Mapping[str, Scale], categories: list[str], options: Table):
        self.numbers, self.categories = list(numbers), categories
        clipping = () if options.clip == "none" else (Clip(options.clip),)
        indicator = MissingIndicator(features="missing-only", error_on_new=False)
        self.transformer = ColumnTransformer(
            [
                *(
                    (scale, make_pipeline(*clipping, _median(), *steps), names)
                    for scale, steps in SCALES.items()
                    if (names := [name for name in self.numbers if numbers[name] == scale])
                ),
                ("missing", indicator, self.numbers),
                ("categories", OneHot(options.min_frequency), categories),
            ],
            sparse_threshold=0,
        )

    def learn(self, train: pd.DataFrame) -> None:
        """Learn from train rows; from then on `shape` is (D,), and `names` are those of the D numbers."""
        columns = self.transformer.fit_transform(self._plain(train)).shape[1]
        self.shape: tuple[int, ...] = (columns,)
        self.names = tuple(self._named())

    def read(self, frame: pd.DataFrame) -> Tensor:
        """Return the vectors of records: float32 [B, D]."""
        if not len(frame):
            return torch.zeros(0, *self.shape)
        vectors = self.transformer.transform(self._plain(frame))
        return torch.from_numpy(np.ascontiguousarray(vectors, dtype=np.float32))

    def _named(self) -> Iterator[str]:
        """Yield what each number of a vector is called: age, "age missing", "sex = male", "race rare"."""
        for part, transformer, columns in self.transformer.transformers_:
            if not columns:  # of these it has fitted nothing
                continue
            if part == "missing":
                yield from (f"{columns[place]} missing" for place in transformer.features_)
            else:
                yield from transformer.names_ if part == "categories" else columns

    def _plain(self, frame: pd.DataFrame) -> pd.DataFrame:
        """Return numbers as float64, NaN where they are not finite, and categories as texts or None."""
        numbers = {name: as_numbers(frame[name]) for name in self.numbers}
        plain: dict[str, Any] = {
            name: np.where(np.isfinite(values), values, np.nan) for name, values in numbers.items()
        }
        plain |= {name: np.array(as_texts(frame[name]), dtype=object) for name in self.categories}
        return pd.DataFrame(plain)


class Clip(TransformerMixin, BaseEstimator):
    """Numbers within quantiles of the train rows: float64 [B, D]; missing ones, and all of an empty column, are NaN."""

    def __init__(self, quantiles: tuple[float, float]):
        self.quantiles = quantiles

    def fit(self, X: pd.DataFrame, y: None = None) -> Self:
        """Learn the ends of each column."""
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", RuntimeWarning)  # a column without a number has NaN for its ends
            self.low_, self.high_ = np.nanquantile(np.asarray(X), self.quantiles, axis=0)
        return self

    def transform(self, X: pd.DataFrame) -> np.ndarray:
        """Return the clipped numbers."""
        return np.clip(np.asarray(X), self.low_, self.high_)


class LogAboveLeast(TransformerMixin, BaseEstimator):
    """log(1 + number - the least of train): float64 [B, D], for numbers that span orders of magnitude."""

    def fit(self, X: np.ndarray, y: None = None) -> Self:
        """Learn the least of each column."""
        self.least_ = X.min(0)
        return self

    def transform(self, X: np.ndarray) -> np.ndarray:
        """Return the logarithms, of what is below the least those of the least."""
        return np.log1p(np.maximum(X - self.least_, 0))


class OneHot(TransformerMixin, BaseEstimator):
    """A column for each frequent value, one for rare values, one for missing: float64 [B, D] of texts or None.

    scikit-learn's encoder would put a missing value that is rare with the other rare ones.
    """

    def __init__(self, min_frequency: int):
        self.min_frequency = min_frequency

    def fit(self, X: pd.DataFrame, y: None = None) -> Self:
        """Learn the place of each value of each column, and what each place is called."""
        found = [self._places(X[name]) for name in X]
        self.places_ = [places for places, _ in found]
        self.names_ = [f"{column} {told}" for column, (_, names) in zip(X, found, strict=True) for told in names]
        return self

    def _places(self, column: pd.Series) -> tuple[dict[str | None, int], list[str]]:
        """Return a value's place among the columns that stand for it: frequent ones sorted, rare ones, missing.

        Also what each of these columns says of a record.
        """
        counts, has_gaps = column.dropna().value_counts(), bool(column.isna().any())
        frequent = sorted(counts.index[counts >= self.min_frequency])
        rare = sorted(counts.index[counts < self.min_frequency])
        places: dict[str | None, int] = {value: place for place, value in enumerate(frequent)}
        places |= dict.fromkeys(rare, len(frequent))
        places |= {None: len(frequent) + bool(rare)} if has_gaps else {}
        return places, [*(f"= {value}" for value in frequent), *["rare"] * bool(rare), *["missing"] * has_gaps]

    def transform(self, X: pd.DataFrame) -> np.ndarray:
        """Return zeros and ones."""
        blocks = []
        for name, places in zip(X, self.places_, strict=True):
            found = np.array([places.get(value, -1) for value in as_texts(X[name])])
            blocks.append(found[:, None] == np.arange(len(set(places.values()))))
        return np.concatenate(blocks, 1).astype(np.float64)


SCALES: dict[Scale, tuple[Any, ...]] = {
    "standard": (StandardScaler(),),
    "minmax": (MinMaxScaler(),),
    "log": (LogAboveLeast(), StandardScaler()),
    "none": (),
}  # ColumnTransformer fits clones, never these


def _median() -> SimpleImputer:
    return SimpleImputer(strategy="median", keep_empty_features=True)  # a column without a number is all zeros
