"""What a page is made of."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np

from pipeline.report.choices import EnsembleTable, LossTable, SweepTable, listed
from pipeline.report.parts import Cost, Member, Part
from pipeline.report.pictures import Grid
from pipeline.report.summary import DISHONEST
from pipeline.report.teaching import Teaching
from pipeline.report.tree import Tree

Sample = np.ndarray | str  # what is shown of a row: a picture uint8 [C, H, W], or a record in words


@dataclass(frozen=True)
class Written:
    """A test row of a text: what it is, what it should become, and what each model makes of it, after its kind."""

    position: int
    text: str
    reference: str
    answers: Sequence[tuple[str, str, str]]  # name, kind, text


@dataclass(frozen=True, eq=False)
class Report:
    """Everything a page is made of.

    `members` answer on the test rows of `labels` int64 [N]: teachers, fusions, then students and hard labels of one
    seed. `fusion` is that of the first student; `disagreement` maps every fusion to its teachers' divergence on
    train rows. `samples` and `train_samples` return what is shown of test positions, and of train positions as view 0
    has them. `strategies` are the details of a league's manifest. Students of `sweeps` have rows as others do. Of real
    numbers there are no members; `errors` hold the rmse of each number, in `unit`, by model, after its kind; where they
    are pictures, a `grid` shows some; of sentences some are `written` out.
    """

    recipe: str
    fingerprint: str
    parts: Sequence[Part]
    missing: Sequence[str]
    classes: Sequence[str]
    members: Sequence[Member]
    labels: np.ndarray
    fusion: str | None
    best_teacher: str | None
    disagreement: Mapping[str, np.ndarray]
    samples: Callable[[np.ndarray], Sequence[Sample]]
    costs: Sequence[Cost]
    facts: Mapping[str, Sequence[tuple[str, str]]]
    teaching: Teaching | None = None
    train_samples: Callable[[np.ndarray], Sequence[Sample]] | None = None
    strategies: Mapping[str, Any] | None = None
    sweeps: Sequence[SweepTable] = ()
    ensembles: Sequence[EnsembleTable] = ()
    losses: Sequence[LossTable] = ()
    trees: Sequence[Tree] = ()
    errors: Mapping[str, tuple[str, Sequence[float]]] = field(default_factory=dict)
    unit: str = ""
    grid: Grid | None = None
    written: Sequence[Written] = ()

    @property
    def rows(self) -> list[dict[str, Any]]:
        """The rows of `results.json`."""
        return [part.row for part in self.parts]

    @cached_property
    def listed(self) -> list[Part]:
        """The parts that the page lists one by one: of many trials of sweeps only the best."""
        return listed(self.parts, self.sweeps)

    def is_honest(self, fusion: str) -> bool:
        """Whether a fusion was fitted on rows that are no memory of its teachers."""
        rows = (row for row in self.rows if (row["kind"], row["name"]) == ("fusion", fusion))
        return bool(next(rows, {}).get("honest", True))

    def titled(self, fusion: str) -> str:
        """Return a fusion's name, marked where it was fitted on train rows."""
        return fusion if self.is_honest(fusion) else f"{fusion} ({DISHONEST})"

    def answering(self, fusion: str) -> str:
        """Return what a fusion is called among others that answer."""
        return f"{fusion} (fusion)" if self.is_honest(fusion) else f"{fusion} (fusion, {DISHONEST})"
