"""Boxes that were found are judged against all objects of the test pictures: by average precision."""

from collections.abc import Iterable, Sequence

import numpy as np
import torch
from torch import Tensor

from pipeline.datasets import ImageDataset
from pipeline.detection.decoding import Detections, as_detections, decode
from pipeline.detection.drawing import drawn
from pipeline.detection.scores import average_precision
from pipeline.report import Grid, Part
from pipeline.tasks import Boxes
from stages.judging.contract import Answers, shown_as
from stages.workspace import Workspace

ROWS = 4  # pictures that the page shows
NOTE = (
    "Test pictures with the most objects, and the boxes that each model finds with a score of 0.3 or more; students "
    "and baselines: the first seed."
)


class BoxJudging:
    """The objects of a recipe's test pictures."""

    def __init__(self, ws: Workspace):
        dataset = ws.dataset
        assert isinstance(ws.task, Boxes)
        assert isinstance(dataset, ImageDataset)
        assert dataset.objects is not None
        self.task, self.dataset, self.ids = ws.task, dataset, ws.plan.splits["test"].ids
        self.objects = [torch.from_numpy(dataset.objects[i]) for i in self.ids]

    def figures(self, answers: Tensor) -> dict[str, float]:
        """Return the average precision of answers on the test rows: [N, G, K + 5]."""
        objects = [(each[:, 1:], each[:, 0]) for each in self.objects]
        return average_precision(self._found(answers), objects, len(self.task.names))

    def facts(self) -> list[tuple[str, str]]:
        """Return what the page says of the objects."""
        grid, count = self.task.grid, sum(map(len, self.objects))
        return [
            ("objects on test pictures", f"{count:,}, of {len(self.task.names)} classes"),
            ("grid", f"{grid.num_cells} cells of {grid.stride} x {grid.stride} pixels"),
        ]

    def grid(self, parts: Iterable[Part], answers: Answers) -> Grid:
        """Return some test pictures with the boxes that each model finds, and with the true ones."""
        rows = self._shown()
        columns: dict[str, Sequence[Detections]] = {"truth": [as_detections(self.objects[row]) for row in rows]}
        for part in parts:
            if (name := shown_as(part)) is not None and name not in columns:
                columns[name] = self._found(answers(part)[rows])
        pictures = self.dataset.read(self.ids[rows])
        sheets = [drawn(pictures, found, self.task.names).numpy() for found in columns.values()]
        title = "Test pictures with the boxes that every model finds with a score of 0.3 or more"
        return Grid([f"row {row:,}" for row in rows], list(columns), np.stack(sheets, axis=1), title, NOTE)

    def _found(self, answers: Tensor) -> Sequence[Detections]:
        return decode(*self.task.told(answers), self.task.grid)

    def _shown(self) -> np.ndarray:
        """Return the test pictures with the most objects, the first of each number: int64 [<= ROWS]."""
        counts = np.array(list(map(len, self.objects)))
        numbers = np.unique(counts[counts > 0])[::-1][:ROWS]
        return np.array([int(np.flatnonzero(counts == number)[0]) for number in numbers], np.int64)
