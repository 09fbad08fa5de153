"""The student learns the mean of the teachers, and not to be told from them.

Trade: a discriminator looks at the whole distribution, where KL looks at the teachers' likely classes; two networks
that play against each other need a small weight and a slow start, and promise nothing about accuracy.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from pipeline.fusion.base import check_positive
from pipeline.lazy.base import Lazy, Rows, Start, Weigher, check_flag, dense, mixed, shared_by_all
from pipeline.losses import cross_entropy

HIDDEN = 64


@dataclass(frozen=True)
class Adversarial(Lazy):
    """KL to the uniform mixture, and a discriminator on probabilities (C -> 64 -> 64 -> 2) that the student misleads.

    Its loss, CE(D(mixture), teacher) + CE(D(student), student), is added; D follows its gradient, while what reaches
    the student is turned round and multiplied by `weight` (2 / (1 + e^(-10 t)) - 1), t from 0 to 1 over the training.
    With `identity`, D names which of the T teachers spoke, or the student: T + 1 ways, the mean over teachers.
    Source: Shen 2019 (1812.02425); Ganin 2016 (1505.07818) for the reversal and the ramp.
    """

    weight: float = 0.05
    identity: bool = False

    def __post_init__(self) -> None:
        check_positive("fusion 'adversarial'", "weight", self.weight)
        check_flag("fusion 'adversarial'", "identity", self.identity)

    def begin(self, start: Start) -> Weigher:
        """Return what weighs the teachers."""
        return _Discriminator(start, self.weight, self.identity)


class _Discriminator(Weigher):
    def __init__(self, start: Start, weight: float, identity: bool):
        super().__init__()
        self._weight, self._identity = weight, identity
        ways, draws = start.num_teachers + 1 if identity else 2, start.generator()
        layers = [dense(start.num_classes, HIDDEN, draws), dense(HIDDEN, HIDDEN, draws), dense(HIDDEN, ways, draws)]
        self.network = nn.Sequential(layers[0], nn.ReLU(), layers[1], nn.ReLU(), layers[2])

    def forward(self, rows: Rows) -> Tensor:
        count = len(rows.log_probs)
        return shared_by_all(rows, torch.full((count,), 1 / count))

    def terms(self, rows: Rows, log_weights: Tensor) -> Mapping[str, Tensor]:
        teachers = rows.log_probs if self._identity else mixed(rows.log_probs, log_weights).unsqueeze(0)
        student = reverse_gradient(rows.student_log_probs.exp(), self._weight * ramp(rows.progress))
        said = torch.cat([teachers.exp(), student.unsqueeze(0)])  # [ways, B, C]: who speaks is the first axis
        speaker = torch.arange(len(said), device=said.device).unsqueeze(1).expand(said.shape[:2])
        losses = cross_entropy(self.network(said), speaker)
        return {"adversarial": losses[:-1].mean(0) + losses[-1]}


def ramp(progress: float) -> float:
    """Return 0 at the start of the training, nearly 1 from a half of it on."""
    return 2 / (1 + math.exp(-10 * progress)) - 1


def reverse_gradient(values: Tensor, scale: float) -> Tensor:
    """Return the values as they are, whose gradient is multiplied by -scale."""
    return _Reverse.apply(values, scale)


class _Reverse(torch.autograd.Function):
    @staticmethod
    def forward(context: Any, values: Tensor, scale: float) -> Tensor:
        context.scale = scale
        return values.view_as(values)

    @staticmethod
    def backward(context: Any, gradient: Tensor) -> tuple[Tensor, None]:
        return -context.scale * gradient, None
