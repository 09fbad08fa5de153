"""Laws over the whole of REAL_FUSIONS, and each strategy against a slow or simulated reference."""

import itertools
import math
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from pipeline.errors import StillroomError
from pipeline.fusion.real import REAL_FUSIONS, FusedReals, RealFusion
from pipeline.fusion.real.fit import non_negative_least_squares

OPTIONS: dict[str, list[dict[str, Any]]] = {
    "weighted": [{}, {"tau": 1.0}],
    "inverse_variance": [{}, {"debias": False}, {"shared": True}],
    "stacking": [{}, {"intercept": True}, {"shared": False}, {"shared": False, "intercept": True}],
    "moments": [{}, {"tau": 0.5}, {"shared": True}],
}
DRAWN = {"draw"}  # by the keys of rows, and by a teacher's place: tests/fusion/test_draw.py
VARIANTS = [(name, options) for name in REAL_FUSIONS if name not in DRAWN for options in OPTIONS.get(name, [{}])]
FITTED = [(name, options) for name, options in VARIANTS if name not in ("mean", "median")]
# what says no more than its teachers: the others take a teacher's bias away, or its scale
AVERAGES = [
    (name, options)
    for name, options in VARIANTS
    if name in ("mean", "median", "weighted", "moments") or options == {"debias": False}
]
SHAPES = [(), (4,), (3, 2)]

over_all = pytest.mark.parametrize(("name", "options"), VARIANTS)
over_fitted = pytest.mark.parametrize(("name", "options"), FITTED)


def rows(num_teachers: int, count: int, shape: tuple[int, ...] = (4,), seed: int = 1) -> tuple[Tensor, Tensor]:
    """Values [T, N, *S] and targets [N, *S]: teachers are off by a bias and noise of their own."""
    draws = torch.Generator().manual_seed(seed)
    targets = 3 * torch.randn(count, *shape, generator=draws) + 10
    column = (num_teachers, *[1] * targets.ndim)
    noise = torch.randn(num_teachers, *targets.shape, generator=draws) * torch.linspace(0.5, 2, num_teachers).view(
        column
    )
    return targets + noise + torch.linspace(-0.3, 0.4, num_teachers).view(column), targets


def fitted_fusion(name: str, options: dict[str, Any], values: Tensor, targets: Tensor, **more: Any) -> RealFusion:
    return REAL_FUSIONS[name](**options).fit(values, targets, **more)


def fuse(name: str, options: dict[str, Any], values: Tensor, targets: Tensor) -> FusedReals:
    return fitted_fusion(name, options, values, targets).fuse(values)


@over_all
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("num_teachers", [1, 3])
def test_shapes_and_weights(name: str, options: dict[str, Any], shape: tuple[int, ...], num_teachers: int) -> None:
    values, targets = rows(num_teachers, 30, shape)
    found = fuse(name, options, values, targets)
    assert found.mean.shape == found.variance.shape == (30, *shape)
    assert found.weights.shape == (30, num_teachers)
    assert found.disagreement.shape == (30,)
    assert {each.dtype for each in vars(found).values()} == {torch.float32}
    assert all(each.isfinite().all() for each in vars(found).values())
    torch.testing.assert_close(found.weights.sum(1), torch.ones(30))
    assert (found.weights >= 0).all()
    assert (found.variance >= 0).all()
    assert ((found.disagreement > 0) == (num_teachers > 1)).all()


@over_all
@pytest.mark.parametrize("shape", [(), (5,), (3, 33)])
def test_any_block_size_gives_the_same_bits(name: str, options: dict[str, Any], shape: tuple[int, ...]) -> None:
    values, targets = rows(4, 40, shape)
    mask = torch.rand(targets.shape, generator=torch.Generator().manual_seed(0)) < 0.8
    strategy = fitted_fusion(name, options, values, targets)
    whole = strategy.fuse(values, mask=mask)
    for size in (1, 3, 17):
        blocks = [strategy.fuse(values[:, i : i + size], mask=mask[i : i + size]) for i in range(0, 40, size)]
        for part in ("mean", "variance", "weights", "disagreement"):
            assert torch.equal(torch.cat([getattr(block, part) for block in blocks]), getattr(whole, part)), part


