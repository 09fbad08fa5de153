"""The stage on a real run: pictures of three classes, two teachers, one student of two seeds."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from rich.console import Console

from pipeline import report as reports
from pipeline.errors import CorruptBlockError, StillroomError
from pipeline.lineage import MANIFEST, Manifest
from stages import distill, report, runs
from stages.league import LEAGUE
from stages.load import load_recipe
from stages.workspace import Workspace

RECIPE = """
name = "tiny_run"
[data]
folder = "{folder}"
test = 0.3
calibration = 0.3
[views]
count = 1
[[teacher]]
name = "net"
model = "mlp"
width = 8
epochs = 1
[[teacher]]
name = "forest"
model = "sklearn.ensemble:ExtraTreesClassifier"
n_estimators = 5
[[fusion]]
name = "mean"
[[student]]
name = "small"
model = "mlp"
width = 8
epochs = 2
seeds = [0, 1]
"""
SPLITS = ("calibration", "test")
ROWS = 2 + 1 + 2 * 4  # teachers, fusion, student and three baselines of two seeds


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("run")
    draws = np.random.default_rng(0)
    for number, name in enumerate(("<b>x", "plain", "third")):
        (root / "pictures" / name).mkdir(parents=True)
        for index in range(20):
            pixels = (draws.integers(0, 100, (8, 8)) + 70 * number).astype(np.uint8)
            Image.fromarray(pixels).save(root / "pictures" / name / f"{index}.png")
    (root / "tiny_run.toml").write_text(RECIPE.format(folder=root / "pictures"))
    distill.run(open_workspace(root))
    return root


def open_workspace(root: Path, *overrides: str, data: str = "data") -> Workspace:
    recipe = load_recipe(str(root / "tiny_run.toml"), list(overrides))
    return Workspace(recipe, root / data, Console(quiet=True))


def test_a_run_becomes_results_and_a_page_once(finished: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    report.run(open_workspace(finished))
    folder = finished / "data" / "reports" / "tiny_run"
    found = json.loads((folder / "results.json").read_text())
    assert len(found["rows"]) == ROWS
    assert {row["name"] for row in found["rows"] if row["kind"] == "baseline"} == set(reports.summary.BASELINES)
    assert all(row["teacher_forwards"] == 0 for row in found["rows"] if row["kind"] != "teacher")
    page = (folder / "index.html").read_text()
    assert "<b>x" not in page
    assert "&lt;b&gt;x" in page

    monkeypatch.setattr(reports, "render", lambda report: pytest.fail("the page was written again"))
    again = open_workspace(finished)
    report.run(again)
    assert not again.done


def test_what_is_unfinished_is_named(finished: Path) -> None:
    ws = open_workspace(finished, "name=partial", "student.small.seeds=[0, 5]")
    report.run(ws)
    folder = finished / "data" / "reports" / "partial"
    assert len(json.loads((folder / "results.json").read_text())["rows"]) == 2 + 1 + 4
    assert "student small-s5" in (folder / "index.html").read_text()


def test_without_one_teacher_store_the_rest_is_reported(finished: Path) -> None:
    ws = open_workspace(finished, "name=teacherless", "teacher.net.width=9")
    report.run(ws)
    folder = finished / "data" / "reports" / "teacherless"
    assert [row["name"] for row in json.loads((folder / "results.json").read_text())["rows"]] == ["forest"]
    page = (folder / "index.html").read_text()
    assert all(text in page for text in ("teacher net", "fusion mean", "baselines of small"))


def test_a_league_is_shown_where_there_is_one(finished: Path) -> None:
    ws = open_workspace(finished, "name=placed", "student=[]")
    report.run(ws)
    path = finished / "data" / "reports" / "placed" / "index.html"
    without = path.read_text()
    assert "Strategies of fusion" not in without
    assert without.count('alt="train row') == 4
    scores = {"accuracy": 0.5, "nll": 0.6875, "ece": 0.1, "weight_entropy": 0.1}
    row = {"name": "vote", "strategy": "vote", "options": {}, "fault": "", "scores": dict.fromkeys(SPLITS, scores)}
    details = {"name": "vote", "strategy": "vote", "options": {}, "rows": [row]}
    Manifest("league", "placed", ws.league_config(LEAGUE), details=details).write(ws.league_folder(LEAGUE))
    report.run(open_workspace(finished, "name=placed", "student=[]"))
    assert "vote (winner)</td><td>50.00</td><td>0.6875</td>" in path.read_text()


def test_examples_show_train_rows_as_the_teachers_saw_them(finished: Path) -> None:
    ws = open_workspace(finished)
    rows = np.array([3, 0, 7])
    transformed = ws.replayer.batch("train", 0, rows).inputs
    shown = torch.from_numpy(np.stack(report._as_shown(ws, rows))).float() / 255
    mean, std = (torch.tensor(numbers).view(1, -1, 1, 1) for numbers in (ws.plan.mean, ws.plan.std))
    torch.testing.assert_close((shown - mean) / std, transformed, atol=1e-4, rtol=0)  # no transforms: exact pixels
    np.testing.assert_array_equal(report._as_shown(ws, rows), ws.dataset.read(ws.plan.splits["train"].ids[rows]))


def test_nothing_at_all_is_a_clear_error_and_fetches_nothing(finished: Path) -> None:
    ws = open_workspace(finished, data="empty")
    with pytest.raises(StillroomError, match=r"found nothing finished of recipe 'tiny_run'; expected .*; run "):
        report.run(ws)
    assert not (finished / "empty").exists()


def test_other_bytes_of_a_students_answers_are_refused(finished: Path) -> None:
    ws = open_workspace(finished, "name=damaged")
    (job, *_) = runs.runs(ws, ws.recipe.student[0])
    folder = runs.folder_of(ws, job)
    assert (folder / MANIFEST).exists()
    path = folder / "answers.safetensors"
    sound = path.read_bytes()
    path.write_bytes(sound[:-1] + bytes([sound[-1] ^ 1]))
    try:
        with pytest.raises(CorruptBlockError, match=r"answers.safetensors: missing or other bytes"):
            report.run(ws)
    finally:
        path.write_bytes(sound)
