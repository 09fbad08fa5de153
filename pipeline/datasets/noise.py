"""Pictures to be made, not told apart: a record is a seed and a class, what is true of it a picture of that class."""

from pathlib import Path

import numpy as np
import pandas as pd

from pipeline.datasets.catalog import Entry
from pipeline.datasets.images import read_idx

IDX_LABELS = 8  # bytes before the first label of an idx file, of which each takes one


def read_pictures(folder: Path, entry: Entry) -> tuple[pd.DataFrame, np.ndarray, np.ndarray, tuple[str, ...]]:
    """Return records (seed, class), the ids of the test, pictures float32 [N, P] in [0, 1], and what a pixel is called.

    Record i has seed i and the class of picture i, which is one draw of what it might be: no seed belongs to a picture.
    """
    pixels, labels = read_idx(folder, entry)
    classes = np.array(entry.classes, dtype=object)[labels]
    pictures = (pixels.reshape(len(pixels), -1) / np.float32(255)).astype(np.float32)
    of_train = next(file.name for file in entry.files if (file.split, file.holds) == ("train", "labels"))
    test = np.arange((folder / of_train).stat().st_size - IDX_LABELS, len(labels))
    height, width = pixels.shape[-2:]
    names = tuple(f"{row},{column}" for row in range(height) for column in range(width))
    return pd.DataFrame({"seed": np.arange(len(labels)), "class": classes}), test, pictures, names
