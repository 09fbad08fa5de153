"""Each student of a pass is shown what a loader of its own would show it, whoever else reads beside it."""

import itertools

import numpy as np
import pytest
import torch
from toys import dump_store, small_blocks

from pipeline.errors import StaleStoreError, StillroomError
from pipeline.loader import Reading, SharedLoader, TargetLoader, TeacherLoader, open_readings
from pipeline.views import Replayer

SOURCES = {"resident": {}, "streamed": {"memory_budget": 0, "window": 1}, "two": {"memory_budget": 0, "window": 2}}
over_sources = pytest.mark.parametrize("source", SOURCES)
LAYER = "penultimate"


def readings_of(stores):
    """Everything that can be read, by name."""
    teachers = tuple(stores.teachers)
    return {
        "targets": Reading(stores.targets),
        "softer": Reading(stores.targets, 4.0),
        "teachers": Reading(teachers=teachers),
        "raw": Reading(teachers=teachers, calibrate=False),
        "features": Reading(stores.targets, weights=True, features={LAYER: teachers}),
        "one of them": Reading(teachers=teachers, features={LAYER: teachers[1:]}),
    }


def contrasting(stores, count):
    return Reading(stores.targets, features={LAYER: tuple(stores.teachers)}, negatives=count)


def loader(readings, replayer, source="resident", **options):
    return SharedLoader(list(readings), replayer, **{"batch_size": 7, "seed": 3, **SOURCES[source], **options})


def batches(loader, count=20):
    """The first batches, each as every student sees it."""
    shown = itertools.chain.from_iterable(iter(loader) for _ in itertools.count())
    return [[each[k] for k in range(len(loader.readings))] for each in itertools.islice(shown, count)]


def same(found, expected):
    assert found.view == expected.view
    assert np.array_equal(found.positions, expected.positions)
    for name in ("inputs", "labels", "mix", "partner_labels", "target_log_probs", "teacher_logits", "weights"):
        one, other = getattr(found, name), getattr(expected, name)
        assert (one is None) == (other is None), name
        assert one is None or torch.equal(one, other), name
    for name in ("features", "negatives"):
        one, other = getattr(found, name), getattr(expected, name)
        assert one.keys() == other.keys()
        for layer in one:
            assert all(map(torch.equal, one[layer], other[layer]))


# -- in company as alone ----------------------------------------------------------------------------------------------


@over_sources
def test_each_reader_sees_the_batches_of_a_loader_of_its_own(stores, replayer, source):
    readings = readings_of(stores)
    together = batches(loader(readings.values(), replayer, source))
    for place, reading in enumerate(readings.values()):
        for found, (expected,) in zip(together, batches(loader([reading], replayer, source)), strict=True):
            same(found[place], expected)


@over_sources
def test_they_are_those_of_a_target_loader_and_of_a_teacher_loader(stores, dataset, replayer, source):
    readings = readings_of(stores)
    together = batches(loader([readings["softer"], readings["raw"]], replayer, source))
    settings = {"batch_size": 7, "seed": 3, **SOURCES[source]}
    targets = TargetLoader(stores.targets, dataset, temperature=4.0, **settings)
    teachers = TeacherLoader(stores.teachers, dataset, calibrate=False, **settings)
    for name, other in enumerate((targets, teachers)):
        alone = itertools.islice(itertools.chain.from_iterable(iter(other) for _ in itertools.count()), 20)
        for found, expected in zip(together, alone, strict=True):
            same(found[name], expected)


def test_how_many_negatives_others_want_changes_nothing(stores, replayer):
    wanted = [3, 11, 0, 6]
    readings = [contrasting(stores, count) for count in wanted]
    together = batches(loader(readings, replayer))
    for place, reading in enumerate(readings):
        for found, (expected,) in zip(together, batches(loader([reading], replayer)), strict=True):
            same(found[place], expected)
            assert {len(each) for each in found[place].negatives.get(LAYER, ())} == (
                {wanted[place]} if wanted[place] else set()
            )


def test_who_reads_nothing_sees_rows_and_labels_alone(stores, replayer):
    for found, (labels,) in zip(
        batches(loader([Reading(stores.targets)], replayer)), batches(loader([Reading()], replayer)), strict=True
    ):
        assert np.array_equal(found[0].positions, labels.positions)
        assert torch.equal(found[0].inputs, labels.inputs)
        assert labels.target_log_probs is None
        assert labels.features == {}


# -- the rows are the store's -----------------------------------------------------------------------------------------


