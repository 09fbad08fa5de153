"""Which figures models are compared by, and how people read them: those of classes, of real numbers, of pictures."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Column:
    """A figure of a row of `results.json`, by `name`; people read it times `scale`, a difference in `points`."""

    name: str
    title: str
    scale: float
    digits: int
    points: str
    less_is_better: bool

    @property
    def unit(self) -> str:
        """What stands behind its value: "% accuracy", "RMSE"."""
        title, _, unit = self.title.partition(", ")
        return f"{unit} {title}".strip()


@dataclass(frozen=True)
class Figures:
    """What a table shows: the `main` figure first, `second` beside it where differences are told."""

    columns: tuple[Column, ...]

    @property
    def main(self) -> Column:
        """The figure that decides."""
        return self.columns[0]

    @property
    def second(self) -> Column:
        """The other one that differences are told of."""
        return next(column for column in self.columns if column.name in ("nll", "mae", "class_agreement"))

    @property
    def are_real(self) -> bool:
        """Whether they are of real numbers."""
        return self is not CLASSES

    @property
    def are_draws(self) -> bool:
        """Whether they are of pictures, or other numbers of which many would do."""
        return self is DRAWS

    @property
    def better(self) -> str:
        """What people are told of the direction."""
        said = [f"{'less' if c.less_is_better else 'more'} {c.title.split(',')[0]}" for c in (self.main, self.second)]
        words = ", ".join(said)
        return f"{words[0].upper()}{words[1:]} is better"


CLASSES = Figures(
    (
        Column("accuracy", "accuracy, %", 100, 2, "points", False),
        Column("f1", "macro F1, %", 100, 2, "points", False),
        Column("nll", "NLL, nats", 1, 3, "nats", True),
        Column("ece", "ECE, %", 100, 1, "points", True),
    )
)
REALS = Figures(
    (
        Column("rmse", "RMSE", 1, 1, "of RMSE", True),
        Column("mae", "MAE", 1, 1, "of MAE", True),
        Column("skill", "skill, %", 100, 1, "points", False),
        Column("r2", "R²", 1, 3, "of R²", False),
    )
)
MORE = (  # where rows have them
    Column("auroc", "AUROC", 1, 3, "of AUROC", False),
    Column("group_gap", "gap between groups, %", 100, 1, "points", True),
    Column("ndcg10", "NDCG@10", 1, 3, "of NDCG", False),
    Column("coverage10", "coverage@10, %", 100, 1, "points", False),
)
DRAWS = Figures(
    (
        Column("frechet", "Fréchet distance", 1, 1, "of Fréchet distance", True),
        Column("class_agreement", "class agreement, %", 100, 1, "points", False),
        Column("energy", "energy distance", 1, 3, "of energy distance", True),
        Column("rmse", "RMSE", 1, 3, "of RMSE", True),
    )
)
ALL = tuple(dict.fromkeys(column.name for figures in (CLASSES, REALS, DRAWS) for column in figures.columns))


def figures_of(rows: Iterable[Mapping[str, Any]]) -> Figures:
    """Return the figures that rows of `results.json` have."""
    rows = list(rows)
    if any(row.get("frechet") is not None for row in rows):
        return DRAWS
    return REALS if any(row.get("rmse") is not None for row in rows) else CLASSES


def more_of(rows: Iterable[Mapping[str, Any]]) -> tuple[Column, ...]:
    """Return what else rows of `results.json` have to show."""
    found = {name for row in rows for name, value in row.items() if value is not None}
    return tuple(column for column in MORE if column.name in found)
