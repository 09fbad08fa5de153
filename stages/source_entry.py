"""What a recipe may say of a source: its keys and their types; what each does says `pipeline.datasets.SourceSpec`."""

from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field, StringConstraints

SourceName = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9][A-Za-z0-9_]*$", max_length=60)]  # no dot: x.column
Finite = Annotated[float, Field(allow_inf_nan=False)]
Value = str | Finite


class Section(BaseModel):
    """A table whose keys are all known."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)


class ExtractEntry(Section):
    """What the first group of a regular expression finds in a column's texts."""

    column: str
    pattern: str


class ConvertEntry(Section):
    """Numbers of `column` become (number + plus) * times, where other columns have the values of `where`."""

    column: str
    where: dict[str, Value] = {}
    plus: Finite = 0.0
    times: Finite = 1.0


class PivotEntry(Section):
    """A long table: the column of `names`, which become columns, and that of their `values`."""

    names: str
    values: str


class SourceEntry(Section):
    """One of several sources that share the column `data.key`, and how its rows are prepared."""

    name: SourceName
    file: str
    table: str | None = None
    query: str | None = None
    rename: dict[str, str] = {}
    missing: dict[str, list[Value]] = {}
    extract: dict[str, ExtractEntry] = {}
    numbers: list[str] = []
    convert: list[ConvertEntry] = []
    sort: str | None = None
    drop: list[str] = []
    pivot: PivotEntry | None = None
    outliers: dict[str, Annotated[list[Finite], Field(min_length=2, max_length=2)]] = {}
    duplicates: str | None = None
    aggregate: dict[str, str] = {}