@over_sources
def test_features_and_weights_are_the_stores_rows(stores, replayer, source):
    features = [{view: store.features("train", LAYER, view) for view in range(3)} for store in stores.teachers]
    weights = {view: torch.from_numpy(stores.targets.read("train", "weights", view)).float() for view in range(3)}
    assert weights[0].shape == (40, 2)
    views = set()
    for (batch,) in batches(loader([readings_of(stores)["features"]], replayer, source)):
        views.add(batch.view)
        assert torch.equal(batch.weights, weights[batch.view][batch.positions])
        for found, expected in zip(batch.features[LAYER], features, strict=True):
            assert torch.equal(found, expected[batch.view][batch.positions])
    assert views == {0, 1, 2}


def test_a_teacher_without_the_layer_has_features_of_no_width(stores, replayer, tmp_path, monkeypatch):
    from pipeline.store import TeacherStore

    bare = stores.teachers[0]
    having = stores.teachers[1]
    monkeypatch.setattr(
        TeacherStore, "feature_layers", property(lambda self: (LAYER,) if self.name == having.name else ())
    )
    reading = Reading(stores.targets, features={LAYER: (bare, having)})
    for (batch,) in batches(loader([reading], replayer), 3):
        none, some = batch.features[LAYER]
        assert none.shape == (len(batch), 0)
        assert torch.equal(some, having.features("train", LAYER, batch.view)[batch.positions])


# -- negatives --------------------------------------------------------------------------------------------------------


def rows_of(features, rows):
    """Where each row lies in the store."""
    found = [(features == row).all(1).nonzero()[:, 0].tolist() for row in rows]
    assert all(len(each) == 1 for each in found)
    return [each[0] for each in found]


def test_negatives_are_other_rows_of_the_same_view_each_once(stores, replayer):
    seen = []
    for (batch,) in batches(loader([contrasting(stores, 9)], replayer)):
        per_teacher = [
            rows_of(store.features("train", LAYER, batch.view), rows)
            for store, rows in zip(stores.teachers, batch.negatives[LAYER], strict=True)
        ]
        assert per_teacher[0] == per_teacher[1]
        assert len(set(per_teacher[0])) == 9
        assert not set(per_teacher[0]) & set(batch.positions)
        seen.append(tuple(per_teacher[0]))
    assert len(set(seen)) == len(seen)
    assert len(set(itertools.chain(*seen))) > 35  # of 40, wherever they lie


def test_negatives_follow_seed_epoch_and_step_alone(stores, replayer):
    def drawn(**options):
        return [
            batch.negatives[LAYER][0] for (batch,) in batches(loader([contrasting(stores, 9)], replayer, **options))
        ]

    assert all(map(torch.equal, drawn(), drawn()))
    assert not any(map(torch.equal, drawn(), drawn(seed=4)))


def test_asking_for_more_negatives_than_there_are_gives_all_others(stores, replayer):
    for (batch,) in batches(loader([contrasting(stores, 1000)], replayer), 3):
        assert len(batch.negatives[LAYER][0]) == 40 - len(batch)


def test_negatives_that_would_have_to_be_streamed_are_refused(stores, replayer):
    with pytest.raises(StillroomError, match=r"features: [\d,]+ bytes of rows; expected 0 at most, for negatives are"):
        loader([contrasting(stores, 9)], replayer, "streamed")


# -- resume, shares, positions ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("steps", [0, 1, 5, 6, 8])
@over_sources
def test_resumed_in_mid_epoch_the_very_next_batch_comes(stores, replayer, source, steps):
    readings = list(readings_of(stores).values())
    readings += [contrasting(stores, 5)] if source == "resident" else []
    expected = batches(loader(readings, replayer, source), 14)
    first = loader(readings, replayer, source)
    batches(first, steps)
    second = loader(readings, replayer, source)
    second.load_state_dict(first.state_dict())
    for found, wanted in zip(batches(second, 14 - steps), expected[steps:], strict=True):
        for one, other in zip(found, wanted, strict=True):
            same(one, other)


@over_sources
@pytest.mark.parametrize("count", [2, 3])
def test_shares_are_parts_of_every_batch(stores, replayer, source, count):
    reading = readings_of(stores)["features"]
    whole = batches(loader([reading], replayer, source))
    shares = [batches(loader([reading], replayer, source, share=(rank, count))) for rank in range(count)]
    for (batch,), *parts in zip(whole, *shares, strict=True):
        parts = [part for (part,) in parts]
        assert sorted(np.concatenate([part.positions for part in parts])) == sorted(batch.positions)
        assert {part.whole for part in parts} == {len(batch)}
        place = {position: row for row, position in enumerate(batch.positions)}
        for part in parts:
            rows = [place[position] for position in part.positions]
            assert torch.equal(part.target_log_probs, batch.target_log_probs[rows])
            assert torch.equal(part.features[LAYER][1], batch.features[LAYER][1][rows])