@over_all
def test_teacher_order_permutes_the_weights(name: str, options: dict[str, Any]) -> None:
    values, targets = rows(4, 40)
    values[3] = values[0]  # copies must share what they have in whatever order
    order = torch.tensor([2, 0, 3, 1])
    found, moved = fuse(name, options, values, targets), fuse(name, options, values[order], targets)
    torch.testing.assert_close(moved.mean, found.mean)
    torch.testing.assert_close(moved.variance, found.variance)
    torch.testing.assert_close(moved.weights, found.weights[:, order], atol=1e-6, rtol=0)
    torch.testing.assert_close(moved.disagreement, found.disagreement)


@over_all
@pytest.mark.parametrize("scale", [1e-3, 7.0, 1e4])
def test_another_unit_is_another_unit(name: str, options: dict[str, Any], scale: float) -> None:
    values, targets = (each.double() for each in rows(3, 40))
    found, scaled = fuse(name, options, values, targets), fuse(name, options, values * scale, targets * scale)
    torch.testing.assert_close(scaled.mean, found.mean * scale)
    torch.testing.assert_close(scaled.variance, found.variance * scale**2, atol=0, rtol=1e-5)
    torch.testing.assert_close(scaled.weights, found.weights)
    torch.testing.assert_close(scaled.disagreement, found.disagreement * scale**2, atol=0, rtol=1e-5)


@pytest.mark.parametrize(("name", "options"), AVERAGES)
@pytest.mark.parametrize("copies", [1, 3])
def test_one_teacher_or_its_copies_give_that_teacher(name: str, options: dict[str, Any], copies: int) -> None:
    values, targets = rows(1, 20)
    found = fuse(name, options, values.repeat(copies, 1, 1), targets)
    torch.testing.assert_close(found.mean, values[0], atol=0, rtol=1e-7)
    torch.testing.assert_close(found.weights, torch.full((20, copies), 1 / copies))
    assert found.disagreement.max() < 1e-10


@over_all
def test_the_mean_lies_between_corrected_teachers_and_disagreement_is_their_weighted_variance(
    name: str, options: dict[str, Any]
) -> None:
    """By a loop over rows and outputs, with weights that one output's rows report."""
    values, targets = rows(3, 30, ())
    strategy = fitted_fusion(name, options, values, targets)
    found = strategy.fuse(values)
    bias = strategy.state["bias"].flatten() if "bias" in strategy.state else torch.zeros(3)
    for row in range(30):
        own, weights = (values[:, row] - bias).double(), found.weights[row].double()
        centre = (weights * own).sum()
        if name == "median":
            assert found.mean[row].item() == pytest.approx(float(np.median(own)), rel=1e-6)
            assert found.disagreement[row].item() == pytest.approx(
                (own - own.median()).square().mean().item(), rel=1e-4
            )
            continue
        assert found.disagreement[row].item() == pytest.approx((weights * (own - centre) ** 2).sum().item(), rel=1e-4)
        if name != "stacking":  # whose factors need not sum to one
            assert found.mean[row].item() == pytest.approx(centre.item(), rel=1e-5)


