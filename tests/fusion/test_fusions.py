"""Laws over the whole of FUSIONS with their options, and what each family alone promises."""

import math
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from pipeline import metrics
from pipeline.errors import StillroomError
from pipeline.fusion import FUSIONS, FusedTargets, Fusion, Mean, Outputs, Weighted
from pipeline.fusion.distributions import disagreement, kl, label_nll, mixture, soften, sum_classes
from pipeline.fusion.mean import MEANS
from pipeline.losses import kl_divergence
from pipeline.views import RowKeys

OPTIONS: dict[str, list[dict[str, Any]]] = {
    "mean": [{"of": "probabilities"}, {"of": "logits"}, {"of": "geometric"}],
    "weighted": [{"tau": 0.1}, {"tau": 1.0}, {"by": "accuracy"}, {"by": "class"}],
    "vote": [
        {"kind": "soft"},
        {"kind": "hard"},
        {"kind": "soft", "smoothing": 1},
        {"kind": "log_odds"},
        {"kind": "dawid_skene"},
    ],
    "entropy": [{}, {"tau": 0.5}],
    "confidence": [{}, {"sharp": True}],
    "network": [{"epochs": 20}, {"hidden": 3, "epochs": 60, "patience": 5}],
    "meta": [{"epochs": 20}, {"by": "logits", "hidden": 3, "epochs": 10}],
    "gated": [{}, {"by": "confidence", "tau": 0.1}],
    "stacking": [{}, {"estimator": "sklearn.naive_bayes:GaussianNB"}],
    "present": [{}, {"weights": "mean"}, {"weights": "network", "options": {"epochs": 20}}],
}
VARIANTS = [(name, options) for name in FUSIONS for options in OPTIONS.get(name, [{}])]  # a new entry: its defaults
# not stacking: an estimator's answer is its own, whatever the teachers it learned from have in common
MIXTURES = {"mean", "weighted", "entropy", "confidence", "linear_pool", "network", "meta", "gated", "present"}
AVERAGES = [(name, options) for name, options in VARIANTS if name in MIXTURES | {"random_teacher"}]
POOLS = [(name, options) for name, options in AVERAGES if name in MIXTURES and options.get("of") in (None, MEANS[0])]
DRAWN_BY_PLACE = {"random_teacher"}  # the lot falls on a place in the list, whoever stands there

over_all = pytest.mark.parametrize(("name", "options"), VARIANTS)
over_averages = pytest.mark.parametrize(("name", "options"), AVERAGES)
over_unordered = pytest.mark.parametrize(
    ("name", "options"), [(name, options) for name, options in VARIANTS if name not in DRAWN_BY_PLACE]
)


def teachers(*shape: int, seed: int = 1) -> Tensor:
    """Random logits `[T, B, ..., C]`; later teachers are sharper."""
    logits = torch.randn(*shape, generator=torch.Generator().manual_seed(seed))
    return logits * torch.linspace(1, 4, shape[0]).reshape(-1, *[1] * (len(shape) - 1))


def rows_of(logits: Tensor, labels: Tensor | None = None) -> Outputs:
    """The teachers' outputs as a fusion gets them."""
    none = torch.full(logits.shape[1:-1], -1)
    return Outputs(logits, none if labels is None else labels, keys=RowKeys(0, 0, np.arange(logits.shape[1])))


def fitted_fusion(name: str, options: dict[str, Any], logits: Tensor) -> Fusion:
    """The strategy fitted on labels that the first teachers know best; some rows have none."""
    labels = logits[0].argmax(-1)
    labels.view(-1)[::5] = -1
    return FUSIONS[name](**options).fit(rows_of(logits, labels))


def fuse(name: str, options: dict[str, Any], logits: Tensor, temperature: float = 1.0) -> FusedTargets:
    return fitted_fusion(name, options, logits).fuse(rows_of(logits), temperature=temperature)


@over_all
@pytest.mark.parametrize("temperature", [1.0, 4.0])
@pytest.mark.parametrize("shape", [(3, 20, 10), (3, 20, 2), (1, 20, 10), (4, 5, 6, 3), (2, 20, 1)])
def test_a_distribution_comes_out(
    name: str, options: dict[str, Any], temperature: float, shape: tuple[int, ...]
) -> None:
    found = fuse(name, options, teachers(*shape), temperature)
    rows = shape[1:-1]
    assert found.log_probs.shape == shape[1:]
    assert found.weights.shape == (*rows, shape[0])
    assert found.disagreement.shape == rows
    assert {found.log_probs.dtype, found.weights.dtype, found.disagreement.dtype} == {torch.float32}
    assert found.log_probs.isfinite().all()
    torch.testing.assert_close(found.log_probs.exp().sum(-1), torch.ones(rows), atol=1e-5, rtol=0)
    torch.testing.assert_close(found.weights.sum(-1), torch.ones(rows), atol=1e-5, rtol=0)
    assert (found.disagreement >= 0).all()
    assert (found.disagreement <= math.log(shape[0]) + 1e-5).all()


