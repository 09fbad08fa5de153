"""The order of rows is a function of (seed, epoch, step): complete, resumable, and never a runt of a batch."""

import math

import numpy as np
import pytest
import torch

from pipeline.views import ViewLoader
from pipeline.views.order import cut, epoch_view, global_order, windowed_order


@pytest.mark.parametrize("count", [1, 3, 8])
def test_each_cycle_of_epochs_shows_every_view_once(count):
    cycles = [[epoch_view(4, cycle * count + i, count) for i in range(count)] for cycle in range(20)]
    assert all(sorted(cycle) == list(range(count)) for cycle in cycles)
    assert count == 1 or len({tuple(cycle) for cycle in cycles}) > 1


@pytest.mark.parametrize("epoch", range(3))
def test_an_epoch_is_a_permutation_of_its_own(epoch):
    order = global_order(1, epoch, 100)
    assert np.array_equal(np.sort(order), np.arange(100))
    assert not np.array_equal(order, global_order(1, epoch + 1, 100))
    assert not np.array_equal(order, global_order(2, epoch, 100))


@pytest.mark.parametrize(("size", "block", "window"), [(100, 16, 2), (96, 16, 3), (5, 16, 2), (100, 1, 7), (64, 16, 9)])
def test_windows_cover_every_row_once_and_hold_whole_blocks(size, block, window):
    windows = windowed_order(3, 0, size, block, window)
    assert np.array_equal(np.sort(np.concatenate(windows)), np.arange(size))
    for rows in windows:
        blocks = np.unique(rows // block)
        assert len(blocks) <= window
        whole = np.concatenate([np.arange(b * block, min(size, (b + 1) * block)) for b in blocks])
        assert np.array_equal(np.sort(rows), whole)
    assert len(windows) == math.ceil(math.ceil(size / block) / window)
    sizes = [len(np.unique(rows // block)) for rows in windows]
    assert max(sizes) - min(sizes) <= 1, "no window is left with less to shuffle than the others"


def test_windows_are_shuffled_within_and_between():
    first, second = windowed_order(3, 0, 160, 16, 2), windowed_order(3, 1, 160, 16, 2)
    assert not np.array_equal(first[0], np.sort(first[0]))
    assert not np.array_equal(np.concatenate(first), np.concatenate(second))
    assert [set(rows // 16) for rows in first] != [set(rows // 16) for rows in second]


@pytest.mark.parametrize(("size", "batch"), [(40, 16), (40, 40), (41, 40), (3, 16), (100, 7), (96, 16)])
def test_batches_hold_every_row_and_differ_by_one_row_at_most(size, batch):
    batches = cut(np.arange(size), batch)
    sizes = [len(rows) for rows in batches]
    assert np.array_equal(np.concatenate(batches), np.arange(size))
    assert max(sizes) <= batch
    assert max(sizes) - min(sizes) <= 1
    assert len(batches) == -(-size // batch)


def loader(replayer, **options):
    return ViewLoader(replayer, "train", **{"batch_size": 16, "seed": 2, **options})


def shown(loader, epochs=1):
    return [(batch.view, batch.positions.tolist()) for _ in range(epochs) for batch in loader]


def test_an_epoch_shows_one_view_of_every_sample(replayer):
    whole = loader(replayer)
    for epoch in range(3):
        rows = shown(whole)
        assert {view for view, _ in rows} == {epoch_view(2, epoch, 3)}
        assert sorted(position for _, positions in rows for position in positions) == list(range(40))
        assert len(rows) == len(whole) == 3


def test_chosen_views_are_all_that_is_shown_in_the_order_of_as_many(replayer):
    chosen = loader(replayer, views=[2, 0])
    for epoch in range(4):
        rows = shown(chosen)
        assert {view for view, _ in rows} == {[2, 0][epoch_view(2, epoch, 2)]}
    assert [positions for _, positions in shown(loader(replayer, views=[2, 0]))] == [
        positions for _, positions in shown(loader(replayer))
    ]


def test_chosen_positions_are_all_that_is_shown(replayer):
    positions = replayer.plan.splits["train"].labelled
    rows = shown(loader(replayer, positions=positions, batch_size=4))
    assert sorted(position for _, part in rows for position in part) == positions.tolist()
    assert len(loader(replayer, positions=positions, batch_size=4)) == len(rows)


@pytest.mark.parametrize("steps", range(8))
def test_a_loader_set_to_a_state_goes_on_with_the_very_next_batch(replayer, steps):
    def batches(one):
        while True:
            yield from one

    whole, first, second = loader(replayer), loader(replayer), loader(replayer)
    expected = [batch for batch, _ in zip(batches(whole), range(9), strict=False)]
    for _ in zip(range(steps), batches(first), strict=False):
        pass
    second.load_state_dict(first.state_dict())
    rest = [batch for _, batch in zip(range(9 - steps), batches(second), strict=False)]
    for found, wanted in zip(rest, expected[steps:], strict=True):
        assert found.view == wanted.view
        assert np.array_equal(found.positions, wanted.positions)
        assert torch.equal(found.inputs, wanted.inputs)


def test_a_state_of_another_seed_is_refused(replayer):
    with pytest.raises(ValueError, match="the state's seed is 3, the loader's 2"):
        loader(replayer).load_state_dict({"seed": 3, "epoch": 0, "step": 0})
