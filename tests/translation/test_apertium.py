"""The rule-based translator: as many translations as texts whatever they hold, and errors that name the package."""

import os
import shutil
import stat
from pathlib import Path

import pytest

from pipeline.errors import StillroomError
from pipeline.translation.apertium import Apertium

needs_apertium = pytest.mark.skipif(shutil.which("apertium") is None, reason="Debian's apertium-eng-spa is missing")


def fake(folder: Path, script: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Put a command of the same name on the path, before any other."""
    path = folder / "apertium"
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(path.stat().st_mode | stat.S_IEXEC)
    monkeypatch.setenv("PATH", f"{folder}{os.pathsep}{os.environ['PATH']}")


def test_one_call_translates_all_and_line_breaks_stay_in_their_text(tmp_path, monkeypatch):
    fake(tmp_path, f'echo "$@" >> {tmp_path}/calls; tr a-z A-Z', monkeypatch)
    texts = ["one\ntwo", "", "three  \r\n\n four", " \0 ", "five\u2028six"]
    assert Apertium().translate(texts) == ["ONE TWO", "", "THREE FOUR", "", "FIVE SIX"]
    assert (tmp_path / "calls").read_text() == "-u -f txt eng-spa\n"


def test_nothing_to_translate_needs_no_command(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    assert Apertium().translate([]) == []
    assert Apertium().translate(["", " \n"]) == ["", ""]


def test_a_missing_command_names_the_package(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(
        StillroomError, match=r"apertium eng-spa: found no command apertium; .*apertium-eng-spa, or leave"
    ):
        Apertium().translate(["a"])


def test_a_missing_pair_names_the_package(tmp_path, monkeypatch):
    fake(tmp_path, "echo 'Error: Mode fra-cat does not exist.'; exit 1", monkeypatch)
    with pytest.raises(StillroomError, match=r"apertium fra-cat: found 'Error: Mode fra-cat .*'; .*apertium-fra-cat"):
        Apertium("fra-cat").translate(["a"])


def test_an_answer_of_other_length_is_told(tmp_path, monkeypatch):
    fake(tmp_path, "echo one", monkeypatch)
    with pytest.raises(StillroomError, match="found 1 translations of 2 texts; expected one each; give it fewer"):
        Apertium().translate(["a", "b"])


@needs_apertium
def test_real_translations_do_not_depend_on_those_beside_them():
    texts = [
        "The red house.",
        "Fill type",
        "Check the grammar",
        "foobarix",
        "Delete row/column",
        "a * b",
        "[x] ^y$ {z}",
    ]
    found = Apertium().translate(texts)
    assert found[0] == "La casa roja."
    assert found[3] == "foobarix"
    assert [Apertium().translate([text])[0] for text in texts] == found
    assert all(sign in found[-1] for sign in "[]^${}")


@needs_apertium
def test_a_real_pair_that_is_missing_is_told():
    with pytest.raises(StillroomError, match=r"apertium eng-xyz: found '.*eng-xyz.*'; .*apertium-eng-xyz"):
        Apertium("eng-xyz").translate(["a"])
