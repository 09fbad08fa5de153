"""Codecs of real numbers, and stores that hold them: what comes back, what is measured, what is refused."""

import copy
import math
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from houses import NUMBERS, Line, dump_houses, fuse_houses, make_houses, make_plan, make_replayer
from toys import small_blocks

from pipeline.encoding import asked_codec
from pipeline.errors import CorruptBlockError, StillroomError
from pipeline.lineage import read_manifest
from pipeline.store import open_targets, open_teacher
from pipeline.store.attributes import check_attributes
from pipeline.store.codecs import (
    ALL_CODECS,
    CODECS,
    REAL_CODECS,
    codec_json,
    combine_errors,
    measure_error,
    packed_bytes,
    parse_codec,
)
from pipeline.store.verify import verify
from pipeline.views import UNLABELLED

HALF_STEP = 2.0**-11  # fp16 rounds a number by at most this share of it
over_codecs = pytest.mark.parametrize("kind", REAL_CODECS)


def values(count: int = 60, seed: int = 0) -> torch.Tensor:
    return 3 * torch.randn(count, 5, generator=torch.Generator().manual_seed(seed))


# -- codecs -----------------------------------------------------------------------------------------------------------


@over_codecs
def test_numbers_come_back_to_the_codecs_step(kind: str) -> None:
    codec, numbers = REAL_CODECS[kind](), values()
    stored = codec.encode(numbers)
    assert {name: str(part.numpy().dtype) for name, part in stored.items()} == {
        name: part.dtype for name, part in codec.parts(5).items()
    }
    back = codec.decode(stored, 5)
    assert back.dtype == torch.float32
    if kind == "real32":
        assert torch.equal(back, numbers)
    assert (back - numbers).abs().le(numbers.abs() * HALF_STEP + 1e-7).all()
    assert codec.is_real
    assert not codec.is_sparse


@over_codecs
def test_a_row_is_the_same_whoever_shares_its_block(kind: str) -> None:
    codec, numbers = REAL_CODECS[kind](), values()
    whole = codec.encode(numbers)[""]
    assert torch.equal(torch.cat([codec.encode(part)[""] for part in numbers.split(7)]), whole)


@over_codecs
def test_nothing_becomes_infinite(kind: str) -> None:
    codec = REAL_CODECS[kind]()
    back = codec.decode(codec.encode(torch.tensor([[1e6, -1e6, 1e-9]])), 3)
    assert back.isfinite().all()
    assert (back.sign() == torch.tensor([[1.0, -1.0, back[0, 2].sign()]])).all()
    assert back[0, 0] == (1e6 if kind == "real32" else 65504)


@over_codecs
def test_the_error_is_that_of_a_loop(kind: str) -> None:
    codec, numbers = REAL_CODECS[kind](), values()
    found = measure_error(codec, numbers)
    back = codec.decode(codec.encode(numbers), 5).flatten()
    gaps = [abs(float(a) - float(b)) for a, b in zip(numbers.flatten(), back, strict=True)]
    assert found.keys() == {"rows", "rmse", "abs_worst"}
    assert found["rows"] == 60
    assert found["rmse"] == pytest.approx(math.sqrt(sum(gap**2 for gap in gaps) / len(gaps)))
    assert found["abs_worst"] == pytest.approx(max(gaps))
    assert (found["rmse"] > 0) == (kind == "real16")


def test_errors_of_blocks_are_that_of_all_rows() -> None:
    codec, numbers = REAL_CODECS["real16"](), values() * torch.linspace(0.01, 50, 60)[:, None]
    whole = measure_error(codec, numbers)
    assert combine_errors([measure_error(codec, part) for part in numbers.split([5, 30, 25])]) == pytest.approx(whole)


def test_half_precision_takes_half_the_bytes() -> None:
    assert packed_bytes(REAL_CODECS["real32"](), values()) == 20
    assert packed_bytes(REAL_CODECS["real16"](), values()) == 10


def test_the_dicts_keep_apart_what_is_of_classes() -> None:
    assert not CODECS.keys() & REAL_CODECS.keys()
    assert not any(codec.is_real for codec in CODECS.values())
    assert all(codec.is_real for codec in REAL_CODECS.values())
    for codec in REAL_CODECS.values():
        assert parse_codec(codec_json(codec()), "here", ALL_CODECS) == codec()


