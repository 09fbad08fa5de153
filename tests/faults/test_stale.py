"""The law: what was made from anything else than what is asked for is refused, by the name of the field that differs.

One field is changed at a time, on a finished store and on an unfinished one; nothing is written, no teacher is asked.
Asked for again unchanged, a finished store costs neither a forward pass nor a write.
"""

import shutil
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from instants import steps_in
from laws import files_of
from stale import (
    LABELS,
    PIXELS,
    STATES,
    another_label,
    another_pixel,
    check_refused,
    over_states,
    traces,
    two_swapped,
    unfinish,
)
from toys import EASY, dump_store, make_dataset, make_encoding, make_plan, make_teacher, teacher_writer

from pipeline import dump, fuse
from pipeline.dump import config as dump_config
from pipeline.fuse import config as fuse_config
from pipeline.fusion import FUSIONS, Target
from pipeline.lineage import MANIFEST, fingerprint
from pipeline.store import Filled, StoreWriter, TeacherStore, open_teacher
from pipeline.views import Replayer, Split, ViewPlan
from pipeline.views.transforms import TRANSFORMS

pytestmark = pytest.mark.usefixtures("small_and_quick")

UNCHANGED: dict[str, Any] = {
    "pixels": PIXELS,
    "labels": LABELS,
    "plan": {"count": 2},
    "edit": lambda plan: plan,
    "weights": {"weights.safetensors": "0" * 64},
    "teacher": "a",
    "precision": "fp32",
    "classes": ("ring", "bar", "dot"),
    "asked": {"codec": "fp16", "feature_codec": "fp16", "max_kl": 1e-4},
}


def reversed_train(plan: ViewPlan) -> ViewPlan:
    train = plan.splits["train"]
    return replace(plan, splits={**plan.splits, "train": Split(train.ids[::-1].copy(), train.labels[::-1].copy())})


def one_label_hidden(plan: ViewPlan) -> ViewPlan:
    train = plan.splits["train"]
    labels = np.where(np.arange(len(train)) == 2, -1, train.labels)
    return replace(plan, splits={**plan.splits, "train": Split(train.ids, labels)})


def asked(**options: Any) -> dict[str, Any]:
    return {"asked": {**UNCHANGED["asked"], **options}}


def views(**options: Any) -> dict[str, Any]:
    return {"plan": {"count": 2, **options}}


BITROUND = {"kind": "bitround", "keep": 7}
PCA = {"kind": "pca", "dims": 3}
FARTHER = [{"kind": "shift", "pixels": 2}, {"kind": "flip"}]

# What is changed, from what, and the field that the error names.
CHANGES: dict[str, tuple[dict[str, Any], dict[str, Any], str]] = {
    "weights": ({}, {"weights": {"weights.safetensors": "1" * 64}}, r"weights\.weights\.safetensors"),
    "another teacher": ({}, {"teacher": "b"}, "teacher"),
    "one pixel": ({}, {"pixels": another_pixel()}, r"plan\.dataset"),
    "one label": ({}, {"labels": another_label()}, r"plan\.dataset"),
    "two samples swapped": ({}, {"pixels": two_swapped()}, r"plan\.dataset"),
    "the order of a split": ({}, {"edit": reversed_train}, r"plan\.splits\.train\.ids"),
    "one label hidden": ({}, {"edit": one_label_hidden}, r"plan\.splits\.train\.labels"),
    "a transform's parameter": ({}, views(transforms=FARTHER), r"plan\.transforms\.0\.pixels"),
    "one transform more": ({}, views(transforms=[*EASY, {"kind": "rotate", "degrees": 5}]), r"plan\.transforms"),
    "one transform for another": ({}, views(transforms=[EASY[0], EASY[0]]), r"plan\.transforms\.1\.transform"),
    "the views": ({}, views(count=3), r"plan\.views"),
    "the mix's kind": ({}, views(mix={"kind": "cutmix", "views": 1}), r"plan\.mix\.kind"),
    "the mix's alpha": ({}, views(mix={"kind": "mixup", "views": 1, "alpha": 0.5}), r"plan\.mix\.alpha"),
    "no mix": ({}, views(mix=None), r"plan\.mix"),
    "the plan's seed": ({}, views(seed=6), r"plan\.seed"),
    "the standardisation": ({}, {"edit": lambda plan: replace(plan, mean=(0.4,))}, r"plan\.mean"),
    "the precision": ({}, {"precision": "bf16"}, "precision"),
    "the classes' names": ({}, {"classes": ("ring", "bar", "spot")}, "classes"),
    "the codec": ({}, asked(codec="fp32"), r"codec\.kind"),
    "a codec's option": (asked(codec=BITROUND), asked(codec={**BITROUND, "keep": 6}), r"codec\.keep"),
    "auto for a codec": ({}, asked(codec="auto"), "codec"),
    "the limit of auto": (asked(codec="auto"), asked(codec="auto", max_kl=1e-2), "max_kl"),
    "the feature codec": ({}, asked(feature_codec="uint8"), r"feature_codec\.kind"),
    "a feature codec's option": (
        asked(feature_codec=PCA),
        asked(feature_codec={**PCA, "dims": 2}),
        r"feature_codec\.dims",
    ),
}


