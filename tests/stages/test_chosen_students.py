"""Students that others decide: generations, a loss that was chosen, a search, and scikit-learn's estimators."""

import json
import shutil

import numpy as np
import pytest
import torch
from kinds import RECIPE, settle
from rich.console import Console

from pipeline.errors import StillroomError
from pipeline.lineage import read_manifest
from pipeline.report import student_answers
from pipeline.store import open_targets, open_teacher
from stages import auto, distill, estimators, gc, logits, report, runs, search, status, students
from stages.load import load_recipe
from stages.workspace import Workspace

STUDENT = """
[[student]]
name = "small"
model = "mlp"
width = 8
depth = 1
epochs = 10
batch_size = 9
lr = 0.01
seeds = [0]
baselines = false
generations = 3
[[student]]
name = "trees"
model = "sklearn.ensemble:ExtraTreesRegressor"
n_estimators = 8
max_features = "sqrt"
seeds = [0]
fit_views = 2
baselines = false
[[student]]
name = "linear"
model = "sklearn.linear_model:LogisticRegression"
max_iter = 500
seeds = [0]
baselines = false
loss = { alpha = 0.3 }
[[sweep]]
name = "look"
student = "small"
search = "optuna"
trials = 7
over = { lr = { low = 1e-4, high = 1e9, log = true }, width = [4, 8] }
"""


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    """A home in which the teachers have answered, and are gone."""
    home = tmp_path_factory.mktemp("chosen")
    settle(home)
    (home / "chosen.toml").write_text(RECIPE.format(folder=home / "pictures") + STUDENT)
    logits.run(workspace(home))
    shutil.rmtree(home / "data" / "teachers")
    return home


def workspace(home, *overrides) -> Workspace:
    return Workspace(load_recipe(str(home / "chosen.toml"), overrides), home / "data", Console(quiet=True))


NO_SEARCH = "sweep=[]"


def jobs_of(ws, name):
    return list(runs.runs(ws, ws.recipe.find("student", name)))


# -- generations ------------------------------------------------------------------------------------------------------


def test_each_generation_learns_what_the_one_before_says(home):
    ws = workspace(home, NO_SEARCH)
    distill.run(ws, student="small")
    first, second, third = jobs_of(ws, "small")
    assert [job.name for job in (first, second, third)] == ["small-s0", "small.g2-s0", "small.g3-s0"]
    for child, parent in ((second, first), (third, second)):
        store = open_teacher(ws.store_folder(parent.name))
        targets = open_targets(ws.target_folder(child.fusion))
        said = student_answers(runs.folder_of(ws, parent))
        torch.testing.assert_close(store.logits("test").log_softmax(-1), said, atol=4e-3, rtol=4e-3)
        temperature = store.manifest.details["temperature"] * targets.manifest.details["fitted"]["pool_temperature"]
        wanted = (store.logits("train", 1) / temperature).log_softmax(-1)
        torch.testing.assert_close(targets.log_probs("train", 1), wanted, atol=4e-3, rtol=4e-3)
        assert read_manifest(runs.folder_of(ws, child)).config["target"] == targets.fingerprint


def test_finished_generations_are_found_and_kept(home):
    ws = workspace(home, NO_SEARCH)
    distill.run(ws, student="small")
    again = workspace(home, NO_SEARCH)
    distill.run(again, student="small")
    assert again.done == []
    wanted = {entry.folder for entry in status.wanted(again)}
    assert {again.store_folder("small-s0"), again.store_folder("small.g2-s0")} <= wanted
    gc.run([again], delete=True)
    assert again.is_finished(again.store_folder("small.g2-s0"))


def test_a_generation_whose_parent_failed_is_named_and_the_others_go_on(home, tmp_path):
    copy = shutil.copytree(home, tmp_path / "home", ignore=shutil.ignore_patterns("students", "targets"))
    ws = Workspace(
        load_recipe(str(copy / "chosen.toml"), (NO_SEARCH, "student.small.lr=1e12")), copy / "data", Console(quiet=True)
    )
    faults = distill.train(ws)
    assert [fault for fault in faults if "its parent was not trained" in fault] == [
        "small.g2-s0: its parent was not trained",
        "small.g3-s0: its parent was not trained",
    ]
    assert any("expected a finite number" in fault for fault in faults)
    (trees,) = jobs_of(ws, "trees")
    assert ws.is_finished(runs.folder_of(ws, trees))


# -- scikit-learn -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["trees", "linear"])
def test_an_estimator_is_fitted_to_the_targets_and_sealed(home, name):
    ws = workspace(home, NO_SEARCH)
    distill.run(ws, student=name)
    (job,) = jobs_of(ws, name)
    manifest = read_manifest(runs.folder_of(ws, job))
    assert manifest.metrics["test"]["accuracy"] > 0.6  # a bar a class: chance is a third
    assert manifest.details["teacher_forwards"] == 0
    assert student_answers(runs.folder_of(ws, job)).exp().sum(1) == pytest.approx(1.0, abs=1e-3)
    report.run(ws)


def test_its_targets_are_what_alpha_says(home):
    ws = workspace(home, NO_SEARCH)
    (job,) = jobs_of(ws, "linear")
    distill.ensure_targets(ws, [job])
    reading = students.reading_of(ws, job)
    _, found = estimators.rows_of(ws, job, reading)
    teachers = reading.targets.log_probs("train", 0).double().exp()
    labels = torch.from_numpy(ws.plan.splits["train"].labels)
    wanted = teachers.clone()
    for row in np.flatnonzero(labels >= 0):
        wanted[row] *= 0.7
        wanted[row, labels[row]] += 0.3
    torch.testing.assert_close(found.exp(), wanted, atol=1e-6, rtol=1e-5)


