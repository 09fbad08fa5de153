"""What comes after a strategy: figures from fits that left the row out, the pool's temperature, the correction."""

from dataclasses import dataclass, field
from typing import Self

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional

from pipeline.calibration import fit_temperature
from pipeline.errors import StillroomError
from pipeline.fusion import CORRECTIONS, FUSIONS, FusedTargets, Fusion, Mean, Outputs, Target, Weighted
from pipeline.fusion.target import FOLDS, cross_fitted, hidden
from pipeline.metrics import classification_metrics
from pipeline.views import RowKeys

CLASSES = 5


def outputs(rows: int = 400, *, seed: int = 0, unlabelled: int = 0) -> Outputs:
    """Three teachers who each see the label through noise of their own, as calibrated as such teachers are."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(0, CLASSES, (rows,), generator=generator)
    noise = torch.randn(3, rows, CLASSES, generator=generator)
    logits = 2 * functional.one_hot(labels, CLASSES) + noise * torch.tensor([1.0, 1.2, 2.0])[:, None, None]
    for z in logits:
        z /= fit_temperature(z, labels)
    shown = torch.where(torch.arange(rows) < unlabelled, -1, labels)
    return Outputs(logits, shown)


@dataclass(frozen=True)
class Memory(Fusion):
    """Knows by heart the rows it was fitted on, and says nothing of others."""

    seen: list[int] = field(default_factory=list)

    def fit(self, outputs: Outputs) -> Self:
        self.seen.append(len(outputs))
        return self.with_state(keys=outputs.logits[0, :, 0], labels=outputs.labels)

    def fuse(self, outputs: Outputs, *, temperature: float) -> FusedTargets:
        known, labels = self.fitted_state("keys"), self.fitted_state("labels")
        logits = torch.zeros(len(outputs), CLASSES)
        for row, key in enumerate(outputs.logits[0, :, 0]):
            found = (known == key).nonzero()
            if len(found):
                logits[row, labels[found[0, 0]]] = 30.0
        log_probs = logits.log_softmax(-1)
        return FusedTargets(log_probs, torch.full((len(outputs), 3), 1 / 3), torch.zeros(len(outputs)))


def test_rows_are_judged_by_fits_that_left_them_out() -> None:
    rows, strategy = outputs(100), Memory()
    found, log_probs = cross_fitted(strategy, rows)
    assert found.tolist() == list(range(100))
    assert strategy.seen == [80] * FOLDS
    torch.testing.assert_close(log_probs.exp(), torch.full((100, CLASSES), 1 / CLASSES))
    target = Target(Memory()).fit(rows)
    assert target.judged["nll"] == pytest.approx(torch.tensor(float(CLASSES)).log().item(), rel=1e-4)
    assert (target.fuse(rows, temperature=1.0).log_probs.argmax(-1) == rows.labels).all(), "it did know them by heart"


def test_rows_without_a_label_are_neither_fitted_nor_judged() -> None:
    rows = outputs(100, unlabelled=40)
    found, log_probs = cross_fitted(Weighted(), rows)
    assert found.tolist() == list(range(40, 100))
    assert len(log_probs) == 60
    with pytest.raises(StillroomError, match="1 calibration rows with a label; expected at least 2"):
        cross_fitted(Weighted(), outputs(30, unlabelled=29))


def test_a_strategy_with_nothing_to_fit_is_judged_as_it_is() -> None:
    rows = outputs()
    target = Target(Mean(), calibrate_pool=False).fit(rows)
    expected = classification_metrics(target.fuse(hidden(rows), temperature=1.0).log_probs, rows.labels)
    assert target.judged == pytest.approx(expected, abs=1e-6)
    assert target.pool_temperature is None


def test_the_pool_of_calibrated_teachers_is_underconfident_and_its_temperature_mends_that() -> None:
    rows, fresh = outputs(4000), outputs(4000, seed=1)
    plain, mended = (Target(Mean(), calibrate_pool=on).fit(rows) for on in (False, True))
    assert mended.pool_temperature is not None
    assert mended.pool_temperature < 0.9
    before, after = (classification_metrics(t.fuse(hidden(fresh), temperature=1.0).log_probs, fresh.labels)
                     for t in (plain, mended))  # fmt: skip
    assert after["ece"] < before["ece"] / 3
    assert after["nll"] < before["nll"]
    assert after["accuracy"] == before["accuracy"]


def test_the_pools_temperature_divides_the_mixture_at_the_losss_temperature() -> None:
    rows = outputs()
    target = Target(Mean()).fit(rows)
    assert target.pool_temperature is not None
    for temperature in (1.0, 4.0):
        mixture = (rows.logits / temperature).softmax(-1).mean(0)
        expected = (mixture.log() / target.pool_temperature).log_softmax(-1)
        torch.testing.assert_close(target.fuse(rows, temperature=temperature).log_probs, expected, atol=1e-5, rtol=0)


@pytest.mark.parametrize("name", FUSIONS)
def test_what_was_fitted_comes_back_from_its_arrays(name: str) -> None:
    rows = outputs(60)
    features = {"penultimate": tuple(torch.randn(60, 4, generator=torch.Generator().manual_seed(k)) for k in range(3))}
    rows = Outputs(rows.logits, rows.labels, features, RowKeys(0, 0, np.arange(60)))
    fitted = Target(FUSIONS[name]()).fit(rows)
    again = Target(FUSIONS[name]()).restored(fitted.state)
    for temperature in (1.0, 2.0):
        one, two = (target.fuse(hidden(rows), temperature=temperature) for target in (fitted, again))
        assert torch.equal(one.log_probs, two.log_probs)
        assert torch.equal(one.weights, two.weights)
    assert again.judged == fitted.judged
    assert again.fitted() == fitted.fitted()


def test_a_target_refuses_to_guess_the_pools_temperature() -> None:
    with pytest.raises(StillroomError, match="the pool has no temperature yet; expected a fitted target; call fit"):
        Target(Mean()).fuse(outputs(), temperature=1.0)


# -- correction -------------------------------------------------------------------------------------------------------


def corrected(rule: str, probs: list[float], label: int) -> tuple[list[float], float]:
    """One row's target and how much of it is the label."""
    logits = torch.tensor([[probs]]).log()
    found = Target(Mean(), calibrate_pool=False, correction=rule).fuse(
        Outputs(logits, torch.tensor([label])), temperature=1.0
    )
    assert found.corrected is not None
    return found.log_probs[0].exp().tolist(), found.corrected.item()


