"""The student learns one teacher's penultimate features, and answers through that teacher's own classifier.

Trade: no label and no temperature to choose, and the student inherits a classifier that it could not have learned; it
can be no better than that classifier, follows one teacher only, and carries a projector when it answers.
"""

from dataclasses import dataclass
from typing import Self

import torch
from torch import Tensor, nn
from torch.nn import functional

from pipeline.errors import StillroomError
from pipeline.features.base import FeatureLoss, FeatureStart, Pair, check_whole, projector
from pipeline.features.statistics import deviations
from pipeline.models.taps import PENULTIMATE, last_linear

PROJECTED = "projected"  # the layer of a ThroughHead that simkd compares with the teacher's


@dataclass(frozen=True)
class Simkd(FeatureLoss):
    """The squared difference of projected and teacher's features, mean over channels. The projector is the student's.

    Linear, or through `hidden` units with a ReLU. The source projects whole maps by convolutions and leaves out every
    other loss. Source: Chen 2022 (2203.14001), section 3.
    """

    hidden: int | None = None

    def __post_init__(self) -> None:
        if self.hidden is not None:
            check_whole(self, "hidden")

    def check_layers(self, layer: str, student_layer: str) -> None:
        """Raise StillroomError when the loss can't be taken between these layers."""
        if (layer, student_layer) != (PENULTIMATE, PROJECTED):
            raise StillroomError(
                f"features 'simkd': layer {layer!r}, student_layer {student_layer!r}; expected {PENULTIMATE!r}, what "
                f"the teacher's classifier reads, and {PROJECTED!r}; leave both out"
            )

    def wrap(self, student: nn.Module, start: FeatureStart) -> "ThroughHead":
        """Return the student answering through the teacher's head. Raises: StillroomError when it can't."""
        teacher = one_teacher(start)
        head = teacher_head(start, teacher)
        return ThroughHead(
            student, head, start.statistics[teacher], hidden=self.hidden, generator=start.generator(teacher)
        )

    def pair(self, start: FeatureStart, teacher: int) -> Pair:
        """Return what compares the student with its one teacher. Raises: StillroomError where `wrap` does."""
        teacher_head(start, one_teacher(start))
        if start.student_width != start.widths[teacher]:
            raise ValueError(
                f"student features of width {start.student_width}; simkd expects those of layer {PROJECTED!r} of the "
                f"wrapped student, {start.widths[teacher]} wide"
            )
        return _Simkd()


class _Simkd(Pair):
    def forward(self, student: Tensor, teacher: Tensor, weights: Tensor, negatives: Tensor | None) -> Tensor:
        return (student - teacher).square().mean(1)


class ThroughHead(nn.Module):
    """A student whose last nn.Linear is replaced by a projector and a teacher's frozen classifier.

    logits = W (mean + scale * projector(features)) + b, so that the projector speaks of standardised features; its
    output is the layer "projected". Everything but the student's shape is in its state: it answers without the store.
    `student` is changed in place. Raises: StillroomError when it has no nn.Linear, or answers other classes.
    """

    def __init__(
        self,
        student: nn.Module,
        head: tuple[Tensor, Tensor],
        statistics: tuple[Tensor, Tensor] | None = None,
        *,
        hidden: int | None = None,
        generator: torch.Generator | None = None,
    ):
        super().__init__()
        classifier = last_linear(student, "features 'simkd'")
        num_classes, self.width = head[0].shape
        if classifier.out_features != num_classes:
            raise StillroomError(
                f"features 'simkd': the student's last nn.Linear gives {classifier.out_features} numbers; expected its "
                f"{num_classes} logits; give it a linear classifier, or use another feature loss"
            )
        draws = torch.Generator().manual_seed(0) if generator is None else generator
        layers = _projector(classifier.in_features, self.width, hidden, draws)
        self.projected = nn.Identity()  # before the student: a layer that is there twice has the name it had first
        new = _Head(layers, self.projected, head, statistics).to(classifier.weight.device)
        self.student = _replaced(student, classifier, new)

    @classmethod
    def shaped(cls, student: nn.Module, *, num_classes: int, width: int, hidden: int | None = None) -> Self:
        """Return one for a teacher's head of this width, all zeros: a shape to load a state into."""
        return cls(student, (torch.zeros(num_classes, width), torch.zeros(num_classes)), hidden=hidden)

    def forward(self, x: Tensor) -> Tensor:
        """Return logits [B, C]."""
        return self.student(x)


class _Head(nn.Module):
    weight: Tensor
    bias: Tensor
    mean: Tensor
    scale: Tensor

    def __init__(
        self,
        layers: nn.Sequential,
        projected: nn.Identity,
        head: tuple[Tensor, Tensor],
        statistics: tuple[Tensor, Tensor] | None,
    ):
        super().__init__()
        self.projector, self.projected = layers, projected
        width = head[0].shape[1]
        mean, std = statistics or (torch.zeros(width), torch.ones(width))
        frozen = {"weight": head[0], "bias": head[1], "mean": mean, "scale": deviations(std)}
        for name, values in frozen.items():
            self.register_buffer(name, values.detach().float().clone())

    def forward(self, features: Tensor) -> Tensor:
        standardised = self.projected(self.projector(features))
        return functional.linear(self.mean + self.scale * standardised, self.weight, self.bias)


def one_teacher(start: FeatureStart) -> int:
    """Return the only teacher that is followed. Raises StillroomError for none or several."""
    if len(start.followed) != 1:
        raise StillroomError(
            f"features 'simkd': teachers {list(start.followed)} of {len(start.widths)} have layer {start.layer!r}; "
            f"expected one, through whose classifier the student answers; name it: teachers = [...]"
        )
    return start.followed[0]


def teacher_head(start: FeatureStart, teacher: int) -> tuple[Tensor, Tensor]:
    """Return weights [C, D] and offsets [C] of a teacher's classifier. Raises StillroomError when they don't fit."""
    head = start.heads[teacher]
    if head is None:
        raise StillroomError(
            f"features 'simkd': the store of teacher {teacher} has no classifier; expected the weights of its last "
            f"nn.Linear; follow a torch teacher, and run 'stillroom logits' again for a store that is older"
        )
    found, expected = tuple(head[0].shape), (start.num_classes, start.widths[teacher])
    if found != expected or tuple(head[1].shape) != expected[:1]:
        raise StillroomError(
            f"features 'simkd': the classifier of teacher {teacher} has weights {found} and offsets "
            f"{tuple(head[1].shape)}; expected {expected} and {expected[:1]} (classes, width of layer "
            f"{start.layer!r}); follow a teacher that answers these classes from that layer"
        )
    return head


def _projector(in_width: int, out_width: int, hidden: int | None, draws: torch.Generator) -> nn.Sequential:
    if hidden is None:
        return nn.Sequential(projector(in_width, out_width, draws))
    first = projector(in_width, hidden, draws)
    return nn.Sequential(first, nn.ReLU(), projector(hidden, out_width, draws))


def _replaced(model: nn.Module, old: nn.Module, new: nn.Module) -> nn.Module:
    """Return the model with one of its modules replaced wherever it stands."""
    if model is old:
        return new
    for parent in list(model.modules()):
        for name, child in list(parent.named_children()):
            if child is old:
                setattr(parent, name, new)
    return model
