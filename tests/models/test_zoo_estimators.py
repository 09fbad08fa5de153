"""scikit-learn estimators by name: what they learn, that they come back from disk, and that a rule stays a rule."""

import sys

import numpy as np
import pytest
import skops.io
from sklearn.base import clone
from sklearn.ensemble import ExtraTreesClassifier
from sklearn.feature_extraction.text import TfidfVectorizer

from pipeline.errors import StillroomError
from pipeline.models import ESTIMATORS, build_model, check_model, is_estimator
from pipeline.models import rules as rules_module
from pipeline.models.estimators import dump_sklearn, read_sklearn
from pipeline.models.rules import Vader
from pipeline.models.tfidf import Tfidf

TOPICS = ("the cat and a dog played", "rain and wind over the hills", "the bank raised its rates")
ENDINGS = ("again", "today", "in spring", "at noon", "for hours", "as ever", "once more", "near us")
TEXTS = [f"{topic} {ending}" for ending in ENDINGS for topic in TOPICS]
LABELS = np.arange(len(TEXTS)) % 3
TABLE = np.random.default_rng(0).normal(size=(90, 4)).astype(np.float32)
TABLE_LABELS = (TABLE[:, 0] > 0).astype(np.int64) + (TABLE[:, 1] > 1)
ON_TEXT = ("tfidf_logistic", "tfidf_svm", "tfidf_bayes")
ON_TABLES = ("forest", "boosting", "logistic")
SOUNDS = np.random.default_rng(1).normal(size=(90, 1, 4, 6)).astype(np.float32)  # of class c is band c the loudest
SOUNDS[np.arange(90), 0, np.arange(90) % 3] += 2
QUICK = {"forest": {"n_estimators": 10, "random_state": 0}, "boosting": {"max_iter": 5, "random_state": 0}}
SENTENCES = {
    "A wonderful film, and I loved every minute of it.": 1,
    "Not bad at all!": 1,
    "The acting is superb and the story is touching.": 1,
    "A dull, boring and pointless mess.": 0,
    "I hated it; the worst film of the year.": 0,
    "The plot is not good.": 0,
}


def fitted(name: str):
    """An estimator of the zoo, fitted; and what it can be asked about."""
    if name == "band_logistic":
        rows = SOUNDS.reshape(90, -1)
        return build_model(name, num_classes=3, in_shape=SOUNDS.shape[1:]).fit(rows, np.arange(90) % 3), rows
    if name in ON_TABLES:
        model = build_model(name, num_classes=3, in_shape=(4,), **QUICK.get(name, {}))
        return model.fit(TABLE, TABLE_LABELS), TABLE
    num_classes = 2 if name == "vader" else 3
    model = build_model(name, num_classes=num_classes, in_shape=())
    if name == "tfidf_svm":
        model.set_params(classifier__estimator__random_state=0)
    return model.fit(TEXTS, np.minimum(LABELS, num_classes - 1)), TEXTS


# -- all of them -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ESTIMATORS)
def test_answers_are_distributions_and_come_back_from_disk_whatever_package_is_named(name):
    estimator, rows = fitted(name)
    assert is_estimator(estimator)
    probs = estimator.predict_proba(rows)
    np.testing.assert_allclose(probs.sum(1), 1, atol=1e-6)
    assert estimator.classes_.tolist() == list(range(probs.shape[1]))
    again = read_sklearn(dump_sklearn(estimator), package=name, where="here")
    assert np.array_equal(again.predict_proba(rows), probs)
    assert type(again) is type(estimator)


@pytest.mark.parametrize("name", ESTIMATORS)
def test_the_same_fit_is_the_same_bytes(name):
    assert dump_sklearn(fitted(name)[0]) == dump_sklearn(fitted(name)[0])


@pytest.mark.parametrize("name", [*ON_TEXT, *ON_TABLES, "band_logistic"])
def test_it_learns(name):
    estimator, rows = fitted(name)
    labels = TABLE_LABELS if name in ON_TABLES else np.arange(len(rows)) % 3
    assert (estimator.predict_proba(rows).argmax(1) == labels).mean() > 0.8


def test_the_prior_says_how_frequent_each_class_is_of_whatever_it_reads():
    for rows, in_shape in ((TEXTS, ()), (TABLE[:24], (4,))):
        estimator = build_model("prior", num_classes=3, in_shape=in_shape).fit(rows, [0] * 12 + [1] * 8 + [2] * 4)
        np.testing.assert_allclose(estimator.predict_proba(rows[:2]), [[1 / 2, 1 / 3, 1 / 6]] * 2)


# -- texts -------------------------------------------------------------------------------------------------------------


def test_options_reach_the_vectoriser_and_the_classifier():
    options = {"ngrams": 1, "min_df": 2, "max_features": 5, "sublinear": False}
    estimator = build_model("tfidf_logistic", num_classes=3, in_shape=(), C=0.5, **options).fit(TEXTS, LABELS)
    plain = TfidfVectorizer(min_df=2, max_features=5).fit(TEXTS)
    assert np.array_equal(estimator[0].transform(TEXTS).toarray(), plain.transform(TEXTS).toarray())
    assert estimator[1].C == 0.5
    assert build_model("tfidf_svm", num_classes=3, in_shape=(), C=2.0)[1].estimator.C == 2.0
    assert build_model("tfidf_bayes", num_classes=3, in_shape=(), alpha=2.0)[1].alpha == 2.0


