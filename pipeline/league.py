"""The league: every strategy as a classifier over answers that are there already, before any student trains.

Figures on calibration rows come from fits that left the row out, so that a flexible strategy can't win by memory; those
on test rows from the fit on all calibration rows.
"""

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from pipeline.errors import StillroomError
from pipeline.fuse import score_targets
from pipeline.fusion import FUSIONS, Target
from pipeline.joined import fitting_rows, held_out_rows
from pipeline.store import TeacherStore

# Every strategy with the options worth comparing; others are tried by adding them to a recipe.
ENTRIES: Mapping[str, tuple[str, dict[str, Any]]] = {
    "mean": ("mean", {}),
    "mean of logits": ("mean", {"of": "logits"}),
    "weighted": ("weighted", {}),
    "weighted by accuracy": ("weighted", {"by": "accuracy"}),
    "weighted by class": ("weighted", {"by": "class"}),
    "vote": ("vote", {}),
    "hard vote": ("vote", {"kind": "hard"}),
    "log-odds vote": ("vote", {"kind": "log_odds"}),
    "Dawid-Skene": ("vote", {"kind": "dawid_skene"}),
    "entropy": ("entropy", {}),
    "confidence": ("confidence", {}),
    "linear pool": ("linear_pool", {}),
    "log pool": ("log_pool", {}),
    "stacking": ("stacking", {}),
    "network": ("network", {}),
    "meta": ("meta", {}),
    "gated": ("gated", {}),
    "random teacher": ("random_teacher", {}),
    "present": ("present", {}),
}


@dataclass(frozen=True)
class Standing:
    """One strategy's place: `scores` by split, or the `fault` that kept it out."""

    name: str
    strategy: str
    options: Mapping[str, Any]
    scores: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    seconds: float = 0.0
    fault: str = ""

    @property
    def nll(self) -> float:
        """NLL on calibration rows that the fit had left out: what a strategy is chosen by."""
        return float(self.scores["calibration"]["nll"])


def standings(
    teachers: Sequence[TeacherStore],
    *,
    calibrate: bool = True,
    calibrate_pool: bool = True,
    entries: Mapping[str, tuple[str, Mapping[str, Any]]] = ENTRIES,
    on_entry: Callable[[str], None] = lambda name: None,
) -> Iterator[Standing]:
    """Yield each strategy's standing over finished teacher stores; no store is written and no teacher runs.

    A strategy that these teachers or rows do not allow has a `fault` instead of scores.
    """
    rows: dict[tuple[str, ...], Any] = {}
    names = [store.name for store in teachers]
    for name, (strategy, options) in entries.items():
        on_entry(name)
        started = time.perf_counter()
        target = Target(FUSIONS[strategy](**options), calibrate_pool)
        try:
            layers = target.fusion.layers
            if layers not in rows:
                rows[layers] = fitting_rows(teachers, calibrate, layers)
            fitted = target.fit(rows[layers])
            scores = {
                split: score_targets(fitted, held_out_rows(teachers, split, calibrate, layers), names)
                for split in ("calibration", "test")
            }
        except StillroomError as error:
            yield Standing(name, strategy, options, fault=str(error))
            continue
        scores["calibration"] |= fitted.judged
        yield Standing(name, strategy, options, scores, time.perf_counter() - started)


def winner(found: Sequence[Standing]) -> Standing:
    """Return the standing of the lowest NLL on calibration rows. Raises StillroomError when no strategy has one."""
    placed = [each for each in found if not each.fault]
    if not placed:
        raise StillroomError(
            f"fusion 'auto': none of {len(found)} strategies can be used; the first says: {found[0].fault}"
        )
    return min(placed, key=lambda each: each.nll)
