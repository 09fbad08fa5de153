"""Detection of objects: boxes as cells of a grid, what a detector minimises, how well it finds, and pictures of it."""

from pipeline.detection.decoding import Detections, as_detections, decode
from pipeline.detection.drawing import drawn
from pipeline.detection.grid import BINS, Grid, expected_distances, split_outputs, split_truth, width_of
from pipeline.detection.losses import (
    bounded_boxes,
    box_loss,
    class_divergence,
    class_loss,
    edge_divergence,
    edge_loss,
    foreground_of,
)
from pipeline.detection.scores import average_precision

__all__ = [
    "BINS",
    "Detections",
    "Grid",
    "as_detections",
    "average_precision",
    "bounded_boxes",
    "box_loss",
    "class_divergence",
    "class_loss",
    "decode",
    "drawn",
    "edge_divergence",
    "edge_loss",
    "expected_distances",
    "foreground_of",
    "split_outputs",
    "split_truth",
    "width_of",
]
