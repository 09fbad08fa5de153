"""Recipes side by side: what the page and the file say are the rows' own figures, and what went wrong is told."""

import json
import re
from typing import Any

import pytest

from pipeline.metrics import mean_interval, paired_interval
from pipeline.report import Outcome, Part, overview, render_overview
from pipeline.report.numbers import signed
from pipeline.report.overview import line_of


def rows_of(parts: list[Part]) -> list[dict[str, Any]]:
    """The rows of a run, each with a fingerprint of its own."""
    return [{**part.row, "fingerprint": str(place)} for place, part in enumerate(parts)]


@pytest.fixture
def outcome(parts: list[Part]) -> Outcome:
    return Outcome("made_up", "pictures", "toy <set>", 300, 2287, rows_of(parts), "made_up/index.html")


def real_rows(rows: list[dict[str, Any]], metric: str) -> list[dict[str, Any]]:
    """The same rows of a task whose answers are numbers: an error of 1 less the accuracy, and no accuracy."""
    return [{**row, metric: 1 - row["accuracy"], "accuracy": None} for row in rows]


def test_the_file_says_what_the_rows_do(outcome: Outcome) -> None:
    (found,) = overview([outcome])["recipes"]
    assert json.loads(json.dumps(found, allow_nan=False)) == found
    assert found["teachers"] == {"a": 0.5, "b": 0.5, "c": 0.5}
    assert (found["recipe"], found["task"], found["data"]) == ("made_up", "pictures", "toy <set>")
    assert (found["labelled"], found["train"], found["metric"], found["error"]) == (300, 2287, "accuracy", None)
    (student,) = found["students"]
    wanted = {"student": [0.8, 0.9], "hard_labels": [0.7, 0.7], "uniform_mean": [0.75, 0.95]}
    for name, values in wanted.items():
        interval = mean_interval(values)
        assert student[name] == {"mean": interval.mean, "low": interval.low, "high": interval.high}
    assert student["best_single"] is None
    assert (student["name"], student["seeds"], student["fused"], student["params"]) == ("small", 2, 0.5, 123)
    gain = paired_interval([0.8, 0.9], [0.7, 0.7])
    assert student["minus_hard_labels"] == {"mean": gain.mean, "low": gain.low, "high": gain.high}
    assert student["seconds"] == 3.0
    assert found["seconds"] == 3 * 16.0 + 2.0 + 6 * 3.0  # training and dump of each teacher, a fusion, six students


def test_an_artefact_of_two_roles_costs_once(outcome: Outcome) -> None:
    shared = [{**row, "fingerprint": "same"} if row["kind"] == "student" else row for row in outcome.rows]
    again = Outcome("again", rows=shared)
    assert line_of(outcome).seconds - line_of(again).seconds == 3.0


@pytest.mark.parametrize("metric", ["mae", "rmse"])
def test_a_task_of_numbers_is_judged_by_its_error(outcome: Outcome, metric: str) -> None:
    real = Outcome("real", rows=real_rows(list(outcome.rows), metric))
    (found,) = overview([real])["recipes"]
    assert found["metric"] == metric
    assert found["teachers"]["a"] == 0.5
    assert found["students"][0]["student"]["mean"] == pytest.approx(0.15)
    page = render_overview([real])
    assert f"<small>{metric.upper()}</small>" in page
    assert "0.1 ± " in page


def test_less_error_is_better_and_more_accuracy_is(outcome: Outcome) -> None:
    sure = [{**row, "accuracy": {"small": 0.8, "hard_labels": 0.7}.get(row["name"], 0.5)} for row in outcome.rows]
    worse = [{**row, "accuracy": 1 - row["accuracy"]} for row in sure]
    for rows, word, gain in ((sure, "right", 0.1), (worse, "wrong", -0.1)):
        points, error = signed(100 * gain, 2), signed(-gain, 1)
        assert f'<span class="{word}">{points}</span>' in render_overview([Outcome("x", rows=rows)])
        assert f'<span class="{word}">{error}</span>' in render_overview([Outcome("x", rows=real_rows(rows, "mae"))])


def test_one_seed_has_no_interval(outcome: Outcome) -> None:
    single = Outcome("single", rows=[row for row in outcome.rows if row["seed"] in (0, None)])
    (found,) = overview([single])["recipes"]
    assert found["students"][0]["minus_hard_labels"] == {"mean": pytest.approx(0.1), "low": None, "high": None}
    page = render_overview([single])
    assert "nan" not in page
    assert "±" not in page.partition("</table>")[0]
    assert '<span class="">+10.00</span></td>' in page


def test_students_without_a_baseline_are_left_out_but_the_first(outcome: Outcome) -> None:
    extra = [{**row, "name": "trial.1", "student": "trial.1"} for row in outcome.rows if row["kind"] == "student"]
    names = [s["name"] for s in overview([Outcome("x", rows=[*outcome.rows, *extra])])["recipes"][0]["students"]]
    assert names == ["small"]
    bare = [row for row in outcome.rows if row["name"] != "hard_labels"]
    (found,) = overview([Outcome("x", rows=bare)])["recipes"]
    assert [student["minus_hard_labels"] for student in found["students"]] == [None]


def test_a_student_on_labels_alone_has_no_fusion(outcome: Outcome) -> None:
    rows = [{**row, "fusion": None} if row["kind"] == "student" else row for row in outcome.rows]
    assert overview([Outcome("x", rows=rows)])["recipes"][0]["students"][0]["fused"] is None


def test_the_page_needs_nothing_but_itself_and_escapes_what_it_is_told(outcome: Outcome) -> None:
    failed = Outcome("broken", "text", error="vader: found no <package>; run pip install")
    page = render_overview([outcome, failed])
    assert re.findall(r'(?:href|src)="([^"]*)"', page) == ["made_up/index.html"]
    assert "@import" not in page
    assert "toy &lt;set&gt;" in page
    assert "300 labels of 2,287" in page
    assert "2 recipes, <b" in page
    assert "1 failed" in page
    assert page.count("found no &lt;package&gt;; run pip install") == 1
    assert "85.00 ± 63.53" in page


def test_what_is_finished_of_a_failed_recipe_is_shown_with_its_error(outcome: Outcome) -> None:
    page = render_overview([Outcome("half", rows=outcome.rows, error="small-s1: diverged")])
    assert "half: small-s1: diverged" in page
    assert "85.00 ± 63.53" in page
    assert "no student" not in page
