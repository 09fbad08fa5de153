"""Answers from outside, made ours: checked, in the data set's order of classes, as log-probabilities.

What others call predictions comes as probabilities, their logs, logits or bare classes, and nothing in a file of
numbers says which: a mistake there teaches quietly and badly, so whatever looks like another of them is refused.
"""

from collections.abc import Callable, Sequence

import numpy as np
from scipy.optimize import linear_sum_assignment

from pipeline.errors import StillroomError, near_names
from pipeline.teachers.predictions import named
from pipeline.teachers.sklearn import PROBABILITY_FLOOR

SUM_TOLERANCE = 1e-3  # of a row's probabilities, as they are rounded in text
RANGE_TOLERANCE = 1e-6


def probs_to_log_probs(values: np.ndarray, where: str) -> tuple[np.ndarray, float]:
    """Return floored log-probabilities, and by how much a row's sum was off at most: probabilities [N, C].

    Each row is divided by its sum. Raises: StillroomError, naming the row, for numbers that are no probabilities.
    """
    _check_rows(np.isfinite(values).all(-1), values, "NaN or infinite values", "finite numbers", "mend the file", where)
    sums = values.sum(-1)
    is_inside = ((values >= -RANGE_TOLERANCE) & (values <= 1 + RANGE_TOLERANCE)).all(-1)
    _check_rows(is_inside, values, "values outside 0..1", "probabilities", _advice(values), where)
    off = np.abs(sums - 1)
    what = f"probabilities that sum to {sums[off.argmax()]:.4g} at worst" if len(off) else ""
    _check_rows(off <= SUM_TOLERANCE, values, what, f"1 within {SUM_TOLERANCE:g}", _advice(values), where)
    return floored(values / sums[:, None]), float(off.max(initial=0.0))


def log_probs_to_log_probs(values: np.ndarray, where: str) -> tuple[np.ndarray, float]:
    """Return as `probs_to_log_probs` does of log-probabilities [N, C], in which -inf is a probability of 0."""
    is_number = ~(np.isnan(values) | (values == np.inf)).any(-1)
    _check_rows(is_number, values, "NaN or +infinity", "logs of probabilities", "mend the file", where)
    is_inside = (values <= RANGE_TOLERANCE).all(-1)
    _check_rows(is_inside, values, "values above 0", "logs of probabilities", _advice(values), where)
    return probs_to_log_probs(np.exp(values), where)


def logits_to_log_probs(values: np.ndarray, where: str) -> tuple[np.ndarray, float]:
    """Return log-probabilities of logits [N, C], and 0: nothing is off, and none is log 0, which would need a floor."""
    _check_rows(np.isfinite(values).all(-1), values, "NaN or infinite values", "finite logits", "mend the file", where)
    if look_like_probs(values):
        raise StillroomError(
            f"{where}: found rows of numbers in 0..1 that sum to 1; expected logits, for the softmax of these would be "
            f"nearly uniform; pass --of probs"
        )
    shifted = values - values.max(-1, keepdims=True)
    return (shifted - np.log(np.exp(shifted).sum(-1, keepdims=True))).astype(np.float32), 0.0


NORMALISED: dict[str, Callable[[np.ndarray, str], tuple[np.ndarray, float]]] = {
    "probs": probs_to_log_probs,
    "log_probs": log_probs_to_log_probs,
    "logits": logits_to_log_probs,
}
LABELS = "labels"
KINDS = (*NORMALISED, LABELS)


def labels_to_log_probs(labels: np.ndarray, num_classes: int) -> np.ndarray:
    """Return floored log-probabilities of one certain class a row: int64 [N] -> float32 [N, C]."""
    return floored(np.eye(num_classes)[labels])


def floored(probs: np.ndarray) -> np.ndarray:
    """Return log-probabilities float32, none below the floor: log 0 would let one teacher veto a class for all."""
    return np.log(np.maximum(probs, PROBABILITY_FLOOR)).astype(np.float32)


def look_like_probs(values: np.ndarray) -> bool:
    """Tell whether every row of [N, C] is of numbers in 0..1 that sum to 1."""
    is_inside = (values >= -RANGE_TOLERANCE) & (values <= 1 + RANGE_TOLERANCE)
    return bool(len(values) and is_inside.all() and (np.abs(values.sum(-1) - 1) <= SUM_TOLERANCE).all())


def _advice(values: np.ndarray) -> str:
    """Return what to do about numbers that are no probabilities, from what they look like."""
    finite = values[np.isfinite(values).all(-1)]
    if look_like_probs(finite / 100):
        return "they look like percent: divide them by 100"
    if (finite <= RANGE_TOLERANCE).all() and look_like_probs(np.exp(finite)):
        return "they look like logs of probabilities: pass --of log_probs"
    if look_like_probs(finite):
        return "they look like probabilities: pass --of probs"
    is_inside = (finite >= -RANGE_TOLERANCE).all() and (finite <= 1 + RANGE_TOLERANCE).all()
    return "divide each row by its sum, if that is what they mean" if is_inside else "are they logits? pass --of logits"


