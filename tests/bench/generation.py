"""How many pictures a one-step generator makes while a flow makes one: `python -m tests.bench.generation [recipe]`.

Each teacher and student of the recipe as it is built, with first weights, on the same noise: how fast a network is does
not depend on what it has learned. The two run in turn in one process.
"""

import sys

import numpy as np
import torch
from torch import Tensor, nn

from pipeline.datasets.inputs.noise import normal
from pipeline.models import build_model
from pipeline.train import prepare, seeded
from stages.load import load_recipe
from stages.recipe import Training
from tests.bench.ratios import alternate, seconds, show

ROWS, SIDE, CLASSES = 128, 28, 10  # a batch of Fashion-MNIST
REPEATS = 3


def built(entry: Training) -> nn.Module:
    """Return an entry's network, untrained, ready to answer."""
    pixels = SIDE * SIDE
    shape = (pixels + CLASSES,)
    model = seeded(lambda: build_model(entry.model, num_classes=pixels, in_shape=shape, **entry.options), 0)
    return prepare(model, torch.device("cpu")).eval()


def noise() -> Tensor:
    """Return noise and classes of ROWS rows."""
    classes = nn.functional.one_hot(torch.arange(ROWS) % CLASSES, CLASSES).float()
    return torch.cat([normal(np.arange(ROWS), SIDE * SIDE), classes], dim=1)


@torch.inference_mode()
def made(model: nn.Module, inputs: Tensor) -> None:
    """Have a model make a picture of each row."""
    model(inputs)


def main(name: str) -> None:
    """Print, for each teacher and student, the teacher's seconds a picture over the student's."""
    recipe, inputs = load_recipe(name), noise()
    students = {entry.name: built(entry) for entry in recipe.student}
    for teacher in recipe.teacher:
        slow = built(teacher)
        for student, fast in students.items():
            ratios = alternate(
                lambda slow=slow: seconds(lambda: made(slow, inputs)),  # type: ignore[misc]
                lambda fast=fast: seconds(lambda: made(fast, inputs)),  # type: ignore[misc]
                REPEATS,
            )
            show(f"pictures a second, {student} / {teacher.name}, batches of {ROWS}", ratios)


if __name__ == "__main__":
    main(sys.argv[1] if len(sys.argv) > 1 else "generation")
