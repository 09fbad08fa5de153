"""What the rows add up to: a league with intervals, paired differences, and when a cache has paid for itself.

Intervals are Student's t over seeds of training on one fixed test split: they say whether another run would tell the
same, not whether another test split would.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from pipeline.metrics import Interval, PairedInterval, mean_interval, paired_interval
from pipeline.report import numbers
from pipeline.report.columns import ALL, Column, figures_of

BASELINES = {"hard_labels": "hard labels", "best_single": "best single teacher", "uniform_mean": "uniform mean"}
DISHONEST = "fitted on training rows"
Row = Mapping[str, Any]


@dataclass(frozen=True)
class Entry:
    """All seeds of one name: a line of the league."""

    kind: str
    name: str
    student: str | None
    rows: Sequence[Row]

    @property
    def title(self) -> str:
        """How people call it; a fusion that was fitted on train rows says so."""
        name = BASELINES.get(self.name, self.name) if self.kind == "baseline" else self.name
        return name if self.rows[0].get("honest", True) else f"{name} ({DISHONEST})"

    @property
    def params(self) -> int | None:
        """Its number of parameters, None where it has no such thing."""
        return self.rows[0]["params"]

    def values(self, metric: str) -> list[float]:
        """Return a metric of each seed that has it."""
        return [row[metric] for row in self.rows if row.get(metric) is not None]

    def interval(self, metric: str) -> Interval | None:
        """Return the mean over seeds with its 95 % interval, None where no row has the metric."""
        values = self.values(metric)
        return mean_interval(values) if values else None

    @cached_property
    def seconds(self) -> float | None:
        """The mean seconds of a run."""
        interval = self.interval("seconds")
        return None if interval is None else interval.mean


@dataclass(frozen=True)
class Difference:
    """A student minus one of its baselines, metric by metric, over the seeds that both have."""

    student: str
    baseline: str
    seeds: int
    intervals: Mapping[str, PairedInterval]
    main: Column

    @property
    def title(self) -> str:
        """How people call the baseline."""
        return BASELINES[self.baseline]

    @property
    def verdict(self) -> str:
        """What the interval of the main figure, accuracy or error, allows to say."""
        main, sign = self.intervals[self.main.name], -1 if self.main.less_is_better else 1
        if sign * main.low > 0 and sign * main.high > 0:
            return "Distilling made it more accurate."
        if sign * main.low < 0 and sign * main.high < 0:
            return "Distilling made it less accurate."
        return "One seed cannot tell it from chance." if self.seeds == 1 else "These seeds do not tell the two apart."


@dataclass(frozen=True)
class Strategy:
    """A strategy in the league of all: its figures by split, or the `fault` that kept it out."""

    name: str
    is_winner: bool
    scores: Mapping[str, Mapping[str, float]]
    fault: str


@dataclass(frozen=True)
class BreakEven:
    """Seconds of teachers with and without a cache.

    `cache_seconds`: dump and fuse, once. `online_seconds`: the teachers' forward passes on the rows shown to one
    student, were they in its training loop.
    """

    cache_seconds: float
    online_seconds: float
    rows: float

    @property
    def ratio(self) -> float:
        """The students' number at which both cost the same, infinite when teachers cost nothing."""
        return self.cache_seconds / self.online_seconds if self.online_seconds else math.inf

    @property
    def students(self) -> int | None:
        """The first whole number of students by which the cache has paid for itself, None for never."""
        return max(1, math.ceil(self.ratio)) if math.isfinite(self.ratio) else None


def title_of(name: str) -> str:
    """Return how people call a baseline."""
    return BASELINES[name]


def league(rows: Iterable[Row]) -> list[Entry]:
    """Return one entry a name, in the order in which the rows first name them."""
    groups: dict[tuple[str, str, str | None], list[Row]] = {}
    for row in rows:
        groups.setdefault((row["kind"], row["name"], row.get("student")), []).append(row)
    return [Entry(*key, found) for key, found in groups.items()]


def differences(rows: Sequence[Row]) -> list[Difference]:
    """Return each student minus each of its baselines, paired by seed; pairs that aren't there are left out."""
    entries = league(rows)
    found = []
    for student in (entry for entry in entries if entry.kind == "student"):
        own = {entry.name: entry for entry in entries if entry.kind == "baseline" and entry.student == student.student}
        found += [_difference(student, own[name]) for name in BASELINES if name in own]
    return [difference for difference in found if difference is not None]


def _difference(student: Entry, baseline: Entry) -> Difference | None:
    mine, theirs = ({row["seed"]: row for row in entry.rows} for entry in (student, baseline))
    seeds = sorted(mine.keys() & theirs.keys())
    if not seeds:
        return None
    known = [name for name in ALL if all(row.get(name) is not None for s in seeds for row in (mine[s], theirs[s]))]
    pairs = {name: ([mine[s][name] for s in seeds], [theirs[s][name] for s in seeds]) for name in known}
    intervals = {name: paired_interval(*pair) for name, pair in pairs.items()}
    return Difference(student.name, baseline.name, len(seeds), intervals, figures_of(student.rows).main)


def break_even(rows: Sequence[Row], student: str) -> BreakEven | None:
    """Return when the cache of a student's fusion pays for itself, None while a measurement is missing."""
    runs = [row for row in rows if (row["kind"], row["name"]) == ("student", student)]
    fusion = next((row for row in rows if runs and (row["kind"], row["name"]) == ("fusion", runs[0]["fusion"])), None)
    if fusion is None or fusion["seconds"] is None:
        return None
    teachers = [row for row in rows if row["kind"] == "teacher" and row["name"] in fusion["mean_weights"]]
    measured = all(row["forward_seconds"] is not None and row["dump_seconds"] is not None for row in teachers)
    if not measured or len(teachers) < len(fusion["mean_weights"]):
        return None
    shown = sum(run["rows"] for run in runs) / len(runs)
    a_row = sum(row["forward_seconds"] / row["teacher_forwards"] for row in teachers)
    return BreakEven(sum(row["dump_seconds"] for row in teachers) + fusion["seconds"], shown * a_row, shown)


def strategies(league: Mapping[str, Any]) -> list[Strategy]:
    """Return the strategies of a league's manifest by NLL on calibration rows, those with a fault last."""
    found = [
        Strategy(row["name"], row["name"] == league["name"], row["scores"], row["fault"]) for row in league["rows"]
    ]
    return sorted(found, key=lambda each: math.inf if each.fault else each.scores["calibration"]["nll"])


def headline_text(rows: Sequence[Row]) -> str:
    """Return one line: the first student minus hard labels, or what there is instead."""
    main = figures_of(rows).main
    for difference in differences(rows):
        if difference.baseline == "hard_labels":
            found = difference.intervals[main.name]
            points = numbers.signed(found.mean * main.scale, main.digits)
            interval = numbers.limits(found, scale=main.scale, digits=main.digits) or "(one seed, no interval)"
            return f"{difference.student} minus hard labels {points} {main.points} {interval}"
    students = [entry for entry in league(rows) if entry.kind == "student"]
    if not students:
        return "no student is finished yet"
    mean = mean_interval(students[0].values(main.name))
    shown = numbers.plus_minus(mean, scale=main.scale, digits=main.digits)
    return f"{students[0].name} {shown} {main.unit}; no baseline to compare"
