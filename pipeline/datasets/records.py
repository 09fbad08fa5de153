"""Data sets of records: one row of a table a sample, of which each model reads the input that it names.

A rule may read the text of a sample, a network its hashed words, another the vector of its columns: the samples, their
labels and their digests are the same, so that one may teach the other.
"""

import copy
import hashlib
import json
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from pipeline.datasets.columns import as_texts, joined_texts, presence_column
from pipeline.datasets.digests import digest_records, sha256_of
from pipeline.datasets.inputs import Fitted, FittedPair, Input, OfSource, config_of, parse_of_source
from pipeline.errors import unknown_name
from pipeline.ranking import Ranking

RECORD_VERSION = 1  # raise it when the same file gives other records or digests
OF_TEXT = ("text", "words", "pairs")  # what inputs of texts give
SHOWN = 400  # characters of a text that people see
NUMBER_BYTES = 8  # of one number of an input, at most


def without_sources(frame: pd.DataFrame, sources: Collection[str]) -> pd.DataFrame:
    """Return records as if nobody had these sources: their columns are missing, their `has.source` false."""
    prefixes = tuple(f"{source}." for source in sources)
    everywhere = np.ones(len(frame), bool)
    gone = {name: frame[name].mask(everywhere) for name in frame if name.startswith(prefixes)}
    return frame.assign(**gone, **{presence_column(source): False for source in sources})


