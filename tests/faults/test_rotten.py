"""Whatever happens to a store's bytes is found, and never read as numbers.

The numbers that are right are held in memory; nothing here asks a store whether a store is right.
"""

import random
import re
import shutil
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from damage import HARMS, Kept, bits_of, flip_bit, flipped, harmed, swap
from oracle import SOURCES, Held, first_error, hold_targets, hold_teacher
from shelf import FOREIGN, SWAPS, Shelf, is_found, lay_shelf, take
from toys import make_dataset, make_pixels, make_replayer

from pipeline.errors import StillroomError
from pipeline.lineage import COST, MANIFEST
from pipeline.store import ArraySpec, Layout, Store, StoreWriter, open_teacher
from pipeline.store.verify import verify
from pipeline.views import Replayer

CHUNKS = {  # one of each array of the teacher store: the rows it holds
    "logits": ("train/logits/c/1/1/0", "train view 1 rows 20-40"),
    "logits_range": ("train/logits_range/c/0/1", "train view 0 rows 20-40"),
    "features/penultimate": ("train/features/penultimate/c/2/0/0", "train view 2 rows 0-20"),
    "row_digest": ("test/row_digest/c/0/0", "test view 0 rows 0-12"),
    "labels": ("train/labels/c/0", "train view 0 rows 0-20"),
    "sample_ids": ("calibration/sample_ids/c/0", "calibration view 0 rows 0-8"),
}
SEALED = [
    MANIFEST,
    "records/train-1-1.json",
    "zarr.json",
    "train/zarr.json",
    "train/logits/zarr.json",
    "fitted/features/penultimate/step/zarr.json",
    "fitted/features/penultimate/step/c/0",
]


@pytest.fixture(scope="module")
def shelf(replayer, tmp_path_factory) -> Shelf:
    return lay_shelf(tmp_path_factory.mktemp("shelf"), replayer)


@pytest.fixture(scope="module")
def kept(shelf) -> dict[str, Kept]:
    return {name: Kept(held.folder) for name, held in (("teacher", shelf.teacher), ("targets", shelf.targets))}


@pytest.fixture
def teacher(shelf, kept) -> Iterator[Held]:
    """The teacher store, to harm."""
    yield shelf.teacher
    kept["teacher"].give_back()


@pytest.fixture
def targets(shelf, kept) -> Iterator[Held]:
    """The target store, to harm."""
    yield shelf.targets
    kept["targets"].give_back()


def refusal(held: Held, kind: str = "teacher store") -> str:
    """Return with what words a store is refused, "" when it opens; what it reads then must be right."""
    try:
        store = Store(held.folder, kind)
    except StillroomError as error:
        return str(error)
    assert held.wrong(store) == []
    return ""


# -- every bit --------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def tiny(tmp_path_factory) -> Held:
    """Two blocks of plain, compressed and per-sample numbers: 300 bytes of chunks."""
    arrays = {
        "plain": ArraySpec((2,), "float16"),
        "packed": ArraySpec((24,), "uint8", True, "noshuffle"),
        "shuffled": ArraySpec((8,), "uint16", True, "bitshuffle"),
        "ids": ArraySpec((), "int32", False),
    }
    layout = Layout({"train": (1, 3)}, arrays, rows_per_block=2)
    drawn = np.random.default_rng(0)
    numbers = {
        ("train", "plain"): drawn.random((1, 3, 2)).astype(np.float16),
        ("train", "packed"): np.repeat(drawn.integers(0, 9, (1, 3, 3)), 8, axis=2).astype(np.uint8),
        ("train", "shuffled"): np.repeat(drawn.integers(0, 9, (1, 3, 2)), 4, axis=2).astype(np.uint16),
        ("train", "ids"): np.array([3, 5, 7], np.int32),
    }
    folder = tmp_path_factory.mktemp("tiny") / "store"
    writer = StoreWriter(folder, layout, kind="teacher store", name="tiny", config={"a": 1}, attributes={"b": 1e-9})
    held = Held(writer, numbers).fill()
    (folder / COST).unlink()  # the one file that nothing vouches for
    return held


