"""Estimators for spectrograms: what a band does in time, and that they come back from disk."""

import numpy as np
import pytest

from pipeline.errors import StillroomError
from pipeline.models import build_model
from pipeline.models.estimators import dump_sklearn, read_sklearn
from pipeline.models.speech_estimators import band_logistic, band_statistics

NAME = "band_logistic"
SHAPE = (1, 6, 20)


def pictures(seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Noise whose class is which of three bands is louder, at another time in each picture."""
    rng = np.random.default_rng(seed)
    labels = np.arange(90) % 3
    rows = rng.normal(0, 1, (90, *SHAPE))
    for row, label in zip(rows, labels, strict=True):
        start = rng.integers(0, 12)
        row[0, 2 * label, start : start + 8] += 4
    return rows.reshape(90, -1).astype(np.float32), labels


def test_statistics_are_of_each_band_in_time():
    rows = np.random.default_rng(0).normal(size=(4, 3 * 5))
    found = band_statistics(rows, frames=5)
    for row in range(4):
        for band in range(3):
            values = rows[row, 5 * band : 5 * band + 5].tolist()
            mean = sum(values) / 5
            assert found[row, band] == pytest.approx(mean)
            assert found[row, 3 + band] == pytest.approx((sum((value - mean) ** 2 for value in values) / 5) ** 0.5)


def test_what_is_said_when_does_not_matter():
    rows, _ = pictures()
    later = np.roll(rows.reshape(-1, *SHAPE), 7, axis=-1).reshape(len(rows), -1)
    np.testing.assert_allclose(band_statistics(later, frames=20), band_statistics(rows, frames=20), atol=1e-5)


def test_it_learns_and_comes_back_from_disk_the_same_bytes():
    def fitted():
        return build_model(NAME, num_classes=3, in_shape=SHAPE).fit(*pictures())

    rows, labels = pictures(1)
    estimator = fitted()
    assert (estimator.predict(rows) == labels).mean() > 0.9
    content = dump_sklearn(estimator)
    assert content == dump_sklearn(fitted())
    again = read_sklearn(content, package="sklearn", where="here")
    assert np.array_equal(again.predict_proba(rows), estimator.predict_proba(rows))


def test_other_samples_than_pictures_are_refused():
    with pytest.raises(StillroomError, match=r"band_logistic reads pictures \[C, H, W\]; found \(4,\); choose another"):
        build_model(NAME, num_classes=3, in_shape=(4,))
    with pytest.raises(ValueError, match=r"samples of shape \(4,\), where \(channels, bands, frames\) are read"):
        band_logistic(num_classes=3, in_shape=(4,))
