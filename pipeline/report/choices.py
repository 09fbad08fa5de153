"""What calibration rows chose, and from what: a sweep's trials, an ensemble's members, the losses tried for a student.

Test rows are shown beside them and choose nothing.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from statistics import fmean
from typing import Any

from pipeline.report.parts import STUDENT, Part
from pipeline.report.summary import BASELINES

UNFINISHED = "not finished: not trained yet, stopped, or diverged"
MOST_TRIALS = 12  # of all sweeps together that the league still lists one by one


@dataclass(frozen=True)
class Trial:
    """A student of a sweep: its value of each key, how many seeds are finished, and `scores`, means over them.

    "calibration_nll" is in nats, "calibration_accuracy" and "test_accuracy" are 0-1; without a finished seed there are
    none, and `fault` says why.
    """

    name: str
    values: Mapping[str, Any]
    seeds: int
    scores: Mapping[str, float] = field(default_factory=dict)
    fault: str = ""


@dataclass(frozen=True)
class SweepTable:
    """A sweep: the keys it goes over, and its trials by NLL on calibration rows, those without a finished seed last.

    `seeds` is how many each trial has when all are finished.
    """

    title: str
    keys: Sequence[str]
    seeds: int
    trials: Sequence[Trial]

    @property
    def finished(self) -> list[Trial]:
        """The trials that have figures."""
        return [trial for trial in self.trials if trial.seeds]

    @property
    def best(self) -> Trial | None:
        """The trial with the lowest NLL on calibration rows of those with the most seeds, None while none is there."""
        most = max((trial.seeds for trial in self.trials), default=0)
        return next((trial for trial in self.finished if trial.seeds == most), None)

    def has(self, student: str) -> bool:
        """Whether a student is one of its trials, or a later generation of one."""
        return student.startswith(f"{self.title}.")


@dataclass(frozen=True)
class Joined:
    """One ensemble: its members' accuracy on test rows, how often each was picked, and its own figures.

    `nlls` are those of the mixture on calibration rows after each pick, nats.
    """

    role: str
    seed: int
    members: Sequence[tuple[str, float, int]]
    nlls: Sequence[float]
    accuracy: float
    parameters: int | None

    @property
    def title(self) -> str:
        """How people call what its members are."""
        return BASELINES.get(self.role, self.role)

    @property
    def kept(self) -> int:
        """How many members were picked at least once."""
        return sum(picks > 0 for _, _, picks in self.members)

    @property
    def accuracies(self) -> list[float]:
        """Each member's accuracy on test rows."""
        return [accuracy for _, accuracy, _ in self.members]


@dataclass(frozen=True)
class EnsembleTable:
    """A student that is an ensemble, and its baselines that are some: every role and seed that is finished."""

    student: str
    runs: Sequence[Joined]


@dataclass(frozen=True)
class LossTable:
    """The losses that were tried for a student: NLL, accuracy and ECE on calibration rows, by NLL."""

    student: str
    winner: str
    candidates: Mapping[str, Mapping[str, float]]


def sweep_table(
    title: str,
    values: Mapping[str, Mapping[str, Any]],
    parts: Sequence[Part],
    *,
    seeds: int,
    faults: Mapping[str, str] | None = None,
) -> SweepTable:
    """Return a sweep's table. `values`: the swept keys of each trial by its name; `title`: what those names begin with.

    Trials of one NLL keep their order, in which they are numbered. `faults`: why trials are missing, where it is known.
    """
    students: dict[str, list[Part]] = {}
    for part in parts:
        if part.row["kind"] == STUDENT and part.manifest is not None:
            students.setdefault(part.row["name"], []).append(part)
    why = faults or {}
    trials = [_trial(name, own, students.get(name, []), why.get(name, UNFINISHED)) for name, own in values.items()]
    ordered = sorted(trials, key=lambda trial: trial.scores.get("calibration_nll", math.inf))
    return SweepTable(title, list(next(iter(values.values()), {})), seeds, ordered)


def _trial(name: str, values: Mapping[str, Any], parts: Sequence[Part], fault: str) -> Trial:
    if not parts:
        return Trial(name, values, 0, fault=fault)
    calibrated = [part.manifest.metrics["calibration"] for part in parts if part.manifest is not None]
    scores = {f"calibration_{metric}": fmean(own[metric] for own in calibrated) for metric in ("nll", "accuracy")}
    return Trial(name, values, len(parts), {**scores, "test_accuracy": fmean(part.row["accuracy"] for part in parts)})


def ensemble_tables(parts: Sequence[Part]) -> list[EnsembleTable]:
    """Return a table of each student that has a finished ensemble, in the order of the parts."""
    found: dict[str, list[Joined]] = {}
    for part in parts:
        if part.manifest is not None and "counts" in part.manifest.details:
            found.setdefault(part.row["student"], []).append(_joined(part, part.manifest.details))
    return [EnsembleTable(student, runs) for student, runs in found.items()]


def _joined(part: Part, details: Mapping[str, Any]) -> Joined:
    row, picks = part.row, details["counts"]
    names = sorted(picks, key=_number_of)  # a manifest sorts its keys as text: m10 before m2
    members = zip(names, details["members_accuracy"], (picks[name] for name in names), strict=True)
    return Joined(
        role=STUDENT if row["kind"] == STUDENT else row["name"],
        seed=row["seed"],
        members=list(members),
        nlls=details["calibration_nll"],
        accuracy=row["accuracy"],
        parameters=row["params"],
    )


def _number_of(member: str) -> int:
    return int(member.rpartition(".m")[2])


def loss_table(student: str, details: Mapping[str, Any]) -> LossTable:
    """Return the table of a choice's manifest: `details` has the "winner" and, by candidate, "calibration" figures."""
    ordered = sorted(details["calibration"].items(), key=lambda item: item[1]["nll"])
    return LossTable(student, details["winner"], dict(ordered))


def listed(parts: Sequence[Part], sweeps: Sequence[SweepTable]) -> list[Part]:
    """Return the parts that a page lists one by one: of trials, once they are many, the best of each sweep alone."""
    if sum(len(sweep.finished) for sweep in sweeps) <= MOST_TRIALS:
        return list(parts)
    best = {sweep.best.name for sweep in sweeps if sweep.best}
    students = [part.row.get("student") or "" for part in parts]
    return [
        part
        for part, student in zip(parts, students, strict=True)
        if student in best or not any(sweep.has(student) for sweep in sweeps)
    ]
