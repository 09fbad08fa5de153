"""Columns of a table as one vector: numbers scaled, categories one-hot, all of it learned from train rows alone."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, ClassVar, Literal

import pandas as pd
from pydantic import Field

from pipeline.datasets.columns import is_number
from pipeline.datasets.inputs.contract import Fitted
from pipeline.errors import StillroomError

Scale = Literal["standard", "minmax", "log", "none"]
Share = Annotated[float, Field(ge=0, le=1)]


@dataclass(frozen=True)
class Table:
    """Numbers and categories of `columns` (those named in `drop` left out) as a vector, float32 [B, D].

    A number is clipped to the train quantiles `clip` (or left alone, if that is "none"), given the train median where
    it is missing (infinite ones are), and scaled: "standard" to mean 0 and variance 1, "minmax" to 0..1, "log" as
    log(1 + number - least) and then as "standard"; the options `standard`, `minmax`, `log`, `none` name columns scaled
    otherwise than `scale`. One more
    column says where it was missing, if it was so in train. A category, or a number named in `categories`, has a
    column for each value of at least `min_frequency` train rows, one for all rarer values together and one for missing,
    if train has such; another value has zeros throughout.
    """

    columns: Literal["all"] | tuple[str, ...] = "all"
    drop: tuple[str, ...] = ()
    clip: tuple[Share, Share] | Literal["none"] = (0.001, 0.999)
    scale: Scale = "standard"
    standard: tuple[str, ...] = ()
    minmax: tuple[str, ...] = ()
    log: tuple[str, ...] = ()
    none: tuple[str, ...] = ()
    categories: tuple[str, ...] = ()
    min_frequency: Annotated[int, Field(strict=True, ge=1)] = 10
    version: ClassVar[int] = 1
    gives: ClassVar[str] = "numbers"
    learns: ClassVar[bool] = True
    is_costly: ClassVar[bool] = False
    naming: ClassVar[tuple[str, ...]] = ("columns", "drop", "standard", "minmax", "log", "none", "categories")

    def fit(self, train: pd.DataFrame, raw: Path) -> Fitted:
        """Return the table with its quantiles, medians, scales and categories of the train rows.

        Raises StillroomError when there is no column or no row to learn from.
        """
        from pipeline.datasets.inputs.vectors import FittedTable

        names = list(train) if self.columns == "all" else list(self.columns)
        names = [name for name in names if name not in self.drop]
        if not names or not len(train):
            found = "no columns" if not names else "no train rows"
            raise StillroomError(f"input of kind table: found {found}; expected at least one; drop fewer")
        numbers = {name: self._scale_of(name) for name in names if self._is_number(train[name])}
        fitted = FittedTable(numbers, [name for name in names if name not in numbers], self)
        fitted.learn(train)
        return fitted

    def _is_number(self, column: pd.Series) -> bool:
        return is_number(column) and column.name not in self.categories

    def _scale_of(self, name: str) -> Scale:
        """Return the scale of a column: the one whose option names it, else that of all."""
        named: dict[Scale, tuple[str, ...]] = {
            "standard": self.standard,
            "minmax": self.minmax,
            "log": self.log,
            "none": self.none,
        }
        return next((scale for scale, names in named.items() if name in names), self.scale)
