"""Anybody's predictions: what comes in is checked to the row, what is kept comes back bit by bit, or is refused."""

import itertools

import numpy as np
import pytest
import torch
from safetensors.numpy import save_file
from toys import CLASSES, make_dataset

from pipeline.answers import check_answers
from pipeline.errors import StaleStoreError, StillroomError
from pipeline.teachers import Predictions, PredictionsTeacher
from pipeline.teachers.outside import (
    NORMALISED,
    as_labels,
    class_places,
    labels_to_log_probs,
    order_doubt,
    rows_by_id,
)
from pipeline.teachers.predictions import PREDICTIONS
from pipeline.teachers.sklearn import PROBABILITY_FLOOR

LOGITS = np.random.default_rng(0).normal(0, 2, (7, 3))
PROBS = np.exp(LOGITS) / np.exp(LOGITS).sum(1, keepdims=True)


def make_predictions(ids=(2, 5, 11)) -> Predictions:
    """Predictions of a few of the toy samples."""
    ids = np.array(ids, np.int64)
    log_probs = np.log(PROBS[: len(ids)]).astype(np.float32)
    return Predictions(ids, make_dataset().source_digests(ids), log_probs, CLASSES)


# -- the teacher ------------------------------------------------------------------------------------------------------


def test_an_answer_is_the_one_on_that_sample_in_whatever_order_it_is_asked():
    predictions = make_predictions()
    teacher = PredictionsTeacher(predictions)
    by_id = dict(zip(predictions.ids.tolist(), predictions.logits, strict=True))
    for asked in itertools.permutations([2, 5, 11, 5]):
        answers = teacher.predict(np.array(asked))
        check_answers(answers, 3, "here")
        assert np.array_equal(answers.logits, np.stack([by_id[id] for id in asked]))
    assert (teacher.feature_widths, teacher.head) == ({}, None)


def test_samples_without_a_prediction_are_counted_and_named():
    teacher = PredictionsTeacher(make_predictions(), where="teacher.colleague")
    with pytest.raises(
        StillroomError,
        match=r"teacher.colleague: found no prediction of 6 of 7 samples \(ids 0, 1, 3, 4, 6, \.\.\.\); expected one",
    ):
        teacher.predict(np.array([7, 6, 4, 3, 1, 0, 0, 2]))


def test_predictions_come_back_from_disk_as_they_were_and_are_the_same_bytes(tmp_path):
    teacher = PredictionsTeacher(make_predictions())
    assert teacher.save(tmp_path / "deep") == [PREDICTIONS]
    again = Predictions.read(tmp_path / "deep" / PREDICTIONS)
    for name in ("ids", "digests", "logits"):
        kept = getattr(teacher.predictions, name)
        assert getattr(again, name).dtype == kept.dtype
        assert np.array_equal(getattr(again, name), kept)
    assert again.classes == CLASSES
    assert {make_predictions().to_bytes() for _ in range(8)} == {again.to_bytes()}


HARMS = {
    "garbage": None,
    "no ids": {"ids": None},
    "other numbers": {"logits": LOGITS[:3]},
    "one row more": {"logits": LOGITS[:4].astype(np.float32)},
    "repeated ids": {"ids": np.array([2, 2, 5])},
    "negative ids": {"ids": np.array([-1, 2, 5])},
    "not finite": {"logits": np.full((3, 3), np.nan, np.float32)},
    "other classes": {"classes": '["one"]'},
    "no json": {"classes": "["},
    "a number": {"classes": "3"},
}


@pytest.mark.parametrize("harm", HARMS)
def test_a_file_that_holds_no_predictions_is_told(tmp_path, harm):
    path, kept = tmp_path / "x.safetensors", make_predictions()
    arrays = {"ids": kept.ids, "digests": kept.digests, "logits": kept.logits, "classes": '["a", "b", "c"]'}
    if HARMS[harm] is None:
        path.write_bytes(b"x" * 99)
    else:
        said = {name: value for name, value in {**arrays, **HARMS[harm]}.items() if value is not None}
        save_file({n: v for n, v in said.items() if n != "classes"}, path, metadata={"classes": said["classes"]})
    with pytest.raises(
        StillroomError, match=r"x.safetensors: found no predictions \(.+\); expected a file that 'still"
    ):
        Predictions.read(path)


