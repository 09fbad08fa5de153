"""Teachers that know less, teachers trained in folds, and what a fusion fitted on their answers may call honest."""

import shutil
from dataclasses import replace
from functools import cache

import numpy as np
import pytest
import torch
from sklearn.base import clone
from sklearn.naive_bayes import GaussianNB
from sklearn.neighbors import KNeighborsClassifier
from toys import CLASSES as CLASSES_3
from toys import (
    SHAPE,
    Killed,
    contents,
    dump_store,
    kill_at,
    make_dataset,
    make_encoding,
    make_labels,
    make_plan,
    make_teacher,
    small_blocks,
    teacher_writer,
)

from pipeline import dump, fuse, joined
from pipeline.calibration import fit_temperature
from pipeline.encoding import choose_encoding
from pipeline.errors import CorruptBlockError, StaleStoreError, StillroomError
from pipeline.fusion import FUSIONS, Target
from pipeline.joined import FIT_ON
from pipeline.loader import open_replayer
from pipeline.store import open_targets, open_teacher
from pipeline.store.verify import verify
from pipeline.tasks import Classes
from pipeline.teachers import SklearnTeacher, fit_sklearn
from pipeline.views import (
    OUT_OF_FOLD,
    Replayer,
    Split,
    assign_folds,
    with_out_of_fold,
    with_wrong_labels,
    without_classes,
)

CLASSES = np.arange(5)


def some_labels(count=400, hidden=60, seed=0):
    """Return labels of 5 classes, some hidden, and sample ids in no order."""
    random = np.random.default_rng(seed)
    labels = random.integers(0, 5, count)
    labels[random.permutation(count)[:hidden]] = -1
    return labels, random.permutation(10 * count)[:count]


# -- wrong labels -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("share", [0.0, 0.01, 0.4, 1.0])
def test_exactly_the_share_of_labels_is_wrong_and_hidden_ones_stay_hidden(share):
    labels, ids = some_labels()
    wrong = with_wrong_labels(labels, ids, share, CLASSES, 3)
    assert (wrong[labels >= 0] != labels[labels >= 0]).sum() == round(share * 340)
    assert np.array_equal(wrong[labels < 0], labels[labels < 0])
    assert set(wrong) <= {-1, *CLASSES}


def test_a_wrong_label_follows_from_seed_and_sample_wherever_the_sample_stands():
    labels, ids = some_labels()
    wrong = with_wrong_labels(labels, ids, 0.4, CLASSES, 3)
    assert np.array_equal(with_wrong_labels(labels, ids, 0.4, CLASSES, 3), wrong)
    other = np.random.default_rng(1).permutation(len(ids))
    assert np.array_equal(with_wrong_labels(labels[other], ids[other], 0.4, CLASSES, 3), wrong[other])
    assert (with_wrong_labels(labels, ids, 0.4, CLASSES, 4) != wrong).mean() > 0.2


def test_more_wrong_labels_are_the_same_and_more():
    labels, ids = some_labels()
    few, many = (with_wrong_labels(labels, ids, share, CLASSES, 3) for share in (0.2, 0.5))
    is_wrong = few != labels
    assert np.array_equal(many[is_wrong], few[is_wrong])


def test_wrong_labels_are_drawn_evenly_among_the_other_classes():
    labels, ids = np.repeat(2, 40_000), np.arange(40_000)
    counts = np.bincount(with_wrong_labels(labels, ids, 1.0, CLASSES, 0), minlength=5)
    assert counts[2] == 0
    expected = 10_000
    assert (np.abs(counts[[0, 1, 3, 4]] - expected) < 5 * np.sqrt(expected)).all()


def test_a_class_left_out_is_never_drawn():
    labels, ids = some_labels()
    kept = np.array([0, 2, 4])
    less = without_classes(labels, [1, 3])
    assert np.array_equal(less, [label if label in kept else -1 for label in labels])
    wrong = with_wrong_labels(less, ids, 0.5, kept, 0)
    assert set(wrong) == {-1, 0, 2, 4}
    assert (wrong != less).sum() == round(0.5 * (less >= 0).sum())


def test_leaving_out_no_class_changes_nothing():
    labels, _ = some_labels()
    assert np.array_equal(without_classes(labels, []), labels)


