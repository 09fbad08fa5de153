"""The input that every data set has: a sample's own id, for teachers that look up what was said of it."""

from dataclasses import dataclass
from typing import Any

import numpy as np

IDS = "id"  # what a recipe calls it


@dataclass(frozen=True, eq=False)
class SampleIds:
    """The samples of a data set, as a model sees them that reads nothing but their ids."""

    dataset: Any

    def __len__(self) -> int:
        return len(self.dataset)

    @property
    def shape(self) -> tuple[int, ...]:
        """(), of one number."""
        return ()

    @property
    def fingerprint(self) -> str:
        """The data set's sha256."""
        return self.dataset.fingerprint

    def source_digests(self, ids: np.ndarray) -> np.ndarray:
        """Return the 64-bit digests of the samples uint64 [B]."""
        return self.dataset.source_digests(ids)

    def read(self, ids: np.ndarray) -> np.ndarray:
        """Return the ids themselves, int64 [B]."""
        return np.asarray(ids, dtype=np.int64)
