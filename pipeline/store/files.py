"""Files and folders of a store as they lie on disk: made, looked at and removed, and their bytes hashed."""

import contextlib
import hashlib
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from threading import Thread
from typing import Self

import numpy as np

from pipeline.lineage import locked, read_file, sync_folder
from pipeline.store.describe import MAX_METADATA_BYTES

PARTIAL = "*.partial"
HASHED_BESIDE = 1 << 20  # bytes from which hashing pays for a thread of its own, beside the write


class Sha256:
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


def make_folder(folder: Path) -> None:
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
                sweep_begun(folder)


def sweep_begun(folder: Path) -> None:
    """Remove what is half written in a store whose lock is held."""
    for leftover in folder.rglob(PARTIAL):
        remove(leftover)


def content_of(path: Path) -> bytes | None:
    """Return a metadata file's bytes, None when there is none, b"" when it is none of ours by its size alone."""
    try:
        return read_file(path, MAX_METADATA_BYTES)
    except FileNotFoundError:
        return None
    except ValueError:
        return b""


def is_at(path: Path, is_kind: Callable[[int], bool]) -> bool:
    """Whether nothing is there, or something of this kind and no link."""
    try:
        return is_kind(path.lstat().st_mode)
    except FileNotFoundError:
        return True


def remove(path: Path) -> None:
    """Remove a file, a link but not what it leads to, a pipe, or a folder."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    elif os.path.lexists(path):  # most often there is nothing
        path.unlink(missing_ok=True)
