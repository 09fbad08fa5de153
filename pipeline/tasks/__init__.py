"""What is asked of a model: which of some classes a sample is of, numbers about it, a sentence, or boxes in it."""

from collections.abc import Callable, Mapping
from typing import Any

from pipeline.tasks.boxes import KIND as BOXES
from pipeline.tasks.boxes import Boxes, boxes_of
from pipeline.tasks.classes import Classes
from pipeline.tasks.contract import Shapes, Task, joined, out_shape, parts_of
from pipeline.tasks.draws import Draws
from pipeline.tasks.reals import Reals
from pipeline.tasks.tokens import KIND as TOKENS
from pipeline.tasks.tokens import Tokens, tokens_of

__all__ = [
    "Boxes",
    "Classes",
    "Draws",
    "Reals",
    "Shapes",
    "Task",
    "Tokens",
    "joined",
    "out_shape",
    "parts_of",
    "task_of",
]

READ: dict[str, Callable[[tuple[str, ...], Mapping[str, Any]], Task]] = {
    TOKENS: tokens_of,
    BOXES: boxes_of,
}  # what says of itself more than its classes or its scale


def task_of(attributes: Mapping[str, Any]) -> Task:
    """Return the task of a store, as its attributes tell it."""
    names, scale, said = tuple(attributes["classes"]), attributes.get("scale"), attributes.get("task")
    if said is not None:
        return READ[said["kind"]](names, said)
    if scale is None:
        return Classes(names)
    kind = Draws if attributes.get("draws") else Reals
    return kind(names, tuple(scale["mean"]), tuple(scale["std"]), scale["unit"])
