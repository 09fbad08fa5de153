"""How well objects are found: average precision, as COCO takes it."""

import math
from collections.abc import Sequence
from importlib import import_module
from typing import Any, Literal

import torch

from pipeline.detection.decoding import Detections
from pipeline.detection.grid import Boxes, as_objects
from pipeline.errors import StillroomError

FIGURES = {"ap": "map", "ap50": "map_50", "ap75": "map_75"}
BACKEND: Literal["faster_coco_eval"] = "faster_coco_eval"  # gives what pycocotools gives, in half the time


def average_precision(
    detections: Sequence[Detections], objects: Sequence[tuple[Boxes, Boxes]], num_classes: int
) -> dict[str, float]:
    """Return `ap`, the mean over overlaps of 0.5 to 0.95 by 0.05, `ap50` and `ap75`, those at one: all in 0-1.

    objects: true boxes [n, 4] in pixels and labels [n] of each picture. Means are over classes that have an object; nan
    where none has. At most 100 detections a picture count. Source: Lin 2014 (COCO), by torchmetrics.
    Raises: StillroomError when the packages that do it are missing; ValueError for other numbers of pictures and for
    boxes and labels that are none.
    """
    if len(detections) != len(objects):
        raise ValueError(f"detections of {len(detections)} pictures, objects of {len(objects)}; expected as many")
    true = [as_objects(*each, num_classes) for each in objects]
    if not any(len(labels) for _, labels in true):
        return dict.fromkeys(FIGURES, math.nan)
    metric = coco_metric()
    metric.update(
        [each._asdict() for each in detections],
        [{"boxes": torch.from_numpy(boxes), "labels": torch.from_numpy(labels)} for boxes, labels in true],
    )
    found = metric.compute()
    return {name: float(found[theirs]) for name, theirs in FIGURES.items()}


def coco_metric() -> Any:
    """Return torchmetrics' metric. Raises StillroomError when it, or what it counts with, is missing."""
    try:
        import_module(BACKEND)  # which torchmetrics itself only misses in the midst of its work
        from torchmetrics.detection import MeanAveragePrecision  # here: it takes seconds, and only figures need it
    except ImportError as error:
        raise StillroomError(
            f"average precision: found no torchmetrics with {BACKEND} ({error}); expected both; pip install "
            "'stillroom[detection]'"
        ) from error
    metric = MeanAveragePrecision(backend=BACKEND)
    metric.warn_on_many_detections = False
    return metric
