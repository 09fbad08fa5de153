"""Formats of catalogue entries that hold records: how their files become a frame and labels."""

from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from pipeline.datasets.catalog import Entry
from pipeline.datasets.localisation import read_localisation
from pipeline.datasets.mails import body_of, read_archive
from pipeline.datasets.noise import read_pictures
from pipeline.datasets.ratings import read_pairs
from pipeline.datasets.traffic import forecasts

PANDAS = tuple(map(int, pd.__version__.split(".")[:2]))
EXACT: dict[str, Any] = {"float_precision": "round_trip"} if PANDAS < (3, 1) else {}  # from 3.1 on it always is


class Records(NamedTuple):
    """What a file holds: a row a record, labels int64 [N] and the ids of an official test split.

    Of real numbers also `targets` float32 [N, P], NaN where unknown, and `reference`, the forecast [N, P] that one
    would make without any model; `units` [N] are what must stay in one split; `names` those of
    the numbers where the catalogue does not say them.
    """

    frame: pd.DataFrame
    labels: np.ndarray
    official_test: np.ndarray
    targets: np.ndarray | None = None
    reference: np.ndarray | None = None
    units: np.ndarray | None = None
    names: tuple[str, ...] | None = None


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


def read_traffic(folder: Path, entry: Entry) -> Records:
    """Return hours, from each of which the next day's traffic is forecast."""
    found = forecasts(read_csv(folder / entry.files[0].name))
    return Records(
        found.frame,
        np.zeros(len(found.frame), np.int64),
        np.flatnonzero(found.is_test),
        targets=found.targets.astype(np.float32),
        reference=found.reference.astype(np.float32),
        units=found.block,
    )


def read_ratings(folder: Path, entry: Entry) -> Records:
    """Return pairs of a person and a film, most of them rated; the label is whether the film was liked."""
    return Records(*read_pairs({file.holds: folder / file.name for file in entry.files}))


def read_noise(folder: Path, entry: Entry) -> Records:
    """Return seeds and classes, of which each has a picture of that class."""
    frame, test, pictures, names = read_pictures(folder, entry)
    return Records(frame, np.zeros(len(frame), np.int64), test, targets=pictures, names=names)


def read_strings(folder: Path, entry: Entry) -> Records:
    """Return pairs of a text and its translation, which is what is asked for; near copies share a unit."""
    found = read_localisation(folder / entry.files[0].name)
    none = np.zeros(0, np.int64)
    return Records(found.frame, np.zeros(len(found.frame), np.int64), none, units=found.units)


FRAMES: dict[str, Callable[[Path, Entry], Records]] = {
    "reviews-csv": read_reviews,
    "spam-assassin": read_mails,
    "table-csv": read_table,
    "rated-films": read_ratings,
    "traffic-csv": read_traffic,
    "noise": read_noise,
    "localisation": read_strings,
}
