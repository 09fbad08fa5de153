"""One's own pictures with boxes: what a file in COCO's format says, stretched as its pictures are, and its mistakes."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from pipeline.datasets import open_dataset
from pipeline.datasets.images import ImageDataset
from pipeline.errors import StillroomError

SIZES = {"day/a.png": (40, 20), "b.png": (32, 32), "night/c.png": (16, 64), "d.png": (32, 32)}  # width, height
TRAIN = {"day/a.png": [(7, 10, 5, 20, 10), (3, 0, 0, 8, 4)], "b.png": [(7, 4, 4, 40, 8)], "d.png": []}
CATEGORIES = [{"id": 7, "name": "dog"}, {"id": 3, "name": "cat"}]


def annotations(objects: dict[str, list[tuple[int, ...]]]) -> dict[str, Any]:
    """Return a file's content: `objects` gives category, x, y, width and height of each picture's."""
    images = [
        {"id": 10 + i, "file_name": name, "width": SIZES[name][0], "height": SIZES[name][1]}
        for i, name in enumerate(objects)
    ]
    said = [
        {"id": i, "image_id": 10 + place, "category_id": row[0], "bbox": row[1:], "area": 1.0, "iscrowd": 0}
        for place, rows in enumerate(objects.values())
        for i, row in enumerate(rows)
    ]
    return {"info": {}, "images": images, "annotations": said, "categories": CATEGORIES}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder of four pictures in three folders; the left half of each is dark, the right one light."""
    for name, (width, height) in SIZES.items():
        pixels = np.zeros((height, width), np.uint8)
        pixels[:, width // 2 :] = 200
        (tmp_path / "pictures" / name).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).save(tmp_path / "pictures" / name)
    return tmp_path / "pictures"


def opened(folder: Path, said: Any, *, test: Any = None, size: int | None = 32, **options: Any) -> ImageDataset:
    files = {"boxes": said} if test is None else {"boxes": said, "test_boxes": test}
    for key, content in files.items():
        (folder.parent / f"{key}.json").write_text(content if isinstance(content, str) else json.dumps(content))
    paths = {key: folder.parent / f"{key}.json" for key in files}
    dataset = open_dataset(str(folder), folder.parent / "raw", size=size, **paths, **options)
    assert isinstance(dataset, ImageDataset)
    return dataset


def test_boxes_are_stretched_with_their_pictures(folder):
    dataset = opened(folder, annotations(TRAIN))
    assert (dataset.name, len(dataset), dataset.classes, dataset.shape) == ("pictures", 4, ("cat", "dog"), (1, 32, 32))
    assert dataset.objects is not None
    assert dataset.objects[0].tolist() == [[1, 8, 8, 24, 24], [0, 0, 0, 6.4000000953674316, 6.4000000953674316]]
    assert dataset.objects[1].tolist() == [[1, 4, 4, 32, 12]]  # cut at the picture's edge
    assert dataset.official_test.size == 0
    for i in range(4):
        pixels = dataset.read(np.array([i]))[0, 0]
        assert pixels.shape == (32, 32)
        assert pixels[:, :14].max() < 40
        assert pixels[:, 18:].min() > 160


def test_a_picture_without_objects_is_labelled_and_an_unnamed_one_is_not(folder):
    dataset = opened(folder, annotations(TRAIN))
    assert dataset.labels.tolist() == [0, 0, 0, -1]
    assert [len(each) for each in dataset.objects] == [2, 1, 0, 0]


def test_a_second_file_is_the_test(folder):
    dataset = opened(folder, annotations(TRAIN), test=annotations({"night/c.png": [(3, 8, 32, 8, 32)]}))
    assert dataset.official_test.tolist() == [3]
    assert dataset.objects[3].tolist() == [[0, 16, 16, 32, 32]]


def test_crowds_and_slivers_are_no_objects(folder):
    said = annotations({"b.png": [(7, 0, 0, 10, 10), (7, 5, 5, 10, 0), (3, 40, 4, 9, 9), (3, 1, 1, 9, 9)]})
    said["annotations"][0]["iscrowd"] = 1
    assert opened(folder, said).objects[0].tolist() == [[0, 1, 1, 10, 10]]


def test_what_is_known_of_pictures_decides_their_fingerprint(folder):
    moved = {**TRAIN, "b.png": [(7, 4, 4, 39, 9)]}
    named = {**TRAIN, "b.png": [(3, 4, 4, 40, 8)]}
    digests = {opened(folder, annotations(each)).fingerprint for each in (TRAIN, moved, named)}
    assert len(digests) == 3


def test_pictures_that_are_one_size_keep_it(folder):
    for name in ("day/a.png", "night/c.png"):
        (folder / name).unlink()
    assert opened(folder, annotations({"b.png": [], "d.png": []}), size=None).shape == (1, 32, 32)


def wrong(**changes: Any) -> dict[str, Any]:
    return {**annotations(TRAIN), **changes}


FAULTS: dict[str, tuple[Any, str]] = {
    "no JSON": ("[1,", "boxes.json: found no annotations .*expected a file of COCO's"),
    "nested": ("[" * 100_000, "boxes.json: found no annotations"),
    "no file of its kind": ([1], "boxes.json: found no annotations"),
    "no key": ({"images": []}, r"boxes.json: found no annotations \(annotations: Field required\)"),
    "no classes": (wrong(categories=[]), "boxes.json: found 0 categories"),
    "a class twice": (wrong(categories=[{"id": 1, "name": "x"}, {"id": 2, "name": "x"}]), "found 2 categories"),
    "another class": (wrong(categories=CATEGORIES[:1]), "an annotation is of picture 10 and category 3"),
    "no size": (
        wrong(images=[{"id": 1, "file_name": "b.png", "width": 0, "height": 9}]),
        r"boxes.json: found no annotations \(images.0.width: Input should be greater than 0\)",
    ),
    "another name": (
        wrong(images=[{"id": 1, "file_name": "day/b.png", "width": 9, "height": 9}], annotations=[]),
        "boxes.json: names picture 'day/b.png', which isn't there; .*'day/a.png'",
    ),
    "a picture twice": (
        wrong(images=[{"id": i, "file_name": "b.png", "width": 9, "height": 9} for i in (1, 2)], annotations=[]),
        "boxes.json: found a picture twice",
    ),
}


@pytest.mark.parametrize("what", FAULTS)
def test_a_files_faults_are_told(folder, what):
    said, message = FAULTS[what]
    with pytest.raises(StillroomError, match=message):
        opened(folder, said)


def test_the_tests_classes_are_the_trains(folder):
    other = {**annotations({"night/c.png": []}), "categories": [{"id": 1, "name": "cow"}]}
    with pytest.raises(StillroomError, match=r"test_boxes.json: found classes \['cow'\]; expected those of"):
        opened(folder, annotations(TRAIN), test=other)


def test_pictures_of_several_sizes_need_one(folder):
    with pytest.raises(StillroomError, match="size"):
        opened(folder, annotations(TRAIN), size=None)
