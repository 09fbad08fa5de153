"""The recipe of pictures, whole, on some hundred made ones: every figure, the grid, and what steers whom."""

import json
import math
from pathlib import Path

import numpy as np
import pytest

from pipeline.datasets.inputs.noise import normal
from pipeline.errors import StillroomError
from pipeline.lineage import read_manifest
from pipeline.report import DISHONEST
from pipeline.store import open_targets, open_teacher
from pipeline.tasks import Draws
from stages import gc, report, status
from stages.judging import PictureJudging
from stages.load import load_recipe
from stages.runs import folder_of, runs
from tests.datasets.test_noise import write_idx
from tests.stages.shipped import check_every_model_ran, of, rows_of, run_shipped

FIGURES = ("frechet", "class_agreement", "energy", "rmse", "mae")
SMALL = [f"teacher.{name}.{key}={value}" for name in ("wide", "narrow") for key, value in (("width", 8), ("steps", 2))]


@pytest.fixture(scope="module")
def ws(tmp_path_factory):
    home = tmp_path_factory.mktemp("generation")
    overrides = ("data.max_train=200", "data.max_test=60", "data.calibration=0.2", "student.one_step.width=8", *SMALL)
    return run_shipped("generation", home, lambda folder: write_idx(folder, train=400, test=90), *overrides)


def test_every_model_ran_and_has_all_figures(ws):
    check_every_model_ran(ws)
    rows = rows_of(ws)
    assert [len(of(rows, kind)) for kind in ("teacher", "fusion", "student", "baseline")] == [2, 2, 2, 6]
    for row in rows:
        assert all(math.isfinite(row[name]) for name in FIGURES), row
        assert row["frechet"] >= 0
        assert 0 <= row["class_agreement"] <= 1
        assert DISHONEST not in row["name"]


def test_the_task_has_one_scale_and_stores_know_it(ws):
    assert isinstance(ws.task, Draws)
    assert len(set(ws.task.mean)) == len(set(ws.task.std)) == 1
    targets = ws.plan.splits["train"].targets
    assert float(targets.mean()) == pytest.approx(0, abs=1e-4)
    assert float(targets.std()) == pytest.approx(1, abs=1e-4)
    store = open_teacher(ws.store_folder("wide"))
    assert store.attributes["draws"]


def test_the_drawn_target_is_one_teachers_own_and_the_mean_is_none(ws):
    said = [open_teacher(ws.store_folder(name)).logits("train") for name in ("wide", "narrow")]
    drawn, mean = (open_targets(ws.target_folder(entry)).means("train") for entry in ws.recipe.fusion)
    is_own = [(drawn - each).abs().amax(1) < 2e-3 for each in said]  # fp16
    assert (is_own[0] | is_own[1]).all()
    assert 0.3 < is_own[0].double().mean() < 0.7
    assert ((mean - (said[0] + said[1]) / 2).abs() < 5e-3).all()


def test_a_teacher_starts_from_the_noise_of_its_records_seed(ws):
    ids = ws.plan.splits["test"].ids[:5]
    batch = ws.held_out("test")[0]
    assert (batch.inputs[:5, :784] == normal(ids, 784)).all()
    assert (ws.dataset.frame["seed"].to_numpy()[ids] == ids).all()


def test_teachers_are_steered_by_their_own_loss_and_students_by_how_far_all_are_from_all(ws):
    for entry in ws.recipe.teacher:
        history = read_manifest(ws.teacher_folder(entry)).details["history"]
        assert all({"mse", "train_own"} <= figures.keys() and "energy" not in figures for figures in history)
    (entry,) = ws.recipe.student
    for job in runs(ws, entry):
        details = read_manifest(folder_of(ws, job)).details
        best = min(details["history"], key=lambda figures: figures["energy"])
        assert best["step"] == details["best_step"]


def test_the_judge_belongs_to_its_recipe_and_is_no_waste(ws, capsys):
    (folder,) = (ws.root / "judges").iterdir()
    status.run(ws, as_json=True)
    rows = json.loads(capsys.readouterr().out)["artefacts"]
    assert [(row["path"], row["state"]) for row in rows if row["kind"] == "judges"] == [(str(folder), "finished")]
    gc.run([ws], delete=True)
    assert folder.exists()
    (ws.root / "judges" / "other-000000000000").mkdir()
    gc.run([ws], delete=True)
    assert list((ws.root / "judges").iterdir()) == [folder]


def test_the_page_shows_pictures_and_the_judge_is_kept(ws):
    folder = ws.root / "reports" / "generation"
    page = (folder / "index.html").read_text()
    assert "<h2>Pictures</h2>" in page
    assert "Fréchet distance of as many real train pictures" in page
    assert "Error by what is asked" not in page
    before = {path: path.stat().st_mtime_ns for path in (ws.root / "judges").rglob("*")}
    rows = json.loads((folder / "results.json").read_text())
    ws.done.clear()
    report.run(ws)
    assert ws.done == []
    assert json.loads((folder / "results.json").read_text()) == rows
    assert {path: path.stat().st_mtime_ns for path in (ws.root / "judges").rglob("*")} == before


def test_the_judge_sees_no_test_picture_and_a_damaged_one_is_made_anew(ws):
    judging = PictureJudging(ws)
    assert not np.isin(judging._learns_from(), ws.dataset.official_test).any()
    real = judging.figures(ws.task.truth(ws.plan.splits["test"]))
    assert real["frechet"] == pytest.approx(0, abs=1e-3)
    assert real["class_agreement"] > 0.9
    path = judging.folder / "judge.safetensors"
    whole = path.read_bytes()
    path.write_bytes(whole[:-4] + bytes(4))
    PictureJudging(ws)
    assert path.read_bytes() == whole


def test_a_flow_as_a_student_is_refused(tmp_path: Path):
    with pytest.raises(StillroomError, match=r"student.one_step.model: found 'flow', which learns from pictures alone"):
        load_recipe("generation", ["student.one_step.model=flow"])
