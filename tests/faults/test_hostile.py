"""A store or recipe may come from a stranger who sealed it well. It is refused with a StillroomError, in a second,
before memory or disk is spent, and nothing outside of its folder is read, written or run.

The numbers and files that must not change are held outside of the store.
"""

import copy
import hashlib
import json
import os
import pickle
import random
import shutil
import sys
import time
import tomllib
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import sklearn.naive_bayes  # noqa: F401  # recipes name it: that it is imported is not what they cost
from damage import Kept, state_of
from few import ROOT
from forge import (
    blosc_frame,
    edit_attributes,
    edit_chunk,
    edit_json,
    edit_manifest,
    edit_record,
    reseal,
    seal_manifest,
)
from oracle import Held, blocks_of, hold_targets, hold_teacher

from pipeline.errors import StaleStoreError, StillroomError
from pipeline.lineage import MANIFEST, read_manifest
from pipeline.loader import TargetLoader, open_replayer
from pipeline.store import TargetStore, TeacherStore, open_targets, open_teacher
from pipeline.store.chunks import pack
from pipeline.store.verify import Fault, verify
from stages.load import load_recipe
from stages.recipe import Recipe

MORE_MEMORY = 50 << 20
BOMB = 10**6 * "x"


@pytest.fixture(scope="module")
def held(replayer, tmp_path_factory) -> dict[str, Held]:
    root = tmp_path_factory.mktemp("held")
    with blocks_of(40):
        teacher = hold_teacher(root / "teacher", replayer, codec="companded8", features="uint8")
        targets = hold_targets(root / "targets", replayer, teacher)
        sparse = hold_targets(root / "sparse", replayer, teacher, codec={"kind": "topk", "k": 2})
        return {"teacher": teacher, "targets": targets, "sparse": sparse}


@pytest.fixture(scope="module")
def kept(held) -> dict[str, Kept]:
    return {name: Kept(each.folder) for name, each in held.items()}


@pytest.fixture
def teacher(held, kept) -> Iterator[Path]:
    """A teacher store, to forge."""
    yield held["teacher"].folder
    kept["teacher"].give_back()


@pytest.fixture
def targets(held, kept) -> Iterator[Path]:
    """A target store, to forge."""
    yield held["targets"].folder
    kept["targets"].give_back()


@pytest.fixture
def sparse(held, kept) -> Iterator[Path]:
    """A sparse target store, to forge."""
    yield held["sparse"].folder
    kept["sparse"].give_back()


def read_all(folder: Path) -> None:
    """Do with a store whatever one does with a store."""
    store = open_teacher(folder) if (folder / "train/logits").exists() else open_targets(folder)
    for block in store.layout.blocks:
        for name in store.layout.arrays_of(block):
            store.read_block(block, name)
    store.plan()
    if isinstance(store, TeacherStore):
        store.features("train", "penultimate")
        store.logits("train")
    else:
        for temperature in store.temperatures:
            store.log_probs("test", temperature=temperature)


def memory(what: str) -> int:
    """Return a figure of this process in bytes: VmRSS is what it has, VmHWM the most it had."""
    (line,) = [line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(what)]
    return int(line.split()[1]) << 10


TOUCHED: list[str] | None = None  # files and folders that were opened, listed or changed, while somebody asks
OWN = tuple(map(os.path.realpath, (sys.prefix, sys.base_prefix, Path(np.__file__).parents[1], ROOT, "/proc", "/sys")))
CHANGES = ("os.listdir", "os.scandir", "os.mkdir", "os.remove", "os.rename", "os.rmdir", "os.truncate", "os.link")


def _note(event: str, said: tuple[Any, ...]) -> None:
    if TOUCHED is None or event not in ("open", *CHANGES) or not isinstance(said[0], str | bytes | os.PathLike):
        return
    folder, name = os.path.split(os.fsdecode(said[0]))
    follows = event in CHANGES[:2] or (event == "open" and not said[2] & os.O_NOFOLLOW)
    TOUCHED.append(
        os.path.realpath(os.path.join(folder, name)) if follows else os.path.join(os.path.realpath(folder), name)
    )


sys.addaudithook(_note)


