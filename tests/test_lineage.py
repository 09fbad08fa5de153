"""One text for one value, one fingerprint for one config, and a manifest that cannot be edited unnoticed."""

import errno
import json
import os
from pathlib import Path

import pytest

from pipeline.errors import StaleStoreError, StillroomError
from pipeline.lineage import (
    COST,
    MANIFEST,
    Manifest,
    artefact_folder,
    canonical_json,
    check_fresh,
    differences,
    file_digest,
    fingerprint,
    read_cost,
    read_manifest,
    require_manifest,
    write_cost,
    write_durably,
)

CONFIG = {"stage": "logits", "plan": {"seed": 0, "views": 8}, "layers": ["a", "b"], "rate": 0.1}


def manifest(**changes: object) -> Manifest:
    content = {"kind": "teacher", "name": "forest", "config": CONFIG, "metrics": {"nll": 0.25}, **changes}
    return Manifest(**content)


def test_canonical_json_is_one_text_for_one_value():
    assert canonical_json({"b": [1, 2.5], "a": {"d": None, "c": "é"}}) == '{"a":{"c":"\\u00e9","d":null},"b":[1,2.5]}'
    assert canonical_json({"x": 1, "y": 2}) == canonical_json({"y": 2, "x": 1})
    with pytest.raises(ValueError, match="not JSON compliant"):
        canonical_json({"x": float("nan")})


def test_a_fingerprint_never_changes_between_releases():
    assert fingerprint(CONFIG) == "6b5e06f33584673bb9cf870bfb68cbf72d4a70e6ab1efbf8410100d4b668d853"
    assert artefact_folder(Path("r"), "forest", CONFIG) == Path("r") / f"forest-{fingerprint(CONFIG)[:12]}"


def test_a_manifest_reads_back_as_it_was_written(tmp_path):
    manifest(digests={"w": "0"}, details={"seed": 1}).write(tmp_path)
    found = read_manifest(tmp_path)
    assert found == manifest(digests={"w": "0"}, details={"seed": 1})
    assert found.fingerprint == fingerprint(CONFIG)
    assert (tmp_path / MANIFEST).read_text().endswith("\n")


def test_the_same_manifest_is_the_same_bytes(tmp_path):
    manifest().write(tmp_path / "a")
    manifest(config=dict(reversed(CONFIG.items()))).write(tmp_path / "b")
    assert (tmp_path / "a" / MANIFEST).read_bytes() == (tmp_path / "b" / MANIFEST).read_bytes()


def test_an_unfinished_artefact_has_no_manifest(tmp_path):
    assert read_manifest(tmp_path) is None
    with pytest.raises(
        StillroomError, match="found an unfinished artefact; expected a finished teacher; run 'make it'"
    ):
        require_manifest(tmp_path, "teacher", make_with="make it")
    with pytest.raises(StillroomError, match="found nothing; expected a finished teacher; run 'make it'"):
        require_manifest(tmp_path / "no", "teacher", make_with="make it")
    manifest().write(tmp_path)
    with pytest.raises(StillroomError, match="found a teacher; expected a student; name another folder"):
        require_manifest(tmp_path, "student", make_with="make it")
    assert require_manifest(tmp_path, "teacher", make_with="make it") == manifest()


EDITS = {
    "a metric": lambda body: body["metrics"].update(nll=0.1),
    "a config": lambda body: body["config"].update(rate=0.2),
    "the fingerprint": lambda body: body.update(fingerprint="0" * 64),
    "the seal": lambda body: body.update(seal="0" * 64),
    "a new key": lambda body: body.update(more=1),
    "a key less": lambda body: body.pop("metrics"),
    "infinity": lambda body: body["metrics"].update(nll=float("inf")),
    "not a number": lambda body: body["config"].update(rate=float("nan")),
}


@pytest.mark.parametrize("what", EDITS)
def test_an_edited_manifest_is_refused(tmp_path, what):
    manifest().write(tmp_path)
    body = json.loads((tmp_path / MANIFEST).read_text())
    EDITS[what](body)
    (tmp_path / MANIFEST).write_text(json.dumps(body))
    with pytest.raises(
        StillroomError, match=r"manifest.json: its seal does not fit its content; .*; delete the folder"
    ):
        read_manifest(tmp_path)