@dataclass(eq=False)
class RecordDataset:
    """Records with stable ids 0..N-1, their labels, and the inputs that models may read of them.

    frame: a row a sample; labels: int64 [N], -1 where there is none; official_test: int64 ids; inputs: by name, the
    first is the default; raw: the folder where what is made once is kept; groups: the column of subgroups;
    ranks: those of who ranks and of what is ranked; unread:
    columns that no input sees; units: [N], what must stay in one split has one value, None where samples are their
    own; sources: what the frame joins, of each its columns `source.column` and a truth value `has.source`. An input is
    held whole in memory when it takes at most `memory_budget` bytes. Where real numbers are asked for: `targets`
    float32 [N, P], NaN where unknown, named by `classes`, in `unit`; labels are 0 where a record has any; `reference`
    [N, P] is the forecast that one would make without any model; `draws` says that many numbers would do, of which
    those of a record are one draw. `asks_sentences` says that what is asked for is the second text of the first input,
    of records whose label is 0.
    Raises StillroomError for an input of an unknown kind, option or column.
    """

    name: str
    frame: pd.DataFrame
    classes: tuple[str, ...]
    labels: np.ndarray
    official_test: np.ndarray
    inputs: Mapping[str, Mapping[str, Any]]
    raw: Path
    groups: str | None = None
    ranks: tuple[str, str] | None = None
    unread: tuple[str, ...] = ()
    memory_budget: int = 4 << 30
    units: np.ndarray | None = None
    sources: tuple[str, ...] = ()
    targets: np.ndarray | None = None
    reference: np.ndarray | None = None
    unit: str = ""
    draws: bool = False
    asks_sentences: bool = False
    fitted_on: np.ndarray | None = field(default=None, init=False)

    def __post_init__(self) -> None:
        self.labels = np.asarray(self.labels, dtype=np.int64)
        self.official_test = np.asarray(self.official_test, dtype=np.int64)
        if len(self.labels) != len(self.frame):
            raise ValueError(f"{self.name}: {len(self.labels)} labels; expected {len(self.frame)}, one a record")
        if not self.inputs:
            raise ValueError(f"{self.name}: no inputs; expected at least one")
        if self.targets is not None:
            self.targets = np.ascontiguousarray(self.targets, np.float32)
            if self.targets.shape != (len(self.frame), len(self.classes)):
                raise ValueError(f"{self.name}: targets {self.targets.shape}; expected a row a record, a column a name")
            self.labels = np.where(np.isfinite(self.targets).any(1), 0, -1)
        self._seen = self.frame.drop(columns=list(self.unread))
        columns = list(self._seen)
        self._inputs: dict[str, Input | OfSource] = {
            name: parse_of_source(name, spec, columns, self.sources) for name, spec in self.inputs.items()
        }
        self._readings: dict[str, InputRows] = {}

    def __len__(self) -> int:
        return len(self.labels)

    @cached_property
    def fingerprint(self) -> str:
        """sha256 over every record, label and their order; neither over the inputs nor the name."""
        content = {
            "classes": self.classes,
            "labels": sha256_of(self.labels),
            "official_test": sha256_of(self.official_test),
            "digests": sha256_of(self._digests),
            "record_version": RECORD_VERSION,
        }
        if self.targets is not None:
            content["targets"] = hashlib.sha256(self.targets.astype("<f4").tobytes()).hexdigest()
        return hashlib.sha256(json.dumps(content, sort_keys=True, separators=(",", ":")).encode()).hexdigest()

    def source_digests(self, ids: np.ndarray) -> np.ndarray:
        """Return the 64-bit digests uint64 [B] of the records' column names and values, whatever is read of them."""
        return self._digests[np.asarray(ids, dtype=np.int64)]

    @cached_property
    def _digests(self) -> np.ndarray:
        return digest_records(self.frame)

    @property
    def group_of(self) -> np.ndarray | None:
        """The subgroup of each record, str [N], "missing" where there is none; None without a column of them."""
        if self.groups is None:
            return None
        return np.array([group or "missing" for group in as_texts(self.frame[self.groups])], dtype=np.str_)

    @property
    def ranking(self) -> Ranking | None:
        """Who ranks what among the records; None where nobody does."""
        if self.ranks is None:
            return None
        people, items = (np.array([text or "" for text in as_texts(self.frame[name])]) for name in self.ranks)
        return Ranking(people, items, len(np.unique(items)))

    @property
    def presence(self) -> np.ndarray:
        """Whether each record has each source: bool [N, S]."""
        columns = [self.frame[presence_column(source)].to_numpy(bool) for source in self.sources]
        return np.stack(columns, axis=1) if columns else np.zeros((len(self), 0), bool)

    def num_words(self) -> np.ndarray | None:
        """Return how many words the text has that is read by default, of a pair the one to translate: int64 [N].

        None where no text is read by default.
        """
        made = self._inputs[self._known(None)]
        if made.gives not in OF_TEXT:
            return None
        columns = made.columns[:1] if made.gives == "pairs" else made.columns
        return np.array([len(text.split()) for text in joined_texts(self.frame, columns)], np.int64)

    def source_of(self, name: str | None) -> OfSource | None:
        """Return an input (None: the default) where it is of one source alone, else None."""
        made = self._inputs[self._known(name)]
        return made if isinstance(made, OfSource) else None

    def fit(self, ids: np.ndarray) -> "RecordDataset":
        """Return the same data set, with inputs that learn from these (train) records alone, whatever their order."""
        other = copy.copy(self)
        other.fitted_on, other._readings = np.unique(np.asarray(ids, dtype=np.int64)), {}
        return other

    def reading(self, name: str | None) -> "InputRows":
        """Return the records as one input has them, the default for None.

        Raises: StillroomError for an unknown name; ValueError for an input that learns, before `fit`.
        """
        name = self._known(name)
        if self._inputs[name].learns and self.fitted_on is None:
            raise ValueError(f"{self.name}: input {name!r} is read before it is fitted; call fit with the train ids")
        if name not in self._readings:
            self._readings[name] = InputRows(self, self._inputs[name])
        return self._readings[name]

    def input_config(self, name: str | None) -> dict[str, Any]:
        """Return what an input is made from, as JSON: its kind, version and every option."""
        return config_of(self._inputs[self._known(name)])

    def gives(self, name: str | None) -> str:
        """Return what a model gets that reads an input: text, words or numbers."""
        return self._inputs[self._known(name)].gives

    def _known(self, name: str | None) -> str:
        if name is None:
            return next(iter(self._inputs))
        if name not in self._inputs:
            raise unknown_name(self.name, "input", name, self._inputs)
        return name

    def show(self, ids: np.ndarray) -> list[str]:
        """Return records for people to read: the start of their texts, or "column value, ..." of a table."""
        rows = self.frame.iloc[np.asarray(ids, dtype=np.int64)]
        read = [each.columns for each in self._inputs.values() if not each.learns]
        columns = list(read[0]) if read else list(rows)
        texts = {column: as_texts(rows[column]) for column in columns}
        if read:
            return ["\n".join(text or "" for text in row)[:SHOWN] for row in zip(*texts.values(), strict=True)]
        shown = (
            {name: text for name, text in zip(columns, row, strict=True) if text is not None}
            for row in zip(*texts.values(), strict=True)
        )
        return [", ".join(f"{name} {text}" for name, text in row.items()) for row in shown]