@contextmanager
def thrifty(folder: Path | None = None) -> Iterator[None]:
    """Hold what is done to a second or so, to 50 MB, and to a folder, Python's own files aside."""
    global TOUCHED
    Path("/proc/self/clear_refs").write_text("5")  # from here on counts the most
    before, started, TOUCHED = memory("VmRSS"), time.process_time(), []
    try:
        yield
    finally:
        touched, TOUCHED = TOUCHED, None
    assert memory("VmHWM") - before < MORE_MEMORY
    assert time.process_time() - started < 2
    allowed = [f"{place}/" for place in OWN] if folder is None else [f"{place}/" for place in (*OWN, folder.resolve())]
    assert folder is None or [path for path in touched if not f"{path}/".startswith(tuple(allowed))] == []


def refused(folder: Path) -> str:
    """Return with what words a store is refused by all who read stores, in little time and memory."""
    with thrifty(folder):
        found = verify(folder)
        assert all(isinstance(fault, Fault) and str(fault).isprintable() for fault in found)
        with pytest.raises(StillroomError) as caught:
            read_all(folder)
    return f"{caught.value} | {[str(fault) for fault in found]}"


FORGES: dict[str, Callable[[Path], None]] = {
    "nothing": lambda folder: None,
    "the manifest": lambda folder: edit_manifest(folder, lambda body: None),
    "a record": lambda folder: edit_record(folder, "train-0-0", lambda record: None),
    "the attributes": lambda folder: edit_attributes(folder, lambda said: None),
    "a number": lambda folder: edit_chunk(folder, "train/labels/c/0", (folder / "train/labels/c/0").read_bytes()[:-4]),
    "metadata": lambda folder: (edit_json(folder / "train/zarr.json", lambda found: None), reseal(folder))[0],
    "figures": lambda folder: edit_manifest(folder, lambda body: set_in(body, "details.temperature", 2.0)),
}


@pytest.mark.parametrize("what", FORGES)
def test_a_forgery_that_makes_sense_is_sound_so_that_it_is_the_sense_that_is_tested(teacher, what):
    FORGES[what](teacher)
    with thrifty():
        assert verify(teacher) == []
        read_all(teacher)


@contextmanager
def given_back(folder: Path, *paths: str) -> Iterator[None]:
    """Give the manifest and other files back as they were."""
    kept = {path: (folder / path).read_bytes() for path in (MANIFEST, *paths)}
    yield
    for path, content in kept.items():
        (folder / path).write_bytes(content)


# -- manifests --------------------------------------------------------------------------------------------------------


def set_in(table: Any, path: str, value: Any) -> None:
    *parents, last = path.split(".")
    for part in parents:
        table = table[part]
    table[last] = value


def renamed(table: dict[str, Any], old: str, new: str) -> None:
    table[new] = table.pop(old)


NAMES = ["../outside", "/etc", "", ".", "..", "a\0b", "a\\b", "a/../../b", "x" * 5000, "\ud800", "train\n", "c:", "~"]


@pytest.mark.parametrize("name", NAMES, ids=lambda name: ascii(name)[:20])
@pytest.mark.parametrize("what", ["splits", "arrays", "digests"])
def test_names_that_lead_out_of_the_store_are_refused(teacher, what, name):
    old = {"splits": "test", "arrays": "labels", "digests": "train/zarr.json"}[what]
    edit_manifest(teacher, lambda body: renamed((body if what == "digests" else body["details"])[what], old, name))
    assert refused(teacher)


HUGE = 2**40
ABSURD: dict[str, Any] = {
    "V": ("splits.train", [HUGE, 40]),
    "N": ("splits.train", [3, HUGE]),
    "both": ("splits.train", [HUGE, HUGE]),
    "no views": ("splits.train", [0, 40]),
    "fewer rows": ("splits.train", [3, 39]),
    "negative": ("splits.train", [3, -40]),
    "bool": ("splits.train", [True, 40]),
    "float": ("splits.train", [3.0, 40]),
    "text": ("splits.train", ["3", "40"]),
    "three": ("splits.train", [3, 40, 1]),
    "no list": ("splits.train", 3),
    "no splits": ("splits", {}),
    "splits are a list": ("splits", ["train"]),
    "tail": ("arrays.logits.tail", [2**31, 2**31]),
    "deep tail": ("arrays.logits.tail", [1] * 100),
    "another tail": ("arrays.logits.tail", [2]),
    "negative tail": ("arrays.logits.tail", [-3]),
    "tail of text": ("arrays.logits.tail", "333"),
    "object": ("arrays.logits.dtype", "object"),
    "S10": ("arrays.logits.dtype", "S10"),
    "dtype is a list": ("arrays.logits.dtype", [["a", "O"]]),
    "big-endian": ("arrays.logits.dtype", ">f2"),
    "per_view": ("arrays.logits.per_view", "yes"),
    "shuffle": ("arrays.logits.shuffle", "lzma"),
    "array in no split": ("arrays.logits.splits", []),
    "array in another split": ("arrays.logits.splits", ["elsewhere"]),
    "no arrays": ("arrays", {}),
    "arrays are a list": ("arrays", ["logits"]),
    "block_rows huge": ("block_rows", HUGE),
    "block_rows none": ("block_rows", 0),
    "block_rows one": ("block_rows", 1),
    "block_rows text": ("block_rows", "16"),
    "block_rows beyond a number": ("block_rows", 10**400),
}


