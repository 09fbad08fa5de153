"""What a fusion may be fitted on: calibration rows, rows out of fold, or train rows, which is called dishonest."""

import numpy as np
import pytest
import torch
from folded import begin_dump, dump_stores, folds_of, noisy_replayer
from toys import Killed, contents, dump_store, kill_at, make_dataset, make_plan

from pipeline import fuse, joined
from pipeline.calibration import fit_temperature
from pipeline.errors import StaleStoreError, StillroomError
from pipeline.fusion import FUSIONS, Target
from pipeline.joined import FIT_ON
from pipeline.store import open_targets, open_teacher
from pipeline.store.verify import verify
from pipeline.views import Replayer

WEIGHTED = Target(FUSIONS["weighted"]())


@pytest.fixture(scope="module")
def replayer():
    return noisy_replayer()


@pytest.fixture(scope="module")
def fold_of(replayer):
    return folds_of(replayer)


@pytest.fixture(scope="module")
def stores(replayer, fold_of, tmp_path_factory):
    return dump_stores(tmp_path_factory.mktemp("stores"), replayer, fold_of)


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
