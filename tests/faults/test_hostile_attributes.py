"""A store may come from a stranger who sealed it well: what it says of itself is refused when it makes no sense.

With a StillroomError, before memory is spent, and no code that it names is run. The numbers are held outside of it.
"""

import hashlib
import sys
from typing import Any

import pytest
from forge import edit_attributes, edit_chunk
from hostile import HUGE, given_back, read_all, refused, set_in, thrifty

from pipeline.errors import StaleStoreError, StillroomError
from pipeline.loader import TargetLoader, open_replayer
from pipeline.store import open_targets
from pipeline.store.verify import verify

LEVELS = {"kind": "companded8"}
LAYER = {"codec": "fp16", "width": 8, "arrays": []}
SAID: dict[str, Any] = {
    "codec": [["companded8"], 5, None, {}, {"kind": ["companded8"]}, {**LEVELS, "levels": 0}, "fp16", "no"],
    "codec.levels": [0, "5", None, 10**400, True, 2.5],
    "classes": [5, "abc", [], ["a"], ["a", "b", 3], ["a", "a", "b"], None, {"a": 1, "b": 2, "c": 3}, [*"abcd"]],
    "features": [5, [], {"penultimate": 5}, {"penultimate": {}}, {"another": LAYER}, {"penultimate": LAYER}],
    "features.penultimate.codec": [5, [], "fp16", {"kind": ["x"]}, {"kind": "pca", "dims": 10**9}],
    "features.penultimate.width": [HUGE, 0, -1, "8", True, 9, None],
    "features.penultimate.arrays": [5, [], ["low"], ["low", "step", "x"], "step"],
    "format": [None, 3, "2", [2], 2.0, True, 10**400],
    "kind": [None, 5, [], "target store"],
    "fingerprint": [None, 5, [], "0" * 64],
}
SAID_OF_TARGETS: dict[str, Any] = {
    "temperatures": [5, [], ["1", "4"], [1.0, 2.0], [0], [-1.0, 4.0], [True, 4.0], None, [10**400], [[1.0]]],
    "teachers": [5, [], "a", ["a", "b"], [5], None],
    "codec": ["companded8", {"kind": "sampled"}, 7],
}


@pytest.mark.parametrize("key", SAID)
def test_attributes_of_a_teacher_store_that_make_no_sense_are_refused(teacher, key):
    for value in SAID[key]:
        with given_back(teacher, "zarr.json"):
            edit_attributes(teacher, lambda said, value=value: set_in(said, key, value))
            assert refused(teacher), value


@pytest.mark.parametrize("key", SAID_OF_TARGETS)
def test_attributes_of_a_target_store_that_make_no_sense_are_refused(targets, key):
    for value in SAID_OF_TARGETS[key]:
        with given_back(targets, "zarr.json"):
            edit_attributes(targets, lambda said, value=value: set_in(said, key, value))
            assert refused(targets), value


@pytest.mark.parametrize("key", ["codec", "classes", "plan", "format", "temperatures", "teachers", "kind"])
def test_missing_attributes_are_refused(targets, key):
    edit_attributes(targets, lambda said: said.pop(key) and None)
    with pytest.raises(StillroomError):
        read_all(targets)


@pytest.mark.parametrize("key", ["classes", "codec", "plan"])
def test_a_sparse_store_without_what_its_class_numbers_mean_is_refused(sparse, key):
    edit_attributes(sparse, lambda said: said.pop(key) and None)
    assert f"KeyError('{key}')" in refused(sparse)


