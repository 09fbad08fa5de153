"""The recipe of trees on photos, whole, on photos that are made: blobs on noise, with a box around each."""

import math

import numpy as np
import pytest
from PIL import Image
from shipped import check_every_model_ran, of, rows_of, run_shipped

from pipeline.datasets.catalog import data_sets
from pipeline.report import pictures
from tests.datasets.test_crowns import voc

HEIGHT, WIDTH, CROWN, TREES = 300, 300, 30, 12
FEW = [
    "data.calibration=0.3",
    "teacher.deep.width=4",
    "teacher.plain.width=4",
    "student.small.width=2",
]


def write_photos(folder) -> None:
    """Lay down three train photos and one test photo under the names of the catalogue, the boxes beside them."""
    files = [file for file in data_sets()["tree-crowns"].files if file.holds == "photo"]
    for seed, file in enumerate(files):
        rng = np.random.default_rng(seed)
        pixels = rng.integers(90, 160, (HEIGHT, WIDTH, 3)).astype(np.uint8)
        corners = rng.integers(0, HEIGHT - CROWN, (TREES, 2))
        for x, y in corners:
            pixels[y : y + CROWN, x : x + CROWN] = (20, 90, 20)
        Image.fromarray(pixels).save(folder / file.name)
        boxes = [(int(x), int(y), int(x) + CROWN, int(y) + CROWN) for x, y in corners]
        (folder / file.name).with_suffix(".xml").write_text(voc(boxes))


@pytest.fixture(scope="module")
def ws(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pictures, "drawn", lambda *_: b"png")
        return run_shipped("crowns", tmp_path_factory.mktemp("crowns"), write_photos, *FEW)


def test_every_model_ran_and_has_all_figures(ws):
    check_every_model_ran(ws)
    rows = rows_of(ws)
    assert [len(of(rows, kind)) for kind in ("teacher", "fusion", "student", "baseline")] == [2, 1, 2, 4]
    for row in rows:
        assert all(0 <= row[name] <= 1 for name in ("ap", "ap50", "ap75")), row
        assert math.isfinite(row["nll"])


def test_tiles_of_one_block_are_in_one_split_and_test_tiles_are_of_other_photos(ws):
    plan, dataset = ws.plan, ws.dataset
    units = {name: set(dataset.units[split.ids]) for name, split in plan.splits.items()}
    assert not units["train"] & units["calibration"]
    assert set(plan.splits["test"].ids) == set(dataset.official_test)
    assert not set(dataset.official_test) & set(plan.splits["train"].ids)
    assert len(plan.splits["train"].labelled) == len(plan.splits["train"])
    assert plan.views("train") == 2
