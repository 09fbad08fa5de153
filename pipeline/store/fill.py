"""One verb fills a store: for every block that is missing, compute, write, commit.

A block is committed by its record, written after its chunks are safely on disk; a store is readable once its sealed
manifest exists. Killed at any instant and run again, the store comes out byte for byte as if nothing had happened.
"""

import hashlib
import json
import os
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import zarr

from pipeline.errors import StaleStoreError, StillroomError
from pipeline.lineage import (
    Manifest,
    canonical_json,
    check_fresh,
    read_manifest,
    sync_folder,
    write_cost,
    write_durably,
)
from pipeline.store.codecs import combine_errors
from pipeline.store.layout import Block, Layout

RECORDS = "records"
Arrays = Mapping[str, np.ndarray]
Run = Callable[[Callable[[Block], Block], Iterable[Block]], Iterable[Block]]  # the contract of map


@dataclass(frozen=True)
class Computed:
    """A block's content: one array `[n, ...]` per array of the layout, and what was measured while making it."""

    arrays: Arrays
    error: Mapping[str, float] | None = None
    seconds: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Filled:
    """What a fill did: nothing at all when the store was sealed already."""

    blocks: int = 0
    rows: int = 0
    seconds: float = 0.0


class StoreWriter:
    """A store being filled: a folder with Zarr metadata, chunks, and a commit record a block."""

    def __init__(
        self,
        folder: Path,
        layout: Layout,
        *,
        kind: str,
        name: str,
        config: Mapping[str, Any],
        attributes: Mapping[str, Any],
    ):
        self.folder, self.layout, self.kind, self.name, self.config = folder, layout, kind, name, config
        self.metadata = layout.metadata({"stillroom": dict(attributes)})

    @property
    def is_sealed(self) -> bool:
        """Whether the store is finished."""
        return read_manifest(self.folder) is not None

    def missing(self) -> list[Block]:
        """Return the blocks without a commit record, in order."""
        return [block for block in self.layout.blocks if not self._record_path(block).exists()]

    def prepare(self) -> None:
        """Write the Zarr metadata. Raises StaleStoreError when other metadata lies there."""
        for path, content in self.metadata.items():
            target = self.folder / path
            if target.exists() and target.read_bytes() != content:
                raise StaleStoreError(
                    f"{target}: found the metadata of another store; expected that of {self.name!r}; "
                    f"delete {self.folder} and run again"
                )
            if not target.exists():
                write_durably(target, content)
        (self.folder / RECORDS).mkdir(exist_ok=True)

    def commit(self, block: Block, computed: Computed) -> None:
        """Write a block's chunks, make them durable, then write its record."""
        chunks = {name: self._write_chunk(block, name, computed.arrays) for name in self.layout.arrays_of(block)}
        record = {
            "block": [block.split, block.view, block.start, block.stop],
            "chunks": {self.layout.chunk_path(block, name): chunk for name, chunk in chunks.items()},
            "error": None if computed.error is None else dict(computed.error),
        }
        write_durably(self._record_path(block), (canonical_json(record) + "\n").encode())

    def _write_chunk(self, block: Block, name: str, arrays: Arrays) -> dict[str, Any]:
        spec, values = self.layout.arrays[name], np.ascontiguousarray(arrays[name])
        if values.shape != (len(block), *spec.tail) or values.dtype != np.dtype(spec.dtype):
            raise ValueError(f"{name}: got {values.dtype} {values.shape} for {spec.dtype} {(len(block), *spec.tail)}")
        array = zarr.open_array(self.folder / block.split / name, mode="r+", config={"write_empty_chunks": True})
        rows = slice(block.start, block.stop)
        array[(block.view, rows) if spec.per_view else rows] = values
        path = self.folder / self.layout.chunk_path(block, name)
        with path.open("rb") as file:
            os.fsync(file.fileno())
            content = file.read()
        for folder in path.parents:  # the chunk's own folders may be as new as the chunk
            sync_folder(folder)
            if folder == self.folder:
                break
        return {"sha256": hashlib.sha256(content).hexdigest(), "bytes": len(content)}

    def read(self, split: str, name: str, view: int = 0) -> np.ndarray:
        """Return one view of an array as committed so far: `[N, *tail]`, as stored."""
        array = zarr.open_array(self.folder / split / name, mode="r", config={"read_missing_chunks": False})
        return np.asarray(array[view] if self.layout.arrays[name].per_view else array[:])

    def _record_path(self, block: Block) -> Path:
        return self.folder / RECORDS / f"{block.key}.json"

    def seal(self, details: Mapping[str, Any]) -> Manifest:
        """Write the manifest over all records: from now on the store is readable, and never written again."""
        records = read_records(self.folder, self.layout)
        errors = [record["error"] for record in records.values() if record["error"]]
        for leftover in self.folder.rglob("*.partial"):  # of a writer that was killed between write and rename
            leftover.unlink(missing_ok=True)
        digests = {path: hashlib.sha256(content).hexdigest() for path, content in self.metadata.items()}
        manifest = Manifest(
            kind=self.kind,
            name=self.name,
            config=self.config,
            digests={**digests, RECORDS: records_digest(records)},
            metrics={"codec_error": combine_errors(errors)} if errors else {},
            details={
                **details,
                "block_rows": self.layout.block_rows,
                "splits": {k: list(v) for k, v in self.layout.splits.items()},
                "arrays": {
                    k: {"tail": list(v.tail), "dtype": v.dtype, "per_view": v.per_view}
                    for k, v in self.layout.arrays.items()
                },
            },
        )
        manifest.write(self.folder)
        return manifest


