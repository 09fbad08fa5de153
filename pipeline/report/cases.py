"""Which test rows are worth looking at: where teachers part, where fusing helps, where the student outgrows it."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from pipeline.report.parts import Member


@dataclass(frozen=True)
class Case:
    """A test row, by its position in the split, and why it is shown."""

    reason: str
    position: int


def choose_cases(
    teachers: Sequence[Member],
    fusion: Member | None,
    student: Member | None,
    labels: np.ndarray,
    *,
    best: int,
    each: int = 2,
) -> list[Case]:
    """Return at most `each` rows a reason, none twice: the same answers give the same rows.

    `labels` int64 [N]; `best` is the place of the best teacher;
    """
    right = {id(member): member.predictions == labels for member in [*teachers, fusion, student] if member}
    reasons: list[tuple[str, np.ndarray, np.ndarray]] = []  # why, which rows, how telling each is
    if len(teachers) > 1:
        answers = np.sort([teacher.predictions for teacher in teachers], axis=0)
        different = 1 + (np.diff(answers, axis=0) != 0).sum(axis=0)
        sure = np.mean([teacher.confidence for teacher in teachers], axis=0)
        reasons.append(("The teachers disagree most", different > 1, different + sure))
    if fusion is not None and len(teachers) > 1:
        rescued = right[id(fusion)] & ~right[id(teachers[best])]
        reasons.append(
            (f"The fusion is right, its best teacher ({teachers[best].name}) wrong", rescued, fusion.confidence)
        )
    if fusion is not None and student is not None:
        outgrown = right[id(student)] & ~right[id(fusion)]
        reasons.append(("The student is right, the fusion wrong", outgrown, student.confidence))
    if right:
        confidence = np.mean([member.confidence for member in [*teachers, fusion, student] if member], axis=0)
        reasons.append(("All are wrong, and sure of it", ~np.any(list(right.values()), axis=0), confidence))
    return _most_telling(reasons, labels >= 0, each)


def _most_telling(reasons: Sequence[tuple[str, np.ndarray, np.ndarray]], free: np.ndarray, each: int) -> list[Case]:
    cases, free = list[Case](), free.copy()
    for reason, rows, telling in reasons:
        positions = np.flatnonzero(rows & free)
        chosen = positions[np.argsort(-telling[positions], kind="stable")][:each]
        free[chosen] = False
        cases += [Case(reason, int(position)) for position in chosen]
    return cases
