"""An input of one source's columns, which says by itself whether a record has the source at all.

Whoever reads it sees that: numbers begin with 1 where the record has the source, and are 0 throughout where it has not;
words and codes are then 0 and a text is empty, as they are of a source that has nothing to say. Trade: a number more a
vector, in return a model, and whoever wraps it, needs nothing but its input to know what it was not shown.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from torch import Tensor

from pipeline.datasets.columns import presence_column
from pipeline.datasets.inputs.contract import Fitted, Input
from pipeline.errors import StillroomError

SOURCE = "source"  # the option of any kind that restricts it to one

HAS_SOURCE: dict[str, Callable[[Any], Tensor]] = {  # by what an input gives: bool [B] of a batch of it
    "numbers": lambda numbers: numbers[:, 0] > 0.5,
    "words": lambda ids: (ids != 0).any(dim=1),
    "codes": lambda codes: (codes != 0).any(dim=1),
    "text": lambda texts: torch.tensor([bool(text.strip()) for text in texts], dtype=torch.bool),
}


@dataclass(frozen=True)
class OfSource:
    """An input `made` of the columns `own` of a source: float32 [B, 1 + D] of vectors, anything else as it is.

    What it learns, it learns from train records that have the source.
    """

    made: Input
    source: str
    own: tuple[str, ...]
    naming = ()

    @property
    def version(self) -> int:
        """That of what it is made of, for it adds nothing that could change."""
        return self.made.version

    @property
    def gives(self) -> str:
        """What a model gets."""
        return self.made.gives

    @property
    def learns(self) -> bool:
        """Whether it must be fitted before it is read."""
        return self.made.learns

    @property
    def is_costly(self) -> bool:
        """Whether it is always made of all records at once."""
        return self.made.is_costly

    @property
    def columns(self) -> Any:
        """The columns it reads."""
        return self.own if self.made.columns == "all" else self.made.columns

    def fit(self, train: pd.DataFrame, raw: Path) -> Fitted:
        """Return what reads records. Raises: StillroomError where it learns, and no train record has the source."""
        known = train.loc[train[presence_column(self.source)].to_numpy(bool), list(self.own)]
        if self.learns and not len(known):
            raise StillroomError(
                f"input of source {self.source!r}: found none of {len(train)} train records that has it; expected one "
                f"at least to learn from; read another source"
            )
        return FittedOfSource(self, self.made.fit(known, raw))

    def has_source(self, inputs: Any) -> Tensor:
        """Return which rows of a batch that it gave have the source: bool [B]."""
        return HAS_SOURCE[self.gives](inputs)


class FittedOfSource:
    """An input of a source that has learned what it needs."""

    def __init__(self, options: OfSource, fitted: Fitted):
        self.options, self.fitted = options, fitted
        self.marks = options.gives == "numbers"
        names = getattr(fitted, "names", None)
        self.names = names if names is None or not self.marks else (presence_column(options.source), *names)

    @property
    def shape(self) -> tuple[int, ...]:
        """(1 + D,) of a vector, else that of the input itself."""
        return (1 + self.fitted.shape[0],) if self.marks else self.fitted.shape

    def read(self, frame: pd.DataFrame) -> Tensor | list[str]:
        """Return the input of records: float32 [B, 1 + D] with the mark first, or words, or texts."""
        read = self.fitted.read(frame[list(self.options.own)])
        if not isinstance(read, Tensor) or not self.marks:
            return read
        has_source = torch.tensor(frame[presence_column(self.options.source)].to_numpy(bool)).unsqueeze(1)
        return torch.where(has_source, torch.cat([torch.ones(len(read), 1), read], dim=1), 0.0)
