"""A store may come from a stranger who left links in it: nothing outside of its folder is read or written.

The files that must not change are held outside of the store.
"""

import shutil
from pathlib import Path

import pytest
from damage import state_of
from forge import edit_attributes
from hostile import CHUNK, lead_out, refused, set_in

from pipeline.errors import StillroomError
from pipeline.lineage import MANIFEST, read_manifest
from pipeline.store.verify import verify

PLACES = {
    "records": "records",
    "a record": "records/train-0-0.json",
    "a split": "train",
    "an array": "train/logits",
    "chunks": "train/logits/c",
    "chunks of a view": "train/logits/c/1",
    "chunks of a block": "train/logits/c/1/0",
    "a chunk": CHUNK,
    "the attributes": "zarr.json",
    "metadata": "train/logits/zarr.json",
    "the manifest": MANIFEST,
    "what was fitted": "fitted",
    "a fitted array": "fitted/features/penultimate/step",
}


@pytest.fixture
def outside(tmp_path) -> Path:
    folder = tmp_path / "outside"
    folder.mkdir()
    return folder


@pytest.mark.parametrize("what", PLACES)
def test_links_that_lead_out_of_a_store_are_refused(teacher, outside, what):
    lead_out(teacher, PLACES[what], outside)
    assert refused(teacher)


@pytest.mark.parametrize("what", PLACES)
def test_mending_a_store_with_links_writes_nothing_outside(teacher, held, outside, what):
    whole = {name: content for name, (*_, content) in state_of(teacher).items()}
    lead_out(teacher, PLACES[what], outside)
    before = state_of(outside) if (outside / "loot").is_dir() else (outside / "loot").stat()
    try:
        manifest = read_manifest(teacher)
    except StillroomError:
        manifest = None
    held["teacher"].writer.unseal(manifest)
    held["teacher"].fill()
    assert {name: content for name, (*_, content) in state_of(teacher).items()} == whole
    after = state_of(outside) if (outside / "loot").is_dir() else (outside / "loot").stat()
    assert after == before


@pytest.mark.parametrize("place", ["records", "train", "train/logits/c", "train/logits/c/1/0", "fitted"])
def test_an_unfinished_store_of_a_stranger_is_not_filled_through_links(teacher, held, outside, place):
    (teacher / MANIFEST).unlink()
    lead_out(teacher, place, outside)
    kept = state_of(outside)
    with pytest.raises(StillroomError, match=f"{teacher / place}: found a link or a file; .*; delete it and run again"):
        held["teacher"].fill()
    assert state_of(outside) == kept
    (teacher / place).unlink()
    held["teacher"].fill()
    assert verify(teacher) == []


@pytest.mark.parametrize("name", ["../escape", "/escape", "..", "a/../../escape", "fitted/features/penultimate"])
def test_what_a_codec_was_fitted_to_cannot_lie_elsewhere(teacher, outside, name):
    shutil.copytree(teacher / "fitted/features/penultimate/step", outside / "escape")
    edit_attributes(teacher, lambda said: set_in(said, "features.penultimate.arrays", ["low", name]))
    assert refused(teacher)