@pytest.mark.parametrize("kind", [*CODECS, "auto"])
def test_a_codec_of_classes_is_refused_for_numbers(kind: str) -> None:
    with pytest.raises(StillroomError, match=rf"logits.codec: unknown codec '{kind}'; expected .*real"):
        asked_codec(kind, "logits.codec", is_real=True)


@over_codecs
def test_a_codec_of_numbers_is_refused_for_classes(kind: str) -> None:
    with pytest.raises(StillroomError, match=rf"logits.codec: unknown codec '{kind}'"):
        asked_codec(kind, "logits.codec")
    assert asked_codec(kind, "logits.codec", is_real=True) == {"kind": kind}


# -- stores -----------------------------------------------------------------------------------------------------------


class Houses:
    """Houses, their plan, two teacher stores (fp32, fp16) and what was fused of them, in blocks of 16 rows."""

    def __init__(self, root: Path):
        self.dataset = make_houses()
        self.plan, self.task = make_plan(self.dataset, labelled=40)
        self.replayer = make_replayer(self.plan, self.dataset)
        with pytest.MonkeyPatch.context() as patch:
            small_blocks(patch, 16)
            first = dump_houses(root / "a", self.replayer, self.task)
            second = dump_houses(root / "b", self.replayer, self.task, name="b", seed=1, codec="real16")
            self.teachers = [first, second]
            self.targets = fuse_houses(root / "targets", self.teachers, strategy="inverse_variance")


@pytest.fixture(scope="module")
def houses(tmp_path_factory: pytest.TempPathFactory) -> Houses:
    return Houses(tmp_path_factory.mktemp("houses"))


def test_stores_of_numbers_are_sound(houses: Houses) -> None:
    for store in (*houses.teachers, houses.targets):
        assert verify(store.folder) == []
        assert verify(store.folder, thorough=False) == []
        assert store.is_real
        assert store.classes == NUMBERS


def test_a_teacher_store_holds_what_the_teacher_said(houses: Houses) -> None:
    for seed, store in enumerate(houses.teachers):
        assert store.field == "values"
        for split, part in houses.plan.splits.items():
            own = Line(seed).predict(houses.replayer.batch(split, 0, np.arange(len(part))).inputs).logits
            found = store.logits(split)
            assert (found - own).abs().max() <= (0 if seed == 0 else HALF_STEP * own.abs().max())
            assert own.std() > 0.5


def test_stores_know_what_is_true_of_their_rows(houses: Houses) -> None:
    for store in (*houses.teachers, houses.targets):
        plan = store.plan()
        assert plan.fingerprint == houses.plan.fingerprint
        for name, split in houses.plan.splits.items():
            assert split.targets is not None
            np.testing.assert_array_equal(plan.splits[name].targets, split.targets)
            is_hidden = split.labels == UNLABELLED
            assert np.isnan(split.targets[is_hidden]).all()
            assert is_hidden.any() == (name == "train")
            assert np.isfinite(split.targets[~is_hidden]).any(1).all()


def test_a_store_says_on_which_scale_it_is(houses: Houses) -> None:
    for store in (*houses.teachers, houses.targets):
        said = store.attributes["scale"]
        assert said == {"mean": list(houses.task.mean), "std": list(houses.task.std), "unit": ""}


def test_the_figures_of_a_teacher_are_in_the_targets_unit(houses: Houses) -> None:
    store, split = houses.teachers[0], houses.plan.splits["test"]
    assert split.targets is not None
    values = store.logits("test").double() * torch.tensor(houses.task.std) + torch.tensor(houses.task.mean)
    truth = houses.dataset.targets[split.ids]  # type: ignore[index]
    known = np.isfinite(truth)
    errors = (values.numpy() - truth)[known]
    found = store.manifest.details["scores"]["test"]
    assert found["mae"] == pytest.approx(np.abs(errors).mean(), rel=1e-5)
    assert found["rmse"] == pytest.approx(np.sqrt((errors**2).mean()), rel=1e-5)
    assert "temperature" not in store.manifest.details


