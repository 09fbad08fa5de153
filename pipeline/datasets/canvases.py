"""Canvases to find things on: one to five pieces of clothing pasted at places and in sizes of their own, boxes exact.

A canvas is a function of its number and of the pictures it is made of: however many are made, in whatever order, it has
the same bytes everywhere. No piece lies on two canvases, as far as there are enough, so what is held out was never
seen on another canvas. Trade: nothing hides behind anything and there is no background to mistake for an object.
"""

from pathlib import Path
from typing import NamedTuple

import numpy as np

from pipeline.datasets.catalog import Entry
from pipeline.datasets.objects import ObjectPictures
from pipeline.views.draws import row_words, stream_seed, uniform

CANVASES = "canvases"  # the format of these entries
CANVASES_VERSION = 1  # raise it when the same numbers give other canvases
SEED = 0
SIDE, PIECE = 96, 28  # pixels of a canvas, and of a picture pasted on it
MOST_PIECES = 5
SCALES = 0.7, 1.4
ATTEMPTS = 8  # at a place, then the piece is left out
MOST_OVERLAP = 0.2  # of the smaller box's area, between any two
WORDS = 1 + MOST_PIECES * (1 + 2 * ATTEMPTS)  # how many pieces; of each its size and the places it is tried at
FINENESS = 256  # steps of a weight in resizing: sums of weighted pixels are then whole, and exact in float32


class Pieces(NamedTuple):
    """Scaled pictures [n, S, S] uint8, at the top left, and the boxes of their pixels above 0: int64 [n, 4]."""

    pixels: np.ndarray
    boxes: np.ndarray


def read_canvases(folder: Path, entry: Entry) -> ObjectPictures:
    """Return the canvases of an entry, of whose idx files they are made: pixels [N, 1, SIDE, SIDE].

    Train canvases show train pictures alone and test ones test pictures. `entry.samples` says how many of each.
    """
    halves = [canvases_of(folder, entry, split) for split in ("train", "test")]
    num_train, num_test = (len(objects) for _, objects in halves)
    return ObjectPictures(
        pixels=np.concatenate([pixels for pixels, _ in halves]),
        objects=[each for _, objects in halves for each in objects],
        is_test=np.arange(num_train + num_test) >= num_train,
        units=np.arange(num_train + num_test),
    )


def canvases_of(folder: Path, entry: Entry, split: str) -> tuple[np.ndarray, list[np.ndarray]]:
    """Return the canvases of one split, made of its pictures alone: as `make_canvases`."""
    paths = {file.holds: folder / file.name for file in entry.files if file.split == split}
    pictures = np.fromfile(paths["images"], np.uint8, offset=16).reshape(-1, PIECE, PIECE)
    labels = np.fromfile(paths["labels"], np.uint8, offset=8)
    return make_canvases(pictures, labels, np.arange(entry.samples[split]), seed=stream_seed(SEED, CANVASES, split))


def make_canvases(
    pictures: np.ndarray, labels: np.ndarray, numbers: np.ndarray, *, seed: int
) -> tuple[np.ndarray, list[np.ndarray]]:
    """Return canvases by their numbers int64 [M]: pixels uint8 [M, 1, SIDE, SIDE] and objects, M of float32 [n, 5].

    pictures uint8 [N, PIECE, PIECE], none of them empty, labels [N]. A canvas has 1 to MOST_PIECES pieces, each scaled
    by SCALES. Each is tried at up to ATTEMPTS places and left out unless the boxes of it and of any piece before it
    share at most MOST_OVERLAP of the smaller one. Where two meet, the brighter pixel shows. Objects are in the order
    in which they were pasted.
    """
    words = uniform(row_words(seed, numbers, 0, WORDS))
    is_wanted = np.arange(MOST_PIECES) < 1 + np.floor(words[:, :1] * MOST_PIECES)
    own = words[:, 1:].reshape(len(numbers), MOST_PIECES, 1 + 2 * ATTEMPTS)
    ids = piece_ids(len(pictures), numbers, seed=seed)
    smallest, largest = (round(PIECE * scale) for scale in SCALES)
    sizes = smallest + np.floor(own[..., 0] * (largest - smallest + 1)).astype(np.int64)
    pieces = scaled_pieces(pictures[ids[is_wanted]], sizes[is_wanted], largest)
    extents = np.zeros((*is_wanted.shape, 2))
    extents[is_wanted] = pieces.boxes[:, 2:] - pieces.boxes[:, :2]
    boxes = placed(extents, own[..., 1:].reshape(*is_wanted.shape, ATTEMPTS, 2), is_wanted)
    return pasted(pieces, boxes, is_wanted), objects_of(boxes, labels[ids])


def piece_ids(num_pictures: int, numbers: np.ndarray, *, seed: int) -> np.ndarray:
    """Return which pictures may lie on each canvas: int64 [M, MOST_PIECES].

    All pictures are put in one order and dealt out by number; beyond the last they begin anew.
    """
    words = row_words(stream_seed(seed, "order"), np.arange(num_pictures), 0, 2)
    order = np.lexsort((words[:, 1], words[:, 0]))  # not NumPy's shuffle, which may change from one version to another
    return order[(MOST_PIECES * numbers[:, None] + np.arange(MOST_PIECES)) % num_pictures]


