"""One's own table as a data set of records: .csv, .tsv, .jsonl or .parquet, a row a sample."""

import json
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from pipeline.datasets.columns import as_numbers, as_texts, is_number
from pipeline.datasets.frames import read_csv
from pipeline.datasets.inputs import InputSpecs
from pipeline.datasets.records import RecordDataset
from pipeline.errors import StillroomError, unknown_name

MOST_CLASSES = 1000
TEST_VALUES = {"0": False, "1": True, "0.0": False, "1.0": True, "false": False, "true": True} | {
    "train": False,
    "test": True,
}


def read_jsonl(path: Path) -> pd.DataFrame:
    """Return the table of a file with a JSON object a line; pandas would take some texts for dates."""
    rows = [json.loads(line) for line in path.read_text("utf-8").splitlines() if line.strip()]
    if not all(isinstance(row, dict) for row in rows):
        raise ValueError("a line is no JSON object")
    return pd.DataFrame(rows)


FILES: dict[str, Callable[[Path], pd.DataFrame]] = {
    ".csv": read_csv,
    ".tsv": partial(read_csv, separator="\t"),
    ".jsonl": read_jsonl,
    ".parquet": pd.read_parquet,
}


def open_table(
    path: Path,
    raw: Path,
    *,
    label: str | None = None,
    numbers: Sequence[str] = (),
    drop: Sequence[str] = (),
    text: Sequence[str] = (),
    groups: str | None = None,
    test: str | Path | None = None,
    translation: str | None = None,
    inputs: InputSpecs | None = None,
    memory_budget: int = 4 << 30,
) -> RecordDataset:
    """Return the records of a file, whose classes are the distinct values of the column `label`, sorted.

    A record without a label has -1. Without a `label`, the columns `numbers` are real numbers to answer with. `drop`
    names columns that no model may read, `text` those of words, `groups` one of subgroups (a model reads it, too,
    unless it is dropped). `test` is a column that says which records are the test (true or false, 1 or 0, "test" or
    "train"), or a second file of them. The inputs are "table" over all columns but those of words, then "text" and
    "words" over these, and `inputs`, which add to them or replace one of that name. With a `translation`, the column
    that the one of `text` is to be translated into, they are "pair" and "text".
    Raises StillroomError for a file that cannot be read, an unknown column, or labels that are no classes.
    """
    path = Path(path)
    frame, is_test = _with_test(path, test)
    return records_of(
        frame,
        is_test,
        Path(raw),
        where=str(path),
        name=path.stem,
        label=label,
        numbers=numbers,
        drop=drop,
        text=text,
        groups=groups,
        test=test if isinstance(test, str) else None,
        translation=translation,
        inputs=inputs,
        memory_budget=memory_budget,
    )


def records_of(
    frame: pd.DataFrame,
    is_test: np.ndarray,
    raw: Path,
    *,
    where: str,
    name: str,
    label: str | None,
    drop: Sequence[str],
    text: Sequence[str],
    groups: str | None,
    test: str | None,
    inputs: InputSpecs | None,
    memory_budget: int,
    sources: Sequence[str] = (),
    numbers: Sequence[str] = (),
    translation: str | None = None,
) -> RecordDataset:
    """Return a table's rows as records, as `open_table` says; `where` is what errors call it, `sources` what it joins.

    `test` is the column that told `is_test`, bool [N], if one did. Raises: as `open_table` does, for its columns.
    """
    asked = [translation] if translation is not None else list(numbers) if label is None else [label]
    for kind, names in {"label": asked, "drop": drop, "text": text, "groups": [groups] if groups else []}.items():
        for each in names:
            if each not in frame:
                raise unknown_name(f"{where}: {kind}", "column", each, frame)
    classes, labels, targets = tuple(numbers), np.zeros(len(frame), np.int64), None
    if translation is not None:
        labels = np.array([-1 if text is None else 0 for text in as_texts(frame[translation])], np.int64)
    elif label is None:
        targets = _numbers(where, frame[list(numbers)])
    else:
        classes, labels = _classes(where, frame[label], is_test)
    unseen = {*asked, *drop, *([test] if test else [])}
    columns = [each for each in frame if each not in unseen]
    if not columns:
        raise StillroomError(f"{where}: found no column but those left out; expected one to learn from; drop fewer")
    return RecordDataset(
        name=name,
        frame=frame[[each for each in frame if each in columns or each in (groups, translation)]],
        classes=classes,
        labels=labels,
        official_test=np.flatnonzero(is_test),
        inputs={
            **(default_inputs(columns, text) if translation is None else _pair(text, translation)),
            **(inputs or {}),
        },
        asks_sentences=translation is not None,
        raw=raw,
        groups=groups,
        unread=(groups,) if groups in unseen and groups is not None else (),
        memory_budget=memory_budget,
        sources=tuple(sources),
        targets=targets,
    )


