"""What is asked of a model: which of some classes a sample is of, or some real numbers about it."""

from collections.abc import Mapping
from typing import Any

from pipeline.tasks.classes import Classes
from pipeline.tasks.contract import Task
from pipeline.tasks.draws import Draws
from pipeline.tasks.reals import Reals

__all__ = ["Classes", "Draws", "Reals", "Task", "task_of"]


def task_of(attributes: Mapping[str, Any]) -> Task:
    """Return the task of a store, as its attributes tell it."""
    names, scale = tuple(attributes["classes"]), attributes.get("scale")
    if scale is None:
        return Classes(names)
    kind = Draws if attributes.get("draws") else Reals
    return kind(names, tuple(scale["mean"]), tuple(scale["std"]), scale["unit"])
