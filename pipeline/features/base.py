"""What feature losses are given, return and are built from.

A student's features at one layer learn from those that each teacher left in its store; the terms' own weights learn
beside the student and are thrown away with it. Every teacher gets an adapter of its own and features of unit variance
per channel, for else the one with the largest numbers would outweigh the others. What is left of a teacher's layer is
what the store kept: pooled vectors, or attention maps.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, cast

import torch
from torch import Tensor, nn

from pipeline.errors import StillroomError
from pipeline.features.statistics import deviations
from pipeline.views.draws import stream_seed


@dataclass(frozen=True, eq=False)
class FeatureStart:
    """What a term is begun with; tuples run over the teachers.

    `widths` D_t, 0 for a teacher without the layer (or one that is not to be followed); `statistics` mean and standard
    deviation [D_t] of the store's calibration rows, None to take features as they are; `heads` weights [C, D_t] and
    offsets [C] of the teachers' last layers, None where the store has none.
    """

    layer: str
    student_width: int
    widths: tuple[int, ...]
    statistics: tuple[tuple[Tensor, Tensor] | None, ...]
    heads: tuple[tuple[Tensor, Tensor] | None, ...]
    num_classes: int
    seed: int

    @property
    def followed(self) -> tuple[int, ...]:
        """The teachers that have the layer."""
        return tuple(teacher for teacher, width in enumerate(self.widths) if width)

    def generator(self, teacher: int) -> torch.Generator:
        """Return what a teacher's adapter is drawn from: numbers of its own, whatever the student drew."""
        return torch.Generator().manual_seed(stream_seed(self.seed, "features", self.layer, teacher))


@dataclass(frozen=True, eq=False)
class FeatureRows:
    """What beside features is known of a batch: `negatives`, the features [n, D_t] of other rows from each store."""

    negatives: tuple[Tensor, ...] | None = None


class Pair(nn.Module):
    """A student and one teacher. Its parameters are the adapter between them."""

    def forward(self, student: Tensor, teacher: Tensor, weights: Tensor, negatives: Tensor | None) -> Tensor:
        """Return the loss of each row: [B, D_s], [B, D_t], the teacher's weights [B], [n, D_t] -> [B].

        The weights are multiplied in by the caller; they are here for losses that are no sum over rows.
        """
        raise NotImplementedError


@dataclass(frozen=True)
class FeatureLoss:
    """A frozen dataclass whose fields are plain JSON options; a wrong option raises StillroomError at once.

    `weight` is that of the source in a student's loss.
    """

    weight: ClassVar[float] = 1.0
    is_standardised: ClassVar[bool] = True

    @property
    def num_negatives(self) -> int:
        """How many rows of each store a batch must bring beside its own, none of them a row of the batch."""
        return 0

    def check_layers(self, layer: str, student_layer: str) -> None:
        """Raise StillroomError when the loss can't be taken between these layers."""

    def wrap(self, student: nn.Module, start: FeatureStart) -> nn.Module:
        """Return the student as it is trained and answers, before anything is tapped: itself, for most losses."""
        return student

    def begin(self, start: FeatureStart) -> "FeatureTerm":
        """Return the term of one training. Raises: StillroomError when no teacher has the layer."""
        if not start.followed:
            raise StillroomError(
                f"features {name_of(self)!r}: none of {len(start.widths)} teachers has layer {start.layer!r} in its "
                f"store; expected one at least; name the layer in logits.features, or another one here"
            )
        pairs = {teacher: self.pair(start, teacher) for teacher in start.followed}
        return FeatureTerm(start, pairs, is_standardised=self.is_standardised)

    def pair(self, start: FeatureStart, teacher: int) -> Pair:
        """Return what compares the student with a teacher that has the layer."""
        raise NotImplementedError


