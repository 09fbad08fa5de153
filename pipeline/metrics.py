"""How good a classifier is, and whether one is better than another.

Trade: a few float64 numbers are kept for each row of a split, a million rows bear that easily; there is no running
state to reset or to synchronise.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from pipeline.errors import StillroomError

PIECE, LEAST_ROWS = 1 << 18, 64  # values, 2 MB of float64, but so many rows: few rows' sums depend on torch's threads
FLOOR = 1e-12  # a zero probability for the truth costs 27.6 nats: one such row does not make the mean infinite


@dataclass(frozen=True, eq=False)
class RowScores:
    """What a classifier's figures are made of, a few numbers for each row with a label, so that splits of any size can
    be scored block by block: float64 `true_log_probs`, `squares` (the row's Brier score) and `confidences`, int64
    `predictions` and `labels`, all [N].
    """

    true_log_probs: Tensor
    squares: Tensor
    confidences: Tensor
    predictions: Tensor
    labels: Tensor
    num_classes: int

    def metrics(self) -> dict[str, float]:
        """Return what `classification_metrics` does."""
        return {
            "accuracy": (self.predictions == self.labels).double().mean().item(),
            **_macro_rates(self.predictions, self.labels),
            "nll": -self.true_log_probs.clamp(min=math.log(FLOOR)).mean().item(),
            "ece": self.calibration_error(),
            "brier": self.squares.mean().item(),
        }

    def calibration_error(self, bins: int = 15) -> float:
        """Return what `expected_calibration_error` does."""
        confidence, accuracy, count = self.reliability_curve(bins)
        return ((confidence - accuracy).abs() * count).sum().item() / count.sum().item()

    def reliability_curve(self, bins: int = 15) -> tuple[Tensor, Tensor, Tensor]:
        """Return what `reliability_curve` does."""
        confidence = self.confidences
        starts = torch.arange(1, bins, device=confidence.device) * len(confidence) // bins
        edges = confidence.sort().values[starts].unique()
        bin_of_row = torch.bucketize(confidence, edges, right=True)
        count = torch.bincount(bin_of_row, minlength=len(edges) + 1)
        filled = count > 0
        mean_confidence = torch.bincount(bin_of_row, confidence, len(count))[filled] / count[filled]
        is_right = (self.predictions == self.labels).double()
        accuracy = torch.bincount(bin_of_row, is_right, len(count))[filled] / count[filled]
        return mean_confidence, accuracy, count[filled]


def score_rows(log_probs: Tensor, labels: Tensor) -> RowScores:
    """Return each labelled row's scores: `[..., C], [...]`, of which there may be none.

    Raises: StillroomError when a log-probability is nan.
    """
    log_probs, labels = log_probs.reshape(-1, log_probs.shape[-1]), labels.reshape(-1)
    pieces = num_pieces(*log_probs.shape)
    starts = torch.arange(len(labels)).tensor_split(pieces)
    return _joined(
        [
            _score_piece(*piece)
            for piece in zip(log_probs.tensor_split(pieces), labels.tensor_split(pieces), starts, strict=True)
        ]
    )


def num_pieces(num_rows: int, num_classes: int) -> int:
    """Return in how many pieces rows are best worked on whose double precision need not be held all at once."""
    return max(1, min(num_rows // LEAST_ROWS, -(-num_rows * num_classes // PIECE)))


def _score_piece(log_probs: Tensor, labels: Tensor, numbers: Tensor) -> RowScores:
    """Return the scores of some rows, [n, C] and [n], with the numbers that errors call them by."""
    labelled = labels >= 0
    log_probs, labels = log_probs[labelled].double(), labels[labelled].long()
    if log_probs.isnan().any():
        row = int(numbers[labelled][log_probs.isnan().any(dim=1)][0])
        raise StillroomError(
            f"metrics: row {row} has the log-probability nan; expected numbers up to 0; look for an overflow upstream"
        )
    true_log_probs = log_probs.gather(1, labels[:, None])[:, 0]
    top, predictions = log_probs.max(dim=1)
    squares = log_probs.exp().square_().sum(dim=1) - 2 * true_log_probs.exp() + 1
    return RowScores(true_log_probs, squares, top.exp(), predictions, labels, log_probs.shape[1])


def _joined(parts: Sequence[RowScores]) -> RowScores:
    names = ("true_log_probs", "squares", "confidences", "predictions", "labels")
    columns: Any = {name: torch.cat([getattr(part, name) for part in parts]) for name in names}
    return RowScores(**columns, num_classes=parts[0].num_classes)


def join_scores(parts: Sequence[RowScores]) -> RowScores:
    """Return the scores of several blocks as one's. Raises: StillroomError when no row has a label."""
    joined = _joined(parts)
    if not len(joined.labels):
        raise StillroomError("metrics: found no row with a label; expected at least one; score a labelled split")
    return joined


def classification_metrics(log_probs: Tensor, labels: Tensor) -> dict[str, float]:
    """Return accuracy, macro precision, recall and f1, nll (nats), ece and brier: `[..., C], [...] -> rates 0-1`.

    Rows of label -1 are left out. `log_probs` are normalised; -inf is allowed, and `nll` takes a
    probability under 1e-12 as 1e-12. Macro means run over classes that occur among the labels or
    the predictions. `ece` has 15 bins of equal mass (see `expected_calibration_error`). `brier` sums
    over classes, so it lies in [0, 2]. Source: Brier 1950.

    Raises: StillroomError when no row has a label or a log-probability is nan.
    """
    return join_scores([score_rows(log_probs, labels)]).metrics()


def expected_calibration_error(log_probs: Tensor, labels: Tensor, *, bins: int = 15) -> float:
    """Return the mean over rows of |confidence - accuracy| of the row's bin, in [0, 1]: `[..., C], [...]`.

    Source: Naeini 2015 with the bins of equal mass of Nguyen & O'Connor 2015.
    """
    return join_scores([score_rows(log_probs, labels)]).calibration_error(bins)


def reliability_curve(log_probs: Tensor, labels: Tensor, bins: int = 15) -> tuple[Tensor, Tensor, Tensor]:
    """Return mean confidence, accuracy and number of rows of each bin, `[bins]` at most, by rising confidence.

    Bins hold equal numbers of rows, except that rows of equal confidence share a bin: votes have few
    distinct confidences, and cutting through a tie would make the answer depend on the row order.
    Raises: as `classification_metrics`.
    """
    return join_scores([score_rows(log_probs, labels)]).reliability_curve(bins)


def agreement(log_probs_a: Tensor, log_probs_b: Tensor) -> float:
    """Return the fraction of rows of equal first choice: `[..., C], [..., C]`. Source: Stanton 2021 (2106.05945)."""
    return (log_probs_a.argmax(dim=-1) == log_probs_b.argmax(dim=-1)).double().mean().item()


def auroc(log_probs: Tensor, labels: Tensor) -> float:
    """Return the area under the ROC curve, in [0, 1]: `[N, C], [N]`; of several classes the mean of one against rest.

    Rows of label -1 are left out, and so are classes that no other row has; nan where fewer than two classes occur.
    """
    from sklearn.metrics import roc_auc_score  # here, because few commands score anything

    shown = labels >= 0
    probs, truth = log_probs[shown].double().exp(), labels[shown]
    classes = truth.unique().tolist()
    if len(classes) < 2:
        return math.nan
    asked = classes[1:] if log_probs.shape[1] == 2 else classes  # of two, one curve is the other's mirror
    areas = [float(roc_auc_score((truth == each).cpu(), probs[:, each].cpu())) for each in asked]
    return math.fsum(areas) / len(areas)


def group_gap(log_probs: Tensor, labels: Tensor, groups: Sequence[str]) -> float:
    """Return the largest difference in accuracy between groups of rows, in [0, 1]: `[N, C], [N]`, N names.

    Rows of label -1 are left out; nan where fewer than two groups have a row.
    """
    right = (log_probs.argmax(-1) == labels).double()
    members = {name: [i for i, each in enumerate(groups) if each == name and labels[i] >= 0] for name in set(groups)}
    rates = [right[rows].mean().item() for rows in members.values() if rows]
    return max(rates) - min(rates) if len(rates) > 1 else math.nan


@dataclass(frozen=True)
class Interval:
    """A mean and its two-sided confidence limits; the limits are nan for a single value."""

    mean: float
    low: float
    high: float
    n: int


@dataclass(frozen=True)
class PairedInterval(Interval):
    """The mean difference of pairs, its limits, and the two-sided p of "no difference" (nan for one pair)."""

    p_value: float


def mean_interval(values: Sequence[float], *, level: float = 0.95) -> Interval:
    """Return the mean of independent runs with its Student's t interval. Source: Student 1908."""
    if not values:
        raise ValueError("an interval needs at least one value")
    n, mean = len(values), math.fsum(values) / len(values)
    if n == 1:
        return Interval(mean, math.nan, math.nan, n)
    from scipy.special import stdtrit  # here, because it takes 0.15 s to import

    half_width = float(stdtrit(n - 1, (1 + level) / 2)) * _standard_error(values)
    return Interval(mean, mean - half_width, mean + half_width, n)


def paired_interval(a: Sequence[float], b: Sequence[float], *, level: float = 0.95) -> PairedInterval:
    """Return the mean of a - b with its paired Student's t interval; the i-th of both share a seed.

    Without any variance the interval is the mean itself, and p is 1 for no difference, else 0.
    """
    differences = [x - y for x, y in zip(a, b, strict=True)]
    interval = mean_interval(differences, level=level)
    return PairedInterval(interval.mean, interval.low, interval.high, interval.n, _p_value(differences, interval.mean))


def _p_value(differences: Sequence[float], mean: float) -> float:
    """Return the two-sided p of Student's t test that the mean difference is 0."""
    if len(differences) == 1:
        return math.nan
    standard_error = _standard_error(differences)
    if standard_error == 0:
        return 1.0 if mean == 0 else 0.0
    from scipy.special import stdtr

    return 2 * float(stdtr(len(differences) - 1, -abs(mean) / standard_error))


def _standard_error(values: Sequence[float]) -> float:
    mean = math.fsum(values) / len(values)
    return math.sqrt(math.fsum((value - mean) ** 2 for value in values) / (len(values) - 1) / len(values))


def _macro_rates(predictions: Tensor, labels: Tensor) -> dict[str, float]:
    from sklearn.metrics import precision_recall_fscore_support  # here, because few commands score anything

    rates = precision_recall_fscore_support(labels.cpu(), predictions.cpu(), average="macro", zero_division=0.0)
    return dict(zip(("precision", "recall", "f1"), map(float, rates), strict=False))  # the fourth is no rate
