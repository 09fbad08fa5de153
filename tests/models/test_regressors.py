"""Estimators of several numbers: what one fitted to each says, gaps, and who is taken for one."""

import numpy as np
import pytest
from sklearn.base import clone
from sklearn.ensemble import ExtraTreesRegressor
from sklearn.linear_model import LinearRegression, Ridge

from pipeline.errors import StillroomError
from pipeline.models import REGRESSORS, build_model, check_model
from pipeline.models.estimators import dump_sklearn, read_sklearn
from pipeline.models.regressors import AsRead, PerOutput

DRAWS = np.random.default_rng(0)
X = DRAWS.normal(size=(60, 3)).astype(np.float32)
Y = X @ DRAWS.normal(size=(3, 2)) + 0.1 * DRAWS.normal(size=(60, 2))
SHAPE = {"num_classes": 2, "in_shape": (3,)}
OPTIONS = {"forest_numbers": {"n_estimators": 5}, "boosted_numbers": {"max_iter": 5, "min_samples_leaf": 3}}


def with_gaps() -> np.ndarray:
    gaps = Y.copy()
    gaps[::3, 0], gaps[1::2, 1] = np.nan, np.nan
    return gaps


def test_each_number_is_a_fit_of_its_own_to_the_rows_that_know_it():
    gaps = with_gaps()
    found = PerOutput(LinearRegression()).fit(X, gaps).predict(X)
    for place in range(2):
        own = np.isfinite(gaps[:, place])
        assert 0 < own.sum() < 60
        expected = LinearRegression().fit(X[own], gaps[own, place]).predict(X)
        np.testing.assert_array_equal(found[:, place], expected)


def test_a_gap_costs_no_other_number_a_row():
    gaps = Y.copy()
    gaps[::3, 0] = np.nan
    found, whole = (PerOutput(Ridge()).fit(X, y).predict(X) for y in (gaps, Y))
    np.testing.assert_array_equal(found[:, 1], whole[:, 1])
    assert (found[:, 0] != whole[:, 0]).any()


def test_a_number_that_nobody_knows_is_told():
    gaps = Y.copy()
    gaps[:, 1] = np.nan
    with pytest.raises(ValueError, match="number 1 is known of no row"):
        PerOutput(Ridge()).fit(X, gaps)


def test_what_is_wrapped_is_not_changed_and_clones_forget():
    inner = ExtraTreesRegressor(n_estimators=3, random_state=0)
    fitted = PerOutput(inner).fit(X, Y)
    assert not hasattr(inner, "estimators_")
    assert not hasattr(clone(fitted), "estimators_")
    assert fitted.get_params()["estimator__n_estimators"] == 3


def test_a_forecast_is_what_it_reads():
    found = AsRead().fit(Y, Y).predict(Y[:5])
    np.testing.assert_array_equal(found, Y[:5])
    with pytest.raises(ValueError, match="rows of 3 numbers where 2 are asked for"):
        AsRead().fit(X, Y)


@pytest.mark.parametrize("name", [name for name in REGRESSORS if name != "as_read"])
def test_each_of_the_zoo_learns_several_numbers_with_gaps(name):
    model = build_model(name, **SHAPE, is_real=True, **OPTIONS.get(name, {}))
    assert isinstance(model, PerOutput)
    found = model.fit(X, with_gaps()).predict(X)
    assert found.shape == (60, 2)
    for place in range(2):
        assert np.corrcoef(found[:, place], Y[:, place])[0, 1] > 0.5
    content = dump_sklearn(model)
    again = read_sklearn(content, package="sklearn", where="here")
    np.testing.assert_array_equal(again.predict(X), found)
    assert dump_sklearn(model) == content


@pytest.mark.parametrize("name", REGRESSORS)
def test_options_are_those_of_the_class(name):
    assert check_model(name, OPTIONS.get(name, {}), "teacher.a") == []
    (fault,) = check_model(name, {"no_such": 1}, "teacher.a")
    assert "teacher.a" in fault
    assert "no_such" in fault


def test_a_regressor_by_import_path_is_fitted_to_each_number():
    model = build_model("sklearn.neighbors:KNeighborsRegressor", **SHAPE, is_real=True, n_neighbors=2)
    assert isinstance(model, PerOutput)
    assert model.fit(X, with_gaps()).predict(X).shape == (60, 2)


@pytest.mark.parametrize("spec", ["forest", "logistic", "prior", "sklearn.linear_model:LogisticRegression"])
def test_a_classifier_is_refused_where_numbers_are_asked_for(spec):
    message = rf"teacher.a: {spec} answers with classes; expected a model of real numbers, .*as_read, .*ridge"
    with pytest.raises(StillroomError, match=message):
        build_model(spec, **SHAPE, where="teacher.a", is_real=True)


@pytest.mark.parametrize("name", REGRESSORS)
def test_a_regressor_is_refused_where_classes_are_asked_for(name):
    with pytest.raises(
        StillroomError, match=f"teacher.a: {name} returned a .*; expected a torch.nn.Module, or a scikit"
    ):
        build_model(name, **SHAPE, where="teacher.a")


def test_a_network_is_one_of_numbers_as_it_is():
    model = build_model("mlp", **SHAPE, is_real=True, width=4, depth=1)
    assert model.classifier.out_features == 2
