"""Splits are disjoint, whole and stratified; a plan's fingerprint knows everything that makes its rows."""

import dataclasses

import numpy as np
import pytest
from toys import make_dataset, make_plan, make_replayer

from pipeline.errors import StillroomError
from pipeline.views import UNLABELLED, Split, make_splits, parse_transforms
from pipeline.views.transforms import Mix

NONE = np.array([], np.int64)
SIZES = (300, 150, 50)


def uneven_labels(unlabelled=0):
    """500 labels in the shares 0.6, 0.3, 0.1, shuffled; some before 420 hidden."""
    labels = np.random.default_rng(0).permutation(np.repeat([0, 1, 2], SIZES))
    labels[420 - unlabelled : 420] = UNLABELLED
    return labels


def split(labels, official=NONE, **options):
    return make_splits(labels, official, **{"calibration": 0.1, "test": 0.2, "labelled": None, "seed": 1, **options})


def shares(split, labels):
    return np.bincount(labels[split.ids], minlength=3) / len(split)


@pytest.mark.parametrize("official", [NONE, np.arange(400, 500)])
@pytest.mark.parametrize("unlabelled", [0, 120])
def test_splits_are_disjoint_and_cover_what_can_be_used(official, unlabelled):
    labels = uneven_labels(unlabelled)
    splits = split(labels, official)
    ids = np.concatenate([part.ids for part in splits.values()])
    assert len(np.unique(ids)) == len(ids)
    hidden_test = official[labels[official] == UNLABELLED]  # an official test sample without a label can't be used
    assert np.array_equal(np.sort(ids), np.setdiff1d(np.arange(500), hidden_test))
    for name, part in splits.items():
        assert name == "train" or (np.diff(part.ids) > 0).all()
        assert np.array_equal(part.labels, labels[part.ids])


def test_train_samples_lie_at_random_positions_so_that_any_stretch_holds_all_classes():
    in_class_order = np.repeat(np.arange(10), 400)
    train = split(in_class_order)["train"]
    stretches = np.array_split(train.labels, 20)
    assert all(len(np.unique(part)) == 10 for part in stretches)
    assert np.array_equal(train.ids, split(in_class_order)["train"].ids), "drawn from the seed"


@pytest.mark.parametrize("unlabelled", [0, 200])
def test_held_out_splits_are_stratified_labelled_and_of_the_size_asked_for(unlabelled):
    labels = uneven_labels(unlabelled)
    splits = split(labels)
    labelled = 500 - unlabelled  # shares are of these: of all samples they could take every label there is
    assert len(splits["test"]) == round(0.2 * labelled)
    assert len(splits["calibration"]) == round(0.1 * 0.8 * labelled)
    for name in ("test", "calibration"):
        assert (splits[name].labels != UNLABELLED).all()
        expected = np.bincount(labels[labels >= 0]) / (labels >= 0).sum()
        assert abs(shares(splits[name], labels) - expected).max() <= 1.5 / len(splits[name])
    assert (splits["train"].labels == UNLABELLED).sum() == unlabelled


@pytest.mark.parametrize("count", [3, 10, 77, 350])
def test_labelled_keeps_exactly_that_many_stratified_and_hides_the_rest(count):
    labels = uneven_labels()
    train = split(labels, labelled=count)["train"]
    assert len(train.labelled) == count
    assert np.array_equal(train.labels[train.labelled], labels[train.ids[train.labelled]])
    hidden = np.setdiff1d(np.arange(len(train)), train.labelled)
    assert (train.labels[hidden] == UNLABELLED).all()
    kept = np.bincount(train.labels[train.labelled], minlength=3)
    assert abs(kept - count * shares(train, labels)).max() < 1


def test_fewer_labels_hide_more_and_touch_nothing_else():
    labels = uneven_labels()
    few, all_ = split(labels, labelled=20), split(labels)
    assert np.array_equal(few["train"].ids, all_["train"].ids)
    assert np.array_equal(few["calibration"].labels, all_["calibration"].labels)


def test_official_test_samples_are_the_test_split():
    labels = uneven_labels()
    splits = split(labels, np.arange(400, 500))
    assert np.array_equal(splits["test"].ids, np.arange(400, 500))