@over_fitted
@pytest.mark.parametrize("shape", SHAPES)
def test_masked_entries_are_left_out_of_the_fit(name: str, options: dict[str, Any], shape: tuple[int, ...]) -> None:
    values, targets = rows(3, 40, shape)
    mask = torch.rand(targets.shape, generator=torch.Generator().manual_seed(0)) < 0.7
    spoiled, unknown = values.clone(), targets.clone()
    spoiled[:, ~mask], unknown[~mask] = math.nan, math.inf
    found = fitted_fusion(name, options, spoiled, unknown, mask=mask)
    other = fitted_fusion(name, options, torch.where(mask, values, 1e3), torch.where(mask, targets, -1e3), mask=mask)
    assert found.state.keys() == other.state.keys()
    assert all(torch.equal(found.state[key], other.state[key]) for key in found.state)
    if not shape:  # rows of one output that are masked are rows that are not there
        fewer = fitted_fusion(name, options, values[:, mask], targets[mask])
        for key in found.state:
            torch.testing.assert_close(found.state[key], fewer.state[key], rtol=1e-6, atol=1e-9)


@over_all
def test_masked_entries_are_left_out_of_the_disagreement(name: str, options: dict[str, Any]) -> None:
    values, _ = rows(3, 6, (4,))
    calibration = rows(3, 40, (4,), seed=2)
    strategy = fitted_fusion(name, options, *calibration)
    mask = torch.ones(6, 4, dtype=torch.bool)
    mask[0], mask[1, :3] = False, False
    found, whole = strategy.fuse(values, mask=mask), strategy.fuse(values)
    assert torch.equal(found.mean, whole.mean)
    assert found.disagreement[0] == 0
    assert torch.equal(found.disagreement[2:], whole.disagreement[2:])
    elsewhere = values.clone()
    elsewhere[:, 1, :3] *= 100
    assert torch.equal(strategy.fuse(elsewhere, mask=mask).disagreement[1], found.disagreement[1])


@over_fitted
def test_the_state_is_all_that_fusing_needs(name: str, options: dict[str, Any]) -> None:
    values, targets = rows(3, 40, (3, 2))
    fitted = fitted_fusion(name, options, values, targets)
    assert all(each.ndim > 0 for each in fitted.state.values())
    kept = {key: each.numpy().copy() for key, each in fitted.state.items()}
    restored = REAL_FUSIONS[name](**options).with_state(**kept)
    assert restored == fitted == REAL_FUSIONS[name](**options)
    assert fitted.fitted() == restored.fitted() != {}
    for part, each in vars(fitted.fuse(values)).items():
        assert torch.equal(getattr(restored.fuse(values), part), each)


# -- references -------------------------------------------------------------------------------------------------------


def simplex(count: int, steps: int) -> list[tuple[float, ...]]:
    """All weights in steps that sum to one."""
    grid = itertools.product(range(steps + 1), repeat=count)
    return [tuple(number / steps for number in each) for each in grid if sum(each) == steps]


def test_inverse_variance_is_the_unbiased_mean_of_least_variance() -> None:
    spreads, biases = torch.tensor([0.5, 1.0, 2.0]), torch.tensor([1.0, -2.0, 0.3])
    draws = torch.Generator().manual_seed(0)

    def simulated(count: int) -> tuple[Tensor, Tensor]:
        targets = torch.randn(count, generator=draws) * 5
        noise = torch.randn(3, count, generator=draws) * spreads[:, None]
        return targets + noise + biases[:, None], targets

    strategy = REAL_FUSIONS["inverse_variance"]().fit(*simulated(20_000))
    values, targets = simulated(20_000)
    found = strategy.fuse(values)
    error = found.mean - targets
    assert error.mean().abs() < 0.02
    least = 1 / (1 / spreads**2).sum().item()  # 0.190
    assert error.var().item() == pytest.approx(least, rel=0.03)
    assert found.variance[0].item() == pytest.approx(least, rel=0.03)
    unbiased = values - biases[:, None] - targets
    others = {each: (torch.tensor(each) @ unbiased).var().item() for each in simplex(3, 20)}
    assert error.var().item() < 1.002 * min(others.values())
    np.testing.assert_allclose(found.weights[0], (1 / spreads**2) * least, atol=0.02)


