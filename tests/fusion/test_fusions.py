"""Laws over the whole of FUSIONS with their options, and what each family alone promises."""

import math
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional

from pipeline.errors import StillroomError
from pipeline.fusion import FUSIONS, FusedTargets, Fusion, Mean, Outputs, Vote, Weighted
from pipeline.fusion.base import disagreement, kl, mixture, soften, sum_classes
from pipeline.losses import kl_divergence
from pipeline.views import RowKeys

OPTIONS: dict[str, list[dict[str, Any]]] = {
    "mean": [{"of": "probabilities"}, {"of": "logits"}, {"of": "geometric"}],
    "weighted": [{"tau": 0.1}, {"tau": 1.0}],
    "vote": [{"kind": "soft"}, {"kind": "hard"}, {"kind": "soft", "smoothing": 1}],
}
VARIANTS = [(name, options) for name in FUSIONS for options in OPTIONS.get(name, [{}])]  # a new entry: its defaults
AVERAGES = [(name, options) for name, options in VARIANTS if name in {"mean", "weighted"}]
POOLS = [(name, options) for name, options in AVERAGES if options.get("of", "probabilities") == "probabilities"]

over_all = pytest.mark.parametrize(("name", "options"), VARIANTS)
over_averages = pytest.mark.parametrize(("name", "options"), AVERAGES)


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


@over_all
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


def test_weights_are_the_softmax_of_minus_nll_over_tau_on_labelled_rows() -> None:
    logits = teachers(3, 50, 4)
    labels = torch.randint(-1, 4, (50,), generator=torch.Generator().manual_seed(9))
    labelled = labels >= 0
    nll = [functional.cross_entropy(z[labelled].double(), labels[labelled]).item() for z in logits]
    scores = [math.exp(-value / 0.5) for value in nll]
    fitted = Weighted(tau=0.5).fit(rows_of(logits, labels))
    assert fitted.fitted()["weights"] == pytest.approx([score / sum(scores) for score in scores])
    assert Weighted(tau=0.001).fit(rows_of(logits, labels)).fitted()["weights"][nll.index(min(nll))] > 0.99
    uniform = Weighted(tau=1e9).fit(rows_of(logits, labels)).fuse(rows_of(logits), temperature=2.0)
    torch.testing.assert_close(uniform.log_probs, Mean().fuse(rows_of(logits), temperature=2.0).log_probs)


def test_fitting_leaves_the_strategy_as_it_was() -> None:
    strategy = Weighted()
    strategy.fit(rows_of(teachers(2, 10, 3), torch.zeros(10, dtype=torch.long)))
    assert strategy == Weighted()
    assert strategy.fitted() == {}


def test_votes_are_the_formula() -> None:
    choices = torch.tensor([[0, 1], [0, 2], [3, 1]])  # [T, B]
    logits = functional.one_hot(choices, 4).float()
    found = Vote(smoothing=0.1).fuse(rows_of(logits), temperature=1.0).log_probs.exp()
    expected = (torch.tensor([[2.0, 0, 0, 1], [0, 2, 1, 0]]) + 0.1) / 3.4
    torch.testing.assert_close(found, expected)
    hard = Vote(kind="hard", smoothing=0.1).fuse(rows_of(logits), temperature=1.0).log_probs.exp()
    torch.testing.assert_close(hard, (torch.tensor([[1.0, 0, 0, 0], [0, 1, 0, 0]]) + 0.1) / 1.4)


def test_votes_soften_with_the_temperature() -> None:
    logits = teachers(3, 20, 10)
    at_one = Vote().fuse(rows_of(logits), temperature=1.0).log_probs
    torch.testing.assert_close(Vote().fuse(rows_of(logits), temperature=4.0).log_probs, (at_one / 4).log_softmax(-1))


def test_a_tied_hard_vote_goes_to_the_most_probable_of_the_tied_classes() -> None:
    # one vote each for 0 and 1; class 2 has the largest probability sum but no vote
    probs = torch.tensor([[[0.51, 0.00, 0.49]], [[0.00, 0.52, 0.48]]])
    logits = (probs + 1e-6).log()
    assert Vote(kind="hard").fuse(rows_of(logits), temperature=1.0).log_probs.argmax(-1).item() == 1
    assert Vote(kind="hard").fuse(rows_of(logits[:, :, [1, 0, 2]]), temperature=4.0).log_probs.argmax(-1).item() == 0


def test_an_unbroken_tie_goes_to_the_lowest_class() -> None:
    logits = torch.tensor([[[2.0, 0.0]], [[0.0, 2.0]]])
    for teachers_in_order in (logits, logits.flip(0)):
        assert Vote(kind="hard").fuse(rows_of(teachers_in_order), temperature=1.0).log_probs.argmax(-1).item() == 0


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("mean", {"of": "probabilites"}, r"fusion 'mean': unknown of 'probabilites'; .*did you mean 'probabilities'\?"),
        ("vote", {"kind": "sof"}, r"fusion 'vote': unknown kind 'sof'; .*did you mean 'soft'\?"),
        ("vote", {"smoothing": 0.0}, r"fusion 'vote': smoothing is 0.0; expected a finite number above 0; change"),
        ("weighted", {"tau": -1}, r"fusion 'weighted': tau is -1; expected a finite number above 0; change tau"),
        ("weighted", {"tau": "0.1"}, r"fusion 'weighted': tau is '0.1'; expected a finite number above 0"),
        ("weighted", {"tau": math.nan}, r"fusion 'weighted': tau is nan; expected"),
    ],
)
def test_wrong_options_are_named_at_once(name: str, options: dict[str, Any], message: str) -> None:
    with pytest.raises(StillroomError, match=message):
        FUSIONS[name](**options)


def test_weighted_refuses_to_guess_its_weights() -> None:
    logits, labels = teachers(3, 10, 4), torch.zeros(10, dtype=torch.long)
    with pytest.raises(StillroomError, match="it has no weights yet; expected a fitted strategy; call fit"):
        Weighted().fuse(rows_of(logits), temperature=1.0)
    with pytest.raises(StillroomError, match="logits of 2 teachers; expected the 3 it was fitted on; fit again"):
        Weighted().fit(rows_of(logits, labels)).fuse(rows_of(logits[:2]), temperature=1.0)
    with pytest.raises(StillroomError, match="none of 10 rows has a label; expected at least one"):
        Weighted().fit(rows_of(logits, labels - 1))
    logits[2, 4, 0] = math.nan
    with pytest.raises(StillroomError, match="fusion 'weighted': teacher 2, row 4 has a logit that is not finite"):
        Weighted().fit(rows_of(logits, labels))
