"""Data sets of pictures, of a catalogue entry or a folder of classes.

A data set that fits the memory budget is decoded once into one uint8 tensor; beyond it pictures are decoded
as they are read. Each picture goes through the same steps alone either way, so the bytes are the same.
"""

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from pipeline.datasets.catalog import Entry, fetch
from pipeline.datasets.digests import digest_arrays, digest_files, sha256_of
from pipeline.datasets.folders import (
    UNLABELLED,
    check_test_classes,
    class_names,
    decoded_picture,
    pictures_below,
    probe_shape,
    split_folders,
)
from pipeline.datasets.pictures import fit, with_channels
from pipeline.errors import StillroomError

PICTURE_VERSION = 1  # raise it when decoding, resizing or cropping gives other pixels


@dataclass(eq=False)
class ImageDataset:
    """Pictures with stable ids 0..N-1, their labels and the digests of their source bytes.

    labels: int64 [N], -1 where there is none; official_test: int64 ids; shape: (C, H, W) of what `read` gives.
    picture(i): uint8 [C, H, W]; digest_all(): uint64 [N]; pixels: uint8 [N, C, H, W] once held in memory.
    units: [N], what must stay in one split has one value, None where samples are their own; made_by: what else than
    PICTURE_VERSION says how source bytes became pictures. objects: where there are boxes to find, those of each
    picture, float32 [n, 5] (class, x0, y0, x1, y1 in pixels), of pictures whose label is 0.
    """

    name: str
    classes: tuple[str, ...]
    labels: np.ndarray
    official_test: np.ndarray
    shape: tuple[int, int, int]
    picture: Callable[[int], torch.Tensor]
    digest_all: Callable[[], np.ndarray]
    pixels: torch.Tensor | None = None
    units: np.ndarray | None = None
    made_by: Mapping[str, Any] = field(default_factory=dict)
    objects: Sequence[np.ndarray] | None = None

    def __len__(self) -> int:
        return len(self.labels)

    def read(self, ids: np.ndarray) -> torch.Tensor:
        """Return the pictures uint8 [B, C, H, W] in the order of ids [B].

        Raises StillroomError naming the file when a picture cannot be decoded.
        """
        ids = np.asarray(ids, dtype=np.int64)
        if ids.size and (ids.min() < 0 or ids.max() >= len(self)):
            raise ValueError(f"{self.name}: ids {ids.min()}..{ids.max()}; expected 0..{len(self) - 1}")
        if self.pixels is not None:
            return self.pixels.index_select(0, torch.from_numpy(ids))
        return self._decode(ids)

    @property
    def group_of(self) -> np.ndarray | None:
        """None: pictures belong to no subgroups."""
        return None

    @property
    def ranking(self) -> None:
        """None: nobody ranks pictures."""
        return None

    def fit(self, ids: np.ndarray) -> "ImageDataset":
        """Return self: what a model reads of a picture is fitted on no other."""
        return self

    def reading(self, name: str | None) -> "ImageDataset":
        """Return self. Raises StillroomError for a name: pictures have one input, which has none."""
        if name is not None:
            raise StillroomError(
                f"{self.name}: found input {name!r}; expected none, for pictures have one; leave reads out"
            )
        return self

    def input_config(self, name: str | None) -> dict[str, Any]:
        """Return {}: the data set's fingerprint says how pictures are made. Raises StillroomError for a name."""
        self.reading(name)
        return {}

    def hold_in_memory(self, memory_budget: int) -> "ImageDataset":
        """Decode everything now if it takes at most memory_budget bytes; return self."""
        if self.pixels is None and len(self) * int(np.prod(self.shape)) <= memory_budget:
            self.pixels = self._decode(np.arange(len(self)))
        return self

    def source_digests(self, ids: np.ndarray) -> np.ndarray:
        """Return the 64-bit digests uint64 [B] of the samples' source bytes, whatever size they are read at."""
        return self._digests[np.asarray(ids, dtype=np.int64)]

    @cached_property
    def fingerprint(self) -> str:
        """sha256 over every source byte, label and their order, and over how pictures are decoded; not the name."""
        content = {
            "shape": self.shape,
            "classes": self.classes,
            "labels": sha256_of(self.labels),
            "official_test": sha256_of(self.official_test),
            "digests": sha256_of(self._digests),
            "picture_version": PICTURE_VERSION,
            **self.made_by,
        }
        if self.objects is not None:
            content["objects"] = [hashlib.sha256(each.astype("<f4").tobytes()).hexdigest() for each in self.objects]
        return hashlib.sha256(json.dumps(content, sort_keys=True, separators=(",", ":")).encode()).hexdigest()

    @cached_property
    def _digests(self) -> np.ndarray:
        return self.digest_all()

    def _decode(self, ids: np.ndarray) -> torch.Tensor:
        pictures = torch.empty((len(ids), *self.shape), dtype=torch.uint8)
        with ThreadPoolExecutor() as pool:
            for row, picture in enumerate(pool.map(self.picture, ids.tolist())):
                pictures[row] = picture
        return pictures


