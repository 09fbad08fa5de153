"""Weights by calibration figures, entropy, label or lot: each against its formula, written out slowly."""

import itertools
import math
from typing import Any

import numpy as np
import pytest
import torch
from test_fusions import rows_of, teachers
from torch import Tensor
from torch.nn import functional

from pipeline.errors import StillroomError
from pipeline.fusion import FUSIONS, Confidence, Entropy, Mean, Outputs, RandomTeacher, Weighted
from pipeline.views import RowKeys

ONE_HOT = 1e4 * torch.eye(4)[torch.tensor([[0, 1, 2], [0, 1, 3], [0, 2, 3]])]  # three teachers, sure of every row


def some_labels(rows: int, classes: int, lowest: int = 0) -> Tensor:
    return torch.randint(lowest, classes, (rows,), generator=torch.Generator().manual_seed(9))


# -- weighted ---------------------------------------------------------------------------------------------------------


def test_weights_are_the_softmax_of_minus_nll_over_tau_on_labelled_rows() -> None:
    logits, labels = teachers(3, 50, 4), some_labels(50, 4, lowest=-1)
    labelled = labels >= 0
    nll = [functional.cross_entropy(z[labelled].double(), labels[labelled]).item() for z in logits]
    scores = [math.exp(-value / 0.5) for value in nll]
    fitted = Weighted(tau=0.5).fit(rows_of(logits, labels))
    assert fitted.fitted()["weights"] == pytest.approx([score / sum(scores) for score in scores])
    assert Weighted(tau=0.001).fit(rows_of(logits, labels)).fitted()["weights"][nll.index(min(nll))] > 0.99
    assert Weighted(tau=1e-300).fit(rows_of(logits, labels)).fitted()["weights"][nll.index(min(nll))] == 1
    uniform = Weighted(tau=1e9).fit(rows_of(logits, labels)).fuse(rows_of(logits), temperature=2.0)
    torch.testing.assert_close(uniform.log_probs, Mean().fuse(rows_of(logits), temperature=2.0).log_probs)


def test_weights_by_accuracy_are_shares_of_the_accuracies() -> None:
    labels = torch.tensor([0, 1, 2, 3, -1])
    choices = torch.tensor([[0, 1, 2, 3, 0], [0, 1, 0, 0, 0], [1, 2, 3, 0, 0]])
    fitted = Weighted(by="accuracy").fit(rows_of(functional.one_hot(choices, 4).float(), labels))
    assert fitted.fitted()["weights"] == pytest.approx([1 / 1.5, 0.5 / 1.5, 0])


def test_weights_by_accuracy_need_one_right_answer() -> None:
    logits = functional.one_hot(torch.zeros(2, 6, dtype=torch.long), 3).float()
    with pytest.raises(
        StillroomError, match=r"by accuracy: the weights of row 0 are \[0.0, 0.0\]; expected none below 0"
    ):
        Weighted(by="accuracy").fit(rows_of(logits, torch.ones(6, dtype=torch.long)))


def slow_class_weights(logits: Tensor, labels: list[int], tau: float) -> list[list[float]]:
    """Return w_k(c) by loops: class losses shrunk by ten rows of the overall loss."""
    scores = []
    for z in logits.double():
        losses = [-z[i].log_softmax(-1)[y].item() for i, y in enumerate(labels)]
        overall = sum(losses) / len(losses)
        own = [[loss for loss, y in zip(losses, labels, strict=True) if y == c] for c in range(logits.shape[-1])]
        scores.append([math.exp(-(sum(each) + 10 * overall) / (len(each) + 10) / tau) for each in own])
    return [
        [score / sum(column) for score, column in zip(row, zip(*scores, strict=True), strict=True)] for row in scores
    ]


@pytest.mark.parametrize("temperature", [1.0, 4.0])
def test_weights_by_class_are_the_slow_formula(temperature: float) -> None:
    logits, labels = teachers(3, 30, 4), some_labels(30, 3)  # no row is of the last class
    weights = torch.tensor(slow_class_weights(logits, labels.tolist(), 0.3), dtype=torch.float64)
    fitted = Weighted(by="class", tau=0.3).fit(rows_of(logits, labels))
    torch.testing.assert_close(torch.tensor(fitted.fitted()["class_weights"], dtype=torch.float64), weights)
    found = fitted.fuse(rows_of(logits), temperature=temperature)
    belief = logits.double().softmax(-1).mean(0)
    expected = belief @ weights.T
    torch.testing.assert_close(found.weights.double(), expected, atol=1e-6, rtol=0)
    mixed = torch.einsum("nk,knc->nc", expected, (logits.double() / temperature).softmax(-1))
    torch.testing.assert_close(found.log_probs.double(), mixed.log(), atol=5e-6, rtol=0)
    overall = Weighted(tau=0.3).fit(rows_of(logits, labels)).fitted()["weights"]
    assert weights[:, 3].tolist() == pytest.approx(overall)  # a class without rows has the weights of all


