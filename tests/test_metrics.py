"""The metrics agree with scikit-learn, scipy and slow sums, and say when there is nothing to score."""

import math

import pytest
import torch
from scipy import stats
from sklearn import metrics as sklearn_metrics
from torch import Tensor

from pipeline import metrics
from pipeline.errors import StillroomError
from pipeline.metrics import (
    agreement,
    classification_metrics,
    expected_calibration_error,
    mean_interval,
    paired_interval,
    reliability_curve,
)


def random_predictions(num_rows: int, num_classes: int, *, seed: int = 3) -> tuple[Tensor, Tensor]:
    """Log-probabilities `[N, C]` and labels `[N]` drawn from them: calibrated by construction."""
    generator = torch.Generator().manual_seed(seed)
    log_probs = (2 * torch.randn(num_rows, num_classes, generator=generator, dtype=torch.float64)).log_softmax(-1)
    return log_probs, torch.multinomial(log_probs.exp(), 1, generator=generator)[:, 0]


@pytest.mark.parametrize("num_classes", [2, 10])
def test_rates_are_scikit_learn_s(num_classes: int) -> None:
    log_probs, labels = random_predictions(500, num_classes)
    found = classification_metrics(log_probs, labels)
    predictions, truth = log_probs.argmax(-1).numpy(), labels.numpy()
    precision, recall, f1, _ = sklearn_metrics.precision_recall_fscore_support(truth, predictions, average="macro")
    expected = {
        "accuracy": sklearn_metrics.accuracy_score(truth, predictions),
        "precision": precision,
        "recall": recall,
        "f1": f1,
        "nll": sklearn_metrics.log_loss(truth, log_probs.exp().numpy()),
    }
    assert {name: found[name] for name in expected} == pytest.approx(expected, abs=1e-6)
    assert found.keys() == expected.keys() | {"ece", "brier"}


def test_brier_is_the_slow_sum() -> None:
    log_probs, labels = random_predictions(40, 3)
    slow = sum((math.exp(log_probs[i, c]) - (1.0 if c == labels[i] else 0.0)) ** 2 for i in range(40) for c in range(3))
    assert classification_metrics(log_probs, labels)["brier"] == pytest.approx(slow / 40)


def test_rows_without_a_label_count_nothing_and_extra_axes_are_rows() -> None:
    log_probs, labels = random_predictions(60, 4)
    padded, padded_labels = torch.cat([log_probs, torch.zeros(20, 4)]), torch.cat([labels, -torch.ones(20).long()])
    alone = classification_metrics(log_probs, labels)
    assert classification_metrics(padded.reshape(8, 10, 4), padded_labels.reshape(8, 10)) == alone


def test_a_zero_probability_for_the_truth_costs_the_documented_floor() -> None:
    log_probs = torch.tensor([[1.0, 0.0], [1.0, 0.0]]).log()
    found = classification_metrics(log_probs, torch.tensor([1, 0]))
    assert found["nll"] == pytest.approx(-math.log(1e-12) / 2)
    assert found["brier"] == pytest.approx(1.0)
    assert found["ece"] == pytest.approx(0.5)


def test_perfect_predictions() -> None:
    labels = torch.tensor([0, 1, 2, 1])
    found = classification_metrics(torch.eye(3)[labels].log(), labels)
    perfect = {"accuracy": 1.0, "precision": 1.0, "recall": 1.0, "f1": 1.0, "nll": 0.0, "ece": 0.0, "brier": 0.0}
    assert found == pytest.approx(perfect)


def test_nothing_to_score_is_an_error() -> None:
    with pytest.raises(StillroomError, match="metrics: found no row with a label; expected at least one; score"):
        classification_metrics(torch.zeros(3, 2), torch.full((3,), -1))


def test_a_nan_is_an_error_that_names_its_row() -> None:
    log_probs = torch.zeros(3, 2)
    log_probs[2, 0] = math.nan
    with pytest.raises(StillroomError, match="metrics: row 2 has the log-probability nan; expected"):
        classification_metrics(log_probs, torch.tensor([-1, 0, 0]))


def test_rows_scored_in_pieces_have_the_same_bits(monkeypatch: pytest.MonkeyPatch) -> None:
    log_probs, labels = random_predictions(700, 5)
    labels[100:300] = -1  # a whole piece, among others
    whole = metrics.score_rows(log_probs, labels)
    monkeypatch.setattr(metrics, "PIECE", 1)
    assert metrics.num_pieces(700, 5) == 10
    found = metrics.score_rows(log_probs, labels)
    assert len(found.labels) == 500
    for name in ("true_log_probs", "squares", "confidences", "predictions", "labels"):
        assert torch.equal(getattr(found, name), getattr(whole, name))
    log_probs[650, 1] = math.nan
    with pytest.raises(StillroomError, match="metrics: row 650 has the log-probability nan"):
        metrics.score_rows(log_probs, labels)


def test_a_piece_has_few_values_but_not_fewer_rows_than_sums_need() -> None:
    assert [metrics.num_pieces(rows, 1000) for rows in (0, 1, 262, 263, 4096)] == [1, 1, 1, 2, 16]
    assert metrics.num_pieces(640, 1_000_000) == 10


