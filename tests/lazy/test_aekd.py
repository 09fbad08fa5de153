"""The weights of AE-KD solve their small problem: optimal by its conditions, and no worse than any point of a grid."""

import itertools

import numpy as np
import pytest

from pipeline.errors import StillroomError
from pipeline.lazy import Aekd
from pipeline.lazy.aekd import least_norm

CASES = [
    (count, rank, cap, seed)
    for count in (2, 3, 5, 16)
    for rank in (1, 3, 40)
    for cap in (0.6, 1.0)
    for seed in (0, 1, 2)
]


def gram_of(count: int, rank: int, seed: int, shift: float = 0.5) -> np.ndarray:
    """The inner products of gradients that partly agree; of fewer dimensions than teachers when the rank is small."""
    draws = np.random.default_rng(seed)
    vectors = draws.normal(size=(count, rank)) * draws.uniform(0.1, 3, (count, 1)) + shift
    return vectors @ vectors.T


def check_optimal(gram: np.ndarray, weights: np.ndarray, cap: float) -> None:
    """Karush-Kuhn-Tucker: one level that no free weight's slope leaves, no lower one at 0, no higher one at the cap."""
    assert weights.min() >= 0
    assert weights.max() <= cap + 1e-12
    assert weights.sum() == pytest.approx(1, abs=1e-12)
    slope = gram @ weights
    tolerance = 1e-8 * np.abs(gram).max()
    low, high = weights <= 1e-12, weights >= cap - 1e-12
    ceiling = slope[~low].max()  # of all that could still give weight away
    floor = slope[~high].min()  # of all that could still take it
    assert ceiling <= floor + tolerance


@pytest.mark.parametrize(("count", "rank", "cap", "seed"), CASES)
def test_the_weights_meet_the_conditions_of_an_optimum(count, rank, cap, seed):
    gram = gram_of(count, rank, seed)
    check_optimal(gram, least_norm(gram, cap), cap)


@pytest.mark.parametrize("cap", [0.4, 0.5, 0.6, 1.0])
@pytest.mark.parametrize("seed", range(6))
def test_no_point_of_a_fine_grid_of_three_weights_is_better(cap, seed):
    gram = gram_of(3, 4, seed)
    found = least_norm(gram, cap)
    steps = np.linspace(0, cap, 201)
    grid = np.array([(a, b, 1 - a - b) for a, b in itertools.product(steps, steps) if 0 <= 1 - a - b <= cap])
    values = np.einsum("ni,ij,nj->n", grid, gram, grid)
    assert found @ gram @ found <= values.min() + 1e-12


def test_two_weights_are_the_formula():
    g = np.array([[2.0, 0.0], [0.0, 1.0]])
    assert least_norm(g @ g.T, 1.0) == pytest.approx([0.2, 0.8])  # inversely as the squared norms, 4 and 1
    assert least_norm(g @ g.T, 0.6) == pytest.approx([0.4, 0.6])
    towards = np.array([[2.0, 0.0], [1.0, 0.0]])  # the same direction: the shorter takes all it may
    assert least_norm(towards @ towards.T, 1.0) == pytest.approx([0.0, 1.0])


@pytest.mark.parametrize("count", [3, 7])
def test_a_cap_of_one_part_is_the_mean_and_twins_share(count):
    gram = gram_of(count, 5, 1)
    assert least_norm(gram, 1 / count) == pytest.approx(np.full(count, 1 / count))
    twins = np.array([[1.0, 1, 0], [1, 1, 0], [0, 0, 1]])
    assert least_norm(twins, 1.0) == pytest.approx([0.25, 0.25, 0.5], abs=1e-4)
    assert least_norm(np.zeros((count, count)), 1.0) == pytest.approx(np.full(count, 1 / count))


@pytest.mark.parametrize("seed", range(4))
def test_teacher_order_moves_the_weights_along(seed):
    gram, order = gram_of(6, 3, seed), np.random.default_rng(seed).permutation(6)
    moved = least_norm(gram[np.ix_(order, order)], 0.6)
    assert moved == pytest.approx(least_norm(gram, 0.6)[order], abs=1e-6)


def test_opposed_teachers_cancel():
    """Zero lies in their hull: the norm is nothing, whatever the scale."""
    vectors = np.array([[1.0, 0], [-2.0, 0], [0, 1.0]])
    weights = least_norm(1e-9 * vectors @ vectors.T, 1.0)
    assert np.abs(weights @ vectors).max() < 1e-6


def test_a_cap_that_cannot_be_met_is_told():
    with pytest.raises(StillroomError, match=r"cap is 0.3 with 3 teachers; expected at least 0.333333, or the weights"):
        Aekd(cap=0.3).check(3)
    with pytest.raises(StillroomError, match=r"cap is 0.6 with 1 teacher; expected at least 1"):
        Aekd().check(1)
    Aekd(cap=1 / 3).check(3)
