"""Teachers answer with finite logits in the data set's classes, and come back from disk the same, without pickle."""

import pickle
from types import SimpleNamespace

import numpy as np
import pytest
import skops.io
import torch
from sklearn.dummy import DummyClassifier
from sklearn.ensemble import ExtraTreesClassifier
from sklearn.naive_bayes import GaussianNB
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import FunctionTransformer, StandardScaler
from toys import SHAPE, make_dataset, make_plan, make_teacher

from pipeline.answers import Answers, check_answers
from pipeline.errors import StillroomError
from pipeline.models import build_model
from pipeline.models.estimators import load_sklearn
from pipeline.models.rules import Vader
from pipeline.models.weights import load_weights
from pipeline.teachers import SklearnTeacher, TorchTeacher, fit_sklearn, fit_torch
from pipeline.teachers.sklearn import ESTIMATOR, PROBABILITY_FLOOR
from pipeline.teachers.torch import WEIGHTS
from pipeline.train import Schedule, predict, seeded
from pipeline.views import Replayer, ViewLoader

INPUTS = torch.randn(9, *SHAPE, generator=torch.Generator().manual_seed(0))


# -- scikit-learn -----------------------------------------------------------------------------------------------------


def without_class_1() -> Replayer:
    """The toy data with the labels of class 1 hidden from train: 3 classes, of which a teacher sees 0 and 2."""
    dataset = make_dataset()
    plan = make_plan(dataset)
    train = plan.splits["train"]
    train.labels[train.labels == 1] = -1
    return Replayer(plan, dataset)


@pytest.mark.parametrize("estimator", [ExtraTreesClassifier(5), GaussianNB()])
def test_a_class_that_no_label_shows_keeps_its_column(estimator):
    fitted = fit_sklearn(estimator, without_class_1(), views=[0, 1], seed=0)
    assert fitted.classes_.tolist() == [0, 2]
    logits = SklearnTeacher(fitted, 3).predict(INPUTS).logits
    known = torch.from_numpy(fitted.predict_proba(INPUTS.flatten(1).numpy())).float()
    assert logits.shape == (9, 3)
    assert logits.dtype == torch.float32
    torch.testing.assert_close(logits[:, [0, 2]].exp(), known.clamp(min=PROBABILITY_FLOOR))
    torch.testing.assert_close(logits[:, 1].exp(), torch.full((9,), PROBABILITY_FLOOR))


def test_a_zero_probability_stays_finite():
    certain = DummyClassifier(strategy="constant", constant=1).fit(np.zeros((3, 1)), [0, 1, 2])
    answers = SklearnTeacher(certain, 3).predict(INPUTS)
    check_answers(answers, 3, "here")
    assert answers.logits.argmax(1).tolist() == [1] * 9


def test_an_estimator_learns_from_labelled_rows_of_the_chosen_views():
    class Remembers(DummyClassifier):
        def fit(self, x, y):
            self.seen = x, y
            return super().fit(x, y)

    replayer = without_class_1()
    inputs, labels = fit_sklearn(Remembers(), replayer, views=[1, 0], seed=0).seen
    positions = replayer.plan.splits["train"].labelled
    batches = [replayer.batch("train", view, positions) for view in (1, 0)]
    assert np.array_equal(inputs, torch.cat([batch.inputs for batch in batches]).flatten(1))
    assert np.array_equal(labels, torch.cat([batch.labels for batch in batches]))
    assert set(labels) == {0, 2}


def test_seed_and_jobs_are_set_where_the_recipe_left_them_alone():
    left, set_ = ExtraTreesClassifier(2), ExtraTreesClassifier(2, random_state=7, n_jobs=1)
    for estimator, expected in ((left, (5, -1)), (set_, (7, 1))):
        fitted = fit_sklearn(estimator, without_class_1(), views=[0], seed=5)
        assert (fitted.random_state, fitted.n_jobs) == expected
    assert fit_sklearn(DummyClassifier(), without_class_1(), views=[0], seed=2**40 + 3).random_state == 3


@pytest.mark.parametrize("estimator", [ExtraTreesClassifier(5), make_pipeline(StandardScaler(), GaussianNB())])
def test_an_estimator_comes_back_from_disk_as_it_was(estimator, tmp_path):
    teacher = SklearnTeacher(fit_sklearn(estimator, without_class_1(), views=[0], seed=0), 3)
    assert teacher.save(tmp_path / "deep") == [ESTIMATOR]
    again = SklearnTeacher(load_sklearn(tmp_path / "deep" / ESTIMATOR, package="sklearn"), 3)
    assert torch.equal(again.predict(INPUTS).logits, teacher.predict(INPUTS).logits)
    assert teacher.feature_widths == {}


# -- texts ------------------------------------------------------------------------------------------------------------


