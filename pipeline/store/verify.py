"""Verify: read every byte of a store and say what is wrong with it, one fault a line."""

import json
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import zarr

from pipeline.errors import CorruptBlockError, StillroomError, printable
from pipeline.lineage import COST, MANIFEST, read_file, read_manifest
from pipeline.store.attributes import check_attributes
from pipeline.store.describe import MAX_METADATA_BYTES
from pipeline.store.layout import ROW_ARRAYS, Block
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
        return printable(f"{self.store}: {self.array} {self.rows}: {self.fault}").replace("\n", "\\n")


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
        if "classes" in store.attributes or ROW_ARRAYS.keys() <= store.layout.arrays.keys():  # a teacher's, a fusion's
            check_attributes(folder, manifest.kind, store.attributes, store.layout)
    except StillroomError as error:
        return [Fault(str(folder), MANIFEST, "all rows", str(error))]
    return [*_chunk_faults(store, thorough), *_stray_files(store)]


def _chunk_faults(store: Store, thorough: bool) -> Iterator[Fault]:
    arrays: dict[tuple[str, str], Any] = {}
    for block in store.layout.blocks:
        for name in store.layout.arrays_of(block):
            fault = _chunk_fault(store, block, name, thorough) or (thorough and _zarr_fault(store, block, name, arrays))
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


def _zarr_fault(store: Store, block: Block, name: str, arrays: dict[tuple[str, str], Any]) -> str | None:
    """Return what is wrong when Zarr, which knows nothing of our reader, is asked for the same rows.

    `arrays` keeps those that were opened.
    """
    rows, place = slice(block.start, block.stop), (block.split, name)
    try:
        if place not in arrays and not _is_described(store, *place):
            return "Zarr would decode it otherwise: manifest and zarr.json describe it differently"
        if place not in arrays:
            path = store.folder / block.split / name
            arrays[place] = zarr.open_array(path, mode="r", config={"read_missing_chunks": False})
        array = arrays[place]
        theirs = np.asarray(array[(block.view, rows) if store.layout.arrays[name].per_view else rows])
        ours = store.read_block(block, name)
    except Exception as error:  # whatever Zarr's codecs raise on bytes they can't decode
        return f"cannot be decoded ({type(error).__name__}: {error})"
    if theirs.dtype != ours.dtype or theirs.shape != ours.shape or theirs.tobytes() != ours.tobytes():
        return "Zarr decodes it to other numbers: manifest and zarr.json describe it differently"
    return None


def _is_described(store: Store, split: str, name: str) -> bool:
    """Whether an array's zarr.json says what the manifest says: else it could make Zarr take any memory and codec."""
    found = json.loads(read_file(store.folder / split / name / "zarr.json", MAX_METADATA_BYTES))
    spec, (views, samples) = store.layout.arrays[name], store.layout.splits[split]
    rows, outer = store.layout.chunk_rows(split), [views] if spec.per_view else []
    chunk = [*([1] if spec.per_view else []), rows, *spec.tail]
    codecs = ["bytes", *([] if spec.shuffle is None else ["blosc"]), "crc32c"]
    return (
        (found["zarr_format"], found["node_type"], found["data_type"]) == (3, "array", spec.dtype)
        and found["shape"] == [*outer, samples, *spec.tail]
        and found["chunk_grid"] == {"name": "regular", "configuration": {"chunk_shape": chunk}}
        and found["chunk_key_encoding"] == {"name": "default", "configuration": {"separator": "/"}}
        and [codec["name"] for codec in found["codecs"]] == codecs
        and found["codecs"][0].get("configuration", {"endian": "little"}) == {"endian": "little"}
        and not found.get("storage_transformers")
    )


def _stray_files(store: Store) -> Iterator[Fault]:
    expected = {MANIFEST, COST, *store.manifest.digests} - {RECORDS}
    for block in store.layout.blocks:
        expected.add(f"{RECORDS}/{block.key}.json")
        expected.update(store.layout.chunk_path(block, name) for name in store.layout.arrays_of(block))
    for relative in sorted(set(_files_below(str(store.folder))) - expected):
        yield Fault(str(store.folder), relative, "no rows", "a file that belongs to no block; delete it")


def _files_below(folder: str) -> Iterator[str]:
    """Yield every file by relative path, and every link, also one that leads to a folder."""
    for parent, folders, files in os.walk(folder):
        links = [name for name in folders if os.path.islink(f"{parent}/{name}")]
        yield from (f"{parent}/{name}"[len(folder) + 1 :] for name in (*files, *links))
