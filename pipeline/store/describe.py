"""From a sealed manifest to a layout, trusting nothing: a store may come from a stranger.

Names stay inside the folder, shapes stay within what the files there can hold, and both are looked at before any
memory is taken or any block listed.
"""

import json
import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from pipeline.errors import CorruptBlockError, StillroomError
from pipeline.lineage import Manifest, file_digest
from pipeline.store.chunks import CRC_BYTES, load
from pipeline.store.codecs.base import Shuffle
from pipeline.store.layout import ArraySpec, Layout
from pipeline.store.records import RECORDS, Records, records_digest

NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.\-]*")  # of a split, and of each part of an array's path
DTYPES = ("float16", "float32", "float64", "uint8", "uint16", "uint32", "uint64", "int8", "int16", "int32", "int64")
SHUFFLES: tuple[Shuffle, ...] = ("noshuffle", "shuffle", "bitshuffle")
MAX_CHUNK_BYTES = 1 << 30  # ours have 4-8 MB, at most 256 rows of whatever a row takes
MAX_METADATA_BYTES = 64 << 20


def layout_of(manifest: Manifest, folder: Path) -> Layout:
    """Return the layout that a store's manifest describes. Raises StillroomError when it describes none."""
    try:
        layout = _layout(manifest.details)
        _check(layout)
        found = sum(1 for _ in (folder / RECORDS).glob("*.json"))
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
        if (root / place).resolve() != root / place:
            raise StillroomError(
                f"{folder / place}: found a link; expected a folder of the store itself; copy the store whole"
            )


def check_seal(folder: Path, manifest: Manifest, records: Records) -> None:
    """Raise CorruptBlockError unless records and Zarr metadata are those that the manifest sealed."""
    if records_digest(records) != manifest.digests.get(RECORDS):
        raise CorruptBlockError(
            f"{folder}: the commit records are not those the manifest sealed; run the stage that made it to rebuild it"
        )
    for relative, wanted in manifest.digests.items():
        path = folder / relative
        if relative == RECORDS:
            continue
        if not all(NAME.fullmatch(part) for part in relative.split("/")) or path.is_symlink() or not path.is_file():
            raise CorruptBlockError(
                f"{path}: missing, or no file of the store; expected sha256 {wanted[:12]}; rebuild the store"
            )
        if path.stat().st_size > MAX_METADATA_BYTES or file_digest(path) != wanted:
            raise CorruptBlockError(f"{path}: edited or damaged; expected sha256 {wanted[:12]}; rebuild the store")


def read_constant(folder: Path, name: str) -> np.ndarray:
    """Return a small array that was sealed with the metadata: one plain chunk. Raises StillroomError when it isn't."""
    try:
        described = json.loads((folder / name / "zarr.json").read_bytes())
        shape, dtype = tuple(_count(extent) for extent in described["shape"]), described["data_type"]
        if dtype not in DTYPES:
            raise ValueError(f"an array of {dtype!r}")
        num_bytes = math.prod(shape) * np.dtype(dtype).itemsize + CRC_BYTES
        path = folder / "/".join([name, "c", *("0" for _ in shape)])
        if path.stat().st_size != num_bytes:
            raise ValueError(f"its chunk has other than {num_bytes:,} bytes")
        out = np.empty(shape, dtype)
        load(path, out, None, num_bytes=num_bytes, crc32c=None, sha256=None)
        return out
    except (OSError, KeyError, TypeError, ValueError, RecursionError) as error:
        raise CorruptBlockError(
            f"{folder / name}: found no array that a codec was fitted to ({error}); expected it; rebuild the store"
        ) from error
