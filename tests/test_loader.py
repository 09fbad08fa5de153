"""Students see the rows the teachers saw, in an order that is a function of (seed, epoch, step), and no teacher."""

import dataclasses
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from toys import CLASSES, fuse_store, make_dataset, make_labels, make_pixels, small_blocks

from pipeline.errors import CorruptBlockError, StaleStoreError, StillroomError
from pipeline.loader import TargetLoader, open_replayer
from pipeline.store import open_targets, open_teacher
from pipeline.views.transforms import Flip, Shift

SOURCES = {
    "resident": {},
    "streamed": {"memory_budget": 0, "window": 1},
    "two blocks": {"memory_budget": 0, "window": 2},
}
over_sources = pytest.mark.parametrize("source", SOURCES)


def loader(stores, dataset, source="resident", **options):
    return TargetLoader(stores.targets, dataset, **{"batch_size": 7, "seed": 3, **SOURCES[source], **options})


def forever(loader):
    while True:
        yield from loader


def taken(batches, count):
    return [batch for _, batch in zip(range(count), batches, strict=False)]


def same(found, expected):
    assert found.view == expected.view
    assert np.array_equal(found.positions, expected.positions)
    assert torch.equal(found.inputs, expected.inputs)
    assert torch.equal(found.labels, expected.labels)
    assert torch.equal(found.target_log_probs, expected.target_log_probs)


# -- rows and order ---------------------------------------------------------------------------------------------------


@over_sources
@pytest.mark.parametrize("temperature", [1.0, 4.0])
def test_each_row_comes_with_its_own_target_inputs_and_label(stores, dataset, replayer, source, temperature):
    targets = {view: stores.targets.log_probs("train", view, temperature=temperature) for view in range(3)}
    for batch in taken(forever(loader(stores, dataset, source, temperature=temperature)), 18):
        torch.testing.assert_close(batch.target_log_probs, targets[batch.view][batch.positions])
        expected = replayer.batch("train", batch.view, batch.positions)
        assert torch.equal(batch.inputs, expected.inputs)
        assert torch.equal(batch.labels, expected.labels)
        assert (batch.mix is None) == (batch.view != 2)
        assert batch.mix is None or torch.equal(batch.mix, expected.mix)


@over_sources
def test_an_epoch_shows_one_view_of_every_sample_and_a_cycle_every_view(stores, dataset, source):
    one = loader(stores, dataset, source)
    views = []
    for _ in range(6):
        batches = list(one)
        assert sorted(np.concatenate([batch.positions for batch in batches])) == list(range(40))
        assert len(batches) == len(one) == 6
        sizes = [len(batch) for batch in batches]
        assert max(sizes) - min(sizes) <= 1
        views.append({batch.view for batch in batches})
    assert sorted(view for (view,) in views[:3]) == sorted(view for (view,) in views[3:]) == [0, 1, 2]


def test_beyond_the_memory_budget_blocks_are_streamed_in_windows(stores, dataset):
    size = 2 * 3 * 3 * 40  # fp16, 3 classes, 3 views of 40 rows
    assert not loader(stores, dataset, memory_budget=size).is_streaming
    streamed = loader(stores, dataset, memory_budget=size - 1, window=1, batch_size=4)
    assert streamed.is_streaming
    order = np.concatenate([batch.positions for batch in streamed])
    blocks = order // stores.targets.layout.block_rows
    assert (np.diff(blocks) != 0).sum() == 2, "with windows of one block, each block is shown at once"
    assert not np.array_equal(order, np.sort(order))


@over_sources
@pytest.mark.parametrize("steps", [0, 1, 5, 6, 7, 11, 13])
def test_resumed_in_mid_epoch_exactly_the_remaining_batches_come(stores, dataset, source, steps):
    expected = taken(forever(loader(stores, dataset, source)), 15)
    first = loader(stores, dataset, source)
    taken(forever(first), steps)
    second = loader(stores, dataset, source)
    second.load_state_dict(first.state_dict())
    for found, wanted in zip(taken(forever(second), 15 - steps), expected[steps:], strict=True):
        same(found, wanted)


@over_sources
def test_another_seed_is_another_order_and_the_same_seed_the_same(stores, dataset, source):
    one, again, other = (taken(iter(loader(stores, dataset, source, seed=seed)), 6) for seed in (3, 3, 4))
    for found, wanted in zip(again, one, strict=True):
        same(found, wanted)
    assert any(not np.array_equal(a.positions, b.positions) for a, b in zip(one, other, strict=True))
    with pytest.raises(ValueError, match="the state's seed is 4, the loader's 3"):
        loader(stores, dataset).load_state_dict({"seed": 4, "epoch": 0, "step": 0})


def test_no_more_than_two_windows_are_in_memory(stores, dataset, tmp_path, monkeypatch):
    small_blocks(monkeypatch, 4)
    targets = fuse_store(tmp_path / "t", stores.teachers)
    streamed = TargetLoader(targets, dataset, batch_size=4, memory_budget=0, window=2)
    held = []
    for _, batch in zip(range(30), forever(streamed), strict=False):
        assert batch.target_log_probs.isfinite().all()
        held.append(len(streamed._shared._made[0]._read))
    assert len(targets.blocks("train", 0)) == 10
    assert max(held) == 2, "the window being shown and the one being read"