def test_predictions_of_samples_that_changed_or_went_are_refused():
    dataset, teacher = make_dataset(), PredictionsTeacher(make_predictions(), where="t")
    teacher.check_made_for(CLASSES, dataset.source_digests, len(dataset))
    pixels = dataset.pixels.numpy().copy()
    pixels[5, 0, 0, 0] ^= 1
    other = make_dataset(pixels)
    with pytest.raises(
        StaleStoreError, match=r"predictions of 1 samples that have changed since, or are gone \(ids 5\)"
    ):
        teacher.check_made_for(CLASSES, other.source_digests, len(other))
    fewer = make_dataset(dataset.pixels.numpy()[:11])
    with pytest.raises(StaleStoreError, match=r"1 samples .* \(ids 11\)"):
        teacher.check_made_for(CLASSES, fewer.source_digests, len(fewer))
    with pytest.raises(StaleStoreError, match=r"predictions of the classes .'ring', 'bar', 'dot'.*expected those of"):
        teacher.check_made_for(("bar", "ring", "dot"), dataset.source_digests, len(dataset))


# -- from outside -----------------------------------------------------------------------------------------------------


def test_probabilities_their_logs_and_logits_become_the_same_log_probabilities():
    said = {"probs": PROBS, "log_probs": np.log(PROBS), "logits": LOGITS + 40}
    for kind, values in said.items():
        log_probs, off = NORMALISED[kind](values, "here")
        assert log_probs.dtype == np.float32
        np.testing.assert_allclose(log_probs, np.log(PROBS), atol=2e-6)
        assert off < 1e-12


def test_a_probability_of_zero_gets_the_floor_in_each_kind():
    probs, floor = np.array([[1.0, 0.0], [0.5, 0.5]]), np.float32(np.log(PROBABILITY_FLOOR))
    with np.errstate(divide="ignore"):
        logs = np.log(probs)
    for kind, values in (("probs", probs), ("log_probs", logs)):
        assert NORMALISED[kind](values, "here")[0].tolist() == [[0, floor], [np.float32(np.log(0.5))] * 2]
    assert labels_to_log_probs(np.array([0, 1]), 2).tolist() == [[0, floor], [floor, 0]]
    far = NORMALISED["logits"](np.array([[0.0, -50.0]]), "here")[0]
    assert far.tolist() == [[0, -50]]  # as any network's logits are kept


def test_rows_are_divided_by_their_sums_and_the_worst_is_told():
    log_probs, off = NORMALISED["probs"](PROBS * np.linspace(1, 1.0009, 7)[:, None], "here")
    assert off == pytest.approx(9e-4)
    np.testing.assert_allclose(np.exp(log_probs), PROBS, rtol=1e-6)


def spoiled(row: int, value: float) -> np.ndarray:
    values = PROBS.copy()
    values[row, 1] = value
    return values


@pytest.mark.parametrize(
    ("kind", "values", "told"),
    [
        (
            "probs",
            spoiled(3, np.nan),
            r"NaN or infinite values in 1 of 7 rows \(first: row 3, \[.*nan.*\]\); expected fin",
        ),
        ("probs", spoiled(2, np.inf), r"NaN or infinite values in 1 of 7 rows \(first: row 2"),
        ("logits", spoiled(6, -np.inf), r"NaN or infinite values in 1 of 7 rows \(first: row 6"),
        ("log_probs", spoiled(1, np.nan), r"NaN or \+infinity in 1 of 7 rows \(first: row 1"),
        ("probs", PROBS * 100, "they look like percent: divide them by 100"),
        ("probs", LOGITS, "values outside 0..1 .* are they logits. pass --of logits"),
        ("probs", np.log(PROBS), "they look like logs of probabilities: pass --of log_probs"),
        (
            "probs",
            spoiled(4, 0.5),
            r"sum to .* in 1 of 7 rows \(first: row 4.*expected 1 within 0.001; divide each row",
        ),
        ("probs", PROBS / 2, "probabilities that sum to 0.5 at worst in 7 of 7 rows"),
        ("log_probs", LOGITS, "values above 0 .* are they logits. pass --of logits"),
        ("log_probs", PROBS, "they look like probabilities: pass --of probs"),
        ("log_probs", np.log(PROBS) - 1, "sum to 0.3679 at worst"),
        ("logits", PROBS, "numbers in 0..1 that sum to 1; expected logits, .*; pass --of probs"),
    ],
)
def test_what_is_something_else_is_refused_with_its_row_and_what_it_looks_like(kind, values, told):
    with pytest.raises(StillroomError, match="here: found .*" + told):
        NORMALISED[kind](values, "here")


