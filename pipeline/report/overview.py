"""Recipes side by side: what came of each, as one page that needs nothing but itself, and the same for machines."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from pipeline.metrics import Interval, PairedInterval
from pipeline.report.columns import BOXES, CLASSES, DRAWS, REALS, SENTENCES, Column
from pipeline.report.page import template
from pipeline.report.summary import BASELINES, Entry, Row, differences, league

HARD_LABELS = "hard_labels"
MAINS = (DRAWS.main, BOXES.main, SENTENCES.main, CLASSES.main, *REALS.columns)  # the first that its rows have


@dataclass(frozen=True)
class Outcome:
    """What came of a recipe: its rows of `results.json`, the `error` that ended it, or both.

    `labelled` of `train` rows show their label. `page` is where its own report lies, from this one.
    """

    recipe: str
    task: str | None = None
    data: str | None = None
    labelled: int | None = None
    train: int | None = None
    rows: Sequence[Row] = ()
    page: str | None = None
    error: str | None = None


@dataclass(frozen=True)
class Taught:
    """A student beside its baselines: the main figure of each, and the student minus the one on hard labels."""

    entry: Entry
    student: Interval
    fused: float | None
    baselines: Mapping[str, Interval]
    difference: PairedInterval | None


@dataclass(frozen=True)
class Line:
    """What the page says of a recipe. `seconds` are those of everything that it made, each artefact once."""

    outcome: Outcome
    main: Column | None = None
    teachers: Mapping[str, float] = field(default_factory=dict)
    taught: Sequence[Taught] = ()
    seconds: float | None = None


def line_of(outcome: Outcome) -> Line:
    """Return a recipe's line: its teachers, and of its students the first and all that have a hard-label baseline."""
    entries = league(outcome.rows)
    main = next((main for main in MAINS if any(entry.values(main.name) for entry in entries)), None)
    if main is None:
        return Line(outcome)
    teachers = {e.name: e.values(main.name)[0] for e in entries if e.kind == "teacher" and e.values(main.name)}
    gains = {each.student: each for each in differences(outcome.rows) if each.baseline == HARD_LABELS}
    taught = [
        _taught(main, entry, entries, gains[entry.name].intervals.get(main.name) if entry.name in gains else None)
        for entry in entries
        if entry.kind == "student" and entry.values(main.name)
    ]
    seconds = {row["fingerprint"]: row["seconds"] for row in outcome.rows if row["seconds"] is not None}
    shown = [each for place, each in enumerate(taught) if not place or each.difference is not None]
    return Line(outcome, main, teachers, shown, sum(seconds.values()) if seconds else None)


def _taught(main: Column, student: Entry, entries: Sequence[Entry], gain: PairedInterval | None) -> Taught:
    own = {e.name: e for e in entries if e.kind == "baseline" and e.student == student.student and e.values(main.name)}
    fusion = next((e for e in entries if (e.kind, e.name) == ("fusion", student.rows[0]["fusion"])), None)
    interval = student.interval(main.name)
    assert interval is not None  # whoever asks has looked
    return Taught(
        entry=student,
        student=interval,
        fused=next(iter(fusion.values(main.name)), None) if fusion is not None else None,
        baselines={name: found for name in BASELINES if name in own and (found := own[name].interval(main.name))},
        difference=gain,
    )


def overview(outcomes: Sequence[Outcome]) -> dict[str, Any]:
    """Return what `overview.json` says, in the recipes' order; what a recipe doesn't have is None."""
    return {"recipes": [_as_json(line_of(outcome)) for outcome in outcomes]}


def _as_json(line: Line) -> dict[str, Any]:
    outcome = line.outcome
    return {
        "recipe": outcome.recipe,
        "task": outcome.task,
        "data": outcome.data,
        "labelled": outcome.labelled,
        "train": outcome.train,
        "metric": None if line.main is None else line.main.name,
        "teachers": dict(line.teachers),
        "students": [
            {
                "name": taught.entry.name,
                "seeds": taught.student.n,
                "student": _limits(taught.student),
                "fused": taught.fused,
                **{name: _limits(taught.baselines.get(name)) for name in BASELINES},
                "minus_hard_labels": _limits(taught.difference),
                "params": taught.entry.params,
                "seconds": taught.entry.seconds,
            }
            for taught in line.taught
        ],
        "seconds": line.seconds,
        "error": outcome.error,
    }


def _limits(interval: Interval | None) -> dict[str, float | None] | None:
    """Return an interval as JSON, which knows no NaN: the limits of one seed are None."""
    if interval is None:
        return None
    low, high = (None if math.isnan(limit) else limit for limit in (interval.low, interval.high))
    return {"mean": interval.mean, "low": low, "high": high}


def render_overview(outcomes: Sequence[Outcome]) -> str:
    """Return the page as HTML."""
    return template("overview.html").render(lines=[line_of(outcome) for outcome in outcomes], baselines=BASELINES)
