"""Filling: what is committed is on disk, and killed at any instant and run again the bytes come out the same."""

import contextlib
import os
import re
import signal
import warnings
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from itertools import count
from pathlib import Path

import numpy as np
import pytest
import zarr
from toys import Killed, contents, kill_at, small_blocks

from pipeline.errors import StaleStoreError
from pipeline.lineage import COST, MANIFEST, read_cost, write_durably
from pipeline.store import ArraySpec, Block, Computed, Filled, Layout, Store, StoreWriter, fill
from pipeline.store import writer as module
from pipeline.store.records import RECORDS
from pipeline.store.verify import verify

LAYOUT = Layout(
    {"train": (2, 10), "test": (1, 5)},
    {"values/a": ArraySpec((3,), "float32"), "row": ArraySpec((), "uint64"), "ids": ArraySpec((), "int64", False)},
    rows_per_block=4,
)


def writer(folder: Path, layout: Layout = LAYOUT, **config: object) -> StoreWriter:
    made_from = {"teacher": "t", "dtype": "float32", **config}
    return StoreWriter(
        folder, layout, kind="teacher store", name="toy", config=made_from, attributes={"made_from": made_from}
    )


def compute(block: Block) -> Computed:
    """Numbers that belong to a block's rows, some of them zero."""
    rows = block.positions
    values = np.sin(rows[:, None] + 10 * block.view + np.arange(3) * (block.split == "train")).astype(np.float32)
    arrays = {"values/a": values, "row": rows.astype(np.uint64) * (block.view > 0), "ids": rows * 0}
    return Computed(arrays, None, {"forward_seconds": 0.5})


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store filled without interruption."""
    folder = tmp_path_factory.mktemp("whole")
    assert fill(writer(folder), compute).blocks == len(LAYOUT.blocks)
    return folder


def counting(seen: list[Block]) -> Callable[[Block], Computed]:
    def count(block: Block) -> Computed:
        seen.append(block)
        return compute(block)

    return count


# -- what lies on disk ------------------------------------------------------------------------------------------------


def test_plain_zarr_reads_the_same_numbers(whole):
    group, store = zarr.open_group(whole, mode="r"), Store(whole, "teacher store")
    for split, (views, samples) in LAYOUT.splits.items():
        for view in range(views):
            expected = compute(Block(split, view, 0, 0, samples)).arrays
            assert np.array_equal(group[f"{split}/values/a"][view], expected["values/a"])
            assert np.array_equal(group[f"{split}/row"][view], expected["row"])
            assert np.array_equal(group[f"{split}/ids"][:], expected["ids"])
            for name in LAYOUT.arrays:
                assert np.array_equal(store.read(split, name, view), expected[name])


@pytest.mark.parametrize("view", [1, 0])
def test_arrays_of_samples_are_read_by_any_view_first(whole, view):
    assert np.array_equal(Store(whole, "teacher store").read("train", "ids", view), np.zeros(10))


def test_a_chunk_of_zeros_is_a_file_like_any_other(whole):
    for block in LAYOUT.blocks:
        for name in LAYOUT.arrays_of(block):
            assert (whole / LAYOUT.chunk_path(block, name)).is_file()


def test_what_is_written_is_sound_and_nothing_else_lies_there(whole):
    assert verify(whole) == []
    expected = {MANIFEST, *writer(whole).metadata} | {f"{RECORDS}/{block.key}.json" for block in LAYOUT.blocks}
    expected |= {LAYOUT.chunk_path(block, name) for block in LAYOUT.blocks for name in LAYOUT.arrays_of(block)}
    assert set(contents(whole)) == expected


def test_a_store_is_read_in_the_blocks_it_was_written_in(whole, monkeypatch):
    small_blocks(monkeypatch, 32)  # another release may choose other sizes
    assert Store(whole, "teacher store").layout.block_rows == 4


@pytest.mark.parametrize("wrong", [np.zeros((4, 2), np.float32), np.zeros((4, 3)), np.zeros((3, 3), np.float32)])
def test_an_array_of_another_shape_or_dtype_is_the_callers_bug(tmp_path, wrong):
    def bad(block: Block) -> Computed:
        return Computed({**compute(block).arrays, "values/a": wrong})

    with pytest.raises(ValueError, match=r"values/a: got float\d+ \(\d, \d\) for float32 \(4, 3\)"):
        fill(writer(tmp_path), bad)


def test_threads_fill_a_store_with_the_same_bytes(whole, tmp_path):
    with ThreadPoolExecutor(4) as pool:
        fill(writer(tmp_path), compute, run=pool.map)
    assert contents(tmp_path) == contents(whole)


# -- killed and run again ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("number", range(len(LAYOUT.blocks)))
def test_killed_while_computing_any_block_only_what_is_missing_is_computed_again(whole, tmp_path, number):
    with pytest.raises(Killed):
        fill(writer(tmp_path), kill_at(number, compute))
    assert not (tmp_path / MANIFEST).exists()
    seen: list[Block] = []
    done = fill(writer(tmp_path), counting(seen))
    assert seen == LAYOUT.blocks[number:]
    assert (done.blocks, done.rows) == (len(seen), sum(map(len, seen)))
    assert contents(tmp_path) == contents(whole)


@pytest.mark.parametrize("number", range(len(LAYOUT.blocks)))
def test_killed_between_chunks_and_record_the_block_is_computed_again(whole, tmp_path, monkeypatch, number):
    metadata = len(writer(tmp_path).metadata)
    with monkeypatch.context() as patch:
        patch.setattr(module, "write_durably", kill_at(metadata + number, write_durably))
        with pytest.raises(Killed):
            fill(writer(tmp_path), compute)
    seen: list[Block] = []
    fill(writer(tmp_path), counting(seen))
    assert seen == LAYOUT.blocks[number:]
    assert contents(tmp_path) == contents(whole)


SMALL = Layout({"train": (2, 3)}, {name: LAYOUT.arrays[name] for name in ("row", "ids")}, rows_per_block=3)


def die_at(number: int, folder: Path) -> int:
    """Fill in a process of its own that is killed at its n-th fsync or rename; return its exit code."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # Python's of threads in a process that forks
        child = os.fork()
    if child == 0:
        with contextlib.suppress(BaseException):
            calls = iter(range(1 << 30))
            fsync, replace = os.fsync, Path.replace

            def instant() -> None:
                if next(calls) == number:
                    os.kill(os.getpid(), signal.SIGKILL)

            os.fsync = lambda descriptor: (instant(), fsync(descriptor))[1]
            Path.replace = lambda self, target: (instant(), replace(self, target))[1]
            fill(writer(folder, SMALL), compute)
            os._exit(0)
        os._exit(1)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def test_killed_at_any_instant_and_run_again_the_bytes_are_the_same(tmp_path):
    fill(writer(tmp_path / "whole", SMALL), compute)
    expected = contents(tmp_path / "whole")
    for number in count():
        folder = tmp_path / str(number)
        status = die_at(number, folder)
        assert status in (0, -signal.SIGKILL)
        fill(writer(folder, SMALL), compute)
        assert contents(folder) == expected
        if status == 0:
            break
    assert number > 3 * len(expected), "every file is synced and renamed, and its folder synced"


