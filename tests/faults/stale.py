"""What tests of stale stores share: pictures and their changes, stores left unfinished, and what a refusal must be."""

import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from toys import make_labels, make_pixels

from pipeline.errors import StaleStoreError
from pipeline.lineage import MANIFEST
from pipeline.store.records import RECORDS

PIXELS, LABELS = make_pixels(30), make_labels(30)
STATES = ["finished", "unfinished"]
over_states = pytest.mark.parametrize("state", STATES)


def another_pixel() -> np.ndarray:
    pixels = PIXELS.copy()
    pixels[3, 0, 5, 5] ^= 1
    return pixels


def another_label() -> np.ndarray:
    labels = LABELS.copy()
    labels[4] = (labels[4] + 1) % 3
    return labels


def two_swapped() -> np.ndarray:
    """Two samples of one class, the one where the other was."""
    pixels = PIXELS.copy()
    pixels[[0, 3]] = pixels[[3, 0]]
    return pixels


def unfinish(folder: Path) -> None:
    """Leave the first blocks only."""
    (folder / MANIFEST).unlink()
    for record in sorted((folder / RECORDS).iterdir())[3:]:
        record.unlink()


def traces(folder: Path) -> dict[str, tuple[int, int]]:
    """Return every file and folder with its inode and the time of its last change."""
    paths = [folder, *folder.rglob("*")]
    return {str(path): (path.stat().st_ino, path.stat().st_mtime_ns) for path in paths}


def check_refused(ask: Callable[[], object], folder: Path, field: str) -> None:
    """The store is refused by the name of the field, with both values, and nothing is touched."""
    before = traces(folder)
    with pytest.raises(StaleStoreError) as refused:
        ask()
    told = str(refused.value)
    assert re.search(rf"(another|teacher:|stores:|,) {field} \(found .*; expected .*\).*; delete ", told), told
    assert told.startswith(str(folder))
    assert "plan (found '" not in told, f"a fingerprint says nothing: {told}"
    assert traces(folder) == before
