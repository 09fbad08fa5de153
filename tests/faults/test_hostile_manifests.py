"""A store may come from a stranger who sealed it well: a manifest, or any JSON of it, that makes no sense is refused.

With a StillroomError, in a second, before memory or disk is spent, and nothing outside of the store's folder is read,
written or run.
"""

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from forge import edit_attributes, edit_chunk, edit_json, edit_manifest, edit_record, reseal, seal_manifest
from hostile import HUGE, read_all, refused, set_in, thrifty

from pipeline.lineage import MANIFEST
from pipeline.store.verify import verify

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


def renamed(table: dict[str, Any], old: str, new: str) -> None:
    table[new] = table.pop(old)


NAMES = ["../outside", "/etc", "", ".", "..", "a\0b", "a\\b", "a/../../b", "x" * 5000, "\ud800", "train\n", "c:", "~"]


@pytest.mark.parametrize("name", NAMES, ids=lambda name: ascii(name)[:20])
@pytest.mark.parametrize("what", ["splits", "arrays", "digests"])
def test_names_that_lead_out_of_the_store_are_refused(teacher, what, name):
    old = {"splits": "test", "arrays": "labels", "digests": "train/zarr.json"}[what]
    edit_manifest(teacher, lambda body: renamed((body if what == "digests" else body["details"])[what], old, name))
    assert refused(teacher)


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
