"""scikit-learn students learn the whole distribution of a target, and come back from disk the same."""

import math
from typing import Any

import numpy as np
import pytest
import torch
from sklearn.discriminant_analysis import LinearDiscriminantAnalysis
from sklearn.ensemble import (
    ExtraTreesRegressor,
    HistGradientBoostingClassifier,
    HistGradientBoostingRegressor,
    RandomForestClassifier,
    RandomForestRegressor,
)
from sklearn.linear_model import LogisticRegression, Ridge
from sklearn.multioutput import MultiOutputRegressor
from sklearn.neural_network import MLPClassifier, MLPRegressor
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.svm import LinearSVC
from sklearn.tree import DecisionTreeRegressor
from torch import Tensor

from pipeline.errors import StillroomError
from pipeline.models import SoftTargetEstimator
from pipeline.models.soft_estimators import FLOOR, repeated_rows

STUDENTS: dict[str, tuple[Any, str]] = {
    "extra_trees": (ExtraTreesRegressor(20, min_samples_leaf=3), "probs"),
    "forest": (RandomForestRegressor(20, min_samples_leaf=3), "probs"),
    "tree": (DecisionTreeRegressor(max_depth=6), "probs"),
    "network": (MLPRegressor(hidden_layer_sizes=(24,), max_iter=150), "probs"),
    "scaled_network": (make_pipeline(StandardScaler(), MLPRegressor(hidden_layer_sizes=(24,), max_iter=150)), "log"),
    "log_boosting": (HistGradientBoostingRegressor(max_iter=25), "log"),
    "log_forest": (RandomForestRegressor(20, min_samples_leaf=3), "log"),
    "logistic": (LogisticRegression(), "probs"),
    "scaled_logistic": (make_pipeline(StandardScaler(), LogisticRegression()), "probs"),
    "boosting": (HistGradientBoostingClassifier(max_iter=25), "probs"),
    "forest_classifier": (RandomForestClassifier(20, min_samples_leaf=5), "probs"),
}
each_student = pytest.mark.parametrize("name", STUDENTS)