@pytest.mark.parametrize("what", ABSURD)
def test_absurd_shapes_are_refused_before_memory_is_spent(teacher, what):
    path, value = ABSURD[what]
    edit_manifest(teacher, lambda body: set_in(body["details"], path, value))
    if what == "block_rows huge":  # blocks are never larger than what they hold: it says the same
        return
    assert refused(teacher)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("kind", ["teacher store"]),
        ("kind", "\x1b[2J"),
        ("name", None),
        ("config", []),
        ("config", "x"),
        ("digests", []),
        ("digests", {"records": 5}),
        ("digests", {"zarr.json": None}),
        ("digests", {}),
        ("details", []),
        ("details", {}),
        ("metrics", 5),
        ("format", True),
        ("format", [1]),
        ("format", 10**30),
        ("another", {}),
    ],
)
def test_a_manifest_of_other_types_is_refused(teacher, key, value):
    edit_manifest(teacher, lambda body: set_in(body, key, value))
    assert refused(teacher)


@pytest.mark.parametrize("document", [[], None, 5, "x", {}, {"format": 1}, [[]], True])
@pytest.mark.parametrize("file", [MANIFEST, "zarr.json", "records/train-0-0.json", "train/logits/zarr.json"])
def test_a_file_that_is_another_document_is_refused(teacher, file, document):
    (teacher / file).write_text(json.dumps(document))
    if file == MANIFEST:
        seal_manifest(teacher)
    else:
        reseal(teacher)
    if file == "train/logits/zarr.json":  # our readers ask the manifest alone
        assert "describe it differently" in str(verify(teacher)[0]) or "cannot be decoded" in str(verify(teacher)[0])
    else:
        assert refused(teacher)


BROKEN: dict[str, str] = {
    "deep lists": "[" * 100_000,
    "deep lists, closed": "[" * 100_000 + "]" * 100_000,
    "deep tables": '{"a":' * 100_000,
    "deep inside": '{"attributes": {"stillroom": ' + "[" * 100_000 + "]" * 100_000 + "}}",
    "a long number": "9" * 100_000,
    "no text": "\0\1\2",
    "not a number": '{"attributes": {"stillroom": {"format": NaN}}}',
    "infinity": '{"attributes": {"stillroom": {"format": -Infinity}}}',
    "nothing": "",
}


@pytest.mark.parametrize("broken", BROKEN)
@pytest.mark.parametrize("file", [MANIFEST, "zarr.json", "records/train-0-0.json"])
def test_json_that_nobody_wrote_is_refused(teacher, file, broken):
    (teacher / file).write_text(BROKEN[broken])
    assert refused(teacher)


@pytest.mark.parametrize("number", [float("nan"), float("inf"), 1e-400])
def test_numbers_that_json_has_not_are_refused_wherever_they_are(teacher, number):
    places = (
        lambda: edit_manifest(teacher, lambda body: set_in(body, "details.temperature", number)),
        lambda: edit_record(teacher, "train-0-0", lambda record: record.update(error={"rows": number})),
        lambda: edit_attributes(teacher, lambda said: set_in(said, "plan.mean", [number])),
    )
    for forge in places if number else places[1:2]:
        forge()
        assert refused(teacher)


@pytest.mark.parametrize("file", [MANIFEST, "zarr.json", "records/train-0-0.json", "train/zarr.json"])
def test_a_file_of_200_mb_is_refused_unread(teacher, file):
    os.truncate(teacher / file, 200 << 20)
    assert refused(teacher)


# -- records and chunks -----------------------------------------------------------------------------------------------

