"""Recipes over records, end to end: a table of one's own, whose teachers and students read different inputs."""

import json

import numpy as np
import pandas as pd
import pytest
import torch
from rich.console import Console

from pipeline.errors import StillroomError
from pipeline.store import open_targets
from stages import distill, fuse, logits, report
from stages.load import load_recipe
from stages.runs import folder_of, runs
from stages.workspace import Workspace

RECIPE = """
name = "visits"
[data]
table = "{table}"
label = "outcome"
text = ["note"]
groups = "ward"
calibration = 0.2
test = 0.2
labelled = 60
[[input]]
name = "numbers"
kind = "table"
columns = ["age", "pulse", "ward"]
[[teacher]]
name = "linear"
model = "sklearn.linear_model:LogisticRegression"
reads = "numbers"
[[teacher]]
name = "words"
model = "tfidf_logistic"
reads = "text"
min_df = 1
[[teacher]]
name = "network"
model = "mlp"
reads = "numbers"
width = 8
depth = 1
epochs = 2
batch_size = 16
[logits]
features = []
[[fusion]]
name = "pool"
strategy = "linear_pool"
[[student]]
name = "bag"
model = "embedding_bag"
reads = "words"
buckets = 64
width = 4
fusion = "pool"
epochs = 2
batch_size = 32
seeds = [0, 1]
[[student]]
name = "small"
model = "mlp"
reads = "numbers"
width = 4
depth = 1
fusion = "pool"
epochs = 2
batch_size = 32
seeds = [0]
baselines = false
"""


def visits(count: int = 300) -> pd.DataFrame:
    """Return made-up visits whose note and pulse both tell the outcome."""
    draws = np.random.default_rng(0)
    outcome = draws.integers(0, 2, count)
    age = draws.normal(50, 15, count).round(1)
    age[::17] = np.nan
    said = np.where(draws.random(count) < 0.8, outcome, 1 - outcome)
    return pd.DataFrame(
        {
            "age": age,
            "pulse": 70 + 12 * outcome + draws.normal(0, 10, count),
            "ward": draws.choice(["north", "south"], count),
            "note": [
                ("feels much worse " if each else "feels fine today ") + f"visit{i}" for i, each in enumerate(said)
            ],
            "outcome": np.where(outcome == 1, "stay", "home"),
        }
    )


@pytest.fixture(scope="module")
def ws(tmp_path_factory):
    folder = tmp_path_factory.mktemp("records")
    visits().to_csv(folder / "visits.csv", index=False)
    (folder / "visits.toml").write_text(RECIPE.format(table=folder / "visits.csv"))
    made = Workspace(load_recipe(str(folder / "visits.toml")), folder / "data", Console(quiet=True))
    distill.run(made)
    report.run(made)
    return made


def test_each_model_reads_its_own_input_of_the_same_rows(ws):
    teachers = {entry.name: ws.replayer_of(entry.reads).batch("train", 0, np.arange(4)) for entry in ws.recipe.teacher}
    assert isinstance(teachers["words"].inputs, list)
    assert teachers["words"].inputs[0].startswith("feels")
    assert teachers["linear"].inputs.shape[0] == 4
    assert torch.equal(teachers["words"].labels, teachers["linear"].labels)
    student = ws.replayer_of("words").batch("train", 0, np.arange(4)).inputs
    assert student.dtype == torch.int64


def test_students_learn_from_teachers_that_read_something_else(ws):
    entry = ws.recipe.find("student", "bag")
    store = open_targets(ws.target_folder(ws.recipe.find("fusion", "pool")))
    assert store.log_probs("test").shape == (len(ws.plan.splits["test"]), 2)
    assert all(ws.is_finished(folder_of(ws, job)) for job in runs(ws, entry))
    rows = json.loads((ws.root / "reports" / "visits" / "results.json").read_text())["rows"]
    teachers = {row["name"]: row for row in rows if row["kind"] == "teacher"}
    assert teachers["linear"]["accuracy"] > 0.6
    assert teachers["words"]["accuracy"] > 0.6
    for row in rows:
        assert 0.3 <= row["auroc"] <= 1
        assert 0 <= row["group_gap"] <= 1