def test_a_target_store_has_means_and_no_log_probs(houses: Houses) -> None:
    assert houses.targets.means("test").shape == (len(houses.plan.splits["test"]), 2)
    assert torch.equal(houses.targets.answers("test"), houses.targets.means("test"))
    assert houses.targets.field_at(1.0) == "mean"
    with pytest.raises(StillroomError, match="found real numbers; expected targets of classes; read their means by"):
        houses.targets.log_probs("test")


HARMED = {
    "values": ("a", "train/values/c/0/1/0", "train view 0 rows 16-32"),
    "targets": ("b", "train/targets/c/1/0", "train view 0 rows 16-32"),
    "mean": ("targets", "train/mean/c/0/2/0", "train view 0 rows 32-48"),
    "variance": ("targets", "calibration/variance/c/0/0/0", "calibration view 0 rows 0-16"),
}


@pytest.mark.parametrize("name", HARMED)
def test_a_flipped_bit_is_told_with_its_rows(houses: Houses, tmp_path: Path, name: str) -> None:
    made, path, rows = HARMED[name]
    sound = next(each for each in (*houses.teachers, houses.targets) if each.folder.name == made)
    folder = shutil.copytree(sound.folder, tmp_path / "store")
    content = bytearray((folder / path).read_bytes())
    content[9] ^= 0x04
    (folder / path).write_bytes(content)
    faults = verify(folder)
    assert [(fault.array, fault.rows) for fault in faults] == [(name, rows)]
    store = open_targets(folder) if made == "targets" else open_teacher(folder)
    split = rows.partition(" ")[0]
    with pytest.raises(CorruptBlockError, match=rf"{name} of {rows}"):
        store.read(split, name)


def _without(key: str) -> Callable[[dict[str, Any]], object]:
    return lambda said: said.pop(key)


WRONG: dict[str, Callable[[dict[str, Any]], object]] = {
    "no scale": _without("scale"),
    "a scale without a mean": lambda said: said["scale"].pop("mean"),
    "a mean too few": lambda said: said["scale"]["mean"].pop(),
    "a spread of nothing": lambda said: said["scale"].update(std=[0.0, 1.0]),
    "a negative spread": lambda said: said["scale"].update(std=[-1.0, 1.0]),
    "words for numbers": lambda said: said["scale"].update(std=["1", 1.0]),
    "truth for numbers": lambda said: said["scale"].update(mean=[True, 1.0]),
    "an endless mean": lambda said: said["scale"].update(mean=[math.inf, 1.0]),
    "a scale that is a list": lambda said: said.update(scale=[1, 2]),
    "no unit": lambda said: said["scale"].pop("unit"),
    "a codec of classes": lambda said: said.update(codec={"kind": "fp16"}),
    "another codec of numbers": lambda said: said.update(
        codec={"kind": "real16" if said["codec"]["kind"] == "real32" else "real32"}
    ),
    "a number more": lambda said: said["classes"].append("rent"),
}


@pytest.mark.parametrize("what", WRONG)
@pytest.mark.parametrize("place", [0, 1, 2])
def test_attributes_that_can_not_be_are_refused(houses: Houses, what: str, place: int) -> None:
    store = [*houses.teachers, houses.targets][place]
    kind = "target store" if place == 2 else "teacher store"
    said = copy.deepcopy(dict(store.attributes))
    check_attributes(store.folder, kind, said, store.layout)
    WRONG[what](said)
    with pytest.raises(StillroomError, match=rf"found attributes that describe no {kind}"):
        check_attributes(store.folder, kind, said, store.layout)


def test_a_store_of_classes_is_none_of_numbers(stores: Any, houses: Houses) -> None:
    for store, other in zip(stores.teachers, houses.teachers, strict=True):
        said = {**store.attributes, "codec": other.attributes["codec"], "scale": other.attributes["scale"]}
        with pytest.raises(StillroomError, match="found attributes that describe no teacher store"):
            check_attributes(store.folder, "teacher store", said, store.layout)
        assert not store.is_real


def test_the_codecs_error_is_in_the_manifest(houses: Houses) -> None:
    exact, half = (read_manifest(store.folder) for store in houses.teachers)
    assert exact is not None
    assert half is not None
    assert exact.metrics["codec_error"] == {"rmse": 0.0, "abs_worst": 0.0, "rows": 120}
    assert 0 < half.metrics["codec_error"]["rmse"] < half.metrics["codec_error"]["abs_worst"] < 0.01
