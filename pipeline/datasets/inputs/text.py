"""Text as it stands, for rules and for estimators that make their own words of it."""

from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import pandas as pd

from pipeline.datasets.columns import joined_texts


@dataclass(frozen=True)
class Text:
    """The texts of `columns` with line ends between them: list[str] of a batch, shape ()."""

    columns: tuple[str, ...] = ("text",)
    version: ClassVar[int] = 1
    gives: ClassVar[str] = "text"
    learns: ClassVar[bool] = False
    is_costly: ClassVar[bool] = False
    naming: ClassVar[tuple[str, ...]] = ("columns",)

    @property
    def shape(self) -> tuple[int, ...]:
        """() of a text."""
        return ()

    def fit(self, train: pd.DataFrame, raw: Path) -> "Text":
        """Return self: nothing is learned."""
        return self

    def read(self, frame: pd.DataFrame) -> list[str]:
        """Return the texts of records [B]."""
        return joined_texts(frame, self.columns)
