"""From a sealed manifest to a layout, trusting nothing: a store may come from a stranger.

Names stay inside the folder, shapes stay within what the files there can hold, and both are looked at before any
memory is taken or any block listed.
"""

import hashlib
import json
import math
import os
import re
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from pipeline.errors import CorruptBlockError, StillroomError
from pipeline.lineage import Manifest, read_file
from pipeline.store.chunks import CRC_BYTES, load
from pipeline.store.codecs.base import Shuffle
from pipeline.store.layout import ArraySpec, Layout
from pipeline.store.records import RECORDS, Records, records_digest

NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.:\-]*")  # of a split, and of each part of an array's path
DTYPES = ("float16", "float32", "float64", "uint8", "uint16", "uint32", "uint64", "int8", "int16", "int32", "int64")
SHUFFLES: tuple[Shuffle, ...] = ("noshuffle", "shuffle", "bitshuffle")
MAX_CHUNK_BYTES = 1 << 30  # ours have 4-8 MB, at most 256 rows of whatever a row takes
MAX_METADATA_BYTES = 64 << 20


def layout_of(manifest: Manifest, folder: Path) -> Layout:
    """Return the layout that a store's manifest describes. Raises StillroomError when it describes none."""
    try:
        layout = _layout(manifest.details)
        _check(layout)
        records = folder / RECORDS
        found = 0 if records.is_symlink() else sum(1 for _ in records.glob("*.json"))
        if layout.num_blocks > found:
            raise ValueError(f"it speaks of {layout.num_blocks:,} blocks, there are {found:,} commit records")
    except (KeyError, TypeError, ValueError, AttributeError, OverflowError) as error:
        raise StillroomError(
            f"{folder}: found a manifest that describes no store ({error}); expected splits, arrays and block_rows as "
            f"Stillroom writes them; don't use it, or run the stage that made it to rebuild it"
        ) from error
    return layout


def _layout(details: Mapping[str, Any]) -> Layout:
    splits = {name: (_count(views), _count(samples)) for name, (views, samples) in details["splits"].items()}
    return Layout(splits, {n: _spec(spec) for n, spec in details["arrays"].items()}, _count(details["block_rows"]))


def _spec(described: Mapping[str, Any]) -> ArraySpec:
    splits, dtype, shuffle = described.get("splits"), described["dtype"], described.get("shuffle")
    if dtype not in DTYPES or shuffle not in (None, *SHUFFLES) or not isinstance(described["per_view"], bool):
        raise ValueError(f"an array of {dtype!r}, {shuffle!r}")
    tail = tuple(_count(size) for size in described["tail"])
    return ArraySpec(tail, dtype, described["per_view"], shuffle, None if splits is None else tuple(splits))


def _count(value: Any) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or not 0 < value < 2**53:
        raise ValueError(f"{value!r} where a count is expected")
    return value


def _check(layout: Layout) -> None:
    for name in [*layout.splits, *(part for path in layout.arrays for part in path.split("/"))]:
        if not NAME.fullmatch(name):
            raise ValueError(f"{name!r} where a name is expected")
    for name, spec in layout.arrays.items():
        rows = min(layout.block_rows, max(samples for _, samples in layout.splits.values()))
        size = rows * np.dtype(spec.dtype).itemsize
        for extent in spec.tail:
            size *= extent  # Python's integers: NumPy's would wrap around
        if size > MAX_CHUNK_BYTES:
            raise ValueError(f"{name} with chunks of {size:,} bytes")


def check_places(folder: Path, layout: Layout) -> None:
    """Raise StillroomError when a folder of the store is a link: what lies there would not be the store's own."""
    root = folder.resolve()
    places = {RECORDS, *(f"{split}/{name}/c" for split in layout.splits for name in layout.arrays_in(split))}
    for place in sorted(places):
        if not is_own(root, f"{place}/."):
            raise StillroomError(
                f"{folder / place}: found a link; expected a folder of the store itself; copy the store whole"
            )


