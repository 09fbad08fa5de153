"""Samples that belong together are in one split, and without units the splits are what they were."""

import hashlib

import numpy as np
import pytest

from pipeline.errors import StillroomError
from pipeline.views import UNLABELLED, make_splits

NONE = np.array([], np.int64)
OPTIONS = {"calibration": 0.1, "test": 0.2, "labelled": None, "seed": 1}


def labels_and_units(num_units: int = 120, unlabelled: float = 0.0) -> tuple[np.ndarray, np.ndarray]:
    """Units of one to eight samples, in no order, of three classes."""
    rng = np.random.default_rng(0)
    units = rng.permutation(np.repeat(1000 - np.arange(num_units), rng.integers(1, 9, num_units)))
    labels = rng.integers(0, 3, len(units))
    return np.where(rng.random(len(units)) < unlabelled, UNLABELLED, labels), units


def split(labels, units, official=NONE, **options):
    return make_splits(labels, official, units=units, **{**OPTIONS, **options})


def test_without_units_the_splits_are_what_they_always_were():
    labels, units = labels_and_units(unlabelled=0.1)
    digests = hashlib.sha256()
    for part in split(labels, None).values():
        digests.update(part.ids.astype("<i8").tobytes() + part.labels.astype("<i8").tobytes())
    assert digests.hexdigest() == "63d5f3be53d584409a15a071778da861d13abbbc0f2082cb620e0bf35362d30c"
    assert not np.array_equal(split(labels, units)["test"].ids, split(labels, None)["test"].ids)


@pytest.mark.parametrize("unlabelled", [0.0, 0.3])
@pytest.mark.parametrize("seed", range(5))
def test_no_unit_is_in_two_splits_and_shares_are_near(seed, unlabelled):
    labels, units = labels_and_units(unlabelled=unlabelled)
    splits = split(labels, units, seed=seed)
    owners = [set(units[part.ids].tolist()) for part in splits.values()]
    assert sum(map(len, owners)) == len(set.union(*owners))
    num_labelled = (labels >= 0).sum()
    assert abs(len(splits["test"]) - 0.2 * num_labelled) <= 4.5  # half of the largest unit, and a rounding
    assert abs(len(splits["calibration"]) - 0.1 * 0.8 * num_labelled) <= 5
    assert (splits["test"].labels >= 0).all()
    held_out = np.isin(units, np.concatenate([units[splits[name].ids] for name in ("test", "calibration")]))
    assert np.array_equal(np.sort(splits["train"].ids), np.flatnonzero(~held_out))
    for part in splits.values():
        assert np.array_equal(part.labels, labels[part.ids])


def test_units_of_an_official_test_leave_the_train_split():
    labels, units = labels_and_units()
    official = np.flatnonzero(units > 990)[::2]  # every other sample of nine units
    splits = split(labels, units, official)
    assert np.array_equal(splits["test"].ids, official)
    others = np.concatenate([splits["train"].ids, splits["calibration"].ids])
    assert not np.isin(units[others], units[official]).any()
    assert len(others) == (~np.isin(units, units[official])).sum()


def test_units_of_one_sample_each_give_shares_to_the_sample():
    labels, _ = labels_and_units()
    splits = split(labels, np.arange(len(labels)))
    assert len(splits["test"]) == round(0.2 * len(labels))
    assert len(splits["calibration"]) == round(0.1 * (len(labels) - len(splits["test"])))


def test_the_seed_draws_the_units():
    labels, units = labels_and_units()
    first, again, other = (split(labels, units, seed=seed)["calibration"].ids for seed in (1, 1, 2))
    assert np.array_equal(first, again)
    assert not np.array_equal(first, other)


def test_units_may_be_names():
    labels, units = labels_and_units()
    named = np.array([f"unit {unit:04d}" for unit in units])
    assert np.array_equal(split(labels, units)["test"].ids, split(labels, named)["test"].ids)


def test_a_share_smaller_than_half_of_any_unit_is_an_error():
    labels = np.arange(80) % 2
    with pytest.raises(StillroomError, match=r"split 'calibration' has no labelled sample; .*raise the share"):
        split(labels, np.repeat(np.arange(4), 20), calibration=0.1, test=0.25)
