"""Labels that are made wrong on purpose, classes whose labels are hidden, and who is shown them."""

import numpy as np
import pytest
import torch
from sklearn.neighbors import KNeighborsClassifier
from toys import make_dataset, make_plan, some_labels

from pipeline.teachers import fit_sklearn
from pipeline.views import Replayer, with_wrong_labels, without_classes

CLASSES = np.arange(5)


@pytest.mark.parametrize("share", [0.0, 0.01, 0.4, 1.0])
def test_exactly_the_share_of_labels_is_wrong_and_hidden_ones_stay_hidden(share):
    labels, ids = some_labels()
    wrong = with_wrong_labels(labels, ids, share, CLASSES, 3)
    assert (wrong[labels >= 0] != labels[labels >= 0]).sum() == round(share * 340)
    assert np.array_equal(wrong[labels < 0], labels[labels < 0])
    assert set(wrong) <= {-1, *CLASSES}


def test_a_wrong_label_follows_from_seed_and_sample_wherever_the_sample_stands():
    labels, ids = some_labels()
    wrong = with_wrong_labels(labels, ids, 0.4, CLASSES, 3)
    assert np.array_equal(with_wrong_labels(labels, ids, 0.4, CLASSES, 3), wrong)
    other = np.random.default_rng(1).permutation(len(ids))
    assert np.array_equal(with_wrong_labels(labels[other], ids[other], 0.4, CLASSES, 3), wrong[other])
    assert (with_wrong_labels(labels, ids, 0.4, CLASSES, 4) != wrong).mean() > 0.2


def test_more_wrong_labels_are_the_same_and_more():
    labels, ids = some_labels()
    few, many = (with_wrong_labels(labels, ids, share, CLASSES, 3) for share in (0.2, 0.5))
    is_wrong = few != labels
    assert np.array_equal(many[is_wrong], few[is_wrong])


def test_wrong_labels_are_drawn_evenly_among_the_other_classes():
    labels, ids = np.repeat(2, 40_000), np.arange(40_000)
    counts = np.bincount(with_wrong_labels(labels, ids, 1.0, CLASSES, 0), minlength=5)
    assert counts[2] == 0
    expected = 10_000
    assert (np.abs(counts[[0, 1, 3, 4]] - expected) < 5 * np.sqrt(expected)).all()


def test_a_class_left_out_is_never_drawn():
    labels, ids = some_labels()
    kept = np.array([0, 2, 4])
    less = without_classes(labels, [1, 3])
    assert np.array_equal(less, [label if label in kept else -1 for label in labels])
    wrong = with_wrong_labels(less, ids, 0.5, kept, 0)
    assert set(wrong) == {-1, 0, 2, 4}
    assert (wrong != less).sum() == round(0.5 * (less >= 0).sum())


def test_leaving_out_no_class_changes_nothing():
    labels, _ = some_labels()
    assert np.array_equal(without_classes(labels, []), labels)


def test_a_replayer_shows_other_train_labels_and_nothing_else_changes():
    dataset = make_dataset()
    plain = Replayer(make_plan(dataset), dataset)
    train = plain.plan.splits["train"]
    labels = with_wrong_labels(train.labels, train.ids, 0.5, np.arange(3), 0)
    labels[3] = -1
    other = plain.showing(labels)
    assert 3 not in other.labelled
    assert len(other.labelled) == len(plain.labelled) - 1 == 39
    for view in range(3):
        rows = np.array([7, 3, 20])
        shown, before = other.batch("train", view, rows), plain.batch("train", view, rows)
        assert torch.equal(shown.inputs, before.inputs)
        assert shown.labels.tolist() == labels[rows].tolist()
        assert before.labels.tolist() == train.labels[rows].tolist()
        assert np.array_equal(other.digests("train", view, rows), plain.digests("train", view, rows))
    partners, _ = plain.plan.mixing(2, train.ids[rows])
    assert other.batch("train", 2, rows).partner_labels.tolist() == labels[partners].tolist()
    for split in ("calibration", "test"):
        rows = np.arange(len(plain.plan.splits[split]))
        assert torch.equal(other.batch(split, 0, rows).labels, torch.from_numpy(plain.plan.splits[split].labels))


def test_an_estimator_learns_the_labels_that_are_shown():
    dataset = make_dataset()
    replayer = Replayer(make_plan(dataset, mix=None), dataset)
    train = replayer.plan.splits["train"]
    labels = without_classes(with_wrong_labels(train.labels, train.ids, 0.4, np.arange(3), 1), [2])
    fitted = fit_sklearn(KNeighborsClassifier(1), replayer.showing(labels), views=[0], seed=0)
    assert fitted.classes_.tolist() == [0, 1]
    rows = np.flatnonzero(labels >= 0)
    answers = fitted.predict(replayer.batch("train", 0, rows).inputs.flatten(1).numpy())
    assert np.array_equal(answers, labels[rows])
