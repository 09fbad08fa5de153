"""Stacking is scikit-learn run by hand on the teachers' log-probabilities, and keeps its estimator as bytes."""

import numpy as np
import pytest
import torch
from sklearn.ensemble import RandomForestClassifier
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from toys import fuse_store

from pipeline.errors import StillroomError
from pipeline.fusion import Mean, Outputs, Stacking, Target
from pipeline.fusion.stacking import SHARED, predict, side_by_side
from pipeline.models.estimators import dump_sklearn, read_sklearn

FOREST = "sklearn.ensemble:RandomForestClassifier"


def confused_world(count: int, seed: int, *, num_classes: int = 4) -> Outputs:
    """Three teachers that all say 1 for 0 and 0 for 1: no weight of theirs mends that."""
    draws = torch.Generator().manual_seed(seed)
    labels = torch.randint(0, num_classes, (count,), generator=draws)
    said = torch.where(labels < 2, 1 - labels, labels)
    logits = torch.nn.functional.one_hot(said, num_classes) * 3.0
    return Outputs(logits + torch.randn(3, count, num_classes, generator=draws), labels)


def by_hand(rows: Outputs) -> np.ndarray:
    """The inputs, one case at a time: [N, T * C]."""
    probs = rows.logits.double().softmax(-1).numpy()
    return np.array([np.concatenate([np.maximum(np.log(p[i]), -20) for p in probs]) for i in range(len(rows))])


def spread(known: np.ndarray) -> torch.Tensor:
    """Probabilities with a ten-thousandth shared out."""
    return torch.from_numpy((1 - SHARED) * known + SHARED / known.shape[1])


def test_it_is_logistic_regression_by_hand():
    fit_on, rows = confused_world(300, 0), confused_world(100, 1)
    estimator = make_pipeline(StandardScaler(), LogisticRegression(max_iter=10_000, tol=1e-8))
    estimator.fit(by_hand(fit_on), fit_on.labels.numpy())
    found = Stacking(options={"tol": 1e-8}).fit(fit_on).fuse(rows, temperature=1.0).log_probs
    expected = spread(estimator.predict_proba(by_hand(rows)))
    torch.testing.assert_close(found.double().exp(), expected, atol=1e-4, rtol=0)
    assert (found.argmax(-1) == rows.labels).double().mean() > 0.95
    assert (Mean().fuse(rows, temperature=1.0).log_probs.argmax(-1) == rows.labels).double().mean() < 0.6


def test_it_is_a_forest_by_hand():
    fit_on, rows = confused_world(200, 0), confused_world(50, 1)
    options = {"n_estimators": 7, "max_depth": 3}
    scaler = StandardScaler().fit(side_by_side(fit_on.logits))
    inputs, unseen = (scaler.transform(side_by_side(each.logits)) for each in (fit_on, rows))
    estimator = RandomForestClassifier(**options, random_state=0).fit(inputs, fit_on.labels.numpy())
    found = Stacking(FOREST, options).fit(fit_on).fuse(rows, temperature=1.0).log_probs
    expected = spread(estimator.predict_proba(unseen))
    torch.testing.assert_close(found.double().exp(), expected, atol=1e-6, rtol=0)


def test_inputs_are_floored_log_probabilities_side_by_side():
    rows = Outputs(torch.tensor([[[0.0, -90.0]], [[1.0, 0.0]]]), torch.tensor([0]))
    torch.testing.assert_close(torch.from_numpy(side_by_side(rows.logits)), torch.from_numpy(by_hand(rows)))
    assert side_by_side(rows.logits)[0, 1] == -20
    dense = torch.randn(2, 3, 4, 5, generator=torch.Generator().manual_seed(0))
    found = side_by_side(dense)
    assert found.shape == (12, 10)
    expected = torch.cat([dense[k, 1, 2].log_softmax(-1) for k in range(2)])
    torch.testing.assert_close(torch.from_numpy(found[6]).float(), expected)


def test_targets_soften_with_the_temperature_and_teachers_weigh_the_same():
    rows = confused_world(200, 0)
    fitted = Stacking().fit(rows)
    at_one = fitted.fuse(rows, temperature=1.0)
    at_four = fitted.fuse(rows, temperature=4.0)
    torch.testing.assert_close(at_four.log_probs, (at_one.log_probs / 4).log_softmax(-1))
    assert torch.equal(at_one.weights, torch.full((200, 3), 1 / 3))
    assert torch.equal(at_one.disagreement, Mean().fuse(rows, temperature=1.0).disagreement)


@pytest.mark.parametrize("estimator", ["sklearn.linear_model:LogisticRegression", FOREST])
def test_a_class_without_a_row_is_rare_and_not_impossible(estimator):
    rows = confused_world(200, 0)
    rows.labels[rows.labels == 2] = -1
    probs = Stacking(estimator).fit(rows).fuse(rows, temperature=1.0).log_probs.exp()
    torch.testing.assert_close(probs[:, 2], torch.full((200,), SHARED / 4))
    torch.testing.assert_close(probs.sum(-1), torch.ones(200))


def test_one_class_alone_is_the_answer():
    rows = confused_world(30, 0)
    rows.labels[:] = 3
    probs = Stacking().fit(rows).fuse(rows, temperature=1.0).log_probs.exp()
    torch.testing.assert_close(probs[:, 3], torch.full((30,), 1 - SHARED * 3 / 4))