CHUNK = "train/logits/c/1/0/0"
RECORDS: dict[str, tuple[tuple[str, ...], Any]] = {
    "no chunks": (("chunks",), {}),
    "chunks are a list": (("chunks",), [CHUNK]),
    "a chunk is a list": (("chunks", CHUNK), []),
    "huge": (("chunks", CHUNK, "bytes"), HUGE),
    "negative": (("chunks", CHUNK, "bytes"), -5),
    "bytes are text": (("chunks", CHUNK, "bytes"), "5"),
    "bytes are true": (("chunks", CHUNK, "bytes"), True),
    "bytes are half": (("chunks", CHUNK, "bytes"), 5.5),
    "no crc": (("chunks", CHUNK, "crc32c"), None),
    "crc is text": (("chunks", CHUNK, "crc32c"), "x"),
    "crc is huge": (("chunks", CHUNK, "crc32c"), HUGE),
    "sha is a number": (("chunks", CHUNK, "sha256"), 7),
    "another store": (("store",), "0" * 64),
    "store is a table": (("store",), {}),
    "another block": (("block",), ["train", 1, 0, 39]),
    "block is a table": (("block",), {"train": 1}),
    "error is a list": (("error",), [1]),
    "error of texts": (("error",), {"rows": "x"}),
    "a path outside": (("chunks", "../../outside"), {"bytes": 1, "sha256": "0", "crc32c": 0}),
}


@pytest.mark.parametrize("what", RECORDS)
def test_a_forged_record_is_refused(teacher, what):
    path, value = RECORDS[what]

    def forge(record: dict[str, Any]) -> None:
        *parents, last = path
        for part in parents:
            record = record[part]
        record[last] = value

    edit_record(teacher, "train-1-0", forge)
    assert refused(teacher)


class Bomb:
    """Leaves a file behind when it is unpickled."""

    def __init__(self, path: Path):
        self.path = path

    def __reduce__(self) -> Any:
        return (Path.touch, (self.path,))


ROWS = 40 * 3  # bytes of a chunk of codes: 40 rows of 3 classes
CONTENTS: dict[str, Callable[[Path], bytes]] = {
    "claims 4 GB": lambda out: blosc_frame(2**32 - 1, b"x" * 50),
    "claims less": lambda out: blosc_frame(5, b"x" * 50),
    "right claim, no data": lambda out: blosc_frame(ROWS, b""),
    "right claim, noise": lambda out: blosc_frame(ROWS, random.Random(0).randbytes(50)),
    "wrong length": lambda out: blosc_frame(ROWS, b"x" * 50, length=1000),
    "a cut header": lambda out: blosc_frame(ROWS, b"")[:9],
    "nothing": lambda out: b"",
    "a pickled object": lambda out: pickle.dumps(Bomb(out)),
    "a NumPy object array": lambda out: np.lib.format.magic(1, 0) + pickle.dumps(Bomb(out)),
}


@pytest.mark.parametrize("what", CONTENTS)
def test_a_chunk_that_is_no_chunk_is_refused(teacher, tmp_path, what):
    edit_chunk(teacher, CHUNK, CONTENTS[what](tmp_path / "exploded"))
    assert "logits" in refused(teacher)
    assert not (tmp_path / "exploded").exists()


def test_a_pickled_object_in_a_plain_chunk_is_refused(targets, tmp_path):
    edit_chunk(targets, "train/weights/c/1/0/0", pickle.dumps(Bomb(tmp_path / "exploded")))
    assert "weights" in str(verify(targets))
    with pytest.raises(StillroomError, match="weights of train view 1"):
        open_targets(targets).read("train", "weights", 1)
    assert not (tmp_path / "exploded").exists()


def test_class_numbers_beyond_the_classes_are_refused(held, sparse, replayer):
    said = held["sparse"].numbers["train", "log_probs/t1_ids"][1].copy()
    said[7] = 60000
    content = pack(said, 40, 0, "bitshuffle")
    edit_chunk(sparse, "train/log_probs/t1_ids/c/1/0/0", bytes(content))
    with pytest.raises(StillroomError, match="log_probs/t1_ids of train view 1 rows 0-40: it names class 60000 of 3"):
        TargetLoader(TargetStore(sparse), replayer.samples, batch_size=8)


ZARR: dict[str, tuple[str, Any]] = {
    "shape": ("shape", [3, HUGE, 3]),
    "chunk": ("chunk_grid.configuration.chunk_shape", [1, HUGE, 3]),
    "data type": ("data_type", "float64"),
    "a codec that expands": ("codecs", [{"name": "bytes"}, {"name": "gzip", "configuration": {"level": 9}}]),
    "a codec of another": ("codecs", [{"name": "numcodecs.pickle"}]),
    "shards": ("codecs", [{"name": "sharding_indexed", "configuration": {"chunk_shape": [1, 1, 1], "codecs": []}}]),
    "keys": ("chunk_key_encoding", {"name": "default", "configuration": {"separator": "../"}}),
    "an old format": ("zarr_format", 2),
    "a group": ("node_type", "group"),
    "transformers": ("storage_transformers", [{"name": "x"}]),
}


