"""What calibration rows chose: sweeps, ensembles and losses by hand, and what the page says of them."""

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from test_report_teaching import tables

from pipeline.lineage import Manifest, read_manifest
from pipeline.report import (
    Cost,
    Part,
    Report,
    SweepTable,
    ensemble_tables,
    listed,
    loss_table,
    render,
    results,
    student_part,
    sweep_table,
)

MakeReport = Callable[..., Report]
pytestmark = pytest.mark.usefixtures("nothing_drawn")
SCORES = {"accuracy": 0.5, "precision": 0.4, "recall": 0.5, "f1": 0.45, "nll": 1.0, "ece": 0.1, "brier": 0.6}


def student(
    folder: Path, name: str, seed: int, nll: float, accuracy: float = 0.5, test: float = 0.5, **details: Any
) -> Part:
    """A student's part as its manifest tells it, once written and read."""
    known = {"seed": seed, "parameters": 10, "history": [], "steps": 1, "rows": 1, "teacher_forwards": 0}
    metrics = {"calibration": {"nll": nll, "accuracy": accuracy}, "test": {**SCORES, "accuracy": test}}
    config = {"name": name, "seed": seed, "training": {"model": "mlp"}}
    own = folder / f"{name}-{seed}"
    own.mkdir()
    Manifest("student", name, config, metrics=metrics, details={**known, **details}).write(own)
    manifest = read_manifest(own)
    assert manifest is not None
    return student_part(manifest, own, {"seconds": 1.0}, entry=name, role="student", fusion="mean")


def sweep_of(folder: Path, nlls: dict[int, list[float]], count: int, seeds: int = 1) -> tuple[SweepTable, list[Part]]:
    """A sweep of `count` trials, of which those with NLLs are finished, one a seed."""
    parts = [student(folder, f"s.w.{n}", seed, nll) for n, own in nlls.items() for seed, nll in enumerate(own)]
    values = {f"s.w.{number}": {"lr": number / 10, "loss.kind": "kl"} for number in range(count)}
    return sweep_table("s.w", values, parts, seeds=seeds), parts


def test_a_sweep_by_hand(tmp_path: Path) -> None:
    parts = [
        student(tmp_path, "s.w.0", 0, nll=0.5, accuracy=0.5, test=0.25),
        student(tmp_path, "s.w.0", 1, nll=1.0, accuracy=0.75, test=0.75),
        student(tmp_path, "s.w.2", 0, nll=0.25),
        student(tmp_path, "s.w.2", 1, nll=0.5),
        student(tmp_path, "s", 0, nll=0.0),  # no trial of it
        student(tmp_path, "s.w.22", 0, nll=0.0),  # of another name
    ]
    values = {f"s.w.{number}": {"lr": number} for number in range(4)}
    found = sweep_table("s.w", values, parts, seeds=2, faults={"s.w.3": "ended early"})
    assert [trial.name for trial in found.trials] == ["s.w.2", "s.w.0", "s.w.1", "s.w.3"]
    assert found.trials[1].scores == {"calibration_nll": 0.75, "calibration_accuracy": 0.625, "test_accuracy": 0.5}
    assert [trial.seeds for trial in found.trials] == [2, 2, 0, 0]
    assert found.best is found.trials[0]
    assert "diverged" in found.trials[2].fault
    assert found.trials[3].fault == "ended early"
    assert (found.keys, found.trials[0].values) == (["lr"], {"lr": 2})


def test_a_trial_with_a_seed_too_few_is_not_the_best(tmp_path: Path) -> None:
    found, _ = sweep_of(tmp_path, {0: [0.1], 1: [0.5, 0.5], 2: [0.75, 0.5]}, 3, seeds=2)
    assert [trial.name for trial in found.trials] == ["s.w.0", "s.w.1", "s.w.2"]
    assert found.best is not None
    assert found.best.name == "s.w.1"
    assert sweep_of(tmp_path, {}, 3)[0].best is None


@pytest.mark.parametrize("count", [12, 13])
def test_many_trials_leave_the_league_and_stay_in_the_results(
    make_report: MakeReport, parts: list[Part], tmp_path: Path, count: int
) -> None:
    folder = tmp_path / "trials"
    folder.mkdir()
    sweep, trials = sweep_of(folder, {n: [1.0 - (n == 7) / 2] for n in range(count)}, count)
    spent = [Cost("distill", part.row["name"], part.folder, 1.0) for part in trials]
    report = make_report(parts=[*parts, *trials], sweeps=[sweep], costs=spent)
    page = render(report)
    league = next(table for table in tables(page) if table[0][-1] == "time")
    in_league = [row[0] for row in league if row[0].startswith("s.w.")]
    assert in_league == ([f"s.w.{n}" for n in range(12)] if count == 12 else ["s.w.7"])
    costs = [row[1:3] for row in tables(page)[-1] if row[0] == "Distill"]
    assert costs[0] == (["s.w.0", "1"] if count == 12 else ["s.w (sweep)", "13"])
    assert ("the best of each sweep alone" in page) == (count == 13)
    assert len(results("r", report.rows)["rows"]) == len(parts) + count
    assert [part for part in listed(report.parts, [sweep]) if part not in trials] == parts