@over_unordered
@pytest.mark.parametrize("temperature", [1.0, 4.0])
def test_teacher_order_does_not_matter(name: str, options: dict[str, Any], temperature: float) -> None:
    logits, order = teachers(4, 30, 5), torch.tensor([2, 0, 3, 1])
    strategy = FUSIONS[name](**options)
    labels = logits[0].argmax(-1)
    found = strategy.fit(rows_of(logits, labels)).fuse(rows_of(logits), temperature=temperature)
    moved = strategy.fit(rows_of(logits[order], labels)).fuse(rows_of(logits[order]), temperature=temperature)
    torch.testing.assert_close(moved.log_probs, found.log_probs, atol=1e-5, rtol=0)
    torch.testing.assert_close(moved.weights, found.weights[..., order], atol=1e-6, rtol=0)
    torch.testing.assert_close(moved.disagreement, found.disagreement, atol=1e-5, rtol=0)


@over_all
@pytest.mark.parametrize("shape", [(5, 67, 2), (5, 67, 10), (5, 40, 3, 33), (3, 4, 40_000)])
def test_any_block_size_gives_the_same_bits(name: str, options: dict[str, Any], shape: tuple[int, ...]) -> None:
    logits = teachers(*shape)
    strategy = fitted_fusion(name, options, logits)
    whole_rows = rows_of(logits)
    whole = strategy.fuse(whole_rows, temperature=4.0)
    for size in (1, 2, 3, 8, 17):
        blocks = [strategy.fuse(whole_rows[i : i + size], temperature=4.0) for i in range(0, len(whole_rows), size)]
        assert torch.equal(torch.cat([block.log_probs for block in blocks]), whole.log_probs)
        assert torch.equal(torch.cat([block.weights for block in blocks]), whole.weights)
        assert torch.equal(torch.cat([block.disagreement for block in blocks]), whole.disagreement)


@over_all
@pytest.mark.parametrize("temperature", [0.5, 1.0, 4.0])
def test_extreme_logits_stay_finite(name: str, options: dict[str, Any], temperature: float) -> None:
    lowest, highest = torch.finfo(torch.float32).min, torch.finfo(torch.float32).max
    rows = [[0.0, lowest, 300.0, -300.0], [highest, lowest, 0.0, 0.0], [-1e30, 0.0, lowest, lowest]]
    logits = torch.tensor([rows, [row[::-1] for row in rows]])
    found = (
        FUSIONS[name](**options)
        .fit(rows_of(logits, torch.tensor([2, 0, 1])))
        .fuse(rows_of(logits), temperature=temperature)
    )
    assert found.log_probs.isfinite().all()
    assert found.disagreement.isfinite().all()


@over_all
def test_half_precision_logits_are_fused_in_float32(name: str, options: dict[str, Any]) -> None:
    logits = teachers(3, 20, 10).half()
    strategy = fitted_fusion(name, options, logits)
    found, wide = (
        strategy.fuse(rows_of(logits), temperature=1.0),
        strategy.fuse(rows_of(logits.float()), temperature=1.0),
    )
    assert torch.equal(found.log_probs, wide.log_probs)
    assert torch.equal(found.disagreement, wide.disagreement)


@over_all
@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_a_logit_that_is_not_finite_is_named(name: str, options: dict[str, Any], bad: float) -> None:
    logits = teachers(3, 20, 2, 4)
    strategy = fitted_fusion(name, options, logits)
    logits[1, 7, 1, 2] = bad
    with pytest.raises(StillroomError, match=r"fuse: teacher 1, row 7 has a logit that is not finite; expected finite"):
        strategy.fuse(rows_of(logits), temperature=1.0)


@over_all
@pytest.mark.parametrize("temperature", [0, -1.0, math.inf])
def test_a_temperature_that_is_not_above_zero_is_refused(
    name: str, options: dict[str, Any], temperature: float
) -> None:
    with pytest.raises(StillroomError, match=r"fuse: temperature is .*; expected a finite number above 0"):
        fuse(name, options, teachers(2, 5, 3), temperature)


