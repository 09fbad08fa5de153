"""From a strategy for sentences to what is stored: fitted on rows no teacher was trained on, then row by row."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Self

import numpy as np
import torch

from pipeline.fusion.base import one_thread, with_fitted
from pipeline.fusion.sentences.base import FusedSentences, Proposals, Proposed, SentenceFusion, tokens_of
from pipeline.translation.similarity import similarities


@dataclass(frozen=True)
class SentenceTarget:
    """A strategy that chooses among sentences."""

    fusion: SentenceFusion

    def fit(self, proposals: Proposals) -> Self:
        """Return a copy fitted on rows that no teacher was trained on; on one thread (see `one_thread`)."""
        with one_thread():
            return with_fitted(self, fusion=self.fusion.fit(proposals))

    def fuse(self, proposals: Proposals) -> FusedSentences:
        """Return the sentence of each row; no piece where nobody proposes anything."""
        weights = self.fusion.teacher_weights(proposals.num_teachers)
        tokens, shares, apart = [], [], []
        for row, (said, reference) in enumerate(zip(proposals.rows, proposals.references, strict=True)):
            text = said.texts[self.fusion.choose(said, reference, weights.tolist())] if said.texts else ""
            tokens.append(tokens_of(proposals, row, text))
            shares.append(writers(said, text, len(weights)))
            apart.append(disagreement(said, weights))
        return FusedSentences(torch.stack(tokens), torch.tensor(np.array(shares)).float(), torch.tensor(apart).float())

    def fitted(self) -> dict[str, Any]:
        """Return what was fitted, as JSON for people."""
        return self.fusion.fitted()

    @property
    def state(self) -> dict[str, np.ndarray]:
        """Everything that was fitted, as arrays: with it no fit has to be repeated."""
        return {name: values.numpy() for name, values in self.fusion.state.items()}

    def restored(self, state: Mapping[str, np.ndarray]) -> Self:
        """Return a copy that holds what was fitted before."""
        return with_fitted(self, fusion=self.fusion.with_state(**state))


def writers(said: Proposed, text: str, num_teachers: int) -> np.ndarray:
    """Return who wrote a sentence, each of several its share: float64 [T]."""
    wrote = {owner for owner, each in zip(said.owners, said.texts, strict=True) if each == text}
    shares = np.zeros(num_teachers)
    shares[list(wrote)] = 1 / max(1, len(wrote))
    return shares


def disagreement(said: Proposed, weights: np.ndarray) -> float:
    """Return 1 minus the mean similarity of two teachers' first sentences, by their weights; 0 of fewer than two."""
    firsts = {owner: place for place, owner in reversed(list(enumerate(said.owners)))}
    owners = sorted(firsts)
    if len(owners) < 2:
        return 0.0
    alike = similarities([said.texts[firsts[owner]] for owner in owners])
    both = np.outer(weights[owners], weights[owners])
    np.fill_diagonal(both, 0.0)
    return float(1 - (alike * both).sum() / both.sum())
