"""What stages ask of a task, whatever is asked of the models."""

from collections.abc import Mapping
from typing import Any, ClassVar, Protocol

import torch
from torch import Tensor

from pipeline.store.fields import Truth
from pipeline.views import Batch, Split

Shapes = Mapping[str, tuple[int, ...]]  # of the outputs of a row by name, classes or numbers last


class Task(Protocol):
    """What is asked of a model, how it learns it from labels, and how its answers are judged.

    `names` run along the last axis of every answer of classes; `steered_by` is the figure, the lower the better, that a
    training is steered by, and `ranked_by` the one of a teacher's that says who is best; `is_real` tells real numbers
    from classes; `is_plain` says that a row is one case of one output, which is all that ensembles, sweeps, exports
    and imports know.
    """

    steered_by: ClassVar[str]
    ranked_by: ClassVar[str]
    is_real: ClassVar[bool]
    is_plain: ClassVar[bool]

    @property
    def names(self) -> tuple[str, ...]:
        """The classes, or what the numbers are of."""
        ...

    @property
    def attributes(self) -> dict[str, Any]:
        """What a store says of it beside the names, as JSON."""
        ...

    @property
    def shapes(self) -> Shapes:
        """Its outputs."""
        ...

    @property
    def numbers(self) -> frozenset[str]:
        """Those of its outputs that are real numbers."""
        ...

    @property
    def truth_kept(self) -> Truth | None:
        """What a store keeps of what is true of a row, None where its label says it."""
        ...

    def truth_at(self, output: str, labels: Tensor, targets: Tensor | None) -> Tensor:
        """Return what is true of rows at an output: labels int64 [B, ...], or numbers float32 [B, ..., P].

        `labels` [B] and `targets` [B, ...] are those of the rows as a plan holds them.
        """
        ...

    def answers(self, outputs: Tensor, truth: Tensor) -> Tensor:
        """Return what is kept of a model's outputs on held-out rows to be judged by: float32 [B, ...]."""
        ...

    def loss(self, outputs: Tensor, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        """Return the loss on the labels of a batch, and its parts: [B, ...] -> [B], 0 of rows that show none."""
        ...

    def truth(self, split: Split) -> Tensor:
        """Return what is true of a split's rows: labels int64 [N, ...], or numbers float32 [N, ...]."""
        ...

    def truth_in(self, batch: Batch) -> Tensor:
        """Return what is true of a batch's rows: as `truth` does of a split's."""
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


def parts_of(shapes: Shapes, outputs: Tensor) -> dict[str, Tensor]:
    """Return a model's outputs by name: of one output [B, *shape] itself, of several [B, ..., W] W's parts in order.

    Several share their first axis, and lie side by side along the last, each flattened behind the first.
    """
    if len(shapes) == 1:
        return dict.fromkeys(shapes, outputs)
    widths = [int(torch.Size(shape[1:]).numel()) for shape in shapes.values()]
    parts = outputs.split(widths, dim=-1)
    return {name: part.unflatten(-1, shape[1:]) for (name, shape), part in zip(shapes.items(), parts, strict=True)}


def joined(shapes: Shapes, parts: Mapping[str, Tensor]) -> Tensor:
    """Return outputs by name as a model gives them: `parts_of` undone."""
    if len(shapes) == 1:
        (only,) = parts.values()
        return only
    return torch.cat([parts[name].flatten(-len(shape) + 1) for name, shape in shapes.items()], dim=-1)


def out_shape(shapes: Shapes) -> tuple[int, ...]:
    """Return the shape of a row of a model's outputs."""
    first = next(iter(shapes.values()))
    if len(shapes) == 1:
        return first
    return (first[0], sum(int(torch.Size(shape[1:]).numel()) for shape in shapes.values()))