def check_bits(held: Held, paths: list[Path], every: int) -> None:
    """Flip every n-th bit of files of a store, one at a time."""
    bits = [(path, bit) for path in sorted(paths) if path.is_file() for bit in range(bits_of(path))]
    for path, bit in bits[::every]:
        with flipped(path, bit):
            assert verify(held.folder, thorough=bit % 8 == 0), f"bit {bit} of {path}"
            refusal(held)
    assert verify(held.folder) == []
    assert refusal(held) == ""


def test_bits_of_chunks_are_found(tiny):
    check_bits(tiny, list(tiny.folder.glob("train/*/c/**/*")), 17)


def test_bits_of_records_metadata_and_manifest_are_found(tiny):
    check_bits(tiny, list(tiny.folder.rglob("*.json")), 499)


@pytest.mark.faults
def test_every_bit_of_every_file_is_found(tiny):
    check_bits(tiny, list(tiny.folder.rglob("*")), 1)


@pytest.fixture(scope="module")
def large(tmp_path_factory) -> tuple[Replayer, Held, Held]:
    """Stores of 20,000 samples, in blocks as large as they are by default."""
    root, dataset = tmp_path_factory.mktemp("large"), make_dataset(make_pixels(20_000))
    replayer = make_replayer(dataset, count=1, mix=None)
    teacher = hold_teacher(root / "a", replayer, codec="companded8", features={"kind": "pca", "dims": 4})
    return replayer, teacher, hold_targets(root / "t", replayer, teacher, codec="bitround")


