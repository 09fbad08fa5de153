"""A source's rows become one row a key, step by step; each step is a rule that looks at no other source and no split.

Trade: a rule can't fit itself to train rows, so limits of outliers are those that a person knows to be true, not
quantiles; in return the same row is prepared alike wherever it stands.
"""

import re
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np
import pandas as pd

from pipeline.datasets.columns import as_numbers, as_texts, is_number
from pipeline.datasets.sources.spec import Conversion, SourceSpec
from pipeline.errors import StillroomError, unknown_name

Step = Callable[[SourceSpec, pd.DataFrame, str], pd.DataFrame]

AGGREGATES: dict[str, Callable[[Any], pd.Series]] = {  # of a column's values that aren't missing, a key at a time
    "first": lambda groups: groups.first(),
    "last": lambda groups: groups.last(),
    "mean": lambda groups: groups.mean(),
    "median": lambda groups: groups.median(),
    "min": lambda groups: groups.min(),
    "max": lambda groups: groups.max(),
    "sum": lambda groups: groups.sum(min_count=1),
    "count": lambda groups: groups.count(),
    "join": lambda groups: groups.agg(lambda values: "\n".join(map(str, values.dropna())) or None),
}
OF_NUMBERS = ("mean", "median", "min", "max", "sum")


def prepared(spec: SourceSpec, frame: pd.DataFrame, key: str) -> pd.DataFrame:
    """Return a source's rows, one a key, whose index is the key as text, in the order in which keys first come.

    Rows without a key are left out. Raises: StillroomError for a column that isn't there or holds no numbers where they
    are needed, a value of `where` that no row has, no row with a key, and several values of a key without a rule.
    """
    for step in STEPS:
        frame = step(spec, frame, key)
    return frame


# -- steps, in their order --------------------------------------------------------------------------------------------


def renamed(spec: SourceSpec, frame: pd.DataFrame, key: str) -> pd.DataFrame:
    """Give columns their names, and see that the key is there."""
    where = f"source.{spec.name}"
    _check_columns(f"{where}.rename", spec.rename, frame)
    frame = frame.rename(columns=dict(spec.rename))
    if twice := sorted(frame.columns[frame.columns.duplicated()]):
        raise StillroomError(f"{where}: found several columns {twice[0]!r}; expected each name once; rename one")
    if key not in frame:
        raise unknown_name(f"{where}: key", "column", key, frame)
    for name in frame:
        if frame[name].dtype == object and any(isinstance(value, list | dict) for value in frame[name]):
            raise StillroomError(
                f"{where}: found a list or table in column {name!r}; expected plain values; flatten it"
            )
    return frame


def without_marks(spec: SourceSpec, frame: pd.DataFrame, key: str) -> pd.DataFrame:
    """Make values missing that stand for none."""
    _check_columns(f"source.{spec.name}.missing", spec.missing, frame)
    return frame.assign(**{name: frame[name].mask(frame[name].isin(marks)) for name, marks in spec.missing.items()})


def extracted(spec: SourceSpec, frame: pd.DataFrame, key: str) -> pd.DataFrame:
    """Make columns of what texts say."""
    found = dict[str, Any]()
    for name, extraction in spec.extract.items():
        where = f"source.{spec.name}.extract.{name}"
        _check_columns(where, [extraction.column], frame)
        if name in frame:
            raise StillroomError(f"{where}: found a column of that name; expected a new one; choose another name")
        pattern = _pattern(extraction.pattern, where)
        searched = [None if text is None else pattern.search(text) for text in as_texts(frame[extraction.column])]
        found[name] = np.array([None if match is None else match[1] for match in searched], dtype=object)
    return frame.assign(**found)


def _pattern(text: str, where: str) -> re.Pattern[str]:
    try:
        pattern = re.compile(text)
    except re.error as error:
        raise StillroomError(
            f"{where}: found {text!r}, no regular expression ({error}); expected one; mend it"
        ) from error
    if not pattern.groups:
        raise StillroomError(f"{where}: found {text!r} without a group; expected ( ) around what is wanted; add them")
    return pattern


def with_numbers(spec: SourceSpec, frame: pd.DataFrame, key: str) -> pd.DataFrame:
    """Read columns as numbers; what is none is missing."""
    _check_columns(f"source.{spec.name}.numbers", spec.numbers, frame)
    return frame.assign(**{name: pd.to_numeric(frame[name], errors="coerce") for name in spec.numbers})


def converted(spec: SourceSpec, frame: pd.DataFrame, key: str) -> pd.DataFrame:
    """Bring numbers to one unit, one conversion after the other."""
    for place, conversion in enumerate(spec.convert):
        frame = _converted(conversion, frame, f"source.{spec.name}.convert[{place}]")
    return frame


def _converted(conversion: Conversion, frame: pd.DataFrame, where: str) -> pd.DataFrame:
    _check_columns(f"{where}.where", conversion.where, frame)
    numbers = _numbers(frame, conversion.column, where)
    concerned = np.ones(len(frame), bool)
    for name, value in conversion.where.items():
        has_value = (frame[name] == value).fillna(False).to_numpy(bool)
        if not has_value.any():
            known = {text for text in as_texts(frame[name].drop_duplicates()) if text is not None}
            raise unknown_name(f"{where}.where.{name}", "value", str(value), known)
        concerned &= has_value
    changed = (numbers + conversion.plus) * conversion.times
    return frame.assign(**{conversion.column: np.where(concerned, changed, numbers)})