@pytest.mark.parametrize("what", ZARR)
def test_metadata_that_would_have_zarr_do_otherwise_is_told_before_zarr_is_asked(teacher, what, monkeypatch):
    edit_json(teacher / "train/logits/zarr.json", lambda found: set_in(found, *ZARR[what]))
    reseal(teacher)
    import zarr

    asked = []
    monkeypatch.setattr(zarr, "open_array", lambda path, **options: asked.append(str(path)) or 1 / 0)
    with thrifty():
        faults = [str(fault) for fault in verify(teacher)]
    assert any("logits train view 1 rows 0-40: Zarr would decode it otherwise" in fault for fault in faults)
    assert f"{teacher}/train/logits" not in asked


# -- links ------------------------------------------------------------------------------------------------------------

PLACES = {
    "records": "records",
    "a record": "records/train-0-0.json",
    "a split": "train",
    "an array": "train/logits",
    "chunks": "train/logits/c",
    "chunks of a view": "train/logits/c/1",
    "chunks of a block": "train/logits/c/1/0",
    "a chunk": CHUNK,
    "the attributes": "zarr.json",
    "metadata": "train/logits/zarr.json",
    "the manifest": MANIFEST,
    "what was fitted": "fitted",
    "a fitted array": "fitted/features/penultimate/step",
}


@pytest.fixture
def outside(tmp_path) -> Path:
    folder = tmp_path / "outside"
    folder.mkdir()
    return folder


def lead_out(store: Path, place: str, outside: Path) -> None:
    """Move a file or folder of a store out of it, and leave a link: the bytes that are read are all right."""
    shutil.move(store / place, outside / "loot")
    (store / place).symlink_to(outside / "loot")


@pytest.mark.parametrize("what", PLACES)
def test_links_that_lead_out_of_a_store_are_refused(teacher, outside, what):
    lead_out(teacher, PLACES[what], outside)
    assert refused(teacher)


@pytest.mark.parametrize("what", PLACES)
def test_mending_a_store_with_links_writes_nothing_outside(teacher, held, outside, what):
    whole = {name: content for name, (*_, content) in state_of(teacher).items()}
    lead_out(teacher, PLACES[what], outside)
    before = state_of(outside) if (outside / "loot").is_dir() else (outside / "loot").stat()
    try:
        manifest = read_manifest(teacher)
    except StillroomError:
        manifest = None
    held["teacher"].writer.unseal(manifest)
    held["teacher"].fill()
    assert {name: content for name, (*_, content) in state_of(teacher).items()} == whole
    after = state_of(outside) if (outside / "loot").is_dir() else (outside / "loot").stat()
    assert after == before


@pytest.mark.parametrize("place", ["records", "train", "train/logits/c", "train/logits/c/1/0", "fitted"])
def test_an_unfinished_store_of_a_stranger_is_not_filled_through_links(teacher, held, outside, place):
    (teacher / MANIFEST).unlink()
    lead_out(teacher, place, outside)
    kept = state_of(outside)
    with pytest.raises(StillroomError, match=f"{teacher / place}: found a link or a file; .*; delete it and run again"):
        held["teacher"].fill()
    assert state_of(outside) == kept
    (teacher / place).unlink()
    held["teacher"].fill()
    assert verify(teacher) == []


@pytest.mark.parametrize("name", ["../escape", "/escape", "..", "a/../../escape", "fitted/features/penultimate"])
def test_what_a_codec_was_fitted_to_cannot_lie_elsewhere(teacher, outside, name):
    shutil.copytree(teacher / "fitted/features/penultimate/step", outside / "escape")
    edit_attributes(teacher, lambda said: set_in(said, "features.penultimate.arrays", ["low", name]))
    assert refused(teacher)


# -- what a store says of itself --------------------------------------------------------------------------------------

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


# -- recipes ----------------------------------------------------------------------------------------------------------