def test_a_replayer_shows_other_train_labels_and_nothing_else_changes():
    dataset = make_dataset()
    plain = Replayer(make_plan(dataset), dataset)
    train = plain.plan.splits["train"]
    labels = with_wrong_labels(train.labels, train.ids, 0.5, np.arange(3), 0)
    labels[3] = -1
    other = plain.showing(labels)
    assert 3 not in other.labelled
    assert len(other.labelled) == len(plain.labelled) - 1 == 39
    for view in range(3):
        rows = np.array([7, 3, 20])
        shown, before = other.batch("train", view, rows), plain.batch("train", view, rows)
        assert torch.equal(shown.inputs, before.inputs)
        assert shown.labels.tolist() == labels[rows].tolist()
        assert before.labels.tolist() == train.labels[rows].tolist()
        assert np.array_equal(other.digests("train", view, rows), plain.digests("train", view, rows))
    partners, _ = plain.plan.mixing(2, train.ids[rows])
    assert other.batch("train", 2, rows).partner_labels.tolist() == labels[partners].tolist()
    for split in ("calibration", "test"):
        rows = np.arange(len(plain.plan.splits[split]))
        assert torch.equal(other.batch(split, 0, rows).labels, torch.from_numpy(plain.plan.splits[split].labels))


def test_an_estimator_learns_the_labels_that_are_shown():
    dataset = make_dataset()
    replayer = Replayer(make_plan(dataset, mix=None), dataset)
    train = replayer.plan.splits["train"]
    labels = without_classes(with_wrong_labels(train.labels, train.ids, 0.4, np.arange(3), 1), [2])
    fitted = fit_sklearn(KNeighborsClassifier(1), replayer.showing(labels), views=[0], seed=0)
    assert fitted.classes_.tolist() == [0, 1]
    rows = np.flatnonzero(labels >= 0)
    answers = fitted.predict(replayer.batch("train", 0, rows).inputs.flatten(1).numpy())
    assert np.array_equal(answers, labels[rows])


# -- folds ------------------------------------------------------------------------------------------------------------


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


@pytest.fixture(scope="module")
def replayer():
    """Noisy pictures with a faint sign of their class: 133 train samples of 200, 100 of them with a label.

    A copy of the whole seen before tells their class for certain, anything else only roughly.
    """
    labels = make_labels(200)
    signs = np.random.default_rng(9).normal(0, 14, (3, *SHAPE))
    noise = np.random.default_rng(0).normal(128, 60, (200, *SHAPE))
    dataset = make_dataset((noise + signs[labels]).clip(0, 255).astype(np.uint8), labels)
    plan = make_plan(dataset, transforms=[], mix=None, count=2, labelled=100)
    return Replayer(with_out_of_fold(plan), dataset)


@pytest.fixture(scope="module")
def fold_of(replayer):
    return assign_folds(replayer.plan.splits[OUT_OF_FOLD].labels, 4, replayer.plan.seed)


ESTIMATORS = {"memory": KNeighborsClassifier(1), "bayes": GaussianNB(var_smoothing=0.3)}


def taught(name, replayer, fold_of, fold=None):
    """Return an estimator taught with all labels, or with those of all folds but one."""
    train = replayer.plan.splits["train"]
    labels = train.labels.copy()
    if fold is not None:
        labels[train.labelled[fold_of == fold]] = -1
    return SklearnTeacher(fit_sklearn(clone(ESTIMATORS[name]), replayer.showing(labels), views=[0], seed=0), 3)


def begin_dump(folder, name, replayer, fold_of, *, codec="fp32", folds=4):
    """Return how to fill a teacher store, rows out of fold with it where `folds` is set."""
    if folds is None:
        replayer = Replayer(replace(replayer.plan, splits=without_rows_out_of_fold(replayer)), replayer.samples)
    teacher = taught(name, replayer, fold_of)
    models = dump.FoldModels(fold_of, cache(lambda fold: taught(name, replayer, fold_of, fold))) if folds else None
    encoding = choose_encoding(
        teacher, replayer, task=Classes(tuple(CLASSES_3)), codec=codec, max_kl=1e-4, feature_codec="fp16", where=name
    )
    config = dump.teacher_store_config(
        name, replayer.plan, classes=CLASSES_3, features=[], codec=codec, precision="fp32", folds=folds
    )

    def fill(**options):
        writer = dump.open_writer(folder, name, config, replayer.plan, encoding)
        return dump.dump(teacher, replayer, writer, encoding, batch_size=7, details={}, folds=models, **options)

    return fill


