"""Noise and a class: what a model that makes pictures starts from, drawn from a record's seed."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, ClassVar

import numpy as np
import pandas as pd
import torch
from pydantic import Field
from torch import Tensor

from pipeline.datasets.columns import as_texts
from pipeline.errors import StillroomError
from pipeline.views.draws import row_words, stream_seed, uniform

STREAM = stream_seed(0, "noise")  # apart from all else that is drawn
ROWS_AT_ONCE = 2048  # whose words take 60 MB at 784 numbers


@dataclass(frozen=True)
class Noise:
    """`dims` normal numbers drawn from a record's seed, then its class as one of C: float32 [B, dims + C].

    `columns` are that of the seeds, whole numbers from 0 on, and that of the classes, which are those of the train
    rows, sorted; a class that no train row has is 0 throughout. The numbers are a function of the seed alone.
    """

    dims: Annotated[int, Field(strict=True, ge=1)]
    columns: tuple[str, str] = ("seed", "class")
    version: ClassVar[int] = 1
    gives: ClassVar[str] = "noise"
    learns: ClassVar[bool] = True
    is_costly: ClassVar[bool] = False
    naming: ClassVar[tuple[str, ...]] = ("columns",)

    def fit(self, train: pd.DataFrame, raw: Path) -> "FittedNoise":
        """Return the noise with the classes of the train rows. Raises StillroomError when they have none."""
        classes = sorted({text for text in as_texts(train[self.columns[1]]) if text is not None})
        if not classes:
            raise StillroomError("input of kind noise: found no train row with a class; expected one; hold out fewer")
        return FittedNoise(self, tuple(classes))


@dataclass(frozen=True)
class FittedNoise:
    """Noise with the classes that it tells apart."""

    options: Noise
    classes: tuple[str, ...]

    @property
    def shape(self) -> tuple[int, ...]:
        """(dims + C,)."""
        return (self.options.dims + len(self.classes),)

    def read(self, frame: pd.DataFrame) -> Tensor:
        """Return noise and classes of records: float32 [B, dims + C]. Raises StillroomError for what is no seed."""
        seeds, labels = (frame[name] for name in self.options.columns)
        if seeds.dtype.kind not in "iu" or (len(seeds) and seeds.min() < 0):
            raise StillroomError(
                f"input of kind noise: found a column {seeds.name!r} of {seeds.dtype}; expected whole numbers from 0 "
                f"on; name another column, or number the rows"
            )
        found = torch.zeros(len(frame), *self.shape)
        for start in range(0, len(frame), ROWS_AT_ONCE):
            rows = slice(start, start + ROWS_AT_ONCE)
            found[rows, : self.options.dims] = normal(seeds.to_numpy(np.int64)[rows], self.options.dims)
        places = {name: self.options.dims + place for place, name in enumerate(self.classes)}
        for row, name in enumerate(as_texts(labels)):
            if name in places:
                found[row, places[name]] = 1
        return found


def normal(seeds: np.ndarray, dims: int) -> Tensor:
    """Return `dims` independent normal numbers of each seed: int64 [B] -> float32 [B, dims].

    They are worked out in float64, so that machines agree to the rounding of float32. Source: Box & Muller 1958.
    """
    pairs = -(-dims // 2)
    words = row_words(STREAM, seeds, 0, 2 * pairs)
    radius = np.sqrt(-2 * np.log1p(-uniform(words[:, :pairs])))  # 1 - u is never 0
    angle = 2 * np.pi * uniform(words[:, pairs:])
    numbers = np.concatenate([radius * np.cos(angle), radius * np.sin(angle)], axis=1)
    return torch.from_numpy(numbers[:, :dims].astype(np.float32))