def test_a_rows_place_and_neighbours_do_not_show_in_its_answer():
    fitted = Stacking().fit(confused_world(300, 0, num_classes=7))
    rows = confused_world(2500, 1, num_classes=7)
    whole = fitted.fuse(rows, temperature=1.0).log_probs
    order = torch.randperm(2500, generator=torch.Generator().manual_seed(2))
    assert torch.equal(fitted.fuse(rows[order], temperature=1.0).log_probs, whole[order])
    for start, stop in ((0, 1), (5, 1030), (1023, 1025)):
        assert torch.equal(fitted.fuse(rows[start:stop], temperature=1.0).log_probs, whole[start:stop])


def test_the_estimator_always_gets_equally_many_rows():
    class Counts:
        classes_ = (0, 1)
        seen: list[tuple[int, ...]] = []  # noqa: RUF012

        def predict_proba(self, inputs):
            self.seen.append(inputs.shape)
            return np.full((len(inputs), 2), 0.5)

    assert predict(Counts(), np.ones((2050, 6)), 2).shape == (2050, 2)
    assert predict(Counts(), np.ones((3, 6)), 2).shape == (3, 2)
    assert predict(Counts(), np.ones((20, 100_000)), 2).shape == (20, 2)
    assert Counts.seen == [(1024, 6)] * 4 + [(16, 100_000)] * 2


def test_what_is_kept_is_all_that_fusing_needs_and_the_same_each_time(tmp_path):
    rows = confused_world(60, 0)
    target = Target(Stacking(FOREST, {"n_estimators": 3})).fit(rows)
    state = {name: values.copy() for name, values in target.state.items()}
    again = Target(Stacking(FOREST, {"n_estimators": 3})).restored(state)
    assert torch.equal(again.fuse(rows, temperature=2.0).log_probs, target.fuse(rows, temperature=2.0).log_probs)
    repeated = Target(Stacking(FOREST, {"n_estimators": 3})).fit(rows).state
    assert state.keys() == repeated.keys()
    assert all(np.array_equal(state[name], repeated[name]) for name in state)
    assert state["estimator"].dtype == np.uint8


def test_a_store_keeps_the_estimator(stores, tmp_path):
    asked = {"estimator": FOREST, "options": {"n_estimators": 3}}
    first, second = (fuse_store(tmp_path / name, stores.teachers, strategy="stacking", **asked) for name in "ab")
    assert first.manifest.digests == second.manifest.digests
    assert any(name.startswith("fitted/fusion/estimator/") for name in first.manifest.digests)
    assert first.manifest.config["options"] == asked


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"estimator": "forest"}, r"estimator is 'forest'; expected package.module:attribute"),
        ({"estimator": "sklearn.linear_model:LogisticRegresion"}, "did you mean 'LogisticRegression'"),
        ({"estimator": "sklearn.svm:LinearSVC"}, "returned a LinearSVC; expected a torch.nn.Module, or a scikit-learn"),
        ({"estimator": "pipeline.models.mlp:mlp"}, "mlp:mlp is a Sequential; expected a scikit-learn classifier with"),
        ({"options": {"max_itr": 3}}, r"fusion 'stacking'.*'max_itr'.*did you mean 'max_iter'\?"),
        ({"options": 3}, "options is 3; expected a table of the estimator's options"),
    ],
)
def test_wrong_options_are_named_at_once(options, message):
    with pytest.raises(StillroomError, match=message):
        Stacking(**options)


def test_an_estimator_that_has_not_converged_is_told():
    with pytest.raises(
        StillroomError, match=r"LogisticRegression has not converged \(.*\); .*; raise options.max_iter"
    ):
        Stacking(options={"max_iter": 2}).fit(confused_world(100, 0))


def test_an_estimator_that_fails_is_told():
    with pytest.raises(StillroomError, match=r"LogisticRegression failed on 100 rows: .*'C'.*; expected it to fit"):
        Stacking(options={"C": -1.0}).fit(confused_world(100, 0))


def test_other_teachers_no_labels_and_no_fit_are_told():
    rows = confused_world(60, 0)
    fitted = Stacking().fit(rows)
    with pytest.raises(StillroomError, match="logits of 2 teachers, 4 classes; expected the 3 and 4 it was fitted on"):
        fitted.fuse(Outputs(rows.logits[:2], rows.labels), temperature=1.0)
    with pytest.raises(StillroomError, match="fusion 'stacking': it has no estimator yet; expected a fitted strategy"):
        Stacking().fuse(rows, temperature=1.0)
    with pytest.raises(StillroomError, match="fusion 'stacking': none of 60 rows has a label"):
        Stacking().fit(Outputs(rows.logits, rows.labels - 9))


def test_an_estimator_too_large_to_keep_is_told(monkeypatch):
    monkeypatch.setattr("pipeline.fusion.stacking.MAX_BYTES", 1000)
    with pytest.raises(StillroomError, match=r"the fitted estimator has [\d,]+ bytes; expected at most 1,000; choose"):
        Stacking().fit(confused_world(60, 0))


def test_bytes_that_are_no_estimator_are_told():
    whole = dump_sklearn(LogisticRegression())
    assert read_sklearn(whole, package="sklearn", where="here").get_params() == LogisticRegression().get_params()
    for content in (b"", b"x" * 300, whole[: len(whole) // 2]):
        with pytest.raises(StillroomError, match=r"here: found no usable estimator \(.+\); expected a skops file"):
            read_sklearn(content, package="sklearn", where="here")
