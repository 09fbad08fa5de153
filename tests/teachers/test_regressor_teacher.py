"""Regressors as teachers: they learn and answer in the targets' own unit, stores hear of standard ones."""

from pathlib import Path

import numpy as np
import pytest
import torch
from houses import NUMBERS, make_houses, make_plan, make_replayer
from sklearn.linear_model import LinearRegression

from pipeline.errors import StillroomError
from pipeline.models import build_model
from pipeline.models.estimators import load_sklearn
from pipeline.models.regressors import PerOutput
from pipeline.tasks import Reals
from pipeline.teachers import RegressorTeacher, fit_regressor
from pipeline.views import Replayer, ViewPlan


class Made:
    plan: ViewPlan
    task: Reals
    replayer: Replayer

    def __init__(self) -> None:
        self.dataset = make_houses()
        self.plan, self.task = make_plan(self.dataset, labelled=40)
        self.replayer = make_replayer(self.plan, self.dataset)

    def fit(self, name: str, seed: int = 0, **options):
        shape = self.replayer.samples.shape
        model = build_model(name, num_classes=2, in_shape=shape, is_real=True, **options)
        return fit_regressor(model, self.replayer, in_units=self.task.in_units, views=[0], seed=seed, where="teacher.a")

    def inputs(self, split: str) -> torch.Tensor:
        return self.replayer.batch(split, 0, np.arange(len(self.plan.splits[split]))).inputs


@pytest.fixture(scope="module")
def made() -> Made:
    return Made()


def test_it_learns_from_what_is_shown_alone_and_in_the_targets_unit(made):
    fitted = made.fit("sklearn.linear_model:LinearRegression")
    train = made.plan.splits["train"]
    rows = made.inputs("train").numpy()[train.labelled]
    truth = made.dataset.targets[train.ids[train.labelled]]
    assert len(rows) == 40
    for place in range(len(NUMBERS)):
        own = np.isfinite(truth[:, place])
        expected = LinearRegression().fit(rows[own], truth[own, place])
        np.testing.assert_allclose(fitted.estimators_[place].coef_, expected.coef_, rtol=1e-3, atol=1e-3)


def test_it_answers_in_standard_units(made):
    fitted = made.fit("ridge")
    teacher, inputs = RegressorTeacher(fitted, made.task.standardised), made.inputs("test")
    found = teacher.predict(inputs)
    assert found.logits.dtype == torch.float32
    assert found.features == {}
    own = fitted.predict(inputs.numpy())
    np.testing.assert_allclose(
        found.logits, (own - np.array(made.task.mean)) / np.array(made.task.std), rtol=1e-4, atol=1e-5
    )
    truth = made.task.truth(made.plan.splits["test"])
    assert made.task.metrics(found.logits, truth)["r2"] > 0.8


@pytest.mark.parametrize(("name", "options"), [("ridge", {}), ("forest_numbers", {"n_estimators": 4})])
def test_it_comes_back_from_its_file(made, tmp_path: Path, name, options):
    fitted = made.fit(name, **options)
    teacher = RegressorTeacher(fitted, made.task.standardised)
    assert teacher.save(tmp_path) == ["estimator.skops"]
    again = RegressorTeacher(load_sklearn(tmp_path / "estimator.skops", package=name), made.task.standardised)
    inputs = made.inputs("calibration")
    assert isinstance(again.estimator, PerOutput)
    assert torch.equal(again.predict(inputs).logits, teacher.predict(inputs).logits)


def test_the_same_seed_is_the_same_forest(made):
    inputs = made.inputs("test")
    one, same, other = (
        RegressorTeacher(made.fit("forest_numbers", seed=seed, n_estimators=4), made.task.standardised).predict(inputs)
        for seed in (0, 0, 1)
    )
    assert torch.equal(one.logits, same.logits)
    assert not torch.equal(one.logits, other.logits)


def test_rows_that_it_can_not_learn_from_are_told(made):
    with pytest.raises(
        StillroomError, match=r"teacher.a: AsRead refused 40 rows \(rows of 4 numbers where 2 are asked"
    ):
        made.fit("as_read")
    bare = Replayer(made.plan, made.replayer.samples)
    bare._targets = {**bare._targets, "train": torch.full_like(bare._targets["train"], float("nan"))}
    model = build_model("ridge", num_classes=2, in_shape=(4,), is_real=True)
    with pytest.raises(StillroomError, match=r"teacher.a: PerOutput refused 40 rows \(number 0 is known of no row\)"):
        fit_regressor(model, bare, in_units=made.task.in_units, views=[0], seed=0, where="teacher.a")