def scaled_pieces(pictures: np.ndarray, sizes: np.ndarray, largest: int) -> Pieces:
    """Return pictures at sizes of their own, with the boxes of what they show: uint8 [n, S, S], int64 [n]."""
    pixels = np.zeros((len(pictures), largest, largest), np.uint8)
    for size in np.unique(sizes):
        rows = np.flatnonzero(sizes == size)
        weights = resizing(pictures.shape[-1], int(size))
        sums = weights @ pictures[rows].astype(np.float32) @ weights.T
        pixels[rows, :size, :size] = np.floor(sums / FINENESS**2 + 0.5)
    return Pieces(pixels, tight_boxes(pixels))


def resizing(length: int, size: int) -> np.ndarray:
    """Return what each of `size` pixels takes of each of `length`, in whole FINENESS-ths: float32 [size, length].

    Bilinear: centres lie at (i + 0.5) length / size - 0.5, and beyond the outer ones the outer ones hold. All is worked
    out in whole numbers.
    """
    places = np.clip((2 * np.arange(size) + 1) * length - size, 0, 2 * size * (length - 1))  # times 2 size
    low, rest = np.divmod(places, 2 * size)
    share = (rest * FINENESS + size) // (2 * size)
    weights = np.zeros((size, length + 1), np.float32)
    weights[np.arange(size), low] = FINENESS - share
    weights[np.arange(size), low + 1] += share
    return weights[:, :length]  # the last place's right neighbour has share 0


def tight_boxes(pixels: np.ndarray) -> np.ndarray:
    """Return the boxes x0, y0, x1, y1 of the pixels above 0: uint8 [n, S, S] -> int64 [n, 4]."""
    shown = pixels > 0
    sides = []
    for axis in (1, 2):  # over the rows, which leaves x, then over the columns
        is_in = shown.any(axis=axis)
        sides.append((is_in.argmax(axis=1), is_in.shape[1] - is_in[:, ::-1].argmax(axis=1)))
    (x0, x1), (y0, y1) = sides
    return np.stack([x0, y0, x1, y1], axis=1)


def placed(extents: np.ndarray, places: np.ndarray, is_wanted: np.ndarray) -> np.ndarray:
    """Return where pieces come to lie, NaN where nowhere: float64 [M, P, 4].

    extents [M, P, 2], widths and heights in pixels; places [M, P, ATTEMPTS, 2], shares of the way that a piece has on
    its canvas; is_wanted [M, P].
    """
    boxes = np.full((*extents.shape[:2], 4), np.nan)
    for piece in range(extents.shape[1]):
        for attempt in range(places.shape[2]):
            corner = np.floor(places[:, piece, attempt] * (SIDE - extents[:, piece] + 1))
            box = np.concatenate([corner, corner + extents[:, piece]], axis=1)
            fits = is_wanted[:, piece] & np.isnan(boxes[:, piece, 0]) & is_clear(box, boxes[:, :piece])
            boxes[fits, piece] = box[fits]
    return boxes


def is_clear(box: np.ndarray, others: np.ndarray) -> np.ndarray:
    """Tell whether each box shares little enough with those on its canvas: [M, 4], [M, P, 4] -> bool [M]."""
    box = box[:, None]
    sides = np.minimum(box[..., 2:], others[..., 2:]) - np.maximum(box[..., :2], others[..., :2])
    smaller = np.minimum(areas(box), areas(others))
    return ~(sides.clip(min=0).prod(axis=-1) > MOST_OVERLAP * smaller).any(axis=1)  # nothing is shared with NaN


def areas(boxes: np.ndarray) -> np.ndarray:
    """Return the areas of boxes: [..., 4] -> [...]."""
    return (boxes[..., 2:] - boxes[..., :2]).prod(axis=-1)


def pasted(pieces: Pieces, boxes: np.ndarray, is_wanted: np.ndarray) -> np.ndarray:
    """Return canvases with the pieces where they lie, the brighter pixel on top: uint8 [M, 1, SIDE, SIDE]."""
    canvases = np.zeros((len(boxes), 1, SIDE, SIDE), np.uint8)
    canvas_of = np.nonzero(is_wanted)[0]
    for piece, box in enumerate(boxes[is_wanted]):
        if np.isnan(box[0]):
            continue
        x0, y0, x1, y1 = box.astype(np.int64)
        left, top, right, bottom = pieces.boxes[piece]
        there = canvases[canvas_of[piece], 0, y0:y1, x0:x1]
        np.maximum(there, pieces.pixels[piece, top:bottom, left:right], out=there)
    return canvases


def objects_of(boxes: np.ndarray, labels: np.ndarray) -> list[np.ndarray]:
    """Return each canvas's classes and boxes: [M, P, 4], [M, P] -> M of float32 [n, 5]."""
    rows = np.concatenate([labels[..., None], boxes], axis=-1).astype(np.float32)
    return [row[is_there] for row, is_there in zip(rows, ~np.isnan(boxes[..., 0]), strict=True)]
