"""Laws that every loss of real numbers holds to, each against a loop, and what is refused."""

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from pipeline.errors import StillroomError
from pipeline.losses import REAL_LOSSES, RealDistillation, squared_error
from pipeline.losses.reals import REAL_OPTIONS
from pipeline.objective import RealObjective
from pipeline.views import Batch

NAN = math.nan
CHANGED: dict[str, dict[str, float]] = {  # an option other than its default
    "huber": {"delta": 0.3},
    "gaussian": {"floor": 0.5},
    "bounded": {"margin": 0.2},
}


def case(count: int = 12, seed: int = 0) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Student's values, teachers' mean and variance, and targets, [N, 3]; some targets are unknown, of two rows all."""
    draws = torch.Generator().manual_seed(seed)
    values, mean, targets = torch.randn(3, count, 3, generator=draws, dtype=torch.float64)
    variance = torch.rand(count, 3, generator=draws, dtype=torch.float64)
    targets = targets.masked_fill(torch.rand(count, 3, generator=draws) < 0.3, NAN)
    targets[0], targets[5] = torch.tensor([1.0, -1.0, 0.5], dtype=torch.float64), NAN
    return values, mean, variance, targets


def own_error(values: np.ndarray, targets: np.ndarray) -> float:
    known = [(v - t) ** 2 for v, t in zip(values, targets, strict=True) if not math.isnan(t)]
    return sum(known) / len(known) if known else 0.0


def slow_huber(v: np.ndarray, m: np.ndarray, s: np.ndarray, t: np.ndarray, *, delta: float = 1.0) -> float:
    distances = [abs(a - b) for a, b in zip(v, m, strict=True)]
    return float(np.mean([d * d if d <= delta else 2 * delta * d - delta * delta for d in distances]))


def slow_gaussian(v: np.ndarray, m: np.ndarray, s: np.ndarray, t: np.ndarray, *, floor: float = 0.01) -> float:
    return float(np.mean([(a - b) ** 2 / (2 * max(c, floor)) for a, b, c in zip(v, m, s, strict=True)]))


def slow_bounded(v: np.ndarray, m: np.ndarray, s: np.ndarray, t: np.ndarray, *, margin: float = 0.0) -> float:
    if np.isnan(t).all():
        return float(np.mean((v - m) ** 2))
    own, theirs = own_error(v, t), own_error(m, t)
    return own if own + margin > theirs else 0.0


SLOW: dict[str, Callable[..., float]] = {
    "mse": lambda v, m, s, t: float(np.mean((v - m) ** 2)),
    "huber": slow_huber,
    "gaussian": slow_gaussian,
    "bounded": slow_bounded,
}


def slow_attentive(values: np.ndarray, mean: np.ndarray, targets: np.ndarray) -> list[float]:
    errors = [math.sqrt(own_error(m, t)) for m, t in zip(mean, targets, strict=True)]
    return [
        float(np.mean((v - m) ** 2)) * (1.0 if np.isnan(t).all() else 1 - error / max(errors))
        for v, m, t, error in zip(values, mean, targets, errors, strict=True)
    ]


@pytest.mark.parametrize("kind", REAL_LOSSES)
@pytest.mark.parametrize("is_changed", [False, True])
@pytest.mark.parametrize("seed", range(3))
def test_each_loss_is_that_of_a_loop(kind: str, is_changed: bool, seed: int) -> None:
    values, mean, variance, targets = case(seed=seed)
    options = CHANGED.get(kind, {}) if is_changed else {}
    found = REAL_LOSSES[kind](values, mean, variance=variance, targets=targets, **options)
    v, m, s, t = (each.numpy() for each in (values, mean, variance, targets))
    if kind == "attentive":
        expected = slow_attentive(v, m, t)
    else:
        expected = [SLOW[kind](*row, **options) for row in zip(v, m, s, t, strict=True)]
    np.testing.assert_allclose(found.numpy(), expected, rtol=1e-10)


# -- laws over all ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", REAL_LOSSES)
@pytest.mark.parametrize("shape", [(6, 4), (1, 1), (5, 2, 3)])
def test_one_value_a_row_not_negative_with_finite_gradients(kind: str, shape: tuple[int, ...]) -> None:
    draws = torch.Generator().manual_seed(1)
    values, mean, targets = (torch.randn(shape, generator=draws) for _ in range(3))
    variance = torch.rand(shape, generator=draws)
    targets[0] = NAN
    values.requires_grad_()
    found = REAL_LOSSES[kind](values, mean, variance=variance, targets=targets)
    assert found.shape == shape[:-1]
    assert (found >= 0).all()
    (gradient,) = torch.autograd.grad(found.sum(), values)
    assert gradient.isfinite().all()
    assert gradient[0].abs().min() > 0, "a row without targets learns from the teachers"


@pytest.mark.parametrize("kind", REAL_LOSSES)
def test_a_student_that_says_what_is_true_as_its_teachers_do_has_nothing_to_learn(kind: str) -> None:
    _, mean, variance, _ = case()
    values = mean.clone().requires_grad_()
    found = REAL_LOSSES[kind](values, mean, variance=variance, targets=mean)
    assert (found == 0).all()
    (gradient,) = torch.autograd.grad(found.sum(), values)
    assert (gradient == 0).all()


@pytest.mark.parametrize("kind", REAL_LOSSES)
def test_unknown_targets_may_be_anywhere(kind: str) -> None:
    values, mean, variance, targets = case()
    gone = torch.full_like(targets, NAN)
    found = REAL_LOSSES[kind](values, mean, variance=variance, targets=gone)
    assert found.isfinite().all()
    assert (found > 0).all()


@pytest.mark.parametrize("kind", REAL_LOSSES)
def test_outputs_in_another_order_give_the_same(kind: str) -> None:
    values, mean, variance, targets = case()
    order = torch.tensor([2, 0, 1])
    moved = [each[:, order] for each in (values, mean, variance, targets)]
    found = REAL_LOSSES[kind](values, mean, variance=variance, targets=targets)
    torch.testing.assert_close(REAL_LOSSES[kind](moved[0], moved[1], variance=moved[2], targets=moved[3]), found)


@pytest.mark.parametrize("kind", REAL_LOSSES)
def test_every_option_is_checked_and_has_an_effect(kind: str) -> None:
    assert CHANGED.get(kind, {}).keys() == REAL_OPTIONS.get(kind, {}).keys()
    values, mean, variance, targets = case(60)
    if kind == "bounded":
        mean = values + (mean - values) / 10  # so that a margin decides
    for name, value in CHANGED.get(kind, {}).items():
        usual = REAL_LOSSES[kind](values, mean, variance=variance, targets=targets)
        found = REAL_LOSSES[kind](values, mean, variance=variance, targets=targets, **{name: value})
        assert not torch.equal(found, usual)


# -- squared error ----------------------------------------------------------------------------------------------------


def test_the_squared_error_of_gaps_is_nothing_and_pulls_nowhere() -> None:
    targets = torch.tensor([[1.0, NAN, 3.0], [NAN, NAN, NAN]])
    values = torch.tensor([[2.0, 7.0, 3.5], [1.0, 2.0, 3.0]], requires_grad=True)
    found = squared_error(values, targets)
    assert found.tolist() == [(1 + 0.25) / 2, 0.0]
    (gradient,) = torch.autograd.grad(found.sum(), values)
    assert gradient.tolist() == [[1.0, 0.0, 0.5], [0.0, 0.0, 0.0]]


# -- with labels ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", REAL_LOSSES)
@pytest.mark.parametrize("alpha", [0, 0.3, 1])
def test_alpha_is_the_labels_share_where_there_is_one(kind: str, alpha: float) -> None:
    values, mean, variance, targets = case()
    loss, parts = RealDistillation(kind, alpha)(values, mean, variance, targets)
    soft = REAL_LOSSES[kind](values, mean, variance=variance, targets=targets)
    hard = squared_error(values, targets)
    assert parts.keys() == {"se", kind}
    assert torch.equal(parts[kind], soft)
    assert torch.equal(parts["se"], hard)
    shows = targets.isfinite().any(-1)
    torch.testing.assert_close(loss[shows], (alpha * hard + (1 - alpha) * soft)[shows])
    assert torch.equal(loss[~shows], soft[~shows])
    assert 0 < shows.sum() < len(shows)


def test_gradients_are_finite_where_nothing_is_known() -> None:
    values, mean, variance, targets = case()
    values.requires_grad_()
    loss, _ = RealDistillation("mse", 1.0)(values, mean, variance, targets)
    (gradient,) = torch.autograd.grad(loss.sum(), values)
    assert gradient.isfinite().all()
    assert (gradient[5] != 0).all()  # of which nothing is known: it learns from the teachers
    part = targets.isfinite().any(-1, keepdim=True) & targets.isnan()
    assert part.any()
    assert (gradient[part] == 0).all()


REFUSED = [
    ({"kind": "mae"}, r"loss.kind: unknown loss of real numbers 'mae'; expected"),
    ({"kind": "kl"}, r"loss.kind: unknown loss of real numbers 'kl'; expected"),
    ({"alpha": 1.5}, r"loss.alpha: found 1.5; expected a number from 0 to 1"),
    ({"alpha": "annealed"}, r"loss.alpha: found 'annealed'; expected a number from 0 to 1, for rules are of classes"),
    ({"alpha": True}, r"loss.alpha: found True; expected a number from 0 to 1"),
    ({"alpha": NAN}, r"loss.alpha: found nan; expected a number from 0 to 1"),
    ({"kind": "huber", "options": {"delta": 0}}, r"loss: delta is 0; expected a finite number above 0; change delta"),
    ({"kind": "gaussian", "options": {"floor": 0.0}}, r"loss: floor is 0.0; expected a finite number above 0"),
    ({"kind": "bounded", "options": {"margin": -1}}, r"loss: margin is -1; expected a finite number from 0"),
    ({"kind": "huber", "options": {"dleta": 1}}, r"loss: unknown option 'dleta'; expected one of 1; .*'delta'"),
    ({"kind": "mse", "options": {"delta": 1.0}}, r"loss: unknown option 'delta'"),
]


@pytest.mark.parametrize(("said", "message"), REFUSED)
def test_what_is_refused(said: dict[str, Any], message: str) -> None:
    with pytest.raises(StillroomError, match=message):
        RealDistillation(**said)


# -- on a batch -------------------------------------------------------------------------------------------------------


def batch_of(mean: Tensor, variance: Tensor, targets: Tensor) -> Batch:
    count = len(mean)
    return Batch(
        torch.zeros(count, 1),
        torch.zeros(count, dtype=torch.long),
        None,
        None,
        np.arange(count),
        0,
        targets=targets,
        target_mean=mean,
        target_variance=variance,
    )


@pytest.mark.parametrize("kind", [kind for kind in REAL_LOSSES if kind != "attentive"])
def test_members_each_learn_every_rows_target(kind: str) -> None:
    values, mean, variance, targets = case()
    members = torch.stack([values, values + 0.5], 1)
    objective, batch = RealObjective(RealDistillation(kind)), batch_of(mean, variance, targets)
    loss, parts = objective(members, batch)
    each = [objective(members[:, m], batch) for m in range(2)]
    torch.testing.assert_close(loss, (each[0][0] + each[1][0]) / 2)
    torch.testing.assert_close(parts["se"], (each[0][1]["se"] + each[1][1]["se"]) / 2)


def test_a_batch_without_targets_of_numbers_is_a_mistake() -> None:
    _, mean, variance, targets = case()
    batch = batch_of(mean, variance, targets)
    batch = Batch(batch.inputs, batch.labels, None, None, batch.positions, 0, targets=targets)
    with pytest.raises(ValueError, match="the batch has no target_mean, target_variance or targets; stream it"):
        RealObjective(RealDistillation())(mean, batch)
