"""One's own pictures with boxes, in COCO's format: a folder, and a JSON file that says what is where.

Pictures are stretched to one size, and boxes with them: cropping would cut objects off. Trade: what is stretched looks
another way than it does, the same for teachers and students.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from pydantic import BaseModel, Field, ValidationError
from torchvision.transforms.v2 import functional as transforms

from pipeline.datasets.digests import digest_files
from pipeline.datasets.folders import pictures_below, probe_shape
from pipeline.datasets.images import ImageDataset
from pipeline.datasets.pictures import decode
from pipeline.errors import StillroomError, near_names

LEAST_SIDE = 1.0  # pixels of a box as it is read: what is thinner tells nothing


class Category(BaseModel):
    """A class."""

    id: int
    name: str


class Picture(BaseModel):
    """A picture and its size in pixels."""

    id: int
    file_name: str
    width: int = Field(gt=0)
    height: int = Field(gt=0)


class Annotation(BaseModel):
    """An object: its corner, width and height in pixels; crowds are none."""

    image_id: int
    category_id: int
    bbox: tuple[float, float, float, float]
    iscrowd: int = 0


class Annotations(BaseModel):
    """What a file says. Source: Lin 2014 (1405.0312), "object detection" of the format."""

    images: list[Picture]
    annotations: list[Annotation]
    categories: list[Category]


@dataclass(frozen=True)
class Annotated:
    """A file of annotations with what follows from it: the classes' places by their ids."""

    path: Path
    said: Annotations
    places: Mapping[int, int]

    @property
    def names(self) -> list[str]:
        """The classes in the order of their ids."""
        return [each.name for each in sorted(self.said.categories, key=lambda each: each.id)]


def open_coco(
    folder: Path, raw: Path, boxes: Path, *, test_boxes: Path | None, size: int | None, channels: int | None
) -> ImageDataset:
    """Return the pictures below a folder with the objects that `boxes` says; those of `test_boxes` are the test.

    A picture that neither file names shows no label, and one that is named without objects shows that there are none.
    Raises StillroomError for a file that is none of COCO's, names a picture or class that isn't there, or names other
    classes than the first.
    """
    folder = folder.expanduser().resolve()
    train = read_annotations(boxes)
    files = [train] if test_boxes is None else [train, read_annotations(test_boxes)]
    if files[-1].names != train.names:
        raise StillroomError(
            f"{test_boxes}: found classes {files[-1].names}; expected those of {boxes}, {train.names}; mend one of them"
        )
    there = {path.relative_to(folder).as_posix(): path for path in pictures_below(folder)}
    listed = [[_listed(each.file_name, there, file.path) for each in file.said.images] for file in files]
    named = {name for names in listed for name in names}
    if len(named) < sum(map(len, listed)):
        raise StillroomError(f"{boxes}: found a picture twice; expected each once; mend it, or the test's file")
    order = [*listed[0], *sorted(set(there) - named), *(listed[1] if len(files) > 1 else [])]
    paths = [there[name] for name in order]
    shape = probe_shape(folder, paths, size, channels)
    objects = {
        name: rows for file, names in zip(files, listed, strict=True) for name, rows in _objects(file, names, shape)
    }
    none = np.zeros((0, 5), np.float32)
    return ImageDataset(
        name=folder.name,
        classes=tuple(train.names),
        labels=np.array([0 if name in objects else -1 for name in order], np.int64),
        official_test=np.arange(len(order) - (len(listed[1]) if len(files) > 1 else 0), len(order)),
        shape=shape,
        picture=partial(stretched_picture, paths, shape),
        digest_all=partial(digest_files, folder, paths, raw),
        objects=[objects.get(name, none) for name in order],
    )


def read_annotations(path: Path) -> Annotated:
    """Return what a file says. Raises StillroomError unless it is one of COCO's with one class at least."""
    try:
        said = Annotations.model_validate(json.loads(path.expanduser().read_text("utf-8")))
    except (OSError, ValueError, RecursionError, ValidationError) as error:
        reason = _first(error)
        raise StillroomError(f"{path}: found no annotations ({reason}); expected a file of COCO's; mend it") from error
    if not said.categories or len({each.name for each in said.categories}) < len(said.categories):
        raise StillroomError(f"{path}: found {len(said.categories)} categories; expected some, of names of their own")
    ids = sorted(each.id for each in said.categories)
    return Annotated(path, said, {number: place for place, number in enumerate(ids)})


def _first(error: Exception) -> str:
    if isinstance(error, ValidationError):
        fault = error.errors()[0]
        return f"{'.'.join(map(str, fault['loc']))}: {fault['msg']}"
    return str(error).splitlines()[0] if str(error) else type(error).__name__


def _listed(name: str, there: Mapping[str, Path], where: Path) -> str:
    if name not in there:
        raise StillroomError(
            f"{where}: names picture {name!r}, which isn't there; expected a file below the folder; "
            f"{near_names(name, list(there)[:1000])}"
        )
    return name


def _objects(file: Annotated, names: Sequence[str], shape: tuple[int, int, int]) -> list[tuple[str, np.ndarray]]:
    """Return the objects of each picture of a file: float32 [n, 5], class and box in pixels as they are read."""
    rows: dict[int, list[list[float]]] = {each.id: [] for each in file.said.images}
    for each in file.said.annotations:
        if each.image_id not in rows or each.category_id not in file.places:
            raise StillroomError(
                f"{file.path}: an annotation is of picture {each.image_id} and category {each.category_id}; expected "
                f"some that the file lists; mend it"
            )
        if not each.iscrowd:
            x, y, width, height = each.bbox
            rows[each.image_id].append([file.places[each.category_id], x, y, x + width, y + height])
    return [
        (name, scaled(np.array(rows[each.id], np.float64).reshape(-1, 5), each, shape))
        for name, each in zip(names, file.said.images, strict=True)
    ]


def scaled(objects: np.ndarray, picture: Picture, shape: tuple[int, int, int]) -> np.ndarray:
    """Return objects [n, 5] of a picture as it lies, stretched to a shape and cut at its edges; some vanish."""
    factors = np.array([shape[2] / picture.width, shape[1] / picture.height])
    boxes = objects[:, 1:] * np.tile(factors, 2)
    boxes = np.clip(boxes, 0, np.tile([shape[2], shape[1]], 2))
    is_there = ((boxes[:, 2:] - boxes[:, :2]) >= LEAST_SIDE).all(1)
    return np.concatenate([objects[:, :1], boxes], axis=1)[is_there].astype(np.float32)


def stretched_picture(files: Sequence[Path], shape: tuple[int, int, int], i: int) -> torch.Tensor:
    """Return picture i of files, stretched to a shape: uint8 [C, H, W]."""
    picture: Any = decode(files[i], shape[0])
    return picture if picture.shape == shape else transforms.resize(picture, list(shape[1:]), antialias=True)
