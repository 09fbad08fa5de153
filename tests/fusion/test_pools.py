"""Pools against the slow search over all weights, and against what marks a minimum."""

import itertools
import math
from typing import Any

import pytest
import torch
from test_fusions import rows_of, teachers
from torch import Tensor
from torch.nn import functional

from pipeline.errors import StillroomError
from pipeline.fusion import FUSIONS, LinearPool, LogPool, Mean
from pipeline.fusion.pools import CLOSE_ENOUGH, PULL, stack_in_logs, stack_linearly


def noisy_teachers(rows: int, spreads: list[float], classes: int = 4, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Teachers who see the label through noise of their own, exactly calibrated: logits [T, N, C] and labels [N]."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(0, classes, (rows,), generator=generator)
    seen = functional.one_hot(labels, classes) + torch.tensor(spreads)[:, None, None] * torch.randn(
        len(spreads), rows, classes, generator=generator
    )
    return seen / torch.tensor(spreads)[:, None, None] ** 2, labels  # the posterior's logits: Bayes with a flat prior


def log_chances(logits: Tensor, labels: Tensor) -> Tensor:
    """log p_k(y_i): `[T, N, C], [N] -> [T, N]`."""
    return torch.stack([-functional.cross_entropy(z.double(), labels, reduction="none") for z in logits])


def mixture_nll(log_probs: Tensor, weights: Tensor) -> float:
    return -(weights[:, None] * log_probs.exp()).sum(0).log().mean().item()


def log_pool_loss(logits: Tensor, labels: Tensor, exponents: Tensor) -> Tensor:
    """The function that the log pool's exponents make the lowest, as it is written."""
    pooled = sum(b * z.double().log_softmax(-1) for b, z in zip(exponents, logits, strict=True))
    pull = PULL / len(labels) / 2 * ((exponents - 1 / len(logits)) ** 2).sum()
    return functional.cross_entropy(torch.as_tensor(pooled), labels) + pull


# -- linear -----------------------------------------------------------------------------------------------------------


def test_the_linear_pool_is_the_best_of_a_grid_over_the_simplex() -> None:
    logits, labels = noisy_teachers(120, [0.7, 0.8, 1.5])
    log_probs, steps = log_chances(logits, labels), 60
    grid = [(i, j, steps - i - j) for i, j in itertools.product(range(steps + 1), repeat=2) if i + j <= steps]
    weights = torch.tensor(grid, dtype=torch.float64) / steps
    losses = -(weights @ log_probs.exp()).log().mean(1)
    found = stack_linearly(log_probs, iterations=2000)
    assert mixture_nll(log_probs, found) <= losses.min() + CLOSE_ENOUGH
    assert (found - weights[losses.argmin()]).abs().max() < 2 / steps
    assert 0.1 < found[0] < 0.9  # not a corner, so the grid tells something


@pytest.mark.parametrize("seed", range(5))
def test_the_linear_pool_meets_the_conditions_of_a_maximum(seed: int) -> None:
    """Gains mean_i p_k / mixture are 1 where a teacher has weight and at most 1 where it has none (Kuhn & Tucker)."""
    logits, labels = noisy_teachers(200, [0.8, 0.9, 1.2, 3.0], seed=seed)
    log_probs = log_chances(logits, labels)
    weights = stack_linearly(log_probs, iterations=100_000)
    gains = (log_probs.exp() / (weights @ log_probs.exp())).mean(1)
    assert weights.sum().item() == pytest.approx(1)
    assert gains.max() <= 1 + 2 * CLOSE_ENOUGH
    assert (weights * (1 - gains).abs()).sum() < 1e-4


@pytest.mark.parametrize("steps", [1, 3, 10, 40])
def test_few_steps_are_as_close_as_promised(steps: int) -> None:
    for seed in range(5):
        log_probs = log_chances(*noisy_teachers(80, [0.8, 1.0, 1.5], seed=seed))
        best = mixture_nll(log_probs, stack_linearly(log_probs, iterations=100_000))
        assert mixture_nll(log_probs, stack_linearly(log_probs, iterations=steps)) <= best + math.log(3) / steps


def test_shrinking_moves_the_linear_pool_to_the_mean() -> None:
    logits, labels = noisy_teachers(150, [0.7, 0.9, 2.0])
    plain = torch.tensor(LinearPool(shrink=0).fit(rows_of(logits, labels)).fitted()["weights"])
    shrunk = LinearPool(shrink=0.25).fit(rows_of(logits, labels)).fitted()["weights"]
    assert shrunk == pytest.approx((0.75 * plain + 0.25 / 3).tolist())
    mean = LinearPool(shrink=1).fit(rows_of(logits, labels)).fuse(rows_of(logits), temperature=2.0)
    torch.testing.assert_close(mean.log_probs, Mean().fuse(rows_of(logits), temperature=2.0).log_probs)


def test_copies_share_a_teachers_weight() -> None:
    logits, labels = noisy_teachers(150, [0.8, 0.9])
    alone = stack_linearly(log_chances(logits, labels), iterations=100_000)
    copied = stack_linearly(log_chances(logits[[0, 0, 1]], labels), iterations=100_000)
    assert copied[0].item() == pytest.approx(copied[1].item())
    assert (copied[0] + copied[1]).item() == pytest.approx(alone[0].item(), abs=2e-3)


def test_rows_that_a_teacher_rules_out_weigh_but_do_not_break_the_fit() -> None:
    log_probs = torch.tensor([[0.0, -1e30, -1e30, -1e30], [-1e30, 0.0, -1e30, 0.0]], dtype=torch.float64)
    # the third row is impossible for all: both fail it alike
    assert stack_linearly(log_probs, iterations=1000).tolist() == pytest.approx([1 / 3, 2 / 3], abs=0.01)


# -- log --------------------------------------------------------------------------------------------------------------


def test_the_log_pool_is_the_best_of_a_grid() -> None:
    logits, labels = noisy_teachers(100, [0.8, 1.0])
    found = stack_in_logs(logits.double(), labels)
    steps = torch.linspace(0, 2, 81, dtype=torch.float64)
    losses = {
        (a, b): log_pool_loss(logits, labels, torch.stack([steps[a], steps[b]])).item()
        for a, b in itertools.product(range(0, 81, 2), repeat=2)
    }
    best = min(losses, key=lambda place: losses[place])
    assert log_pool_loss(logits, labels, found).item() <= losses[best]
    assert (found - steps[list(best)]).abs().max() < 0.06
    assert (found > 0.1).all()


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("scale", [0.1, 1.0, 30.0])
def test_the_log_pool_meets_the_conditions_of_a_minimum(seed: int, scale: float) -> None:
    """The slope is 0 where an exponent is above 0 and not below 0 where it is 0, for labels of any kind."""
    logits = scale * teachers(4, 60, 5, seed=seed).double()
    drawn = torch.Generator().manual_seed(seed)
    labels = [logits[0].argmax(-1), torch.randint(0, 5, (60,), generator=drawn), logits.mean(0).argmax(-1)][seed % 3]
    exponents = stack_in_logs(logits, labels).requires_grad_()
    (slope,) = torch.autograd.grad(log_pool_loss(logits, labels, exponents), exponents)
    assert (exponents >= 0).all()
    assert torch.where(exponents > 0, slope.abs(), -slope).max() < 1e-6


@pytest.mark.parametrize("temperature", [1.0, 4.0])
def test_the_log_pool_is_the_slow_formula(temperature: float) -> None:
    logits, labels = noisy_teachers(80, [0.8, 1.0, 2.0])
    fitted = LogPool().fit(rows_of(logits, labels))
    exponents = fitted.state["exponents"]
    found = fitted.fuse(rows_of(logits), temperature=temperature)
    pooled = torch.einsum("k,knc->nc", exponents, logits.double().log_softmax(-1))
    torch.testing.assert_close(found.log_probs.double(), (pooled / temperature).log_softmax(-1), atol=1e-5, rtol=0)
    torch.testing.assert_close(found.weights[0].double(), exponents / exponents.sum(), atol=1e-6, rtol=0)


def test_one_calibrated_teacher_comes_out_nearly_as_itself() -> None:
    logits, labels = noisy_teachers(4000, [0.8])
    fitted = LogPool().fit(rows_of(logits, labels))
    assert fitted.fitted()["exponents"] == pytest.approx([1], abs=0.06)
    copies = LogPool().fit(rows_of(logits.repeat(3, 1, 1), labels))
    assert copies.fitted()["exponents"] == pytest.approx([fitted.fitted()["exponents"][0] / 3] * 3, abs=1e-3)


def test_calibrated_teachers_with_noise_of_their_own_multiply() -> None:
    """Bayes: with a flat prior and independent noise the product of the posteriors is the posterior, all b = 1."""
    logits, labels = noisy_teachers(6000, [0.8, 1.0, 1.5])
    assert LogPool().fit(rows_of(logits, labels)).fitted()["exponents"] == pytest.approx([1, 1, 1], abs=0.1)


def test_exponents_stay_finite_where_no_row_is_mistaken() -> None:
    labels = torch.arange(50) % 3
    sure = 5.0 * functional.one_hot(labels, 3).expand(2, 50, 3)
    fitted = LogPool().fit(rows_of(sure, labels))
    assert all(0.5 < b < 100 for b in fitted.fitted()["exponents"])


def test_teachers_who_know_nothing_are_refused() -> None:
    labels = torch.arange(60) % 3
    against = 3.0 * functional.one_hot((labels + 1) % 3, 3).expand(2, 60, 3)
    with pytest.raises(
        StillroomError, match=r"fusion 'log_pool': the exponent of every teacher is 0 on 60 rows, so none"
    ):
        LogPool().fit(rows_of(against, labels))


# -- both -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["linear_pool", "log_pool"])
def test_pools_refuse_to_guess(name: str) -> None:
    logits, labels = noisy_teachers(30, [0.8, 1.0, 1.5])
    with pytest.raises(
        StillroomError, match=f"fusion '{name}': it has no .* yet; expected a fitted strategy; call fit"
    ):
        FUSIONS[name]().fuse(rows_of(logits), temperature=1.0)
    with pytest.raises(StillroomError, match="logits of 2 teachers; expected the 3 it was fitted on; fit again"):
        FUSIONS[name]().fit(rows_of(logits, labels)).fuse(rows_of(logits[:2]), temperature=1.0)
    with pytest.raises(StillroomError, match=f"fusion '{name}': none of 30 rows has a label; expected at least one"):
        FUSIONS[name]().fit(rows_of(logits))


@pytest.mark.parametrize("name", ["linear_pool", "log_pool"])
def test_pools_are_restored_from_their_state(name: str) -> None:
    logits, labels = noisy_teachers(30, [0.8, 1.0, 1.5])
    fitted = FUSIONS[name]().fit(rows_of(logits, labels))
    again = FUSIONS[name]().with_state(**{each: values.numpy() for each, values in fitted.state.items()})
    found, expected = (each.fuse(rows_of(logits), temperature=4.0) for each in (again, fitted))
    assert torch.equal(found.log_probs, expected.log_probs)
    assert torch.equal(found.weights, expected.weights)


@pytest.mark.parametrize("name", ["linear_pool", "log_pool"])
def test_pools_predict_rows_they_have_not_seen_better_than_the_mean(name: str) -> None:
    logits, labels = noisy_teachers(3000, [0.7, 1.0, 4.0])
    fitted = FUSIONS[name]().fit(rows_of(logits[:, :1000], labels[:1000]))
    unseen = rows_of(logits[:, 1000:])
    found, mean = (each.fuse(unseen, temperature=1.0).log_probs for each in (fitted, Mean()))
    assert functional.nll_loss(found, labels[1000:]) < functional.nll_loss(mean, labels[1000:]) - 0.05


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"shrink": 1.5}, r"fusion 'linear_pool': shrink is 1.5; expected a number from 0 to 1; change shrink"),
        ({"shrink": True}, r"shrink is True; expected a number from 0 to 1"),
        ({"shrink": math.nan}, r"shrink is nan; expected a number from 0 to 1"),
        ({"iterations": 0}, r"fusion 'linear_pool': iterations is 0; expected a whole number from 1 on; change"),
        ({"iterations": 1.0}, r"iterations is 1.0; expected a whole number from 1 on"),
    ],
)
def test_wrong_options_are_named_at_once(options: dict[str, Any], message: str) -> None:
    with pytest.raises(StillroomError, match=message):
        LinearPool(**options)
