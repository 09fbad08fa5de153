"""What a student of boxes minimises on a batch: its objects, and what a fusion made of the teachers' cells."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from pipeline.detection.grid import split_truth
from pipeline.detection.losses import bounded_boxes, class_divergence, edge_divergence, foreground_of
from pipeline.errors import StillroomError
from pipeline.losses.options import check_options, number
from pipeline.store import temperature_array
from pipeline.store.fields import MEAN
from pipeline.tasks import Boxes, parts_of
from pipeline.tasks.boxes import CLASSES, DISTANCES, EDGES, WEIGHTS, label_parts
from pipeline.views import Batch

KIND = "boxes"
TAUGHT = {CLASSES: 1.0, EDGES: 0.5, DISTANCES: 0.3}  # of their losses on what teachers say
OPTIONS = {
    "margin": number(0),
    "background": number(0),
    "classes": number(0),
    "edges": number(0),
    "distances": number(0),
}


@dataclass(frozen=True)
class BoxesObjective:
    """alpha * loss of the objects + (1 - alpha) * loss of the teachers' cells, picture by picture: [B, G, W] -> [B].

    Of the teachers: KL of each cell's classes at `temperature`, where background counts `background` times; KL of the
    edges' distributions where they see an object; and the student's own distance from the objects while it is not
    better than the teachers' by `margin` bins². `classes`, `edges` and `distances` weigh the three. Pictures that show
    no label learn from the teachers alone. Sources: Chen 2017; Zheng 2022.
    Raises: StillroomError for options that are none or out of range, and an alpha that is no number in [0, 1].
    """

    task: Boxes
    temperature: float = 1.0
    alpha: float = 0.5
    options: Mapping[str, Any] = field(default_factory=dict)
    where: str = "loss"

    def __post_init__(self) -> None:
        check_alpha(self.alpha, self.where)
        check_options(self.where, self.options, OPTIONS)

    def __call__(self, outputs: Tensor, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        """Return the loss of each row and its parts, unweighted. The batch must be of a target store of boxes."""
        if not batch.fused or batch.targets is None:
            raise ValueError("the batch has no fused cells or targets; stream it from a target store of boxes")
        parts, (classes, _) = parts_of(self.task.shapes, outputs), split_truth(batch.targets)
        labels, taught = label_parts(parts, batch.targets), self._taught(parts, batch)
        hard = sum(WEIGHTS[name] * part for name, part in labels.items())
        soft = sum(self.options.get(name, TAUGHT[name]) * part for name, part in taught.items())
        shows = (classes >= 0).any(-1)
        loss = torch.where(shows, self.alpha * hard + (1 - self.alpha) * soft, soft)
        return loss, {**{f"label {name}": part for name, part in labels.items()}, **taught}

    def _taught(self, parts: Mapping[str, Tensor], batch: Batch) -> dict[str, Tensor]:
        """Return what each output loses on what the teachers say: [B]."""
        assert batch.targets is not None
        at = temperature_array(self.temperature)
        fused = {name: batch.fused[f"{name}/{at}"] for name in (CLASSES, EDGES)}
        (class_log_probs, edge_log_probs), mean = fused.values(), batch.fused[f"{DISTANCES}/{MEAN}"]
        assert isinstance(class_log_probs, Tensor)
        assert isinstance(edge_log_probs, Tensor)
        assert isinstance(mean, Tensor)
        foreground = foreground_of(class_log_probs, temperature=self.temperature)
        classes, true = split_truth(batch.targets)
        background = {"background_weight": self.options["background"]} if "background" in self.options else {}
        how: dict[str, Any] = {"temperature": self.temperature}
        return {
            CLASSES: class_divergence(parts[CLASSES], class_log_probs, **how, **background),
            EDGES: edge_divergence(parts[EDGES], edge_log_probs, foreground, **how),
            DISTANCES: bounded_boxes(
                parts[DISTANCES], mean, true, classes, foreground, margin=self.options.get("margin", 0.0)
            ),
        }


def check_alpha(alpha: object, where: str) -> None:
    """Raise StillroomError unless alpha, the labels' share, is a number in [0, 1]."""
    if isinstance(alpha, bool) or not isinstance(alpha, int | float) or not 0 <= alpha <= 1:
        raise StillroomError(
            f"{where}.alpha: found {alpha!r}; expected a number from 0 to 1, for rules are of classes; change it, or "
            f"leave it out"
        )
