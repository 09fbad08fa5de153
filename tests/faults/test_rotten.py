"""Whatever happens to a store's bytes is found, never read as numbers, and mended by making its own blocks alone.

The numbers that are right are held in memory; nothing here asks a store whether a store is right.
"""

import random
import re
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from damage import HARMS, Kept, bits_of, flip_bit, flipped, harmed, state_of, swap
from few import contents, settle, workspace
from oracle import SOURCES, Held, blocks_of, first_error, hold_targets, hold_teacher
from toys import make_dataset, make_pixels, make_replayer

from pipeline.errors import StaleStoreError, StillroomError
from pipeline.lineage import COST, MANIFEST
from pipeline.store import ArraySpec, Block, Layout, Store, StoreWriter, open_teacher
from pipeline.store.records import RECORDS
from pipeline.store.verify import verify
from pipeline.views import Replayer
from stages import fuse, logits
from stages.mend import examine
from stages.recipe import FusionEntry

QUIET: Any = SimpleNamespace(say=lambda stage, text: None)

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


@dataclass(frozen=True)
class Shelf:
    """Two compressed teacher stores and a plain target store, in blocks of 20 rows."""

    teacher: Held
    other: Held
    targets: Held


@pytest.fixture(scope="module")
def shelf(replayer, tmp_path_factory) -> Shelf:
    root = tmp_path_factory.mktemp("shelf")
    with blocks_of(20):
        teacher = hold_teacher(root / "a", replayer, codec="companded8", features="uint8")
        other = hold_teacher(root / "b", replayer, seed=1, name="b", codec="companded8", features="uint8")
        return Shelf(teacher, other, hold_targets(root / "t", replayer, other))


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


def is_found(folder: Path) -> bool:
    """Whether both ways to verify find a fault."""
    return bool(verify(folder, thorough=False)) and bool(verify(folder))


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


Swap = tuple[str, str]
SWAPS: dict[str, tuple[Swap, set[str]]] = {
    "with the next rows": (("train/logits/c/1/0/0", "train/logits/c/1/1/0"), {"logits"}),
    "with another view": (("train/logits/c/0/0/0", "train/logits/c/2/0/0"), {"logits"}),
    "with another array": (("train/labels/c/1", "train/row_digest/c/0/0"), {"labels", "row_digest"}),
    "with another split": (("test/labels/c/0", "calibration/labels/c/0"), {"labels"}),
    "of samples": (("train/sample_ids/c/0", "train/sample_ids/c/1"), {"sample_ids"}),
}  # fmt: skip


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

WHOLE_BLOCK = [f"train/{name}/c/1/1" for name in ("logits", "logits_range", "row_digest", "features/penultimate")]
FOREIGN: dict[str, list[str]] = {
    "a chunk": ["train/logits/c/1/1/0"],
    "a chunk and its record": ["train/logits/c/1/1/0", "records/train-1-1.json"],
    "a whole block": [*WHOLE_BLOCK, "records/train-1-1.json"],
    "all records": [RECORDS],
    "the manifest": [MANIFEST],
    "the attributes": ["zarr.json"],
    "what a codec was fitted to": ["fitted"],
    "all but the manifest": ["train", "calibration", "test", "fitted", "zarr.json", RECORDS],
}


def take(mine: Path, theirs: Path, paths: list[str]) -> None:
    """Replace files and folders of a store by another store's."""
    for path in paths:
        if (theirs / path).is_dir():
            shutil.rmtree(mine / path)
            shutil.copytree(theirs / path, mine / path)
        else:
            shutil.copyfile(theirs / path, mine / path)


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


# -- mending ----------------------------------------------------------------------------------------------------------


def mend(held: Held) -> list[str]:
    """Do what a stage does that is asked for this store by name; return which blocks were computed."""
    made: list[Block] = []
    mending = examine(QUIET, "logits", "a", held.folder, check=True)
    if not mending.is_sound:
        mending.begin(held.writer)
        held.fill(on_block=made.append)
    return [block.key for block in made]


def check_mended(held: Held, whole: dict[str, Any], blocks: set[str]) -> None:
    """Hold a store to be byte for byte what it was, and the files of other blocks than these to be untouched."""
    found = state_of(held.folder)
    assert {name: content for name, (*_, content) in found.items()} == {
        n: content for n, (*_, content) in whole.items()
    }
    layout = held.writer.layout
    kept = [block for block in layout.blocks if block.key not in blocks]
    for block in kept:
        for path in [
            f"{RECORDS}/{block.key}.json",
            *(layout.chunk_path(block, name) for name in layout.arrays_of(block)),
        ]:
            assert found[path][:2] == whole[path][:2], f"{path} was written again"


@pytest.mark.parametrize("harm", HARMS)
def test_only_the_block_of_a_harmed_chunk_or_record_is_made_again(teacher, harm):
    whole = state_of(teacher.folder)
    HARMS[harm](teacher.folder / "train/logits/c/1/1/0")
    HARMS[harm](teacher.folder / "records/test-0-0.json")
    assert set(mend(teacher)) == {"train-1-1", "test-0-0"}
    check_mended(teacher, whole, {"train-1-1", "test-0-0"})
    assert mend(teacher) == []


@pytest.mark.parametrize("harm", HARMS)
def test_no_block_is_made_again_for_the_files_beside_them(teacher, harm):
    whole = state_of(teacher.folder)
    for path in ["zarr.json", "train/logits/zarr.json", "fitted/features/penultimate/step/c/0"]:
        HARMS[harm](teacher.folder / path)
    assert mend(teacher) == []
    check_mended(teacher, whole, set())
    HARMS[harm](teacher.folder / MANIFEST)
    assert mend(teacher) == []
    check_mended(teacher, whole, set())


