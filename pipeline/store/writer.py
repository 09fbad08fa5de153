"""Writing a store: chunks first, then their record, then the manifest over all records.

Every file is written whole under a name of its own, synced, renamed, and its folder synced. Names are given while the
store's lock is held and only to a block that has no record yet: of two writers the first to commit a block wins, the
other's work on it is dropped, and nothing that was committed is ever written again.
"""

import contextlib
import hashlib
import json
import os
import shutil
import stat
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from threading import Thread
from typing import Any, Self

import numpy as np

from pipeline.errors import StaleStoreError, StillroomError
from pipeline.lineage import (
    MANIFEST,
    Manifest,
    differences,
    file_digest,
    fingerprint,
    locked,
    named,
    partial_name,
    read_file,
    read_manifest,
    sync_folder,
    write_durably,
)
from pipeline.store.chunks import crc32c, load, pack
from pipeline.store.codecs import combine_errors
from pipeline.store.describe import MAX_METADATA_BYTES
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

ROOT, PARTIAL = "zarr.json", "*.partial"
MADE_FROM = "made_from"  # the attribute that holds the config: an unfinished store has no manifest to say it
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
        self._synced = set[Path]()  # folders of chunks whose way up is known to be durable
        self.fingerprint = fingerprint(config)
        self.attributes = dict(attributes)
        said = {"format": FORMAT, "kind": kind, "fingerprint": self.fingerprint, MADE_FROM: dict(config), **attributes}
        self.metadata = layout.metadata({"stillroom": {**said, "seal": attributes_seal(said)}}, constants)

    def prepare(self) -> None:
        """Write the Zarr metadata. Raises StaleStoreError, naming the fields, when another store's lies there."""
        _make(self.folder)
        with locked(self.folder):
            for folder in self._strange_folders():
                raise StillroomError(
                    f"{folder}: found a link or a file; expected a folder of the store itself; delete it and run again"
                )
            self._check_begun()
            for path, content in self.metadata.items():  # the root's last: where it is, all is
                if not (self.folder / path).exists():
                    write_durably(self.folder / path, content)
            (self.folder / RECORDS).mkdir(exist_ok=True)
            sync_folder(self.folder)

    def _check_begun(self) -> None:
        for path in sorted(self.metadata, key=lambda path: path != ROOT):  # the root's first: it says what for
            found, wanted = _content(self.folder / path), self.metadata[path]
            if found is not None and found != wanted:
                fields = ", ".join(_fields(_attributes(found), _attributes(wanted)))
                raise StaleStoreError(
                    f"{self.folder / path}: found the metadata of another store; expected that of {self.name!r}"
                    f"{fields and ': another '}{fields}; delete {self.folder} and run again"
                )

    def _strange_folders(self) -> Iterator[Path]:
        """Yield what is no folder where one belongs: through a link we would write outside of the store."""
        files = {*self.metadata, f"{RECORDS}/0"}
        for block in self.layout.blocks:
            files.update(self.layout.chunk_path(block, name) for name in self.layout.arrays_of(block))
        parents = {parent.as_posix() for path in files for parent in PurePosixPath(path).parents}
        for place in sorted(parents - {"."}):  # a folder before what is in it
            if not _is_at(self.folder / place, stat.S_ISDIR):
                yield self.folder / place

    def check_fresh(self, manifest: Manifest) -> None:
        """Raise StaleStoreError, naming the fields that differ, unless a finished store is the one wanted."""
        content, wanted = _content(self.folder / ROOT), _attributes(self.metadata[ROOT])
        is_sealed = content is not None and hashlib.sha256(content).hexdigest() == manifest.digests.get(ROOT)
        found = _attributes(content) if content is not None and is_sealed else wanted
        fields = _fields({**found, MADE_FROM: manifest.config}, wanted)
        if fields:
            raise StaleStoreError(
                f"{self.folder}: made from another {', '.join(fields)}; delete the folder and run again"
            )

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
        with locked(self.folder):
            if (self.folder / MANIFEST).exists():  # sealed by another writer: what is damaged is told to who reads it
                return
            for block in blocks:
                if self.is_sound(block):  # asked again: it may be new by now
                    continue
                _remove(record_path(self.folder, block))
                for name in self.layout.arrays_of(block):
                    chunk = self.folder / self.layout.chunk_path(block, name)
                    if not _is_at(chunk, stat.S_ISREG):
                        _remove(chunk)  # a folder can't be replaced
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
            with locked(self.folder):
                if self.is_committed(block):
                    return False
                self._give_names(written)
                record = make_record(self.fingerprint, block, chunks, computed.error)
                write_durably(record_path(self.folder, block), record)
            return True
        finally:
            for partial in written.values():
                with contextlib.suppress(OSError):  # a disk that can't be written: what stopped us says so
                    partial.unlink(missing_ok=True)

    def _write_chunk(self, block: Block, name: str, arrays: Arrays, partial: Path) -> dict[str, Any]:
        spec, values = self.layout.arrays[name], arrays[name]
        if values.shape != (len(block), *spec.tail) or values.dtype != np.dtype(spec.dtype):
            raise ValueError(f"{name}: got {values.dtype} {values.shape} for {spec.dtype} {(len(block), *spec.tail)}")
        content = pack(values, self.layout.chunk_rows(block.split), spec.fill_value, spec.shuffle)
        with _Sha256(content) as digest:
            crc = crc32c(content)
            partial.parent.mkdir(parents=True, exist_ok=True)
            with named(self.folder / self.layout.chunk_path(block, name)), partial.open("wb") as file:
                file.write(content)
                file.write(crc)
                file.flush()
                os.fsync(file.fileno())
        return {
            "sha256": digest.of_all(crc),
            "bytes": len(content) + len(crc),
            "crc32c": int.from_bytes(crc, "little"),
        }

    def _give_names(self, written: Mapping[Path, Path]) -> None:
        """Rename chunks to what they are and sync their folders.

        The first time also all folders above, up to the store's: any may be as new as the chunk, and whoever made it
        may have died before it was synced.
        """
        for target, partial in written.items():
            with named(target):
                partial.replace(target)
        folders = {target.parent for target in written}
        above = {self.folder / p for f in folders - self._synced for p in f.relative_to(self.folder).parents}
        for folder in sorted(folders | above):
            sync_folder(folder)
        self._synced |= folders

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
            self.check_fresh(manifest)
            self._check_layout(manifest)
        with locked(self.folder):
            for folder in self._strange_folders():
                folder.unlink()
            for path in self.metadata:
                if not _is_at(self.folder / path, stat.S_ISREG):
                    _remove(self.folder / path)
            for path, wanted in (manifest.digests if manifest else {}).items():  # while the seal still tells damage
                target = self.folder / path
                if path in self.metadata and target.exists() and file_digest(target) != wanted:
                    target.unlink()
                    sync_folder(target.parent)
            _remove(self.folder / MANIFEST)
            sync_folder(self.folder)

    def _check_layout(self, manifest: Manifest) -> None:
        """Raise StaleStoreError where this release lays out other blocks: it could not make the damaged ones again."""
        wanted = self.layout.description()
        fields = differences({key: manifest.details.get(key) for key in wanted}, wanted)
        if fields:
            raise StaleStoreError(
                f"{self.folder}: laid out with another {', '.join(fields)}; delete the folder and run again"
            )

    def seal(self, details: Mapping[str, Any]) -> Manifest:
        """Write the manifest over all records: from now on the store is readable, and never written again."""
        with locked(self.folder):
            found = read_manifest(self.folder)
            if found is not None:  # another writer was first
                return found
            manifest = self._manifest(read_records(self.folder, self.layout, self.fingerprint), details)
            _sweep(self.folder)
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
    """The sha256 of a chunk, computed beside its CRC and its write where it is large: in a thread that ends with it.

    A pool would be gone in a process that forks, and wait there for ever.
    """

    def __init__(self, content: np.ndarray | bytes):
        self._digest = hashlib.sha256()
        self._thread: Thread | None = None
        if len(content) < HASHED_BESIDE:
            self._digest.update(content)
        else:
            self._thread = Thread(target=self._digest.update, args=(content,), name="stillroom-sha256")
            self._thread.start()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if self._thread is not None:
            self._thread.join()

    def of_all(self, crc: bytes) -> str:
        """Return the digest of the content and its CRC."""
        self._digest.update(crc)
        return self._digest.hexdigest()


