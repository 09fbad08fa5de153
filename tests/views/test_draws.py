"""Random numbers by position: the published vectors, and nothing but the position counts."""

import numpy as np
import pytest

from pipeline.views.draws import permutation, philox, row_words, stream_seed, uniform

# Random123's kat_vectors for philox4x32 with ten rounds: (counter, key, block).
KNOWN = [
    ("00000000 00000000 00000000 00000000", "00000000 00000000", "6627e8d5 e169c58d bc57ac4c 9b00dbd8"),
    ("ffffffff ffffffff ffffffff ffffffff", "ffffffff ffffffff", "408f276d 41c83b0e a20bc7c6 6d5451fd"),
    ("243f6a88 85a308d3 13198a2e 03707344", "a4093822 299f31d0", "d16cfe09 94fdcceb 5001e420 24126ea1"),
]


def words(text: str) -> list[int]:
    return [int(word, 16) for word in text.split()]


@pytest.mark.parametrize(("counter", "key", "block"), KNOWN)
def test_philox_gives_the_published_blocks(counter, key, block):
    low, high = words(key)
    assert philox(np.array([words(counter)], np.uint32), (low, high)).tolist() == [words(block)]


def test_a_batch_of_counters_gives_each_its_own_block():
    counters = np.array([words(counter) for counter, _, _ in KNOWN], np.uint32)
    together = philox(counters, (1, 2))
    assert all(np.array_equal(philox(counters[i : i + 1], (1, 2))[0], together[i]) for i in range(len(counters)))


def test_a_rows_words_are_its_own_whatever_the_batch():
    ids = np.array([7, 0, 2**40, 3])
    whole = row_words(9, ids, 2, 6)
    assert whole.shape == (4, 6)
    for place, sample in enumerate(ids):
        assert np.array_equal(row_words(9, np.array([sample]), 2, 6)[0], whole[place])
    assert np.array_equal(row_words(9, ids, 2, 3), whole[:, :3])


def test_seed_view_and_id_each_change_the_words():
    base = (9, np.array([5]), 2, 4)
    found = [row_words(*base), row_words(10, *base[1:]), row_words(9 + 2**32, *base[1:])]
    found += [row_words(9, np.array([5]), 3, 4), row_words(9, np.array([5 + 2**32]), 2, 4)]
    assert len({row.tobytes() for row in found}) == len(found)


def test_uniform_is_exact_and_below_one():
    ends = uniform(np.array([0, 1, 2**31, 2**32 - 1], np.uint32))
    assert ends.tolist() == [0.0, 2.0**-32, 0.5, 1 - 2.0**-32]


def test_words_are_spread_evenly():
    draws = uniform(row_words(0, np.arange(4096), 0, 8))
    counts = np.histogram(draws, bins=16, range=(0, 1))[0]
    assert abs(counts - draws.size / 16).max() < 5 * np.sqrt(draws.size / 16)
    assert abs(np.corrcoef(draws.T) - np.eye(8)).max() < 0.08


def test_permutations_are_permutations_and_belong_to_their_stream():
    found = [permutation(1, "a", size=50), permutation(1, "b", size=50), permutation(2, "a", size=50)]
    assert all(np.array_equal(np.sort(order), np.arange(50)) for order in found)
    assert len({order.tobytes() for order in found}) == 3
    assert np.array_equal(permutation(1, "a", size=50), found[0])


def test_streams_and_permutations_are_the_same_in_every_release():
    assert 0 <= stream_seed(3, "order", 1) < 2**63
    assert stream_seed(0, "init") == 1519069808562059438
    assert permutation(0, "order", 0, size=8).tolist() == [7, 1, 5, 2, 0, 6, 4, 3]
