"""The stages make the damaged blocks of a store again, and no others, and write none for a file beside them."""

import re
from pathlib import Path
from typing import Any

import pytest
from damage import HARMS, bits_of, flip_bit, state_of
from few import contents, settle, workspace

from pipeline.lineage import MANIFEST
from pipeline.store import Block, StoreWriter
from stages import fuse, logits
from stages.recipe import FusionEntry

FUSION = FusionEntry(name="single", strategy="mean", teachers=["conv"])
BLOCK_FILES = ("train/{}/c/1/0/0", "train/labels/c/0", "records/test-0-0.json")
FEW = ("last bit flipped", "a link to the same bytes")
DAMAGE = [pytest.param(harm, marks=[] if harm in FEW else pytest.mark.faults) for harm in HARMS]
BESIDE = ["zarr.json", *(pytest.param(p, marks=pytest.mark.faults) for p in (MANIFEST, "train/row_digest/zarr.json"))]


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