def test_a_vocabulary_comes_back_with_every_term_in_its_column_and_no_file_for_each():
    texts = ["uno dos tres", "ünïcode ñandú 猫猫 dos", "tres tres dos"]
    vectorizer = Tfidf(ngram_range=(1, 2)).fit(texts)
    content = dump_sklearn(vectorizer)
    again = read_sklearn(content, package="sklearn", where="here")
    assert again.vocabulary_ == vectorizer.vocabulary_
    assert np.array_equal(again.transform(texts).toarray(), vectorizer.transform(texts).toarray())
    assert content.count(b".npy") == 2 * 1  # the idf weights, once in the file and once in its index
    unfitted = read_sklearn(dump_sklearn(Tfidf(min_df=3)), package="sklearn", where="here")
    assert clone(unfitted).get_params() == Tfidf(min_df=3).get_params()
    assert not hasattr(unfitted, "vocabulary_")


def test_no_address_in_memory_is_kept_for_another_process_would_write_another():
    vectorizer = Tfidf().fit(TEXTS)
    vectorizer.transform(TEXTS)
    assert not [key for key in vectorizer.__getstate__() if key.endswith("_id")]


@pytest.mark.parametrize("option", ["ngrams", "min_df", "max_features"])
def test_impossible_sizes_are_refused(option):
    with pytest.raises(StillroomError, match=f"here: tfidf_svm with .* failed: ValueError: {option} = 0; expected 1"):
        build_model("tfidf_svm", num_classes=3, in_shape=(), where="here", **{option: 0})


# -- a rule ------------------------------------------------------------------------------------------------------------


def test_a_rule_knows_good_from_bad_and_its_slope_says_how_surely():
    texts, wanted = list(SENTENCES), list(SENTENCES.values())
    mild, sure = (Vader(slope).fit(texts, wanted).predict_proba(texts) for slope in (1.0, 5.0))
    assert mild.argmax(1).tolist() == sure.argmax(1).tolist() == wanted
    assert Vader().fit(texts, wanted).predict(texts).tolist() == wanted
    assert (sure.max(1) > mild.max(1)).all()
    np.testing.assert_allclose(np.log(sure[:, 1] / sure[:, 0]), 5 * np.log(mild[:, 1] / mild[:, 0]), atol=1e-9)


def test_a_rule_is_not_moved_by_labels_and_is_undecided_without_a_word_it_knows():
    texts = [*SENTENCES, "", "The table stands beside the door."]
    one = Vader().fit(texts, np.zeros(8, int)).predict_proba(texts)
    other = Vader().fit(texts[:2], [1, 0]).predict_proba(texts)
    assert np.array_equal(one, other)
    np.testing.assert_allclose(one[-2:], 0.5)


def test_a_rule_for_two_classes_refuses_others():
    with pytest.raises(StillroomError, match=r"here: vader: found 3 classes; expected two, negative and positive"):
        build_model("vader", num_classes=3, in_shape=(), where="here")
    with pytest.raises(StillroomError, match=r"vader: found labels \[2, 5\]; expected only 0, negative, and 1, pos"):
        Vader().fit(TEXTS[:4], [0, 2, 5, 1])
    with pytest.raises(StillroomError, match=r"slope = -1; expected a number above 0"):
        build_model("vader", num_classes=2, in_shape=(), slope=-1)


def test_a_missing_package_is_told_with_the_way_to_get_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "vaderSentiment.vaderSentiment", None)
    rules_module.analyzer.cache_clear()
    with pytest.raises(
        StillroomError, match=r"here: vader: found no vaderSentiment; .* pip install 'stillroom\[text\]'"
    ):
        build_model("vader", num_classes=2, in_shape=(), where="here")
    rules_module.analyzer.cache_clear()


def test_only_the_zoos_own_types_of_this_package_are_trusted():
    from pipeline.models.soft_estimators import SoftTargetEstimator

    other = SoftTargetEstimator(ExtraTreesClassifier(), 2)
    with pytest.raises(StillroomError, match=r"here: holds objects of types \['pipeline.models.soft_estimators.*'\]"):
        read_sklearn(skops.io.dumps(other), package="sklearn", where="here")


# -- tables ------------------------------------------------------------------------------------------------------------


def test_options_of_tables_are_scikit_learns_and_a_mistyped_one_is_told():
    assert build_model("forest", num_classes=3, in_shape=(4,), n_estimators=7, criterion="entropy").n_estimators == 7
    assert build_model("logistic", num_classes=3, in_shape=(4,), C=0.1)[-1].C == 0.1
    (fault,) = check_model("forest", {"n_estimator": 7}, "teacher.f")
    assert fault.startswith("teacher.f (forest): unknown option 'n_estimator'; expected one of ")
    assert fault.endswith("did you mean 'n_estimators'?")
    assert check_model("boosting", {"max_leaf_nodes": 4}, "teacher.b") == []


def test_the_class_by_import_path_keeps_scikit_learns_own_defaults():
    imported = build_model("sklearn.ensemble:ExtraTreesClassifier", num_classes=3, in_shape=(4,))
    assert imported.get_params() == ExtraTreesClassifier().get_params()


def test_a_linear_model_does_not_mind_the_scale_of_a_column():
    model = build_model("logistic", num_classes=3, in_shape=(4,)).fit(TABLE, TABLE_LABELS)
    scales = np.array([1000.0, 1.0, 0.01, 1.0])
    scaled = build_model("logistic", num_classes=3, in_shape=(4,)).fit(TABLE * scales, TABLE_LABELS)
    np.testing.assert_allclose(scaled.predict_proba(TABLE * scales), model.predict_proba(TABLE), atol=1e-3)