@pytest.mark.parametrize("how", SWAPS)
def test_both_blocks_of_swapped_chunks_are_made_again(teacher, how):
    whole, paths = state_of(teacher.folder), SWAPS[how][0]
    swap(*(teacher.folder / path for path in paths))
    layout = teacher.writer.layout
    wanted = {b.key for b in layout.blocks for name in layout.arrays_of(b) if layout.chunk_path(b, name) in paths}
    assert set(mend(teacher)) == wanted
    check_mended(teacher, whole, wanted)


@pytest.mark.parametrize(
    ("what", "blocks"),
    [
        ("a chunk", {"train-1-1"}),
        ("a chunk and its record", {"train-1-1"}),
        ("a whole block", {"train-1-1"}),
        ("all records", None),
        ("the attributes", set()),
        ("what a codec was fitted to", set()),
    ],
)
def test_what_is_another_teachers_is_made_again(teacher, shelf, what, blocks):
    whole, every = state_of(teacher.folder), {block.key for block in teacher.writer.layout.blocks}
    take(teacher.folder, shelf.other.folder, FOREIGN[what])
    wanted = every if blocks is None else blocks
    assert set(mend(teacher)) == wanted
    check_mended(teacher, whole, wanted)


def test_a_store_with_another_ones_manifest_is_not_made_into_the_one_wanted(teacher, shelf):
    take(teacher.folder, shelf.other.folder, FOREIGN["the manifest"])
    with pytest.raises(StaleStoreError, match=r"made from another teacher \(found 'teacher b'; expected 'teacher a'\)"):
        mend(teacher)


def test_a_folder_that_is_a_file_or_a_link_is_made_again(teacher, tmp_path):
    whole = state_of(teacher.folder)
    for name, become in (
        ("train/logits/c/1", Path.touch),
        ("test", lambda path: path.symlink_to(tmp_path / "elsewhere")),
    ):
        (teacher.folder / name).rename(tmp_path / "elsewhere")
        become(teacher.folder / name)
        assert is_found(teacher.folder)
        assert mend(teacher)
        assert {name: content for name, (*_, content) in state_of(teacher.folder).items()} == {
            n: c for n, (*_, c) in whole.items()
        }
        shutil.rmtree(tmp_path / "elsewhere")


# -- by the stages ----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def home(tmp_path_factory) -> Path:
    """A folder with a network's teacher store and the target store made of it, of 500 pictures."""
    folder = tmp_path_factory.mktemp("home")
    settle(folder)
    ws = workspace(folder)
    logits.ensure(ws, ws.recipe.teacher[0])
    fuse.ensure(ws, FUSION)
    return folder


@pytest.fixture
def made(monkeypatch) -> list[str]:
    """The blocks that are written from here on."""
    blocks: list[str] = []
    commit = StoreWriter.commit

    def noted(self: StoreWriter, block: Block, computed: Any) -> bool:
        blocks.append(block.key)
        return commit(self, block, computed)

    monkeypatch.setattr(StoreWriter, "commit", noted)
    return blocks


FUSION = FusionEntry(name="single", strategy="mean", teachers=["conv"])
BLOCK_FILES = ("train/{}/c/1/0/0", "train/labels/c/0", "records/test-0-0.json")
FEW = ("last bit flipped", "a link to the same bytes")
DAMAGE = [pytest.param(harm, marks=[] if harm in FEW else pytest.mark.faults) for harm in HARMS]


@pytest.mark.parametrize("harm", DAMAGE)
@pytest.mark.parametrize("stage", ["logits", "fuse"])
def test_a_stage_makes_the_damaged_blocks_of_its_store_again_and_no_other(home, made, stage, harm):
    ws = workspace(home)
    teacher, array = ws.recipe.teacher[0], {"logits": "logits", "fuse": "log_probs/t1"}[stage]
    folder = ws.teacher_store_folder(teacher) if stage == "logits" else ws.target_folder(FUSION)
    whole = state_of(folder)
    for path, block, rows in zip(BLOCK_FILES, ("train-1-0", "train-0-0", "test-0-0"), (400, 400, 200), strict=True):
        HARMS[harm](folder / path.format(array))
        forwards = ws.teacher_forwards
        if stage == "logits":
            logits.ensure(ws, teacher, check=True)
        else:
            fuse.ensure(ws, FUSION, check=True)
        assert made == [block]
        assert ws.teacher_forwards - forwards == (rows if stage == "logits" else 0)
        found = state_of(folder)
        assert {name: content for name, (*_, content) in found.items()} == {n: c for n, (*_, c) in whole.items()}
        own = re.compile(rf"records/{block}|manifest|{block.split('-')[0]}/.*/c/({block.split('-')[1]}/)?0")
        assert all(found[name][:2] == whole[name][:2] for name in whole if not own.match(name))
        made.clear()
        whole = found


BESIDE = ["zarr.json", *(pytest.param(p, marks=pytest.mark.faults) for p in (MANIFEST, "train/row_digest/zarr.json"))]


@pytest.mark.parametrize("path", BESIDE)
def test_a_stage_writes_no_block_for_a_file_beside_them(home, made, path):
    ws = workspace(home)
    teacher = ws.recipe.teacher[0]
    for folder, ensure in (
        (ws.teacher_store_folder(teacher), lambda: logits.ensure(ws, teacher, check=True)),
        (ws.target_folder(FUSION), lambda: fuse.ensure(ws, FUSION, check=True)),
    ):
        whole = contents(folder)
        flip_bit(folder / path, bits_of(folder / path) // 2)
        ensure()
        assert contents(folder) == whole
    assert made == []
    assert ws.teacher_forwards == 0