SPEC = {"transform": "shift", "version": 1, "pixels": 1}
PLANS: dict[str, Any] = {
    "": [None, [], 5, "x", {}],
    "transforms": [None, 5, "shift", [5], [{}], [{"transform": "shfit"}], [{"transform": ["shift"]}]],
    "transforms.0": [
        {**SPEC, "version": 2},
        {**SPEC, "pixels": "1"},
        {**SPEC, "pixels": -1},
        {**SPEC, "pixels": 10**400},
        {**SPEC, "kind": "torchvision", "name": "os:system"},
        {**SPEC, "transform": "torchvision", "name": "os:system"},
        {**SPEC, "transform": "parse"},
        {"transform": "torchvisionpipeline", "version": 1, "name": "Nothing", "options": [], "release": "0.0"},
        {"transform": "torchvisionpipeline", "version": 1, "name": ["os:system"], "options": [], "release": "0.0"},
        {"transform": "torchvisionpipeline", "version": 1, "name": "Resize", "options": 5, "release": "0.0"},
        {"transform": "torchvisionpipeline", "version": 1, "name": "Resize", "options": [["size", "x"]]},
    ],
    "mix": [5, [], {}, {"kind": "mixup"}, {"transform": "mix", "version": 1}],
    "mix.views": [0, 4, "1", None, 1.5],
    "mix.alpha": [0, -1, "1", None, 10**400],
    "views": [0, -1, 4, "3", HUGE, None, True],
    "seed": ["x", None, 1.5, []],
    "mean": [None, 5, "a", [None], ["a"], [[0.5]], [0.5, 0.5]],
    "dataset": [None, 5, []],
    "splits": [None, {}, 5],
}  # fmt: skip


@pytest.mark.parametrize("key", PLANS)
def test_a_view_plan_that_is_none_is_refused(targets, key):
    kept = (targets / "zarr.json").read_bytes()
    for value in PLANS[key]:
        (targets / "zarr.json").write_bytes(kept)

        def forge(said: dict[str, Any], value: Any = value) -> None:
            if key == "transforms.0":
                said["plan"]["transforms"][0] = value
            else:
                set_in(said, f"plan.{key}".rstrip("."), value)

        edit_attributes(targets, forge)
        with thrifty(), pytest.raises(StillroomError):
            open_targets(targets).plan()


@pytest.mark.parametrize("path", ["os:system", "antigravity:geohash", "explosive:go", "explosive.deeper:go"])
def test_code_that_a_store_names_is_not_imported_until_somebody_vouches_for_it(
    targets, replayer, tmp_path, monkeypatch, path
):
    (tmp_path / "explosive.py").write_text(f"open({str(tmp_path / 'exploded')!r}, 'w').close()\ndef go(x): return x\n")
    monkeypatch.syspath_prepend(tmp_path)
    import torchvision

    release = ".".join(torchvision.__version__.split(".")[:2])
    spec = {"transform": "torchvisionpipeline", "version": 1, "name": path, "options": [], "release": release}
    edit_attributes(targets, lambda said: set_in(said, "plan.transforms", [spec]))
    verify(targets)
    store = open_targets(targets)
    store.plan()
    for attempt in (
        lambda: TargetLoader(store, replayer.samples, batch_size=4),
        lambda: open_replayer(store, replayer.samples, imports=["another:thing"]),
    ):
        with pytest.raises(StillroomError, match=rf"made by code that it names, \['{path}'\].*pass imports="):
            attempt()
    assert not (tmp_path / "exploded").exists()
    assert "antigravity" not in sys.modules
    with pytest.raises(StaleStoreError, match="do not replay"):  # vouched for, it is held to the rows as they were
        open_replayer(store, replayer.samples, imports=[path])


IMPOSSIBLE = [
    ("labels", "test", 3),
    ("labels", "train", -2),
    ("sample_ids", "test", -1),
    ("sample_ids", "train", 60),
    ("sample_ids", "calibration", 2**62),
]


@pytest.mark.parametrize(("name", "split", "value"), IMPOSSIBLE)
def test_samples_and_labels_that_cannot_be_are_refused(targets, held, replayer, name, split, value):
    said = held["targets"].numbers[split, name].copy()
    said[3] = value
    edit_chunk(targets, f"{split}/{name}/c/0", said.tobytes())
    digest = hashlib.sha256(said.astype("<i8").tobytes()).hexdigest()
    key = {"sample_ids": "ids", "labels": "labels"}[name]
    edit_attributes(targets, lambda found: set_in(found, f"plan.splits.{split}.{key}", digest))
    with pytest.raises(StillroomError):
        open_replayer(open_targets(targets), replayer.samples)
