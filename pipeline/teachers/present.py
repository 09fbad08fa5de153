"""A teacher of one source, silent where a record lacks it: what it says of a row it was shown nothing of is no opinion.

Silence is a logit of 0 for every class, the uniform distribution: a store keeps it as any answer, exactly, and a fusion
can tell it from one (`pipeline.fusion.present`). Trade: the teacher's guess without its source, about the share of
each class, is lost; a constant, which other teachers know as well.
"""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pipeline.answers import Answers, Teacher


class SourceTeacher:
    """A teacher whose answers count where `has_source` of its inputs is true: inputs [B, ...] -> bool [B]."""

    def __init__(self, teacher: Teacher, has_source: Callable[[Any], Tensor]):
        self.teacher, self.has_source = teacher, has_source

    @property
    def rows_at_once(self) -> int | None:
        """Rows it answers on fastest."""
        return self.teacher.rows_at_once

    @property
    def feature_widths(self) -> Mapping[str, int]:
        """D of each layer it gives features of: on rows without the source, those of an input of zeros."""
        return self.teacher.feature_widths

    @property
    def head(self) -> tuple[np.ndarray, np.ndarray] | None:
        """The teacher's own classifier."""
        return self.teacher.head

    def predict(self, inputs: Any) -> Answers:
        """Return the teacher's answers, logits of 0 on rows that lack the source."""
        answers = self.teacher.predict(inputs)
        known = self.has_source(inputs).to(answers.logits.device).unsqueeze(1)
        return Answers(torch.where(known, answers.logits, 0.0), answers.features)

    def save(self, folder: Path) -> list[str]:
        """Write the teacher's own files."""
        return self.teacher.save(folder)