def test_the_page_shows_records_in_words(ws):
    page = (ws.root / "reports" / "visits" / "index.html").read_text()
    assert '<p class="record">feels' in page


def test_another_input_of_the_students_leaves_teachers_and_targets_alone(ws):
    changed = ws.recipe.model_copy(
        update={"input": [*ws.recipe.input, ws.recipe.input[0].model_copy(update={"name": "other"})]}
    )
    other = Workspace(changed, ws.root, ws.console)
    for entry in ws.recipe.teacher:
        assert other.teacher_folder(entry) == ws.teacher_folder(entry)
    entry = ws.recipe.find("student", "small")
    (job,) = runs(ws, entry)
    assert folder_of(other, job) == folder_of(ws, job)
    (moved,) = runs(other, entry.model_copy(update={"reads": "table"}))
    assert folder_of(other, moved) != folder_of(ws, job)


def test_a_changed_option_of_an_input_makes_other_teachers(ws):
    spec = ws.recipe.input[0].model_copy(update={"columns": ["age", "pulse"]})
    other = Workspace(ws.recipe.model_copy(update={"input": [spec]}), ws.root, ws.console)
    linear, words = (ws.recipe.find("teacher", name) for name in ("linear", "words"))
    assert other.teacher_folder(linear) != ws.teacher_folder(linear)
    assert other.teacher_folder(words) == ws.teacher_folder(words)


def test_a_column_says_which_rows_are_the_test(ws, tmp_path):
    table = visits()
    table["held"] = ["test" if row % 5 == 0 else "train" for row in range(len(table))]
    table.to_csv(tmp_path / "visits.csv", index=False)
    text = RECIPE.format(table=tmp_path / "visits.csv").replace("[[input]]", 'test_rows = "held"\n[[input]]', 1)
    (tmp_path / "visits.toml").write_text(text)
    other = Workspace(load_recipe(str(tmp_path / "visits.toml")), tmp_path / "data", Console(quiet=True))
    assert np.array_equal(other.plan.splits["test"].ids, np.arange(0, len(table), 5))
    assert "held" not in other.dataset.frame


def test_a_finished_recipe_is_found_again(ws):
    again = Workspace(ws.recipe, ws.root, ws.console)
    logits.run(again)
    fuse.run(again)
    distill.run(again)
    assert again.done == []


@pytest.mark.parametrize(
    ("change", "fault"),
    [
        ('reads = "words"|reads = "wrds"', "student.bag.reads: unknown input 'wrds'.*did you mean.*words"),
        ("[[input]]|[views]\ncount = 4\n[[input]]", "views: found count; expected none"),
        ('label = "outcome"|label = "outcom"', "outcom.*did you mean.*outcome"),
        ('kind = "table"|kind = "tabel"', "input.numbers.kind.*tabel.*did you mean.*table"),
        ('label = "outcome"|label = "outcome"\nsize = 8', "data.size: found 8; expected it only of pictures"),
        ('label = "outcome"\n|', "data.label: missing; expected the table's column"),
        (
            'model = "embedding_bag"\nreads = "words"|model = "embedding_bag"\nreads = "text"',
            "student.bag.reads: found 'text', text; expected words, which embedding_bag reads",
        ),
    ],
)
def test_faults_say_what_to_do(ws, tmp_path, change, fault):
    old, new = change.split("|")
    text = RECIPE.format(table=ws.root.parent / "visits.csv")
    assert old in text
    (tmp_path / "visits.toml").write_text(text.replace(old, new))
    with pytest.raises(StillroomError, match=f"(?s){fault}"):
        distill.run(Workspace(load_recipe(str(tmp_path / "visits.toml")), tmp_path / "data", Console(quiet=True)))
