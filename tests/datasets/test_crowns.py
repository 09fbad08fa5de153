"""Tree crowns: tiles of made photos, the boxes on them, and that no pixel is in two splits."""

import zipfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from pipeline.datasets import catalog as catalogue
from pipeline.datasets.catalog import DataFile, Entry, Source, fetch
from pipeline.datasets.crowns import (
    BLOCK,
    LEAST_LEFT,
    MEAN,
    SPREAD,
    TILE,
    balanced,
    boxes_within,
    parts,
    read_boxes,
    read_crowns,
    tile_corners,
)
from pipeline.errors import StillroomError

SIZES = {"big.png": ("train", (600, 1100)), "small.png": ("train", (200, 256)), "other.png": ("test", (300, 280))}
BOXES = {
    "big.png": [(10, 20, 60, 70), (500, 500, 560, 590)],
    "small.png": [(100, 50, 150, 90)],
    "other.png": [(0, 0, 128, 128), (120, 10, 160, 50), (270, 290, 280, 300)],
}


def photo(height: int, width: int, seed: int) -> np.ndarray:
    """Pixels that tell where they are: no two tiles are alike."""
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3)).astype(np.uint8)


def voc(boxes: list[tuple[int, int, int, int]]) -> str:
    sides = ("xmin", "ymin", "xmax", "ymax")
    rows = ("".join(f"<{side}>{value}</{side}>" for side, value in zip(sides, box, strict=True)) for box in boxes)
    objects = "".join(f"<object><name>Tree</name><bndbox>{row}</bndbox></object>" for row in rows)
    return f"<annotation><size><width>1</width></size>{objects}</annotation>"


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp("crowns")
    for seed, (name, (_, size)) in enumerate(SIZES.items()):
        Image.fromarray(photo(*size, seed)).save(root / name)
        (root / name).with_suffix(".xml").write_text(voc(BOXES[name]))
    return root


def entry_of(
    names: tuple[str, ...] = tuple(SIZES), sources: tuple[Source, ...] = (), folder: Path | None = None
) -> Entry:
    def file(name: str, split: str, holds: str) -> DataFile:
        content = (folder / name).read_bytes() if folder else b""
        return DataFile(name=name, split=split, holds=holds, num_bytes=len(content), sha256=sha256(content))

    pairs = [(name, SIZES[name][0]) for name in names]
    files = [file(name, split, "photo") for name, split in pairs]
    files += [file(f"{name[:-4]}.xml", split, "boxes") for name, split in pairs]
    about = {"title": "", "licence": "", "home": "", "format": "crowns", "samples": {}}
    return Entry(**about, files=tuple(files), sources=sources)


def sha256(content: bytes) -> str:
    return catalogue.hashlib.sha256(content).hexdigest()


def test_tiles_are_pieces_of_their_photos_train_ones_first(folder):
    found = read_crowns(folder, entry_of())
    plain = [photo(*size, seed).transpose(2, 0, 1) for seed, (_, size) in enumerate(SIZES.values())]
    photos = [np.stack([balanced(channel) for channel in each]) for each in plain]
    assert found.pixels.dtype == np.uint8
    assert found.pixels.shape[1:] == (3, TILE, TILE)
    corners = [
        (number, x, y)
        for number, (split, size) in enumerate(SIZES.values())
        for _, (x, y) in tile_corners(size, 64 if split == "train" else TILE)
    ]
    assert len(found.pixels) == len(corners) == len(found.objects) == len(found.units)
    for tile, (number, x, y) in zip(found.pixels, corners, strict=True):
        assert np.array_equal(tile, photos[number][:, y : y + TILE, x : x + TILE])
    assert found.is_test.tolist() == [number == 2 for number, _, _ in corners]
    assert found.is_test.sum() == 4  # 300 x 280 has two whole tiles each way


def test_photos_of_other_light_come_out_alike():
    scene = np.random.default_rng(0).uniform(-1.7, 1.7, (200, 300))
    dark, hazy = (
        (spread * scene + mean).round().clip(0, 255).astype(np.uint8) for mean, spread in ((70, 30), (150, 20))
    )
    one, other = balanced(dark).astype(int), balanced(hazy).astype(int)
    assert one.mean() == pytest.approx(MEAN, abs=1)
    assert one.std() == pytest.approx(SPREAD, abs=2)
    assert np.abs(one - other).max() <= 5  # three steps of the hazier one's pixels, which are coarser
    assert (np.diff(one.ravel()[dark.ravel().argsort()]) >= 0).all()
    assert np.array_equal(balanced(np.full((9, 9), 200, np.uint8)), np.full((9, 9), MEAN))


