"""Recipes whose data asks for real numbers, end to end: what they make, and what they refuse once they have run."""

import json
import math
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from prices import Home

from pipeline.errors import StillroomError
from pipeline.lineage import read_manifest
from pipeline.losses import RealDistillation
from pipeline.real_metrics import regression_metrics
from pipeline.report import figures
from pipeline.store import open_targets, open_teacher
from pipeline.store.verify import verify
from pipeline.teachers import RegressorTeacher
from stages import codecs, distill, export, fuse, importing, logits, predict, report, status
from stages import verify as verifying
from stages.estimators import mixed
from stages.runs import folder_of, runs
from stages.workspace import Workspace

BASELINES = {"hard_labels", "best_single", "uniform_mean"}


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    return Home(tmp_path_factory.mktemp("houses"))


@pytest.fixture(scope="module")
def ws(home):
    made = home.workspace()
    with pytest.MonkeyPatch.context() as patch:
        for drawn in ("comparison", "learning_curves", "pay_back", "by_output"):
            patch.setattr(figures, drawn, lambda *_: b"png")
        distill.run(made)
        fuse.run(made)
        report.run(made)
    return made


def rows_of(ws: Workspace) -> list[dict[str, Any]]:
    return json.loads((ws.root / "reports" / ws.recipe.name / "results.json").read_text())["rows"]


# -- what is made -----------------------------------------------------------------------------------------------------


def test_every_row_has_errors_and_none_has_an_accuracy(ws):
    rows = rows_of(ws)
    found = {(row["kind"], row["name"], row.get("student"), row["seed"]) for row in rows}
    assert found == {
        *(("teacher", name, None, 0) for name in ("line", "trees", "network", "near")),
        *(("fusion", name, None, None) for name in ("plain", "stack", "precision")),
        *(("student", "tiny", "tiny", seed) for seed in (0, 1)),
        *(("baseline", role, "tiny", seed) for role in BASELINES for seed in (0, 1)),
        ("student", "plainer", "plainer", 0),
        *(("baseline", role, "plainer", 0) for role in BASELINES),
    }
    truth = ws.dataset.targets[ws.plan.splits["test"].ids]
    spread = np.sqrt(np.nanmean((truth - np.nanmean(truth, axis=0)) ** 2))
    for row in rows:
        assert 0 < row["mae"] < row["rmse"] < spread, row["name"]
        assert row["r2"] == pytest.approx(1 - row["rmse"] ** 2 / spread**2, rel=1e-3)
        assert row.keys().isdisjoint({"accuracy", "nll", "ece", "f1", "precision", "recall", "brier", "auroc"})
        assert "skill" not in row


def test_students_learn_what_labels_and_teachers_know(ws):
    rmse = {(row["kind"], row["name"], row.get("student"), row["seed"]): row["rmse"] for row in rows_of(ws)}
    assert rmse["teacher", "line", None, 0] < 20  # noise alone is 15 and 4
    for seed in (0, 1):
        assert rmse["student", "tiny", "tiny", seed] < 2 * rmse["teacher", "line", None, 0]
    assert rmse["fusion", "stack", None, None] < rmse["fusion", "plain", None, None]


def test_the_figures_of_a_student_are_those_of_its_answers(ws):
    job = next(runs(ws, ws.recipe.find("student", "tiny")))
    answers = report.reports.student_answers(folder_of(ws, job), as_kept=True)
    truth = torch.from_numpy(ws.dataset.targets[ws.plan.splits["test"].ids])
    found = regression_metrics(ws.task.in_units(answers), truth)
    manifest = read_manifest(folder_of(ws, job))
    assert manifest is not None
    assert manifest.metrics["test"] == pytest.approx(found, rel=1e-3)


def test_rows_without_labels_teach_and_do_not_tell(ws):
    train = ws.plan.splits["train"]
    assert len(train.labelled) == 120 < len(train)
    hidden = train.labels == -1
    assert np.isnan(train.targets[hidden]).all()
    store = open_targets(ws.target_folder(ws.recipe.find("fusion", "stack")))
    assert store.means("train").isfinite().all()
    assert np.isnan(store.read("train", "targets")[hidden]).all()
    truth = ws.dataset.targets[train.ids[train.labelled]]
    assert ws.task.mean == pytest.approx(np.nanmean(truth, axis=0), rel=1e-5)


