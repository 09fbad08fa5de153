"""Catalogue entries of pictures with boxes to find in them."""

from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np

from pipeline.datasets.canvases import CANVASES, read_canvases
from pipeline.datasets.catalog import Entry, fetch
from pipeline.datasets.crowns import CROWNS, read_crowns
from pipeline.datasets.images import ImageDataset, from_arrays
from pipeline.datasets.objects import ObjectPictures

BOXED: dict[str, Callable[[Path, Entry], ObjectPictures]] = {CANVASES: read_canvases, CROWNS: read_crowns}


def open_boxed(name: str, entry: Entry, raw: Path, catalog: Mapping[str, Entry]) -> ImageDataset:
    """Return the pictures of an entry with their objects, fetched into raw if need be; each shows its own: label 0."""
    made = BOXED[entry.format](fetch(name, raw, catalog=catalog), entry)
    dataset = from_arrays(name, entry, made.pixels, np.zeros(len(made.pixels)), None, None)
    return replace(dataset, official_test=np.flatnonzero(made.is_test), units=made.units, objects=made.objects)
