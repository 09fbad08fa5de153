"""What fusions of sentences are given, return and are.

Sentences can't be averaged: a fusion chooses among those that the teachers wrote. Each row is fused by itself, so
blocks don't matter.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Self

import numpy as np
import torch
from torch import Tensor

from pipeline.errors import StillroomError
from pipeline.fusion.base import Strategy, name_of

NOTHING = -np.inf  # the score of a place where a teacher proposes nothing


@dataclass(frozen=True)
class Proposed:
    """What all teachers wrote for one row: `texts`, whose each is, `owners`, and its `score`, in the teacher's order.

    A score is a log-probability, the higher the likelier to its teacher; 0 from a rule, which has none.
    """

    texts: tuple[str, ...]
    owners: tuple[int, ...]
    scores: tuple[float, ...]


@dataclass(frozen=True, eq=False)
class Proposals:
    """Rows of proposals: `tokens` of each teacher int64 [B, K, L], and what they say, row by row.

    `references` are what the rows' labels say, None where there is none or it may not be seen.
    """

    tokens: tuple[Tensor, ...]
    rows: Sequence[Proposed]
    references: Sequence[str | None]

    def __len__(self) -> int:
        return len(self.rows)

    @property
    def num_teachers(self) -> int:
        """T."""
        return len(self.tokens)


@dataclass(frozen=True, eq=False)
class FusedSentences:
    """What a fusion says of rows.

    `tokens` int64 [B, L], 0 behind the end; `weights` float32 [B, T] say who wrote the sentence, shared where several
    did, 0 where nobody proposed any; `disagreement` float32 [B] is 1 minus the mean similarity of a row's proposals,
    each two of them once by their teachers' weights.
    """

    tokens: Tensor
    weights: Tensor
    disagreement: Tensor


@dataclass(frozen=True)
class SentenceFusion(Strategy):
    """A strategy for whole sentences."""

    @property
    def is_fitted_on_rows(self) -> bool:
        """Whether `fit` looks at rows at all."""
        return type(self).fit is not SentenceFusion.fit

    def fit(self, proposals: Proposals) -> Self:
        """Return a copy fitted on rows that no teacher was trained on; this very strategy where nothing is fitted."""
        return self

    def choose(self, row: Proposed, reference: str | None, weights: Sequence[float]) -> int:
        """Return the place of the chosen proposal; `weights` [T] are the teachers', and a row has one proposal."""
        raise NotImplementedError

    def teacher_weights(self, num_teachers: int) -> np.ndarray:
        """Return how much each teacher's proposals count: float64 [T]. Raises StillroomError for other teachers."""
        if "weights" not in self.state:
            return np.full(num_teachers, 1 / num_teachers)
        found = self.state["weights"].double().numpy()
        if len(found) != num_teachers:
            raise StillroomError(
                f"fusion {name_of(self)!r}: proposals of {num_teachers} teachers; expected the {len(found)} it was "
                f"fitted on; fit again with these teachers"
            )
        return found


def proposals_of(
    tokens: Sequence[Tensor], scores: Sequence[Tensor], texts: Sequence[Sequence[str]], references: Sequence[str | None]
) -> Proposals:
    """Return rows of proposals: of each teacher tokens [B, K, L], scores [B, K] and texts, B * K of them."""
    rows = []
    for row in range(len(references)):
        said, owners, values = list[str](), list[int](), list[float]()
        for teacher, own in enumerate(scores):
            count = own.shape[1]
            for place in range(count):
                if own[row, place] > NOTHING:
                    said.append(texts[teacher][row * count + place])
                    owners.append(teacher)
                    values.append(float(own[row, place]))
        rows.append(Proposed(tuple(said), tuple(owners), tuple(values)))
    return Proposals(tuple(tokens), rows, references)


def tokens_of(proposals: Proposals, row: int, text: str) -> Tensor:
    """Return the tokens of a row's proposal that says this, the first such: int64 [L]."""
    places = dict[int, int]()
    for said, owner in zip(proposals.rows[row].texts, proposals.rows[row].owners, strict=True):
        place = places.get(owner, 0)
        if said == text:
            return proposals.tokens[owner][row, place]
        places[owner] = place + 1
    return torch.zeros_like(proposals.tokens[0][row, 0])
