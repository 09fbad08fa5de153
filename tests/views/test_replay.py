"""The same row gives the same bits whenever, wherever and with whomever it is asked for, and its digest proves it."""

import dataclasses
import json
import random
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from toys import ALONE, EASY, MIXUP, VIEWS, make_dataset, make_labels, make_pixels, make_plan, make_replayer, sha256

from pipeline.views import Replayer
from pipeline.views.transforms import Shift

TESTS = Path(__file__).parents[1]
over_views = pytest.mark.parametrize("name", VIEWS)


def whole_views(replayer):
    """Return all train rows' inputs and mix shares of views 1 and 2, each view as one batch."""
    batches = [replayer.batch("train", view, np.arange(40)) for view in (1, 2)]
    return [(batch.inputs, batch.mix) for batch in batches]


def digest_of(name):
    replayer = make_replayer(**VIEWS[name])
    return [sha256(inputs) + ("" if mix is None else sha256(mix)) for inputs, mix in whole_views(replayer)]


ELSEWHERE = """
import json, numpy as np, torch
torch.set_num_threads(2)
torch.manual_seed(99)
from toys import VIEWS, make_replayer, sha256
found = {}
for name, views in VIEWS.items():
    replayer, parts = make_replayer(**views), []
    for view in (1, 2):
        order = np.random.default_rng(view).permutation(40)
        batches = [replayer.batch("train", view, rows) for rows in np.array_split(order, 7)]
        back = np.argsort(order)
        inputs = torch.cat([batch.inputs for batch in batches])[back]
        mix = None if batches[0].mix is None else torch.cat([batch.mix for batch in batches])[back]
        parts.append(sha256(inputs) + ("" if mix is None else sha256(mix)))
    found[name] = parts
print(json.dumps(found))
"""


@pytest.fixture(scope="module")
def elsewhere():
    """What another process finds, with other batches, another order and other threads."""
    paths = [str(TESTS), str(TESTS.parent)]
    code = f"import sys; sys.path[:0] = {paths}\n{ELSEWHERE}"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return json.loads(done.stdout)


@over_views
def test_another_process_with_other_batches_makes_the_same_bits(name, elsewhere):
    assert elsewhere[name] == digest_of(name)