@pytest.mark.parametrize(("num_rows", "bins"), [(1000, 15), (37, 15), (4, 15), (60, 1)])
def test_ece_is_the_slow_one(num_rows: int, bins: int) -> None:
    log_probs, labels = random_predictions(num_rows, 5)
    rows = sorted(
        (math.exp(row.max().item()), float(row.argmax() == label)) for row, label in zip(log_probs, labels, strict=True)
    )
    slow = 0.0
    for i in range(bins):
        inside = rows[i * num_rows // bins : (i + 1) * num_rows // bins]
        slow += abs(sum(confidence - right for confidence, right in inside)) / num_rows
    assert expected_calibration_error(log_probs, labels, bins=bins) == pytest.approx(slow)


def test_ece_of_calibrated_predictions_is_small_and_of_overconfident_ones_is_not() -> None:
    log_probs, labels = random_predictions(100_000, 5)
    assert expected_calibration_error(log_probs, labels) < 0.01
    assert expected_calibration_error((3 * log_probs).log_softmax(-1), labels) > 0.1


def test_ece_of_a_constant_confidence_does_not_depend_on_the_row_order() -> None:
    log_probs = torch.tensor([[0.75, 0.25]]).log().repeat(400, 1)
    labels = torch.tensor([0] * 300 + [1] * 100)  # 75 % right, but all the wrong ones come last
    assert expected_calibration_error(log_probs, labels) == pytest.approx(0.0, abs=1e-6)


def test_reliability_curve_has_bins_of_equal_mass_that_hold_every_row() -> None:
    log_probs, labels = random_predictions(1500, 5)
    confidence, accuracy, count = reliability_curve(log_probs, labels, bins=15)
    assert count.tolist() == [100] * 15
    assert (confidence.diff() > 0).all()
    right = (log_probs.argmax(-1) == labels).double().mean().item()
    assert (accuracy * count).sum().item() / 1500 == pytest.approx(right)


def test_agreement_is_the_fraction_of_equal_first_choices() -> None:
    a = torch.tensor([[0.0, 1.0], [1.0, 0.0], [0.0, 1.0], [1.0, 0.0]])
    b = torch.tensor([[0.0, 5.0], [0.0, 1.0], [-1.0, 0.0], [9.0, 0.0]])
    assert agreement(a, b) == 0.75
    assert agreement(a, a) == 1.0


@pytest.mark.parametrize("num_classes", [2, 4])
def test_auroc_is_the_share_of_pairs_in_the_right_order(num_classes: int) -> None:
    log_probs, labels = random_predictions(60, num_classes)
    labels[50:] = -1
    log_probs[:, 0] = (log_probs[:, 0] * 4).round() / 4  # ties
    areas = []
    for each in range(1 if num_classes == 2 else 0, num_classes):
        ours, others = log_probs[labels == each, each].exp(), log_probs[(labels != each) & (labels >= 0), each].exp()
        pairs = [float(a > b) + 0.5 * float(a == b) for a in ours for b in others]
        areas.append(sum(pairs) / len(pairs))
    assert metrics.auroc(log_probs, labels) == pytest.approx(sum(areas) / len(areas))
    assert math.isnan(metrics.auroc(log_probs, torch.zeros(60, dtype=torch.long)))


def test_group_gap_is_between_the_best_and_the_worst_group() -> None:
    log_probs = torch.tensor([[0.9, 0.1]] * 6).log()
    labels = torch.tensor([0, 0, 0, 1, 1, -1])
    found = metrics.group_gap(log_probs, labels, ["a", "a", "b", "b", "c", "d"])
    assert found == pytest.approx(1.0)  # a: 2 of 2, b: 1 of 2, c: 0 of 1; d has no label
    assert metrics.group_gap(log_probs[:4], labels[:4], ["a", "a", "b", "b"]) == pytest.approx(0.5)
    assert math.isnan(metrics.group_gap(log_probs, labels, ["a"] * 6))


def test_paired_interval_is_scipy_s() -> None:
    a, b = [0.91, 0.92, 0.90, 0.93, 0.95], [0.90, 0.90, 0.91, 0.91, 0.92]
    found, expected = paired_interval(a, b, level=0.9), stats.ttest_rel(a, b)
    limits = expected.confidence_interval(0.9)
    assert (found.low, found.high) == pytest.approx((limits.low, limits.high))
    assert found.p_value == pytest.approx(expected.pvalue)
    assert found.mean == pytest.approx(0.014)
    assert found.n == 5


def test_mean_interval_is_scipy_s() -> None:
    values = [1.0, 2.0, 4.0]
    found = mean_interval(values)
    low, high = stats.t.interval(0.95, 2, loc=7 / 3, scale=stats.sem(values))
    assert (found.mean, found.low, found.high, found.n) == pytest.approx((7 / 3, low, high, 3))


def test_one_seed_has_a_mean_but_no_interval() -> None:
    found = paired_interval([0.9], [0.8])
    assert found.mean == pytest.approx(0.1)
    assert all(math.isnan(value) for value in (found.low, found.high, found.p_value))
    assert math.isnan(mean_interval([0.9]).low)


@pytest.mark.parametrize(("difference", "p_value"), [(0.0, 1.0), (0.25, 0.0)])
def test_without_variance_the_interval_is_the_mean(difference: float, p_value: float) -> None:
    found = paired_interval([difference, difference, difference], [0.0, 0.0, 0.0])
    assert (found.mean, found.low, found.high, found.p_value) == (difference, difference, difference, p_value)


def test_unpaired_or_missing_values_are_refused() -> None:
    with pytest.raises(ValueError, match="shorter"):
        paired_interval([1.0, 2.0], [1.0])
    with pytest.raises(ValueError, match="at least one value"):
        mean_interval([])
