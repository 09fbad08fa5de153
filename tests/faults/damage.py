"""What can happen to a file on a disk, and the way back."""

import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from pipeline.lineage import COST
from pipeline.store.records import RECORDS


def flip_bit(path: Path, bit: int) -> None:
    """Flip one bit of a file in place."""
    with path.open("r+b") as file:
        file.seek(bit // 8)
        byte = file.read(1)[0]
        file.seek(bit // 8)
        file.write(bytes([byte ^ 1 << bit % 8]))


@contextmanager
def flipped(path: Path, bit: int) -> Iterator[None]:
    """Flip one bit of a file, and flip it back."""
    flip_bit(path, bit)
    yield
    flip_bit(path, bit)


def bits_of(path: Path) -> int:
    """Return how many bits a file has."""
    return 8 * path.stat().st_size


def swap(one: Path, other: Path) -> None:
    """Give two files each other's name."""
    aside = one.with_name("aside")
    one.rename(aside)
    other.rename(one)
    aside.rename(other)


def _truncate(keep: Callable[[int], int]) -> Callable[[Path], None]:
    return lambda path: os.truncate(path, keep(path.stat().st_size))


def _extend(count: int) -> Callable[[Path], None]:
    return lambda path: path.write_bytes(path.read_bytes() + bytes(count))


def _become_folder(path: Path) -> None:
    path.unlink()
    path.mkdir()
    (path / "0").write_bytes(b"stray")


def _become_pipe(path: Path) -> None:
    path.unlink()
    os.mkfifo(path)


def _become_link(path: Path) -> None:
    """A link to the very same bytes, elsewhere."""
    store = next(folder for folder in path.parents if (folder / RECORDS).exists())
    elsewhere = store.with_name(path.relative_to(store).as_posix().replace("/", "-"))
    path.rename(elsewhere)
    path.symlink_to(elsewhere)


HARMS: dict[str, Callable[[Path], None]] = {
    "first bit flipped": lambda path: flip_bit(path, 0),
    "last bit flipped": lambda path: flip_bit(path, bits_of(path) - 1),
    "zeroed": lambda path: path.write_bytes(bytes(path.stat().st_size)) and None,
    "emptied": _truncate(lambda size: 0),
    "cut to one byte": _truncate(lambda size: 1),
    "cut in half": _truncate(lambda size: size // 2),
    "a byte short": _truncate(lambda size: size - 1),
    "a byte long": _extend(1),
    "a page long": _extend(4096),
    "deleted": Path.unlink,
    "a folder": _become_folder,
    "a pipe": _become_pipe,
    "a link to the same bytes": _become_link,
}


@contextmanager
def harmed(path: Path, harm: str) -> Iterator[None]:
    """Harm a file, and give it back."""
    content = path.read_bytes()
    HARMS[harm](path)
    yield
    if path.is_dir():
        shutil.rmtree(path)
    path.unlink(missing_ok=True)
    path.write_bytes(content)


def state_of(folder: Path) -> dict[str, tuple[int, int, bytes]]:
    """Return inode, time of the last write and bytes of every file of a store but its costs."""
    files = {path.relative_to(folder).as_posix(): path for path in folder.rglob("*") if path.is_file()}
    stats = {name: (path, path.stat()) for name, path in files.items() if name != COST}
    return {name: (status.st_ino, status.st_mtime_ns, path.read_bytes()) for name, (path, status) in stats.items()}


class Kept:
    """A folder that many tests may spoil one after the other: its files as they were, in memory."""

    def __init__(self, folder: Path):
        self.folder = folder
        self._bytes = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
        self._seen = {path: _age(path) for path in self._bytes}

    def give_back(self) -> None:
        """Put back what is missing or was written to since, and take away the rest."""
        found = [Path(parent, name) for parent, folders, files in os.walk(self.folder) for name in (*files, *folders)]
        is_plain = all(path.is_dir() or (path.is_file() and path in self._bytes) for path in found)
        if not is_plain or any(path.is_symlink() for path in found) or not self._seen.keys() <= set(found):
            shutil.rmtree(self.folder)
        for path, content in self._bytes.items():
            if not path.exists() or _stamp(path) != self._seen[path]:
                path.parent.mkdir(parents=True, exist_ok=True)
                path.unlink(missing_ok=True)
                path.write_bytes(content)
                self._seen[path] = _age(path)


def _age(path: Path) -> tuple[int, int, int]:
    """Make a file old, so that any write to it shows, however soon; return its stamp."""
    os.utime(path, ns=(0, 0))
    return _stamp(path)


def _stamp(path: Path) -> tuple[int, int, int]:
    status = path.stat()
    return status.st_ino, status.st_mtime_ns, status.st_size