def case(num_rows: int = 300, num_classes: int = 3) -> tuple[Tensor, Tensor]:
    """Inputs [N, P] and log-probabilities [N, C] of a smooth, soft target."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(num_rows, 4, generator=generator)
    return x, (x @ torch.randn(4, num_classes, generator=generator)).log_softmax(-1)


def fitted(name: str, num_classes: int = 3, seed: int = 0) -> SoftTargetEstimator:
    estimator, space = STUDENTS[name]
    return SoftTargetEstimator(estimator, num_classes, space=space).fit(*case(num_classes=num_classes), seed=seed)


def divergence(target: Tensor, answer: Tensor) -> float:
    """Mean KL(target ‖ answer) in nats."""
    return (target.exp() * (target - answer)).sum(-1).mean().item()


@pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")
@pytest.mark.parametrize("num_classes", [2, 3])
@each_student
def test_answers_are_distributions_much_nearer_the_target_than_the_prior_is(name, num_classes):
    x, target = case(num_classes=num_classes)
    answer = fitted(name, num_classes).log_probs(x)
    assert answer.dtype == torch.float32
    assert answer.shape == target.shape
    torch.testing.assert_close(answer.exp().sum(-1), torch.ones(len(x)))
    assert answer.min() > math.log(FLOOR) - 0.01
    prior = target.exp().mean(0).log().expand_as(target)
    # a network's probabilities fall below zero here and there, and what the floor makes of them costs much
    bound = 0.6 if name == "network" else 0.35
    assert divergence(target, answer) < bound * divergence(target, prior)


@pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")
@each_student
def test_a_saved_student_answers_the_same_and_the_seed_decides_it(name, tmp_path):
    x, _ = case()
    student = fitted(name)
    assert student.save(tmp_path / "a") == ["estimator.skops", "estimator.json"]
    loaded = SoftTargetEstimator.load(tmp_path / "a")
    assert torch.equal(loaded.log_probs(x), student.log_probs(x))
    assert (loaded.num_classes, loaded.space) == (student.num_classes, student.space)
    again = fitted(name)
    assert torch.equal(again.log_probs(x), student.log_probs(x))
    again.save(tmp_path / "b")
    assert sorted(path.name for path in (tmp_path / "b").iterdir()) == ["estimator.json", "estimator.skops"]


def test_another_seed_is_another_forest_and_the_given_estimator_stays_as_it_was():
    x, _ = case()
    assert not torch.equal(fitted("extra_trees", seed=1).log_probs(x), fitted("extra_trees", seed=2).log_probs(x))
    assert not hasattr(STUDENTS["extra_trees"][0], "estimators_")
    assert STUDENTS["extra_trees"][0].random_state is None
    kept = SoftTargetEstimator(ExtraTreesRegressor(2, random_state=5), 3).fit(*case(), seed=1)
    assert kept.estimator.random_state == 5


def test_a_tree_without_limits_learns_the_targets_by_heart_in_either_space():
    x, target = case(num_rows=50)
    for space in ("probs", "log"):
        student = SoftTargetEstimator(DecisionTreeRegressor(), 3, space=space).fit(x, target)
        torch.testing.assert_close(student.log_probs(x), target, rtol=1e-4, atol=1e-4)


def test_a_regressor_of_one_output_is_fitted_once_per_class():
    student = fitted("log_boosting")
    assert isinstance(student.estimator, MultiOutputRegressor)
    assert not isinstance(fitted("network").estimator, MultiOutputRegressor)
    x, target = case()
    for column, part in enumerate(student.estimator.estimators_):
        alone = HistGradientBoostingRegressor(max_iter=25, random_state=0).fit(x.numpy(), target[:, column].double())
        np.testing.assert_allclose(part.predict(x.numpy()), alone.predict(x.numpy()))


def test_zero_probabilities_are_floored_on_both_sides():
    x = torch.arange(8.0)[:, None]
    target = torch.eye(2).log()[torch.arange(8) % 2]
    for estimator, space in [(DecisionTreeRegressor(), "probs"), (DecisionTreeRegressor(), "log")]:
        answer = SoftTargetEstimator(estimator, 2, space=space).fit(x, target).log_probs(x)
        expected = torch.full((2, 2), FLOOR).fill_diagonal_(1.0).log().log_softmax(-1)[torch.arange(8) % 2]
        torch.testing.assert_close(answer, expected)


# -- weights -----------------------------------------------------------------------------------------------------------


def test_repeated_rows_are_those_of_a_loop():
    probs = np.array([[0.7, 0.295, 0.005], [0.0, 1.0, 0.0], [0.2, 0.3, 0.5]])
    weights = np.array([1.0, 2.0, 0.5])
    expected = []
    for row, p in enumerate(probs):
        kept = [c for c in range(3) if p[c] > 0.01]
        expected += [(row, c, weights[row] * p[c] / sum(p[k] for k in kept)) for c in kept]
    found = list(zip(*repeated_rows(probs, weights), strict=True))
    assert [each[:2] for each in found] == [each[:2] for each in expected]
    assert [each[2] for each in found] == pytest.approx([each[2] for each in expected])


def test_a_row_of_many_equally_small_probabilities_is_not_lost():
    row, label, weight = repeated_rows(np.full((2, 200), 1 / 200), None)
    assert row.tolist() == [0, 1]
    assert label.tolist() == [0, 0]
    assert weight.tolist() == [1.0, 1.0]


def test_a_logistic_model_meets_the_gradient_of_the_soft_cross_entropy():
    x, target = case()
    student = SoftTargetEstimator(LogisticRegression(C=1e6, tol=1e-8, max_iter=2000), 3).fit(x, target)
    # at the optimum the mean of x (q - p) is zero; classes under 0.01 were left out, hence no closer
    residual = student.log_probs(x).exp() - target.exp()
    assert (x.T @ residual / len(x)).abs().max() < 0.01


@pytest.mark.parametrize("name", ["tree", "logistic", "log_boosting"])
def test_a_row_of_weight_zero_is_a_row_that_is_not_there(name):
    x, target = case()
    estimator, space = STUDENTS[name]
    weights = torch.cat([torch.zeros(100), torch.ones(200)])
    if name == "log_boosting":  # whose bins do look at every row
        estimator = HistGradientBoostingRegressor(max_iter=5, max_leaf_nodes=2, max_bins=255)
        x = (x * 2).round()
    both = [
        SoftTargetEstimator(estimator, 3, space=space).fit(x, target, weights),
        SoftTargetEstimator(estimator, 3, space=space).fit(x[100:], target[100:]),
    ]
    tolerance = {"rtol": 0.05, "atol": 0.05} if name != "tree" else {"rtol": 1e-5, "atol": 1e-5}
    torch.testing.assert_close(both[0].log_probs(x), both[1].log_probs(x), **tolerance)


def test_a_class_that_no_target_holds_possible_gets_the_floor():
    x, target = case(num_classes=2)
    padded = torch.cat([target[:, :1], torch.full((len(x), 1), -math.inf), target[:, 1:]], 1)
    student = SoftTargetEstimator(LogisticRegression(), 3).fit(x, padded)
    assert student.estimator.classes_.tolist() == [0, 2]
    answer = student.log_probs(x)
    torch.testing.assert_close(answer[:, 1], torch.full((len(x),), math.log(FLOOR)), rtol=0, atol=1e-3)
    torch.testing.assert_close(answer[:, [0, 2]], fitted("logistic", 2).log_probs(x), rtol=1e-3, atol=1e-3)


# -- size --------------------------------------------------------------------------------------------------------------


def test_parameters_are_coefficients_and_nodes():
    x, target = case()
    assert fitted("logistic").num_parameters() == 3 * 4 + 3
    assert SoftTargetEstimator(Ridge(), 3).fit(x, target).num_parameters() == 3 * 4 + 3
    assert fitted("tree").num_parameters() == fitted("tree").estimator.tree_.node_count
    forest = fitted("forest")
    assert forest.num_parameters() == sum(tree.tree_.node_count for tree in forest.estimator.estimators_)
    boosting = fitted("log_boosting")
    assert boosting.num_parameters() == sum(
        len(tree.nodes) for part in boosting.estimator.estimators_ for trees in part._predictors for tree in trees
    )


@pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")
def test_a_networks_parameters_are_counted_inside_a_pipeline():
    assert fitted("scaled_network").num_parameters() == 4 * 24 + 24 + 24 * 3 + 3


# -- faults ------------------------------------------------------------------------------------------------------------


def test_what_cannot_be_a_student_is_told():
    with pytest.raises(StillroomError, match=r"student\.a: unknown space 'logs'; .* did you mean 'log'"):
        SoftTargetEstimator(Ridge(), 3, space="logs", where="student.a")
    with pytest.raises(StillroomError, match="student: LinearSVC is no regressor and has no predict_proba; expected"):
        SoftTargetEstimator(LinearSVC(), 3)
    with pytest.raises(StillroomError, match=r"LinearDiscriminantAnalysis refused soft targets .*sample_weight"):
        SoftTargetEstimator(LinearDiscriminantAnalysis(), 3).fit(*case())
    with pytest.raises(ValueError, match=r"log_probs \(300, 3\); expected \(300, 4\)"):
        SoftTargetEstimator(Ridge(), 4).fit(*case())
    with pytest.raises(ValueError, match="MLPClassifier is of no kind whose parameters can be counted"):
        SoftTargetEstimator(MLPClassifier(), 3).num_parameters()


def test_damaged_files_are_told(tmp_path):
    fitted("logistic").save(tmp_path)
    (tmp_path / "estimator.json").write_text("{}")
    with pytest.raises(StillroomError, match=r"estimator\.json: found no usable settings .* retrain"):
        SoftTargetEstimator.load(tmp_path)
    (tmp_path / "estimator.skops").unlink()
    with pytest.raises(StillroomError, match=r"estimator\.skops: found no usable estimator"):
        SoftTargetEstimator.load(tmp_path)
