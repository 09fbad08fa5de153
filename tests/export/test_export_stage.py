"""Finished students become exports: measured as their manifests say, made once, refused where nothing is finished."""

import json
import shutil
import sys
from pathlib import Path

import pytest
from few import contents, workspace

from pipeline.errors import StillroomError
from pipeline.lineage import Manifest, file_digest, read_cost, read_manifest
from stages import export
from stages.finished import best
from stages.runs import Run, config_of, folder_of, runs

pytest.importorskip("onnxruntime")


@pytest.fixture(autouse=True)
def _few_repeats(monkeypatch):
    monkeypatch.setattr(export, "REPEATS", {1: 2, 256: 2})


@pytest.fixture
def home(finished, tmp_path):
    """A copy of the finished students, to export or to spoil."""
    return Path(shutil.copytree(finished, tmp_path / "home", symlinks=True))


def exports(home: Path) -> list[Path]:
    return sorted((home / "data" / "exports").iterdir())


def test_the_seed_of_lowest_calibration_nll_is_exported_and_scores_as_it_was_sealed(home):
    ws = workspace(home)
    export.run(ws)
    (folder,) = exports(home)  # `other` has no finished run and is passed over
    manifest = read_manifest(folder)
    students = [read_manifest(path) for path in (home / "data" / "students").iterdir()]
    best = min(students, key=lambda student: student.metrics["calibration"]["nll"])
    assert (manifest.name, manifest.config["student"]) == (best.name, best.fingerprint)
    names = {"labels.json", *export.FILES.values()}
    assert {name: file_digest(folder / name) for name in names} == dict(manifest.digests)

    scores, sealed = manifest.metrics["test"], best.metrics["test"]
    for name in ("torch", "pt2", "onnx"):
        assert scores[name]["accuracy"] == pytest.approx(sealed["accuracy"], abs=1e-9)
        assert scores[name]["nll"] == pytest.approx(sealed["nll"], abs=1e-5)
        assert scores[name]["max_difference"] < 1e-4
    assert scores["int8"]["max_difference"] > 1e-4
    assert scores["int8"]["agreement"] > 0.9
    assert scores["int8"]["nll"] == pytest.approx(sealed["nll"], abs=0.1)
    assert manifest.details["bytes"]["onnx"] == (folder / "student.onnx").stat().st_size
    assert manifest.details["parameters"] == 784 * 8 + 2 * 8 + 8 * 10 + 10
    assert set(read_cost(folder)["milliseconds"]) == {"torch", *export.FILES}

    about = json.loads((folder / "labels.json").read_text())
    assert about["classes"] == list(ws.classes)
    assert about["mean"] == list(ws.plan.mean)


def test_what_is_exported_is_not_exported_again(home):
    first = workspace(home)
    export.run(first, formats=["pt2"])
    before = contents(exports(home)[0])
    again = workspace(home)
    export.run(again, formats=["pt2"])
    assert (len(first.done), again.done) == (1, [])
    assert contents(exports(home)[0]) == before


def test_an_export_that_was_interrupted_ends_with_the_same_bytes(home):
    export.run(workspace(home), formats=["pt2", "onnx"])
    (folder,) = exports(home)
    before = contents(folder)
    (folder / "manifest.json").unlink()
    (folder / "student.pt2").write_bytes(b"half")
    export.run(workspace(home), formats=["pt2", "onnx"])
    assert contents(folder) == before


def test_a_seed_and_formats_can_be_asked_for(home):
    export.run(workspace(home), student="tiny", seed=1, formats=["int8"])
    (folder,) = exports(home)
    assert folder.name.startswith("tiny-s1-")
    assert {path.name for path in folder.glob("student.*")} == {"student.onnx", "student.int8.onnx"}  # made of it


def test_what_is_not_there_is_told(home):
    ws = workspace(home)
    with pytest.raises(
        StillroomError, match=r"no finished student 'other' of recipe 'few'; .*run 'stillroom distill few'"
    ):
        export.run(ws, student="other")
    with pytest.raises(StillroomError, match="no finished students of seed 7"):
        export.run(ws, seed=7)
    with pytest.raises(StillroomError, match="did you mean 'tiny'"):
        export.run(ws, student="tny")
    with pytest.raises(StillroomError, match=r"unknown format 'onx'; .* did you mean 'onnx'"):
        export.run(ws, formats=["onx"])
    assert not (home / "data" / "exports").exists()


def test_a_student_that_is_no_network_is_passed_over_unless_it_is_the_only_one(home):
    ws = workspace(home)
    (entry,) = (each for each in ws.recipe.student if each.name == "other")
    (job,) = runs(ws, entry)
    manifest = Manifest("student", job.name, config_of(ws, job), {}, {"calibration": {"nll": 0.1}})
    manifest.write(folder_of(ws, job))
    export.run(ws, formats=["pt2"])
    assert [folder.name.split("-")[0] for folder in exports(home)] == ["tiny"]
    with pytest.raises(StillroomError, match=r"student without weights\.safetensors; expected a network"):
        export.run(ws, student="other", formats=["pt2"])


def test_damaged_weights_are_not_exported(home):
    for path in (home / "data" / "students").glob("*/weights.safetensors"):
        content = bytearray(path.read_bytes())
        content[-1] ^= 1
        path.write_bytes(content)
    with pytest.raises(StillroomError, match="other bytes than its manifest says"):
        export.run(workspace(home), formats=["pt2"])


def test_a_program_that_answers_otherwise_on_a_later_test_row_seals_nothing(home, monkeypatch):
    def biased(folder, name):
        return lambda pictures: load(folder, name)(pictures) + 0.01

    load = export.load
    monkeypatch.setattr(export, "load", biased)
    with pytest.raises(StillroomError, match=r"student\.pt2: .* differ by 0\.01 at row \d+; expected below 0\.0001"):
        export.run(workspace(home), formats=["pt2"])
    assert read_manifest(exports(home)[0]) is None


def test_without_onnx_the_command_to_install_it_is_told_and_pt2_still_works(home, monkeypatch):
    monkeypatch.setitem(sys.modules, "onnx", None)
    with pytest.raises(StillroomError, match=r"pip install 'stillroom\[onnx\]'"):
        export.run(workspace(home))
    export.run(workspace(home), formats=["pt2"])


def test_the_table_names_every_format(home):
    ws = workspace(home)
    job = best(ws, ws.recipe.find("student", "tiny"), None)
    assert isinstance(job, Run)
    table = export.table(export.ensure(ws, job, ["pt2"]))
    assert list(table.columns[0].cells) == ["torch", "pt2"]
    assert table.columns[-1]._cells[0] == "1.00x, 1.00x"
