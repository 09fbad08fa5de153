"""Whatever is done to a store's bytes, `verify` and reading both say so, and name store, array and rows."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from toys import contents

from pipeline.errors import CorruptBlockError, StillroomError
from pipeline.lineage import COST, MANIFEST
from pipeline.store import Store, open_targets, open_teacher
from pipeline.store.verify import is_store, verify

CHUNKS = {  # one file of each array of a teacher store: the rows it holds
    "logits": ("train/logits/c/1/1/0", "train view 1 rows 16-32"),
    "features/penultimate": ("train/features/penultimate/c/2/2/0", "train view 2 rows 32-40"),
    "row_digest": ("test/row_digest/c/0/0", "test view 0 rows 0-12"),
    "labels": ("train/labels/c/0", "train view 0 rows 0-16"),
    "sample_ids": ("calibration/sample_ids/c/0", "calibration view 0 rows 0-8"),
}
SEALED = ["records/train-1-1.json", "zarr.json", "train/zarr.json", "train/logits/zarr.json", MANIFEST]


@pytest.fixture
def teacher(stores, tmp_path) -> Path:
    """A copy of a teacher store, to be harmed."""
    return shutil.copytree(stores.teachers[0].folder, tmp_path / "store")


def read_all(folder: Path, kind: str = "teacher store") -> None:
    store = Store(folder, kind)
    for block in store.layout.blocks:
        for name in store.layout.arrays_of(block):
            store.read_block(block, name)


def flip(path: Path, place: int = 20) -> None:
    content = bytearray(path.read_bytes())
    content[place % len(content)] ^= 0x04
    path.write_bytes(content)


HARMS: dict[str, Callable[[Path], None]] = {
    "flipped": flip,
    "flipped at the end": lambda path: flip(path, -1),
    "truncated": lambda path: path.write_bytes(path.read_bytes()[:-7]),
    "extended": lambda path: path.write_bytes(path.read_bytes() + b"\0"),
    "emptied": lambda path: path.write_bytes(b""),
    "zeroed": lambda path: path.write_bytes(bytes(path.stat().st_size)),
    "deleted": Path.unlink,
}
over_harms = pytest.mark.parametrize("harm", HARMS)


def test_a_whole_store_has_no_fault(stores):
    for store in (*stores.teachers, stores.targets):
        assert is_store(store.folder)
        assert verify(store.folder) == []
        read_all(store.folder, store.manifest.kind)


@over_harms
@pytest.mark.parametrize("array", CHUNKS)
def test_a_harmed_chunk_is_told_by_store_array_and_rows(teacher, harm, array):
    path, rows = CHUNKS[array]
    HARMS[harm](teacher / path)
    (fault,) = verify(teacher)
    assert (fault.store, fault.array, fault.rows) == (str(teacher), array, rows)
    assert str(fault).startswith(f"{teacher}: {array} {rows}: ")
    with pytest.raises(CorruptBlockError, match=rf"{array} of {rows}: .*; run 'stillroom logits' to rebuild"):
        read_all(teacher)


@pytest.mark.parametrize(
    ("harm", "message"),
    [
        ("deleted", "the chunk is missing"),
        ("emptied", r"the chunk has 0 bytes, the commit record says \d+"),
        ("truncated", r"the chunk has \d+ bytes, the commit record says \d+"),
        ("flipped", r"crc32c [0-9a-f]{8}, the chunk itself says [0-9a-f]{8}"),
    ],
)
def test_the_message_says_what_is_wrong_with_the_chunk(teacher, harm, message):
    HARMS[harm](teacher / CHUNKS["logits"][0])
    with pytest.raises(CorruptBlockError, match=message):
        open_teacher(teacher).logits("train", 1)


@over_harms
@pytest.mark.parametrize("path", SEALED)
def test_a_harmed_record_metadata_or_manifest_is_told(teacher, harm, path):
    HARMS[harm](teacher / path)
    faults = verify(teacher)
    assert faults
    assert str(teacher) in str(faults[0])
    with pytest.raises(StillroomError, match=str(teacher)):
        read_all(teacher)


@pytest.mark.parametrize("path", SEALED)
def test_any_flipped_byte_of_a_sealed_file_is_told(teacher, path):
    whole = (teacher / path).read_bytes()
    for place in range(0, len(whole), max(1, len(whole) // 60)):
        flip(teacher / path, place)
        assert verify(teacher), f"byte {place} of {path}: {whole[max(0, place - 9) : place + 9]!r}"
        (teacher / path).write_bytes(whole)
    assert verify(teacher) == []


def test_swapped_chunks_are_told_both(teacher):
    one, other = teacher / "train/logits/c/0/0/0", teacher / "train/logits/c/1/0/0"
    first, second = one.read_bytes(), other.read_bytes()
    one.write_bytes(second)
    other.write_bytes(first)
    assert [fault.rows for fault in verify(teacher)] == ["train view 0 rows 0-16", "train view 1 rows 0-16"]
    with pytest.raises(CorruptBlockError, match=r"train view 0 rows 0-16: crc32c [0-9a-f]{8}, the commit record says"):
        read_all(teacher)


def test_swapped_records_are_told(teacher):
    one, other = teacher / "records/train-0-0.json", teacher / "records/train-1-0.json"
    first, second = one.read_bytes(), other.read_bytes()
    one.write_bytes(second)
    other.write_bytes(first)
    assert "train-0-0.json" in str(verify(teacher)[0])
    with pytest.raises(
        StillroomError, match=r"train-0-0.json: found no readable commit record .*train view 0 rows 0-16"
    ):
        read_all(teacher)


def test_a_chunk_and_the_record_of_another_store_are_told(teacher, stores):
    for path in ("train/logits/c/1/1/0", "records/train-1-1.json"):
        shutil.copy(stores.teachers[1].folder / path, teacher / path)
    assert "it is that of another store" in str(verify(teacher)[0])
    with pytest.raises(StillroomError, match=r"train-1-1.json: .*another store.* train view 1 rows 16-32"):
        read_all(teacher)


def test_every_fault_is_told_not_only_the_first(teacher):
    flip(teacher / CHUNKS["logits"][0])
    (teacher / CHUNKS["row_digest"][0]).unlink()
    (teacher / "notes.txt").write_text("hello")
    assert {fault.array for fault in verify(teacher)} == {"logits", "row_digest", "notes.txt"}


@pytest.mark.parametrize("name", ["notes.txt", "train/logits/c/0/9/0", "records/train-9-9.json", ".x.7.partial"])
def test_a_stray_file_is_told(teacher, name):
    (teacher / name).parent.mkdir(parents=True, exist_ok=True)
    (teacher / name).write_text("stray")
    (fault,) = verify(teacher)
    assert (fault.array, fault.rows) == (name, "no rows")
    assert "belongs to no block; delete it" in str(fault)


def test_costs_are_no_part_of_what_is_sealed(teacher):
    (teacher / COST).write_text("{}")
    assert verify(teacher) == []


def test_an_edited_manifest_is_told(teacher):
    body = json.loads((teacher / MANIFEST).read_text())
    body["details"]["temperature"] = 1.0
    (teacher / MANIFEST).write_text(json.dumps(body))
    assert "its seal does not fit its content" in str(verify(teacher)[0])
    with pytest.raises(StillroomError, match=r"manifest.json: its seal does not fit .*; delete the folder"):
        open_teacher(teacher)


def test_an_unfinished_store_is_told_with_what_there_is(teacher):
    (teacher / MANIFEST).unlink()
    assert is_store(teacher)
    assert f"not finished ({len(list((teacher / 'records').iterdir()))} blocks committed" in str(verify(teacher)[0])
    with pytest.raises(StillroomError, match=f"{teacher}: found an unfinished artefact; expected a finished teacher"):
        open_teacher(teacher)


def test_what_is_no_store_is_told(tmp_path, stores):
    assert not is_store(tmp_path)
    with pytest.raises(
        StillroomError, match="found nothing; expected a finished teacher store; run 'stillroom logits'"
    ):
        open_teacher(tmp_path / "nowhere")
    with pytest.raises(StillroomError, match="found a target store; expected a teacher store; name another folder"):
        open_teacher(stores.targets.folder)
    with pytest.raises(StillroomError, match="found a teacher store; expected a target store"):
        open_targets(stores.teachers[0].folder)


@over_harms
def test_a_harmed_target_store_is_told_too(stores, tmp_path, harm):
    folder = shutil.copytree(stores.targets.folder, tmp_path / "targets")
    HARMS[harm](folder / "train/log_probs/t4/c/2/0/0")
    (fault,) = verify(folder)
    assert (fault.array, fault.rows) == ("log_probs/t4", "train view 2 rows 0-16")
    with pytest.raises(CorruptBlockError, match=r"log_probs/t4 of train view 2 rows 0-16: .* run 'stillroom fuse'"):
        open_targets(folder).log_probs("train", 2, temperature=4.0)


def test_verifying_changes_nothing(teacher):
    before = contents(teacher)
    verify(teacher)
    assert contents(teacher) == before