def ordered(spec: SourceSpec, frame: pd.DataFrame, key: str) -> pd.DataFrame:
    """Put rows in the order of a column, those without it first, so that "last" is the latest that is known."""
    if spec.sort is None:
        return frame
    where = f"source.{spec.name}.sort"
    _check_columns(where, [spec.sort], frame)
    try:
        return frame.sort_values(spec.sort, kind="stable", na_position="first", ignore_index=True)
    except TypeError as error:
        raise StillroomError(
            f"{where}: found numbers beside texts in {spec.sort!r}; expected one of both; name it in numbers"
        ) from error


def without_columns(spec: SourceSpec, frame: pd.DataFrame, key: str) -> pd.DataFrame:
    """Leave columns out."""
    where = f"source.{spec.name}.drop"
    _check_columns(where, spec.drop, frame)
    if key in spec.drop:
        raise StillroomError(f"{where}: found the key {key!r}; expected other columns; take it out")
    return frame.drop(columns=list(spec.drop))


def pivoted(spec: SourceSpec, frame: pd.DataFrame, key: str) -> pd.DataFrame:
    """Give each name of a long table a column, without joining rows: that is for `aggregate` to do."""
    if spec.pivot is None:
        return frame
    where = f"source.{spec.name}.pivot"
    names, values = spec.pivot.names, spec.pivot.values
    _check_columns(where, [names, values], frame)
    frame = frame[frame[names].notna()].reset_index(drop=True)
    wide = frame.pivot(columns=names, values=values).rename(columns=str)
    if key in wide:
        raise StillroomError(f"{where}: found a name {key!r}, which is the key's; expected other names; rename the key")
    return pd.concat([frame[[key]], wide[sorted(wide)]], axis=1)


def within_limits(spec: SourceSpec, frame: pd.DataFrame, key: str) -> pd.DataFrame:
    """Make numbers missing that can't be true."""
    where, kept = f"source.{spec.name}.outliers", dict[str, Any]()
    for name, (least, largest) in spec.outliers.items():
        numbers = _numbers(frame, name, where)
        kept[name] = np.where((least <= numbers) & (numbers <= largest), numbers, np.nan)
    return frame.assign(**kept)


def one_row_a_key(spec: SourceSpec, frame: pd.DataFrame, key: str) -> pd.DataFrame:
    """Join each key's rows, every column by its rule."""
    where = f"source.{spec.name}"
    _check_columns(f"{where}.aggregate", spec.aggregate, frame)
    keys = key_texts(frame[key])
    has_key = np.array([text is not None for text in keys], bool)
    if not has_key.any():
        raise StillroomError(f"{where}: found no row with a {key!r}; expected one at least; look at the file")
    frame = frame.drop(columns=key)[has_key]
    index = pd.Index([text for text in keys if text is not None], dtype=object)
    columns = {
        name: _aggregated(frame[name], index, spec.aggregate.get(name, spec.duplicates), where) for name in frame
    }
    return pd.DataFrame(columns, index=index.drop_duplicates())


def _aggregated(column: pd.Series, keys: pd.Index, rule: str | None, where: str) -> pd.Series:
    groups = column.groupby(keys.to_numpy(), sort=False)
    if rule is None:
        several = int((groups.count() > 1).sum())
        if several:
            raise StillroomError(
                f"{where}: found {several} keys with several values of {column.name!r}; expected one; set duplicates, "
                f"or aggregate.{column.name}, to one of {', '.join(AGGREGATES)}"
            )
        rule = "first"
    if rule not in AGGREGATES:
        raise unknown_name(f"{where}.aggregate.{column.name}", "rule", rule, AGGREGATES)
    if rule in OF_NUMBERS and not (is_number(column) or column.isna().all()):
        raise StillroomError(
            f"{where}: found {column.name!r} of text with the rule {rule!r}; expected numbers; name it in numbers, or "
            f"give it another rule in aggregate"
        )
    return AGGREGATES[rule](groups)


STEPS: tuple[Step, ...] = (
    renamed,
    without_marks,
    extracted,
    with_numbers,
    converted,
    ordered,
    without_columns,
    pivoted,
    within_limits,
    one_row_a_key,
)


# -- helpers ----------------------------------------------------------------------------------------------------------


def key_texts(column: pd.Series) -> Sequence[str | None]:
    """Return keys as text [N], None where one is missing: 17, 17.0 and "17" are one key."""
    texts = as_texts(column)
    return [None if text is None else text.removesuffix(".0") for text in texts] if is_number(column) else texts


def _check_columns(where: str, named: Iterable[str], frame: pd.DataFrame) -> None:
    for name in named:
        if name not in frame:
            raise unknown_name(where, "column", name, frame)


def _numbers(frame: pd.DataFrame, name: str, where: str) -> np.ndarray:
    """Return a column as float64 [N]. Raises: StillroomError where it isn't there, or holds something else."""
    _check_columns(where, [name], frame)
    if not (is_number(frame[name]) or frame[name].isna().all()):
        raise StillroomError(f"{where}: found {name!r} of text; expected numbers; name it in numbers")
    return as_numbers(frame[name]) if is_number(frame[name]) else np.full(len(frame), np.nan)
