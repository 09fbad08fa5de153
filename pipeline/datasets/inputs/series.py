"""Columns that are one another's past as a series: a step an hour, a day, a visit."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, ClassVar

import numpy as np
import pandas as pd
import torch
from pydantic import Field
from torch import Tensor

from pipeline.datasets.columns import as_numbers
from pipeline.errors import StillroomError, near_names


@dataclass(frozen=True)
class Series:
    """The last `length` values of each of `series`, oldest first: float32 [B, L, D].

    "volume" reads the columns "volume-0", "volume-1", ...: the present value, the one before. A step holds each series'
    value, standardised by the train rows, 0 where it is missing, a 1 where it is not, and the standardised numbers of
    the columns `beside`, which are the same at every step.
    """

    series: tuple[str, ...]
    length: Annotated[int, Field(strict=True, ge=2)]
    beside: tuple[str, ...] = ()
    version: ClassVar[int] = 1
    gives: ClassVar[str] = "series"
    learns: ClassVar[bool] = True
    is_costly: ClassVar[bool] = False
    naming: ClassVar[tuple[str, ...]] = ("beside",)

    def fit(self, train: pd.DataFrame, raw: Path) -> "FittedSeries":
        """Return the series with the means and deviations of the train rows.

        Raises StillroomError for a series that lacks a step, and when there is no row.
        """
        columns = [[f"{name}-{lag}" for lag in reversed(range(self.length))] for name in self.series]
        for column in [each for own in columns for each in own]:
            if column not in train:
                raise StillroomError(
                    f"input of kind series: found no column {column!r}; expected {self.length} of each series; "
                    f"{near_names(column, list(train))}"
                )
        if not len(train) or not self.series:
            raise StillroomError("input of kind series: found no train rows or no series; expected some; name one")
        return FittedSeries(columns, list(self.beside), train)


class FittedSeries:
    """Series with what was learned of them."""

    def __init__(self, columns: list[list[str]], beside: list[str], train: pd.DataFrame):
        self.columns, self.beside = columns, beside
        self.shape: tuple[int, ...] = (len(columns[0]), 2 * len(columns) + len(beside))
        self._scales = [_scale(_numbers(train, own)) for own in columns]
        self._beside = [_scale(_numbers(train, [name])) for name in beside]

    def read(self, frame: pd.DataFrame) -> Tensor:
        """Return the series of records: float32 [B, L, D]."""
        steps = list[np.ndarray]()
        for own, (mean, std) in zip(self.columns, self._scales, strict=True):
            values = (_numbers(frame, own) - mean) / std
            steps += [np.nan_to_num(values), np.isfinite(values)]
        for name, (mean, std) in zip(self.beside, self._beside, strict=True):
            values = np.nan_to_num((_numbers(frame, [name]) - mean) / std)
            steps.append(np.broadcast_to(values, (len(frame), self.shape[0])))
        return torch.from_numpy(np.stack(steps, axis=-1).astype(np.float32))


def _numbers(frame: pd.DataFrame, columns: list[str]) -> np.ndarray:
    """Return columns as float64 [N, K], NaN where one is missing or not finite."""
    values = np.stack([as_numbers(frame[name]) for name in columns], axis=1)
    return np.where(np.isfinite(values), values, np.nan)


def _scale(values: np.ndarray) -> tuple[float, float]:
    """Return mean and standard deviation of what is there, 0 and 1 of nothing, and no deviation of 0."""
    known = values[np.isfinite(values)]
    return (float(known.mean()), float(known.std()) or 1.0) if known.size else (0.0, 1.0)
