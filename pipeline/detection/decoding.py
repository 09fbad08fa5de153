"""From what cells tell to boxes with scores: the likely ones, and of those that overlap the likeliest."""

from typing import NamedTuple

import torch
from torch import Tensor
from torchvision.ops import batched_nms

from pipeline.detection.grid import Grid


class Detections(NamedTuple):
    """What is found on one picture, likeliest first: boxes [n, 4] in pixels, scores [n] in 0-1, labels int64 [n]."""

    boxes: Tensor
    scores: Tensor
    labels: Tensor


def decode(
    class_log_probs: Tensor,
    distances: Tensor,
    grid: Grid,
    *,
    least_score: float = 0.05,
    overlap: float = 0.5,
    most: int = 100,
) -> list[Detections]:
    """Return what is found on each picture: log-probabilities [B, G, K + 1], bins [B, G, 4] -> B detections.

    A cell tells a box of every class that has `least_score`, background aside. Of boxes of one class that share more
    than `overlap` of their union the likeliest stays, and of all that stay the `most` likeliest.
    """
    scores, boxes = class_log_probs.float().exp()[..., :-1], grid.boxes(distances.float())
    return [
        decoded(*picture, least_score=least_score, overlap=overlap, most=most)
        for picture in zip(scores, boxes, strict=True)
    ]


def decoded(scores: Tensor, boxes: Tensor, *, least_score: float, overlap: float, most: int) -> Detections:
    """Return what is found on one picture, as `decode`: probabilities [G, K], pixels [G, 4]."""
    cells, labels = (scores >= least_score).nonzero(as_tuple=True)
    found, places = scores[cells, labels], boxes[cells]
    kept = batched_nms(places, found, labels, overlap)[:most]
    return Detections(places[kept], found[kept], labels[kept])


def as_detections(objects: Tensor) -> Detections:
    """Return true objects, class and box in [n, 5], as detections of score 1: to draw or to score them."""
    objects = torch.as_tensor(objects).float().reshape(-1, 5)
    return Detections(objects[:, 1:], torch.ones(len(objects)), objects[:, 0].long())
