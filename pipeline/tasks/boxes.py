"""Where objects are in a picture, and of which class: answers are cells of a grid, each with a class and four edges."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from pipeline.calibration import fit_temperature
from pipeline.detection.grid import BINS, Grid, split_truth
from pipeline.detection.losses import BOX_WEIGHT, EDGE_WEIGHT, box_loss, class_loss, edge_loss
from pipeline.store.fields import Truth
from pipeline.tasks.contract import Shapes, parts_of
from pipeline.views import Batch, Split

KIND = "boxes"
CLASSES, EDGES, DISTANCES = "classes", "edges", "distances"  # the outputs
WEIGHTS = {CLASSES: 1.0, EDGES: EDGE_WEIGHT, DISTANCES: BOX_WEIGHT}  # of their losses on labels


@dataclass(frozen=True)
class Boxes:
    """Objects of the classes `names` in pictures of `height` x `width` pixels, on a grid of cells `stride` wide.

    Its outputs: `classes` of each cell, the last one background; `edges`, how far each edge of its box is as a
    distribution over bins of `bin_pixels`; `distances`, the same as numbers. Figures are of cells; how well the boxes
    that come of them fit the objects is for a judge.
    """

    names: tuple[str, ...]
    height: int
    width: int
    stride: int = 8
    bin_pixels: float = 4.0
    steered_by: ClassVar[str] = "loss"
    ranked_by: ClassVar[str] = "loss"
    is_real: ClassVar[bool] = False
    is_plain: ClassVar[bool] = False
    numbers: ClassVar[frozenset[str]] = frozenset({DISTANCES})

    @cached_property
    def grid(self) -> Grid:
        """The cells."""
        return Grid(self.height, self.width, self.stride, self.bin_pixels)

    def cells(self, objects: Sequence[np.ndarray]) -> np.ndarray:
        """Return what is true of the cells of pictures with these objects [n, 5], class and box: float32 [B, G, 5]."""
        rows = [
            self.grid.encode(torch.from_numpy(each[:, 1:]), torch.from_numpy(each[:, 0]), len(self.names))
            for each in objects
        ]
        return torch.stack(rows).numpy()

    @property
    def attributes(self) -> dict[str, Any]:
        """Its kind and its grid."""
        said = {"height": self.height, "width": self.width, "stride": self.stride, "bin_pixels": self.bin_pixels}
        return {"task": {"kind": KIND, **said}}

    @property
    def shapes(self) -> Shapes:
        """Classes, edges and distances of each cell."""
        cells = self.grid.num_cells
        return {CLASSES: (cells, len(self.names) + 1), EDGES: (cells, 4, BINS), DISTANCES: (cells, 4)}

    @property
    def truth_kept(self) -> Truth:
        """The class of each cell and its four distances in bins, NaN where there is no object, or nothing is shown."""
        return Truth((self.grid.num_cells, 5), "float32")

    def truth_at(self, output: str, labels: Tensor, targets: Tensor | None) -> Tensor:
        """Return the classes int64 [B, G], the nearest bins int64 [B, G, 4], or the distances float32 [B, G, 4]."""
        assert targets is not None
        classes, distances = split_truth(targets)
        if output == CLASSES:
            return classes
        return distances if output == DISTANCES else distances.round().nan_to_num(nan=-1).long()

    def answers(self, outputs: Tensor, truth: Tensor) -> Tensor:
        """Return log-probabilities of classes, and distances: [B, G, W] -> [B, G, K + 1 + 4]."""
        parts = parts_of(self.shapes, outputs.float())
        return torch.cat([parts[CLASSES].log_softmax(-1), parts[DISTANCES]], dim=-1)

    def told(self, answers: Tensor) -> tuple[Tensor, Tensor]:
        """Return what answers consist of: log-probabilities [B, G, K + 1], and distances [B, G, 4]."""
        return answers[..., :-4], answers[..., -4:]

    def loss(self, outputs: Tensor, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        """Return the loss on the objects of a batch, and its parts: [B, G, W] -> [B]."""
        assert batch.targets is not None
        parts = label_parts(parts_of(self.shapes, outputs), batch.targets)
        return sum((WEIGHTS[name] * part for name, part in parts.items()), torch.zeros(())), parts

    def truth(self, split: Split) -> Tensor:
        """Return the cells: float32 [N, G, 5]."""
        assert split.targets is not None
        return torch.from_numpy(split.targets)

    def truth_in(self, batch: Batch) -> Tensor:
        """Return the cells: float32 [B, G, 5]."""
        assert batch.targets is not None
        return batch.targets

    def steering(self, answers: Tensor, truth: Tensor) -> dict[str, float]:
        """Return the loss on classes and boxes, and how often an object's cell is taken for its class."""
        found = self.metrics(answers, truth)
        return {"loss": found["loss"], "accuracy": found["accuracy"]}

    def metrics(self, answers: Tensor, truth: Tensor) -> dict[str, float]:
        """Return figures of cells: [N, G, K + 5], [N, G, 5].

        `loss` of classes and boxes, as trainings are steered by; `nll` of a cell's class in nats; of cells that show an
        object, `accuracy` of the class and `mae` of the edges in pixels.
        """
        (log_probs, distances), (classes, true) = self.told(answers.float()), split_truth(truth)
        is_known, is_object = classes >= 0, true.isfinite().all(-1)
        own = log_probs.gather(-1, classes.clamp(min=0).unsqueeze(-1)).squeeze(-1)
        losses = class_loss(log_probs, classes) + box_loss(distances, true)
        away = (distances - true)[is_object].abs().mean().item() * self.bin_pixels
        right = (log_probs.argmax(-1) == classes)[is_object].double().mean().item()
        return {
            "loss": losses.double().mean().item(),
            "nll": -own[is_known].double().mean().item(),
            "accuracy": right,
            "mae": away,
        }

    def teacher_figures(self, outputs: Mapping[str, Tensor], truths: Mapping[str, Tensor]) -> dict[str, Any]:
        """Return the temperatures of classes and edges, fitted on calibration rows, and the figures of each split."""
        parts, truth = parts_of(self.shapes, outputs["calibration"]), truths["calibration"]
        at = {name: self.truth_at(name, truth, truth) for name in (CLASSES, EDGES)}
        return {
            "temperature": {name: fit_temperature(parts[name], at[name]) for name in at},
            "scores": {
                name: self.metrics(self.answers(own, truths[name]), truths[name]) for name, own in outputs.items()
            },
        }


def label_parts(parts: Mapping[str, Tensor], truth: Tensor) -> dict[str, Tensor]:
    """Return what each output loses on the objects of rows, 0 of rows that show none: outputs by name -> [B]."""
    classes, distances = split_truth(truth)
    return {
        CLASSES: class_loss(parts[CLASSES], classes),
        EDGES: edge_loss(parts[EDGES], distances),
        DISTANCES: box_loss(parts[DISTANCES], distances),
    }


def boxes_of(names: tuple[str, ...], said: Mapping[str, Any]) -> Boxes:
    """Return the task that a store says it is of. Raises: KeyError, TypeError, ValueError where it is none."""
    height, width, stride = (said[name] for name in ("height", "width", "stride"))
    if not all(type(side) is int and 0 < side < 1 << 20 for side in (height, width, stride)):
        raise ValueError(f"a grid of {height} x {width}, {stride} apart")
    return Boxes(names, height, width, stride, float(said["bin_pixels"]))