SOUND = """
name = "own"
seed = 3
[data]
name = "mnist-5k"
calibration = 0.2
[views]
count = 3
transforms = [{ kind = "shift", pixels = 2 }, { kind = "torchvision", name = "RandomAffine", degrees = 5 }]
mix = { kind = "mixup", views = 1, alpha = 0.5 }
[logits]
features = ["penultimate"]
feature_codec = { kind = "pca", dims = 8 }
codec = { kind = "topk", k = 4, temperatures = [1.0, 4.0] }
max_gb = 2.5
[[teacher]]
name = "a"
model = "mlp"
width = 8
lr = 1e-3
[[teacher]]
name = "b"
model = "sklearn.naive_bayes:GaussianNB"
var_smoothing = 1e-8
[[fusion]]
name = "mean"
strategy = "weighted"
teachers = ["a", "b"]
temperatures = [1.0, 4.0]
codec = "companded8"
[[student]]
name = "s"
model = "vgg_small"
width = 4
seeds = [0, 1]
loss = { kind = "kl", temperature = 4.0, alpha = 0.5 }
"""


@pytest.fixture
def load(tmp_path) -> Callable[..., Recipe]:
    """Load a recipe's text, in a second and little memory."""
    path = tmp_path / "own.toml"

    def load(text: str, overrides: Sequence[str] = (), **options: Any) -> Recipe:
        path.write_text(text, errors="surrogatepass")
        with thrifty(tmp_path):
            return load_recipe(str(path), overrides, **options)

    return load


def test_the_recipe_that_is_spoilt_below_is_sound(load):
    assert load(SOUND).find("teacher", "a").lr == 1e-3


STRANGE: dict[str, tuple[str, str]] = {
    "nan": ("lr = 1e-3", "lr = nan"),
    "nan for a model": ("var_smoothing = 1e-8", "var_smoothing = nan"),
    "infinite": ("alpha = 0.5 }\n[logits]", "alpha = inf }\n[logits]"),
    "a date for a model": ("var_smoothing = 1e-8", "var_smoothing = 2020-01-01"),
    "text for a number": ("seed = 3", 'seed = "3"'),
    "true for a number": ("count = 3", "count = true"),
    "too many views": ("count = 3", "count = 1_000_000_000_000"),
    "a number of 4,000 digits": ("seed = 3", f"seed = {'9' * 4000}"),
    "a number of 5,000 digits": ("seed = 3", f"seed = {'9' * 5000}"),
    "a long hexadecimal number": ("seed = 3", f"seed = 0x{'f' * 50_000}"),
    "a huge k": ("k = 4", "k = 1_000_000_000_000"),
    "a negative k": ("k = 4", "k = -1"),
    "another option": ("k = 4", "q = 4"),
    "a codec of a list": ('kind = "topk"', 'kind = ["topk"]'),
    "a codec of nothing": ('{ kind = "topk", k = 4, temperatures = [1.0, 4.0] }', "{}"),
    "a codec that is a number": ('codec = "companded8"', "codec = 8"),
    "huge dims": ("dims = 8", "dims = 1_000_000_000"),
    "no budget": ("max_gb = 2.5", "max_gb = 0"),
    "a negative budget": ("max_gb = 2.5", "max_gb = -1"),
    "a budget of text": ("max_gb = 2.5", 'max_gb = "all"'),
    "an infinite budget": ("max_gb = 2.5", "max_gb = inf"),
    "a transform of a list": ('kind = "shift"', 'kind = ["shift"]'),
    "no kind": ('kind = "shift", ', ""),
    "pixels without end": ("pixels = 2", f"pixels = {10**18}0"),
    "no torchvision class": ('"RandomAffine"', '"os"'),
    "a dunder": ('"RandomAffine"', '"__class__"'),
    "a function": ('"RandomAffine"', '"functional"'),
    "a list for a name": ('"RandomAffine"', '["RandomAffine"]'),
    "options it hasn't": ("degrees = 5", "fill_in = 5"),
    "options of a wrong type": ("degrees = 5", 'degrees = "x"'),
    "options named like its own": ("degrees = 5", "cls = 5"),
    "an empty import path": ('"RandomAffine"', '":"'),
    "a relative import path": ('"RandomAffine"', '"..os:system"'),
    "no such import path": ('"RandomAffine"', '"no.such:thing"'),
    "mixed views of text": ("views = 1", 'views = "1"'),
    "alpha of text": ("alpha = 0.5 }\n[logits]", 'alpha = "x" }\n[logits]'),
    "a teacher's name that leads out": ('name = "a"', 'name = "../../a"'),
    "a recipe's name that leads out": ('name = "own"', 'name = "../own"'),
    "an absolute name": ('name = "s"', 'name = "/etc/passwd"'),
    "a name with a line in it": ('name = "s"', 'name = "s\\n"'),
    "an empty name": ('name = "s"', 'name = ""'),
    "a long name": ('name = "s"', f'name = "{"s" * 100_000}"'),
    "a data set that leads out": ('name = "mnist-5k"', 'name = "../../../etc"'),
    "a table that is a list": ("[views]", "[[views]]"),
    "a list that is a table": ("[[student]]", "[student]"),
    "tables without end": ("seed = 3", "x = " + "{a = " * 20_000 + "1" + "}" * 20_000),
    "lists without end": ("seed = 3", "x = " + "[" * 100_000 + "]" * 100_000),
    "a key without end": ("seed = 3", ".".join(["a"] * 100_000) + " = 1"),
    "a section without end": ("seed = 3", "[" + ".".join(["a"] * 100_000) + "]"),
    "many keys with many parts": ("seed = 3", "\n".join(f"k{n}{'.a' * 90} = 1" for n in range(400))),
    "a model that is code": ('model = "vgg_small"', 'model = "os:system"'),
    "a model without a name": ('model = "vgg_small"', 'model = ":"'),
    "a model's width without end": ("width = 4", "width = 1e400"),
    "an option set by the run": ("width = 4", "num_classes = 4"),
}