def without_rows_out_of_fold(replayer):
    return {name: split for name, split in replayer.plan.splits.items() if name != OUT_OF_FOLD}


@pytest.fixture(scope="module")
def stores(replayer, fold_of, tmp_path_factory):
    """Teacher stores of a memorising teacher and one that generalises, in blocks of 16 rows."""
    root, found = tmp_path_factory.mktemp("stores"), {}
    with pytest.MonkeyPatch.context() as patch:
        small_blocks(patch, 16)
        for name in ESTIMATORS:
            begin_dump(root / name, name, replayer, fold_of)()
            found[name] = open_teacher(root / name)
    return found


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


# -- fitting on rows out of fold --------------------------------------------------------------------------------------


WEIGHTED = Target(FUSIONS["weighted"]())


def config_of(stores, *, calibrate=False, **asked):
    """Return what a weighted fusion of these teacher stores is made from."""
    return fuse.target_store_config(
        {store.name: store.fingerprint for store in stores},
        stores[0].plan().fingerprint,
        strategy="weighted",
        options={},
        temperatures=[1.0],
        calibrate=calibrate,
        calibrate_pool=True,
        correction="none",
        codec="fp16",
        **asked,
    )


def fused(folder, stores, **asked):
    """Return the target store of a weighted fusion of these teacher stores."""
    config = config_of(stores, **asked)
    begun = fuse.begin(stores, WEIGHTED, config, "fusion.f")
    fuse.fuse_stores(stores, begun, fuse.open_writer(folder, "f", config, stores, begun))
    return open_targets(folder)


@pytest.fixture(scope="module")
def targets(stores, tmp_path_factory):
    """One target store for each kind of rows to fit on."""
    root, teachers = tmp_path_factory.mktemp("targets"), list(stores.values())
    return {on: fused(root / on, teachers, fit_on=on, honest=on != "train") for on in FIT_ON}


def test_the_memorising_teacher_gets_its_weight_from_train_rows_alone(targets):
    memory = {on: store.manifest.details["fitted"]["weights"][0] for on, store in targets.items()}
    assert memory["train"] > 0.5, "on its own train rows it is never wrong"
    assert memory["out_of_fold"] < 0.01
    assert memory["calibration"] < 0.01
    nll = {on: store.manifest.details["scores"]["test"]["nll"] for on, store in targets.items()}
    assert nll["out_of_fold"] < nll["train"] - 1


@pytest.mark.parametrize("fit_on", FIT_ON)
@pytest.mark.parametrize("calibrate", [True, False])
def test_fitting_rows_are_the_rows_asked_for(stores, replayer, fit_on, calibrate):
    plan, teachers = replayer.plan, list(stores.values())
    rows = joined.fitting_rows(teachers, calibrate, fit_on=fit_on)
    split = plan.splits[fit_on]
    places = [place for place in range(len(split)) if split.labels[place] >= 0]
    assert len(places) == {"calibration": 27, "out_of_fold": 100, "train": 100}[fit_on]
    assert rows.labels.tolist() == split.labels[places].tolist()
    assert rows.keys.ids.tolist() == split.ids[places].tolist()
    for logits, store in zip(rows.logits, teachers, strict=True):
        own = store.manifest.details["temperature"] if calibrate else 1.0
        torch.testing.assert_close(logits, store.logits(fit_on)[places] / own)