def test_inverse_variance_by_output_trusts_another_teacher_in_each() -> None:
    draws = torch.Generator().manual_seed(0)
    targets = torch.randn(5000, 2, generator=draws)
    spreads = torch.tensor([[0.1, 1.0], [1.0, 0.1]]).unsqueeze(1)
    values = targets + torch.randn(2, 5000, 2, generator=draws) * spreads
    found = REAL_FUSIONS["inverse_variance"]().fit(values, targets).fuse(values)
    assert (found.mean - targets).std() < 0.11
    np.testing.assert_allclose(found.weights[0], [0.5, 0.5], atol=0.01)  # the mean over outputs
    alike = REAL_FUSIONS["inverse_variance"](shared=True).fit(values, targets).fuse(values)
    assert (alike.mean - targets).std() > 0.4


def test_a_teacher_without_a_mistake_has_all_the_weight() -> None:
    values, targets = rows(3, 20)
    values[1] = targets
    found = REAL_FUSIONS["inverse_variance"](debias=False).fit(values, targets).fuse(values)
    assert torch.equal(found.mean, targets)
    assert torch.equal(found.weights, torch.tensor([0.0, 1.0, 0.0]).expand(20, 3))
    assert (found.variance == 0).all()
    stacked = REAL_FUSIONS["stacking"]().fit(values, targets).fuse(values)
    torch.testing.assert_close(stacked.mean, targets)
    torch.testing.assert_close(stacked.weights[0], torch.tensor([0.0, 1.0, 0.0]), atol=1e-5, rtol=0)


@pytest.mark.parametrize("intercept", [False, True])
def test_stacking_is_the_best_on_a_grid(intercept: bool) -> None:
    draws = torch.Generator().manual_seed(4)
    parts = torch.randn(2, 60, generator=draws, dtype=torch.float64)
    targets = parts.sum(0) + 2
    values = torch.stack([0.8 * parts[0] + 1, 1.5 * parts[1] + 1, -targets]) + 0.3 * torch.randn(3, 60, generator=draws)
    strategy = REAL_FUSIONS["stacking"](intercept=intercept).fit(values, targets)
    found = strategy.fuse(values)
    grid = torch.cartesian_prod(*[torch.arange(0, 2.01, 0.05, dtype=torch.float64)] * 3)
    residuals = targets - grid @ values
    losses = (residuals - residuals.mean(1, keepdim=True) * intercept).square().sum(1)
    own = (targets - found.mean).square().sum().item()
    assert own < losses.min() + 1e-4
    np.testing.assert_allclose(strategy.state["factors"].flatten(), grid[losses.argmin()], atol=0.05)
    assert strategy.state["factors"][2] == 0  # the teacher that says the opposite
    assert found.variance[0].item() == pytest.approx(own / (60 - 3 - intercept), rel=1e-5)


def test_stacking_by_output_is_a_fit_of_each() -> None:
    values, targets = rows(3, 50, (2, 2))
    whole = REAL_FUSIONS["stacking"](shared=False, intercept=True).fit(values, targets).fuse(values)
    for place in itertools.product(range(2), repeat=2):
        own = REAL_FUSIONS["stacking"](intercept=True).fit(values[:, :, *place], targets[:, *place])
        alone = own.fuse(values[:, :, *place])
        torch.testing.assert_close(whole.mean[:, *place], alone.mean)
        torch.testing.assert_close(whole.variance[:, *place], alone.variance)


@pytest.mark.parametrize("offset", [0.0, 1e4])
def test_least_squares_without_negative_weights_meets_its_conditions(offset: float) -> None:
    """Karush-Kuhn-Tucker: no gradient where a weight is above 0, none that would lower the loss where it is 0."""
    draws = np.random.default_rng(0)
    inputs = draws.normal(size=(300, 6)) + offset
    wanted = inputs @ np.array([0.6, 0, 0.3, 0, 0.1, 0]) - 0.5 * (inputs[:, 1] - offset) + draws.normal(size=300)
    found = non_negative_least_squares(inputs, wanted)
    gradient = inputs.T @ (inputs @ found - wanted) / (np.linalg.norm(inputs) * np.linalg.norm(wanted))
    assert (found >= 0).all()
    assert found[1] == 0
    assert np.abs(gradient[found > 0]).max() < 1e-7
    assert gradient[found == 0].min() > -1e-7


