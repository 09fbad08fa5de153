"""What the dump asks of a teacher, and how its answers are checked."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from pipeline.errors import StillroomError


@dataclass(frozen=True, eq=False)
class Answers:
    """What a teacher says about a batch: `logits` float32 [B, ..., C], `features` float32 [B, D] by layer.

    Of a task with several outputs, `logits` are all of them side by side (`pipeline.tasks.parts_of`).
    """

    logits: Tensor
    features: Mapping[str, Tensor] = field(default_factory=dict)


class Teacher(Protocol):
    """A trained model that answers on rows."""

    @property
    def rows_at_once(self) -> int | None:
        """Rows it answers on fastest, None to leave it to the caller."""
        ...

    @property
    def feature_widths(self) -> Mapping[str, int]:
        """D of each layer it gives features of."""
        ...

    @property
    def head(self) -> tuple[np.ndarray, np.ndarray] | None:
        """Its classifier on the penultimate features, weights [C, D] and offsets [C]; None where it has none."""
        ...

    def predict(self, inputs: Any) -> Answers:
        """Return the answers on inputs, numbers [B, ...] or B texts: Answers on the CPU or the inputs' device."""
        ...

    def save(self, folder: Path) -> list[str]:
        """Write the weights and return the names of the files written. No pickle."""
        ...


class Writer(Protocol):
    """A teacher that writes whole sentences; one that `only_writes` has no logits to give."""

    @property
    def only_writes(self) -> bool: ...

    def write(self, inputs: Any, count: int) -> tuple[Tensor, Tensor]:
        """Return pieces int64 [B, count, L], 0 behind the end, and scores float32 [B, count], -inf of none."""
        ...


def is_writer(teacher: object) -> bool:
    """Whether a teacher does nothing but write sentences."""
    return bool(getattr(teacher, "only_writes", False))


def check_answers(answers: Answers, num_classes: int, where: str) -> None:
    """Raise StillroomError unless the logits are finite and of `num_classes` classes, and the features finite."""
    check_shape(answers, (num_classes,), where)
    named = {"logits": answers.logits, **answers.features}
    check_finite({name: finite_rows(values).cpu().numpy() for name, values in named.items()}, where)


def check_shape(answers: Answers, shape: tuple[int, ...], where: str) -> None:
    """Raise StillroomError unless a row's outputs have this shape: (C,) of classes."""
    found = tuple(answers.logits.shape[1:])
    if found == shape:
        return
    if len(found) == len(shape) == 1:
        raise StillroomError(
            f"{where}: answered with {found[0]} classes; expected {shape[0]}, those of the data; "
            f"build it with num_classes={shape[0]}"
        )
    raise StillroomError(
        f"{where}: answered with {found} a row; expected {shape}, which the data asks for; use a model for such data"
    )


def finite_rows(values: Tensor) -> Tensor:
    """Return whether every number of a row is finite: `[n, ...]` -> bool [n], on the same device."""
    return torch.isfinite(values).flatten(1).all(1)


def check_finite(finite: Mapping[str, np.ndarray], where: str) -> None:
    """Raise StillroomError, naming the first row, unless all rows are finite: bool [n] by what they are finite in."""
    for name, rows in finite.items():
        if not rows.all():
            raise StillroomError(
                f"{where}: {int((~rows).sum())} of {len(rows)} rows have NaN or infinite {name} (first: row "
                f"{int(rows.argmin())}); expected finite numbers; check the teacher's weights and inputs"
            )