def make_writer(folder: Path, **changes: Any) -> tuple[StoreWriter, Any, Replayer, Any]:
    """Return the writer of a teacher store made from these things, its teacher, rows and encoding."""
    asks = {**UNCHANGED, **changes}
    dataset = make_dataset(asks["pixels"], asks["labels"], asks["classes"])
    rows = Replayer(asks["edit"](make_plan(dataset, **asks["plan"])), dataset)
    teacher = make_teacher()
    encoding = make_encoding(teacher, rows, **asks["asked"])
    writer = teacher_writer(
        folder,
        rows,
        encoding,
        name=asks["teacher"],
        classes=asks["classes"],
        precision=asks["precision"],
        weights=asks["weights"],
        **asks["asked"],
    )
    return writer, teacher, rows, encoding


def fill(folder: Path, **changes: Any) -> tuple[Filled, int]:
    """Dump into a folder; return what was done, and how often the teacher was asked."""
    writer, teacher, rows, encoding = make_writer(folder, **changes)
    return filled_by(writer, teacher, rows, encoding)


def filled_by(writer: StoreWriter, teacher: Any, rows: Replayer, encoding: Any) -> tuple[Filled, int]:
    calls, predict = [], teacher.predict
    teacher.predict = lambda inputs: (calls.append(len(inputs)), predict(inputs))[1]
    return dump.dump(teacher, rows, writer, encoding, batch_size=16, details={"seed": 0}), sum(calls)


