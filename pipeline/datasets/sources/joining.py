"""Sources that share a key, side by side: a row a key of the source that has the label, and which of them knew it."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import pandas as pd

from pipeline.datasets.columns import presence_column
from pipeline.datasets.inputs import InputSpecs
from pipeline.datasets.records import RecordDataset
from pipeline.datasets.sources.files import read_source
from pipeline.datasets.sources.preparing import prepared
from pipeline.datasets.sources.spec import SourceSpec
from pipeline.datasets.tables import records_of, truths
from pipeline.errors import StillroomError, unknown_name

WHERE = "data"  # what errors call the joined table


def open_sources(
    specs: Sequence[SourceSpec],
    raw: Path,
    *,
    key: str,
    label: str,
    folder: Path | None = None,
    name: str | None = None,
    drop: Sequence[str] = (),
    text: Sequence[str] = (),
    groups: str | None = None,
    test: str | None = None,
    inputs: InputSpecs | None = None,
    memory_budget: int = 4 << 30,
) -> RecordDataset:
    """Return the records of several sources, joined on the column `key`; files are relative to `folder`, if given.

    Columns are called `source.column`, in `label`, `drop`, `text`, `groups` and `test`, too. There is a record for each
    key of the source that has the label; what another source lacks of it is missing, and `has.source` is false. The
    rest is as `open_table` says; `test` is a column.
    Raises: StillroomError for a source that can't be read, prepared or joined, and as `open_table` does.
    """
    frames = {spec.name: prepared(spec, read_source(spec, key, folder), key) for spec in specs}
    whole = [f"{source}.{column}" for source, frame in frames.items() for column in frame]
    for kind, column in {"label": label, "test_rows": test or label}.items():
        if column not in whole:
            raise unknown_name(f"{WHERE}.{kind}", "column", column, whole)
    frame = join_sources(frames, next(source for source in frames if label.startswith(f"{source}.")))
    for column in map(presence_column, frames):
        if column in drop:
            raise StillroomError(
                f"{WHERE}.drop: found {column!r}, by which a record's sources are known; expected columns of sources; "
                f"have an input drop it"
            )
    is_test = np.zeros(len(frame), bool) if test is None else truths(WHERE, frame[test])
    return records_of(
        frame,
        is_test,
        Path(raw),
        where=WHERE,
        name=name or "+".join(frames),
        label=label,
        drop=drop,
        text=text,
        groups=groups,
        test=test,
        inputs=inputs,
        memory_budget=memory_budget,
        sources=tuple(frames),
    )


def join_sources(frames: Mapping[str, pd.DataFrame], base: str) -> pd.DataFrame:
    """Return prepared sources, each indexed by its keys, as one row for each key of the source `base`, in its order.

    Columns are `source.column`, then a truth value `has.source` of each. Keys that `base` lacks are left out.
    Raises: StillroomError for a source that knows none of the keys: then they are not of one kind.
    """
    keys = frames[base].index
    parts = list[pd.DataFrame]()
    for source, frame in frames.items():
        if not keys.isin(frame.index).any():
            raise StillroomError(
                f"source.{source}: found none of the {len(keys)} keys of {base!r} (such as {str(keys[0])!r}), but keys "
                f"such as {str(frame.index[0])!r}; expected the same keys; look at data.key and rename"
            )
        parts.append(frame.reindex(keys).add_prefix(f"{source}."))
    presence = {presence_column(source): keys.isin(frame.index) for source, frame in frames.items()}
    joined = pd.concat([*parts, pd.DataFrame(presence, index=keys)], axis=1)
    return joined.reset_index(drop=True)
