"""Sweeps: many students of one kind, from a grid or from random draws; they are students like any other."""

import itertools
import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from pydantic import ValidationError

from pipeline.errors import StillroomError, near_names
from pipeline.views.draws import stream_seed
from stages.recipe import LossEntry, StudentEntry, Sweep

MOST = 10_000  # trials of one sweep
RANGE = {"low", "high", "log", "whole"}


def trials(sweep: Sweep, student: StudentEntry) -> list[StudentEntry]:
    """Return the student of each trial; of a search by Optuna they are known as it goes.

    Raises: StillroomError for a key or a value that a student can't have.
    """
    found = _grid(sweep) if sweep.search == "grid" else _random(sweep)
    students = [trial_of(sweep, student, number, values) for number, values in enumerate(found)]
    return [] if sweep.search == "optuna" else students  # these were drawn to see whether its ranges can be


def values_of(sweep: Sweep, entry: StudentEntry) -> dict[str, Any]:
    """Return what a trial has of each key that is swept over."""
    return {path: _get(entry, path) for path in sweep.over}


def _grid(sweep: Sweep) -> Iterator[dict[str, Any]]:
    for path, values in sweep.over.items():
        if not isinstance(values, list) or not values:
            raise StillroomError(
                f"sweep.{sweep.name}.over.{path}: found {values!r}; expected a list of values for a grid; list them, "
                f'or set search = "random"'
            )
    _check_count(sweep, math.prod(len(values) for values in sweep.over.values()), "list fewer values")
    for chosen in itertools.product(*sweep.over.values()):
        yield dict(zip(sweep.over, chosen, strict=True))


def _random(sweep: Sweep) -> Iterator[dict[str, Any]]:
    _check_count(sweep, sweep.trials, "set trials lower")
    for number in range(sweep.trials):
        draws = np.random.default_rng(stream_seed(sweep.seed, "sweep", number))
        yield {path: _draw(values, draws, f"sweep.{sweep.name}.over.{path}") for path, values in sweep.over.items()}


def _check_count(sweep: Sweep, count: int, remedy: str) -> None:
    if count > MOST:
        raise StillroomError(f"sweep.{sweep.name}: found {count:,} trials; expected {MOST:,} at most; {remedy}")


def _draw(values: Any, draws: np.random.Generator, where: str) -> Any:
    if isinstance(values, Sequence) and not isinstance(values, str) and values:
        return values[int(draws.integers(len(values)))]
    if not isinstance(values, Mapping) or not {"low", "high"} <= values.keys() <= RANGE:
        raise StillroomError(
            f"{where}: found {values!r}; expected a list, or a range such as {{ low = 1e-4, high = 1e-1, log = true }}"
        )
    low, high, is_log = values["low"], values["high"], bool(values.get("log"))
    numbers = all(isinstance(bound, int | float) and not isinstance(bound, bool) for bound in (low, high))
    if not numbers or not low < high or not math.isfinite(high - low) or (is_log and low <= 0):
        raise StillroomError(f"{where}: found low {low!r} and high {high!r}; expected numbers, low below high; mend it")
    drawn = math.exp(draws.uniform(math.log(low), math.log(high))) if is_log else draws.uniform(low, high)
    return round(drawn) if values.get("whole") else float(f"{drawn:.4g}")


def trial_of(sweep: Sweep, student: StudentEntry, number: int, values: Mapping[str, Any]) -> StudentEntry:
    """Return the student of one trial. Raises: StillroomError for a key or a value that a student can't have."""
    said = student.model_dump()
    said |= {"name": f"{student.name}.{sweep.name}.{number}", "seeds": list(sweep.seeds), "baselines": False}
    for path, value in values.items():
        *parents, key = path.split(".")
        here: Any = said
        for parent in parents:
            here = here.get(parent) if isinstance(here, dict) else None
        if not isinstance(here, dict) or key in ("name", "seeds", "baselines"):
            near = near_names(path, [*StudentEntry.model_fields, *(f"loss.{name}" for name in LossEntry.model_fields)])
            raise StillroomError(f"sweep.{sweep.name}.over: unknown key {path!r}; expected a key of a student; {near}")
        here[key] = value
    try:
        return StudentEntry.model_validate(said)
    except ValidationError as error:
        fault = error.errors()[0]
        place = ".".join(map(str, fault["loc"]))
        raise StillroomError(
            f"sweep.{sweep.name}.over: {place}: found {fault['input']!r}; expected: {fault['msg']}; correct it"
        ) from None


def _get(entry: StudentEntry, path: str) -> Any:
    said: Any = entry.model_dump()
    for part in path.split("."):
        said = said[part]
    return said
