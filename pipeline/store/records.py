"""Commit records: one JSON file a block, written after its chunks are safely on disk. They are what "done" means.

A record names its store, so that another store's is told; seals itself, so that one damaged record costs one block;
and holds each chunk's sha256 (what `verify` recomputes) and crc32c (what every read checks, at memory speed).
"""

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pipeline.errors import StillroomError
from pipeline.lineage import canonical_json, fingerprint, read_file
from pipeline.store.codecs.measure import is_error
from pipeline.store.layout import Block, Layout

RECORDS = "records"
MAX_RECORD_BYTES = 1 << 20  # a block of a hundred arrays has a record of 20 KB
Records = Mapping[str, Mapping[str, Any]]


def record_path(folder: Path, block: Block) -> Path:
    """Return where a block's record lies."""
    return folder / RECORDS / f"{block.key}.json"


def make_record(
    store: str, block: Block, chunks: Mapping[str, Mapping[str, Any]], error: Mapping[str, float] | None
) -> bytes:
    """Return a record as it is written: `store` is the store's fingerprint, `chunks` maps paths to digests."""
    record = {
        "store": store,
        "block": [block.split, block.view, block.start, block.stop],
        "chunks": {path: dict(chunk) for path, chunk in chunks.items()},
        "error": None if error is None else dict(error),
    }
    return _as_written({**record, "seal": fingerprint(record)})


def read_record(folder: Path, layout: Layout, block: Block, store: str | None) -> dict[str, Any]:
    """Return a block's record. `store` is the fingerprint it must name, None for format 1, whose records name none.

    Raises: ValueError when it is not as it was written, or another block's or store's; OSError.
    """
    content = read_file(record_path(folder, block), MAX_RECORD_BYTES)
    record = json.loads(content)
    if not isinstance(record, dict) or record.get("block") != [block.split, block.view, block.start, block.stop]:
        raise ValueError("it is not that block's")
    chunks, error = record.get("chunks"), record.get("error")
    paths = {layout.chunk_path(block, name) for name in layout.arrays_of(block)}
    if store is not None:
        _check_own(record, store, content)
    if not isinstance(chunks, dict) or chunks.keys() != paths or not all(map(_is_chunk, chunks.values())):
        raise ValueError("it lists other chunks")
    if store is not None and not all(_is_count(chunk.get("crc32c")) for chunk in chunks.values()):
        raise ValueError("a chunk has no crc32c")
    if error is not None and not _is_error(error):
        raise ValueError("its error is no codec's")
    return record


def _check_own(record: Mapping[str, Any], store: str, content: bytes) -> None:
    if record.get("seal") != fingerprint({key: value for key, value in record.items() if key != "seal"}):
        raise ValueError("its seal does not fit its content")
    if content != _as_written(record):  # 1E-5 for 1e-5 is damage too, though it says the same
        raise ValueError("its bytes are not as they were written")
    if record.get("store") != store:
        raise ValueError("it is that of another store")


def _as_written(record: Mapping[str, Any]) -> bytes:
    return (canonical_json(record) + "\n").encode()


def _is_chunk(chunk: Any) -> bool:
    return isinstance(chunk, dict) and _is_count(chunk.get("bytes")) and isinstance(chunk.get("sha256"), str)


def _is_count(value: Any) -> bool:
    return type(value) is int and value >= 0


def _is_error(error: Any) -> bool:
    return isinstance(error, dict) and is_error(error) and {type(n) for n in error.values()} <= {int, float}


def read_records(folder: Path, layout: Layout, store: str | None) -> dict[str, dict[str, Any]]:
    """Return every block's record by key. Raises StillroomError when one is missing or not as it was written."""
    records = {}
    for block in layout.blocks:
        try:
            records[block.key] = read_record(folder, layout, block, store)
        except (OSError, ValueError, TypeError, RecursionError) as error:
            raise StillroomError(
                f"{record_path(folder, block)}: found no readable commit record ({error}); expected one for "
                f"{block.split} view {block.view} rows {block.start}-{block.stop}; run the stage that made the store "
                f"to rebuild these rows"
            ) from error
    return records


def records_digest(records: Records) -> str:
    """Return the sha256 over all records: what the manifest seals."""
    return hashlib.sha256(canonical_json(records).encode()).hexdigest()


def bytes_per_row(layout: Layout, records: Records) -> dict[str, float]:
    """Return what each array takes on disk for each row it has, in bytes, compressed as it is."""
    total, rows = dict[str, int](), dict[str, int]()
    for block in layout.blocks:
        for name in layout.arrays_of(block):
            size = records[block.key]["chunks"][layout.chunk_path(block, name)]["bytes"]
            total[name], rows[name] = total.get(name, 0) + size, rows.get(name, 0) + len(block)
    return {name: round(total[name] / rows[name], 3) for name in sorted(total)}