def open_pictures(
    name: str, entry: Entry, raw: Path, catalog: Mapping[str, Entry], size: int | None, channels: int | None
) -> ImageDataset:
    """Return the pictures of a catalogue entry, fetched into raw if need be."""
    pixels, labels = FORMATS[entry.format](fetch(name, raw, catalog=catalog), entry)
    return from_arrays(name, entry, pixels, labels, size, channels)


def from_arrays(
    name: str, entry: Entry, pixels: np.ndarray, labels: np.ndarray, size: int | None, channels: int | None
) -> ImageDataset:
    """Return a data set of pixels uint8 [N, C, H, W] and labels [N], the test samples after the training ones."""
    assert entry.shape is not None
    shape = (channels or entry.shape[0], size or entry.shape[1], size or entry.shape[2])
    return ImageDataset(
        name=name,
        classes=entry.classes,
        labels=labels.astype(np.int64),
        official_test=np.arange(entry.samples["train"], len(labels)),
        shape=shape,
        picture=partial(fitted_picture, torch.from_numpy(pixels), shape),
        digest_all=partial(digest_arrays, pixels),
        pixels=torch.from_numpy(pixels) if shape == entry.shape else None,
    )


def read_idx(folder: Path, entry: Entry) -> tuple[np.ndarray, np.ndarray]:
    """Return pixels uint8 [N, C, H, W] and labels [N] of idx files, in the order of the catalogue's splits."""
    paths = {(file.split, file.holds): folder / file.name for file in entry.files}
    images = [np.fromfile(paths[split, "images"], np.uint8, offset=16) for split in entry.samples]
    labels = [np.fromfile(paths[split, "labels"], np.uint8, offset=8) for split in entry.samples]
    return np.concatenate(images).reshape(-1, *(entry.shape or ())), np.concatenate(labels)


def read_pixels_csv(folder: Path, entry: Entry) -> tuple[np.ndarray, np.ndarray]:
    """Return pixels uint8 [N, C, H, W] and labels [N] of a table whose last column is the label."""
    table = np.loadtxt(folder / entry.files[0].name, delimiter=",", dtype=np.uint8)
    return np.ascontiguousarray(table[:, :-1]).reshape(-1, *(entry.shape or ())), table[:, -1]


FORMATS: dict[str, Callable[[Path, Entry], tuple[np.ndarray, np.ndarray]]] = {
    "idx": read_idx,
    "pixels-csv": read_pixels_csv,
}


def open_folder(folder: Path, raw: Path, size: int | None, channels: int | None) -> ImageDataset:
    """Return the data set of a folder of classes: labelled, then unlabelled, then test pictures, each sorted."""
    folder = folder.expanduser().resolve()
    train, test = split_folders(folder)
    classes = class_names(train)
    paths = [(path, label) for label, name in enumerate(classes) for path in pictures_below(train / name)]
    paths += [(path, -1) for path in pictures_below(train / UNLABELLED)]
    num_train = len(paths)
    if test is not None:
        names = check_test_classes(test, classes)
        paths += [(path, classes.index(name)) for name in names for path in pictures_below(test / name)]
    files = [path for path, _ in paths]
    shape = probe_shape(folder, files, size, channels)
    return ImageDataset(
        name=folder.name,
        classes=classes,
        labels=np.array([label for _, label in paths], dtype=np.int64),
        official_test=np.arange(num_train, len(paths)),
        shape=shape,
        picture=partial(decoded_picture, files, shape, size is None),
        digest_all=partial(digest_files, folder, files, raw),
    )


def fitted_picture(pixels: torch.Tensor, shape: tuple[int, int, int], i: int) -> torch.Tensor:
    """Return picture i of pixels [N, C, H, W] in another shape."""
    return fit(with_channels(pixels[i], shape[0]), *shape[1:])
