"""Students that weigh teachers themselves see the rows and the order that a target's students see, and all teachers."""

import shutil

import numpy as np
import pytest
import torch
from toys import dump_store, fuse_store, make_dataset, make_plan, make_replayer, small_blocks

from pipeline.errors import CorruptBlockError, StaleStoreError, StillroomError
from pipeline.loader import TargetLoader, TeacherLoader
from pipeline.store import open_teacher
from pipeline.views import Replayer

SOURCES = {
    "resident": {},
    "streamed": {"memory_budget": 0, "window": 1},
    "two blocks": {"memory_budget": 0, "window": 2},
}
over_sources = pytest.mark.parametrize("source", SOURCES)


def loader(teachers, dataset, source="resident", **options):
    return TeacherLoader(teachers, dataset, **{"batch_size": 7, "seed": 3, **SOURCES[source], **options})


def forever(loader):
    while True:
        yield from loader


def taken(batches, count):
    return [batch for _, batch in zip(range(count), batches, strict=False)]


def expected_logits(teachers, batch, calibrate=True):
    """What the stores say of a batch's rows, read whole."""
    said = []
    for store in teachers:
        temperature = store.manifest.details["temperature"] if calibrate else 1.0
        said.append(store.logits("train", batch.view)[batch.positions] / temperature)
    return torch.stack(said)


@over_sources
@pytest.mark.parametrize("calibrate", [True, False])
def test_each_row_comes_with_what_every_teacher_said_of_it(stores, dataset, replayer, source, calibrate):
    teachers = [open_teacher(store.folder) for store in stores.teachers]
    teachers[1].manifest.details["temperature"] = 3.0  # untrained ones have the same
    assert len({store.manifest.details["temperature"] for store in teachers}) == 2
    for batch in taken(forever(loader(teachers, dataset, source, calibrate=calibrate)), 18):
        assert batch.teacher_logits.shape == (2, len(batch), 3)
        assert batch.teacher_logits.dtype == torch.float32
        torch.testing.assert_close(batch.teacher_logits, expected_logits(teachers, batch, calibrate))
        expected = replayer.batch("train", batch.view, batch.positions)
        assert torch.equal(batch.inputs, expected.inputs)
        assert torch.equal(batch.labels, expected.labels)
        assert batch.target_log_probs is None
        assert (batch.mix is None) == (batch.view != 2)


@over_sources
def test_the_order_is_that_of_a_target_store(stores, dataset, source):
    targets = TargetLoader(stores.targets, dataset, batch_size=7, seed=3, **SOURCES[source])
    pairs = zip(taken(forever(loader(stores.teachers, dataset, source)), 20), taken(forever(targets), 20), strict=True)
    for found, wanted in pairs:
        assert found.view == wanted.view
        assert np.array_equal(found.positions, wanted.positions)
        assert torch.equal(found.inputs, wanted.inputs)


@over_sources
@pytest.mark.parametrize("steps", [0, 5, 6, 8])
def test_resumed_in_mid_epoch_exactly_the_remaining_batches_come(stores, dataset, source, steps):
    expected = taken(forever(loader(stores.teachers, dataset, source)), 13)
    first = loader(stores.teachers, dataset, source)
    taken(forever(first), steps)
    second = loader(stores.teachers, dataset, source)
    second.load_state_dict(first.state_dict())
    for found, wanted in zip(taken(forever(second), 13 - steps), expected[steps:], strict=True):
        assert np.array_equal(found.positions, wanted.positions)
        assert torch.equal(found.teacher_logits, wanted.teacher_logits)


def test_the_memory_budget_is_for_all_stores_together(stores, dataset):
    size = 2 * 2 * 3 * 3 * 40  # teachers, fp16, classes, views, rows
    assert not loader(stores.teachers, dataset, memory_budget=size).is_streaming
    assert loader(stores.teachers, dataset, memory_budget=size - 1).is_streaming


@pytest.fixture(scope="module")
def uneven(dataset, tmp_path_factory):
    """Three stores of one plan in blocks of 4, 16 and 6 rows: wide features make blocks smaller."""
    root, replayer = tmp_path_factory.mktemp("uneven"), Replayer(make_plan(dataset, labelled=10), dataset)
    teachers = []
    for seed, rows in enumerate((4, 16, 6)):
        with pytest.MonkeyPatch.context() as patch:
            small_blocks(patch, rows)
            teachers.append(dump_store(root / str(rows), replayer, name=str(rows), seed=seed))
    return teachers