class InputRows:
    """One input of a data set, by sample id; it is fitted when its shape is asked for, and made when it is read."""

    def __init__(self, dataset: RecordDataset, made_by: Input | OfSource):
        self.dataset, self.made_by = dataset, made_by
        self._frame = dataset._seen

    def __len__(self) -> int:
        return len(self.dataset)

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of one sample: (L,) of words, (D,) of a vector, () of text."""
        return self._fitted.shape

    @property
    def names(self) -> tuple[str, ...] | None:
        """What each number of a vector is called: "age", "age missing", "sex = male"; None where they have no names."""
        return getattr(self._fitted, "names", None)

    @property
    def fingerprint(self) -> str:
        """The data set's sha256, the same for all its inputs."""
        return self.dataset.fingerprint

    def source_digests(self, ids: np.ndarray) -> np.ndarray:
        """Return the 64-bit digests of the records uint64 [B]."""
        return self.dataset.source_digests(ids)

    def read(self, ids: np.ndarray) -> Tensor | list[str]:
        """Return this input of the records in the order of ids [B]: int64 or float32 [B, ...], or texts.

        The bits of a row are the same whoever else is read with it.
        """
        ids = np.asarray(ids, dtype=np.int64)
        if ids.size and (ids.min() < 0 or ids.max() >= len(self)):
            raise ValueError(f"{self.dataset.name}: ids {ids.min()}..{ids.max()}; expected 0..{len(self) - 1}")
        if self._whole is not None:
            return self._whole.index_select(0, torch.from_numpy(ids))
        return self._fitted.read(self._frame.iloc[ids])

    @property
    def fitted(self) -> Fitted:
        """What reads records, having learned from train ones."""
        return self._fitted

    def tokens(self, ids: np.ndarray) -> Tensor:
        """Return what a pair is to be followed by: int64 [B, L], -1 where there is nothing."""
        fitted = self._fitted
        assert isinstance(fitted, FittedPair)
        return fitted.tokens(self._frame.iloc[np.asarray(ids, dtype=np.int64)])

    def texts(self, ids: np.ndarray) -> list[str]:
        """Return the first texts of records that are pairs: B texts, "" where there is none."""
        fitted = self._fitted
        assert isinstance(fitted, FittedPair)
        return [text or "" for text in as_texts(self._frame.iloc[ids][fitted.options.text])]

    def hide(self, inputs: Tensor | list[str], is_hidden: Tensor) -> Tensor | list[str]:
        """Return inputs without what they tell of a label that may not be seen: rows where bool [B] is true."""
        tells = isinstance(self._fitted, FittedPair) and isinstance(inputs, Tensor)
        return self._fitted.hide(inputs, is_hidden) if tells else inputs  # type: ignore[attr-defined]

    def read_without(self, ids: np.ndarray, sources: Collection[str]) -> Tensor | list[str]:
        """Return this input of records [B] as if they lacked some sources, in the way it was fitted."""
        return self._fitted.read(without_sources(self._frame.iloc[np.asarray(ids, dtype=np.int64)], sources))

    @cached_property
    def _fitted(self) -> Fitted:
        rows = np.zeros(0, np.int64) if self.dataset.fitted_on is None else self.dataset.fitted_on
        return self.made_by.fit(self._frame.iloc[rows], self.dataset.raw)

    @cached_property
    def _whole(self) -> Tensor | None:
        """The input of all records where it is held in memory, made in one go."""
        shape = self._fitted.shape
        num_bytes = len(self) * int(np.prod(shape)) * NUMBER_BYTES
        if not shape or (num_bytes > self.dataset.memory_budget and not self.made_by.is_costly):
            return None
        whole = self._fitted.read(self._frame)
        assert isinstance(whole, Tensor)
        return whole
