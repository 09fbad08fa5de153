"""Canvases: functions of their numbers, boxes that are tight, pieces that hardly overlap, halves that stay apart."""

import hashlib
from pathlib import Path

import numpy as np
import pytest

from pipeline.datasets.canvases import (
    FINENESS,
    MOST_OVERLAP,
    MOST_PIECES,
    PIECE,
    SCALES,
    SIDE,
    make_canvases,
    piece_ids,
    read_canvases,
    resizing,
    scaled_pieces,
    tight_boxes,
)
from pipeline.datasets.catalog import DataFile, Entry
from pipeline.views.draws import row_words

COUNT = 60


def some_pictures(count: int = 400, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Filled rectangles of shades of their own, off the edges: pictures uint8 [N, 28, 28] and labels."""
    words = row_words(seed, np.arange(count), 0, 6).astype(np.int64)
    pictures = np.zeros((count, PIECE, PIECE), np.uint8)
    for picture, (x, y, width, height, shade, _) in zip(pictures, words, strict=True):
        picture[y % 10 :, x % 10 :][: 6 + height % 12, : 6 + width % 12] = 50 + shade % 206
    return pictures, (words[:, 5] % 10).astype(np.uint8)


PICTURES, LABELS = some_pictures()
GOLDEN = "e313ec9722a4dea1eced3a7acda5a338d66362bf64e372f34433fa21399c97e0"


@pytest.fixture(scope="module")
def made() -> tuple[np.ndarray, list[np.ndarray]]:
    return make_canvases(PICTURES, LABELS, np.arange(COUNT), seed=7)


def test_a_canvas_is_the_same_whatever_others_are_made(made):
    pixels, objects = made
    order = np.array([41, 3, 17])
    again, found = make_canvases(PICTURES, LABELS, order, seed=7)
    assert np.array_equal(again, pixels[order])
    assert all(np.array_equal(a, objects[b]) for a, b in zip(found, order, strict=True))
    other, _ = make_canvases(PICTURES, LABELS, order, seed=8)
    assert not (other == again).all(axis=(1, 2, 3)).any()


def test_canvases_are_these_bytes_on_every_machine(made):
    pixels, objects = made
    digest = hashlib.sha256(pixels.tobytes() + np.concatenate(objects).astype("<f4").tobytes()).hexdigest()
    assert digest == GOLDEN


def test_there_are_one_to_five_pieces_within_the_canvas_of_sizes_between_the_scales(made):
    pixels, objects = made
    assert pixels.shape == (COUNT, 1, SIDE, SIDE)
    assert pixels.dtype == np.uint8
    assert {len(each) for each in objects} == set(range(1, MOST_PIECES + 1))
    every = np.concatenate(objects)
    assert every.dtype == np.float32
    assert every[:, 1:].min() >= 0
    assert every[:, 1:].max() <= SIDE
    extents = every[:, 3:] - every[:, 1:3]
    assert extents.min() >= 6 * SCALES[0] - 1
    assert extents.max() <= 18 * SCALES[1] + 2
    assert set(np.unique(every[:, 0])) <= set(range(10))


def test_boxes_are_tight_about_what_is_shown(made):
    pixels, objects = made
    for canvas, found in zip(pixels[:, 0], objects, strict=True):
        outside = canvas.copy()
        for x0, y0, x1, y1 in found[:, 1:].astype(int):
            outside[y0:y1, x0:x1] = 0
            sides = canvas[y0, x0:x1], canvas[y1 - 1, x0:x1], canvas[y0:y1, x0], canvas[y0:y1, x1 - 1]
            assert all(side.any() for side in sides)
        assert not outside.any()


def test_no_two_pieces_share_more_than_a_fifth_of_the_smaller_one(made):
    shares = []
    for found in made[1]:
        for i, (_, a0, b0, a1, b1) in enumerate(found):
            for _, c0, d0, c1, d1 in found[:i]:
                shared = max(0, min(a1, c1) - max(a0, c0)) * max(0, min(b1, d1) - max(b0, d0))
                shares.append(shared / min((a1 - a0) * (b1 - b0), (c1 - c0) * (d1 - d0)))
    assert max(shares) <= MOST_OVERLAP
    assert max(shares) > 0


def test_a_piece_lies_on_one_canvas_alone():
    ids = piece_ids(400, np.arange(80), seed=7)
    assert sorted(ids.ravel()) == list(range(400))
    assert np.array_equal(piece_ids(400, np.array([81, 80]), seed=7), ids[[1, 0]])  # beyond the last they begin anew
    assert not np.array_equal(piece_ids(400, np.arange(80), seed=8), ids)


def test_objects_are_what_was_pasted(made):
    pixels, objects = made
    ids = piece_ids(len(PICTURES), np.arange(COUNT), seed=7)
    for number in np.flatnonzero([len(each) == 1 for each in objects]):
        ((label, x0, y0, x1, y1),) = objects[number].tolist()
        own = [i for i in ids[number] if PICTURES[i].max() == pixels[number].max() and LABELS[i] == label]
        shapes = [np.ptp(tight_boxes(PICTURES[i : i + 1])[0].reshape(2, 2), axis=0) for i in own]
        ratios = [((x1 - x0) / width, (y1 - y0) / height) for width, height in shapes]
        assert any(SCALES[0] - 0.2 < min(ratio) <= max(ratio) < SCALES[1] + 0.4 for ratio in ratios)


# -- resizing ---------------------------------------------------------------------------------------------------------


def slow_resized(picture: np.ndarray, size: int) -> np.ndarray:
    """Bilinear with exact weights."""
    length = len(picture)
    places = [min(max((i + 0.5) * length / size - 0.5, 0), length - 1) for i in range(size)]
    found = np.zeros((size, size))
    for i, y in enumerate(places):
        for j, x in enumerate(places):
            top, left = min(int(y), length - 2), min(int(x), length - 2)
            v, u = y - top, x - left
            corner = picture[top : top + 2, left : left + 2].astype(float)
            found[i, j] = np.array([1 - v, v]) @ corner @ np.array([1 - u, u])
    return found


@pytest.mark.parametrize("size", [20, 28, 33, 39])
def test_resizing_is_bilinear_to_the_fineness_of_its_weights(size):
    picture = np.random.default_rng(size).integers(0, 256, (PIECE, PIECE)).astype(np.uint8)
    found = scaled_pieces(picture[None], np.array([size]), 39).pixels[0]
    assert np.abs(found[:size, :size] - slow_resized(picture, size)).max() <= 0.5 + 255 * 2 / FINENESS
    assert not found[size:].any()
    assert not found[:, size:].any()


@pytest.mark.parametrize("size", [1, 19, 20, 28, 39, 56])
def test_weights_are_whole_and_lose_nothing(size):
    weights = resizing(PIECE, size)
    assert weights.dtype == np.float32
    assert (weights.sum(axis=1) == FINENESS).all()
    assert (weights == np.floor(weights)).all()
    assert (weights >= 0).all()
    if size == PIECE:
        assert np.array_equal(weights, FINENESS * np.eye(PIECE))


def test_each_piece_has_its_size_whoever_is_beside_it():
    sizes = np.array([20, 39, 25, 20])
    together = scaled_pieces(PICTURES[:4], sizes, 39)
    for row, size in enumerate(sizes):
        alone = scaled_pieces(PICTURES[row : row + 1], np.array([size]), 39)
        assert np.array_equal(together.pixels[row], alone.pixels[0])
        assert np.array_equal(together.boxes[row], alone.boxes[0])


# -- of a catalogue's entry -------------------------------------------------------------------------------------------


def write_idx(folder: Path, prefix: str, pictures: np.ndarray, labels: np.ndarray) -> None:
    (folder / f"{prefix}-images").write_bytes(bytes(16) + pictures.tobytes())
    (folder / f"{prefix}-labels").write_bytes(bytes(8) + labels.tobytes())


def entry_of(train: int, test: int) -> Entry:
    files = tuple(
        DataFile(name=f"{split}-{holds}", split=split, holds=holds, num_bytes=0, sha256="")
        for split in ("train", "test")
        for holds in ("images", "labels")
    )
    about = {"title": "", "licence": "", "home": "", "format": "canvases", "sources": ()}
    return Entry(**about, files=files, samples={"train": train, "test": test})


def test_halves_are_made_of_their_own_pictures_alone(tmp_path):
    dark, bright = np.minimum(PICTURES, 100), np.maximum(PICTURES, (PICTURES > 0) * np.uint8(150))
    write_idx(tmp_path, "train", dark, LABELS)
    write_idx(tmp_path, "test", bright[:50], LABELS[:50])
    found = read_canvases(tmp_path, entry_of(12, 5))
    assert found.pixels.shape == (17, 1, SIDE, SIDE)
    assert found.is_test.tolist() == [False] * 12 + [True] * 5
    assert found.pixels[:12].max() <= 100
    assert (found.pixels[12:].max(axis=(1, 2, 3)) >= 150).all()
    assert len(found.objects) == 17
    assert len(set(found.units.tolist())) == 17
    fewer = read_canvases(tmp_path, entry_of(4, 2))
    assert np.array_equal(fewer.pixels, found.pixels[[0, 1, 2, 3, 12, 13]])
