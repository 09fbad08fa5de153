"""Teachers that write whole sentences: a network by beam search, and a rule, which does nothing else."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from pipeline.answers import Answers
from pipeline.lineage import write_durably
from pipeline.translation.search import translate_in_batches
from pipeline.translation.vocabulary import Vocabulary

RULE = "rule.json"


class Rule(Protocol):
    """A rule that translates texts, such as `pipeline.translation.apertium.Apertium`."""

    def translate(self, texts: Sequence[str]) -> list[str]: ...


class RuleTeacher:
    """A rule as a teacher: of each text one sentence, with a score of 0, and no logits."""

    rows_at_once: int | None = 4096  # a call costs more than a text
    feature_widths: Mapping[str, int] = {}
    head: tuple[np.ndarray, np.ndarray] | None = None
    only_writes = True

    def __init__(self, rule: Rule, vocabulary: Vocabulary, length: int):
        self.rule, self._vocabulary, self._length = rule, vocabulary, length

    def predict(self, inputs: Sequence[str]) -> Answers:
        """Return answers without logits: [B, 0]."""
        return Answers(torch.zeros(len(inputs), 0))

    def write(self, inputs: Sequence[str], count: int) -> tuple[Tensor, Tensor]:
        """Return the rule's sentences as pieces int64 [B, count, L], all but the first of each empty, and scores."""
        tokens = torch.zeros(len(inputs), count, self._length, dtype=torch.int64)
        tokens[:, 0] = self._vocabulary.encode(self.rule.translate(inputs), self._length)
        scores = torch.full((len(inputs), count), -torch.inf)
        scores[:, 0] = 0.0
        return tokens, scores

    def save(self, folder: Path) -> list[str]:
        """Write what the rule is."""
        folder.mkdir(parents=True, exist_ok=True)
        write_durably(folder / RULE, (json.dumps(vars(self.rule), sort_keys=True) + "\n").encode())
        return [RULE]


def written_by(model: torch.nn.Module, inputs: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """Return what a translator makes of pairs int64 [B, 2, L], of which it sees the sources: as `Writer.write` does."""
    was_training = model.training
    model.eval()
    found = translate_in_batches(model, inputs[:, 0], beams=count, length=inputs.shape[-1])  # type: ignore[arg-type]
    model.train(was_training)
    return found