@over_sources
def test_a_corrupt_block_stops_the_student(stores, dataset, source, tmp_path):
    folder = shutil.copytree(stores.targets.folder, tmp_path / "targets")
    chunk = folder / "train/log_probs/t1/c/1/2/0"
    chunk.write_bytes(chunk.read_bytes()[::-1])
    with pytest.raises(CorruptBlockError, match=r"log_probs/t1 of train view 1 rows 32-40: crc32c"):
        taken(forever(TargetLoader(open_targets(folder), dataset, batch_size=7, **SOURCES[source])), 18)


def test_held_out_splits_load_too(stores, dataset):
    batches = taken(iter(loader(stores, dataset, split="test")), 2)
    torch.testing.assert_close(
        torch.cat([batch.target_log_probs for batch in batches]),
        stores.targets.log_probs("test")[np.concatenate([batch.positions for batch in batches])],
    )


# -- what is refused --------------------------------------------------------------------------------------------------


def one_pixel():
    pixels = make_pixels()
    pixels[13, 0, 5, 5] ^= 1
    return make_dataset(pixels)


def one_label():
    labels = make_labels()
    labels[13] = (labels[13] + 1) % 3
    return make_dataset(labels=labels)


OTHER_DATA = {
    "a pixel": one_pixel,
    "a label": one_label,
    "the order": lambda: make_dataset(make_pixels()[::-1].copy(), make_labels()[::-1].copy()),
    "a sample less": lambda: make_dataset(make_pixels()[:-1]),
    "the classes": lambda: make_dataset(classes=CLASSES[::-1]),
}


@pytest.mark.parametrize("what", OTHER_DATA)
def test_other_data_are_refused(stores, what):
    with pytest.raises(
        StaleStoreError, match=r"targets: made from data set \w{12}; found \w{12} \(another picture, label"
    ):
        loader(stores, OTHER_DATA[what]())


@pytest.mark.parametrize("store", ["teacher", "target"])
def test_pixels_that_changed_behind_the_fingerprint_are_refused(stores, dataset, store):
    class Liar:
        """Says it is the data set, and is another in one picture."""

        fingerprint, shape = dataset.fingerprint, dataset.shape
        read = staticmethod(one_pixel().read)
        source_digests = staticmethod(one_pixel().source_digests)

    opened = stores.targets if store == "target" else stores.teachers[0]
    with pytest.raises(
        StaleStoreError, match=r"row_digest of \w+ view \d: 1 of \d+ rows checked do not replay \(first"
    ):
        open_replayer(opened, Liar())


def test_code_that_draws_otherwise_is_refused(stores, dataset, monkeypatch):
    draw = Flip.parameters
    monkeypatch.setattr(Flip, "parameters", lambda self, words: 1 - draw(self, words))
    with pytest.raises(StaleStoreError, match=r"row_digest of train view 0: 40 of 40 rows checked do not replay"):
        loader(stores, dataset)


def test_another_version_of_a_transform_is_refused(stores, dataset, monkeypatch):
    monkeypatch.setattr(Shift, "version", 2)
    with pytest.raises(StaleStoreError, match=r"views: rows were made by .*'shift', 'version': 1.*; dump them again"):
        loader(stores, dataset)


def test_only_the_rows_asked_for_are_replayed_and_all_of_them_when_none_is_said(stores, dataset, monkeypatch):
    from pipeline.views import Replayer

    seen, digests = [], Replayer.digests

    def watched(self, split, view, positions):
        seen.append((split, view, len(positions)))
        return digests(self, split, view, positions)

    monkeypatch.setattr(Replayer, "digests", watched)
    open_replayer(stores.targets, dataset, check_rows=8)
    assert max(count for _, _, count in seen) <= 12
    assert {(split, view) for split, view, _ in seen} == {("train", v) for v in range(3)} | {
        ("calibration", 0),
        ("test", 0),
    }
    seen.clear()
    open_replayer(stores.targets, dataset, check_rows=None)
    assert sum(count for _, _, count in seen) == stores.targets.layout.rows


def test_labels_of_a_store_that_are_not_its_plans_are_refused(stores, dataset, monkeypatch):
    other = dict(stores.targets.attributes)
    other["plan"] = {**other["plan"], "seed": other["plan"]["seed"] + 1}
    opened = open_targets(stores.targets.folder)
    opened.attributes = other
    with pytest.raises(StaleStoreError, match="do not replay"):
        loader(dataclasses.replace(stores, targets=opened), dataset)
    opened.attributes = {**other, "plan": {**other["plan"], "splits": {}}}
    with pytest.raises(StillroomError, match="its samples are not those of its plan; rebuild the store"):
        opened.plan()


def test_a_temperature_that_was_not_fused_is_told(stores, dataset):
    with pytest.raises(StillroomError, match=r"found targets at temperatures \[1.0, 4.0\]; expected 2.0"):
        loader(stores, dataset, temperature=2.0)


def test_the_loader_needs_no_teacher():
    code = "import pipeline.loader, sys; print([m for m in sys.modules if m.startswith(('pipeline.teach', 'sklearn'))])"
    root = Path(__file__).parents[1]
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=root)
    assert done.stdout.strip() == "[]"


def test_opening_checks_the_teachers_store_in_the_same_way(stores, dataset):
    assert open_replayer(open_teacher(stores.teachers[0].folder), dataset).plan.dataset == dataset.fingerprint
