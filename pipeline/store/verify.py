"""Verify: read every byte of a store and say what is wrong with it, one fault a line."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import zarr

from pipeline.errors import CorruptBlockError, StillroomError
from pipeline.lineage import COST, MANIFEST, read_manifest
from pipeline.store.layout import Block
from pipeline.store.reader import MAKE_WITH, Store
from pipeline.store.records import RECORDS


@dataclass(frozen=True)
class Fault:
    """One thing that is wrong: where, and what."""

    store: str
    array: str
    rows: str
    fault: str

    def __str__(self) -> str:
        return f"{self.store}: {self.array} {self.rows}: {self.fault}"


def is_store(folder: Path) -> bool:
    """Say whether a folder is, or was meant to be, a store."""
    return (folder / RECORDS).is_dir() or ((folder / MANIFEST).exists() and (folder / "zarr.json").exists())


def verify(folder: Path, *, thorough: bool = True) -> list[Fault]:
    """Return every fault of a store: manifest, records, metadata, chunks, stray files. Empty means sound.

    `thorough` recomputes every sha256 and has Zarr itself decode every chunk; else each chunk is read once and its
    crc32c compared with its commit record, which is as fast as the disk.
    """
    try:
        manifest = read_manifest(folder)
        if manifest is None:
            records = len(list((folder / RECORDS).glob("*.json")))
            fault = f"not finished ({records} blocks committed, no manifest); run the stage that makes it"
            return [Fault(str(folder), MANIFEST, "all rows", fault)]
        if manifest.kind not in MAKE_WITH:
            return [Fault(str(folder), MANIFEST, "all rows", f"a {manifest.kind}, not a store")]
        store = Store(folder, manifest.kind)
    except StillroomError as error:
        return [Fault(str(folder), MANIFEST, "all rows", str(error))]
    return [*_chunk_faults(store, thorough), *_stray_files(store)]


def _chunk_faults(store: Store, thorough: bool) -> Iterator[Fault]:
    for block in store.layout.blocks:
        for name in store.layout.arrays_of(block):
            fault = _chunk_fault(store, block, name, thorough) or (thorough and _zarr_fault(store, block, name))
            if fault:
                rows = f"{block.split} view {block.view} rows {block.start}-{block.stop}"
                yield Fault(str(store.folder), name, rows, fault)


def _chunk_fault(store: Store, block: Block, name: str, thorough: bool) -> str | None:
    spec = store.layout.arrays[name]
    out = np.empty((store.layout.chunk_rows(block.split), *spec.tail), spec.dtype)
    try:
        store.read_block_into(block, name, out, thorough=thorough)
    except CorruptBlockError as error:
        return str(error.__cause__)
    return None


def _zarr_fault(store: Store, block: Block, name: str) -> str | None:
    """Return what is wrong when Zarr, which knows nothing of our reader, is asked for the same rows."""
    rows = slice(block.start, block.stop)
    try:
        array = zarr.open_array(store.folder / block.split / name, mode="r", config={"read_missing_chunks": False})
        theirs = np.asarray(array[(block.view, rows) if store.layout.arrays[name].per_view else rows])
        ours = store.read_block(block, name)
    except Exception as error:  # whatever Zarr's codecs raise on bytes they can't decode
        return f"cannot be decoded ({type(error).__name__}: {error})"
    if theirs.dtype != ours.dtype or theirs.shape != ours.shape or theirs.tobytes() != ours.tobytes():
        return "Zarr decodes it to other numbers: manifest and zarr.json describe it differently"
    return None


def _stray_files(store: Store) -> Iterator[Fault]:
    expected = {MANIFEST, COST, *store.manifest.digests} - {RECORDS}
    for block in store.layout.blocks:
        expected.add(f"{RECORDS}/{block.key}.json")
        expected.update(store.layout.chunk_path(block, name) for name in store.layout.arrays_of(block))
    for path in sorted(store.folder.rglob("*")):
        relative = path.relative_to(store.folder).as_posix()
        if (path.is_symlink() or not path.is_dir()) and relative not in expected:
            yield Fault(str(store.folder), relative, "no rows", "a file that belongs to no block; delete it")
