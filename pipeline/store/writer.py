"""Writing a store: chunks first, then their record, then the manifest over all records.

Every file is written whole under a name of its own, synced, renamed, and its folder synced. Names are given while the
store's lock is held and only to a block that has no record yet: of two writers the first to commit a block wins, the
other's work on it is dropped, and nothing that was committed is ever written again.
"""

import contextlib
import hashlib
import os
import stat
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any

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
    read_manifest,
    sync_folder,
    write_durably,
)
from pipeline.store.chunks import crc32c, load, pack
from pipeline.store.codecs import combine_errors
from pipeline.store.files import Sha256, content_of, is_at, make_folder, remove, sweep_begun
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
from pipeline.store.told import FORMAT, MADE_FROM, ROOT, attributes_seal, differing_fields, told_by

Arrays = Mapping[str, np.ndarray]


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
        make_folder(self.folder)
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
            found, wanted = content_of(self.folder / path), self.metadata[path]
            if found is not None and found != wanted:
                fields = ", ".join(differing_fields(told_by(found), told_by(wanted)))
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
            if not is_at(self.folder / place, stat.S_ISDIR):
                yield self.folder / place

    def check_fresh(self, manifest: Manifest) -> None:
        """Raise StaleStoreError, naming the fields that differ, unless a finished store is the one wanted."""
        content, wanted = content_of(self.folder / ROOT), told_by(self.metadata[ROOT])
        is_sealed = content is not None and hashlib.sha256(content).hexdigest() == manifest.digests.get(ROOT)
        found = told_by(content) if content is not None and is_sealed else wanted
        fields = differing_fields({**found, MADE_FROM: manifest.config}, wanted)
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
                remove(record_path(self.folder, block))
                for name in self.layout.arrays_of(block):
                    chunk = self.folder / self.layout.chunk_path(block, name)
                    if not is_at(chunk, stat.S_ISREG):
                        remove(chunk)  # a folder can't be replaced
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
        with Sha256(content) as digest:
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
                if not is_at(self.folder / path, stat.S_ISREG):
                    remove(self.folder / path)
            for path, wanted in (manifest.digests if manifest else {}).items():  # while the seal still tells damage
                target = self.folder / path
                if path in self.metadata and target.exists() and file_digest(target) != wanted:
                    target.unlink()
                    sync_folder(target.parent)
            remove(self.folder / MANIFEST)
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
            sweep_begun(self.folder)
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
