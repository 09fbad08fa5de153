"""A recipe that ships, run whole on a few hundred made records in place of those it fetches, and what it must say."""

import json
import math
from collections import Counter
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from pipeline.datasets import boxed, opening
from pipeline.lineage import require_manifest
from pipeline.report import figures, matrices
from stages import distill
from stages import report as reporting
from stages.document import read_document
from stages.load import SHIPPED, load_recipe
from stages.runs import folder_of, runs
from stages.workspace import Workspace

EPOCHS, SEEDS = 2, [0, 1]
DRAWN = {
    figures: ("comparison", "learning_curves", "pay_back"),
    matrices: ("agreement_matrix", "class_recall", "reliability_diagrams", "teaching"),
}
BASELINES = ("hard_labels", "best_single", "uniform_mean")
RATES = ("accuracy", "precision", "recall", "f1", "ece", "auroc")


def run_shipped(name: str, home: Path, write: Callable[[Path], None], *overrides: str) -> Workspace:
    """Return the workspace of a shipped recipe, distilled and reported.

    `write` lays down the files of its data set as they are fetched; each model trains for EPOCHS, each student with
    SEEDS.
    """
    document, folder = read_document(SHIPPED / f"{name}.toml"), home / "made"
    folder.mkdir()
    write(folder)
    sections = ("teacher", "student")
    cut = [f"{section}.{entry['name']}.epochs={EPOCHS}" for section in sections for entry in document[section]]
    cut += [f"student.{entry['name']}.seeds={SEEDS}" for entry in document["student"]]
    ws = Workspace(load_recipe(name, [*cut, *overrides]), home / "data", Console(quiet=True))
    with pytest.MonkeyPatch.context() as patch:
        for module in (opening, boxed):
            patch.setattr(module, "fetch", lambda *_, **__: folder)
        draw_nothing(patch)
        distill.run(ws)
        reporting.run(ws)
    return ws


def draw_nothing(patch: pytest.MonkeyPatch) -> None:
    """Leave out the figures of reports: they take seconds, and are tested elsewhere."""
    for module, drawn in DRAWN.items():
        for figure in drawn:
            patch.setattr(module, figure, lambda *_: b"png")


def rows_of(ws: Workspace) -> list[dict[str, Any]]:
    """Return the rows of the recipe's `results.json`."""
    return json.loads((ws.root / "reports" / ws.recipe.name / "results.json").read_text())["rows"]


def check_every_model_ran(ws: Workspace) -> None:
    """Each teacher, fusion, student and baseline was made by this very process, as the recipe says."""
    for entry in ws.recipe.teacher:
        assert str(ws.teacher_store_folder(entry)) in ws.done
        trained = require_manifest(ws.teacher_folder(entry), "teacher", make_with="stillroom teachers")
        assert trained.config["training"]["model"] == entry.model
    for fusion in ws.recipe.fusion:
        assert str(ws.target_folder(fusion)) in ws.done
    for entry in ws.recipe.student:
        for job in runs(ws, entry):
            assert str(folder_of(ws, job)) in ws.done
            student = require_manifest(folder_of(ws, job), "student", make_with="stillroom distill")
            assert student.config["training"]["model"] == entry.model
            assert student.details["steps"] > 0
            assert student.details["teacher_forwards"] == 0


def check_rows(ws: Workspace, *, classes: int) -> None:
    """There is a row of everything, each with figures that can be, and a fusion is no worse than its worst teacher."""
    rows, recipe = rows_of(ws), ws.recipe
    expected: Counter[tuple[str, str, str | None, int | None]] = Counter(
        [("teacher", entry.name, None, entry.seed) for entry in recipe.teacher]
        + [("fusion", entry.name, None, None) for entry in recipe.fusion]
        + [("student", entry.name, entry.name, seed) for entry in recipe.student for seed in SEEDS]
        + [
            ("baseline", role, entry.name, seed)
            for entry in recipe.student
            for seed in SEEDS
            for role in entry.compared_with
        ]
    )
    assert Counter((row["kind"], row["name"], row.get("student"), row["seed"]) for row in rows) == expected
    for row in rows:
        assert all(0 <= row[name] <= 1 for name in RATES), row
        assert math.isfinite(row["nll"])
        assert row["nll"] >= 0
        assert row["split"] == "test"
    worst = max(row["nll"] for row in of(rows, "teacher"))
    for fusion in of(rows, "fusion"):
        assert fusion["nll"] < worst + 0.05
        assert sum(fusion["mean_weights"].values()) == pytest.approx(1, abs=1e-3)
    pool = next(row for row in of(rows, "fusion") if row["name"] == "pool")
    assert pool["nll"] < math.log(classes)
    assert pool["accuracy"] > 1 / classes


def of(rows: Iterable[dict[str, Any]], kind: str) -> list[dict[str, Any]]:
    """Return the rows of a kind."""
    return [row for row in rows if row["kind"] == kind]
