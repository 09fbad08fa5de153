"""Writing a store: chunks first, then their record, then the manifest over all records.

Every file is written whole under a name of its own, synced, renamed, and its folder synced. Names are given while the
store's lock is held and only to a block that has no record yet: of two writers the first to commit a block wins, the
other's work on it is dropped, and nothing that was committed is ever written again.
"""

import contextlib
import fcntl
import hashlib
import json
import os
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from threading import Thread
from typing import Any

import numpy as np

from pipeline.errors import StaleStoreError
from pipeline.lineage import (
    MANIFEST,
    Manifest,
    check_fresh,
    differences,
    file_digest,
    fingerprint,
    partial_name,
    read_manifest,
    sync_folder,
    write_durably,
)
from pipeline.store.chunks import load, pack
from pipeline.store.codecs import combine_errors
from pipeline.store.layout import Block, Layout
from pipeline.store.records import (
    RECORDS,
    bytes_per_row,
    make_record,
    read_record,
    read_records,
    record_path,
    records_digest,
)

ROOT = "zarr.json"
FORMAT = 2  # of stores; format 1 (no crc32c in records, codecs by bare name) is still read
Arrays = Mapping[str, np.ndarray]
HASHED_BESIDE = 1 << 20  # bytes from which hashing pays for a thread of its own, beside the write


