"""Values as numbers: which person, which film, which words, each by its place among the values of the train rows.

For models that have a vector for every value. Unlike hashed words no two values share a number, so a table of their
vectors is no larger than the values are many; the trade: values that no train row has are all one, the unknown.
"""

import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, ClassVar, Literal

import numpy as np
import pandas as pd
import torch
from pydantic import Field
from torch import Tensor

from pipeline.datasets.columns import as_texts
from pipeline.datasets.inputs.contract import Fitted
from pipeline.errors import StillroomError

MARKS = re.compile(r"[^\s,;:!?()\"]+")  # what stands between spaces and marks is one of a list's values


@dataclass(frozen=True)
class Codes:
    """Each value's number among those of its column in the train rows, sorted, from 1 on: int64 [B, L].

    0 stands for a missing value and for one that no train row has. After the `columns`, those in `lists` aside, come
    the columns of several values, `lists` saying how many of each are read: the numbers of their words, in lower case,
    the same from 1 on, 0 after the last. L is the number of columns and all that `lists` allow.
    """

    columns: Literal["all"] | tuple[str, ...] = "all"
    lists: dict[str, Annotated[int, Field(strict=True, ge=1)]] = field(default_factory=dict)
    version: ClassVar[int] = 1
    gives: ClassVar[str] = "codes"
    learns: ClassVar[bool] = True
    is_costly: ClassVar[bool] = False
    naming: ClassVar[tuple[str, ...]] = ("columns", "lists")

    def fit(self, train: pd.DataFrame, raw: Path) -> Fitted:
        """Return the numbers of the train rows' values. Raises StillroomError when there is no row to learn from."""
        if not len(train):
            raise StillroomError("input of kind codes: found no train rows; expected at least one; hold out fewer")
        names = list(train) if self.columns == "all" else list(self.columns)
        lengths = {name: 1 for name in names if name not in self.lists} | self.lists
        return FittedCodes(
            lengths, {name: numbered(train[name], is_list=name in self.lists) for name in lengths}, set(self.lists)
        )


@dataclass(frozen=True)
class FittedCodes:
    """The numbers of each column's values, how many of them a row has, and which columns are lists."""

    lengths: dict[str, int]
    numbers: dict[str, dict[str, int]]
    lists: set[str]

    @property
    def shape(self) -> tuple[int, ...]:
        """(L,)."""
        return (sum(self.lengths.values()),)

    @property
    def sizes(self) -> dict[str, int]:
        """How many numbers each column has, 0 aside: the `rows` of a model that gives each a vector."""
        return {name: len(known) for name, known in self.numbers.items()}

    def read(self, frame: pd.DataFrame) -> Tensor:
        """Return the numbers of records: int64 [B, L]."""
        found = [self._column(frame[name], length) for name, length in self.lengths.items()]
        return torch.from_numpy(np.concatenate(found, 1))

    def _column(self, column: pd.Series, length: int) -> np.ndarray:
        """Return the numbers of a column: int64 [B, length]. A text that many records share is looked up once."""
        name = str(column.name)
        places, texts = pd.factorize(np.array(as_texts(column), dtype=object), use_na_sentinel=False)
        found = np.zeros((len(texts), length), np.int64)
        for row, text in zip(found, texts, strict=True):
            values = values_of(None if pd.isna(text) else text, is_list=name in self.lists)[:length]
            row[: len(values)] = [self.numbers[name].get(value, 0) for value in values]
        return found[places]


def numbered(column: pd.Series, *, is_list: bool) -> dict[str, int]:
    """Return the number of each value of a column, by the values' order, from 1 on."""
    texts = {text for text in as_texts(column) if text is not None}
    values = {value for text in texts for value in values_of(text, is_list=is_list)}
    return {value: number for number, value in enumerate(sorted(values), 1)}


def values_of(text: str | None, *, is_list: bool) -> list[str]:
    """Return the values of a cell: its words, or the whole of it."""
    if text is None:
        return []
    return MARKS.findall(text.lower()) if is_list else [text]
