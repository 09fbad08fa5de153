"""The speech recipe: its models read spectrograms, its student is small, and its plan keeps prompts together."""

import numpy as np
import pytest
import torch
from toys import make_pixels

from pipeline.datasets import ImageDataset
from pipeline.datasets.catalog import find_entry
from pipeline.datasets.digests import digest_arrays
from pipeline.models import build_model, count_parameters, is_estimator
from stages import rows as rows_module
from stages.load import load_recipe
from stages.rows import Rows

RECIPE = load_recipe("speech")


@pytest.mark.parametrize("entry", [*RECIPE.teacher, *RECIPE.student], ids=lambda entry: entry.name)
def test_its_models_read_spectrograms(entry):
    listed = find_entry(RECIPE.data.name)
    model = build_model(entry.model, num_classes=len(listed.classes), in_shape=listed.shape, **entry.options)
    if entry in RECIPE.student:
        assert 25_000 < count_parameters(model) < 35_000
    else:
        assert is_estimator(model) or count_parameters(model) < 100_000


def test_its_plan_keeps_what_belongs_together_in_one_split(monkeypatch, tmp_path):
    pixels, units = make_pixels(600), np.arange(600) % 150
    dataset = ImageDataset(
        name="toy",
        classes=("a", "b"),
        labels=np.arange(600) // 150 % 2,
        official_test=np.flatnonzero(units < 30),
        shape=pixels.shape[1:],
        picture=torch.from_numpy(pixels).__getitem__,
        digest_all=lambda: digest_arrays(pixels),
        units=units,
    ).hold_in_memory(1 << 20)
    monkeypatch.setattr(rows_module, "open_dataset", lambda *_, **__: dataset)
    splits = Rows(RECIPE, tmp_path).plan.splits
    found = [set(units[split.ids].tolist()) for split in splits.values()]
    assert sum(map(len, found)) == len(set.union(*found)) == 150
    assert len(splits["calibration"]) == 48
    assert len(splits["train"].labelled) == RECIPE.data.labelled