@pytest.mark.parametrize("tau", [None, 0.5])
def test_moments_are_those_of_draws_from_the_mixture(tau: float | None) -> None:
    values, targets = rows(3, 200, (2,))
    strategy = REAL_FUSIONS["moments"](tau=tau).fit(values, targets)
    found = strategy.fuse(values[:, :4])
    own = (values - targets).double().square().mean(dim=1)  # mean square error of each teacher and output: [3, 2]
    torch.testing.assert_close(strategy.state["variance"], own)
    draws = np.random.default_rng(0)
    for row, output in itertools.product(range(4), range(2)):
        teacher = draws.choice(3, size=400_000, p=found.weights[row].double() / found.weights[row].double().sum())
        drawn = draws.normal(values[:, row, output].numpy()[teacher], own[:, output].sqrt().numpy()[teacher])
        assert found.mean[row, output].item() == pytest.approx(drawn.mean(), abs=0.02)
        assert found.variance[row, output].item() == pytest.approx(drawn.var(), rel=0.02)


@pytest.mark.parametrize("tau", [0.1, 2.0])
def test_weights_follow_the_error_over_the_variance(tau: float) -> None:
    values, targets = rows(3, 50, (2,))
    total = sum(((targets[:, s] - targets[:, s].mean()) ** 2).sum().item() for s in range(2))
    errors = [((values[k] - targets) ** 2).sum().item() / total for k in range(3)]
    scores = np.exp(-np.array(errors) / tau)
    found = fuse("weighted", {"tau": tau}, values, targets)
    np.testing.assert_allclose(found.weights[0], scores / scores.sum(), rtol=1e-5)


@pytest.mark.parametrize("count", [1, 2, 3, 4, 5])
def test_median_is_the_median_of_its_weights_too(count: int) -> None:
    values, _ = rows(count, 30, ())
    values[-1, ::2] = values[0, ::2]  # ties
    found = REAL_FUSIONS["median"]().fuse(values)
    np.testing.assert_allclose(found.mean, np.median(values.numpy(), axis=0), rtol=1e-6)
    torch.testing.assert_close((found.weights * values.T).sum(1), found.mean)
    wild = torch.cat([values, torch.full((1, 30), 1e9), torch.full((1, 30), -1e9)])
    torch.testing.assert_close(REAL_FUSIONS["median"]().fuse(wild).mean, found.mean)


# -- what is refused --------------------------------------------------------------------------------------------------


@over_all
@pytest.mark.parametrize("bad", [math.nan, -math.inf])
def test_a_value_that_is_not_finite_is_named(name: str, options: dict[str, Any], bad: float) -> None:
    values, targets = rows(3, 20, (2, 2))
    strategy = fitted_fusion(name, options, values, targets)
    values[1, 7, 1, 0] = bad
    message = rf"real fusion '{name}': teacher 1, row 7 has a value that is not finite; expected finite numbers"
    with pytest.raises(StillroomError, match=message):
        strategy.fuse(values)
    if (name, options) in FITTED:
        with pytest.raises(StillroomError, match=message):
            strategy.fit(values, targets)