def test_the_page_shows_a_sweep(make_report: MakeReport, parts: list[Part], tmp_path: Path) -> None:
    folder = tmp_path / "trials"
    folder.mkdir()
    sweep, trials = sweep_of(folder, {0: [0.5], 2: [0.25]}, 3)
    page = render(make_report(parts=[*parts, *trials], sweeps=[sweep]))
    table = next(table for table in tables(page) if table[0][0] == "trial")
    assert table == [
        ["trial", "lr", "loss.kind", "calibration NLL, nats", "calibration accuracy, %", "test accuracy, %"],
        ["2 (best)", "0.2", "kl", "0.2500", "50.00", "50.00"],
        ["0", "0", "kl", "0.5000", "50.00", "50.00"],
        ["1", "0.1", "kl", sweep.trials[2].fault],
    ]
    assert page.count("(best)") == 1
    assert "<h2>Sweeps</h2>" not in render(make_report(sweeps=[sweep_of(tmp_path, {}, 3)[0]]))


def test_a_long_sweep_says_what_it_leaves_out(make_report: MakeReport, parts: list[Part], tmp_path: Path) -> None:
    folder = tmp_path / "trials"
    folder.mkdir()
    sweep, trials = sweep_of(folder, {n: [float(n)] for n in range(53)}, 53 + 14)
    page = render(make_report(parts=[*parts, *trials], sweeps=[sweep]))
    table = next(table for table in tables(page) if table[0][0] == "trial")
    assert [row[0] for row in table[2:51]] == [str(n) for n in range(1, 50)]
    assert len(table) == 1 + 50 + 12
    assert "3 more trials of a higher NLL are in results.json." in page
    assert "2 more trials are not finished." in page


def test_members_keep_their_accuracy_whatever_the_order_of_a_manifest(tmp_path: Path) -> None:
    counts = {f"s-s0.m{member}": member % 3 for member in range(12)}
    details = {"counts": counts, "members_accuracy": [m / 16 for m in range(12)], "calibration_nll": [0.5, 0.25]}
    part = student(tmp_path, "s", 0, 0.25, test=0.875, **details)
    (table,) = ensemble_tables([student(tmp_path, "other", 0, 0.1), part])
    (run,) = table.runs
    assert part.manifest is not None
    assert list(part.manifest.details["counts"]) != list(counts)  # m10 comes before m2
    assert run.members == [(f"s-s0.m{member}", member / 16, member % 3) for member in range(12)]
    assert (table.student, run.role, run.seed, run.kept, run.accuracy) == ("s", "student", 0, 8, 0.875)
    assert run.nlls == [0.5, 0.25]


def test_the_page_shows_an_ensemble(make_report: MakeReport, parts: list[Part], tmp_path: Path) -> None:
    counts = {"s-s0.m0": 2, "s-s0.m1": 0, "s-s0.m2": 1}
    details = {"counts": counts, "members_accuracy": [0.5, 0.25, 0.75], "calibration_nll": [0.75, 0.5, 0.4375]}
    part = student(tmp_path, "s", 0, 0.25, test=0.875, **details)
    page = render(make_report(parts=[*parts, part], ensembles=ensemble_tables([part])))
    whole, members = (t for t in tables(page) if t[0][0] in ("learns from", "member"))
    assert whole[1] == ["its fusion", "0", "2 of 3", "50.00", "75.00", "87.50", "0.7500", "0.4375", "10"]
    assert members[1:] == [["s-s0.m0", "50.00", "2"], ["s-s0.m1", "25.00", "0"], ["s-s0.m2", "75.00", "1"]]
    assert "after each pick: 0.7500, 0.5000, 0.4375." in page
    assert "<h2>Ensembles</h2>" not in render(make_report())


def test_the_page_shows_a_choice_beside_what_came_of_it(
    make_report: MakeReport, parts: list[Part], tmp_path: Path
) -> None:
    figures = {
        "kl, <T> = 1": {"nll": 0.5, "accuracy": 0.75, "ece": 0.125},
        "dkd": {"nll": 0.25, "accuracy": 0.5, "ece": 0.25},
    }
    details = json.loads(json.dumps({"winner": "dkd", "calibration": figures}))
    best = [student(tmp_path, "small.best", seed, 0.25, test=0.875) for seed in (0, 1)]
    page = render(make_report(parts=[*parts, *best], losses=[loss_table("small", details)]))
    tried, in_full = (t for t in tables(page) if t[0][0].startswith(("loss,", "trained in full")))
    assert tried[1:] == [["dkd (winner)", "0.2500", "50.00", "25.0"], ["kl, <T> = 1", "0.5000", "75.00", "12.5"]]
    assert [row[0] for row in in_full[1:]] == ["small.best (the winner)", "small (the recipe's loss)"]
    assert [re.sub(" .*", "", row[2]) for row in in_full[1:]] == ["87.50", "85.00"]
    assert "<T>" not in page
    assert "<h2>Choice of a loss</h2>" not in render(make_report())