@pytest.mark.parametrize("what", STRANGE)
def test_a_recipe_that_makes_no_sense_is_refused_with_its_place(load, what):
    old, new = STRANGE[what]
    assert old in SOUND
    with pytest.raises(StillroomError) as caught:
        load(SOUND.replace(old, new, 1))
    assert "own.toml" in str(caught.value)
    assert len(str(caught.value)) < 10_000


@pytest.mark.parametrize("size", [300_000, 200 << 20])
def test_a_recipe_of_no_recipes_size_is_refused_unread(tmp_path, size):
    (tmp_path / "own.toml").write_text(SOUND)
    os.truncate(tmp_path / "own.toml", size)
    with (
        thrifty(),
        pytest.raises(StillroomError, match=r"found no TOML; .* more than 262,144 bytes"),
    ):
        load_recipe(str(tmp_path / "own.toml"))


@pytest.mark.parametrize(
    "name", ["", "\0", "x" * 5000, "../../etc/passwd", "/etc/passwd", "/dev/zero", "own.toml\0", "/"]
)
def test_a_name_that_is_no_recipe_is_told(name):
    for given in (name, f"{name}.toml"):
        with pytest.raises(StillroomError, match="found no"):
            load_recipe(given)


OVERRIDES = ["seed.x.y=1", "name.a.b.c=1", "teacher.0.width=1", "=", ".=1", "a..b=1", "seed=nan", "seed=[", "student=5"]
LONG = ["views.count=0x" + "f" * 20_000, "seed=" + "[" * 100_000, "student.s.width=" + "9" * 5000, "." * 5000 + "=1"]


@pytest.mark.parametrize(
    "override", [*OVERRIDES, *LONG, "x=1", "\0=1", "teacher.a=1"], ids=lambda text: ascii(text)[:20]
)
def test_an_override_that_makes_no_sense_is_told(load, override):
    with pytest.raises(StillroomError):
        load(SOUND, [override])


def test_a_fusion_for_students_that_are_none_is_told(load):
    for students in ("student = 5", "student = [5]", "student = [[]]", "[student]\nname = 5"):
        text = SOUND.partition("[[student]]")[0]
        with pytest.raises(StillroomError):
            load(f"{students}\n{text}" if "[student]" not in students else text + students, fusion="mean")


# -- whatever a monkey types ------------------------------------------------------------------------------------------

WORDS = ["", "x", "mlp", "../..", "\x1b[31m", "é\u202e", "a" * 300, "topk", "kind", "name", "0", "-", ":", "a:b", "\n"]


def any_value(drawn: random.Random) -> Any:
    """Return something that fits in a JSON or TOML file."""
    plain = [0, 1, -1, 2, 10**6, 2**62, -(2**40), 0.5, -0.0, 1e-300, 1e300, True, False, *WORDS, [], {}]
    value = drawn.choice(plain)
    for _ in range(drawn.choice([0, 0, 0, 1, 2, 40])):
        value = [value] if drawn.random() < 0.5 else {drawn.choice(WORDS): value}
    return value


def places_in(document: Any) -> list[tuple[Any, Any]]:
    """Return every place of a document as (table or list, key)."""
    keys = list(document) if isinstance(document, dict) else []
    keys = list(range(len(document))) if isinstance(document, list) else keys
    return [(document, key) for key in keys] + [place for key in keys for place in places_in(document[key])]