class Texts:
    """A replayer of six texts, of which the last shows no label; two views."""

    labelled = np.arange(5)

    def batch(self, split: str, view: int, positions: np.ndarray) -> SimpleNamespace:
        rows = ["a good film", "a bad film", "good fun", "bad and sad", "so good", "unlabelled words"]
        texts = [rows[position] + (" again" if view else "") for position in positions]
        return SimpleNamespace(inputs=texts, labels=torch.tensor([2, 0, 2, 0, 2, -1])[positions])


def test_texts_are_given_as_they_are_of_every_view():
    class Remembers(DummyClassifier):
        def fit(self, x, y):
            self.seen = x, y
            return super().fit(x, y)

    texts, labels = fit_sklearn(Remembers(), Texts(), views=[1, 0], seed=0).seen
    assert texts[:2] == ["a good film again", "a bad film again"]
    assert texts[5:] == ["a good film", "a bad film", "good fun", "bad and sad", "so good"]
    assert labels.tolist() == [2, 0, 2, 0, 2] * 2


@pytest.mark.parametrize("name", ["tfidf_logistic", "tfidf_bayes", "prior"])
def test_a_teacher_of_texts_comes_back_from_disk_with_the_same_logits(name, tmp_path):
    teacher = SklearnTeacher(fit_sklearn(text_model(name), Texts(), views=[0], seed=0), 3)
    answers = teacher.predict(["good", "a sad film", ""])
    check_answers(answers, 3, "here")
    assert answers.logits[:, 1].tolist() == pytest.approx([np.log(PROBABILITY_FLOOR)] * 3)
    teacher.save(tmp_path)
    again = SklearnTeacher(load_sklearn(tmp_path / ESTIMATOR, package=name), 3)
    assert torch.equal(again.predict(["good", "a sad film", ""]).logits, answers.logits)


def text_model(name: str):
    return build_model(name, num_classes=3, in_shape=())


def test_an_input_of_the_other_kind_is_refused_before_the_estimator_sees_it():
    of_text = fit_sklearn(text_model("tfidf_bayes"), Texts(), views=[0], seed=0)
    with pytest.raises(StillroomError, match=r"teacher.t: Pipeline reads text; found numbers; have 'reads' name an in"):
        SklearnTeacher(of_text, 3, where="teacher.t").predict(INPUTS)
    with pytest.raises(StillroomError, match=r"teacher.n: GaussianNB reads numbers; found text; have 'reads' name"):
        fit_sklearn(GaussianNB(), Texts(), views=[0], seed=0, where="teacher.n")
    with pytest.raises(StillroomError, match=r"teacher: Vader reads text; found numbers"):
        SklearnTeacher(Vader().fit([], [0, 1]), 2).predict(INPUTS)


def test_an_estimator_that_does_not_say_what_it_reads_is_given_either():
    class Own:
        classes_ = (0, 2)

        def predict_proba(self, rows):
            return [[0.5, 0.5]] * len(rows)

    assert SklearnTeacher(Own(), 3).predict(["a", "b"]).logits.shape == (2, 3)
    assert SklearnTeacher(Own(), 3).predict(INPUTS).logits.shape == (9, 3)
    lengths = FunctionTransformer(lambda texts: [[len(text)] for text in texts])
    fitted = fit_sklearn(make_pipeline(lengths, GaussianNB()), Texts(), views=[0], seed=0)
    assert SklearnTeacher(fitted, 3).predict(["a", "b"]).logits.shape == (2, 3)


def test_the_random_states_of_parts_are_set_and_their_jobs_left_alone():
    parts = make_pipeline(StandardScaler(), ExtraTreesClassifier(2))
    fitted = fit_sklearn(parts, without_class_1(), views=[0], seed=5)
    assert (fitted[-1].random_state, fitted[-1].n_jobs) == (5, None)
    svm = build_model("tfidf_svm", num_classes=3, in_shape=(), folds=2)
    assert fit_sklearn(svm, Texts(), views=[0], seed=6)[-1].estimator.random_state == 6


def test_rows_that_an_estimator_refuses_are_told():
    with pytest.raises(StillroomError, match=r"teacher.s: Pipeline refused 5 labelled rows \(.*5.*\); expected rows"):
        fit_sklearn(build_model("tfidf_svm", num_classes=3, in_shape=()), Texts(), views=[0], seed=0, where="teacher.s")


class Foreign:
    """A type of nobody's package."""


def test_types_of_another_package_are_refused(tmp_path):
    skops.io.dump(Foreign(), tmp_path / ESTIMATOR)
    with pytest.raises(StillroomError, match=r"estimator.skops: holds objects of types \['.*Foreign'\]; expected only"):
        load_sklearn(tmp_path / ESTIMATOR, package="sklearn")


