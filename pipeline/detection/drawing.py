"""Pictures with what was found on them, for people to look at."""

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn.functional import interpolate
from torchvision.utils import draw_bounding_boxes

from pipeline.detection.decoding import Detections

LEAST_SIDE = 288  # pixels, so that a word fits beside a box
COLOURS = ("#e6194b", "#3cb44b", "#4363d8", "#f58231", "#911eb4", "#00a3a3", "#f032e6", "#808000", "#9a6324", "#469990")


def drawn(
    pictures: Tensor, detections: Sequence[Detections], names: Sequence[str], *, least_score: float = 0.3
) -> Tensor:
    """Return pictures with boxes, names and scores on them: uint8 [B, 1 or 3, H, W] -> uint8 [B, 3, s H, s W].

    Scaled by the least whole s that brings the shorter side to LEAST_SIDE; a class has one colour throughout. What has
    less than `least_score` isn't drawn, and beside a score of 1, that of a true object, none is written.
    """
    scale = -(-LEAST_SIDE // min(pictures.shape[-2:]))
    large = interpolate(pictures.expand(-1, 3, -1, -1), scale_factor=scale, mode="nearest")
    kept = [likely(each, least_score) for each in detections]
    return torch.stack([_drawn(picture, each, names, scale) for picture, each in zip(large, kept, strict=True)])


def likely(found: Detections, least_score: float) -> Detections:
    """Return the detections of at least a score."""
    return Detections(*(values[found.scores >= least_score] for values in found))


def _drawn(picture: Tensor, found: Detections, names: Sequence[str], scale: int) -> Tensor:
    if not len(found.boxes):  # torchvision warns of it
        return picture
    labels = found.labels.tolist()
    texts = [
        names[label] if score == 1 else f"{names[label]} {score:.2f}"
        for label, score in zip(labels, found.scores.tolist(), strict=True)
    ]
    colours = [COLOURS[label % len(COLOURS)] for label in labels]
    return draw_bounding_boxes(picture, found.boxes * scale, texts, colors=colours, width=2, fill_labels=True)
