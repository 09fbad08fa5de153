"""Figures of real numbers against loops and hands, and the gaps that count nowhere."""

import math

import numpy as np
import pytest
import torch

from pipeline.errors import StillroomError
from pipeline.real_metrics import regression_metrics, rmse_of_outputs, skill

NAN = math.nan


def rows(shape: tuple[int, ...] = (40, 3), seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    """Answers and targets, of which a fifth is not known."""
    draws = torch.Generator().manual_seed(seed)
    targets = 5 + 3 * torch.randn(shape, generator=draws)
    values = targets + torch.randn(shape, generator=draws)
    return values, targets.masked_fill(torch.rand(shape, generator=draws) < 0.2, NAN)


def slow(values: torch.Tensor, targets: torch.Tensor) -> dict[str, float]:
    """The same by a loop over what is known, r2 about each output's mean."""
    pairs = [
        (float(v), float(t), s)
        for row_v, row_t in zip(values, targets, strict=True)
        for s, (v, t) in enumerate(zip(row_v, row_t, strict=True))
        if not math.isnan(t)
    ]
    means = {s: np.mean([t for _, t, own in pairs if own == s]) for _, _, s in pairs}
    squares = sum((v - t) ** 2 for v, t, _ in pairs)
    return {
        "mae": sum(abs(v - t) for v, t, _ in pairs) / len(pairs),
        "rmse": math.sqrt(squares / len(pairs)),
        "r2": 1 - squares / sum((t - means[s]) ** 2 for _, t, s in pairs),
    }


def test_figures_by_hand():
    values = torch.tensor([[1.0, 10.0], [3.0, NAN], [5.0, 14.0]])
    targets = torch.tensor([[2.0, 10.0], [3.0, NAN], [1.0, 12.0]])
    found = regression_metrics(values, targets)  # errors 1, 0, 4 and 0, 2; about means 2 and 11: 0, 1, 1 and 1, 1
    assert found == pytest.approx({"mae": 7 / 5, "rmse": math.sqrt(21 / 5), "r2": 1 - 21 / 4})


@pytest.mark.parametrize("seed", range(3))
def test_figures_are_those_of_a_loop(seed):
    values, targets = rows(seed=seed)
    assert regression_metrics(values, targets) == pytest.approx(slow(values, targets), rel=1e-6)


def test_a_perfect_answer_and_the_mean():
    _, targets = rows((30, 2))
    assert regression_metrics(targets.nan_to_num(), targets) == {"mae": 0, "rmse": 0, "r2": 1}
    mean = torch.tensor(np.nanmean(targets.double().numpy(), axis=0)).expand(30, 2)
    assert regression_metrics(mean, targets)["r2"] == pytest.approx(0, abs=1e-12)


def test_figures_of_axes_beyond_outputs_are_those_of_all_outputs_side_by_side():
    values, targets = rows((20, 3, 2))
    assert regression_metrics(values, targets) == pytest.approx(
        regression_metrics(values.flatten(1), targets.flatten(1))
    )


@pytest.mark.parametrize("count", [1, 3, 7])
def test_r2_is_none_where_targets_do_not_vary(count):
    targets = torch.full((count, 2), 0.1, dtype=torch.float64) * 1.7  # whose mean is off by a bit
    found = regression_metrics(targets + 1, targets)
    assert math.isnan(found["r2"])
    assert found["rmse"] == pytest.approx(1)


def test_an_output_that_does_not_vary_adds_errors_but_no_spread():
    targets = torch.tensor([[1.0, 0.3], [3.0, 0.3], [5.0, 0.3]], dtype=torch.float64)
    found = regression_metrics(targets + torch.tensor([0.0, 1.0]), targets)
    assert found["r2"] == pytest.approx(1 - 3 / 8)


@pytest.mark.parametrize("bad", [NAN, math.inf])
def test_an_answer_that_is_not_finite_is_named_where_something_is_known(bad):
    values, targets = rows((6, 2))
    targets[4] = torch.tensor([1.0, NAN])
    values[4, 1] = bad
    regression_metrics(values, targets)  # nothing is known there
    values[4, 0] = bad
    with pytest.raises(StillroomError, match="metrics: row 4 has an answer that is not finite; expected numbers; look"):
        regression_metrics(values, targets)


def test_nothing_known_is_told():
    with pytest.raises(StillroomError, match="metrics: none of 6 numbers is known; expected at least one; score rows"):
        regression_metrics(torch.zeros(3, 2), torch.full((3, 2), NAN))


def test_the_rmse_of_each_output():
    values, targets = rows((30, 3))
    targets[:, 1] = NAN
    found = rmse_of_outputs(values, targets)
    assert math.isnan(found[1])
    for output in (0, 2):
        own = slow(values[:, [output]], targets[:, [output]])["rmse"]
        assert found[output].item() == pytest.approx(own, rel=1e-6)


def test_skill():
    assert skill(3.0, 4.0) == 0.25
    assert skill(5.0, 4.0) == -0.25
    assert skill(0.0, 4.0) == 1
    assert math.isnan(skill(1.0, 0.0))