@pytest.mark.parametrize(
    ("rule", "label", "expected", "share"),
    [
        ("none", 2, [0.6, 0.3, 0.1], 0.0),
        ("conditional", 0, [0.6, 0.3, 0.1], 0.0),
        ("conditional", 2, [0.0, 0.0, 1.0], 1.0),
        ("soft", 1, [0.18, 0.09 + 0.7, 0.03], 0.7),
        ("swap", 0, [0.6, 0.3, 0.1], 0.0),
        ("swap", 2, [0.1, 0.3, 0.6], 1.0),
        ("conditional", -1, [0.6, 0.3, 0.1], 0.0),
        ("soft", -1, [0.6, 0.3, 0.1], 0.0),
        ("swap", -1, [0.6, 0.3, 0.1], 0.0),
    ],
)
def test_a_correction_is_its_formula(rule: str, label: int, expected: list[float], share: float) -> None:
    found, how_much = corrected(rule, [0.6, 0.3, 0.1], label)
    assert found == pytest.approx(expected, abs=1e-6)
    assert how_much == pytest.approx(share, abs=1e-6)


@pytest.mark.parametrize("rule", CORRECTIONS)
@pytest.mark.parametrize("temperature", [1.0, 4.0])
def test_a_corrected_target_is_a_finite_distribution(rule: str, temperature: float) -> None:
    rows = outputs(200, unlabelled=50)
    extreme = torch.where(torch.arange(200)[None, :, None] % 3 == 0, rows.logits * 500, rows.logits)
    found = Target(Mean(), correction=rule).fit(rows).fuse(Outputs(extreme, rows.labels), temperature=temperature)
    assert found.log_probs.isfinite().all()
    torch.testing.assert_close(found.log_probs.exp().sum(-1), torch.ones(200), atol=1e-5, rtol=0)
    assert found.corrected is not None
    assert (found.corrected[:50] == 0).all()
    wrong = Target(Mean()).fit(rows).fuse(hidden(Outputs(extreme, rows.labels)), temperature=temperature)
    is_wrong = (wrong.log_probs.argmax(-1) != rows.labels) & (rows.labels >= 0)
    if rule in ("conditional", "swap"):
        assert torch.equal(found.corrected.bool(), is_wrong)
        assert is_wrong.any()
        own = found.log_probs[50:].gather(1, rows.labels[50:, None])[:, 0]
        assert torch.equal(own, found.log_probs[50:].amax(-1)), "the label is the first choice, if not the only one"


def test_soft_correction_is_the_alpha_of_the_loss() -> None:
    """p(y) KL(p ‖ q) + (1 - p(y)) CE(y, q) and the stored target have the same gradient in the student."""
    rows = outputs(50)
    plain = Target(Mean(), calibrate_pool=False)
    p = plain.fuse(rows, temperature=1.0).log_probs.exp()
    own = p.gather(1, rows.labels[:, None])[:, 0]
    student = torch.randn(50, CLASSES, generator=torch.Generator().manual_seed(3)).requires_grad_()
    log_q = student.log_softmax(-1)
    separate: Tensor = own * -(p * log_q).sum(1) - (1 - own) * log_q.gather(1, rows.labels[:, None])[:, 0]
    target = Target(Mean(), calibrate_pool=False, correction="soft").fuse(rows, temperature=1.0).log_probs.exp()
    together = -(target * student.log_softmax(-1)).sum(1)
    (a,), (b,) = torch.autograd.grad(separate.sum(), student), torch.autograd.grad(together.sum(), student)
    torch.testing.assert_close(a, b, atol=1e-6, rtol=0)


def test_an_unknown_correction_is_named() -> None:
    with pytest.raises(StillroomError, match=r"unknown correction 'swop'; .*did you mean 'swap'\?"):
        Target(Mean(), correction="swop")
