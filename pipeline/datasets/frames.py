"""Formats of catalogue entries that hold records: how their files become a frame and labels."""

from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from pipeline.datasets.catalog import Entry
from pipeline.datasets.mails import body_of, read_archive

PANDAS = tuple(map(int, pd.__version__.split(".")[:2]))
EXACT: dict[str, Any] = {"float_precision": "round_trip"} if PANDAS < (3, 1) else {}  # from 3.1 on it always is


class Records(NamedTuple):
    """What a file holds: a row a record, labels int64 [N] and the ids of an official test split."""

    frame: pd.DataFrame
    labels: np.ndarray
    official_test: np.ndarray


def read_csv(path: Path, separator: str = ",") -> pd.DataFrame:
    """Return a table of text; numbers are read to the last bit, and a column's kind from all its rows."""
    return pd.read_csv(path, sep=separator, low_memory=False, **EXACT)


def read_reviews(folder: Path, entry: Entry) -> Records:
    """Return a table of (text, label, ...), of which rows that repeat a text are left out and <br /> are line ends."""
    table = read_csv(folder / entry.files[0].name)
    for column, value in entry.rows.items():
        table = table[table[column] == value]
    table = table.assign(text=table["text"].str.replace("<br />", "\n", regex=False))
    return unrepeated(table["text"], table[entry.label].to_numpy())


def read_mails(folder: Path, entry: Entry) -> Records:
    """Return the bodies of mails; a group's name says whether it is spam. Repeated bodies are left out."""
    mails = read_archive(folder / entry.files[0].name)
    is_spam = np.array([group.startswith("spam") for group, _ in mails])
    return unrepeated(pd.Series([body_of(mail) for _, mail in mails], dtype=object), is_spam)


def unrepeated(texts: pd.Series, labels: np.ndarray) -> Records:
    """Return texts, each at its first place alone: of copies, one would be learned and the other asked in the test."""
    is_first = ~texts.duplicated().to_numpy()
    frame = pd.DataFrame({"text": texts[is_first].to_numpy()})
    return Records(frame, labels[is_first].astype(np.int64), np.zeros(0, np.int64))


def read_table(folder: Path, entry: Entry) -> Records:
    """Return a table without the label and the columns that no model may read."""
    table = read_csv(folder / entry.files[0].name)
    places = {name: label for label, name in enumerate(entry.classes)}
    labels = table[entry.label].map(places).to_numpy(np.int64)
    unseen = {entry.label, *entry.drop} - {entry.groups}
    return Records(table[[name for name in table if name not in unseen]], labels, np.zeros(0, np.int64))


FRAMES: dict[str, Callable[[Path, Entry], Records]] = {
    "reviews-csv": read_reviews,
    "spam-assassin": read_mails,
    "table-csv": read_table,
}
