"""Distances and angles between the rows of a batch are to be those between the teacher's.

Trade: no adapter, nothing to learn beside the student, and a store that keeps a random projection serves; blind to any
rotation and shift, so it says how rows lie to each other and not what they are. Angles cost B times the group's
size times D, so groups are small.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional
from torch.utils.checkpoint import checkpoint

from pipeline.features.base import FeatureLoss, FeatureStart, Pair, check_number, check_whole, directions

NEAREST = 1e-4  # of the root mean square distance: a direction between rows that are nearer is rounding


@dataclass(frozen=True)
class Rkd(FeatureLoss):
    """distance * Huber(d_ij / mean d) + angle * Huber(cos at i between j and k), means over pairs and triples.

    A row's loss is the mean over the pairs and triples that start at it. Triples are taken within groups of at most
    `angle_rows` rows next to each other, which bounds the memory; a loader that shuffles makes them random.
    Source: Park 2019 (1904.05068), section 3.2; defaults of the authors' code.
    """

    distance: float = 25.0
    angle: float = 50.0
    angle_rows: int = 64

    def __post_init__(self) -> None:
        check_number(self, "distance", is_allowed=True)
        check_number(self, "angle", is_allowed=True)
        check_whole(self, "angle_rows", smallest=3)

    def pair(self, start: FeatureStart, teacher: int) -> Pair:
        """Return what compares the student with a teacher that has the layer."""
        return _Rkd(self)


class _Rkd(Pair):
    def __init__(self, options: Rkd):
        super().__init__()
        self._options = options

    def forward(self, student: Tensor, teacher: Tensor, weights: Tensor, negatives: Tensor | None) -> Tensor:
        options = self._options
        distance = options.distance * distance_loss(student, teacher)
        return distance + options.angle * angle_loss(student, teacher, group_rows=options.angle_rows)


def distance_loss(student: Tensor, teacher: Tensor) -> Tensor:
    """Return the mean over j of the Huber loss between the pair's distances: [B, D_s], [B, D_t] -> [B]."""
    return functional.smooth_l1_loss(relative_distances(student), relative_distances(teacher), reduction="none").mean(1)


def relative_distances(features: Tensor) -> Tensor:
    """Return distances over their mean over pairs that are apart: [B, D] -> [B, B]; 0 where no pair is."""
    # by subtraction: through products, equal rows would come out a little apart, with the gradient of a root near 0
    distances = torch.cdist(features, features, compute_mode="donot_use_mm_for_euclid_dist")
    mean = distances.sum() / (distances > 0).sum().clamp(min=1)
    return distances / mean.where(mean > 0, 1)


def angle_loss(student: Tensor, teacher: Tensor, *, group_rows: int) -> Tensor:
    """Return the mean over j, k of the Huber loss between cosines at i: [B, D_s], [B, D_t] -> [B]."""
    groups = max(1, math.ceil(len(student) / group_rows))
    losses = [
        # what a group needs is computed again for the gradient: its triples would be kept until then otherwise
        checkpoint(_angle_loss, *pair, use_reentrant=False, preserve_rng_state=False)
        for pair in zip(student.tensor_split(groups), teacher.tensor_split(groups), strict=True)
    ]
    return torch.cat(losses)


def _angle_loss(student: Tensor, teacher: Tensor) -> Tensor:
    return functional.smooth_l1_loss(cosines(student), cosines(teacher), reduction="none").mean((1, 2))


def cosines(features: Tensor) -> Tensor:
    """Return cosines of the angles at row i between rows j and k: [B, D] -> [B, B, B]; 0 where two rows are one."""
    lines = features.unsqueeze(0) - features.unsqueeze(1)
    typical = lines.detach().square().sum(-1).mean().sqrt()
    units = directions(lines, NEAREST * typical)
    return units @ units.transpose(1, 2)