def test_no_pixel_is_in_two_units_and_tiles_of_a_unit_may_overlap():
    owner = np.full((600, 1100), -1)
    is_shared = False
    blocks = {}
    for block, (x, y) in tile_corners((600, 1100), 64):
        tile = owner[y : y + TILE, x : x + TILE]
        number = blocks.setdefault(block, len(blocks))
        assert set(np.unique(tile)) <= {-1, number}
        is_shared |= bool((tile == number).any())
        tile[:] = number
    assert len(blocks) == 2
    assert is_shared
    assert (owner >= 0).mean() > 0.8


def test_units_are_blocks_and_test_photos_are_whole(folder):
    found = read_crowns(folder, entry_of())
    assert found.units.dtype == np.int64
    assert not set(found.units[found.is_test]) & set(found.units[~found.is_test])
    assert len(set(found.units[~found.is_test])) == 3  # two of the big photo and the small one
    assert len(set(found.units[found.is_test])) == 1


@pytest.mark.parametrize("length", [1, 128, 400, 1023, 1024, 1249, 2472])
def test_blocks_part_a_side_evenly(length):
    found = parts(length)
    assert found[0][0] == 0
    assert found[-1][1] == length
    assert [end for _, end in found[:-1]] == [start for start, _ in found[1:]]
    lengths = [end - start for start, end in found]
    assert max(lengths) - min(lengths) <= 1
    assert len(found) == 1 or min(lengths) >= BLOCK


def test_boxes_are_told_in_the_pixels_of_their_tile(folder):
    found = read_crowns(folder, entry_of(("other.png",)))
    assert [each.tolist() for each in found.objects] == [[[0, 0, 0, 128, 128]], [[0, 0, 10, 32, 50]], [], []]
    assert all(each.dtype == np.float32 and each.shape[1:] == (5,) for each in found.objects)


def test_a_box_of_which_too_little_is_left_is_left_out():
    boxes = np.array([[100.0, 0, 150, 10]])  # 28 of 50 columns in the tile at 0, 22 in that at 128
    assert boxes_within(boxes, 0, 0).tolist() == [[0, 100, 0, 128, 10]]
    assert boxes_within(boxes, 128, 0).tolist() == [[0, 0, 0, 22, 10]]
    assert not len(boxes_within(boxes, 131, 0))  # 19 of 50
    assert LEAST_LEFT == 0.4
    assert not len(boxes_within(boxes, 0, 11))
    assert boxes_within(np.zeros((0, 4)), 0, 0).shape == (0, 5)


def test_what_cannot_be_read_is_told(tmp_path):
    (tmp_path / "big.xml").write_text("<annotation><object><bndbox/></object></annotation>")
    with pytest.raises(StillroomError, match=r"big.xml: found no boxes \(.*\); expected objects with a bndbox of four"):
        read_boxes(tmp_path / "big.xml")
    (tmp_path / "big.xml").write_text("no xml")
    with pytest.raises(StillroomError, match="found no boxes"):
        read_boxes(tmp_path / "big.xml")
    with pytest.raises(StillroomError, match="found no boxes"):
        read_boxes(tmp_path / "none.xml")
    (tmp_path / "big.png").write_bytes(b"no picture")
    with pytest.raises(StillroomError, match=r"big.png: cannot be decoded"):
        read_crowns(tmp_path, entry_of(("big.png",)))
    Image.fromarray(photo(100, 200, 0)).save(tmp_path / "big.png")
    with pytest.raises(
        StillroomError, match="found 200 x 100 pixels; expected at least 128 x 128, a tile; leave it out"
    ):
        read_crowns(tmp_path, entry_of(("big.png",)))


def test_tiles_come_out_of_a_wheel(folder, tmp_path, monkeypatch):
    """As of the package itself: the files lie in a wheel, of which nothing is installed."""
    wheel = tmp_path / "trees-1.0-py3-none-any.whl"
    with zipfile.ZipFile(wheel, "w") as archive:
        for path in sorted(folder.iterdir()):
            archive.write(path, f"trees/data/{path.name}")
    paths = {path.name: f"trees/data/{path.name}" for path in folder.iterdir()}
    source = Source(kind="wheel", package="trees", version="1.0", sha256=sha256(wheel.read_bytes()), paths=paths)
    monkeypatch.setattr(
        catalogue, "run_quietly", lambda command, work: (work / wheel.name).write_bytes(wheel.read_bytes())
    )
    entry = entry_of(sources=(source,), folder=folder)
    fetched = fetch("trees", tmp_path / "raw", catalog={"trees": entry})
    found, wanted = read_crowns(fetched, entry), read_crowns(folder, entry)
    assert np.array_equal(found.pixels, wanted.pixels)
    assert all(np.array_equal(a, b) for a, b in zip(found.objects, wanted.objects, strict=True))
