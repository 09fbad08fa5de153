"""Distances between sets of pictures against slow references, and a judge that learns to see."""

import numpy as np
import pytest
import torch
from scipy.linalg import sqrtm
from torch import Tensor

from pipeline.errors import StillroomError
from pipeline.generation import Judge, energy_distance, fit_judge, frechet_distance, generation_figures

SIDE = 8


def normal(rows: int, dims: int, seed: int, scale: float = 1.0) -> Tensor:
    draws = torch.Generator().manual_seed(seed)
    mixing = torch.randn(dims, dims, generator=draws)
    return scale * torch.randn(rows, dims, generator=draws) @ mixing + torch.randn(dims, generator=draws)


@pytest.mark.parametrize(("rows", "dims"), [(200, 6), (50, 1), (5, 12)])
def test_the_frechet_distance_is_that_of_the_papers_formula(rows, dims):
    a, b = normal(rows, dims, 0).double(), normal(rows + 3, dims, 1, scale=2).double()
    first, second = (np.cov(each.T.numpy()).reshape(dims, dims) for each in (a, b))
    root = np.real(sqrtm(first @ second + 1e-14 * np.eye(dims)))
    apart = np.square(a.mean(0).numpy() - b.mean(0).numpy()).sum()
    assert frechet_distance(a, b) == pytest.approx(apart + np.trace(first + second - 2 * root), rel=1e-4)


def test_the_frechet_distance_is_symmetric_and_zero_of_the_same():
    a, b = normal(100, 5, 0), normal(80, 5, 1)
    assert frechet_distance(a, a) == pytest.approx(0, abs=1e-9)
    assert frechet_distance(a, b) == pytest.approx(frechet_distance(b, a), rel=1e-9)
    assert frechet_distance(a, a + 3) == pytest.approx(5 * 9, rel=1e-4)  # a shift alone is its square


@pytest.mark.parametrize(
    ("a", "b"),
    [
        (torch.zeros(1, 3), torch.zeros(5, 3)),
        (torch.zeros(5, 3), torch.zeros(5, 4)),
        (torch.full((5, 3), torch.nan), torch.zeros(5, 3)),
    ],
)
def test_features_that_have_no_distance_are_told(a, b):
    with pytest.raises(StillroomError, match=r"frechet distance: found features .*; expected finite ones"):
        frechet_distance(a, b)


def test_the_energy_distance_is_that_of_a_loop_over_pairs():
    a, b = normal(7, 3, 0), normal(5, 3, 1)
    within = [
        sum((x - y).norm().item() for i, x in enumerate(rows) for j, y in enumerate(rows) if i != j)
        / (len(rows) * (len(rows) - 1))
        for rows in (a, b)
    ]
    between = sum((x - y).norm().item() for x in a for y in b) / 35
    assert energy_distance(a, b) == pytest.approx(2 * between - sum(within), rel=1e-5)


def test_the_energy_distance_tells_a_blur_from_draws():
    """The mean of all draws is nearest to each of them, and far from them all together."""
    draws, others = torch.randn(300, 20, generator=torch.Generator().manual_seed(0)), normal(300, 20, 0) * 0
    truth = torch.randn(300, 20, generator=torch.Generator().manual_seed(1))
    assert (others - truth).square().mean() < (draws - truth).square().mean()
    assert abs(energy_distance(draws, truth)) < 0.1 < energy_distance(others, truth)


def stripes(rows: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Pictures of SIDE x SIDE, across (0) or down (1), with noise."""
    draws = torch.Generator().manual_seed(seed)
    labels = torch.arange(rows) % 2
    across = (torch.arange(SIDE) % 2).float().expand(rows, SIDE, SIDE)
    pictures = torch.where(labels.view(-1, 1, 1) == 0, across, across.transpose(1, 2))
    return (0.7 * pictures + 0.3 * torch.rand(rows, SIDE, SIDE, generator=draws)).flatten(1), labels


def test_a_judge_sees_classes_and_how_far_pictures_are_from_real_ones():
    judge = fit_judge(*stripes(512), side=SIDE, classes=2, seed=0)
    pictures, labels = stripes(200, seed=1)
    real, seen = judge.judged(pictures)
    assert (seen == labels).double().mean() > 0.95
    good = generation_figures(judge, stripes(200, seed=2)[0], labels, real)
    grey = generation_figures(judge, torch.full((200, SIDE * SIDE), 0.5), labels, real)
    assert good["frechet"] < grey["frechet"] / 10
    assert good["class_agreement"] > 0.95
    assert grey["class_agreement"] == 0.5
    swapped = generation_figures(judge, pictures, 1 - labels, real)
    assert swapped["frechet"] == pytest.approx(0, abs=1e-6)
    assert swapped["class_agreement"] < 0.05


def test_a_judge_is_a_function_of_its_seed_and_leaves_the_generator_alone():
    before = torch.random.get_rng_state()
    one, other, third = (fit_judge(*stripes(256), side=SIDE, classes=2, seed=seed).state_dict() for seed in (0, 0, 1))
    assert torch.equal(torch.random.get_rng_state(), before)
    assert all(torch.equal(one[name], other[name]) for name in one)
    assert any(not torch.equal(one[name], third[name]) for name in one)


def test_pixels_are_cut_and_too_few_pictures_told():
    judge = Judge(SIDE, 2).eval()
    pictures = stripes(6)[0]
    wild = torch.where(pictures > 0.5, 9.0, -9.0)
    assert torch.equal(judge.judged(wild)[0], judge.judged((pictures > 0.5).float())[0])
    with pytest.raises(StillroomError, match="judge: found 6 real pictures; expected at least 128"):
        fit_judge(*stripes(6), side=SIDE, classes=2, seed=0)
