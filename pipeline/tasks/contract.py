"""What stages ask of a task, whatever is asked of the models."""

from collections.abc import Mapping
from typing import Any, ClassVar, Protocol

from torch import Tensor

from pipeline.views import Batch, Split


class Task(Protocol):
    """What is asked of a model, how it learns it from labels, and how its answers are judged.

    `names` run along the last axis of every answer; `field` is what a teacher store calls the answers; `steered_by` the
    figure, the lower the better, that a training is steered by, and `ranked_by` the one of a teacher's that says who is
    best; `is_real` tells real numbers from classes.
    """

    field: ClassVar[str]
    steered_by: ClassVar[str]
    ranked_by: ClassVar[str]
    is_real: ClassVar[bool]

    @property
    def names(self) -> tuple[str, ...]:
        """The classes, or what the numbers are of."""
        ...

    @property
    def attributes(self) -> dict[str, Any]:
        """What a store says of it beside the names, as JSON."""
        ...

    def answers(self, outputs: Tensor) -> Tensor:
        """Return a model's outputs as answers: [B, ..., C] -> the same shape, float32."""
        ...

    def loss(self, outputs: Tensor, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        """Return the loss on the labels of a batch, and its parts: [B, C] -> [B], 0 of rows that show none."""
        ...

    def truth(self, split: Split) -> Tensor:
        """Return what is true of a split's rows: labels int64 [N], or numbers float32 [N, P]."""
        ...

    def steering(self, answers: Tensor, truth: Tensor) -> dict[str, float]:
        """Return the few figures that a training is steered by."""
        ...

    def metrics(self, answers: Tensor, truth: Tensor) -> dict[str, float]:
        """Return all figures of answers."""
        ...

    def teacher_figures(self, outputs: Mapping[str, Tensor], truths: Mapping[str, Tensor]) -> dict[str, Any]:
        """Return a teacher's figures by split, and what was fitted on its calibration rows."""
        ...
