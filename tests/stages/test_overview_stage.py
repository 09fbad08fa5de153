"""All recipes in one go: those of a task are run and told on one page, one that fails ends none of the others."""

import json
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from rich.console import Console
from shipped import draw_nothing
from typer.testing import CliRunner

from pipeline.models import rules
from stages import load, overview
from stages.__main__ import app
from stages.load import load_recipe
from stages.overview import task_recipes
from stages.workspace import Workspace

RECIPE = """
name = "{name}"
{task}
[data]
table = "{table}"
label = "outcome"
text = ["note"]
calibration = 0.3
labelled = 40
[[teacher]]
name = "first"
model = "{model}"
reads = "{reads}"
[[teacher]]
name = "second"
model = "sklearn.naive_bayes:GaussianNB"
reads = "table"
[logits]
features = []
[[fusion]]
name = "pool"
strategy = "linear_pool"
[[student]]
name = "small"
model = "mlp"
width = 4
depth = 1
reads = "table"
fusion = "pool"
epochs = 1
batch_size = 32
seeds = [0, 1]
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """A folder of recipes: one sound, one that lacks an extra, one that is long, one of no task, one mistyped."""
    folder = tmp_path_factory.mktemp("recipes")
    draws = np.random.default_rng(0)
    told = draws.integers(0, 2, 150)
    note = np.where(told == 1, "much worse", "fine today")
    table = {
        "pulse": 70 + 20 * told + draws.normal(0, 5, 150),
        "note": note,
        "outcome": np.array(["home", "stay"])[told],
    }
    pd.DataFrame(table).to_csv(folder / "visits.csv", index=False)
    sound = {"model": "logistic", "reads": "table", "table": folder / "visits.csv"}
    recipes = {
        "visits": {"task": 'task = "tables"'},
        "reviews": {"task": 'task = "text"', "model": "vader", "reads": "text"},
        "hours": {"task": 'task = "tables"\nlong = true'},
        "first-look": {"task": ""},
        "mistyped": {"task": 'task = "tables"', "model": "logistik"},
    }
    for name, changes in recipes.items():
        (folder / f"{name}.toml").write_text(RECIPE.format(**{**sound, "name": name, **changes}))
    return folder


@pytest.fixture
def shipped(folder, monkeypatch) -> Path:
    """The folder in the place of the one that ships, and a machine without the extra `text`."""
    draw_nothing(monkeypatch)
    monkeypatch.setattr(load, "SHIPPED", folder)
    monkeypatch.setattr(overview, "SHIPPED", folder)
    monkeypatch.setitem(sys.modules, "vaderSentiment.vaderSentiment", None)
    rules.analyzer.cache_clear()
    yield folder
    rules.analyzer.cache_clear()


def test_recipes_say_themselves_that_they_are_of_a_task(shipped):
    assert task_recipes() == {"mistyped": "tables", "visits": "tables", "reviews": "text"}
    assert list(task_recipes(full=True)) == ["hours", "mistyped", "visits", "reviews"]


def test_of_those_that_ship_the_tasks_are_run_and_the_studies_are_not():
    assert {
        "sentiment": "text",
        "spam": "text",
        "diagnosis": "tables",
        "speech": "speech",
    }.items() <= task_recipes().items()
    everything = set(task_recipes(full=True))
    assert {"fashion", "fashion-full"} <= everything - set(task_recipes())
    assert not everything & {"smoke", "commented", "fusions", "curves", "digits"}


def test_what_a_recipe_is_an_example_of_changes_nothing_that_it_makes(folder, tmp_path):
    sound, bare = (folder / "visits.toml").read_text(), tmp_path / "visits.toml"
    bare.write_text(sound.replace('task = "tables"', ""))
    one, other = (
        Workspace(load_recipe(str(path)), tmp_path, Console(quiet=True)) for path in (folder / "visits.toml", bare)
    )
    assert (one.recipe.task, other.recipe.task) == ("tables", None)
    assert one.plan.fingerprint == other.plan.fingerprint
    assert one.teacher_config(one.recipe.teacher[0]) == other.teacher_config(other.recipe.teacher[0])
    assert one.target_config(one.recipe.fusion[0]) == other.target_config(other.recipe.fusion[0])


def test_a_failing_recipe_is_told_and_the_others_go_on(shipped, tmp_path):
    done = CliRunner().invoke(app, ["recipes", "--data-dir", str(tmp_path)])
    assert done.exit_code == 1
    assert "index.html: 3 recipes, 2 failed" in done.output
    found = json.loads((tmp_path / "reports" / "overview.json").read_text())["recipes"]
    assert [each["recipe"] for each in found] == ["mistyped", "visits", "reviews"]
    mistyped, visits, reviews = found
    assert mistyped["error"].startswith("mistyped.toml: teacher.first: unknown model 'logistik'")
    assert "\n" not in reviews["error"]
    assert reviews["error"].endswith("run pip install 'stillroom[text]'")
    assert (mistyped["task"], reviews["task"]) == ("tables", "text")
    assert reviews["students"] == []
    rows = json.loads((tmp_path / "reports" / "visits" / "results.json").read_text())["rows"]
    assert (visits["error"], visits["labelled"], visits["train"]) == (None, 40, 84)
    assert visits["teachers"] == {row["name"]: row["accuracy"] for row in rows if row["kind"] == "teacher"}
    (student,) = visits["students"]
    own = [row["accuracy"] for row in rows if row["kind"] == "student"]
    assert student["student"]["mean"] == pytest.approx(sum(own) / 2)
    page = (tmp_path / "reports" / "index.html").read_text()
    assert '<a href="visits/index.html">visits</a>' in page
    assert "unknown model &#39;logistik&#39;" in page
    assert (tmp_path / "reports" / "visits" / "index.html").exists()


def test_recipes_named_are_run_and_an_unforeseen_error_is_told_with_its_type(shipped, tmp_path, monkeypatch):
    def fails(ws):
        raise KeyError("odd\nlines")

    monkeypatch.setattr(overview.distill, "train", fails)
    done = CliRunner().invoke(app, ["recipes", "hours", str(shipped / "first-look.toml"), "--data-dir", str(tmp_path)])
    assert done.exit_code == 1
    found = json.loads((tmp_path / "reports" / "overview.json").read_text())["recipes"]
    assert [(each["recipe"], each["task"]) for each in found] == [("hours", "tables"), ("first-look", None)]
    assert all(each["error"].startswith("KeyError: ") for each in found)


def test_students_that_diverge_are_told_beside_what_is_finished(shipped, tmp_path, monkeypatch):
    trained = overview.distill.train

    def diverges(ws):
        return [*trained(ws), "small-s1: diverged\nand more"]

    monkeypatch.setattr(overview.distill, "train", diverges)
    outcome = overview.outcome_of("visits", lambda name: Workspace(load_recipe(name), tmp_path, Console(quiet=True)))
    assert outcome.error == "small-s1: diverged"
    assert len(outcome.rows) == 2 + 1 + 2 * 4
    assert outcome.page == "visits/index.html"
