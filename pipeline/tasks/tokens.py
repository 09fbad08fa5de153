"""A sentence, piece by piece: at each place, which piece of a vocabulary comes next, after those that are given."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from pipeline.metrics import RowScores, join_scores
from pipeline.store.fields import LOGITS, Truth
from pipeline.tasks.classes import Classes
from pipeline.tasks.contract import Shapes
from pipeline.translation.scores import translation_figures
from pipeline.translation.vocabulary import PAD, Vocabulary
from pipeline.views import Split

KIND = "tokens"


@dataclass(frozen=True)
class Tokens(Classes):
    """The next piece among `names` at each of `length` places; `vocabulary` is how sentences become pieces, as JSON.

    Figures are of pieces that are there, each after the true ones before it; how good whole sentences are that a model
    writes itself is for a judge.
    """

    length: int = 0
    vocabulary: str = ""
    is_plain: ClassVar[bool] = False

    @property
    def attributes(self) -> dict[str, Any]:
        """Its kind, the number of places and the vocabulary."""
        return {"task": {"kind": KIND, "length": self.length, "vocabulary": self.vocabulary}}

    @property
    def shapes(self) -> Shapes:
        """One output: a logit a piece at each place."""
        return {LOGITS: (self.length, len(self.names))}

    @property
    def truth_kept(self) -> Truth:  # type: ignore[override]
        """The piece at each place, -1 behind the end and where hidden."""
        return Truth((self.length,), "int32")

    def truth_at(self, output: str, labels: Tensor, targets: Tensor | None) -> Tensor:
        """Return the pieces: int64 [B, L]."""
        assert targets is not None
        return targets.long()

    def truth(self, split: Split) -> Tensor:
        """Return the pieces: int64 [N, L], -1 where there is none."""
        assert split.targets is not None
        return torch.from_numpy(split.targets).long()

    def answers(self, outputs: Tensor, truth: Tensor) -> Tensor:
        """Return of each place what its scores are made of: [B, L, C], [B, L] -> [B, L, 4].

        The log-probability of the true piece, the Brier score, the highest log-probability, and whose it is: nothing
        else of two thousand numbers is asked for again.
        """
        log_probs = outputs.float().log_softmax(-1)
        own = log_probs.gather(-1, truth.clamp(min=0).unsqueeze(-1)).squeeze(-1)
        top, choice = log_probs.max(-1)
        squares = log_probs.exp().square().sum(-1) - 2 * own.exp() + 1
        return torch.stack([own, squares, top, choice.float()], dim=-1)

    def steering(self, answers: Tensor, truth: Tensor) -> dict[str, float]:
        """Return NLL and accuracy of a piece: [N, L, 4], [N, L]."""
        shown = answers[truth >= 0].double()
        return {
            "nll": -shown[:, 0].mean().item(),
            "accuracy": (shown[:, 3] == truth[truth >= 0]).double().mean().item(),
        }

    def texts(self, tokens: Tensor) -> list[str]:
        """Return the sentences of pieces, up to their end: int64 [N, L], below 0 where there is none -> N texts."""
        return Vocabulary(self.vocabulary).decode(tokens.clamp(min=PAD))

    def sentence_figures(self, tokens: Tensor, truth: Tensor) -> dict[str, float]:
        """Return BLEU and chrF of sentences [N, L] against the true ones [N, L], of rows that have one, in 0-1."""
        has_truth = (truth >= 0).any(1)
        return translation_figures(self.texts(tokens[has_truth]), self.texts(truth[has_truth]))

    def metrics(self, answers: Tensor, truth: Tensor) -> dict[str, float]:
        """Return what `classification_metrics` does, of pieces: [N, L, 4], [N, L]."""
        shown = answers[truth >= 0].double()
        own, squares, top, choice = shown.unbind(-1)
        scores = RowScores(own, squares, top.exp(), choice.long(), truth[truth >= 0].long(), len(self.names))
        return join_scores([scores]).metrics()


def tokens_of(names: tuple[str, ...], said: Mapping[str, Any]) -> Tokens:
    """Return the task that a store says it is of. Raises: KeyError, TypeError, ValueError where it is none."""
    length, vocabulary = said["length"], said["vocabulary"]
    if type(length) is not int or length < 1 or not isinstance(vocabulary, str):
        raise ValueError(f"a sentence of {length!r} places")
    return Tokens(names, length, vocabulary)
