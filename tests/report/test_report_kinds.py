"""The stage on students of other kinds: a tree, an ensemble, a sweep and a choice of a loss, trained for real."""

import json
import re
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from rich.console import Console
from test_report_teaching import tables

from pipeline import report as reports
from pipeline.lineage import read_cost
from stages import distill, report, runs
from stages.load import load_recipe
from stages.workspace import Workspace

RECIPE = """
name = "kinds"
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
[[fusion]]
name = "mean"
[[student]]
name = "oak"
model = "soft_tree"
depth = 4
epochs = 2
seeds = [0]
baselines = false
[[student]]
name = "pair"
model = "mlp"
width = 4
depth = 1
epochs = 2
seeds = [0]
baselines = false
ensemble = 2
[[sweep]]
name = "rates"
student = "oak"
over = {{ lr = [1e-3, 1e-2, 2e-2] }}
"""
LEFT_OUT = 1  # trial of the sweep that is taken away


@pytest.fixture(scope="module")
def page_of(tmp_path_factory: pytest.TempPathFactory, nothing_drawn_for_a_module: None) -> Path:
    root = tmp_path_factory.mktemp("run")
    draws = np.random.default_rng(0)
    for number, name in enumerate(("one", "two", "three")):
        (root / "pictures" / name).mkdir(parents=True)
        for index in range(20):
            pixels = (draws.integers(0, 100, (8, 8)) + 70 * number).astype(np.uint8)
            Image.fromarray(pixels).save(root / "pictures" / name / f"{index}.png")
    (root / "kinds.toml").write_text(RECIPE.format(folder=root / "pictures"))
    distill.run(open_workspace(root))
    assert distill.train(open_workspace(root), student="oak", auto=True) == []
    ws = open_workspace(root)
    (left_out,) = runs.runs(ws, ws.recipe.students[2 + LEFT_OUT])
    (runs.folder_of(ws, left_out) / "manifest.json").unlink()
    report.run(ws)
    return root


def open_workspace(root: Path) -> Workspace:
    return Workspace(load_recipe(str(root / "kinds.toml"), []), root / "data", Console(quiet=True))


def test_the_page_of_a_run_with_a_student_of_each_kind(page_of: Path) -> None:
    page = (page_of / "data" / "reports" / "kinds" / "index.html").read_text()
    titles = re.findall("<h2>(.*?)</h2>", page)
    assert {"Sweeps", "Choice of a loss", "Ensembles", "What the tree asks"} <= set(titles)
    assert len(re.findall('alt="The top of the soft decision tree', page)) == 3  # as many as a page draws, of four
    by_head = {table[0][0]: table for table in tables(page)}
    finished = [row for row in by_head["trial"][1:] if len(row) == 5]
    assert [row[1] for row in by_head["trial"][1:]][-1] == "0.01"
    assert {row[1] for row in finished} == {"0.001", "0.02"}
    assert float(finished[0][2]) <= float(finished[1][2])
    assert len(by_head["loss, after a part of the epochs"]) > 10
    assert [row[0] for row in by_head["trained in full, on test rows"][1:]] == [
        "oak.best (the winner)",
        "oak (the recipe's loss)",
    ]
    assert [row[0] for row in by_head["member"][1:]] == ["pair-s0.m0", "pair-s0.m1"]


def test_an_ensemble_costs_what_its_members_do(page_of: Path) -> None:
    ws = open_workspace(page_of)
    (job,) = runs.runs(ws, ws.recipe.student[1])
    seconds = [read_cost(runs.folder_of(ws, member))["seconds"] for member in runs.members(job)]
    rows = json.loads((page_of / "data" / "reports" / "kinds" / "results.json").read_text())["rows"]
    (row,) = [row for row in rows if row["name"] == "pair"]
    assert row["seconds"] == pytest.approx(sum(seconds))
    assert {row["name"] for row in rows if row["kind"] == "student"} == {
        "oak",
        "oak.best",
        "pair",
        "oak.rates.0",
        "oak.rates.2",
    }


def test_a_page_is_written_anew_when_a_trial_comes_to_an_end_and_not_before(
    page_of: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    written = list[reports.Report]()
    monkeypatch.setattr(reports, "render", lambda report: written.append(report) or "page")
    again = open_workspace(page_of)
    report.run(again)
    assert not again.done
    assert not written
    distill.run(open_workspace(page_of))
    report.run(open_workspace(page_of))
    ((sweep,),) = [found.sweeps for found in written]
    assert sorted(trial.values["lr"] for trial in sweep.finished) == [1e-3, 1e-2, 2e-2]