def _pair(text: Sequence[str], translation: str) -> dict[str, dict[str, Any]]:
    """Return the inputs of a table of texts and their translations."""
    return {
        "pair": {"kind": "pair", "text": text[0], "translation": translation},
        "text": {"kind": "text", "columns": [text[0]]},
    }


def default_inputs(columns: Sequence[str], text: Sequence[str]) -> dict[str, dict[str, Any]]:
    """Return the inputs of a table: a vector of its columns, and words of those that hold texts."""
    texts = [name for name in text if name in columns]
    inputs: dict[str, dict[str, Any]] = {}
    if set(columns) - set(texts):
        inputs["table"] = {"kind": "table", "drop": texts}
    if texts:
        inputs |= {"text": {"kind": "text", "columns": texts}, "words": {"kind": "words", "columns": texts}}
    return inputs


def read_file(path: Path) -> pd.DataFrame:
    """Return a file's table, its columns named by text. Raises StillroomError for one that cannot be read."""
    if path.suffix.lower() not in FILES:
        raise StillroomError(f"{path}: found {path.suffix!r}; expected one of {', '.join(FILES)}; convert the table")
    try:
        frame = FILES[path.suffix.lower()](path)
    except ImportError as error:
        raise StillroomError(
            f"{path}: found no package that reads .parquet; expected pyarrow; run pip install pyarrow"
        ) from error
    except (OSError, ValueError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise StillroomError(f"{path}: cannot be read ({reason}); expected a table; mend or replace it") from error
    return frame.rename(columns=str)


def _with_test(path: Path, test: str | Path | None) -> tuple[pd.DataFrame, np.ndarray]:
    """Return all records, those of a second file last, and which are of the test: bool [N]."""
    frame = read_file(path)
    if test is None:
        return frame, np.zeros(len(frame), bool)
    if isinstance(test, str) and test in frame:
        return frame, truths(str(path), frame[test])
    second = Path(test).expanduser()
    if not second.is_file():
        raise unknown_name(f"{path}: test", "column or file", str(test), frame)
    other = read_file(second)
    if sorted(other) != sorted(frame):
        odd = sorted(set(other) ^ set(frame))
        raise StillroomError(f"{test}: found other columns than {path} ({odd}); expected the same; mend one of them")
    both = pd.concat([frame, other[list(frame)]], ignore_index=True)
    return both, np.arange(len(both)) >= len(frame)


def truths(where: str, column: pd.Series) -> np.ndarray:
    """Return which rows a column calls the test: bool [N]. Raises: StillroomError for a value that says neither."""
    values = [str(value).lower() for value in as_texts(column)]
    for value in values:
        if value not in TEST_VALUES:
            raise StillroomError(
                f"{where}: {column.name}: found {value!r}; expected true or false, 1 or 0, test or train; mend it"
            )
    return np.array([TEST_VALUES[value] for value in values], dtype=bool)


def _classes(where: str, column: pd.Series, is_test: np.ndarray) -> tuple[tuple[str, ...], np.ndarray]:
    """Return the classes of the train records, sorted, numbers by their size, and all labels int64 [N]."""
    names = [value if value is None or not is_number(column) else _whole(value) for value in as_texts(column)]
    values = np.array(names, dtype=object)
    where = f"{where}: {column.name}"
    classes = tuple(sorted({value for value in values[~is_test] if value is not None}, key=_by_size))
    if not 2 <= len(classes) <= MOST_CLASSES:
        raise StillroomError(
            f"{where}: found {len(classes)} distinct values; expected 2 to {MOST_CLASSES} classes; name another label"
        )
    places: dict[str | None, int] = {name: label for label, name in enumerate(classes)}
    for value in values:
        if value is not None and value not in places:
            raise unknown_name(where, "class in the test", value, classes)
    return classes, np.array([places.get(value, -1) for value in values], dtype=np.int64)


def _numbers(where: str, columns: pd.DataFrame) -> np.ndarray:
    """Return columns of numbers: float32 [N, P], NaN where one is missing. Raises StillroomError for one of words."""
    for name in columns:
        if not is_number(columns[name]):
            raise StillroomError(
                f"{where}: {name}: found words; expected numbers to answer with; mend the column, or make it the label"
            )
    values = np.stack([as_numbers(columns[name]) for name in columns], axis=1).astype(np.float32)
    return np.where(np.isfinite(values), values, np.float32(np.nan))


def _whole(number: str) -> str:
    return number.removesuffix(".0")  # whole numbers become 1.0 when one of them is missing


def _by_size(value: str) -> tuple[float, str]:
    try:
        return float(value), value
    except ValueError:
        return float("inf"), value