@over_averages
@pytest.mark.parametrize("temperature", [1.0, 4.0])
@pytest.mark.parametrize("copies", [1, 3])
def test_one_teacher_or_its_copies_give_that_teacher(
    name: str, options: dict[str, Any], temperature: float, copies: int
) -> None:
    logits = teachers(1, 20, 10)
    found = fuse(name, options, logits.repeat(copies, 1, 1), temperature)
    expected = (logits[0] / temperature).log_softmax(-1)
    torch.testing.assert_close(found.log_probs, expected, atol=2e-6, rtol=0)
    torch.testing.assert_close(found.disagreement, torch.zeros(20), atol=2e-6, rtol=0)


@pytest.mark.parametrize(("name", "options"), POOLS)
@pytest.mark.parametrize("temperature", [1.0, 4.0])
def test_learning_from_the_mixture_is_learning_from_every_teacher(
    name: str, options: dict[str, Any], temperature: float
) -> None:
    """The fusion theorem (SCIENCE 0.1): equal gradients, and the losses differ by the disagreement."""
    logits = teachers(3, 20, 10)
    fused = fuse(name, options, logits, temperature)
    student = teachers(1, 20, 10, seed=2)[0].double().requires_grad_()
    from_mixture = kl_divergence(student, fused.log_probs, temperature=temperature)
    from_teachers = torch.zeros(20)
    for k in range(3):
        log_probs = (logits[k] / temperature).log_softmax(-1)
        from_teachers = from_teachers + fused.weights[:, k] * kl_divergence(student, log_probs, temperature=temperature)
    (mixture_gradient,) = torch.autograd.grad(from_mixture.sum(), student)
    (teachers_gradient,) = torch.autograd.grad(from_teachers.sum(), student)
    torch.testing.assert_close(mixture_gradient, teachers_gradient, atol=3e-6, rtol=0)
    assert mixture_gradient.abs().mean() > 1e-3
    constant = fused.disagreement.double() * temperature**2
    torch.testing.assert_close(from_teachers - from_mixture, constant, atol=5e-5, rtol=0)


@pytest.mark.parametrize("temperature", [1.0, 4.0])
def test_reverse_kl_to_every_teacher_differs_from_that_to_their_geometric_mean_by_a_constant(
    temperature: float,
) -> None:
    logits = teachers(3, 20, 10)
    fused = Mean(of="geometric").fuse(rows_of(logits), temperature=temperature).log_probs
    constants = []
    for seed in (2, 3):
        student = teachers(1, 20, 10, seed=seed)[0].log_softmax(-1)
        each = torch.stack([kl(student, (z / temperature).log_softmax(-1)) for z in logits]).mean(0)
        constants.append(each - kl(student, fused))
    torch.testing.assert_close(constants[0], constants[1], atol=1e-5, rtol=0)
    assert constants[0].min() > 1e-3


@pytest.mark.parametrize("temperature", [1.0, 4.0])
def test_mean_is_the_slow_formula(temperature: float) -> None:
    logits = teachers(3, 20, 10)
    soft = (logits.double() / temperature).softmax(-1)
    expected = {
        "probabilities": soft.mean(0).log(),
        "geometric": soft.log().mean(0).log_softmax(-1),
        "logits": (logits.double().mean(0) / temperature).log_softmax(-1),
    }
    for of, value in expected.items():
        found = Mean(of=of).fuse(rows_of(logits), temperature=temperature).log_probs
        torch.testing.assert_close(found.double(), value, atol=5e-6, rtol=0)
    assert (expected["probabilities"] - expected["geometric"]).abs().max() > 0.1


def test_the_mixture_is_taken_at_the_temperature_not_softened_afterwards() -> None:
    logits = teachers(3, 20, 10)
    softened = (Mean().fuse(rows_of(logits), temperature=1.0).log_probs / 4).log_softmax(-1)
    assert (Mean().fuse(rows_of(logits), temperature=4.0).log_probs - softened).abs().max() > 0.01


def test_disagreement_is_the_entropy_of_the_mixture_less_the_mean_entropy() -> None:
    soft = soften(teachers(3, 20, 10))
    log_probs, weights = soft.log_probs.double(), torch.tensor([0.5, 0.3, 0.2], dtype=torch.float64)
    entropies = torch.special.entr(log_probs.exp()).sum(-1)
    mixture = (weights[:, None, None] * log_probs.exp()).sum(0)
    expected = torch.special.entr(mixture).sum(-1) - (weights[:, None] * entropies).sum(0)
    torch.testing.assert_close(disagreement(soft, weights.float().expand(20, 3)).double(), expected, atol=2e-6, rtol=0)