def test_weights_by_class_follow_the_teacher_that_knows_the_class() -> None:
    labels = torch.arange(400) % 4
    sharp, dull = 5.0 * functional.one_hot(labels, 4), torch.zeros(400, 4)
    first = torch.where((labels < 2).unsqueeze(-1), sharp, dull)  # knows classes 0 and 1
    logits = torch.stack([first, torch.where((labels < 2).unsqueeze(-1), dull, sharp)])
    found = Weighted(by="class").fit(rows_of(logits, labels)).fuse(rows_of(logits), temperature=1.0)
    assert (found.weights[labels < 2, 0] > 0.6).all()
    assert (found.weights[labels >= 2, 1] > 0.6).all()
    assert Weighted().fit(rows_of(logits, labels)).fitted()["weights"] == pytest.approx([0.5, 0.5])


@pytest.mark.parametrize("by", ["nll", "accuracy", "class"])
def test_weighted_refuses_to_guess_its_weights(by: str) -> None:
    logits, labels = teachers(3, 10, 4), torch.zeros(10, dtype=torch.long)
    strategy, array = Weighted(by=by), "class_weights" if by == "class" else "weights"
    with pytest.raises(StillroomError, match=f"it has no {array} yet; expected a fitted strategy; call fit"):
        strategy.fuse(rows_of(logits), temperature=1.0)
    with pytest.raises(StillroomError, match="logits of 2 teachers; expected the 3 it was fitted on; fit again"):
        strategy.fit(rows_of(logits, labels)).fuse(rows_of(logits[:2]), temperature=1.0)
    with pytest.raises(StillroomError, match="none of 10 rows has a label; expected at least one"):
        strategy.fit(rows_of(logits, labels - 1))
    logits[2, 4, 0] = math.nan
    with pytest.raises(StillroomError, match="fusion 'weighted': teacher 2, row 4 has a logit that is not finite"):
        strategy.fit(rows_of(logits, labels))


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("weighted", {"by": "acuracy"}, r"fusion 'weighted': unknown by 'acuracy'; .*did you mean 'accuracy'\?"),
        ("weighted", {"tau": -1}, r"fusion 'weighted': tau is -1; expected a finite number above 0; change tau"),
        ("weighted", {"tau": "0.1"}, r"fusion 'weighted': tau is '0.1'; expected a finite number above 0"),
        ("weighted", {"tau": math.nan}, r"fusion 'weighted': tau is nan; expected"),
        ("entropy", {"tau": 0}, r"fusion 'entropy': tau is 0; expected a finite number above 0; change tau"),
        ("confidence", {"tau": math.inf}, r"fusion 'confidence': tau is inf; expected a finite number above 0"),
        ("random_teacher", {"weights": [1, -1]}, r"weights is \[1, -1\]; expected a list of finite numbers from 0 on"),
        (
            "random_teacher",
            {"weights": [0, 0.0]},
            r"weights is \[0, 0.0\]; .* not all 0, one per teacher; change weights",
        ),
        ("random_teacher", {"weights": []}, r"weights is \[\]; expected a list"),
        ("random_teacher", {"weights": "half"}, r"weights is 'half'; expected a list"),
        ("random_teacher", {"weights": [1, math.inf]}, r"weights is \[1, inf\]; expected a list"),
        ("random_teacher", {"weights": 2}, r"weights is 2; expected a list"),
    ],
)
def test_wrong_options_are_named_at_once(name: str, options: dict[str, Any], message: str) -> None:
    with pytest.raises(StillroomError, match=message):
        FUSIONS[name](**options)