def mutate(document: Any, drawn: random.Random) -> None:
    """Delete, rename, swap, replace or add something, one to three times."""
    for _ in range(drawn.randint(1, 3)):
        places = places_in(document)
        if not places:
            return
        (table, key), (other, another) = drawn.choice(places), drawn.choice(places)
        how = drawn.randrange(5)
        if how == 0:
            del table[key]
        elif how == 1 and isinstance(table, dict):
            table[drawn.choice(WORDS)] = table.pop(key)
        elif how == 2:
            table[key] = copy.deepcopy(other[another])
        elif how == 3 and isinstance(table, dict):
            table[drawn.choice(WORDS)] = any_value(drawn)
        else:
            table[key] = any_value(drawn)


def as_toml(value: Any) -> str:
    """Return a value as TOML, tables inline."""
    if isinstance(value, dict):
        return "{" + ", ".join(f"{as_toml(key)} = {as_toml(each)}" for key, each in value.items()) + "}"
    if isinstance(value, list):
        return "[" + ", ".join(map(as_toml, value)) + "]"
    return json.dumps(value) if not isinstance(value, float) else repr(value)


def check_mutated_recipes(load: Callable[..., Recipe], seeds: range) -> None:
    outcomes = [told(lambda seed=seed: load(mutated_recipe(random.Random(seed)))) for seed in seeds]
    assert 0 < outcomes.count("") < len(seeds) / 2, "most do harm, some don't"


def mutated_recipe(drawn: random.Random) -> str:
    document = tomllib.loads(SOUND)
    mutate(document, drawn)
    text = "\n".join(f"{as_toml(key)} = {as_toml(value)}" for key, value in document.items())
    if drawn.random() < 0.7:
        return text
    place, typed = drawn.randrange(len(text)), drawn.choice([*WORDS, "\0", "]", "{", '"', "=", "\x7f"])
    return text[:place] + typed + text[place + drawn.randrange(3) :]


def told(do: Callable[[], Any]) -> str:
    """Return the message of the only error there may be, "" when there is none."""
    try:
        do()
    except StillroomError as error:
        return str(error)
    return ""


def test_mutated_recipes_are_refused_or_sound(load):
    check_mutated_recipes(load, range(200))


@pytest.mark.faults
def test_five_thousand_mutated_recipes_are_refused_or_sound(load):
    check_mutated_recipes(load, range(200, 5200))


def check_mutated_stores(held: dict[str, Held], seeds: range) -> None:
    stores, outcomes = list(held.values()), []
    for seed in seeds:
        drawn = random.Random(seed)
        store = drawn.choice(stores)
        places = [store.folder / "zarr.json", store.folder / MANIFEST, *sorted(store.folder.glob("records/*"))]
        path = drawn.choice([*places, drawn.choice(sorted(store.folder.rglob("*/zarr.json")))])
        with given_back(store.folder, path.relative_to(store.folder).as_posix()):
            is_sealed = mutate_file(store.folder, path, drawn)
            with thrifty(store.folder):
                faults = verify(store.folder)
                outcomes.append(told(lambda folder=store.folder: read_all(folder)))
            assert all(str(fault).isprintable() for fault in faults)
            assert is_sealed or (faults and outcomes[-1])
    assert 0 < outcomes.count("") < len(seeds) / 2, "most do harm, some don't"


def mutate_file(store: Path, path: Path, drawn: random.Random) -> bool:
    """Change a few bytes, or what the JSON says; return whether it was sealed again."""
    if drawn.random() < 0.3:
        content = bytearray(path.read_bytes())
        for _ in range(drawn.randint(1, 4)):
            place = drawn.randrange(len(content))
            content[place : place + drawn.randrange(4)] = drawn.randbytes(drawn.randrange(1, 4))
        path.write_bytes(content)
        return False
    if path.name == MANIFEST:
        edit_manifest(store, lambda body: mutate(body, drawn))
    elif path.parent.name == "records":
        edit_record(store, path.stem, lambda record: mutate(record, drawn))
    elif path.parent == store:
        edit_attributes(store, lambda said: mutate(said, drawn))
    else:
        edit_json(path, lambda found: mutate(found, drawn))
        reseal(store)
    return True


def test_mutated_stores_are_refused_or_sound(held):
    check_mutated_stores(held, range(25))


@pytest.mark.faults
def test_five_hundred_mutated_stores_are_refused_or_sound(held):
    check_mutated_stores(held, range(25, 525))
