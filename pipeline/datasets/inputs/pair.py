"""A text and its translation as numbers of pieces: what a translator reads, and what it is to write."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, ClassVar

import pandas as pd
import torch
from pydantic import Field
from torch import Tensor

from pipeline.datasets.columns import as_texts
from pipeline.errors import StillroomError, near_names
from pipeline.translation.vocabulary import NO_ANSWER, PAD, SPECIAL, Vocabulary, forced


@dataclass(frozen=True)
class Pair:
    """The pieces of a text and of its translation, the latter shifted right by one: int64 [B, 2, L], L = length.

    Texts are cut after L pieces, of which the last says that they end. `pieces` is how many the joint vocabulary has
    at most, which the train rows' texts of both columns decide, whatever the rows' order.
    """

    text: str = "english"
    translation: str = "spanish"
    length: Annotated[int, Field(strict=True, ge=2)] = 24
    pieces: Annotated[int, Field(strict=True, gt=len(SPECIAL))] = 2000
    version: ClassVar[int] = 1
    gives: ClassVar[str] = "pairs"
    learns: ClassVar[bool] = True
    is_costly: ClassVar[bool] = False
    naming: ClassVar[tuple[str, ...]] = ("text", "translation")

    @property
    def columns(self) -> tuple[str, str]:
        """The columns it reads."""
        return (self.text, self.translation)

    def fit(self, train: pd.DataFrame, raw: Path) -> "FittedPair":
        """Return the pair with the vocabulary of the train rows; one without a translation still lends its source.

        Raises StillroomError for a column that isn't there, for rows without a text, and for fewer pieces than the
        texts have characters.
        """
        for column in self.columns:
            if column not in train:
                raise StillroomError(
                    f"input of kind pair: found no column {column!r}; expected one of {len(train.columns)}; "
                    f"{near_names(column, map(str, train))}"
                )
        texts = [text for column in self.columns for text in as_texts(train[column]) if text is not None]
        return FittedPair(self, Vocabulary.learn(texts, self.pieces))


@dataclass(frozen=True)
class FittedPair:
    """A pair with the vocabulary that cuts its texts."""

    options: Pair
    vocabulary: Vocabulary

    @property
    def shape(self) -> tuple[int, ...]:
        """(2, L)."""
        return (2, self.options.length)

    def read(self, frame: pd.DataFrame) -> Tensor:
        """Return the source's pieces, and what a model is shown while it writes the target: int64 [B, 2, L].

        The latter begins with BOS; of a record without a target it is PAD throughout, as is a source that is missing.
        """
        sources = self._pieces(frame[self.options.text])
        return torch.stack([sources.clamp(min=PAD), forced(self.tokens(frame))], dim=1)

    def tokens(self, frame: pd.DataFrame) -> Tensor:
        """Return the target's pieces, EOS the last: int64 [B, L], NO_ANSWER behind it and where there is no target."""
        return self._pieces(frame[self.options.translation])

    def hide(self, inputs: Tensor, is_hidden: Tensor) -> Tensor:
        """Return inputs without the target where bool [B] is true: int64 [B, 2, L]."""
        shown = inputs.clone()
        shown[is_hidden.to(inputs.device), 1] = PAD
        return shown

    def _pieces(self, column: pd.Series) -> Tensor:
        """Return the pieces of a column's texts: int64 [B, L], NO_ANSWER behind EOS and where one is missing."""
        texts = as_texts(column)
        rows = self.vocabulary.encode([text or "" for text in texts], self.options.length)
        is_missing = torch.tensor([text is None for text in texts], dtype=torch.bool)
        return rows.masked_fill((rows == PAD) | is_missing[:, None], NO_ANSWER)
