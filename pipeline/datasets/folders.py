"""Folders of pictures in the layout of torchvision's ImageFolder: one folder a class, found and checked."""

import os
from pathlib import Path

import numpy as np
import torch

from pipeline.datasets.pictures import decode, fit, is_grey
from pipeline.errors import StillroomError, unknown_name

SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".webp")
UNLABELLED = "_unlabelled"
PROBES = 64


def split_folders(folder: Path) -> tuple[Path, Path | None]:
    """Return where the training and the test classes lie. A class may itself be called train."""
    if not folder.is_dir():
        raise StillroomError(f"{folder}: no such folder; expected one folder for each class; check the path")
    train, test = folder / "train", folder / "test"
    if train.is_dir() and class_folders(train):
        return train, test if test.is_dir() else None
    return folder, None


def class_folders(folder: Path) -> list[str]:
    """Return the names of the folders in folder, sorted, hidden ones left out."""
    return sorted(path.name for path in folder.iterdir() if path.is_dir() and not path.name.startswith("."))


def class_names(train: Path) -> tuple[str, ...]:
    """Return the classes. Raises StillroomError for fewer than two, or one without a picture."""
    classes = tuple(name for name in class_folders(train) if name != UNLABELLED)
    if len(classes) < 2:
        found = f"only one class, {classes[0]!r}" if classes else "no class folders"
        raise StillroomError(
            f"{train}: {found}; expected at least two folders of pictures; put each class into its own"
        )
    for name in classes:
        if not pictures_below(train / name):
            kinds = ", ".join(SUFFIXES)
            raise StillroomError(
                f"{train / name}: no pictures; expected files ending in {kinds}; add some or remove it"
            )
    return classes


def check_test_classes(test: Path, classes: tuple[str, ...]) -> list[str]:
    """Return the class folders of the test part. Raises StillroomError for one that training does not have."""
    names = class_folders(test)
    for name in names:
        if name not in classes:
            raise unknown_name(str(test), "class", name, classes)
    return names


def pictures_below(folder: Path) -> list[Path]:
    """Return every picture below folder, sorted by its path, following links as torchvision's ImageFolder does."""
    found = (Path(at, name) for at, _, names in os.walk(folder, followlinks=True) for name in names)
    pictures = (path for path in found if path.suffix.lower() in SUFFIXES and not path.name.startswith("."))
    return sorted(pictures, key=lambda path: path.relative_to(folder).as_posix())


def probe_shape(folder: Path, files: list[Path], size: int | None, channels: int | None) -> tuple[int, int, int]:
    """Return (C, H, W): what is asked for, else what pictures spread over the data set have in common."""
    if size and channels:
        return channels, size, size
    spread = np.unique(np.linspace(0, len(files) - 1, PROBES).round().astype(int))
    probes = [decode(files[i], 3) for i in spread]
    sizes = {tuple(picture.shape[1:]) for picture in probes}
    if not size and len(sizes) > 1:
        found = ", ".join(f"{height}x{width}" for height, width in sorted(sizes)[:3])
        raise StillroomError(
            f"{folder}: pictures of {found} ... pixels; expected one size; set size to have them resized"
        )
    height, width = (size, size) if size else probes[0].shape[1:]
    return channels or (1 if all(is_grey(picture) for picture in probes) else 3), height, width


def decoded_picture(files: list[Path], shape: tuple[int, int, int], one_size: bool, i: int) -> torch.Tensor:
    """Return picture i of files in shape. Raises StillroomError if one_size is expected and it has another."""
    picture = decode(files[i], shape[0])
    if one_size and picture.shape[1:] != shape[1:]:
        found, wanted = ("x".join(map(str, sizes)) for sizes in (picture.shape[1:], shape[1:]))
        raise StillroomError(
            f"{files[i]}: {found} pixels; expected {wanted} as the others; set size to have all resized"
        )
    return fit(picture, *shape[1:])