# -- entropy ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("temperature", [1.0, 4.0])
@pytest.mark.parametrize("count", [1, 2, 4])
def test_entropy_weights_are_the_slow_formula_at_temperature_one(count: int, temperature: float) -> None:
    logits = teachers(count, 25, 6)
    plain = Entropy().fuse(rows_of(logits), temperature=temperature)
    sharp = Entropy(tau=0.2).fuse(rows_of(logits), temperature=temperature)
    for row in range(25):
        probs = logits[:, row].double().softmax(-1).tolist()
        entropies = [-sum(p * math.log(p) for p in own) for own in probs]
        expected = [(1 - own / sum(entropies)) / (count - 1) if count > 1 else 1.0 for own in entropies]
        assert plain.weights[row].tolist() == pytest.approx(expected, abs=2e-6)
        scores = [math.exp(-own / 0.2) for own in entropies]
        assert sharp.weights[row].tolist() == pytest.approx([score / sum(scores) for score in scores], abs=2e-6)
        mixed = torch.tensor(expected, dtype=torch.float64) @ (logits[:, row].double() / temperature).softmax(-1)
        torch.testing.assert_close(plain.log_probs[row].double(), mixed.log(), atol=1e-5, rtol=0)


@pytest.mark.parametrize("tau", [None, 0.5, 1e-30, 1e-300])
def test_equally_sure_teachers_weigh_the_same(tau: float | None) -> None:
    found = Entropy(tau=tau).fuse(rows_of(ONE_HOT), temperature=1.0)
    torch.testing.assert_close(found.weights, torch.full((3, 3), 1 / 3))
    assert found.log_probs.isfinite().all()
    uniform = Entropy(tau=tau).fuse(rows_of(torch.zeros(3, 2, 5)), temperature=1.0)
    torch.testing.assert_close(uniform.weights, torch.full((2, 3), 1 / 3))


def test_a_sure_teacher_outweighs_an_unsure_one() -> None:
    logits = torch.stack([ONE_HOT[0], torch.zeros(3, 4)])
    found = Entropy().fuse(rows_of(logits), temperature=4.0)
    torch.testing.assert_close(found.weights, torch.tensor([1.0, 0.0]).expand(3, 2), atol=1e-5, rtol=0)


# -- confidence -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("temperature", [1.0, 4.0])
@pytest.mark.parametrize("count", [1, 2, 4])
def test_confidence_weights_are_the_slow_formula(count: int, temperature: float) -> None:
    logits, labels = teachers(count, 25, 6), some_labels(25, 6, lowest=-1)
    plain = Confidence().fuse(rows_of(logits, labels), temperature=temperature)
    sharp = Confidence(sharp=True, tau=0.4).fuse(rows_of(logits, labels), temperature=temperature)
    assert (labels < 0).any()
    for row, label in enumerate(labels.tolist()):
        expected = best = [1 / count] * count
        if label >= 0:
            losses = [-own.log_softmax(-1)[label].item() for own in logits[:, row].double()]
            shares = [math.exp(loss) / sum(map(math.exp, losses)) for loss in losses]
            expected = [(1 - share) / (count - 1) if count > 1 else 1.0 for share in shares]
            scores = [math.exp(-loss / 0.4) for loss in losses]
            best = [score / sum(scores) for score in scores]
        assert plain.weights[row].tolist() == pytest.approx(expected, abs=2e-6)
        assert sharp.weights[row].tolist() == pytest.approx(best, abs=2e-6)
        mixed = torch.tensor(expected, dtype=torch.float64) @ (logits[:, row].double() / temperature).softmax(-1)
        torch.testing.assert_close(plain.log_probs[row].double(), mixed.log(), atol=1e-5, rtol=0)


def test_confidence_rejects_and_sharp_confidence_follows() -> None:
    labels = torch.tensor([0, 1, 2])
    plain = Confidence().fuse(rows_of(ONE_HOT, labels), temperature=1.0).weights
    torch.testing.assert_close(plain, torch.tensor([[1 / 3, 1 / 3, 1 / 3], [0.5, 0.5, 0], [0.5, 0.25, 0.25]]))
    sharp = Confidence(sharp=True, tau=1e-300).fuse(rows_of(ONE_HOT, labels), temperature=1.0).weights
    torch.testing.assert_close(sharp, torch.tensor([[1 / 3, 1 / 3, 1 / 3], [0.5, 0.5, 0], [1.0, 0, 0]]))