def read_records(folder: Path, layout: Layout) -> dict[str, dict[str, Any]]:
    """Return every block's commit record by key. Raises StillroomError when one is missing or unreadable."""
    records = {}
    for block in layout.blocks:
        path = folder / RECORDS / f"{block.key}.json"
        try:
            records[block.key] = _record_of(block, layout, path.read_bytes())
        except (OSError, ValueError, RecursionError) as error:
            raise StillroomError(
                f"{path}: found no readable commit record ({error}); expected one for {block.split} "
                f"view {block.view} rows {block.start}-{block.stop}; delete the folder and rebuild the store"
            ) from error
    return records


def _record_of(block: Block, layout: Layout, content: bytes) -> dict[str, Any]:
    """Return a record as it was committed. Raises ValueError when it is not this block's."""
    record = json.loads(content)
    if not isinstance(record, dict) or record.get("block") != [block.split, block.view, block.start, block.stop]:
        raise ValueError("it is not that block's")
    if set(record.get("chunks", ())) != {layout.chunk_path(block, name) for name in layout.arrays_of(block)}:
        raise ValueError("it lists other chunks")
    return record


def records_digest(records: Mapping[str, Any]) -> str:
    """Return the sha256 over all records: what the manifest seals."""
    return hashlib.sha256(canonical_json(records).encode()).hexdigest()


def fill(
    store: StoreWriter,
    compute: Callable[[Block], Computed],
    *,
    run: Run = map,
    on_block: Callable[[Block], None] = lambda block: None,
    details: Callable[[], Mapping[str, Any]] = dict,
) -> Filled:
    """Compute, write and commit every block that is missing, then seal the store.

    `run` is anything with the contract of `map` (threads, ranks, Ray): blocks are independent and idempotent.
    `details()` is asked once, at the seal. Costs are added to the store's `cost.json`, also when interrupted.

    Raises: StaleStoreError when the store in the folder was, or was being, made from something else.
    """
    manifest = read_manifest(store.folder)
    if manifest is not None:
        check_fresh(manifest, store.config, store.folder)
        return Filled()
    store.prepare()
    missing, costs, started = store.missing(), dict[str, float](), time.perf_counter()
    done: list[Block] = []

    def one(block: Block) -> Block:
        computed = compute(block)
        begun = time.perf_counter()
        store.commit(block, computed)
        for key, seconds in {**computed.seconds, "write_seconds": time.perf_counter() - begun}.items():
            costs[key] = costs.get(key, 0.0) + seconds
        return block

    try:
        for block in run(one, missing):
            done.append(block)
            on_block(block)
    finally:
        rows, seconds = sum(map(len, done)), time.perf_counter() - started
        if done:
            write_cost(store.folder, {**costs, "seconds": seconds, "rows": rows})
    store.seal(details())
    return Filled(len(done), rows, seconds)
