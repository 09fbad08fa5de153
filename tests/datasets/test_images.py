"""Data sets of pictures: order, labels and bytes are the same however they are read, and every change shows."""

import json
import os
import pickle
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from pipeline.datasets import ImageDataset, open_dataset
from pipeline.errors import StillroomError

RAW = Path(__file__).parents[2] / "data" / "raw"


@pytest.fixture(scope="session")
def fashion() -> ImageDataset:
    return open_dataset("fashion-mnist", RAW)


@pytest.fixture(scope="session")
def digits() -> ImageDataset:
    return open_dataset("mnist-5k", RAW)


def save(
    path: Path, seed: int, *, grey: bool = False, size: tuple[int, int] = (12, 12), **options: object
) -> np.ndarray:
    pixels = np.random.default_rng(seed).integers(0, 256, (*size, 1 if grey else 3), dtype=np.uint8)
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels[..., 0] if grey else pixels).save(path, **options)
    return pixels.transpose(2, 0, 1)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Two classes, five pictures, one of them two folders deep."""
    for seed, name in enumerate(["cat/b.png", "cat/a.png", "dog/sub/z.png", "dog/c.png", "dog/d.PNG"]):
        save(tmp_path / "pets" / name, seed)
    (tmp_path / "pets" / "notes.txt").write_text("not a picture")
    (tmp_path / "pets" / ".hidden").mkdir()
    return tmp_path / "pets"


def opened(folder: Path, **options: int) -> ImageDataset:
    return open_dataset(str(folder), folder.parent / "raw", **options)


def everything(dataset: ImageDataset) -> torch.Tensor:
    return dataset.read(np.arange(len(dataset)))


def test_fashion_mnist_is_whole_and_balanced(fashion):
    assert (len(fashion), fashion.shape, len(fashion.classes)) == (70_000, (1, 28, 28), 10)
    assert fashion.labels.dtype == np.int64
    assert np.bincount(fashion.labels[:60_000]).tolist() == [6_000] * 10
    assert np.bincount(fashion.labels[60_000:]).tolist() == [1_000] * 10
    assert np.array_equal(fashion.official_test, np.arange(60_000, 70_000))


def test_fashion_mnist_keeps_the_order_of_its_files(fashion):
    assert fashion.labels[:5].tolist() == [9, 0, 0, 3, 0]
    assert fashion.labels[60_000:60_005].tolist() == [9, 2, 1, 1, 6]
    first = (RAW / "fashion-mnist" / "train-images-idx3-ubyte").read_bytes()[16 : 16 + 784]
    assert fashion.read(np.array([0])).numpy().tobytes() == first
    assert (
        round(fashion.pixels[:60_000].double().mean().item() / 255, 4) == 0.2860
    )  # the figure known for its training part


def test_digits_are_whole_balanced_and_sorted(digits):
    assert (len(digits), digits.shape) == (5_000, (1, 28, 28))
    assert np.array_equal(digits.labels, np.repeat(np.arange(10), 500))
    assert digits.official_test.size == 0
    assert digits.read(np.array([0]))[0, 0].max() > 200


@pytest.mark.parametrize("name", ["fashion-mnist", "mnist-5k"])
def test_read_follows_the_ids(name):
    dataset = open_dataset(name, RAW)
    ids = np.array([7, 3, 3, len(dataset) - 1])
    pictures = dataset.read(ids)
    assert pictures.dtype == torch.uint8
    assert pictures.shape == (4, *dataset.shape)
    for row, i in enumerate(ids):
        assert torch.equal(pictures[row], dataset.read(np.array([i]))[0])
    assert not torch.equal(pictures[0], pictures[1])
    assert dataset.read(np.array([], dtype=np.int64)).shape == (0, *dataset.shape)


@pytest.mark.parametrize("ids", [[-1], [5_000]])
def test_ids_outside_are_a_bug(digits, ids):
    with pytest.raises(ValueError, match=r"expected 0\.\.4999"):
        digits.read(np.array(ids))


def test_catalogue_pictures_are_resized_alike_lazily_and_in_memory(digits):
    held = open_dataset("mnist-5k", RAW, size=32, channels=3)
    lazy = open_dataset("mnist-5k", RAW, size=32, channels=3, memory_budget=0)
    assert held.pixels is not None
    assert lazy.pixels is None
    ids = np.arange(0, 5_000, 97)
    assert held.shape == (3, 32, 32)
    assert torch.equal(held.read(ids), lazy.read(ids))
    assert np.array_equal(held.source_digests(ids), digits.source_digests(ids))
    assert held.fingerprint != digits.fingerprint


def test_fingerprints_of_catalogue_data_are_golden(fashion, digits):
    assert fashion.fingerprint == "6eb32693a1f24d72c950fc531e124ca4db04b73c955e128f00de7f3d310d3dff"
    assert digits.fingerprint == "666ad87121d59eac9dd732da49a22b3e9ffbd4ecbd1befb543eee7c69fc0ddb2"


def test_folder_is_sorted_by_class_then_path(folder):
    dataset = opened(folder)
    assert dataset.classes == ("cat", "dog")
    assert dataset.labels.tolist() == [0, 0, 1, 1, 1]
    assert dataset.name == "pets"
    expected = [save(folder.parent / "again.png", seed) for seed in (1, 0, 3, 4, 2)]
    assert np.array_equal(everything(dataset).numpy(), np.stack(expected))


def test_lazily_decoded_equals_in_memory(folder):
    for options in ({}, {"size": 7}, {"size": 20, "channels": 1}):
        held, lazy = opened(folder, **options), opened(folder, memory_budget=0, **options)
        assert (held.pixels is None, lazy.pixels is None) == (False, True)
        assert torch.equal(everything(held), everything(lazy))
        assert held.fingerprint == lazy.fingerprint


def test_memory_budget_is_exact(folder):
    num_bytes = 5 * 3 * 12 * 12
    assert opened(folder, memory_budget=num_bytes).pixels is not None
    assert opened(folder, memory_budget=num_bytes - 1).pixels is None


def test_split_layout_with_unlabelled_pictures(tmp_path):
    root = tmp_path / "split"
    for seed, name in enumerate(["train/b/0.png", "train/a/0.png", "train/_unlabelled/0.png", "test/b/0.png"]):
        save(root / name, seed)
    dataset = opened(root)
    assert dataset.classes == ("a", "b")
    assert dataset.labels.tolist() == [0, 1, -1, 1]
    assert dataset.official_test.tolist() == [3]


def test_class_may_be_called_train(tmp_path):
    for seed, name in enumerate(["train/0.png", "car/0.png"]):
        save(tmp_path / "vehicles" / name, seed)
    dataset = opened(tmp_path / "vehicles")
    assert dataset.classes == ("car", "train")
    assert dataset.official_test.size == 0


@pytest.mark.parametrize("suffix", ["png", "jpg", "jpeg", "bmp", "webp"])
@pytest.mark.parametrize("grey", [True, False])
def test_channels_are_found_in_every_format(tmp_path, suffix, grey):
    for seed, name in enumerate(["a", "b"]):
        save(
            tmp_path / "set" / name / f"0.{suffix}", seed, grey=grey, **({"lossless": True} if suffix == "webp" else {})
        )
    dataset = opened(tmp_path / "set")
    assert dataset.shape == (1 if grey else 3, 12, 12)
    if suffix in ("png", "bmp", "webp"):
        assert np.array_equal(dataset.read(np.array([1]))[0].numpy(), save(tmp_path / "again.png", 1, grey=grey))
    colours, single = everything(opened(tmp_path / "set", channels=3)), everything(opened(tmp_path / "set", channels=1))
    assert colours.shape[1] == 3
    if grey:
        assert torch.equal(colours, single.expand(-1, 3, -1, -1))


def test_one_coloured_picture_makes_three_channels(tmp_path):
    save(tmp_path / "set/a/0.png", 0, grey=True)
    save(tmp_path / "set/b/0.png", 1)
    assert opened(tmp_path / "set").shape == (3, 12, 12)


@pytest.mark.parametrize("mode", ["RGBA", "P", "CMYK", "I;16"])
def test_unusual_modes_are_decoded_to_bytes(tmp_path, mode):
    suffix = "jpg" if mode == "CMYK" else "png"
    for value, name in ((200, "a"), (40, "b")):
        path = tmp_path / "set" / name / f"0.{suffix}"
        path.parent.mkdir(parents=True)
        if mode == "I;16":
            Image.fromarray(np.full((8, 8), value * 257, dtype=np.uint16)).save(path)
        else:
            Image.new("RGB", (8, 8), (value, value, value // 2)).convert(mode).save(path)
    pixels = everything(opened(tmp_path / "set", channels=3))
    assert pixels.dtype == torch.uint8
    assert (pixels[:, 0].float().mean((1, 2)) - torch.tensor([200.0, 40.0])).abs().max() < 12


def test_pictures_are_cropped_at_the_centre(tmp_path):
    for name in "ab":
        path = tmp_path / "set" / name / "0.png"
        path.parent.mkdir(parents=True)
        wide = np.zeros((8, 24), dtype=np.uint8)
        wide[:, 8:16] = 255
        Image.fromarray(wide).save(path)
    assert torch.equal(everything(opened(tmp_path / "set", size=8)), torch.full((2, 1, 8, 8), 255, dtype=torch.uint8))


def test_pictures_are_turned_as_their_exif_says(tmp_path):
    upside_down = Image.Exif()
    upside_down[0x0112] = 3
    turned = [save(tmp_path / "set" / name / "0.png", seed, exif=upside_down) for seed, name in enumerate("ab")]
    assert np.array_equal(everything(opened(tmp_path / "set")).numpy(), np.stack(turned)[..., ::-1, ::-1])


def test_shrinking_is_antialiased(tmp_path):
    for name in "ab":
        path = tmp_path / "set" / name / "0.png"
        path.parent.mkdir(parents=True)
        Image.fromarray(np.tile(np.array([[255, 0, 0, 255]], dtype=np.uint8), (32, 8))).save(path)
    shrunk = everything(opened(tmp_path / "set", size=8))[..., 1:-1]
    assert ((shrunk > 90) & (shrunk < 165)).all()  # without antialiasing only the black columns are seen


def test_different_sizes_ask_for_a_size(tmp_path):
    save(tmp_path / "set/a/0.png", 0, size=(12, 12))
    save(tmp_path / "set/b/0.png", 1, size=(10, 14))
    with pytest.raises(StillroomError, match=r"pictures of 10x14, 12x12 .*; expected one size; set size"):
        opened(tmp_path / "set")
    assert opened(tmp_path / "set", size=9).shape == (3, 9, 9)


def test_odd_picture_between_the_probes_is_named(tmp_path):
    for i in range(200):
        save(tmp_path / "set" / "ab"[i % 2] / f"{i:03}.png", i, size=(4, 4))
    save(tmp_path / "set/a/002.png", 0, size=(5, 4))  # the second of 200: the probes take every third
    with pytest.raises(StillroomError, match=r"002\.png: 5x4 pixels; expected 4x4 as the others; set size"):
        opened(tmp_path / "set")


@pytest.mark.parametrize("suffix", ["png", "jpg", "bmp", "webp"])
@pytest.mark.parametrize("kept", [0, 40, -60])
def test_picture_that_cannot_be_decoded_is_named(tmp_path, suffix, kept):
    for seed, name in enumerate("ab"):
        save(tmp_path / "set" / name / f"0.{suffix}", seed, size=(40, 40))
    path = tmp_path / "set" / "b" / f"0.{suffix}"
    path.write_bytes(path.read_bytes()[:kept])
    with pytest.raises(StillroomError, match=rf"b/0\.{suffix}: cannot be decoded \(.+\); expected a picture"):
        opened(tmp_path / "set")


def test_folders_that_are_no_data_set_are_refused(tmp_path):
    with pytest.raises(StillroomError, match="nowhere: no such folder; expected one folder for each class"):
        opened(tmp_path / "nowhere")
    (tmp_path / "set").mkdir()
    with pytest.raises(StillroomError, match="set: no class folders; expected at least two"):
        opened(tmp_path / "set")
    save(tmp_path / "set/a/0.png", 0)
    save(tmp_path / "set/_unlabelled/0.png", 0)
    with pytest.raises(StillroomError, match="set: only one class, 'a'; expected at least two"):
        opened(tmp_path / "set")
    (tmp_path / "set/b").mkdir()
    with pytest.raises(StillroomError, match=r"set/b: no pictures; expected files ending in \.png"):
        opened(tmp_path / "set")


def test_test_class_without_training_pictures_is_refused(tmp_path):
    for seed, name in enumerate(["train/cat/0.png", "train/dog/0.png", "test/cats/0.png"]):
        save(tmp_path / "set" / name, seed)
    with pytest.raises(StillroomError, match=r"test: unknown class 'cats'.*did you mean 'cat'\?"):
        opened(tmp_path / "set")


def test_unknown_names_and_options_are_refused(tmp_path):
    with pytest.raises(StillroomError, match=r"unknown name 'mnist5k'.*did you mean 'mnist-5k'"):
        open_dataset("mnist5k", tmp_path)
    with pytest.raises(StillroomError, match="channels = 2; expected 1 or 3"):
        open_dataset("mnist-5k", tmp_path, channels=2)
    with pytest.raises(StillroomError, match="size = 0; expected at least 1"):
        open_dataset("mnist-5k", tmp_path, size=0)


def test_every_change_shows_in_the_fingerprint(folder):
    before = opened(folder)
    copied = folder.parent / "elsewhere" / "another name"
    shutil.copytree(folder, copied)
    assert opened(copied).fingerprint == before.fingerprint
    found = {before.fingerprint}
    (copied / "cat/a.png").rename(copied / "cat/z.png")  # another order
    found.add(opened(copied).fingerprint)
    (copied / "cat/z.png").rename(copied / "dog/a.png")  # another label
    found.add(opened(copied).fingerprint)
    (copied / "dog").rename(copied / "wolf")  # another class
    found.add(opened(copied).fingerprint)
    found.add(opened(copied, size=6).fingerprint)
    assert len(found) == 5


def test_one_changed_byte_changes_one_digest(folder):
    before, ids = opened(folder).source_digests(np.arange(5)), np.arange(5)
    path = folder / "dog" / "c.png"
    content = bytearray(path.read_bytes())
    content[-20] ^= 1
    path.write_bytes(content)
    dataset = opened(folder, size=12, channels=3, memory_budget=0)
    assert before.dtype == np.uint64
    assert (dataset.source_digests(ids) != before).tolist() == [False, False, True, False, False]
    assert dataset.source_digests(np.array([2, 0]))[1] == before[0]


def test_unchanged_files_are_not_read_again(folder):
    before = opened(folder).fingerprint
    (index,) = (folder.parent / "raw").glob("index-*.json")
    path = folder / "cat" / "a.png"
    stamp, content = path.stat(), path.read_bytes()
    dataset = opened(folder)
    path.write_bytes(bytes(len(content)))
    os.utime(path, ns=(stamp.st_atime_ns, stamp.st_mtime_ns))
    assert dataset.fingerprint == before  # same size and time of change: the index was believed
    os.utime(path, ns=(stamp.st_atime_ns, stamp.st_mtime_ns + 1))
    path.write_bytes(content[::-1])
    assert opened(folder, size=12, channels=3, memory_budget=0).fingerprint != before
    path.write_bytes(content)
    index.write_text('{"cat')
    assert opened(folder).fingerprint == before
    assert sorted(json.loads(index.read_text())) == [
        "cat/a.png",
        "cat/b.png",
        "dog/c.png",
        "dog/d.PNG",
        "dog/sub/z.png",
    ]


def test_dataset_can_be_sent_to_another_process(folder):
    dataset = opened(folder, memory_budget=0)
    sent = pickle.loads(pickle.dumps(dataset))
    assert torch.equal(everything(sent), everything(dataset))
    assert sent.fingerprint == dataset.fingerprint