def _make(folder: Path) -> None:
    """Make a folder and whatever is missing above it, so that a power cut doesn't take it back."""
    missing = [each for each in (folder, *folder.parents) if not each.exists()]
    folder.mkdir(parents=True, exist_ok=True)
    for each in reversed(missing):
        sync_folder(each.parent)


def sweep(folder: Path) -> None:
    """Remove what killed writers left half written in a finished store, where none that lives needs it any more."""
    with contextlib.suppress(OSError):  # on a disk that can't be written it stays, and harms nothing
        if any(folder.rglob(PARTIAL)):
            with locked(folder):
                _sweep(folder)


def _sweep(folder: Path) -> None:
    for leftover in folder.rglob(PARTIAL):
        _remove(leftover)


def _content(path: Path) -> bytes | None:
    """Return a metadata file's bytes, None when there is none, b"" when it is none of ours by its size alone."""
    try:
        return read_file(path, MAX_METADATA_BYTES)
    except FileNotFoundError:
        return None
    except ValueError:
        return b""


def _is_at(path: Path, is_kind: Callable[[int], bool]) -> bool:
    """Whether nothing is there, or something of this kind and no link."""
    try:
        return is_kind(path.lstat().st_mode)
    except FileNotFoundError:
        return True


def _remove(path: Path) -> None:
    """Remove a file, a link but not what it leads to, a pipe, or a folder."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    elif os.path.lexists(path):  # most often there is nothing
        path.unlink(missing_ok=True)


def _attributes(content: bytes) -> dict[str, Any]:
    """Return what a `zarr.json` says: of the store where it is the root's, {} when it is no JSON."""
    try:
        document = json.loads(content)
        attributes = document.get("attributes", {}).get("stillroom", document)
        return dict(attributes)
    except (ValueError, TypeError, AttributeError, RecursionError):
        return {}


def _fields(found: Mapping[str, Any], wanted: Mapping[str, Any]) -> list[str]:
    """Return in which fields two stores differ: fields of the plan rather than its fingerprint."""
    made_from = differences(found.get(MADE_FROM, {}), wanted.get(MADE_FROM, {})) if MADE_FROM in found else []
    fields = dict.fromkeys([*made_from, *differences(_apart(found), _apart(wanted))])
    is_told = any(field.startswith("plan.") for field in fields)
    return [field for field in fields if not (is_told and field.startswith("plan "))]


def _apart(attributes: Mapping[str, Any]) -> dict[str, Any]:
    """Return the attributes apart from the config, and from what follows from the others."""
    return {k: v for k, v in attributes.items() if k not in (MADE_FROM, "fingerprint", "seal")}


def attributes_seal(attributes: Mapping[str, Any]) -> str:
    """Return the seal over all attributes but itself: an unfinished store, too, is resumed as it was begun."""
    return fingerprint({key: value for key, value in attributes.items() if key != "seal"})