def test_a_block_is_synced_before_its_record_and_all_records_before_the_manifest(tmp_path, monkeypatch):
    events, replace = [], Path.replace

    def synced(descriptor: int) -> None:
        name = Path(os.readlink(f"/proc/self/fd/{descriptor}")).name
        events.append(("sync", re.sub(r"\.\d+\.[0-9a-f]{8}(?=\.partial$)", "", name)))

    def renamed(self: Path, target: Path) -> Path:
        events.append(("rename", Path(target).name))
        return replace(self, target)

    monkeypatch.setattr(os, "fsync", synced)
    monkeypatch.setattr(Path, "replace", renamed)
    fill(writer(tmp_path, SMALL), compute)
    found = events[events.index(("sync", ".0.partial")) :]  # what comes before lays down the metadata

    def written(path: str) -> tuple[str, str]:
        return "sync", f".{path.rsplit('/')[-1]}.partial"

    synced: set[Path] = set()

    def named(paths: list[str]) -> list[tuple[str, str]]:
        own = {Path(path).parent for path in paths}
        folders = own | {above for folder in own - synced for above in folder.parents}  # any may be as new, once
        synced.update(own)
        names = [folder.name or tmp_path.name for folder in sorted(folders)]
        return [*(("rename", path.rsplit("/")[-1]) for path in paths), *(("sync", name) for name in names)]

    def record(name: str, folder: str) -> list[tuple[str, str]]:
        return [("sync", f".{name}.partial"), ("rename", name), ("sync", folder)]

    layout = writer(tmp_path, SMALL).layout
    wanted = []
    for block in layout.blocks:
        paths = [layout.chunk_path(block, name) for name in layout.arrays_of(block)]
        wanted += [*map(written, paths), *named(paths), *record(f"{block.key}.json", RECORDS)]
    assert found == [*wanted, *record(COST, tmp_path.name), *record(MANIFEST, tmp_path.name)]


