"""A temperature is recovered, follows the scale of the logits, and stops at its range."""

import math

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from pipeline import calibration
from pipeline.calibration import HIGHEST, LOWEST, fit_temperature
from pipeline.errors import StillroomError


def calibrated_case(num_rows: int, num_classes: int, *, seed: int = 5) -> tuple[Tensor, Tensor]:
    """Logits `[N, C]` and labels `[N]` drawn from their softmax, so that the true temperature is 1."""
    generator = torch.Generator().manual_seed(seed)
    logits = 2 * torch.randn(num_rows, num_classes, generator=generator, dtype=torch.float64)
    return logits, torch.multinomial(logits.softmax(-1), 1, generator=generator)[:, 0]


@pytest.mark.parametrize("temperature", [0.5, 1.0, 3.0])
@pytest.mark.parametrize("num_classes", [2, 10])
def test_a_known_temperature_is_recovered(temperature: float, num_classes: int) -> None:
    logits, labels = calibrated_case(20_000, num_classes)
    assert fit_temperature(logits * temperature, labels) == pytest.approx(temperature, rel=0.05)


def test_scaled_logits_scale_the_temperature_exactly() -> None:
    logits, labels = calibrated_case(500, 5)
    assert fit_temperature(3 * logits, labels) == pytest.approx(3 * fit_temperature(logits, labels), rel=1e-8)


def test_no_temperature_of_a_fine_grid_has_a_lower_nll() -> None:
    logits, labels = calibrated_case(300, 4, seed=11)
    logits = 2.5 * logits + 100  # a shift changes nothing

    def nll(temperature: float) -> float:
        return functional.cross_entropy(logits / temperature, labels).item()

    best = nll(fit_temperature(logits, labels))
    grid = [nll(LOWEST * (HIGHEST / LOWEST) ** (i / 2000)) for i in range(2001)]
    assert best <= min(grid) + 1e-12
    assert best == pytest.approx(min(grid), abs=1e-5)


def test_rows_without_a_label_change_nothing_and_extra_axes_are_rows() -> None:
    logits, labels = calibrated_case(100, 3)
    padded, padded_labels = (
        torch.cat([logits, torch.full((20, 3), math.nan)]),
        torch.cat([labels, -torch.ones(20).long()]),
    )
    assert fit_temperature(padded.reshape(12, 10, 3), padded_labels.reshape(12, 10)) == fit_temperature(logits, labels)


def test_half_precision_logits_are_fitted_in_double() -> None:
    logits, labels = calibrated_case(2000, 5)
    assert fit_temperature(logits.half(), labels) == fit_temperature(logits.half().double(), labels)


@pytest.mark.parametrize("scale", [1.0, 1000.0])
def test_a_split_without_errors_stops_at_the_lowest(scale: float) -> None:
    logits = scale * torch.eye(3)
    assert fit_temperature(logits, torch.arange(3)) == (LOWEST if scale == 1.0 else pytest.approx(LOWEST))


def test_always_wrong_logits_stop_at_the_highest() -> None:
    assert fit_temperature(torch.eye(3), torch.tensor([1, 2, 0])) == HIGHEST


def test_logits_that_say_nothing_give_one() -> None:
    assert fit_temperature(torch.full((4, 3), 7.0), torch.tensor([0, 1, 2, 0])) == 1.0


def test_nothing_to_fit_is_an_error() -> None:
    with pytest.raises(StillroomError, match="calibration: none of 2 rows has a label; expected at least one; give"):
        fit_temperature(torch.zeros(2, 3), torch.tensor([-1, -1]))


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_a_logit_that_is_not_finite_is_an_error_that_names_its_row(bad: float) -> None:
    logits = torch.zeros(4, 3)
    logits[2, 1] = bad
    with pytest.raises(StillroomError, match="calibration: row 2 has a logit that is not finite; expected finite"):
        fit_temperature(logits, torch.tensor([-1, 0, 1, 2]))


def test_rows_looked_at_in_pieces_give_the_same_bits(monkeypatch: pytest.MonkeyPatch) -> None:
    generator = torch.Generator().manual_seed(5)
    logits, labels = torch.randn(700, 6, generator=generator), torch.randint(0, 6, (700,), generator=generator)
    logits[torch.arange(700), labels] += 2
    labels[100:300] = -1
    whole = fit_temperature(logits, labels)
    monkeypatch.setattr(calibration, "PIECE", 1)
    assert fit_temperature(logits, labels) == whole
    logits[150, 0] = math.nan  # has no label
    assert fit_temperature(logits, labels) == whole
    logits[650, 0] = math.nan
    with pytest.raises(StillroomError, match="calibration: row 650 has a logit that is not finite"):
        fit_temperature(logits, labels)
