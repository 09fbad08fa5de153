"""What a recipe's data asks of its models, and what is true of each sample as a plan holds it."""

from typing import Any

import numpy as np

from pipeline.datasets import ImageDataset, RecordDataset
from pipeline.datasets.inputs import FittedPair
from pipeline.tasks import Boxes, Classes, Draws, Reals, Task, Tokens
from pipeline.views import UNLABELLED, Split


def task_of_data(dataset: ImageDataset | RecordDataset, train: Split) -> Task:
    """Return what is asked of a data set that is fitted on its train rows; scales are theirs, too."""
    if isinstance(dataset, ImageDataset):
        _, height, width = dataset.shape
        return Classes(dataset.classes) if dataset.objects is None else Boxes(dataset.classes, height, width)
    if dataset.asks_sentences:
        fitted = dataset.reading(None).fitted
        assert isinstance(fitted, FittedPair)
        return Tokens(fitted.vocabulary.names, fitted.options.length, fitted.vocabulary.text)
    if dataset.targets is None:
        return Classes(dataset.classes)
    kind = Draws if dataset.draws else Reals
    return kind.of(dataset.classes, dataset.targets[train.ids[train.labelled]], dataset.unit)


def showing(split: Split, dataset: Any, task: Task) -> Split:
    """Return a split with what is true of its rows, as learners may see it, where labels don't say it."""
    targets = _targets(split.ids, dataset, task)
    if targets is None:
        return split
    unknown = UNLABELLED if targets.dtype.kind == "i" else np.nan
    is_hidden = (split.labels == UNLABELLED).reshape(-1, *[1] * (targets.ndim - 1))
    return Split(split.ids, split.labels, np.where(is_hidden, targets.dtype.type(unknown), targets))


def _targets(ids: np.ndarray, dataset: Any, task: Task) -> np.ndarray | None:
    """Return what is true of samples: float32 or int32 [B, ...], None where labels say it all."""
    if isinstance(task, Boxes):
        return task.cells([dataset.objects[i] for i in ids])
    if isinstance(task, Tokens):
        return dataset.reading(None).tokens(ids).numpy().astype(np.int32)
    return task.standardised(dataset.targets[ids]) if isinstance(task, Reals) else None