def test_every_store_is_sound_and_its_teacher_says_the_same_again(ws, capsys):
    for entry in ws.recipe.teacher:
        assert open_teacher(ws.teacher_store_folder(entry)).is_real
    assert verifying.run(ws.root, ws=ws, as_json=False) == 0
    assert "8 stores, 0 faults" in capsys.readouterr().out  # four teachers, three fusions, the best teacher alone


def test_a_teacher_that_says_something_else_is_told(ws, monkeypatch):
    folder = ws.teacher_store_folder(ws.recipe.find("teacher", "line"))
    own = RegressorTeacher.predict
    monkeypatch.setattr(
        RegressorTeacher, "predict", lambda self, inputs: type(a := own(self, inputs))(a.logits * 1.01, a.features)
    )
    (fault,) = verifying._faults(folder, ws)
    assert re.search(
        r"values of \w+ view 0 row \d+: 0.0\d+ off the teacher's answer now; expected <= 0.001", fault.fault
    )


def test_the_page_speaks_of_errors_alone(ws):
    page = (ws.root / "reports" / "houses" / "index.html").read_text()
    text = re.sub(r"<(style|script).*?</\1>", "", page, flags=re.S)
    text = re.sub(r"data:image[^\"']*", "", text)
    for word in ("accuracy", "NLL", "nats", "ECE", "macro F1", "calibrated", "temperature", "nan"):
        assert not re.search(rf"\b{word}\b", text), re.findall(rf".{{60}}\b{word}\b.{{60}}", text)[:3]
    for word in ("RMSE", "MAE", "R²", "tiny", "precision"):
        assert word in text, word


def test_run_again_it_does_nothing(ws, home):
    again = home.workspace()
    distill.run(again)
    report.run(again)
    assert again.done == []
    status.run(again, as_json=False)


def test_another_loss_trains_students_alone(ws, home):
    other = home.workspace(
        'student.tiny.loss={ kind = "huber", alpha = 0.3, delta = 0.5 }',
        "student.tiny.seeds=[0]",
        "student.tiny.epochs=2",
    )
    distill.run(other, student="tiny")
    made = sorted(Path(folder).parent.name for folder in other.done)
    assert made == ["students"] * 4
    assert other.teacher_forwards == 0


def test_another_fusion_leaves_the_teachers_alone(ws, home):
    other = home.workspace("fusion.precision.strategy=median", "fusion.precision.codec=real16")
    fuse.run(other, "precision")
    assert [Path(folder).parent.name for folder in other.done] == ["targets"]
    store = open_targets(other.target_folder(other.recipe.find("fusion", "precision")))
    assert store.codec.kind == "real16"
    assert verify(store.folder) == []


def test_a_fusion_may_be_fitted_out_of_fold(ws, home):
    other = home.workspace("logits.folds=2", "fusion.stack.fit_on=out_of_fold")
    fuse.run(other, "stack")
    assert {Path(folder).name.split("-")[0] for folder in other.done} >= {"line.fold0", "line.fold1", "stack"}
    store = open_teacher(other.teacher_store_folder(other.recipe.find("teacher", "line")))
    scores = store.manifest.details["scores"]
    assert scores["out_of_fold"]["rmse"] > 0
    assert len(store.logits("out_of_fold")) == 120


def test_a_single_teacher_is_a_fusion(ws, home):
    other = home.workspace("fusion.precision.strategy=single:line")
    fuse.run(other, "precision")
    store = open_targets(other.target_folder(other.recipe.find("fusion", "precision")))
    line = open_teacher(ws.teacher_store_folder(ws.recipe.find("teacher", "line")))
    torch.testing.assert_close(store.means("test"), line.logits("test"))


def test_a_number_that_does_not_vary_has_no_r2(home, monkeypatch):
    home.table.assign(price=7.3).drop(columns="area").to_csv(home.folder / "flat.csv", index=False)
    text = home.recipe.read_text().replace("houses.csv", "flat.csv").replace('["price", "area"]', '["price"]')
    text = text.replace('name = "houses"', 'name = "flat"').replace("epochs = 30", "epochs = 1")
    for strategy in ("stacking", "inverse_variance"):
        text = text.replace(strategy, "median")
    for drawn in ("comparison", "learning_curves", "pay_back", "by_output"):
        monkeypatch.setattr(figures, drawn, lambda *_: b"png")
    other = home.workspace(recipe=text)
    distill.run(other)
    fuse.run(other)
    report.run(other)
    rows = rows_of(other)
    assert {row["kind"] for row in rows} == {"teacher", "fusion", "student", "baseline"}
    assert all(row["r2"] is None and math.isfinite(row["rmse"]) for row in rows)
    assert next(row for row in rows if row["name"] == "line")["rmse"] < 1e-5


