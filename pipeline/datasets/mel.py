"""Log-mel energies of speech at 8 kHz as small pictures: time runs to the right, the highest band is on top.

Trade: a picture holds 1.3 seconds of a clip and neither its loudness nor any phase, but views, networks, stores and
reports take it as they take any picture. Levels are 8 bits of 60 dB, which rounds them by 0.12 dB at most: less than an
ear can tell.
"""

from functools import cache

import numpy as np

MEL_VERSION = 1  # raise it when the same samples give another picture
RATE = 8000  # samples a second
WINDOW = 200  # samples a frame: 25 ms
HOP = 80  # samples from frame to frame: 10 ms
FFT = 256
BANDS = 40
FRAMES = 128  # of a picture: 1.295 s
RANGE = 60.0  # dB below the loudest cell: speech spans 30 within a band and falls by as many to 4 kHz; below is noise


def mel_picture(samples: np.ndarray) -> np.ndarray:
    """Return the levels of the loudest FRAMES frames of a clip: int16 [n] -> uint8 [1, BANDS, FRAMES].

    255 is the loudest cell, 0 whatever lies RANGE dB or more below it. A shorter clip lies in the middle, between
    zeros, the level that views fill with, too. Silence is zeros.
    """
    levels = as_levels(mel_powers(loudest_part(samples)))[::-1]
    before = (FRAMES - levels.shape[1]) // 2
    return np.pad(levels, ((0, 0), (before, FRAMES - levels.shape[1] - before)))[None]


def loudest_part(samples: np.ndarray) -> np.ndarray:
    """Return the part of a clip whose FRAMES frames hold the most energy, the first of several: int16 [n] -> [<= n].

    A clip of fewer frames is returned as it is. Energies are sums of integers, so every machine chooses the same part.
    """
    count = num_frames(len(samples))
    if count <= FRAMES:
        return samples
    sums = np.concatenate([[0], np.cumsum(samples.astype(np.int64) ** 2)])
    starts = HOP * np.arange(count)
    energies = np.concatenate([[0], np.cumsum(sums[starts + WINDOW] - sums[starts])])
    start = HOP * int(np.argmax(energies[FRAMES:] - energies[:-FRAMES]))
    return samples[start : start + HOP * (FRAMES - 1) + WINDOW]


def num_frames(num_samples: int) -> int:
    """Return how many whole frames a clip has; one that is shorter than a frame is filled up to one."""
    return 1 + max(0, num_samples - WINDOW) // HOP


def mel_powers(samples: np.ndarray) -> np.ndarray:
    """Return the power of each mel band in each frame: int16 [n] -> float64 [BANDS, T], the lowest band first."""
    filled = np.pad(samples.astype(np.float64), (0, max(0, WINDOW - len(samples))))
    frames = np.lib.stride_tricks.sliding_window_view(filled, WINDOW)[::HOP]
    hann = 0.5 - 0.5 * np.cos(2 * np.pi * np.arange(WINDOW) / WINDOW)
    spectra = np.fft.rfft(frames * hann, FFT)
    return mel_filters() @ (spectra.real**2 + spectra.imag**2).T


@cache
def mel_filters() -> np.ndarray:
    """Return triangles of height 1, evenly spaced on the mel scale from 0 to 4 kHz: float64 [BANDS, FFT / 2 + 1].

    Source: Davis & Mermelstein 1980, with mel = 2595 log10(1 + Hz / 700) (O'Shaughnessy 1987).
    """
    top = 2595 * np.log10(1 + RATE / 2 / 700)
    corners = 700 * (10 ** (np.linspace(0, top, BANDS + 2) / 2595) - 1)
    bins = np.arange(FFT // 2 + 1) * RATE / FFT
    lower, centre, upper = (corners[i : i + BANDS, None] for i in range(3))
    return np.clip(np.minimum((bins - lower) / (centre - lower), (upper - bins) / (upper - centre)), 0, None)


def as_levels(powers: np.ndarray) -> np.ndarray:
    """Return powers as levels, 255 the largest of all and 0 RANGE dB below it: float64 [...] -> uint8 [...]."""
    largest = powers.max()
    if largest == 0:
        return np.zeros(powers.shape, np.uint8)
    decibels = 10 * np.log10(np.maximum(powers / largest, 10 ** (-RANGE / 10)))
    return np.rint(255 * (1 + decibels / RANGE)).astype(np.uint8)