def test_very_many_rows_are_thinned_evenly(stores, monkeypatch):
    monkeypatch.setattr(joined, "FITTED_VALUES", 2 * 3 * 40)
    teachers = list(stores.values())
    whole = {on: teachers[0].plan().splits[on] for on in FIT_ON}
    for on, split in whole.items():
        ids = split.ids[split.labelled] if on == "train" else split.ids
        step = -(-len(ids) // 40)
        assert joined.fitting_rows(teachers, True, fit_on=on).keys.ids.tolist() == ids[::step].tolist()


def test_a_target_store_has_no_rows_out_of_fold_and_says_what_it_was_fitted_on(targets):
    for on, store in targets.items():
        assert set(store.layout.splits) == {"train", "calibration", "test"}
        assert verify(store.folder) == []
        is_honest = on != "train"
        assert store.manifest.config.get("fit_on", "calibration") == on
        assert store.manifest.details.get("honest", True) is is_honest
        assert store.attributes.get("honest", True) is is_honest
    assert "fit_on" not in targets["calibration"].manifest.config
    assert not {"honest", "fit_on"} & targets["calibration"].manifest.details.keys()


def test_temperatures_of_teachers_stay_those_of_calibration_rows(stores, replayer):
    labels = torch.from_numpy(replayer.plan.splits["calibration"].labels)
    for store in stores.values():
        own = fit_temperature(store.logits("calibration"), labels)
        assert store.manifest.details["temperature"] == pytest.approx(own)


def test_a_killed_fusion_on_rows_out_of_fold_is_gone_on_with_without_them(stores, targets, tmp_path):
    teachers = list(stores.values())
    config = config_of(teachers, fit_on="out_of_fold")
    begun = fuse.begin(teachers, WEIGHTED, config, "fusion.f")
    with pytest.raises(Killed):
        fuse.fuse_stores(
            teachers,
            begun,
            fuse.open_writer(tmp_path, "f", config, teachers, begun),
            on_block=kill_at(1, lambda _: None),
        )
    again = fuse.begun(tmp_path, WEIGHTED, config)
    fuse.fuse_stores(teachers, again, fuse.open_writer(tmp_path, "f", config, teachers, again))
    assert contents(tmp_path) == contents(targets["out_of_fold"].folder)


def test_train_rows_are_refused_with_the_reason(stores, tmp_path):
    with pytest.raises(
        StillroomError, match=r"fusion\.f\.fit_on: found 'train', .*; expected 'calibration' .* memory .*honest = false"
    ):
        fused(tmp_path / "t", list(stores.values()), fit_on="train")
    assert not (tmp_path / "t").exists()


def test_unknown_rows_are_refused_with_the_near_name(stores, tmp_path):
    with pytest.raises(StillroomError, match=r"fusion\.f\.fit_on: unknown rows 'out_of_folds'.*'out_of_fold'"):
        fused(tmp_path / "t", list(stores.values()), fit_on="out_of_folds")


def test_stores_without_folds_are_named(stores, replayer, fold_of, tmp_path):
    begin_dump(tmp_path / "s", "bayes", replayer, fold_of, folds=None)()
    plain = open_teacher(tmp_path / "s")
    for teachers in ([plain, stores["memory"]], [stores["memory"], plain]):
        with pytest.raises(StillroomError, match=r"no rows out of fold in the stores of \['bayes'\]; .*logits\.folds"):
            fused(tmp_path / "t", teachers, fit_on="out_of_fold")
        assert set(fused(tmp_path / teachers[0].name, teachers).layout.splits) == {"train", "calibration", "test"}


def test_strategies_that_read_features_are_refused_out_of_fold():
    with pytest.raises(StillroomError, match=r"f\.fit_on: found 'out_of_fold' with a strategy that reads features"):
        fuse.check_fit_on("out_of_fold", True, ["penultimate"], "f")
    fuse.check_fit_on("calibration", True, ["penultimate"], "f")
    fuse.check_fit_on("train", False, ["penultimate"], "f")


def test_a_plan_whose_every_view_is_mixed_has_no_train_rows_to_fit_on(tmp_path):
    dataset = make_dataset()
    replayer = Replayer(make_plan(dataset, count=1), dataset)
    store = dump_store(tmp_path / "s", replayer)
    with pytest.raises(StillroomError, match="found every view of train mixed; expected one"):
        joined.fitting_rows([store], True, fit_on="train")


def test_rows_out_of_fold_of_two_stores_are_the_same_rows(stores, replayer, fold_of, tmp_path, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(Replayer, "digests", lambda self, split, view, positions: positions.astype(np.uint64))
        begin_dump(tmp_path / "s", "bayes", replayer, fold_of)()
    with pytest.raises(
        StaleStoreError, match=r"row_digest of out_of_fold view 0 rows .* differ from those of 'memory'"
    ):
        joined.fitting_rows([stores["memory"], open_teacher(tmp_path / "s")], True, fit_on="out_of_fold")
