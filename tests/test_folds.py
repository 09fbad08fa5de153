"""Teachers trained in folds: which rows lie in which, and what their stores keep of rows out of fold."""

import shutil
from dataclasses import replace

import numpy as np
import pytest
import torch
from folded import begin_dump, dump_stores, folds_of, noisy_replayer, taught, without_rows_out_of_fold
from toys import (
    Killed,
    contents,
    kill_at,
    make_dataset,
    make_encoding,
    make_plan,
    make_teacher,
    small_blocks,
    some_labels,
    teacher_writer,
)

from pipeline import dump
from pipeline.errors import CorruptBlockError, StillroomError
from pipeline.loader import open_replayer
from pipeline.store import open_teacher
from pipeline.store.verify import verify
from pipeline.views import OUT_OF_FOLD, Replayer, Split, assign_folds, with_out_of_fold


@pytest.fixture(scope="module")
def replayer():
    return noisy_replayer()


@pytest.fixture(scope="module")
def fold_of(replayer):
    return folds_of(replayer)


@pytest.fixture(scope="module")
def stores(replayer, fold_of, tmp_path_factory):
    return dump_stores(tmp_path_factory.mktemp("stores"), replayer, fold_of)


@pytest.mark.parametrize("folds", [2, 3, 5])
@pytest.mark.parametrize("count", [6, 61, 340])
def test_folds_hold_every_class_alike(folds, count):
    labels = some_labels(count, hidden=0)[0]
    fold_of = assign_folds(labels, folds, seed=1)
    assert fold_of.dtype == np.uint8
    sizes = np.bincount(fold_of, minlength=folds)
    assert len(sizes) == folds
    assert sizes.max() - sizes.min() <= 1
    for label in set(labels):
        own = np.bincount(fold_of[labels == label], minlength=folds)
        assert own.max() - own.min() <= 1
    assert np.array_equal(assign_folds(labels, folds, seed=1), fold_of)
    assert count < 61 or not np.array_equal(assign_folds(labels, folds, seed=2), fold_of)


def accuracy(logits, labels):
    return (logits.argmax(-1).numpy() == labels).mean()


def test_a_plan_with_rows_out_of_fold_is_the_same_plan(replayer):
    plan = replayer.plan
    plain = replace(plan, splits=without_rows_out_of_fold(replayer))
    assert (plan.fingerprint, plan.config, plan.recipe_digest) == (plain.fingerprint, plain.config, plain.recipe_digest)
    own, train = plan.splits[OUT_OF_FOLD], plan.splits["train"]
    assert len(own) == 100
    assert own.ids.tolist() == [train.ids[i] for i in range(len(train)) if train.labels[i] >= 0]
    assert own.labels.tolist() == [label for label in train.labels if label >= 0]
    assert (plan.views(OUT_OF_FOLD), plan.is_mixed(OUT_OF_FOLD, 0)) == (1, False)


def test_rows_out_of_fold_are_seen_as_they_are_without_transforms():
    dataset = make_dataset()
    replayer = Replayer(with_out_of_fold(make_plan(dataset)), dataset)
    rows = np.arange(6)
    ids = replayer.plan.splits[OUT_OF_FOLD].ids[rows]
    pixels = (dataset.read(ids).float() / 255 - 0.5) / 0.25
    torch.testing.assert_close(replayer.batch(OUT_OF_FOLD, 0, rows).inputs, pixels)


def test_every_row_out_of_fold_is_answered_by_the_model_that_never_saw_it(stores, replayer, fold_of):
    for name, store in stores.items():
        assert np.array_equal(store.read(OUT_OF_FOLD, "fold"), fold_of)
        models = [taught(name, replayer, fold_of, fold) for fold in range(4)]
        said = store.logits(OUT_OF_FOLD)
        for position, fold in enumerate(fold_of):  # one by one: the slow way
            inputs = replayer.batch(OUT_OF_FOLD, 0, np.array([position])).inputs
            own = models[fold].predict(inputs).logits
            torch.testing.assert_close(said[position], (own - own.max())[0])


def test_memory_does_not_help_out_of_fold(stores, replayer):
    labels = replayer.plan.splits[OUT_OF_FOLD].labels
    train = replayer.plan.splits["train"]
    memory, bayes = stores["memory"], stores["bayes"]
    assert accuracy(memory.logits("train")[train.labelled], labels) == 1
    assert accuracy(memory.logits(OUT_OF_FOLD), labels) < 0.75
    assert accuracy(bayes.logits(OUT_OF_FOLD), labels) > accuracy(memory.logits(OUT_OF_FOLD), labels)
    scored = memory.manifest.details["scores"]
    assert scored[OUT_OF_FOLD]["accuracy"] == pytest.approx(accuracy(memory.logits(OUT_OF_FOLD), labels))


def test_a_store_with_folds_knows_its_rows_and_its_plan(stores, replayer):
    store, own = stores["memory"], replayer.plan.splits[OUT_OF_FOLD]
    assert store.layout.splits[OUT_OF_FOLD] == (1, 100)
    assert len(store.blocks(OUT_OF_FOLD, 0)) == 7
    assert np.array_equal(store.read(OUT_OF_FOLD, "sample_ids"), own.ids)
    assert np.array_equal(store.read(OUT_OF_FOLD, "labels"), own.labels)
    assert np.array_equal(store.read(OUT_OF_FOLD, "row_digest"), replayer.digests(OUT_OF_FOLD, 0, np.arange(len(own))))
    assert store.manifest.config["folds"] == 4
    plan = store.plan()
    assert plan.fingerprint == replayer.plan.fingerprint
    assert np.array_equal(plan.splits[OUT_OF_FOLD].ids, own.ids)
    assert verify(store.folder) == []
    open_replayer(store, replayer.samples, check_rows=None)


