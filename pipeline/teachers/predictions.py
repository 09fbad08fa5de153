"""Anybody's predictions as a teacher: answers that are there already, looked up by sample id.

They lie in one file of safetensors: `ids` int64 [N] of samples of a data set, ascending, `digests` uint64 [N] of what
those samples were, `logits` float32 [N, C], and the names of the classes. So they are refused for samples that are no
longer the same, and for other classes. The trade: all of them are held in memory.
"""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Self

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save

from pipeline.answers import Answers
from pipeline.errors import StaleStoreError, StillroomError
from pipeline.lineage import write_durably

PREDICTIONS = "predictions.safetensors"
FIRST = 5  # sample ids that an error names
_TYPES: dict[str, np.dtype] = {
    "ids": np.dtype(np.int64),
    "digests": np.dtype(np.uint64),
    "logits": np.dtype(np.float32),
}


@dataclass(frozen=True, eq=False)
class Predictions:
    """Answers on samples: `ids` int64 [N], ascending, `digests` uint64 [N], `logits` float32 [N, C], C class names."""

    ids: np.ndarray
    digests: np.ndarray
    logits: np.ndarray
    classes: tuple[str, ...]

    def to_bytes(self) -> bytes:
        """Return the file's content: the same predictions, the same bytes."""
        arrays = {"ids": self.ids, "digests": self.digests, "logits": self.logits}
        contiguous = {name: np.ascontiguousarray(values, _TYPES[name]) for name, values in arrays.items()}
        return save(contiguous, metadata={"classes": json.dumps(self.classes)})

    @classmethod
    def read(cls, path: Path) -> Self:
        """Return the predictions of a file. Raises StillroomError when it holds none."""
        try:
            with safe_open(path, framework="numpy") as file:
                arrays = {name: file.get_tensor(name) for name in _TYPES if name in file.keys()}  # noqa: SIM118
                classes = json.loads((file.metadata() or {}).get("classes", "[]"))
            found = cls(**arrays, classes=tuple(map(str, classes)))
            fault = found._fault()
        except (OSError, ValueError, TypeError, SafetensorError) as error:
            fault = str(error)
        if fault:
            raise StillroomError(
                f"{path}: found no predictions ({fault}); expected a file that 'stillroom import' wrote; import them "
                f"again"
            )
        return found

    def _fault(self) -> str | None:
        for name, dtype in _TYPES.items():
            if getattr(self, name).dtype != dtype:
                return f"{name} of {getattr(self, name).dtype}"
        rows = (len(self.ids),)
        if (self.ids.shape, self.digests.shape, self.logits.shape) != (rows, rows, (*rows, len(self.classes))):
            return f"shapes {self.ids.shape}, {self.digests.shape}, {self.logits.shape}"
        if (np.diff(self.ids) <= 0).any() or (self.ids < 0).any():
            return "sample ids that do not ascend"
        return None if np.isfinite(self.logits).all() else "logits that are not finite"


class PredictionsTeacher:
    """A teacher that has answered already: asked with sample ids, it looks up what was said of them."""

    rows_at_once: int | None = 1 << 14

    def __init__(self, predictions: Predictions, *, where: str = "teacher"):
        self.predictions, self.where = predictions, where
        self.feature_widths: Mapping[str, int] = {}
        self.head = None

    def predict(self, inputs: np.ndarray) -> Answers:
        """Return what was said of samples: ids int64 [B] -> Answers without features. Raises as `check_asked`."""
        return Answers(torch.from_numpy(self.predictions.logits[self.check_asked(inputs)]))

    def check_asked(self, ids: np.ndarray) -> np.ndarray:
        """Return the row of each sample, int64 [B]. Raises: StillroomError, naming the first without one."""
        own = self.predictions.ids
        rows = np.searchsorted(own[:-1], ids)  # one beyond the last is compared with the last
        missing = np.unique(ids[own[rows] != ids]) if len(own) else np.unique(ids)
        if len(missing):
            raise StillroomError(
                f"{self.where}: found no prediction of {len(missing)} of {len(np.unique(ids))} samples (ids "
                f"{named(missing)}); expected one of each sample of the plan; import a file that has them"
            )
        return rows

    def check_made_for(self, classes: Sequence[str], digests: Callable[[np.ndarray], np.ndarray], samples: int) -> None:
        """Raise StillroomError unless these are predictions of these classes, and of samples as they are now.

        `digests(ids)` gives uint64 [B] of the data set's `samples` samples.
        """
        said = self.predictions
        if said.classes != tuple(classes):
            raise StaleStoreError(
                f"{self.where}: found predictions of the classes {list(said.classes)[:FIRST]}...; expected those of "
                f"the data, {list(classes)[:FIRST]}...; import them again"
            )
        known = said.ids < samples
        changed = np.concatenate([said.ids[known][digests(said.ids[known]) != said.digests[known]], said.ids[~known]])
        if len(changed):
            raise StaleStoreError(
                f"{self.where}: found predictions of {len(changed)} samples that have changed since, or are gone (ids "
                f"{named(changed)}); expected the samples that were predicted; import the predictions of these data"
            )

    def save(self, folder: Path) -> list[str]:
        """Write `predictions.safetensors`."""
        write_durably(folder / PREDICTIONS, self.predictions.to_bytes())
        return [PREDICTIONS]


def named(ids: np.ndarray) -> str:
    """Return the first few sample ids for an error."""
    return ", ".join(map(str, ids[:FIRST].tolist())) + (", ..." if len(ids) > FIRST else "")