class FeatureTerm(nn.Module):
    """A feature loss at work in one training: sum_k w_k(x) l_k(x), whose weights sum to one over those with the layer.

    Its parameters follow Adam at `lr`. Its state holds what is learned; statistics come with the start.
    """

    lr: float = 1e-3

    def __init__(self, start: FeatureStart, pairs: Mapping[int, Pair], *, is_standardised: bool):
        super().__init__()
        self._widths, self._student_width = start.widths, start.student_width
        self._teachers = tuple(pairs)
        self._is_standardised = is_standardised and any(start.statistics[teacher] for teacher in pairs)
        self.pairs = nn.ModuleDict({str(teacher): pair for teacher, pair in pairs.items()})
        for teacher in pairs:
            mean, std = start.statistics[teacher] or (torch.zeros(()), torch.ones(()))
            self.register_buffer(f"mean{teacher}", mean.float(), persistent=False)
            self.register_buffer(f"scale{teacher}", deviations(std), persistent=False)

    def forward(
        self,
        student_features: Tensor,
        teachers: tuple[Tensor, ...],
        weights: Tensor | None = None,
        rows: FeatureRows | None = None,
    ) -> Tensor:
        """Return the loss of each row: [B, D_s], T times [B, D_t], [B, T] or None for equal weights -> [B].

        A row whose teachers with the layer have no weight gives 0. In float32, also under autocast.
        Raises: ValueError for features of other shapes than those it was begun with.
        """
        self._check(student_features, teachers)
        shares = self._shares(weights, student_features)
        negatives = None if rows is None else rows.negatives
        loss = torch.zeros(len(student_features), device=student_features.device)
        with torch.autocast(student_features.device.type, enabled=False):
            for share, teacher in zip(shares, self._teachers, strict=True):
                others = None if negatives is None else self._standardised(negatives[teacher], teacher)
                seen = self._standardised(teachers[teacher], teacher)
                loss = loss + share * self.pairs[str(teacher)](student_features.float(), seen, share, others)
        return loss

    def _shares(self, weights: Tensor | None, features: Tensor) -> Tensor:
        """Return the weights of the teachers that are followed, one row of [B] each."""
        if weights is None:
            return features.new_full((len(self._teachers), len(features)), 1 / len(self._teachers), dtype=torch.float32)
        chosen = weights.float().T[list(self._teachers)]
        total = chosen.sum(0)
        return chosen / total.where(total > 0, 1)

    def _standardised(self, features: Tensor, teacher: int) -> Tensor:
        if not self._is_standardised:
            return features.float()
        mean, scale = self.get_buffer(f"mean{teacher}"), self.get_buffer(f"scale{teacher}")
        return (features.float() - mean) / scale

    def _check(self, student_features: Tensor, teachers: tuple[Tensor, ...]) -> None:
        count = len(student_features)
        expected = {"student": (count, self._student_width)}
        found = {"student": tuple(student_features.shape)}
        for teacher in self._teachers:
            expected[f"teacher {teacher}"] = (count, self._widths[teacher])
            found[f"teacher {teacher}"] = tuple(teachers[teacher].shape) if teacher < len(teachers) else ()
        if found != expected or len(teachers) != len(self._widths):
            raise ValueError(f"features of shapes {found} and {len(teachers)} teachers; the term expects {expected}")


def directions(vectors: Tensor, smallest: float | Tensor = 1e-6) -> Tensor:
    """Return vectors of length one: [..., D]. Those no longer than `smallest` become 0, and give no gradient.

    A quotient of two numbers near zero is noise whose gradient would drown every other row's.
    """
    squares = vectors.square().sum(-1, keepdim=True)
    is_long = squares > smallest**2
    return vectors * (squares.where(is_long, 1).rsqrt() * is_long)


def projector(in_width: int, out_width: int, generator: torch.Generator, *, bias: bool = True) -> nn.Linear:
    """Return a linear layer drawn from the generator alone, unit variance in and out, no offset."""
    layer = cast(nn.Linear, nn.utils.skip_init(nn.Linear, in_width, out_width, bias=bias))
    nn.init.normal_(layer.weight, std=in_width**-0.5, generator=generator)
    if bias:
        nn.init.zeros_(layer.bias)
    return layer


def name_of(loss: FeatureLoss) -> str:
    """Return a loss's name in FEATURE_LOSSES: "srd" for Srd."""
    return type(loss).__name__.lower()


def check_number(loss: FeatureLoss, option: str, *, smallest: float = 0, is_allowed: bool = False) -> None:
    """Raise StillroomError unless the option is a finite number above `smallest`, or that itself where allowed."""
    value = getattr(loss, option)
    is_number = not isinstance(value, bool) and isinstance(value, int | float) and math.isfinite(value)
    if not is_number or value < smallest or (value == smallest and not is_allowed):
        bound = f"from {smallest:g}" if is_allowed else f"above {smallest:g}"
        raise StillroomError(
            f"features {name_of(loss)!r}: {option} is {value!r}; expected a finite number {bound}; change {option}"
        )


def check_whole(loss: FeatureLoss, option: str, *, smallest: int = 1) -> None:
    """Raise StillroomError unless the option is a whole number from `smallest`."""
    value = getattr(loss, option)
    if type(value) is not int or value < smallest:
        raise StillroomError(
            f"features {name_of(loss)!r}: {option} is {value!r}; expected a whole number from {smallest}; "
            f"change {option}"
        )