@over_sources
def test_only_the_positions_asked_for_are_shown(stores, replayer, source):
    chosen = np.array([3, 4, 17, 20, 21, 22, 30, 39])
    one = loader([Reading(stores.targets)], replayer, source, positions=chosen, batch_size=3)
    assert len(one) == 3
    for _ in range(4):
        epoch = [shown[0] for shown in one]
        assert sorted(np.concatenate([batch.positions for batch in epoch])) == list(chosen)
        for batch in epoch:
            expected = stores.targets.log_probs("train", batch.view)[batch.positions]
            torch.testing.assert_close(batch.target_log_probs, expected)


# -- what is refused --------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def small(dataset, replayer, tmp_path_factory):
    """A teacher's store of the same plan in blocks of 4 rows."""
    with pytest.MonkeyPatch.context() as patch:
        small_blocks(patch, 4)
        return dump_store(tmp_path_factory.mktemp("small") / "c", replayer, name="c", seed=5)


def test_readings_that_stream_in_other_orders_are_refused(stores, small, replayer):
    readings = [Reading(stores.targets), Reading(teachers=(small,))]
    with pytest.raises(
        ValueError, match=r"readings of frames \{.*\} show their rows in other orders; give them a pass"
    ):
        loader(readings, replayer, "streamed")
    sizes = [reading.bytes("train") for reading in readings_of(stores).values()]
    with pytest.raises(ValueError, match="in other orders"):  # one fits the budget, the other doesn't
        loader([Reading(stores.targets), readings_of(stores)["features"]], replayer, memory_budget=min(sizes))
    loader(readings, replayer)


def test_one_reading_of_stores_in_other_blocks_streams_in_one_frame(stores, small, replayer):
    reading = Reading(stores.targets, features={LAYER: (stores.teachers[0], small)})
    assert reading.frame("train", 0) == 16
    assert reading.frame("train") is None
    for (batch,) in batches(loader([reading], replayer, "two")):
        expected = small.features("train", LAYER, batch.view)[batch.positions]
        assert torch.equal(batch.features[LAYER][1], expected)


def test_a_layer_that_no_store_keeps_is_told(stores, replayer):
    reading = Reading(stores.targets, features={"stage2": tuple(stores.teachers)})
    with pytest.raises(StillroomError, match=r"features: found none of layer 'stage2' in the stores of \['a', 'b'\]"):
        loader([readings_of(stores)["targets"], reading], replayer)


def test_a_temperature_that_was_not_fused_is_told(stores, replayer):
    with pytest.raises(StillroomError, match=r"found targets at temperatures \[1.0, 4.0\]; expected 2.0"):
        loader([Reading(stores.targets, 2.0)], replayer)


def test_random_draws_of_logits_are_refused_wherever_they_stand(stores, replayer, tmp_path):
    drawn = dump_store(tmp_path / "drawn", replayer, name="c", codec={"kind": "sampled", "draws": 20})
    with pytest.raises(StillroomError, match=r"drawn: its logits are kept as random draws; expected another codec"):
        loader([Reading(stores.targets), Reading(teachers=(stores.teachers[0], drawn))], replayer)
    loader([Reading(stores.targets, features={LAYER: (drawn,)})], replayer)  # its features are not drawn


def test_stores_of_another_plan_are_refused_whoever_reads_them(stores, dataset, tmp_path):
    from toys import make_plan

    other = dump_store(tmp_path / "other", Replayer(make_plan(dataset, seed=6), dataset))
    with pytest.raises(StaleStoreError, match=r"other: made from another view plan than .*; expected one plan for all"):
        open_readings([Reading(stores.targets), Reading(features={LAYER: (other,)})], dataset)
    with pytest.raises(StillroomError, match="teachers: found no store; expected at least one"):
        open_readings([Reading()], dataset)
    assert open_readings([Reading(), Reading(stores.targets)], dataset).plan.dataset == dataset.fingerprint


def test_a_reading_lists_each_store_and_field_once(stores):
    both = tuple(stores.teachers)
    reading = Reading(stores.targets, weights=True, teachers=both, features={LAYER: both[::-1]})
    assert reading.stores() == [stores.targets, *both]
    names = [(store.name, field) for store, field in reading.fields()]
    assert len(names) == len(set(names)) == 6
    assert reading.bytes("train") == sum(store.field_bytes(field, "train") for store, field in reading.fields())