def _check_rows(is_right: np.ndarray, values: np.ndarray, found: str, wanted: str, advice: str, where: str) -> None:
    if not is_right.all():
        row = int((~is_right).argmax())
        shown = ", ".join(f"{value:.4g}" for value in values[row][:4]) + (", ..." if values.shape[1] > 4 else "")
        raise StillroomError(
            f"{where}: found {found} in {int((~is_right).sum())} of {len(is_right)} rows (first: row {row}, "
            f"[{shown}]); expected {wanted}; {advice}"
        )


# -- classes and ids --------------------------------------------------------------------------------------------------


def class_places(columns: Sequence[str], classes: Sequence[str], where: str) -> list[int]:
    """Return the column of each class. Raises StillroomError unless the columns are the classes, each once."""
    unknown = [name for name in columns if name not in classes]
    if unknown:
        raise StillroomError(
            f"{where}: found columns {unknown[:4]} that are no classes; expected one for each of the {len(classes)} "
            f"classes and none besides; {near_names(unknown[0], classes)}; drop or rename them, or name the columns' "
            f"classes with --classes"
        )
    missing = [name for name in classes if name not in columns]
    if missing or len(columns) != len(classes):
        found = f"no column for {len(missing)} classes, {missing[:4]}" if missing else "a class twice"
        raise StillroomError(f"{where}: found {found}; expected one for each of {len(classes)}; mend the file")
    return [list(columns).index(name) for name in classes]


def as_labels(values: Sequence[object], names: Sequence[str], where: str) -> np.ndarray:
    """Return the class of each value, a name or else a number 0..C-1: int64 [N].

    Raises: StillroomError, naming the row, for values that are neither; names and numbers must not be mixed.
    """
    texts = [str(value) for value in values]
    places = {name: place for place, name in enumerate(names)}
    if places.keys().isdisjoint(texts):
        places = {str(number): number for number in range(len(names))}
    wrong = [row for row, text in enumerate(texts) if text not in places]
    if wrong:
        raise StillroomError(
            f"{where}: found {len(wrong)} labels that are no classes (first: row {wrong[0]}, {texts[wrong[0]]!r}); "
            f"expected names of the {len(names)} classes, or their numbers 0..{len(names) - 1}; "
            f"{near_names(texts[wrong[0]], names)}"
        )
    return np.array([places[text] for text in texts], np.int64)


def rows_by_id(ids: np.ndarray, values: np.ndarray, samples: int, where: str) -> np.ndarray:
    """Return the row of each sample in ascending order of ids: int64 [n]. A repeated row counts once.

    `ids` int64 [N], `values` [N, ...]. Raises: StillroomError for ids that the data set of so many samples has not,
    and for two different answers on one sample.
    """
    if len(unknown := np.unique(ids[(ids < 0) | (ids >= samples)])):
        raise StillroomError(
            f"{where}: found {len(unknown)} ids of no sample ({named(unknown)}); expected 0..{samples - 1}, the "
            f"samples in the data set's order; correct the ids"
        )
    _, first, place = np.unique(ids, return_index=True, return_inverse=True)
    other = (values != values[first[place]]).reshape(len(ids), -1).any(-1)
    if other.any():
        twice = np.unique(ids[other])
        raise StillroomError(
            f"{where}: found {len(twice)} samples with different answers (ids {named(twice)}); expected one answer a "
            f"sample; keep one row of each"
        )
    return first


# -- a second look ----------------------------------------------------------------------------------------------------


def order_doubt(predicted: np.ndarray, labels: np.ndarray, classes: Sequence[str]) -> str | None:
    """Return why these answers seem to be mixed up, judged on rows with labels: int64 [n], [n]; None where they don't.

    Another order of the classes that is right far more often is the sign of a wrong one, also for two classes; no
    better than a constant answer is the sign of wrong ids.
    """
    counts = np.zeros((len(classes), len(classes)))
    np.add.at(counts, (predicted, labels), 1)
    of, to = linear_sum_assignment(-counts)
    accuracy, best = np.trace(counts) / len(labels), counts[of, to].sum() / len(labels)
    commonest = counts.sum(0).max() / len(labels)
    if best > accuracy + 0.2 and best > 1.2 * commonest:
        moved = [f"{classes[a]!r} for {classes[b]!r}" for a, b in zip(of, to, strict=True) if a != b]
        return f"in another order of classes they would be right on {best:.3f} ({', '.join(moved[:4])})"
    if accuracy <= commonest:
        return f"one class for all would be right on {commonest:.3f}; are ids and classes in the right order?"
    return None