def test_columns_in_any_order_are_put_in_the_data_sets():
    for columns in itertools.permutations(CLASSES):
        places = class_places(columns, CLASSES, "here")
        assert [columns[place] for place in places] == list(CLASSES)


@pytest.mark.parametrize(
    ("columns", "told"),
    [
        (("ring", "bar", "dott"), r"columns \['dott'\] that are no classes; .*did you mean 'dot'"),
        (("ring", "bar"), r"no column for 1 classes, \['dot'\]"),
        (("ring", "bar", "dot", "dot"), "a class twice"),
        (("ring", "bar", "dot", "split"), r"columns \['split'\] that are no classes"),
    ],
)
def test_unknown_missing_and_repeated_classes_are_refused(columns, told):
    with pytest.raises(StillroomError, match="here: found " + told):
        class_places(columns, CLASSES, "here")


def test_labels_are_names_or_numbers_but_no_mixture():
    assert as_labels(["dot", "ring"], CLASSES, "x").tolist() == as_labels([2, 0], CLASSES, "x").tolist() == [2, 0]
    assert as_labels(["3", "1"], ["1", "3"], "x").tolist() == [1, 0]  # names come first
    for values, told in ((["dot", 1], r"1 labels .*row 1, '1'"), ([0, 3], "row 1, '3'"), (["rnig"], "mean 'ring'")):
        with pytest.raises(StillroomError, match=told):
            as_labels(values, CLASSES, "x")


def test_rows_come_in_the_order_of_ids_and_a_repeated_row_counts_once():
    ids, values = np.array([4, 0, 2, 0, 4]), PROBS[[0, 1, 2, 1, 0]]
    rows = rows_by_id(ids, values, 5, "here")
    assert ids[rows].tolist() == [0, 2, 4]
    assert np.array_equal(values[rows], PROBS[[1, 2, 0]])


def test_unknown_ids_and_two_answers_on_one_sample_are_refused():
    with pytest.raises(StillroomError, match=r"here: found 2 ids of no sample \(-1, 5\); expected 0..4"):
        rows_by_id(np.array([5, 0, -1, 5]), PROBS[:4], 5, "here")
    with pytest.raises(StillroomError, match=r"here: found 1 samples with different answers \(ids 3\)"):
        rows_by_id(np.array([3, 0, 0, 3]), PROBS[[0, 1, 1, 2]], 5, "here")


# -- a second look ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("num_classes", [2, 3, 5])
def test_another_order_of_classes_is_found_out_and_named(num_classes):
    draws = np.random.default_rng(0)
    classes = [f"c{number}" for number in range(num_classes)]
    labels = draws.integers(0, num_classes, 200)
    predicted = np.where(draws.random(200) < 0.8, labels, draws.integers(0, num_classes, 200))
    assert order_doubt(predicted, labels, classes) is None
    order = np.roll(np.arange(num_classes), 1)  # no class stays
    right = np.mean(predicted == labels)
    told = order_doubt(order[predicted], labels, classes)
    assert told.startswith(f"in another order of classes they would be right on {right:.3f} (")
    assert f"'c{order[1]}' for 'c1'" in told


def test_answers_that_know_nothing_are_doubted_too():
    labels = np.array([0] * 30 + [1] * 10)
    assert "one class for all would be right on 0.750" in order_doubt(np.zeros(40, int), labels, CLASSES)
    wrong_ids = np.random.default_rng(1).permutation(labels)
    assert "ids and classes in the right order" in order_doubt(wrong_ids, labels, CLASSES)


def test_answers_are_what_torch_would_say():
    expected = torch.from_numpy(LOGITS).log_softmax(-1).float()
    assert torch.allclose(torch.from_numpy(NORMALISED["logits"](LOGITS, "x")[0]), expected, atol=1e-6)
