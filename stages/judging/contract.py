"""What a report asks of whoever judges what answers, row by row, don't tell."""

from collections.abc import Callable, Iterable
from typing import Protocol

from torch import Tensor

from pipeline.report import Grid, Part

SHOWN = ("hard_labels", "uniform_mean")  # of a student's baselines, in a grid
Answers = Callable[[Part], Tensor]


class Judging(Protocol):
    """A judge of the test rows of one recipe."""

    def figures(self, answers: Tensor) -> dict[str, float]:
        """Return the figures of a model's answers on the test rows: [N, ...]."""
        ...

    def facts(self) -> list[tuple[str, str]]:
        """Return what the page says of the judge."""
        ...

    def grid(self, parts: Iterable[Part], answers: Answers) -> Grid:
        """Return some test rows as each model answers them, and as they are."""
        ...


def shown_as(part: Part) -> str | None:
    """Return what a grid calls a model, None of one that it leaves out."""
    kind, name = part.row["kind"], part.row["name"]
    if kind == "baseline":
        return name.replace("_", " ") if name in SHOWN else None
    return f"{name} (fusion)" if kind == "fusion" else str(name)