def test_what_a_killed_writer_left_half_written_is_swept_away(whole, tmp_path):
    with pytest.raises(Killed):
        fill(writer(tmp_path), kill_at(3, compute))
    for leftover in (
        "train/row/c/0/1.0123.partial",
        f"{RECORDS}/.train-0-1.json.77.partial",
        ".manifest.json.7.partial",
    ):
        (tmp_path / leftover).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / leftover).write_bytes(b"half")
    fill(writer(tmp_path), compute)
    assert contents(tmp_path) == contents(whole)


def test_a_full_disk_loses_nothing(whole, tmp_path, monkeypatch):
    full = OSError(28, "No space left on device")

    def refuse(descriptor: int) -> None:
        raise full

    with monkeypatch.context() as patch:
        with pytest.raises(Killed):
            fill(writer(tmp_path), kill_at(4, compute))
        patch.setattr(os, "fsync", refuse)
        with pytest.raises(OSError, match="No space left"):
            fill(writer(tmp_path), compute)
    seen: list[Block] = []
    fill(writer(tmp_path), counting(seen))
    assert seen == LAYOUT.blocks[4:]
    assert contents(tmp_path) == contents(whole)


# -- sealed, stale, foreign -------------------------------------------------------------------------------------------


def test_a_sealed_store_computes_nothing(whole):
    before = contents(whole)
    seen: list[Block] = []
    assert fill(writer(whole), counting(seen)) == Filled()
    assert seen == []
    assert contents(whole) == before


def test_a_sealed_store_of_another_config_is_stale(whole):
    with pytest.raises(StaleStoreError, match=r"made from another dtype \(found 'float32'; expected 'float64'\)"):
        fill(writer(whole, dtype="float64"), compute)


def test_an_unfinished_store_of_another_config_is_stale(tmp_path):
    with pytest.raises(Killed):
        fill(writer(tmp_path), kill_at(1, compute))
    with pytest.raises(StaleStoreError, match=r"another dtype \(found 'float32'; .*'float64'\); delete"):
        fill(writer(tmp_path, dtype="float64"), compute)


def rebuilt(folder: Path, blocks: list[int], whole: Path) -> None:
    """Assert that a fill makes these blocks again, among those that are missing, and ends with the same bytes."""
    seen: list[Block] = []
    fill(writer(folder), counting(seen))
    assert seen == [block for number, block in enumerate(LAYOUT.blocks) if number in blocks or number >= 4]
    assert contents(folder) == contents(whole)


@pytest.fixture
def begun(tmp_path) -> Path:
    """A store with four committed blocks."""
    with pytest.raises(Killed):
        fill(writer(tmp_path), kill_at(4, compute))
    return tmp_path


def test_the_record_of_another_block_is_never_sealed(begun, whole):
    records = begun / RECORDS
    (records / "train-1-0.json").write_bytes((records / "train-0-0.json").read_bytes())
    rebuilt(begun, [3], whole)


def test_the_record_and_chunks_of_another_store_are_never_sealed(begun, whole, tmp_path_factory):
    other = tmp_path_factory.mktemp("other")
    fill(writer(other, teacher="another"), compute)
    for path in (f"{RECORDS}/train-0-1.json", "train/row/c/0/1"):
        (begun / path).write_bytes((other / path).read_bytes())
    rebuilt(begun, [1], whole)


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"{}", b"\xff", b'{"block": ["train", 1, 0, 4], "chunks": {}}'])
def test_a_record_that_says_nothing_is_never_sealed(begun, whole, content):
    (begun / RECORDS / "train-1-0.json").write_bytes(content)
    rebuilt(begun, [3], whole)


def test_a_chunk_that_rotted_before_the_seal_is_never_sealed(begun, whole):
    path = begun / "train/values/a/c/0/2/0"
    path.write_bytes(bytes(path.stat().st_size))
    rebuilt(begun, [2], whole)


# -- costs and progress -----------------------------------------------------------------------------------------------


def test_costs_of_interrupted_runs_add_up(tmp_path):
    with pytest.raises(Killed):
        fill(writer(tmp_path), kill_at(3, compute))
    assert read_cost(tmp_path)["rows"] == sum(map(len, LAYOUT.blocks[:3]))
    fill(writer(tmp_path), compute)
    cost = read_cost(tmp_path)
    assert cost["rows"] == LAYOUT.rows
    assert cost["forward_seconds"] == 0.5 * len(LAYOUT.blocks)
    assert cost["seconds"] > 0
    assert cost["write_seconds"] > 0


def test_each_block_is_told_and_details_are_asked_for_once(tmp_path):
    told: list[Block] = []
    asked: list[int] = []
    fill(writer(tmp_path), compute, on_block=told.append, details=lambda: asked.append(1) or {"figure": 7})
    assert told == LAYOUT.blocks
    assert asked == [1]
    assert Store(tmp_path, "teacher store").manifest.details["figure"] == 7