@pytest.mark.parametrize("content", [b"", b"{", b"\xff\xfe", b"[" * 100_000])
def test_what_is_no_json_is_refused(tmp_path, content):
    (tmp_path / MANIFEST).write_bytes(content)
    with pytest.raises(
        StillroomError, match=r"manifest.json: found no JSON \(.*\); expected a manifest; delete the fol"
    ):
        read_manifest(tmp_path)


@pytest.mark.parametrize("content", ["[]", "{}", "7", '{"format": 1}'])
def test_json_of_something_else_is_refused(tmp_path, content):
    (tmp_path / MANIFEST).write_text(content)
    with pytest.raises(StillroomError, match=r"manifest.json: found other keys; expected a manifest of Stillroom"):
        read_manifest(tmp_path)


def test_another_format_is_refused(tmp_path):
    manifest(format=2).write(tmp_path)
    with pytest.raises(StillroomError, match=r"manifest.json: format 2; expected 1; rebuild it with this release"):
        read_manifest(tmp_path)


# -- freshness --------------------------------------------------------------------------------------------------------


def test_differences_name_the_fields_with_both_values():
    assert differences(CONFIG, CONFIG) == []
    other = {**CONFIG, "plan": {"seed": 1, "views": 8}, "layers": ["b", "a"]}
    assert differences(CONFIG, other) == [
        "layers (found ['a', 'b']; expected ['b', 'a'])",
        "plan.seed (found 0; expected 1)",
    ]
    assert differences({"a": "x" * 99}, {"a": 1}) == [f"a (found '{'x' * 36}...; expected 1)"]


@pytest.mark.parametrize(
    ("found", "wanted"), [({"a": None}, {}), ({}, {"a": None}), ({"a": 1}, {"a": 1.0}), ({"a": 1}, {"a": True})]
)
def test_whatever_changes_the_fingerprint_is_a_difference(found, wanted):
    assert fingerprint(found) != fingerprint(wanted)
    assert len(differences(found, wanted)) == 1


def test_a_stale_artefact_is_refused_by_the_names_of_its_fields():
    check_fresh(manifest(), CONFIG, Path("here"))
    wanted = {**CONFIG, "rate": 0.2, "plan": {"seed": 0, "views": 4}}
    with pytest.raises(
        StaleStoreError,
        match=r"here: made from another plan.views \(found 8; expected 4\), rate \(found 0.1; expected 0.2\); rebuild",
    ):
        check_fresh(manifest(), wanted, Path("here"))


# -- writing ----------------------------------------------------------------------------------------------------------


def test_a_file_is_synced_before_it_is_renamed_and_its_folder_after(tmp_path, monkeypatch):
    calls, replace = [], Path.replace
    monkeypatch.setattr(os, "fsync", lambda descriptor: calls.append(os.path.isdir(f"/proc/self/fd/{descriptor}")))
    monkeypatch.setattr(Path, "replace", lambda self, target: (calls.append(target.name), replace(self, target)))
    write_durably(tmp_path / "deep" / "a.json", b"x")
    assert calls == [False, "a.json", True]
    assert (tmp_path / "deep" / "a.json").read_bytes() == b"x"


@pytest.mark.parametrize("there", [False, True])
def test_a_write_that_fails_leaves_no_partial_and_the_old_file(tmp_path, monkeypatch, there):
    def full(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    if there:
        (tmp_path / "a.json").write_bytes(b"old")
    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space left"):
        write_durably(tmp_path / "a.json", b"new")
    assert [path.read_bytes() for path in tmp_path.iterdir()] == ([b"old"] if there else [])


def test_a_files_digest_is_its_sha256(tmp_path):
    (tmp_path / "a").write_bytes(b"abc")
    assert file_digest(tmp_path / "a") == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"


def test_costs_add_up_and_words_replace(tmp_path):
    assert read_cost(tmp_path) == {}
    write_cost(tmp_path, {"seconds": 1.5, "rows": 3, "device": "cpu"})
    write_cost(tmp_path, {"seconds": 2.0, "device": "gpu", "bytes": 7})
    assert read_cost(tmp_path) == {"seconds": 3.5, "rows": 3, "device": "gpu", "bytes": 7}


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"\xff"])
def test_damaged_costs_are_started_anew(tmp_path, content):
    (tmp_path / COST).write_bytes(content)
    write_cost(tmp_path, {"rows": 3})
    assert read_cost(tmp_path) == {"rows": 3}
