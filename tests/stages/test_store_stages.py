"""The stages' part in storing: damage is mended block by block, budgets are kept, codecs are shown as they are."""

import io
import shutil
import sys
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from few import contents, settle, workspace
from rich.console import Console

from pipeline.budget import Kept
from pipeline.errors import StaleStoreError, StillroomError
from pipeline.lineage import Manifest, read_manifest
from pipeline.store import open_targets, open_teacher
from pipeline.store.verify import verify
from stages import budget, codecs, fuse, logits, status, teachers
from stages.workspace import Workspace


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A home folder with its teacher and target stores."""
    home = tmp_path_factory.mktemp("home")
    settle(home)
    sys.path.insert(0, str(home))
    fuse.run(workspace(home))
    yield home
    sys.path.remove(str(home))


@pytest.fixture
def home(made, tmp_path):
    """A copy of it, to spoil."""
    return Path(shutil.copytree(made, tmp_path / "home", symlinks=True))


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def recorded(ws: Workspace) -> Console:
    ws.console = Console(record=True, width=200, file=io.StringIO())
    return ws.console


def test_logits_makes_only_the_damaged_block_again(home):
    ws = workspace(home)
    folder = ws.teacher_store_folder(ws.recipe.teacher[0])
    before = contents(folder)
    flip(folder / "train/logits/c/1/0/0")
    console = recorded(ws)
    logits.run(ws)
    assert ws.teacher_forwards == 400, "the one block of the view"
    assert contents(folder) == before
    told = console.export_text()
    assert "logits train view 1 rows 0-400: crc32c" in told
    assert "1 fault; damaged blocks are made again" in told


@pytest.mark.parametrize("path", ["manifest.json", "zarr.json", "train/logits/zarr.json", "records/test-0-0.json"])
def test_logits_mends_what_is_sealed_beside_the_chunks(home, path):
    ws = workspace(home)
    folder = ws.teacher_store_folder(ws.recipe.teacher[0])
    before = contents(folder)
    flip(folder / path)
    logits.run(ws)
    assert ws.teacher_forwards == (200 if path.startswith("records") else 0)
    assert contents(folder) == before


def test_fuse_makes_only_the_damaged_block_again_and_asks_no_teacher(home):
    ws = workspace(home)
    folder = ws.target_folder(ws.recipe.find("fusion", "mean"))
    before = contents(folder)
    (folder / "calibration/log_probs/t2/c/0/0/0").unlink()
    fuse.run(ws, "mean")
    assert contents(folder) == before
    assert ws.teacher_forwards == 0
    assert [Path(path).parent.name for path in ws.done] == ["targets"]


def test_a_file_too_many_is_told_and_harms_nothing(home):
    ws = workspace(home)
    folder = ws.teacher_store_folder(ws.recipe.teacher[0])
    (folder / "notes.txt").write_text("hello")
    console = recorded(ws)
    logits.run(ws)
    assert "notes.txt no rows: a file that belongs to no block; delete it" in console.export_text()
    assert ws.done == []


def test_other_weights_under_the_same_recipe_are_refused(home):
    ws = workspace(home)
    entry = ws.recipe.find("teacher", "conv")
    folder = ws.teacher_folder(entry)
    shutil.rmtree(folder)
    other = workspace(home, "teacher.conv.seed=1")
    trained = teachers.ensure(other, other.recipe.find("teacher", "conv"))
    manifest = read_manifest(trained)
    shutil.copytree(trained, folder)
    seal_as(folder, manifest, ws.teacher_config(entry))
    with pytest.raises(StaleStoreError, match=r"made by another teacher: weights.weights.safetensors \(found '\w+"):
        logits.run(workspace(home))


def test_a_target_store_of_other_answers_is_refused(home):
    ws = workspace(home)
    entry = ws.recipe.find("teacher", "conv")
    other = workspace(home, "teacher.conv.seed=1")
    found = logits.ensure(other, other.recipe.find("teacher", "conv"))
    store = ws.teacher_store_folder(entry)
    shutil.rmtree(store)
    shutil.copytree(found, store)  # another teacher's answers, sealed as this one's
    manifest = read_manifest(store)
    seal_as(store, manifest, ws.teacher_store_config(entry))
    with pytest.raises(StillroomError, match=r"another store"):
        fuse.run(ws, "weighted")
    shutil.rmtree(store)
    dumped = workspace(home)
    shutil.rmtree(dumped.teacher_folder(entry))
    shutil.copytree(other.teacher_folder(other.recipe.find("teacher", "conv")), dumped.teacher_folder(entry))
    seal_as(dumped.teacher_folder(entry), read_manifest(dumped.teacher_folder(entry)), dumped.teacher_config(entry))
    logits.run(dumped)
    with pytest.raises(StaleStoreError, match=r"fused from other teacher stores: parents.conv.records \(found"):
        fuse.run(dumped, "weighted")


def seal_as(folder: Path, manifest: Manifest, config: Mapping[str, Any]) -> None:
    """Seal an artefact as if it had been made from something else."""
    replace(manifest, config=config).write(folder)


def test_a_budget_is_kept_told_and_found_again_without_a_teacher(home):
    ws = workspace(home, "logits.max_gb=0.00018")
    console = recorded(ws)
    kept = budget.within(ws)
    told = console.export_text()
    assert "budget    teacher stores take at most" in told
    assert "logits.codec: fp16 -> companded8; logits.features: penultimate -> none" in told
    fuse.run(kept)
    stores = [kept.teacher_store_folder(entry) for entry in kept.recipe.teacher]
    written = sum(f.stat().st_size for store in stores for f in store.rglob("c/**/*") if f.is_file())
    assert written <= 0.00018e9
    assert all(open_teacher(store).codec.kind == "companded8" for store in stores)
    assert "budgets" in {row.parent.name for row in (home / "data").glob("budgets/*")}
    (home / "own_teacher.py").unlink()
    again = budget.within(workspace(home, "logits.max_gb=0.00018"))
    assert again.recipe == kept.recipe
    assert not [row for row in status.wanted(again) if row.kind == "logits" and not again.is_finished(row.folder)]


@pytest.mark.parametrize(("views", "mixed"), [(8, 4), (4, 2), (3, 2), (2, 1), (1, None)])
def test_a_budget_of_fewer_views_mixes_the_same_share_of_them(home, views, mixed):
    recipe = workspace(home, "views.count=8", 'views.mix={ kind = "cutmix", views = 4 }').recipe
    kept = budget._recipe(recipe, Kept("fp16", "fp16", (), views)).views
    assert kept.count == views
    assert kept.mix == (None if mixed is None else {"kind": "cutmix", "views": mixed})


def test_sparse_stores_keep_held_out_splits_dense_and_students_stream_them(home):
    ws = workspace(home, 'logits.codec={kind="topk", k=3}', 'fusion.weighted.codec={kind="sampled", draws=20}')
    fuse.run(ws, "weighted")
    targets = open_targets(ws.target_folder(ws.recipe.find("fusion", "weighted")))
    assert targets.codec.kind == "sampled"
    assert targets.log_probs("calibration").exp().sum(-1).allclose(targets.log_probs("calibration").new_ones(100))
    assert {name.split("/")[-1] for name in targets.layout.arrays_in("train") if "log_probs" in name} == {
        "t1_ids",
        "t1_counts",
    }
    assert verify(targets.folder) == []


def test_random_draws_of_teachers_go_only_where_they_stay_unbiased(home):
    with pytest.raises(
        StillroomError, match=r"fusion.weighted: found teachers kept as random draws; expected strategy"
    ):
        workspace(home, 'logits.codec="sampled"')
    workspace(
        home,
        'logits.codec="sampled"',
        "fusion.weighted.calibrate=false",
        "fusion.weighted.calibrate_pool=false",
        "fusion.mean.calibrate=false",
        "fusion.mean.calibrate_pool=false",
        "fusion.mean.temperatures=[1.0]",
        "student.other.loss.temperature=1.0",
    )


def test_the_table_of_codecs_shows_each_with_real_figures(home):
    ws = workspace(home)
    entry = ws.recipe.teacher[0]
    answers, rows = codecs.sample_answers(
        teachers.load(ws, entry, layers=["penultimate"]), ws.replayer, ws.task.shapes, 256
    )
    table = codecs.logits_table(entry, answers.logits, rows)
    names = list(table.columns[0].cells)
    assert {name.split()[0] for name in names} == {"fp16", "fp32", "bitround", "companded8", "topk", "sampled"}
    sizes = dict(zip(names, map(float, table.columns[1].cells), strict=True))
    assert sizes["fp16"] == 20
    assert sizes["fp32"] == 40
    features = codecs.features_table(entry, "penultimate", answers.features["penultimate"])
    assert next(iter(features.columns[1].cells)) == str(2 * answers.features["penultimate"].shape[1])
