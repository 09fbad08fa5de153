"""What holds after every fault, told by bytes that were kept outside the store: of a run that nothing happened to."""

import os
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from pipeline.errors import StillroomError
from pipeline.lineage import COST
from pipeline.store import Layout, Store
from pipeline.store.records import RECORDS
from pipeline.store.verify import verify

Truth = Mapping[tuple[str, str, int], np.ndarray]  # numbers by (split, array, view)
Kept = Mapping[str, tuple[int, int, bytes]]  # inode, time of the last write, bytes by path


@dataclass(frozen=True)
class Expected:
    """An uninterrupted store, in memory: its files but the costs, and the numbers in it."""

    kind: str
    layout: Layout
    files: Mapping[str, bytes]
    truth: Truth


def files_of(folder: Path) -> dict[str, bytes]:
    """Return every file that has a name of its own, but the costs: what is half written has none."""
    found, root = {}, str(folder)
    for where, _, names in os.walk(root):
        for name in names:
            path = f"{where}/{name}".removeprefix(f"{root}/")
            if not name.endswith(".partial") and path != COST:
                found[path] = _bytes(f"{where}/{name}")
    return found


def lay_down(folder: Path, files: Mapping[str, bytes]) -> None:
    """Write files kept in memory into a folder."""
    for path, content in files.items():
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / path).write_bytes(content)


def numbers_in(store: Store) -> dict[tuple[str, str, int], np.ndarray]:
    """Return all that a store's reader gives."""
    layout = store.layout
    return {
        (split, name, view): store.read(split, name, view)
        for split, (views, _) in layout.splits.items()
        for name in layout.arrays_in(split)
        for view in range(views)
    }


def expected_of(folder: Path, kind: str, truth: Truth | None = None) -> Expected:
    """Keep an uninterrupted store in memory; without `truth` its numbers are what its reader gives of those bytes."""
    store = Store(folder, kind)
    assert verify(folder) == []
    return Expected(kind, store.layout, files_of(folder), numbers_in(store) if truth is None else truth)


def same_numbers(found: Truth, truth: Truth) -> bool:
    """Whether every array has the numbers it should have, to the bit."""
    return found.keys() == truth.keys() and all(
        found[key].dtype == truth[key].dtype and found[key].tobytes() == truth[key].tobytes() for key in truth
    )


def raised[E: BaseException](kind: type[E], do: Callable[[], object]) -> E | None:
    """Return what doing this raised, None when it did not."""
    try:
        do()
    except kind as error:
        return error
    return None


def check_names(folder: Path, expected: Expected, *, but: Collection[str] = ()) -> None:
    """No name ever holds anything but what it holds in the end: a file is whole or not there."""
    for path, content in files_of(folder).items():
        assert path in but or content == expected.files.get(path), f"{path} holds what it never should"


def check_reader(folder: Path, expected: Expected) -> bool:
    """A reader sees the right numbers or an error that says so; return whether it saw numbers."""
    found = dict[tuple[str, str, int], np.ndarray]()
    error = raised(StillroomError, lambda: found.update(numbers_in(Store(folder, expected.kind))))
    if error is not None:
        assert str(folder) in str(error)
        return False
    assert same_numbers(found, expected.truth), "a reader saw a wrong number"
    return True


def check_whole(folder: Path, expected: Expected) -> None:
    """The store is, byte for byte, the one that nothing happened to, and nothing else lies there."""
    assert files_of(folder) == expected.files
    assert [fault.array for fault in verify(folder, thorough=False)] == []
    assert check_reader(folder, expected)


def committed(folder: Path, expected: Expected) -> dict[str, tuple[int, int, bytes]]:
    """Return the files of every block that has its record, as they are: their inode, last write and bytes."""
    layout, kept = expected.layout, {}
    for block in layout.blocks:
        record = f"{RECORDS}/{block.key}.json"
        if (folder / record).exists():
            paths = [record, *(layout.chunk_path(block, name) for name in layout.arrays_of(block))]
            kept.update({path: _file(folder / path) for path in paths if (folder / path).exists()})
    return kept


def check_kept(folder: Path, before: Kept, *, but: Collection[str] = ()) -> None:
    """What was committed lies where it lay, untouched: neither lost nor written again."""
    for path, file in before.items():
        assert path in but or _file(folder / path) == file, f"{path} was committed, and is lost or written again"


def _file(path: Path) -> tuple[int, int, bytes]:
    status = os.stat(path)
    return status.st_ino, status.st_mtime_ns, _bytes(path)


def _bytes(path: str | Path) -> bytes:
    with open(path, "rb") as file:
        return file.read()