@pytest.mark.parametrize("sharp", [False, True])
def test_labelled_rows_have_the_same_bits_in_any_block(sharp: bool) -> None:
    rows = rows_of(teachers(5, 41, 3, 7), torch.arange(123).reshape(41, 3) % 8 - 1)
    whole = Confidence(sharp=sharp).fuse(rows, temperature=4.0)
    for size in (1, 3, 8):
        blocks = [Confidence(sharp=sharp).fuse(rows[i : i + size], temperature=4.0) for i in range(0, 41, size)]
        assert torch.equal(torch.cat([block.log_probs for block in blocks]), whole.log_probs)
        assert torch.equal(torch.cat([block.weights for block in blocks]), whole.weights)


# -- random teacher ---------------------------------------------------------------------------------------------------


def keyed(logits: Tensor, ids: np.ndarray, seed: int = 3, view: int = 0) -> Outputs:
    return Outputs(logits, torch.full(logits.shape[1:-1], -1), keys=RowKeys(seed, view, ids))


@pytest.mark.parametrize("weights", [None, [2, 1, 5, 0], (0, 1e308, 1e308, 0)])
def test_teachers_are_drawn_as_often_as_asked(weights: Any) -> None:
    rows = 40_000
    found = RandomTeacher(weights=weights).fuse(keyed(torch.zeros(4, rows, 2), np.arange(rows)), temperature=1.0)
    assert set(found.weights.unique().tolist()) == {0.0, 1.0}
    chances = np.full(4, 0.25) if weights is None else np.array(weights) / max(weights)
    chances = chances / chances.sum()
    spread = np.sqrt(chances * (1 - chances) / rows)
    assert (np.abs(found.weights.mean(0).numpy() - chances) <= 4 * spread).all()


@pytest.mark.parametrize("weights", [None, [3, 1, 1]])
def test_over_rows_the_drawn_teachers_are_the_mixture(weights: list[float] | None) -> None:
    """Every row is the same picture, so the mean over rows nears the mixture at the temperature."""
    rows, logits = 20_000, teachers(3, 1, 4)
    found = RandomTeacher(weights=weights).fuse(keyed(logits.expand(3, rows, 4), np.arange(rows)), temperature=2.0)
    chances = torch.tensor(weights or [1.0, 1, 1], dtype=torch.float64)
    probs = (logits[:, 0].double() / 2).softmax(-1)
    expected = chances @ probs / chances.sum()
    torch.testing.assert_close(found.log_probs.double().exp().mean(0), expected, atol=0.015, rtol=0)
    own_entropy = torch.special.entr(probs).sum(-1) @ chances / chances.sum()
    divergence = torch.special.entr(expected).sum() - own_entropy
    torch.testing.assert_close(found.disagreement.double(), divergence.expand(rows), atol=1e-5, rtol=0)


def test_a_row_draws_one_teacher_for_good_and_another_in_another_view() -> None:
    logits, ids = teachers(3, 60, 2, 5), np.arange(60) * (1 << 33)
    whole = RandomTeacher().fuse(keyed(logits, ids), temperature=4.0)
    order = np.random.default_rng(0).permutation(60)
    moved = RandomTeacher().fuse(keyed(logits[:, order], ids[order])[5:20], temperature=4.0)
    assert torch.equal(moved.log_probs, whole.log_probs[order[5:20]])
    drawn = whole.weights[:, 0].argmax(-1)
    assert (whole.weights == whole.weights[:, :1]).all()  # all cases of a row learn from one teacher
    for row in range(60):
        torch.testing.assert_close(whole.log_probs[row], (logits[drawn[row], row] / 4).log_softmax(-1))
    draws = [whole.weights]
    for seed, view in itertools.product((3, 4), (0, 1)):
        if (seed, view) != (3, 0):
            draws.append(RandomTeacher().fuse(keyed(logits, ids, seed, view), temperature=1.0).weights)
    for one, other in itertools.combinations(draws, 2):
        assert 0.1 < (one == other).all(-1).float().mean() < 0.6  # a third, as of independent draws


def test_random_teacher_needs_keys_and_a_weight_for_each_teacher() -> None:
    logits = teachers(3, 10, 4)
    with pytest.raises(StillroomError, match="rows without keys; expected each row's seed, view and sample; give"):
        RandomTeacher().fuse(Outputs(logits, torch.full((10,), -1)), temperature=1.0)
    with pytest.raises(StillroomError, match="answers of 3 teachers; expected 2, one for each of weights; change"):
        RandomTeacher(weights=[1, 2]).fuse(rows_of(logits), temperature=1.0)
    assert hash(RandomTeacher(weights=[1, 2])) == hash(RandomTeacher(weights=(1, 2)))
