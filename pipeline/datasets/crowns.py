"""Tree crowns on aerial photos: tiles with the boxes that people drew around each tree.

Tiles overlap within a block of a photo and never across blocks, and a block stays in one split: no pixel is in two. The
test photos are others than those of training, so figures tell how a detector does on a place it never saw. Photos are
brought to one mean and spread of each colour: haze and light differ from flight to flight, and with a handful of photos
nobody could learn that. Trade: tiles that would lie across blocks are lost, and so is what a test photo has beyond its
last whole tile.
"""

import xml.etree.ElementTree as ElementTree
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np

from pipeline.datasets.catalog import DataFile, Entry
from pipeline.datasets.objects import ObjectPictures
from pipeline.datasets.pictures import decode
from pipeline.errors import StillroomError

CROWNS = "crowns"  # the format of these entries
CROWNS_VERSION = 1  # raise it when the same photos give other tiles
TILE = 128  # pixels of a side
STRIDES = {"train": 64, "test": TILE}
BLOCK = 512  # pixels that a block has at least along each side, or the whole photo
MEAN, SPREAD = 128, 48  # of each colour of a photo, where 0 to 255 is all there is
LEAST_LEFT = 0.4  # of a box's area, or it is left out of a tile: what is left doesn't tell a tree


class Photo(NamedTuple):
    """A photo uint8 [C, H, W], its colours balanced, and the boxes on it float64 [n, 4], x0, y0, x1, y1 in pixels."""

    pixels: np.ndarray
    boxes: np.ndarray


def read_crowns(folder: Path, entry: Entry) -> ObjectPictures:
    """Return the tiles of an entry's photos, those of train photos first: pixels [N, 3, TILE, TILE], all of class 0.

    The entry's files hold a "photo" or "boxes"; a photo's boxes are in the file of the same name that ends in xml.
    Raises: StillroomError for a photo that cannot be decoded, or has no whole tile, and for boxes that cannot be read.
    """
    photos = [(split, read_photo(folder, file)) for split in ("train", "test") for file in photos_of(entry, split)]
    pixels, objects, blocks, tested = [], [], [], []
    for number, (split, photo) in enumerate(photos):
        for block, (x, y) in tile_corners(photo.pixels.shape[1:], STRIDES[split]):
            pixels.append(photo.pixels[:, y : y + TILE, x : x + TILE])
            objects.append(boxes_within(photo.boxes, x, y))
            blocks.append((number, *block))
            tested.append(split == "test")
    units = np.unique(np.array(blocks, np.int64).reshape(-1, 3), axis=0, return_inverse=True)[1]
    return ObjectPictures(np.stack(pixels), objects, np.array(tested), units.astype(np.int64))


def photos_of(entry: Entry, split: str) -> list[DataFile]:
    """Return an entry's photos of a split, in its order."""
    return [file for file in entry.files if (file.split, file.holds) == (split, "photo")]


def read_photo(folder: Path, file: DataFile) -> Photo:
    """Return a photo and its boxes. Raises: StillroomError for what cannot be read, and for a photo without a tile."""
    path = folder / file.name
    pixels = decode(path, 3).numpy()
    if min(pixels.shape[1:]) < TILE:
        raise StillroomError(
            f"{path}: found {pixels.shape[2]} x {pixels.shape[1]} pixels; expected at least {TILE} x {TILE}, a tile; "
            "leave it out"
        )
    return Photo(np.stack([balanced(channel) for channel in pixels]), read_boxes(path.with_suffix(".xml")))


def balanced(channel: np.ndarray) -> np.ndarray:
    """Return a colour of a photo at MEAN and SPREAD, cut at 0 and 255: uint8 [H, W] -> uint8 [H, W].

    Counted in whole numbers, so that it is the same everywhere.
    """
    counts, levels = np.bincount(channel.ravel(), minlength=256), np.arange(256)
    mean = (counts * levels).sum() / channel.size
    spread = np.sqrt(max((counts * levels**2).sum() / channel.size - mean**2, 1.0))
    return np.floor((levels - mean) / spread * SPREAD + MEAN + 0.5).clip(0, 255).astype(np.uint8)[channel]


def read_boxes(path: Path) -> np.ndarray:
    """Return the boxes of a file in the format of PASCAL VOC: float64 [n, 4], x0, y0, x1, y1.

    Whatever an object is called: a tree is a tree, alive or dead. Raises: StillroomError for another format.
    """
    try:
        found = [
            [float(each.findtext(f"bndbox/{side}", "")) for side in ("xmin", "ymin", "xmax", "ymax")]
            for each in ElementTree.parse(path).getroot().iter("object")
        ]
    except (OSError, ElementTree.ParseError, ValueError) as error:
        raise StillroomError(
            f"{path}: found no boxes ({error}); expected objects with a bndbox of four numbers; mend it"
        ) from error
    return np.array(found, np.float64).reshape(-1, 4)


def tile_corners(size: tuple[int, ...], stride: int) -> Iterator[tuple[tuple[int, int], tuple[int, int]]]:
    """Yield the block (column, row) and the corner (x, y) of each tile of a photo (H, W).

    Blocks part a photo evenly, into as many as have BLOCK pixels along each side; each has its tiles from its own
    corner on, as far as they are whole. Where tiles don't overlap, the photo is one block.
    """
    rows, columns = (parts(length) if stride < TILE else [(0, length)] for length in size)
    for row, (top, bottom) in enumerate(rows):
        for column, (left, right) in enumerate(columns):
            for y in range(top, bottom - TILE + 1, stride):
                for x in range(left, right - TILE + 1, stride):
                    yield (column, row), (x, y)


def parts(length: int) -> list[tuple[int, int]]:
    """Return where the blocks of a side start and end: of 1249 pixels 0-624 and 624-1249."""
    edges = np.linspace(0, length, max(1, length // BLOCK) + 1).astype(np.int64)
    return list(zip(edges[:-1].tolist(), edges[1:].tolist(), strict=True))


def boxes_within(boxes: np.ndarray, x: int, y: int) -> np.ndarray:
    """Return the objects of the tile at (x, y): float32 [n, 5], class 0 and what the tile shows of each box.

    Boxes of which less than LEAST_LEFT is in the tile are left out.
    """
    moved = boxes - np.array([x, y, x, y])
    shown = moved.clip(0, TILE)
    areas, left = ((each[:, 2:] - each[:, :2]).clip(min=0).prod(axis=1) for each in (moved, shown))
    kept = shown[(left > 0) & (left >= LEAST_LEFT * areas)]
    return np.concatenate([np.zeros((len(kept), 1)), kept], axis=1).astype(np.float32)