def test_disagreement_of_opposed_sure_teachers_is_the_entropy_of_their_weights() -> None:
    found = Mean().fuse(rows_of(torch.tensor([[[500.0, 0.0]], [[0.0, 500.0]]])), temperature=1.0)
    assert found.disagreement.item() == pytest.approx(math.log(2))


def test_a_teacher_of_no_weight_changes_nothing() -> None:
    soft = soften(teachers(2, 20, 10))
    found = mixture(soft, torch.tensor([1.0, 0.0]).expand(20, 2))
    torch.testing.assert_close(found.log_probs, soft.log_probs[0], atol=1e-6, rtol=0)
    torch.testing.assert_close(found.disagreement, torch.zeros(20), atol=2e-6, rtol=0)


@pytest.mark.parametrize("width", [1, 2, 3, 7, 1000, 1001])
def test_sum_classes_is_the_sum(width: int) -> None:
    values = torch.randn(5, 4, width, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(sum_classes(values), values.double().sum(-1).float(), atol=1e-4, rtol=0)


@pytest.mark.parametrize("width", [15, 16, 17, 33, 100])
def test_sum_classes_adds_by_halving(width: int) -> None:
    def slow(row: list[float]) -> float:
        half, odd = divmod(len(row), 2)
        if not half:
            return row[0]
        added = [np.float32(row[i]) + np.float32(row[half + i]) for i in range(half)]
        return slow([added[0] + np.float32(row[-1]), *added[1:]] if odd else added)

    values = torch.randn(3, 40, width, generator=torch.Generator().manual_seed(width)).exp()
    expected = [[slow(row) for row in rows] for rows in values.tolist()]
    assert torch.equal(sum_classes(values), torch.tensor(expected))


def test_logits_whose_sum_is_beyond_float32_are_finite() -> None:
    found = soften(torch.full((2, 3, 4), 3e38)).probs
    torch.testing.assert_close(found, torch.full((2, 3, 4), 0.25))


def test_labels_cost_each_teacher_its_own_loss(monkeypatch: pytest.MonkeyPatch) -> None:
    generator = torch.Generator().manual_seed(1)
    logits, labels = torch.randn(3, 200, 7, generator=generator), torch.randint(0, 7, (200,), generator=generator)
    expected = -logits.double().log_softmax(-1)[:, torch.arange(200), labels]
    whole = label_nll(logits, labels)
    torch.testing.assert_close(whole, expected)
    monkeypatch.setattr(metrics, "PIECE", 1)
    assert torch.equal(label_nll(logits, labels), whole)


def test_labelled_cases_are_no_copy_where_all_have_a_label() -> None:
    logits, labels = torch.randn(2, 5, 3), torch.tensor([0, 1, 2, 1, 0])
    assert Outputs(logits, labels).labelled("here")[0].data_ptr() == logits.data_ptr()
    some = Outputs(logits, torch.tensor([0, -1, 2, -1, 0])).labelled("here")
    assert torch.equal(some[0], logits[:, [0, 2, 4]])
    assert some[1].tolist() == [0, 2, 0]


def test_fitting_leaves_the_strategy_as_it_was() -> None:
    strategy = Weighted()
    strategy.fit(rows_of(teachers(2, 10, 3), torch.zeros(10, dtype=torch.long)))
    assert strategy == Weighted()
    assert strategy.fitted() == {}


def test_a_wrong_option_is_named_at_once() -> None:
    with pytest.raises(StillroomError, match=r"unknown of 'probabilites'; .*did you mean 'probabilities'\?"):
        Mean(of="probabilites")


def test_squared_distance_to_every_teachers_logits_pulls_as_that_to_their_mean() -> None:
    """Up to a constant a row, which no softmax sees: both sides are centred."""
    logits = teachers(3, 20, 10)
    fused = Mean(of="logits").fuse(rows_of(logits), temperature=1.0).log_probs
    student = teachers(1, 20, 10, seed=2)[0].requires_grad_()

    def apart(target: Tensor) -> Tensor:
        own, other = (z - z.mean(-1, keepdim=True) for z in (student, target))
        return (own - other).square().sum()

    (from_teachers,) = torch.autograd.grad(sum(apart(z) for z in logits) / 3, student)
    (from_mean,) = torch.autograd.grad(apart(fused), student)
    torch.testing.assert_close(from_mean, from_teachers, atol=2e-5, rtol=0)
    assert from_mean.abs().mean() > 0.1