# -- scikit-learn's students ------------------------------------------------------------------------------------------


def test_a_regressor_is_fitted_to_teachers_and_labels_as_the_loss_weighs_them(ws):
    job = next(runs(ws, ws.recipe.find("student", "plainer")))
    store, train = open_targets(ws.target_folder(job.fusion)), ws.plan.splits["train"]
    x = ws.replayer_of(None).batch("train", 0, np.arange(len(train))).inputs.double().numpy()
    wanted = mixed(store.means("train"), torch.from_numpy(train.targets), 0.25).double().numpy()
    design = np.column_stack([x, np.ones(len(x))])
    weights, *_ = np.linalg.lstsq(design, wanted, rcond=None)
    test = ws.replayer_of(None).batch("test", 0, np.arange(len(ws.plan.splits["test"]))).inputs.double().numpy()
    own = np.column_stack([test, np.ones(len(test))]) @ weights
    found = report.reports.student_answers(folder_of(ws, job), as_kept=True)
    np.testing.assert_allclose(found.numpy(), own, atol=5e-3)


@pytest.mark.parametrize("alpha", [0.0, 0.3, 1.0])
def test_mixed_numbers_are_where_the_loss_is_least(alpha):
    draws = torch.Generator().manual_seed(0)
    means, targets = torch.randn(2, 6, 3, generator=draws, dtype=torch.float64)
    targets[1, 0], targets[2, :2], targets[3] = math.nan, math.nan, math.nan
    values = mixed(means, targets, alpha)
    is_silent = values.isnan()
    assert is_silent.any() == (alpha == 1)
    values = values.nan_to_num().requires_grad_()
    loss, _ = RealDistillation("mse", alpha)(values, means, torch.ones_like(means), targets)
    (gradient,) = torch.autograd.grad(loss.sum(), values)
    assert gradient.abs().max() < 1e-12


def test_a_regressor_with_another_loss_is_told(ws, home):
    other = home.workspace('student.plainer.loss={ kind = "huber" }', "student.plainer.baselines=false")
    with pytest.raises(
        StillroomError, match=r"student.plainer.loss.kind: found 'huber'; expected 'mse', for this student"
    ):
        distill.run(other, student="plainer")


def test_a_zoo_regressor_may_be_a_student(ws, home):
    other = home.workspace("student.plainer.model=ridge", "student.plainer.baselines=false")
    distill.run(other, student="plainer")
    job = next(runs(other, other.recipe.find("student", "plainer")))
    manifest = read_manifest(folder_of(other, job))
    assert manifest is not None
    assert manifest.metrics["test"]["r2"] > 0.8
    assert manifest.digests.keys() == {"estimator.skops", "answers.safetensors"}


# -- what is refused --------------------------------------------------------------------------------------------------


COMMANDS = {
    "fuse --all": lambda ws: fuse.run(ws, compare=True),
    "fuse --auto": lambda ws: fuse.run(ws, auto=True),
    "distill --auto": lambda ws: distill.train(ws, auto=True),
    "export": lambda ws: export.run(ws),
    "codecs": lambda ws: codecs.run(ws),
    "import": lambda ws: importing.run(ws, "other", ws.root / "other.csv"),
}


@pytest.mark.parametrize("command", COMMANDS)
def test_commands_that_know_classes_alone_say_so(ws, home, command):
    with pytest.raises(
        StillroomError, match=f"^{command}: found recipe 'houses', which asks for real numbers; expected one of classes"
    ):
        COMMANDS[command](home.workspace())


def test_predict_says_that_it_is_of_pictures(ws):
    for name in ("tiny", "plainer"):
        folder = folder_of(ws, next(runs(ws, ws.recipe.find("student", name))))
        with pytest.raises(StillroomError, match="found a student of records; expected one of pictures"):
            predict.run(folder, [])


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (
            "sklearn.linear_model:LogisticRegression",
            "teacher.near: .* answers with classes; expected a model of real num",
        ),
        (
            "sklearn.neighbors:KNeighborsClassifier",
            "teacher.near: .* answers with classes; expected a model of real num",
        ),
    ],
)
def test_a_classifier_by_import_path_is_told_when_it_is_built(ws, home, model, message):
    text = home.recipe.read_text().replace("sklearn.neighbors:KNeighborsRegressor", model)
    other = home.workspace(recipe=text.replace("n_neighbors = 4\n", ""))
    with pytest.raises(StillroomError, match=message):
        logits.run(other)