@pytest.mark.parametrize("harm", ["missing", "garbage", "pickle", "half"])
def test_a_file_that_is_no_estimator_is_told(tmp_path, harm):
    path = tmp_path / ESTIMATOR
    skops.io.dump(GaussianNB(), path)
    content = path.read_bytes()
    path.unlink()
    files = {"garbage": b"x" * 300, "pickle": pickle.dumps(GaussianNB()), "half": content[: len(content) // 2]}
    if harm in files:
        path.write_bytes(files[harm])
    with pytest.raises(
        StillroomError, match=r"estimator.skops: found no usable estimator \(.+\); expected a skops file"
    ):
        load_sklearn(path, package="sklearn")


# -- torch ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["mlp", "resnet_small"])
def test_a_network_comes_back_from_disk_with_the_same_logits(name, tmp_path):
    def build():
        return build_model(name, num_classes=3, in_shape=SHAPE, width=8)

    model = seeded(build, 1)
    for _ in range(3):
        model(INPUTS * 2 + 1)  # moves the running statistics of batch norm
    teacher = TorchTeacher(model, [], SHAPE, precision="fp32")
    assert teacher.save(tmp_path / "deep") == [WEIGHTS]
    fresh = load_weights(seeded(build, 2), tmp_path / "deep" / WEIGHTS)
    found = TorchTeacher(fresh, [], SHAPE, precision="fp32").predict(INPUTS)
    assert torch.equal(found.logits, teacher.predict(INPUTS).logits)
    assert found.features == {}


@pytest.mark.parametrize("harm", ["missing", "garbage", "another width"])
def test_weights_that_do_not_fit_are_told(tmp_path, harm):
    path = tmp_path / WEIGHTS
    if harm == "garbage":
        path.write_bytes(b"x" * 100)
    if harm == "another width":
        make_teacher(num_classes=5).save(tmp_path)
    with pytest.raises(StillroomError, match=r"weights.safetensors: found weights that don't fit"):
        load_weights(make_teacher().model, path)


def test_a_network_answers_in_evaluation_mode_with_its_features():
    model = seeded(lambda: build_model("mlp", num_classes=3, in_shape=SHAPE, width=8, depth=2, dropout=0.5), 0)
    teacher = TorchTeacher(model.train(), ["penultimate", "hidden1"], SHAPE, precision="fp32")
    answers = teacher.predict(INPUTS)
    assert torch.equal(answers.logits, teacher.predict(INPUTS).logits)
    assert teacher.feature_widths == {"penultimate": 8, "hidden1": 8}
    again = torch.nn.functional.linear(answers.features["penultimate"].clone(), model.classifier.weight.detach())
    torch.testing.assert_close(again, answers.logits)
    assert not answers.logits.requires_grad


def test_bf16_answers_come_as_float32():
    model = make_teacher().model
    wide, narrow = (TorchTeacher(model, ["penultimate"], SHAPE, precision=p).predict(INPUTS) for p in ("fp32", "bf16"))
    assert narrow.logits.dtype == narrow.features["penultimate"].dtype == torch.float32
    assert not torch.equal(narrow.logits, wide.logits)
    torch.testing.assert_close(narrow.logits, wide.logits, atol=0.05 * wide.logits.abs().max().item(), rtol=0)


def test_a_network_is_trained_on_labelled_rows_alone(tmp_path):
    dataset = make_dataset()
    plan = make_plan(dataset, labelled=9)
    replayer = Replayer(plan, dataset)
    loader = ViewLoader(replayer, "train", batch_size=4, seed=0, positions=plan.splits["train"].labelled)
    fitted = fit_torch(
        make_teacher().model,
        loader,
        evaluate=lambda model: {"nll": predict(model, iter([replayer.batch("test", 0, np.arange(3))])).abs().mean()},
        schedule=Schedule(steps=6, evaluate_every=3),
        seed=0,
        where="teacher.t",
        precision="fp32",
        checkpoint=tmp_path / "checkpoint.pt",
        on_step=lambda step: None,
    )
    assert (fitted.steps, fitted.rows) == (6, 18)
    assert (tmp_path / "checkpoint.pt").exists()


# -- answers ----------------------------------------------------------------------------------------------------------


def test_good_answers_pass():
    check_answers(Answers(torch.randn(4, 3), {"a": torch.randn(4, 2)}), 3, "here")


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
def test_answers_that_are_not_finite_are_told_by_their_rows(bad):
    logits, features = torch.randn(5, 3), torch.randn(5, 2)
    logits[[2, 4], 1] = bad
    with pytest.raises(
        StillroomError, match=r"here: 2 of 5 rows have NaN or infinite logits \(first: row 2\); expected"
    ):
        check_answers(Answers(logits), 3, "here")
    features[3, 0] = bad
    with pytest.raises(StillroomError, match=r"here: 1 of 5 rows have NaN or infinite hidden \(first: row 3\)"):
        check_answers(Answers(torch.randn(5, 3), {"hidden": features}), 3, "here")


def test_answers_of_another_number_of_classes_are_told():
    with pytest.raises(
        StillroomError, match=r"here: answered with 4 classes; expected 3, .*; build it with num_classes=3"
    ):
        check_answers(Answers(torch.randn(5, 4)), 3, "here")
