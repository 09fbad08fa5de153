"""What is damaged is mended byte for byte by making its own blocks alone, and never out of another teacher's store."""

import shutil
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from damage import HARMS, Kept, state_of, swap
from oracle import Held
from shelf import FOREIGN, SWAPS, Shelf, is_found, lay_shelf, take

from pipeline.errors import StaleStoreError
from pipeline.lineage import MANIFEST
from pipeline.store import Block
from pipeline.store.records import RECORDS
from stages.mend import examine

QUIET: Any = SimpleNamespace(say=lambda stage, text: None)


@pytest.fixture(scope="module")
def shelf(replayer, tmp_path_factory) -> Shelf:
    return lay_shelf(tmp_path_factory.mktemp("shelf"), replayer)


@pytest.fixture(scope="module")
def kept(shelf) -> Kept:
    return Kept(shelf.teacher.folder)


@pytest.fixture
def teacher(shelf, kept) -> Iterator[Held]:
    """The teacher store, to harm."""
    yield shelf.teacher
    kept.give_back()


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
