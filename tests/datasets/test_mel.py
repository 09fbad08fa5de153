"""Log-mel pictures: a slow obvious reference, tones where they belong, silence, and time that moves columns."""

import cmath
import math

import numpy as np
import pytest

from pipeline.datasets.mel import (
    BANDS,
    FFT,
    FRAMES,
    HOP,
    RANGE,
    RATE,
    WINDOW,
    as_levels,
    loudest_part,
    mel_filters,
    mel_picture,
    mel_powers,
    num_frames,
)

STEP = RANGE / 255  # dB from level to level


def tone(hertz: float, num_samples: int, amplitude: float = 8000) -> np.ndarray:
    return np.rint(amplitude * np.sin(2 * np.pi * hertz * np.arange(num_samples) / RATE)).astype(np.int16)


def noise(num_samples: int, seed: int = 0, scale: float = 1000) -> np.ndarray:
    return np.rint(np.random.default_rng(seed).normal(0, scale, num_samples)).astype(np.int16)


def to_mel(hertz: float) -> float:
    return 2595 * math.log10(1 + hertz / 700)


def slow_power(samples: np.ndarray, band: int, frame: int) -> float:
    """The power of one band in one frame, term by term."""
    piece = [float(samples[HOP * frame + n]) * (0.5 - 0.5 * math.cos(2 * math.pi * n / WINDOW)) for n in range(WINDOW)]
    spacing = to_mel(RATE / 2) / (BANDS + 1)
    lower, centre, upper = (700 * (10 ** (spacing * (band + i) / 2595) - 1) for i in range(3))
    total = 0.0
    for k in range(FFT // 2 + 1):
        hertz = k * RATE / FFT
        rise, fall = (hertz - lower) / (centre - lower), (upper - hertz) / (upper - centre)
        weight = max(0.0, min(rise, fall))
        value = sum(x * cmath.exp(-2j * math.pi * k * n / FFT) for n, x in enumerate(piece)) if weight else 0
        total += weight * abs(value) ** 2
    return total


def test_powers_are_those_of_a_slow_reference():
    samples = noise(WINDOW + 3 * HOP)
    found = mel_powers(samples)
    assert found.shape == (BANDS, 4)
    for band, frame in ((0, 0), (1, 3), (17, 2), (BANDS - 1, 1)):
        assert found[band, frame] == pytest.approx(slow_power(samples, band, frame), rel=1e-9)


def test_filters_cover_every_frequency_but_the_ends_and_none_is_empty():
    filters = mel_filters()
    assert (filters >= 0).all()
    assert (filters <= 1).all()
    assert (filters.sum(1) > 0.3).all()
    inner = filters[:, 2:-8].sum(0)  # the last triangle falls to zero at 4 kHz
    np.testing.assert_allclose(inner, 1, atol=1e-9)  # neighbours' slopes add up to one


@pytest.mark.parametrize("hertz", [300, 1000, 2500, 3600])
def test_pure_tone_lights_its_band(hertz):
    spacing = to_mel(RATE / 2) / (BANDS + 1)
    band = round(to_mel(hertz) / spacing) - 1
    picture = mel_picture(tone(hertz, 20_000))[0]
    assert (picture.argmax(0) == BANDS - 1 - band).all()  # the highest band is on top
    assert picture.max() == 255
    far = np.delete(picture, np.arange(BANDS - 1 - band - 6, BANDS - 1 - band + 7).clip(0, BANDS - 1), axis=0)
    assert far.max() < 128  # 30 dB below, six bands away


def test_levels_are_decibels_below_the_loudest_rounded_by_half_a_step_at_most():
    powers = 10 ** (np.random.default_rng(0).uniform(-7.5, 0, (40, 50)))
    powers[3, 4] = 1
    decibels = 10 * np.log10(powers)
    found = as_levels(7.3 * powers)
    assert found[3, 4] == 255
    heard = decibels > -RANGE
    assert abs(STEP * (found[heard].astype(float) - 255) - decibels[heard]).max() <= STEP / 2 + 1e-9
    assert STEP / 2 < 0.12
    assert not found[~heard].any()


def test_silence_is_the_floor():
    assert not mel_picture(np.zeros(9000, np.int16)).any()
    assert not mel_picture(np.zeros(0, np.int16)).any()


def test_loudness_does_not_show():
    samples = noise(12_000, scale=300)
    assert np.array_equal(mel_picture(samples), mel_picture(8 * samples))


def test_later_sound_lies_farther_right():
    samples = np.zeros(WINDOW + HOP * (FRAMES - 1), np.int16)
    early, late = samples.copy(), samples.copy()
    early[2000:5000] = late[2000 + 9 * HOP : 5000 + 9 * HOP] = noise(3000)
    first, second = mel_picture(early), mel_picture(late)
    assert first.any()
    assert np.array_equal(second[:, :, 9:], first[:, :, :-9])


def test_short_clip_lies_in_the_middle():
    samples = noise(WINDOW + 9 * HOP)
    picture = mel_picture(samples)
    assert picture.shape == (1, BANDS, FRAMES)
    assert np.flatnonzero(picture.any((0, 1))).tolist() == list(range(59, 69))
    assert np.flatnonzero(mel_picture(samples[:50]).any((0, 1))).tolist() == [63]  # less than a frame


def test_of_a_long_clip_the_loudest_part_is_kept():
    samples = noise(40_000, scale=20)
    samples[21_000:24_000] = noise(3_000, seed=1)
    part = loudest_part(samples)
    length = HOP * (FRAMES - 1) + WINDOW
    assert num_frames(len(part)) == FRAMES
    starts = range(0, len(samples) - length + 1, HOP)
    frames = [[HOP * f, HOP * f + WINDOW] for f in range(FRAMES)]

    def energy(start: int) -> int:
        return sum(int((samples[start + a : start + b].astype(np.int64) ** 2).sum()) for a, b in frames)

    best = max(starts, key=lambda start: (energy(start), -start))
    assert np.array_equal(part, samples[best : best + length])


def test_of_parts_as_loud_the_first_is_kept():
    samples = np.zeros(60_000, np.int16)
    samples[20_000:22_000] = samples[40_000:42_000] = noise(2_000)  # 20,000 samples are whole frames
    start = (loudest_part(samples).ctypes.data - samples.ctypes.data) // samples.itemsize
    assert 20_000 - HOP * FRAMES <= start <= 20_000
