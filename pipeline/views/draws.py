"""Random numbers as a function of position: Philox 4x32-10 over a whole batch at once.

No generator has state here, so rows come out the same in any order, batch size or process. Drawn with NumPy on
the host (a few microseconds a batch), so a GPU sees the same numbers as a CPU.
Source: Salmon, Moraes, Dror, Shaw 2011, "Parallel random numbers: as easy as 1, 2, 3", table 2.
"""

import hashlib
from dataclasses import dataclass

import numpy as np

_M0, _M1 = np.uint64(0xD2511F53), np.uint64(0xCD9E8D57)
_W0, _W1 = np.uint64(0x9E3779B9), np.uint64(0xBB67AE85)
_LOW, _SHIFT = np.uint64(0xFFFFFFFF), np.uint64(32)


@dataclass(frozen=True, eq=False)
class RowKeys:
    """What makes a row's random draws its own: the plan's seed, the view, the sample ids int64 [B]."""

    seed: int
    view: int
    ids: np.ndarray


def philox(counter: np.ndarray, key: tuple[int, int]) -> np.ndarray:
    """Return the ten-round Philox block of each counter: uint32 [..., 4], two 32-bit key words -> uint32 [..., 4]."""
    c0, c1, c2, c3 = np.moveaxis(counter.astype(np.uint64), -1, 0)
    k0, k1 = np.uint64(key[0]), np.uint64(key[1])
    for _ in range(10):
        p0, p1 = c0 * _M0, c2 * _M1
        c0, c1, c2, c3 = (p1 >> _SHIFT) ^ c1 ^ k0, p1 & _LOW, (p0 >> _SHIFT) ^ c3 ^ k1, p0 & _LOW
        k0, k1 = (k0 + _W0) & _LOW, (k1 + _W1) & _LOW
    return np.stack([c0, c1, c2, c3], axis=-1).astype(np.uint32)


def row_words(seed: int, sample_ids: np.ndarray, view: int, count: int) -> np.ndarray:
    """Return `count` random 32-bit words for each row: ids [B], one view -> uint32 [B, count]."""
    blocks = -(-count // 4)
    counter = np.empty((len(sample_ids), blocks, 4), np.uint32)
    ids = np.asarray(sample_ids, np.uint64)[:, None]
    counter[..., 0], counter[..., 1] = ids & _LOW, ids >> _SHIFT
    counter[..., 2], counter[..., 3] = view, np.arange(blocks)
    words = philox(counter, (seed & 0xFFFFFFFF, seed >> 32 & 0xFFFFFFFF))
    return words.reshape(len(sample_ids), blocks * 4)[:, :count]


def uniform(words: np.ndarray) -> np.ndarray:
    """Return the words as float64 in [0, 1): 32 bits, exact, so that a digest of them is the same everywhere."""
    return words * 2.0**-32


def stream_seed(seed: int, *stream: int | str) -> int:
    """Return a 63-bit seed for a named stream, so that two uses of one run's seed never share numbers."""
    text = "/".join(map(str, (seed, *stream)))
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") >> 1


def permutation(seed: int, *stream: int | str, size: int) -> np.ndarray:
    """Return the permutation of range(size) that belongs to (seed, stream): a pure function, int64 [size]."""
    generator = np.random.Generator(np.random.Philox(key=stream_seed(seed, *stream)))
    return generator.permutation(size)