def check_random_bits(large: tuple[Replayer, Held, Held], count: int) -> None:
    replayer, *stores = large
    drawn = random.Random(count)
    for held in stores:
        files = sorted(path for path in held.folder.rglob("*") if path.is_file() and path.name != "cost.json")
        for path in drawn.choices(files, [path.stat().st_size for path in files], k=count // 2):
            with flipped(path, drawn.randrange(bits_of(path))):
                assert verify(held.folder, thorough=False), path
                refusal(held, held.writer.kind)
                if held.writer.kind == "target store" and drawn.random() < 0.1:
                    first_error(held, replayer, "streamed", batch_size=1000)


def test_random_bits_of_real_stores_are_found(large):
    check_random_bits(large, 40)


@pytest.mark.faults
def test_five_hundred_random_bits_of_real_stores_are_found(large):
    check_random_bits(large, 500)


# -- chunks -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("harm", HARMS)
def test_a_harmed_chunk_is_told_by_store_array_and_rows(teacher, harm):
    for path, _ in CHUNKS.values():
        HARMS[harm](teacher.folder / path)
    wanted = {(array, rows) for array, (_, rows) in CHUNKS.items()}
    for thorough in (False, True):
        found = verify(teacher.folder, thorough=thorough)
        assert {(fault.array, fault.rows) for fault in found if fault.rows != "no rows"} == wanted
        assert {fault.store for fault in found} == {str(teacher.folder)}
    store = open_teacher(teacher.folder)
    for array, (path, rows) in CHUNKS.items():
        with pytest.raises(StillroomError, match=f"{teacher.folder}: {array} of {rows}: .*run 'stillroom logits'"):
            store.read(path.split("/")[0], array, int(rows.split()[2]))
    assert teacher.wrong(store) == []


@pytest.mark.parametrize("path", SEALED)
def test_a_harmed_record_metadata_or_manifest_is_told(teacher, path):
    for harm in HARMS:
        with harmed(teacher.folder / path, harm):
            faults = verify(teacher.folder, thorough=False)
            assert faults, harm
            assert str(teacher.folder) in str(faults[0])
            assert str(teacher.folder) in refusal(teacher), f"it opened: {harm}"
    assert verify(teacher.folder) == []


@pytest.mark.parametrize("how", SWAPS)
def test_swapped_chunks_are_told_both(teacher, how):
    (one, other), arrays = SWAPS[how]
    swap(teacher.folder / one, teacher.folder / other)
    for thorough in (False, True):
        found = verify(teacher.folder, thorough=thorough)
        assert len(found) == 2
        assert {fault.array for fault in found} == arrays
    assert refusal(teacher) == ""


@pytest.mark.parametrize("how", SWAPS)
def test_a_chunk_copied_over_another_is_told(teacher, how):
    one, other = (teacher.folder / path for path in SWAPS[how][0])
    shutil.copyfile(one, other)
    assert len(verify(teacher.folder, thorough=False)) == 1
    assert len(verify(teacher.folder)) == 1
    assert refusal(teacher) == ""


def test_plain_arrays_of_one_size_are_not_taken_for_one_another(targets):
    """Nothing but what their records say tells them apart: same shape, same dtype, each with a sound crc32c."""
    one, other = (targets.folder / f"train/log_probs/t{temperature}/c/1/1/0" for temperature in (1, 4))
    assert one.stat().st_size == other.stat().st_size
    swap(one, other)
    assert {fault.array for fault in verify(targets.folder, thorough=False)} == {"log_probs/t1", "log_probs/t4"}
    assert refusal(targets, "target store") == ""


# -- of another teacher -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("what", FOREIGN)
def test_what_is_another_teachers_is_told(teacher, shelf, what):
    take(teacher.folder, shelf.other.folder, FOREIGN[what])
    assert is_found(teacher.folder)
    assert refusal(teacher) or what == "a chunk", "it opened"


@pytest.mark.parametrize(
    "name", ["notes.txt", "train/logits/c/0/9/0", "records/train-9-9.json", "fitted/x", "\x1b[2J\n"]
)
def test_a_stray_file_is_told_and_harms_nothing(teacher, name):
    (teacher.folder / name).parent.mkdir(parents=True, exist_ok=True)
    (teacher.folder / name).write_text("stray")
    (fault,) = verify(teacher.folder, thorough=False)
    assert (fault.array, fault.rows) == (name, "no rows")
    assert str(fault).isprintable()
    assert refusal(teacher) == ""


# -- before a student sees it -----------------------------------------------------------------------------------------

SEEN = {
    "train/log_probs/t1/c/1/1/0": "log_probs/t1 of train view 1 rows 20-40: ",
    "train/log_probs/t1/c/2/0/0": "log_probs/t1 of train view 2 rows 0-20: ",
    "train/row_digest/c/1/0": "row_digest of train view 1 rows 0-20: ",
    "train/labels/c/1": "labels of train view 0 rows 20-40: ",
    "test/sample_ids/c/0": "sample_ids of test view 0 rows 0-12: ",
    "records/train-0-1.json": r"records/train-0-1.json: .* train view 0 rows 20-40",
    "zarr.json": "zarr.json: ",
    MANIFEST: "manifest.json: ",
}


@pytest.mark.parametrize("source", SOURCES)
@pytest.mark.parametrize("path", SEEN)
def test_damage_stops_a_loader_before_a_wrong_number_reaches_the_student(targets, replayer, source, path):
    file = targets.folder / path
    flip_bit(file, bits_of(file) // 2)
    told = str(first_error(targets, replayer, source))
    assert re.search(f"{targets.folder}.*{SEEN[path]}", told), told


@pytest.mark.parametrize("source", SOURCES)
@pytest.mark.parametrize("harm", ["a byte short", "a page long", "deleted", "a pipe", "a link to the same bytes"])
def test_any_harm_stops_a_loader(targets, replayer, source, harm):
    HARMS[harm](targets.folder / "train/log_probs/t1/c/1/1/0")
    told = str(first_error(targets, replayer, source))
    assert re.search(f"{targets.folder}: log_probs/t1 of train view 1 rows 20-40: ", told), told


@pytest.mark.parametrize("source", SOURCES)
def test_swapped_chunks_stop_a_loader(targets, replayer, source):
    swap(*(targets.folder / f"train/log_probs/t{temperature}/c/0/0/0" for temperature in (1, 4)))
    assert "log_probs/t1 of train view 0 rows 0-20: crc32c" in str(first_error(targets, replayer, source))


def test_a_sound_store_is_read_right_by_every_loader(targets, replayer):
    for source in SOURCES:
        assert first_error(targets, replayer, source) is None