def test_without_folds_a_store_is_what_it_was_and_with_them_the_rest_stays(
    stores, replayer, fold_of, tmp_path, monkeypatch
):
    small_blocks(monkeypatch, 16)
    begin_dump(tmp_path, "memory", replayer, fold_of, folds=None)()
    plain = open_teacher(tmp_path)
    assert "folds" not in plain.manifest.config
    assert set(plain.layout.splits) == {"train", "calibration", "test"}
    assert "fold" not in plain.layout.arrays
    assert plain.layout.description()["arrays"].keys() == {"logits", "row_digest", "labels", "sample_ids"}
    assert all("splits" not in spec for spec in plain.layout.description()["arrays"].values())
    assert plain.fingerprint != stores["memory"].fingerprint
    with_folds = contents(stores["memory"].folder)
    for name, content in contents(tmp_path).items():
        if not name.startswith(("records/", "zarr.json", "manifest.json")):
            assert with_folds[name] == content, name
    others = {name.split("/")[0] for name in with_folds.keys() - contents(tmp_path).keys()}
    assert others == {OUT_OF_FOLD, "records"}


@pytest.mark.parametrize("left", [6, 3, 1])
def test_killed_amid_rows_out_of_fold_it_goes_on_and_ends_with_the_same_bytes(
    stores, replayer, fold_of, tmp_path, monkeypatch, left
):
    small_blocks(monkeypatch, 16)
    blocks = len(stores["bayes"].layout.blocks)
    with pytest.raises(Killed):
        begin_dump(tmp_path, "bayes", replayer, fold_of)(on_block=kill_at(blocks - 1 - left, lambda _: None))
    assert len(list((tmp_path / "records").glob(f"{OUT_OF_FOLD}-*"))) == 7 - left
    assert "not finished" in str(verify(tmp_path)[0])
    done = begin_dump(tmp_path, "bayes", replayer, fold_of)()  # as a new process would
    assert done.blocks == left
    assert contents(tmp_path) == contents(stores["bayes"].folder)


@pytest.mark.parametrize("array", ["logits", "fold", "sample_ids", "labels", "row_digest"])
def test_verify_finds_a_flipped_bit_out_of_fold_and_the_block_is_made_again(
    stores, replayer, fold_of, tmp_path, monkeypatch, array
):
    small_blocks(monkeypatch, 16)
    folder = tmp_path / "store"
    shutil.copytree(stores["memory"].folder, folder)
    store = open_teacher(folder)
    block = store.block(OUT_OF_FOLD, 0, 2)
    chunk = folder / store.layout.chunk_path(block, array)
    content = bytearray(chunk.read_bytes())
    content[5] ^= 4
    chunk.write_bytes(content)
    (fault,) = verify(folder)
    assert (fault.array, fault.rows) == (array, "out_of_fold view 0 rows 32-48")
    with pytest.raises(CorruptBlockError, match=rf"{array} of out_of_fold view 0 rows 32-48"):
        open_teacher(folder).read(OUT_OF_FOLD, array)
    (folder / "manifest.json").unlink()
    assert begin_dump(folder, "memory", replayer, fold_of)().blocks == 1
    assert contents(folder) == contents(stores["memory"].folder)


def test_a_sparse_store_keeps_rows_out_of_fold_dense(replayer, fold_of, tmp_path):
    begin_dump(tmp_path, "bayes", replayer, fold_of, codec={"kind": "topk", "k": 2})()
    store = open_teacher(tmp_path)
    assert not store.codec_in(OUT_OF_FOLD).is_sparse
    assert store.codec_in("train").is_sparse
    assert set(store.layout.arrays_in(OUT_OF_FOLD)) == {"logits", "row_digest", "labels", "sample_ids", "fold"}
    assert verify(tmp_path) == []


def test_features_stay_with_the_teacher(tmp_path):
    dataset = make_dataset()
    replayer = Replayer(with_out_of_fold(make_plan(dataset)), dataset)
    folds = assign_folds(replayer.plan.splits[OUT_OF_FOLD].labels, 2, 5)
    teacher, models = make_teacher(0), dump.FoldModels(folds, lambda fold: make_teacher(1 + fold))
    encoding = make_encoding(teacher, replayer)
    writer = teacher_writer(tmp_path, replayer, encoding)
    dump.dump(teacher, replayer, writer, encoding, details={}, folds=models)
    store = open_teacher(tmp_path)
    assert "features/penultimate" not in store.layout.arrays_in(OUT_OF_FOLD)
    assert store.features("train", "penultimate").shape == (40, 8)
    with pytest.raises(StillroomError, match="found no features of rows out_of_fold, which other models answered on"):
        store.features(OUT_OF_FOLD, "penultimate")
    inputs = replayer.batch(OUT_OF_FOLD, 0, np.arange(40)).inputs
    own = torch.stack([make_teacher(1 + fold).predict(inputs).logits[row] for row, fold in enumerate(folds)])
    torch.testing.assert_close(store.logits(OUT_OF_FOLD), own - own.amax(1, keepdim=True), atol=0.1, rtol=1e-3)
    assert verify(tmp_path) == []


def test_a_store_whose_rows_out_of_fold_are_other_rows_is_refused(replayer, fold_of, tmp_path):
    plan = replayer.plan
    own = plan.splits[OUT_OF_FOLD]
    strange = replace(plan, splits={**plan.splits, OUT_OF_FOLD: Split(own.ids[::-1].copy(), own.labels[::-1].copy())})
    begin_dump(tmp_path, "bayes", Replayer(strange, replayer.samples), fold_of)()
    with pytest.raises(StillroomError, match="rows out of fold that are not its labelled train rows"):
        open_teacher(tmp_path).plan()
