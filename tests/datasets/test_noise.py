"""Records of a seed and a class: noise is a function of the seed alone, classes those of the train rows."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

from pipeline.datasets import opening
from pipeline.datasets.catalog import read_catalog
from pipeline.datasets.inputs import parse_input
from pipeline.datasets.inputs.noise import normal
from pipeline.errors import StillroomError

TRAIN, TEST = 40, 10
COLUMNS = ("seed", "class")


def write_idx(folder: Path, *, train: int, test: int = TEST, seed: int = 0) -> None:
    """Write made pictures as Fashion-MNIST's four files: a class's pictures share a bright row."""
    draws = np.random.default_rng(seed)
    for name, count in (("train", train), ("t10k", test)):
        labels = np.arange(count, dtype=np.uint8) % 10
        pixels = draws.integers(0, 60, (count, 28, 28), dtype=np.uint8)
        pixels[np.arange(count), 4 + 2 * labels] = 250
        (folder / f"{name}-images-idx3-ubyte").write_bytes(bytes(16) + pixels.tobytes())
        (folder / f"{name}-labels-idx1-ubyte").write_bytes(bytes(8) + labels.tobytes())


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    folder = tmp_path_factory.mktemp("fashion")
    write_idx(folder, train=TRAIN)
    entry = read_catalog()["fashion-noise"]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(opening, "fetch", lambda *_, **__: folder)
        return opening.open_records("fashion-noise", entry, folder, 1 << 30, {})


def test_a_record_is_a_seed_and_the_class_of_its_picture(dataset):
    assert dataset.frame["seed"].tolist() == list(range(TRAIN + TEST))
    assert dataset.frame["class"][:3].tolist() == ["T-shirt/top", "Trouser", "Pullover"]
    assert dataset.official_test.tolist() == list(range(TRAIN, TRAIN + TEST))
    assert (len(dataset.classes), dataset.classes[0], dataset.classes[-1]) == (784, "0,0", "27,27")
    assert dataset.draws
    assert dataset.targets.shape == (TRAIN + TEST, 784)
    assert dataset.targets.min() >= 0
    assert dataset.targets[1, 6 * 28 : 7 * 28] == pytest.approx(250 / 255)  # class 1's bright row is the seventh
    assert dataset.group_of[1] == "Trouser"


def test_a_model_reads_noise_and_a_class(dataset):
    fitted = dataset.fit(np.arange(TRAIN))
    rows = fitted.reading(None)
    read = rows.read(np.array([3, 13, 4]))
    assert rows.shape == (784 + 10,)
    assert read.shape == (3, 794)
    assert torch.equal(read[:, 784:].sum(1), torch.ones(3))
    assert torch.equal(read[0, 784:], read[1, 784:])  # the same class
    assert not torch.equal(read[0, 784:], read[2, 784:])
    assert torch.equal(read[:, :784], normal(np.array([3, 13, 4]), 784))


def test_noise_is_normal_and_each_seeds_own():
    drawn = normal(np.arange(2000), 31).double()
    assert drawn.shape == (2000, 31)
    assert drawn.mean().abs() < 0.02
    assert drawn.std() == pytest.approx(1, abs=0.01)
    assert (drawn.abs() < 1).double().mean() == pytest.approx(0.6827, abs=0.01)
    assert drawn.T.corrcoef().fill_diagonal_(0).abs().max() < 0.12
    assert drawn.abs().max() < 6.7  # of 32 bits
    assert torch.equal(normal(np.array([7]), 31), normal(np.arange(20), 31)[7:8])
    assert torch.equal(normal(np.array([7]), 30), normal(np.array([7]), 30))


def test_noise_is_what_it_was():
    """A golden: another draw would make every store of pictures stale without a word."""
    golden = [[-0.84858, -0.34594, 0.99150], [-0.40074, 0.47366, 0.12042]]
    torch.testing.assert_close(normal(np.array([0, 2**40]), 3), torch.tensor(golden), atol=1e-5, rtol=0)


def test_a_class_that_no_train_row_has_is_zero_and_columns_may_have_other_names():
    frame = pd.DataFrame({"number": [5, 6, 7], "kind": ["b", "a", "c"]})
    made = parse_input("noise", {"kind": "noise", "dims": 4, "columns": ["number", "kind"]}, list(frame))
    read = made.fit(frame[:2], Path()).read(frame)
    assert read[:, 4:].tolist() == [[0, 1], [1, 0], [0, 0]]


@pytest.mark.parametrize("seeds", [[0.5, 1.5], [-1, 2], ["a", "b"]])
def test_what_is_no_seed_is_told(seeds):
    frame = pd.DataFrame({"seed": seeds, "class": ["a", "b"]})
    made = parse_input("noise", {"kind": "noise", "dims": 4}, COLUMNS)
    with pytest.raises(StillroomError, match=r"found a column 'seed' of .*; expected whole numbers from 0 on"):
        made.fit(frame, Path()).read(frame)


def test_wrong_options_and_train_rows_without_a_class_are_told():
    with pytest.raises(StillroomError, match=r"input.noise.dims: found 0; .*greater than or equal to 1"):
        parse_input("noise", {"kind": "noise", "dims": 0}, COLUMNS)
    with pytest.raises(StillroomError, match=r"input.noise.columns: found 'seeds'; .*did you mean 'seed'"):
        parse_input("noise", {"kind": "noise", "dims": 2, "columns": ["seeds", "class"]}, COLUMNS)
    frame = pd.DataFrame({"seed": [1], "class": [None]})
    with pytest.raises(StillroomError, match="found no train row with a class; expected one; hold out fewer"):
        parse_input("noise", {"kind": "noise", "dims": 2}, COLUMNS).fit(frame, Path())
