"""Verify: read every byte of a store and say what is wrong with it, one fault a line."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from pipeline.errors import StillroomError
from pipeline.lineage import COST, MANIFEST, read_manifest
from pipeline.store.fill import RECORDS
from pipeline.store.layout import Block
from pipeline.store.reader import MAKE_WITH, Store, chunk_fault


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


def verify(folder: Path) -> list[Fault]:
    """Return every fault of a store: manifest, records, metadata, chunks, stray files. Empty means sound."""
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
    return [*_chunk_faults(store), *_stray_files(store)]


def _chunk_faults(store: Store) -> Iterator[Fault]:
    for block in store.layout.blocks:
        chunks = store.records[block.key]["chunks"]
        for name in store.layout.arrays_of(block):
            path = store.layout.chunk_path(block, name)
            fault = chunk_fault(store.folder / path, chunks[path])
            if fault is None:
                fault = _unreadable(store, block, name)
            if fault:
                rows = f"{block.split} view {block.view} rows {block.start}-{block.stop}"
                yield Fault(str(store.folder), name, rows, fault)


def _unreadable(store: Store, block: Block, name: str) -> str | None:
    try:
        store.read_block(block, name)
    except Exception as error:  # whatever Zarr's codecs raise on bytes they can't decode
        return f"cannot be decoded ({type(error).__name__}: {error})"
    return None


def _stray_files(store: Store) -> Iterator[Fault]:
    expected = {MANIFEST, COST, *store.manifest.digests} - {RECORDS}
    for block in store.layout.blocks:
        expected.add(f"{RECORDS}/{block.key}.json")
        expected.update(store.layout.chunk_path(block, name) for name in store.layout.arrays_of(block))
    for path in sorted(store.folder.rglob("*")):
        relative = path.relative_to(store.folder).as_posix()
        if not path.is_dir() and relative not in expected:
            yield Fault(str(store.folder), relative, "no rows", "a file that belongs to no block; delete it")
