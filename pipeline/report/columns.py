"""Which figures models are compared by, and how people read them, whatever was asked for."""

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


Steered = Mapping[str, tuple[str, float]]  # the two figures of learning curves: how each is told, and scaled


@dataclass(frozen=True)
class Figures:
    """What a table shows: the `main` figure first, `second` beside it where differences are told.

    `steered` are the two figures on calibration rows that learning curves show; `note` what people are told of all.
    Rows that have a value of `told_by` are judged by these.
    """

    columns: tuple[Column, ...]
    second_name: str
    steered: Steered
    told_by: str
    note: str = ""

    @property
    def main(self) -> Column:
        """The figure that decides."""
        return self.columns[0]

    @property
    def second(self) -> Column:
        """The other one that differences are told of."""
        return next(column for column in self.columns if column.name == self.second_name)

    @property
    def are_real(self) -> bool:
        """Whether they are of real numbers, in the unit of what is asked for."""
        return self.told_by in ("rmse", "frechet")

    @property
    def are_of_classes(self) -> bool:
        """Whether they are of one class a row."""
        return self is CLASSES

    @property
    def better(self) -> str:
        """What people are told of the direction."""
        said = [f"{'less' if c.less_is_better else 'more'} {c.title.split(',')[0]}" for c in (self.main, self.second)]
        words = ", ".join(said)
        return f"{words[0].upper()}{words[1:]} is better"


NLL = Column("nll", "NLL, nats", 1, 3, "nats", True)
CLASSES = Figures(
    (
        Column("accuracy", "accuracy, %", 100, 2, "points", False),
        Column("f1", "macro F1, %", 100, 2, "points", False),
        NLL,
        Column("ece", "ECE, %", 100, 1, "points", True),
    ),
    "nll",
    {"nll": ("NLL on calibration rows, nats", 1), "accuracy": ("Accuracy on calibration rows, %", 100)},
    "accuracy",
)
REALS = Figures(
    (
        Column("rmse", "RMSE", 1, 1, "of RMSE", True),
        Column("mae", "MAE", 1, 1, "of MAE", True),
        Column("skill", "skill, %", 100, 1, "points", False),
        Column("r2", "R²", 1, 3, "of R²", False),
    ),
    "mae",
    {
        "mse": ("Squared error on calibration rows, standard units", 1),
        "mae": ("Absolute error on calibration rows, standard units", 1),
    },
    "rmse",
)
DRAWS = Figures(
    (
        Column("frechet", "Fréchet distance", 1, 1, "of Fréchet distance", True),
        Column("class_agreement", "class agreement, %", 100, 1, "points", False),
        Column("energy", "energy distance", 1, 3, "of energy distance", True),
        Column("rmse", "RMSE", 1, 3, "of RMSE", True),
    ),
    "class_agreement",
    {
        "energy": ("Energy distance on calibration rows", 1),
        "mse": ("Squared error on calibration rows, standard units", 1),
    },
    "frechet",
    "Fréchet distance: between features that the judge has of made and of real test pictures; class agreement: how "
    "often the judge sees the class that was asked for; energy distance: between made and real pixels; RMSE: to one "
    "real picture of the class, to which a blur is nearer than any picture.",
)
BOXES = Figures(
    (
        Column("ap", "AP, %", 100, 2, "points", False),
        Column("ap50", "AP50, %", 100, 2, "points", False),
        NLL,
    ),
    "ap50",
    {"loss": ("Loss on calibration rows", 1), "accuracy": ("Objects' cells of the right class, %", 100)},
    "ap",
    "AP: average precision of the boxes found, mean over classes and over overlaps of 50 to 95 % with the true ones; "
    "AP50: at 50 %; NLL: of the class of a cell, of which most are background.",
)
SENTENCES = Figures(
    (
        Column("chrf", "chrF, %", 100, 2, "points", False),
        Column("bleu", "BLEU, %", 100, 2, "points", False),
        NLL,
        Column("accuracy", "next piece, %", 100, 1, "points", False),
    ),
    "bleu",
    {"nll": ("NLL of a piece on calibration rows, nats", 1), "accuracy": ("Next piece right, %", 100)},
    "chrf",
    "chrF and BLEU: of whole sentences as each writes them by itself, against the reference; NLL and next piece: of "
    "one piece after the true ones before it. Fused targets of pieces write no sentences, and sentences have no NLL.",
)
KINDS = (DRAWS, BOXES, SENTENCES, REALS, CLASSES)  # rows are judged by the first whose figure they have
MORE = (  # where rows have them
    Column("words_per_second", "words/s", 1, 0, "words/s", False),
    Column("auroc", "AUROC", 1, 3, "of AUROC", False),
    Column("group_gap", "gap between groups, %", 100, 1, "points", True),
    Column("ndcg10", "NDCG@10", 1, 3, "of NDCG", False),
    Column("coverage10", "coverage@10, %", 100, 1, "points", False),
)
ALL = tuple(dict.fromkeys(column.name for figures in reversed(KINDS) for column in figures.columns))


def figures_of(rows: Iterable[Mapping[str, Any]]) -> Figures:
    """Return the figures that rows of `results.json` have."""
    rows = list(rows)
    return next((each for each in KINDS if any(row.get(each.told_by) is not None for row in rows)), CLASSES)


def more_of(rows: Iterable[Mapping[str, Any]]) -> tuple[Column, ...]:
    """Return what else rows of `results.json` have to show."""
    found = {name for row in rows for name, value in row.items() if value is not None}
    return tuple(column for column in MORE if column.name in found)
