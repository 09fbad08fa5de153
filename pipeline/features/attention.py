"""Where in the picture the student's layer is active is to be where the teacher's is.

Trade: a map of H x W numbers whatever the channels, no adapter, and people can look at it; says where and not what, and
only convolutional layers have it.
"""

import math
from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor
from torch.nn import functional

from pipeline.errors import StillroomError
from pipeline.features.base import FeatureLoss, FeatureStart, Pair, directions
from pipeline.models.taps import ATTENTION


@dataclass(frozen=True)
class Attention(FeatureLoss):
    """The squared distance of the two maps of length one, from 0 to 2; the student's comes to the teacher's size.

    Maps are those of layers named "attention:LAYER". Source: Zagoruyko & Komodakis 2017 (1612.03928), eq. 2, squared
    as in the authors' code, whose weight of 1000 is for the mean over positions: 1000 / (H W) here.
    """

    is_standardised: ClassVar[bool] = False

    def check_layers(self, layer: str, student_layer: str) -> None:
        """Raise StillroomError when the loss can't be taken between these layers."""
        for found in (layer, student_layer):
            if not found.startswith(ATTENTION):
                raise StillroomError(
                    f"features 'attention': layer {found!r} is not kept as a map; expected '{ATTENTION}LAYER'; name "
                    f"'{ATTENTION}{found}', also in logits.features"
                )

    def pair(self, start: FeatureStart, teacher: int) -> Pair:
        """Return what compares the student with a teacher that has the layer."""
        sizes = start.student_width, start.widths[teacher]
        if sizes[0] != sizes[1] and None in map(side_of, sizes):
            raise StillroomError(
                f"features 'attention': maps of {sizes[0]} and {sizes[1]} positions (student, teacher {teacher}); "
                f"expected as many, or square ones, which can be resized; name layers of equal size"
            )
        return _Attention()


class _Attention(Pair):
    def forward(self, student: Tensor, teacher: Tensor, weights: Tensor, negatives: Tensor | None) -> Tensor:
        resized = resize_maps(student, teacher.shape[1])
        return (directions(resized) - directions(teacher)).square().sum(1)


def side_of(positions: int) -> int | None:
    """Return the side of a square map, None where it is no square."""
    side = math.isqrt(positions)
    return side if side * side == positions else None


def resize_maps(maps: Tensor, positions: int) -> Tensor:
    """Return square maps in another size: [B, H * H] -> [B, positions]; means of areas when smaller, else bilinear."""
    if maps.shape[1] == positions:
        return maps
    old, new = side_of(maps.shape[1]), side_of(positions)
    if old is None or new is None:
        raise ValueError(f"maps of {maps.shape[1]} and {positions} positions; expected squares")
    square = maps.unflatten(1, (1, old, old))
    if new < old:
        return functional.adaptive_avg_pool2d(square, new).flatten(1)
    return functional.interpolate(square, size=(new, new), mode="bilinear", align_corners=False).flatten(1)