@pytest.fixture(scope="module")
def root(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("stale")


def store_of(root: Path, state: str, make: Callable[..., object] = fill, **made_from: Any) -> Path:
    """Return a store made from these things, finished or not, made once for all tests: they leave it as it is."""
    name = f"{make.__name__} {fingerprint({key: repr(value) for key, value in made_from.items()})[:12]}"
    finished, unfinished = root / name, root / f"{name} unfinished"
    if not finished.exists():
        make(finished, **made_from)
        shutil.copytree(finished, unfinished)
        unfinish(unfinished)
    return finished if state == "finished" else unfinished


# -- teacher stores ---------------------------------------------------------------------------------------------------


def each_in_one_state(changes: Mapping[str, Any]) -> Any:
    """Try each change on a store of either state in turn, and on one of the other with the tests that take long."""
    pairs = [(what, STATES[(number + turn) % 2], turn) for number, what in enumerate(changes) for turn in (0, 1)]
    marks = {0: (), 1: pytest.mark.faults}
    return pytest.mark.parametrize(
        ("what", "state"), [pytest.param(what, state, marks=marks[turn]) for what, state, turn in pairs]
    )


@each_in_one_state(CHANGES)
def test_a_teacher_store_with_one_field_changed_is_refused_by_its_name(root, state, what):
    made_from, changes, field = CHANGES[what]
    folder = store_of(root, state, **made_from)
    check_refused(lambda: fill(folder, **{**made_from, **changes}), folder, field)


@over_states
def test_a_teacher_store_by_another_version_of_a_transform_is_refused(root, state, monkeypatch):
    folder = store_of(root, state)
    monkeypatch.setattr(TRANSFORMS["shift"], "version", TRANSFORMS["shift"].version + 1)
    check_refused(lambda: fill(folder), folder, r"plan\.transforms\.0\.version")


@over_states
def test_a_teacher_store_by_another_version_of_the_dump_is_refused(root, state, monkeypatch):
    folder = store_of(root, state)
    monkeypatch.setattr(dump_config, "VERSION", dump_config.VERSION + 1)
    check_refused(lambda: fill(folder), folder, "version")


# -- target stores ----------------------------------------------------------------------------------------------------

Fused = dict[str, Any]
FUSED: Fused = {
    "teachers": ("a0", "b1"),  # name and seed
    "rows": {"count": 2},
    "strategy": "mean",
    "options": {},
    "temperatures": (1.0, 4.0),
    "calibrate": True,
    "calibrate_pool": True,
    "correction": "none",
    "fit_on": "calibration",
    "honest": True,
    "codec": "fp16",
    "max_kl": 1e-3,
}
FUSIONS_CHANGED: dict[str, tuple[Fused, Fused, str]] = {
    "the temperatures": ({}, {"temperatures": (1.0, 2.0)}, "temperatures"),
    "one temperature more": ({}, {"temperatures": (1.0, 2.0, 4.0)}, "temperatures"),
    "calibrate": ({}, {"calibrate": False}, "calibrate"),
    "calibrate_pool": ({}, {"calibrate_pool": False}, "calibrate_pool"),
    "the correction": ({}, {"correction": "swap"}, "correction"),
    "what it is fitted on": ({}, {"fit_on": "train", "honest": False}, "fit_on"),
    "the strategy": ({}, {"strategy": "vote"}, "strategy"),
    "a strategy's option": (
        {"strategy": "weighted"},
        {"strategy": "weighted", "options": {"tau": 1.0}},
        r"options\.tau",
    ),
    "the codec": ({}, {"codec": "fp32"}, r"codec\.kind"),
    "a codec's option": ({"codec": BITROUND}, {"codec": {**BITROUND, "keep": 6}}, r"codec\.keep"),
    "auto for a codec": ({}, {"codec": "auto"}, "codec"),
    "the limit of auto": ({"codec": "auto"}, {"codec": "auto", "max_kl": 1e-2}, "max_kl"),
    "another teacher": ({}, {"teachers": ("a0", "c1")}, r"teachers\.1\.(name|store)"),
    "the order of teachers": ({}, {"teachers": ("b1", "a0")}, r"teachers\.0\.(name|store)"),
    "one teacher more": ({}, {"teachers": ("a0", "b1", "c2")}, "teachers"),
    "a teacher dumped again that answers otherwise": ({}, {"teachers": ("a0", "b7")}, r"parents\.b\.records"),
    "other views": ({}, {"rows": {"count": 3}}, r"plan\.views"),
}


def teacher_store(root: Path, name: str, rows: Mapping[str, Any]) -> TeacherStore:
    """Return a finished teacher store, made once: the name is one letter, what follows is the seed of its weights."""
    folder = root / f"teacher {name} {sorted(rows.items())}"
    if (folder / MANIFEST).exists():
        return open_teacher(folder)
    dataset = make_dataset(PIXELS)
    return dump_store(folder, Replayer(make_plan(dataset, **rows), dataset), name=name[0], seed=int(name[1:]))


def fuse_into(folder: Path, **changes: Any) -> Filled:
    """Fuse into a folder what lies beside it."""
    asks = {**FUSED, **changes}
    stores = [teacher_store(folder.parent, name, asks["rows"]) for name in asks["teachers"]]
    calibration = ("calibrate", "calibrate_pool", "correction", "fit_on", "honest")
    named = ("strategy", "options", "temperatures", *calibration, "codec", "max_kl")
    parents, plan = {store.name: store.fingerprint for store in stores}, stores[0].plan()
    config = fuse.target_store_config(parents, plan.fingerprint, **{key: asks[key] for key in named})
    target = Target(FUSIONS[asks["strategy"]](**asks["options"]), asks["calibrate_pool"], asks["correction"])
    begun = fuse.begun(folder, target, config) or fuse.begin(stores, target, config, "fusion")
    return fuse.fuse_stores(stores, begun, fuse.open_writer(folder, "t", config, stores, begun))


def target_of(root: Path, state: str, **made_from: Any) -> Path:
    """Return a target store made from these things, finished or not."""
    return store_of(root, state, fuse_into, **made_from)


@each_in_one_state(FUSIONS_CHANGED)
def test_a_target_store_with_one_field_changed_is_refused_by_its_name(root, state, what):
    made_from, changes, field = FUSIONS_CHANGED[what]
    folder = target_of(root, state, **made_from)
    check_refused(lambda: fuse_into(folder, **changes), folder, field)


@over_states
def test_a_target_store_by_another_version_of_fusing_is_refused(root, state, monkeypatch):
    folder = target_of(root, state)
    monkeypatch.setattr(fuse_config, "VERSION", fuse_config.VERSION + 1)
    check_refused(lambda: fuse_into(folder), folder, "version")


# -- nothing changed --------------------------------------------------------------------------------------------------


def test_a_finished_teacher_store_asked_for_again_costs_no_forward_pass_and_no_write(root):
    folder = store_of(root, "finished")
    made, before = make_writer(folder), traces(folder)
    with steps_in(folder) as steps:
        assert filled_by(*made) == (Filled(), 0)
    assert not steps.taken
    assert traces(folder) == before


def test_a_finished_target_store_asked_for_again_costs_no_write(root):
    folder = target_of(root, "finished")
    before = traces(folder)
    with steps_in(folder) as steps:
        assert fuse_into(folder) == Filled()
    assert not steps.taken
    assert traces(folder) == before


def test_an_unfinished_store_unchanged_asks_only_for_what_is_missing(tmp_path):
    whole, rest = tmp_path / "whole", tmp_path / "rest"
    done, asked = fill(whole)
    assert asked == done.rows
    shutil.copytree(whole, rest)
    unfinish(rest)
    missing = sum(len(block) for block in make_writer(rest)[0].missing())
    again, asked = fill(rest)
    assert 0 < missing < done.rows
    assert asked == again.rows == missing
    assert files_of(rest) == files_of(whole)