def test_max_train_and_max_test_are_stratified_cuts():
    labels = uneven_labels()
    splits = split(labels, np.arange(300, 500), max_train=100, max_test=60)
    assert len(splits["train"]) + len(splits["calibration"]) == 100
    assert len(splits["test"]) == 60
    assert abs(shares(splits["test"], labels) - np.bincount(labels[300:]) / 200).max() < 1.5 / 60


@pytest.mark.parametrize("official", [NONE, np.arange(400, 500)], ids=["a share", "official"])
def test_samples_that_are_not_considered_are_in_no_split_of_any_kind(official):
    labels = uneven_labels()
    considered = np.arange(len(labels)) % 3 > 0
    splits = split(labels, official, considered=considered)
    used = np.concatenate([part.ids for part in splits.values()])
    assert np.array_equal(np.sort(used), np.flatnonzero(considered))
    if len(official):
        assert np.array_equal(splits["test"].ids, official[considered[official]])


def test_another_seed_draws_other_splits_and_the_same_seed_the_same():
    labels = uneven_labels()
    first, again, other = split(labels), split(labels), split(labels, seed=2)
    assert np.array_equal(first["test"].ids, again["test"].ids)
    assert not np.array_equal(first["test"].ids, other["test"].ids)


def test_more_labels_than_there_are_is_an_error():
    with pytest.raises(StillroomError, match=r"data.labelled: found 361; expected at most 360, .*; lower it"):
        split(uneven_labels(), labelled=361)


@pytest.mark.parametrize("options", [{"calibration": 0.0001}, {"test": 0.0001}])
def test_an_empty_split_is_an_error(options):
    with pytest.raises(
        StillroomError, match=r"data: split '\w+' has no labelled sample; .*\(500 samples, 500 labelled"
    ):
        split(uneven_labels(), **options)


# -- the plan ---------------------------------------------------------------------------------------------------------


def other_split(plan, **changes):
    return {**plan.splits, "train": dataclasses.replace(plan.splits["train"], **changes)}


def test_a_plans_fingerprint_knows_everything_that_makes_its_rows():
    plan = make_plan(make_dataset())
    train = plan.splits["train"]
    relabelled = train.labels.copy()
    relabelled[0] += 1
    others = [
        dataclasses.replace(plan, dataset="another"),
        dataclasses.replace(plan, seed=6),
        dataclasses.replace(plan, count=4),
        dataclasses.replace(plan, mix=None),
        dataclasses.replace(plan, mix=Mix(alpha=2.0)),
        dataclasses.replace(plan, transforms=parse_transforms([{"kind": "shift", "pixels": 2}, {"kind": "flip"}])),
        dataclasses.replace(plan, mean=(0.4,)),
        dataclasses.replace(plan, std=(0.2,)),
        dataclasses.replace(plan, splits=other_split(plan, ids=train.ids[::-1])),
        dataclasses.replace(plan, splits=other_split(plan, labels=relabelled)),
    ]
    assert len({plan.fingerprint, *(other.fingerprint for other in others)}) == len(others) + 1
    assert make_plan(make_dataset()).fingerprint == plan.fingerprint


def test_a_train_sample_has_all_views_and_a_held_out_one_has_one():
    plan = make_plan(make_dataset())
    assert [plan.views(name) for name in ("train", "calibration", "test")] == [3, 1, 1]
    assert [plan.is_mixed("train", view) for view in range(3)] == [False, False, True]
    assert not plan.is_mixed("test", 2)


def test_changing_one_transform_leaves_the_draws_of_the_others_alone():
    one, other = (
        make_replayer(transforms=[{"kind": "rotate", "degrees": degrees}, {"kind": "flip"}]).plan for degrees in (5, 90)
    )
    ids = np.arange(30)
    assert np.array_equal(one.parameters("train", 1, ids)[1], other.parameters("train", 1, ids)[1])
    assert not np.array_equal(one.parameters("train", 1, ids)[0], other.parameters("train", 1, ids)[0])
    assert one.parameters("test", 0, ids) == []


def test_labelled_positions_are_within_the_split():
    part = Split(np.array([5, 8, 9]), np.array([-1, 2, 0]))
    assert part.labelled.tolist() == [1, 2]
    assert len(part) == 3
