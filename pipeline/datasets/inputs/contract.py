"""What a data set asks of a kind of input, before and after it has learned from train rows."""

from pathlib import Path
from typing import Any, ClassVar, Protocol

import pandas as pd
from torch import Tensor


class Fitted(Protocol):
    """An input that has learned what it needs.

    One whose numbers mean something each also has `names`, a tuple of what they are called.
    """

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of one sample."""
        ...

    def read(self, frame: pd.DataFrame) -> Tensor | list[str]:
        """Return the input of records: int64 or float32 [B, ...], or texts."""
        ...


class Input(Protocol):
    """What a data set asks of a kind of input.

    `gives`: what a model gets, in the words of `pipeline.models.READS`; `learns`: whether it must be fitted before it
    is read; `is_costly`: whether it is always made of all records at once; `naming`: those of its options that hold
    names of columns.
    """

    version: ClassVar[int]
    gives: ClassVar[str]
    learns: ClassVar[bool]
    is_costly: ClassVar[bool]
    naming: ClassVar[tuple[str, ...]]

    @property
    def columns(self) -> Any:
        """The columns it reads."""
        ...

    def fit(self, train: pd.DataFrame, raw: Path) -> Fitted:
        """Return what reads records, having seen the train ones alone; `raw` is where fetched files are kept."""
        ...