def test_a_rule_that_follows_the_training_is_refused(home):
    ws = workspace(home, NO_SEARCH, "student.linear.loss.alpha=annealed")
    with pytest.raises(StillroomError, match=r"loss\.alpha: found 'annealed', which follows the training"):
        distill.run(ws, student="linear")


# -- a loss that was chosen -------------------------------------------------------------------------------------------


def test_auto_keeps_the_loss_of_lowest_calibration_nll_and_trains_it_in_full(home):
    ws = workspace(home, NO_SEARCH)
    assert distill.train(ws, student="linear", auto=False) == []
    faults = distill.train(ws, student="small", auto=True)
    assert faults == []
    entry = ws.recipe.find("student", "small")
    candidates = auto.candidates(ws, entry)
    nll = {
        name: read_manifest(runs.folder_of(ws, job)).metrics["calibration"]["nll"] for name, job in candidates.items()
    }
    (best,) = auto.chosen(ws, entry)
    winner = candidates[min(nll, key=nll.get)]
    assert best.entry.loss == winner.entry.loss
    assert best.entry.epochs == entry.epochs == 10 * winner.entry.epochs
    assert ws.is_finished(runs.folder_of(ws, best))
    again = workspace(home, NO_SEARCH)
    distill.train(again, student="small", auto=True)
    assert [folder for folder in again.done if "autos" not in folder] == []
    report.run(again)
    names = {row["name"] for row in json.loads((home / "data/reports/kinds/results.json").read_text())["rows"]}
    assert "small.best" in names


def test_auto_needs_a_stored_fusion(home):
    ws = workspace(home, NO_SEARCH, "student.small.generations=1", "student.small.fusion=labels")
    with pytest.raises(StillroomError, match="distill --auto: student 'small' learns from fusion 'labels'"):
        distill.train(ws, student="small", auto=True)


# -- a search ---------------------------------------------------------------------------------------------------------


def test_a_search_killed_between_trials_goes_on_with_the_same_ones(home, tmp_path):
    def fresh(name):
        keep = shutil.ignore_patterns("students", "targets", "searches")
        copy = shutil.copytree(home, tmp_path / name, ignore=keep)
        return Workspace(
            load_recipe(str(copy / "chosen.toml"), ("student.small.generations=1",)), copy / "data", Console(quiet=True)
        )

    whole, broken = fresh("whole"), fresh("broken")
    faults = distill.train(whole, student="small")
    trials = search.read_trials(whole, whole.recipe.sweep[0])
    assert len(trials) == 7
    assert {trial["state"] for trial in trials} >= {search.COMPLETE}
    assert len({trial["values"]["lr"] for trial in trials}) == 7
    failed = [trial for trial in trials if trial["state"] == search.FAILED]
    assert len(failed) == len(faults)
    distill.train(broken, student="small")
    path = search.search_folder(broken, broken.recipe.sweep[0]) / search.TRIALS
    path.write_text(json.dumps(json.loads(path.read_text())[:3]))
    distill.train(broken, student="small")
    assert search.read_trials(broken, broken.recipe.sweep[0]) == trials


def test_what_a_search_found_are_students_like_any_other(home):
    ws = workspace(home)
    distill.train(ws, student="small")
    found = [entry.name for entry in search.all_students(ws) if entry.name.startswith("small.look.")]
    complete = [t for t in search.read_trials(ws, ws.recipe.sweep[0]) if t["state"] == search.COMPLETE]
    assert found == [f"small.look.{trial['number']}" for trial in complete]
    for entry in search.all_students(ws):
        if entry.name in found:
            (job, *_) = runs.runs(ws, entry)
            assert ws.is_finished(runs.folder_of(ws, job))


def test_a_trial_that_falls_behind_is_ended_early(home):
    ws = workspace(home)
    sweep = ws.recipe.sweep[0]
    under_way = search.Search(ws, sweep)
    good = {"number": 0, "values": {"lr": 0.01, "width": 8}, "state": search.COMPLETE, "nll": 0.1}
    nlls = {str(evaluation): 0.1 for evaluation in range(1, 7)}
    under_way.trials = [{**good, "number": number, "nlls": nlls} for number in range(search.STARTUP_TRIALS)]
    (job, *_) = under_way.propose()
    every = ws.steps(job.entry, len(ws.plan.splits["train"]))[1]
    under_way.watch(job, {"nll": 9.0, "step": every})  # no trial is compared at once
    with pytest.raises(search.Pruned):
        under_way.watch(job, {"nll": 9.0, "step": search.WARMUP_EVALUATIONS * every})


def test_damaged_trials_are_told(home):
    ws = workspace(home)
    path = search.search_folder(ws, ws.recipe.sweep[0]) / search.TRIALS
    path.parent.mkdir(parents=True, exist_ok=True)
    kept = path.read_text() if path.exists() else None
    path.write_text("[{]")
    with pytest.raises(StillroomError, match=r"trials\.json: found no trials"):
        search.read_trials(ws, ws.recipe.sweep[0])
    if kept is None:
        path.unlink()
    else:
        path.write_text(kept)