def is_own(root: Path, relative: str) -> bool:
    """Whether no folder between a store (its path without links) and a file there is a link."""
    parent = root / relative.rpartition("/")[0]
    return os.path.realpath(parent) == str(parent)


def check_seal(folder: Path, manifest: Manifest, layout: Layout, records: Records) -> None:
    """Raise CorruptBlockError unless records and Zarr metadata are those that the manifest sealed."""
    if records_digest(records) != manifest.digests.get(RECORDS):
        raise CorruptBlockError(
            f"{folder}: the commit records are not those the manifest sealed; run the stage that made it to rebuild it"
        )
    root, own = folder.resolve(), set[str]()
    for relative in sorted({*metadata_paths(layout), *manifest.digests} - {RECORDS}):
        parent = relative.rpartition("/")[0]
        check_sealed(folder, manifest, relative, is_ours=parent in own or is_own(root, relative))
        own.add(parent)


def check_sealed(folder: Path, manifest: Manifest, relative: str, *, is_ours: bool = True) -> None:
    """Raise CorruptBlockError unless a file of the store is the one that the manifest sealed.

    `is_ours` says whether no folder on the way to it is a link.
    """
    wanted = manifest.digests.get(relative, "nothing")
    try:
        if not is_ours or not all(NAME.fullmatch(part) for part in relative.split("/")):
            raise ValueError("it lies elsewhere")
        found = hashlib.sha256(read_file(folder / relative, MAX_METADATA_BYTES)).hexdigest()
    except (OSError, ValueError) as error:
        raise CorruptBlockError(
            f"{folder / relative}: no readable file of the store ({error}); expected sha256 {wanted[:12]}; "
            f"rebuild the store"
        ) from error
    if found != wanted:
        raise CorruptBlockError(
            f"{folder / relative}: edited or damaged; expected sha256 {wanted[:12]}; rebuild the store"
        )


def metadata_paths(layout: Layout) -> set[str]:
    """Return where a store has Zarr metadata, fitted arrays aside: every group and array."""
    paths = [f"{split}/{name}".split("/") for split in layout.splits for name in layout.arrays_in(split)]
    return {"/".join([*path[:depth], "zarr.json"]) for path in paths for depth in range(len(path) + 1)}


def read_constant(folder: Path, name: str, sealed: Collection[str] | None = None) -> np.ndarray:
    """Return a small array that was sealed with the metadata: one plain chunk. Raises StillroomError when it isn't.

    `sealed` are the files that a manifest vouches for; None asks for no seal, of a store that is not finished.
    """
    try:
        if not all(NAME.fullmatch(part) for part in name.split("/")) or not is_own(folder.resolve(), f"{name}/c/0/0"):
            raise ValueError("it lies elsewhere")
        described = json.loads(read_file(folder / name / "zarr.json", MAX_METADATA_BYTES))
        shape, dtype = tuple(_count(extent) for extent in described["shape"]), described["data_type"]
        if dtype not in DTYPES:
            raise ValueError(f"an array of {dtype!r}")
        num_bytes = math.prod(shape) * np.dtype(dtype).itemsize + CRC_BYTES
        relative = "/".join([name, "c", *("0" for _ in shape)])
        if sealed is not None and not {f"{name}/zarr.json", relative} <= set(sealed):
            raise ValueError("no manifest vouches for it")
        if num_bytes > MAX_METADATA_BYTES or (folder / relative).stat().st_size != num_bytes:
            raise ValueError(f"its chunk has other than {num_bytes:,} bytes")
        out = np.empty(shape, dtype)
        load(folder / relative, out, None, num_bytes=num_bytes, crc32c=None, sha256=None)
        return out
    except (OSError, KeyError, TypeError, ValueError, AttributeError, RecursionError) as error:
        raise CorruptBlockError(
            f"{folder / name}: found no array that a codec was fitted to ({error}); expected it; rebuild the store"
        ) from error