@pytest.mark.parametrize("chosen", [(0, 1), (1, 0), (1, 2), (0, 1, 2)])
@pytest.mark.parametrize("window", [1, 3])
def test_stores_in_blocks_of_other_sizes_are_streamed_in_one_order(uneven, dataset, chosen, window):
    teachers = [uneven[k] for k in chosen]
    one = loader(teachers, dataset, memory_budget=0, window=window)
    for _ in range(4):
        epoch = list(one)
        assert sorted(np.concatenate([batch.positions for batch in epoch])) == list(range(40))
        for batch in epoch:
            torch.testing.assert_close(batch.teacher_logits, expected_logits(teachers, batch))
    assert all(len(source._read) <= 2 for source in one._shared._made)


@over_sources
def test_a_corrupt_block_of_any_teacher_stops_the_student(stores, dataset, source, tmp_path):
    folder = shutil.copytree(stores.teachers[1].folder, tmp_path / "b")
    chunk = folder / "train/logits/c/1/2/0"
    chunk.write_bytes(chunk.read_bytes()[::-1])
    with pytest.raises(CorruptBlockError, match=r"b: logits of train view 1 rows 32-40: crc32c"):
        taken(forever(loader([stores.teachers[0], open_teacher(folder)], dataset, source)), 18)


def test_stores_of_another_plan_or_other_pixels_are_refused(stores, dataset, tmp_path):
    other = dump_store(tmp_path / "other", make_replayer(dataset, seed=6))
    with pytest.raises(StaleStoreError, match=r"other: made from another view plan than .*; expected one plan for all"):
        loader([stores.teachers[0], other], dataset)
    fewer = dump_store(tmp_path / "fewer", Replayer(make_plan(make_dataset(), labelled=10), dataset), classes="xyz")
    with pytest.raises(StillroomError, match=r"fewer: 3 classes \['x', 'y', 'z'\]"):
        loader([stores.teachers[0], fewer], dataset)
    with pytest.raises(StillroomError, match="teachers: found no store; expected at least one"):
        loader([], dataset)


def test_rows_of_every_store_are_replayed_not_of_the_first_alone(stores, dataset, monkeypatch):
    from pipeline.loader import proof as module

    seen, check = [], module.check_replay

    def watched(store, *arguments):
        seen.append(store.name)
        return check(store, *arguments)

    monkeypatch.setattr(module, "check_replay", watched)
    loader(stores.teachers, dataset)
    assert {name: seen.count(name) for name in "ab"} == {"a": 5, "b": 5}  # 3 train views and two held-out splits


def test_what_top_k_keeps_is_decoded_and_random_draws_are_refused(dataset, replayer, tmp_path):
    kept = dump_store(tmp_path / "topk", replayer, codec={"kind": "topk", "k": 2})
    for batch in taken(iter(loader([kept], dataset)), 3):
        torch.testing.assert_close(batch.teacher_logits, expected_logits([kept], batch))
    drawn = dump_store(tmp_path / "drawn", replayer, name="b", codec={"kind": "sampled", "draws": 20})
    with pytest.raises(StillroomError, match=r"drawn: its logits are kept as random draws; expected another codec"):
        loader([kept, drawn], dataset)
    held_out = taken(iter(loader([kept, drawn], dataset, split="test")), 2)  # dense whatever the codec
    assert held_out[0].teacher_logits.shape == (2, 6, 3)


def test_a_fused_store_of_these_teachers_says_what_their_mixture_says(stores, dataset, tmp_path):
    """The two ways to a uniform mixture agree: fused before, or mixed as the rows come."""
    targets = fuse_store(tmp_path / "t", stores.teachers, temperatures=[2.0], calibrate_pool=False)
    fused = TargetLoader(targets, dataset, batch_size=7, seed=3, temperature=2.0)
    for one, other in zip(loader(stores.teachers, dataset), fused, strict=True):
        mixture = (one.teacher_logits / 2).softmax(-1).mean(0)
        torch.testing.assert_close(mixture, other.target_log_probs.exp(), atol=1e-3, rtol=0)