@over_views
@pytest.mark.parametrize("size", [1, 3, 16])
def test_any_order_and_batch_size_give_the_same_bits(name, size):
    replayer = make_replayer(**VIEWS[name])
    for view, (inputs, mix) in zip((1, 2), whole_views(replayer), strict=True):
        order = np.random.default_rng(size).permutation(40)
        for rows in np.array_split(order, -(-40 // size)):
            batch = replayer.batch("train", view, rows)
            assert torch.equal(batch.inputs, inputs[rows])
            assert (mix is None) == (batch.mix is None)
            assert mix is None or torch.equal(batch.mix, mix[rows])


@over_views
def test_replay_leaves_the_global_generators_alone(name):
    replayer = make_replayer(**VIEWS[name])
    torch.manual_seed(1)
    np.random.seed(1)  # noqa: NPY002 the global state is the very thing tested
    random.seed(1)
    before = torch.get_rng_state(), np.random.get_state()[1].copy(), random.getstate()  # noqa: NPY002
    replayer.batch("train", 2, np.arange(5))
    replayer.digests("train", 2, np.arange(5))
    assert torch.equal(torch.get_rng_state(), before[0])
    assert np.array_equal(np.random.get_state()[1], before[1])  # noqa: NPY002
    assert random.getstate() == before[2]


@over_views
def test_every_view_is_another_picture(name):
    replayer = make_replayer(**VIEWS[name])
    first, second = (inputs for inputs, _ in whole_views(replayer))
    assert (first != second).flatten(1).any(1).float().mean() > 0.4
    assert first.dtype == torch.float32
    assert first.shape == (40, 1, 12, 12)


@over_views
def test_held_out_rows_are_the_samples_themselves(name):
    replayer = make_replayer(**VIEWS[name])
    for split in ("calibration", "test"):
        ids = replayer.plan.splits[split].ids
        batch = replayer.batch(split, 0, np.arange(len(ids)))
        plain = (replayer.samples.read(ids).float() / 255 - 0.5) / 0.25
        torch.testing.assert_close(batch.inputs, plain)
        assert batch.mix is batch.partner_labels is None
        assert torch.equal(batch.labels, torch.from_numpy(make_labels()[ids]))


def test_a_colour_picture_is_standardised_by_channel():
    dataset = make_dataset(make_pixels(shape=(3, 6, 6)))
    plan = dataclasses.replace(make_plan(dataset, transforms=[], mix=None), mean=(0.1, 0.2, 0.3), std=(1.0, 2.0, 4.0))
    inputs = Replayer(plan, dataset).batch("test", 0, np.arange(3)).inputs
    pixels = dataset.read(plan.splits["test"].ids[:3]).double() / 255
    expected = (pixels - torch.tensor([0.1, 0.2, 0.3])[:, None, None]) / torch.tensor([1.0, 2.0, 4.0])[:, None, None]
    torch.testing.assert_close(inputs.double(), expected, atol=1e-6, rtol=0)


# -- mixing -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["mixup", "cutmix"])
def test_only_the_last_views_are_mixed_and_partners_come_from_train(kind):
    replayer = make_replayer(count=4, mix={"kind": kind, "views": 2})
    plan, rows = replayer.plan, np.arange(40)
    for view in range(4):
        batch = replayer.batch("train", view, rows)
        assert (batch.mix is not None) == (view >= 2)
    partners, _ = plan.mixing(3, plan.splits["train"].ids)
    assert partners.min() >= 0
    assert partners.max() < 40
    assert len(set(partners.tolist())) > 15
    assert torch.equal(batch.partner_labels, torch.from_numpy(plan.splits["train"].labels[partners]))
    assert ((batch.mix >= 0) & (batch.mix <= 1)).all()


def test_a_mixed_row_is_its_two_transformed_pictures_blended():
    mixed, plain = make_replayer(), make_replayer(mix=None)
    rows = np.arange(40)
    partners, _ = mixed.plan.mixing(2, mixed.plan.splits["train"].ids)
    batch, own, other = mixed.batch("train", 2, rows), plain.batch("train", 2, rows), plain.batch("train", 2, partners)
    share = batch.mix[:, None, None, None]
    torch.testing.assert_close(batch.inputs, share * own.inputs + (1 - share) * other.inputs, atol=1e-5, rtol=0)


def test_a_plan_without_mixing_has_no_partners():
    with pytest.raises(ValueError, match="mixes no views"):
        make_plan(make_dataset(), mix=None).mixing(0, np.arange(2))


# -- digests ----------------------------------------------------------------------------------------------------------


def digests(replayer, split="train"):
    rows = np.arange(len(replayer.plan.splits[split]))
    return np.stack([replayer.digests(split, view, rows) for view in range(replayer.plan.views(split))])


def changed(before, after):
    """Return which rows' digests differ, for each split: bool [V, N]."""
    return {split: digests(before, split) != digests(after, split) for split in before.plan.splits}


def test_digests_are_alike_in_any_batch_and_never_twice_the_same():
    replayer = make_replayer()
    whole = digests(replayer)
    assert whole.dtype == np.uint64
    assert len(np.unique(whole)) == whole.size
    order = np.random.default_rng(0).permutation(40)
    for rows in (order, order[:1], order[5:12]):
        assert np.array_equal(replayer.digests("train", 2, rows), whole[2, rows])


def test_digests_are_the_same_in_every_release():
    """When this fails: either restore the digest, or raise `dump.VERSION`, since every store becomes unreadable."""
    replayer = make_replayer()
    assert [hex(d) for d in replayer.digests("train", 2, np.arange(2))] == ["0x342bfdf7b118efb3", "0x346bf450f2501c00"]
    assert [hex(d) for d in replayer.digests("test", 0, np.arange(2))] == ["0x2211e93d636d0aa9", "0x48c981b09beb54a8"]


OTHER_PLANS = {
    "an option": {"transforms": [{"kind": "shift", "pixels": 2}, EASY[1]]},
    "a transform less": {"transforms": EASY[:1]},
    "the order of transforms": {"transforms": EASY[::-1]},
    "the mix": {"mix": {**MIXUP, "alpha": 0.5}},
    "the kind of mix": {"mix": {**MIXUP, "kind": "cutmix"}},
}


@pytest.mark.parametrize("what", OTHER_PLANS)
def test_another_way_to_make_rows_changes_all_train_digests_and_no_other(what):
    differs = changed(make_replayer(), make_replayer(**OTHER_PLANS[what]))
    assert differs["train"].all()
    assert not differs["calibration"].any()
    assert not differs["test"].any()


def test_another_seed_changes_all_train_digests():
    before = make_replayer()
    after = Replayer(dataclasses.replace(before.plan, seed=6), before.samples)
    differs = changed(before, after)
    assert differs["train"].all()
    assert not differs["test"].any()


def test_another_version_of_a_transforms_code_changes_all_train_digests(monkeypatch):
    before = digests(make_replayer())
    monkeypatch.setattr(Shift, "version", 2)
    assert (digests(make_replayer()) != before).all()


@pytest.mark.parametrize("name", ALONE)
def test_each_transforms_parameters_are_in_the_digest(name, monkeypatch):
    before = make_replayer(**VIEWS[name])
    old = digests(before)
    draw = type(before.plan.transforms[0]).parameters
    monkeypatch.setattr(type(before.plan.transforms[0]), "parameters", lambda self, words: draw(self, words) + 1)
    assert (digests(before) != old).all()


def test_one_source_byte_changes_its_sample_and_the_rows_mixed_with_it():
    before, pixels = make_replayer(), make_pixels()
    position = 25
    sample = before.plan.splits["train"].ids[position]
    pixels[sample, 0, 3, 3] ^= 1
    differs = changed(before, Replayer(before.plan, make_dataset(pixels)))
    partners, _ = before.plan.mixing(2, before.plan.splits["train"].ids)
    own = np.arange(40) == position
    assert (partners[~own] == position).any()
    assert np.array_equal(differs["train"], np.stack([own, own, own | (partners == position)]))
    assert not differs["test"].any()
