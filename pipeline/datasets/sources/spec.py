"""What is said of a source: where it is, and what is done to its rows before they are joined. All of it is by rule.

What is learned (medians for gaps, quantiles, scales) is no part of it: an input learns that, from train rows alone.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field

Value = str | float


@dataclass(frozen=True)
class Extraction:
    """What the first group of a regular expression finds in the texts of `column`; missing where it finds nothing."""

    column: str
    pattern: str


@dataclass(frozen=True)
class Conversion:
    """Numbers of `column` become (number + plus) * times, in rows whose columns have the values of `where`.

    Without `where`, in all rows. Fahrenheit to Celsius is plus = -32, times = 5 / 9.
    """

    column: str
    where: Mapping[str, Value] = field(default_factory=dict)
    plus: float = 0.0
    times: float = 1.0


@dataclass(frozen=True)
class Pivot:
    """A long table, a row a value: the names that column `names` holds become columns, of the values in `values`."""

    names: str
    values: str


@dataclass(frozen=True)
class SourceSpec:
    """A source and its preparation; what each key does is said in the order in which it is done.

    `file` is .csv, .tsv, .jsonl, .parquet; .sqlite, .sqlite3 or .db with a `table` or a `query`; or text: a .txt of
    lines "key, tab, text", or a folder of a .txt a key. `rename` gives columns other names (old to new). `missing`
    lists a column's values that mean none. `extract` makes new columns of what texts say. `numbers` are columns of
    which all that is no number is missing. `convert` brings units together. Rows are put in the order of the column
    `sort`. `drop` are columns not needed from there on. `pivot` widens a long table; of its columns the key, the
    names and their values alone remain. `outliers` are the least and largest number of a column that can be true;
    others are missing. `duplicates` says which value is a key's that has several rows ("first", "last", "mean", or
    any other of AGGREGATES), `aggregate` the same of a column by itself; missing values never count. Several values
    without a rule are an error.
    """

    name: str
    file: str
    table: str | None = None
    query: str | None = None
    rename: Mapping[str, str] = field(default_factory=dict)
    missing: Mapping[str, tuple[Value, ...]] = field(default_factory=dict)
    extract: Mapping[str, Extraction] = field(default_factory=dict)
    numbers: tuple[str, ...] = ()
    convert: tuple[Conversion, ...] = ()
    sort: str | None = None
    drop: tuple[str, ...] = ()
    pivot: Pivot | None = None
    outliers: Mapping[str, tuple[float, float]] = field(default_factory=dict)
    duplicates: str | None = None
    aggregate: Mapping[str, str] = field(default_factory=dict)