@over_fitted
def test_what_cannot_be_fitted_is_refused(name: str, options: dict[str, Any]) -> None:
    values, targets = rows(3, 20)
    strategy = REAL_FUSIONS[name](**options)
    nothing = torch.zeros_like(targets, dtype=torch.bool)
    with pytest.raises(StillroomError, match="none of 80 calibration entries is known; expected some"):
        strategy.fit(values, targets, nothing)
    with pytest.raises(StillroomError, match=r"values \[3, 20, 4\], targets \[20\]; expected \[T, N, ...\]"):
        strategy.fit(values, targets[:, 0])
    with pytest.raises(StillroomError, match=r"a mask \[20, 4\] of torch.int64; expected \[20, 4\] of torch.bool"):
        strategy.fit(values, targets, nothing.long())
    unknown = targets.clone()
    unknown[4, 1] = math.nan
    with pytest.raises(StillroomError, match="the target of row 4 is not finite; expected a number; leave it out"):
        strategy.fit(values, unknown)
    with pytest.raises(StillroomError, match=rf"real fusion '{name}': it has no \w+ yet; expected a fitted strategy"):
        strategy.fuse(values)
    fitted = strategy.fit(values, targets)
    with pytest.raises(StillroomError, match="values of 2 teachers; expected the 3 it was fitted on"):
        fitted.fuse(values[:2])
    with pytest.raises(StillroomError, match=r"a mask \[20\] of torch.bool; expected \[20, 4\]"):
        fitted.fuse(values, mask=nothing[:, 0])


@pytest.mark.parametrize("name", ["inverse_variance", "moments", "stacking"])
def test_other_outputs_than_it_was_fitted_on_are_refused(name: str) -> None:
    values, targets = rows(2, 20, (3, 2))
    fitted = fitted_fusion(name, {"shared": False}, values, targets)
    with pytest.raises(StillroomError, match=r"rows of \[2, 3\] outputs; expected the \[3, 2\] it was fitted on"):
        fitted.fuse(values.mT)
    shared = fitted_fusion(name, {"shared": True}, values, targets)
    assert shared.fuse(values.mT).mean.shape == (20, 2, 3)


@pytest.mark.parametrize(
    ("name", "options", "least"),
    [
        ("inverse_variance", {}, 2),
        ("inverse_variance", {"debias": False}, 1),
        ("moments", {}, 1),
        ("stacking", {"shared": False}, 4),
        ("stacking", {"shared": False, "intercept": True}, 5),
    ],
)
def test_too_few_rows_are_refused(name: str, options: dict[str, Any], least: int) -> None:
    values, targets = rows(3, 20, (3, 2))
    mask = torch.ones_like(targets, dtype=torch.bool)
    mask[least:, 1, 0] = False
    fitted_fusion(name, options, values, targets, mask=mask)
    mask[least - 1, 1, 0] = False
    message = rf"{least - 1} known entries of output \[1, 0\]; expected at least {least}.*or shared = true"
    with pytest.raises(StillroomError, match=message):
        fitted_fusion(name, options, values, targets, mask=mask)
    fitted_fusion(name, {**options, "shared": True}, values, targets, mask=mask)
    few = "known entries; expected at least"
    if least > 1:
        with pytest.raises(StillroomError, match=few):
            fitted_fusion(name, options, values[:, : least - 1, 0, 0], targets[: least - 1, 0, 0])


def test_teachers_of_no_use_and_targets_that_do_not_vary_are_refused() -> None:
    values, targets = rows(3, 20)
    with pytest.raises(StillroomError, match=r"every teacher's weight is 0; .*use real fusion 'mean'"):
        REAL_FUSIONS["stacking"]().fit(-values, targets)
    for name in ("weighted", "moments"):
        with pytest.raises(StillroomError, match="the calibration targets do not vary; expected some that do"):
            REAL_FUSIONS[name](tau=0.1).fit(values, torch.full_like(targets, 0.1))


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("weighted", {"tau": 0}, "tau is 0; expected a finite number above 0"),
        ("moments", {"tau": -1.0}, "tau is -1.0; expected a finite number above 0"),
        ("stacking", {"intercept": "yes"}, "intercept is 'yes'; expected true or false"),
        ("inverse_variance", {"debias": 1}, "debias is 1; expected true or false"),
    ],
)
def test_a_wrong_option_is_refused_at_once(name: str, options: dict[str, Any], message: str) -> None:
    with pytest.raises(StillroomError, match=rf"real fusion '{name}': {message}"):
        REAL_FUSIONS[name](**options)