@dataclass(frozen=True)
class Computed:
    """A block's content: one array `[n, ...]` per array of the layout, and what was measured while making it."""

    arrays: Arrays
    error: Mapping[str, float] | None = None
    seconds: Mapping[str, float] = field(default_factory=dict)


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
        constants: Arrays | None = None,
    ):
        """`attributes` and `constants` (arrays of no row) are written with the Zarr metadata and sealed with it."""
        self.folder, self.layout, self.kind, self.name, self.config = folder, layout, kind, name, config
        self.fingerprint = fingerprint(config)
        own = {"format": FORMAT, "kind": kind, "fingerprint": self.fingerprint}
        self.metadata = layout.metadata({"stillroom": {**own, **attributes}}, constants)

    @contextlib.contextmanager
    def locked(self) -> Iterator[None]:
        """Hold the store's lock; a writer that dies lets go of it."""
        descriptor = os.open(self.folder, os.O_RDONLY)
        try:
            with contextlib.suppress(OSError):  # no locks on this file system: digests still tell a mixture
                fcntl.flock(descriptor, fcntl.LOCK_EX)
            yield
        finally:
            os.close(descriptor)

    def prepare(self) -> None:
        """Write the Zarr metadata. Raises StaleStoreError, naming the fields, when another store's lies there."""
        self.folder.mkdir(parents=True, exist_ok=True)
        with self.locked():
            for path, content in self.metadata.items():
                target = self.folder / path
                if target.exists() and target.read_bytes() != content:
                    raise StaleStoreError(
                        f"{target}: found the metadata of another store; expected that of {self.name!r}"
                        f"{_differing(target.read_bytes(), content)}; delete {self.folder} and run again"
                    )
                if not target.exists():
                    write_durably(target, content)
            (self.folder / RECORDS).mkdir(exist_ok=True)
            sync_folder(self.folder)

    def check_fresh(self, manifest: Manifest) -> None:
        """Raise StaleStoreError, naming the fields that differ, unless a finished store is the one wanted."""
        check_fresh(manifest, self.config, self.folder)
        found, wanted = self.folder / ROOT, self.metadata[ROOT]
        what = _differing(found.read_bytes(), wanted) if found.exists() else ""
        if what:
            raise StaleStoreError(f"{self.folder}: made from{what.removeprefix(':')}; delete the folder and run again")

    def missing(self) -> list[Block]:
        """Return the blocks without a sound commit record and sound chunks, in order."""
        return [block for block in self.layout.blocks if not self.is_sound(block)]

    def is_committed(self, block: Block) -> bool:
        """Whether a block has its record, also one that another writer has just written."""
        return record_path(self.folder, block).exists()

    def is_sound(self, block: Block) -> bool:
        """Whether a block's record is this store's and every chunk has the bytes it says."""
        try:
            record = read_record(self.folder, self.layout, block, self.fingerprint)
            for name in self.layout.arrays_of(block):
                self._load(block, name, record)
        except (OSError, ValueError, TypeError, RecursionError):
            return False
        return True

    def _load(self, block: Block, name: str, record: Mapping[str, Any]) -> np.ndarray:
        spec, path = self.layout.arrays[name], self.layout.chunk_path(block, name)
        out, chunk = np.empty((self.layout.chunk_rows(block.split), *spec.tail), spec.dtype), record["chunks"][path]
        load(self.folder / path, out, spec.shuffle, num_bytes=chunk["bytes"], crc32c=chunk["crc32c"], sha256=None)
        return out[: len(block)]

    def forget(self, blocks: Iterable[Block]) -> None:
        """Drop the records of blocks that are not sound, so that they are computed and committed anew."""
        with self.locked():
            for block in blocks:
                if self.is_committed(block) and not self.is_sound(block):  # asked again: it may be new by now
                    record_path(self.folder, block).unlink(missing_ok=True)
            sync_folder(self.folder / RECORDS)

    def commit(self, block: Block, computed: Computed) -> bool:
        """Write a block's chunks, make them durable, then write its record; False when it had one already."""
        written: dict[Path, Path] = {}
        chunks: dict[str, dict[str, Any]] = {}
        try:
            for name in self.layout.arrays_of(block):
                target = self.folder / self.layout.chunk_path(block, name)
                written[target] = target.with_name(partial_name(target.name))
                chunks[self.layout.chunk_path(block, name)] = self._write_chunk(
                    block, name, computed.arrays, written[target]
                )
            with self.locked():
                if self.is_committed(block):
                    return False
                self._give_names(written)
                record = make_record(self.fingerprint, block, chunks, computed.error)
                write_durably(record_path(self.folder, block), record)
            return True
        finally:
            for partial in written.values():
                partial.unlink(missing_ok=True)

    def _write_chunk(self, block: Block, name: str, arrays: Arrays, partial: Path) -> dict[str, Any]:
        spec, values = self.layout.arrays[name], arrays[name]
        if values.shape != (len(block), *spec.tail) or values.dtype != np.dtype(spec.dtype):
            raise ValueError(f"{name}: got {values.dtype} {values.shape} for {spec.dtype} {(len(block), *spec.tail)}")
        content, crc = pack(values, self.layout.chunk_rows(block.split), spec.fill_value, spec.shuffle)
        digest = _Sha256(content, crc)
        partial.parent.mkdir(parents=True, exist_ok=True)
        try:
            with partial.open("wb") as file:
                file.write(content)
                file.write(crc)
                file.flush()
                os.fsync(file.fileno())
        except OSError as error:
            error.filename = error.filename or str(self.folder / self.layout.chunk_path(block, name))
            raise
        finally:
            sha256 = digest.result()
        return {"sha256": sha256, "bytes": len(content) + len(crc), "crc32c": int.from_bytes(crc, "little")}

    def _give_names(self, written: Mapping[Path, Path]) -> None:
        """Rename chunks to what they are and sync their folders, up to the store's: any may be as new as the chunk."""
        for target, partial in written.items():
            partial.replace(target)
        for folder in sorted({parent for target in written for parent in target.relative_to(self.folder).parents}):
            sync_folder(self.folder / folder)

    def read(self, split: str, name: str, view: int = 0) -> np.ndarray:
        """Return one view of an array as committed so far: `[N, *tail]`, as stored. Raises DamagedChunk."""
        view = view if self.layout.arrays[name].per_view else 0
        blocks = [block for block in self.layout.blocks if (block.split, block.view) == (split, view)]
        records = [read_record(self.folder, self.layout, block, self.fingerprint) for block in blocks]
        return np.concatenate([self._load(b, name, record) for b, record in zip(blocks, records, strict=True)])

    def unseal(self, manifest: Manifest | None) -> None:
        """Take the seal off a store with damage, so that `fill` rebuilds what is not sound and seals it again.

        `manifest` is None where it was damaged itself. Raises StaleStoreError when it is not the store wanted.
        """
        if manifest is not None:
            check_fresh(manifest, self.config, self.folder)
        with self.locked():
            (self.folder / MANIFEST).unlink(missing_ok=True)
            for path, wanted in (manifest.digests if manifest else {}).items():
                target = self.folder / path
                if path in self.metadata and target.exists() and file_digest(target) != wanted:
                    target.unlink()
            sync_folder(self.folder)

    def seal(self, details: Mapping[str, Any]) -> Manifest:
        """Write the manifest over all records: from now on the store is readable, and never written again."""
        records = read_records(self.folder, self.layout, self.fingerprint)
        manifest = self._manifest(records, details)
        with self.locked():
            found = read_manifest(self.folder)
            if found is not None:  # another writer was first
                return found
            for leftover in self.folder.rglob("*.partial"):  # of a writer that was killed between write and rename
                leftover.unlink(missing_ok=True)
            manifest.write(self.folder)
        return manifest

    def _manifest(self, records: Mapping[str, Any], details: Mapping[str, Any]) -> Manifest:
        errors = [record["error"] for record in records.values() if record["error"]]
        digests = {path: hashlib.sha256(content).hexdigest() for path, content in self.metadata.items()}
        metrics: dict[str, Any] = {"bytes_per_row": bytes_per_row(self.layout, records)}
        if errors:
            metrics["codec_error"] = combine_errors(errors)
        return Manifest(
            kind=self.kind,
            name=self.name,
            config=self.config,
            digests={**digests, RECORDS: records_digest(records)},
            metrics=metrics,
            details={**details, **self.layout.description()},
        )


class _Sha256:
    """The sha256 of a chunk, computed beside its write where it is large: in a thread that ends with it.

    A pool would be gone in a process that forks, and wait there for ever.
    """

    def __init__(self, content: np.ndarray | bytes, crc: bytes):
        self._digest = hashlib.sha256()
        self._thread = Thread(target=self._update, args=(content, crc), name="stillroom-sha256")
        if len(content) >= HASHED_BESIDE:
            self._thread.start()
        else:
            self._update(content, crc)

    def _update(self, content: np.ndarray | bytes, crc: bytes) -> None:
        self._digest.update(content)
        self._digest.update(crc)

    def result(self) -> str:
        if self._thread.ident is not None:
            self._thread.join()
        return self._digest.hexdigest()


def _differing(found: bytes, wanted: bytes) -> str:
    """Return in which fields two metadata files differ, "" when one isn't JSON."""
    try:
        fields = differences(_attributes(found), _attributes(wanted))
    except (ValueError, RecursionError):
        return ""
    return f": another {', '.join(fields)}" if fields else ""


def _attributes(content: bytes) -> Any:
    document = json.loads(content)
    attributes = document.get("attributes", {}).get("stillroom", document)
    return {key: value for key, value in attributes.items() if key != "fingerprint"}  # it follows from the others
