"""The recipe over several sources, on made-up patients: who lacks a source, who is silent, what fusing makes of it."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from patients import write_patients
from rich.console import Console

from pipeline.datasets.sources.hospital import write_hospital
from pipeline.errors import StillroomError
from pipeline.fusion.present import are_speaking
from pipeline.store import open_targets, open_teacher
from stages import distill, fuse, rows, teachers, verify
from stages.load import SHIPPED, load_recipe
from stages.runs import folder_of, runs
from stages.without import is_right, optional_sources, said_without, subsets
from stages.workspace import Workspace

SMALL = [
    "data.labelled=200",
    "data.calibration=0.2",
    "teacher.laboratory.max_iter=8",
    "teacher.vitals.n_estimators=20",
    "teacher.joined.max_iter=8",
    "student.cheap.epochs=2",
    "student.cheap.seeds=[0]",
    "student.cheap.baselines=false",
    "student.all.epochs=2",
    "student.all.seeds=[0]",
    "student.all.baselines=false",
]
ONE_SOURCE = ("admissions", "laboratory", "vitals", "notes")


@pytest.fixture(scope="module")
def ws(tmp_path_factory: pytest.TempPathFactory) -> Workspace:
    folder = tmp_path_factory.mktemp("multisource")
    write_patients(folder / "support2", 500)
    (folder / "files").mkdir()
    write_hospital(folder / "support2", folder / "files")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(rows, "made_sources", lambda name, raw: folder / "files")
        made = Workspace(load_recipe("multisource", SMALL), folder / "data", Console(quiet=True))
        assert len(made.dataset) == 500
    distill.run(made)
    fuse.run(made)
    return made


def has(ws: Workspace, name: str, split: str) -> np.ndarray:
    """Which rows of a split have the source of a teacher's name: bool [N]."""
    return ws.dataset.presence[ws.plan.splits[split].ids, ws.dataset.sources.index(name)]


def test_teachers_of_a_source_learn_from_rows_that_have_it(ws):
    train = ws.plan.splits["train"]
    for name in ONE_SOURCE:
        shown = teachers.shown_labels(ws, ws.recipe.find("teacher", name))
        assert (shown[~has(ws, name, "train")] == -1).all()
        assert np.array_equal(shown[has(ws, name, "train")], train.labels[has(ws, name, "train")])
    assert np.array_equal(teachers.shown_labels(ws, ws.recipe.find("teacher", "joined")), train.labels)
    assert not has(ws, "notes", "train").all()


@pytest.mark.parametrize("split", ["train", "calibration", "test"])
def test_teachers_are_silent_on_rows_that_lack_their_source_and_on_no_others(ws, split):
    for name in (*ONE_SOURCE, "joined"):
        store = open_teacher(ws.store_folder(name))
        speaks = are_speaking(store.logits(split, 0).float()).numpy()
        expected = np.ones(len(speaks), bool) if name == "joined" else has(ws, name, split)
        assert np.array_equal(speaks, expected), name


def test_targets_give_no_weight_to_who_is_silent(ws):
    for name in ("rule", "learned", "network"):
        store = open_targets(ws.target_folder(ws.recipe.find("fusion", name)))
        weights = np.asarray(store.read("train", "weights"), np.float32)
        known = np.stack([has(ws, teacher, "train") for teacher in ONE_SOURCE], axis=1)
        assert (weights[~known] == 0).all()
        np.testing.assert_allclose(weights.sum(1), 1, atol=2e-3)
        if name == "rule":
            np.testing.assert_allclose(weights, known / known.sum(1, keepdims=True), atol=1e-3)


def test_a_silent_teacher_repeats_itself_when_it_is_asked_again(ws, capsys):
    folder = ws.store_folder("notes")
    assert verify.run(folder, ws=ws, as_json=True) == 0
    assert json.loads(capsys.readouterr().out)["faults"] == []


def test_models_read_their_sources(ws):
    for entry, names in {"cheap": {"admissions"}, "all": set(ONE_SOURCE)}.items():
        samples = ws.samples(ws.recipe.find("student", entry).reads)
        read = {
            name.split(" ")[0].split(".")[1] if name.startswith("has.") else name.split(".")[0]
            for name in samples.names
        }
        assert read == names


def test_nothing_missing_is_what_was_stored(ws):
    labels = torch.from_numpy(ws.plan.splits["test"].labels)
    for said in said_without(ws, ()):
        if said.kind == "teacher":
            stored = open_teacher(ws.store_folder(said.name)).logits("test", 0).float().log_softmax(-1)
        elif said.kind == "fusion":
            stored = open_targets(ws.target_folder(ws.recipe.find("fusion", said.name))).log_probs("test").float()
        else:
            continue
        torch.testing.assert_close(said.log_probs.exp(), stored.exp(), atol=2e-3, rtol=0)
    students = {(s.name, s.seed): s.log_probs for s in said_without(ws, ()) if s.kind == "student"}
    for entry in ws.recipe.students:
        (job,) = (job for job in runs(ws, entry) if job.is_own)
        metrics = json.loads((folder_of(ws, job) / "manifest.json").read_text())["metrics"]["test"]
        accuracy = (students[entry.name, 0].argmax(-1) == labels).double().mean().item()
        assert accuracy == pytest.approx(metrics["accuracy"], abs=0.011)  # answers are kept in half precision


def test_what_is_missing_silences_its_teacher_and_nobody_else(ws):
    before = {(said.kind, said.name, said.seed): said.log_probs for said in said_without(ws, ())}
    after = {(said.kind, said.name, said.seed): said.log_probs for said in said_without(ws, ("laboratory",))}
    assert not are_speaking(after["teacher", "laboratory", 0]).any()
    changed = {
        name for kind, name, seed in before if not torch.equal(before[kind, name, seed], after[kind, name, seed])
    }
    unchanged = {"admissions", "vitals", "notes", "cheap"}
    assert unchanged & changed == set()
    assert {"laboratory", "joined", "rule", "learned", "product", "network", "model", "everyone", "all"} <= changed


def test_every_set_of_sources_but_the_records_own_may_be_missing(ws):
    assert optional_sources(ws) == ["laboratory", "vitals", "notes"]
    assert [len(missing) for missing in subsets(optional_sources(ws))] == [0, 1, 1, 1, 2, 2, 2, 3]


def test_who_is_silent_is_right_as_often_as_chance():
    log_probs = torch.tensor([[0.7, 0.2, 0.1], [1 / 3, 1 / 3, 1 / 3], [0.4, 0.4, 0.2], [0.4, 0.4, 0.2]]).log()
    np.testing.assert_allclose(is_right(log_probs, np.array([0, 2, 1, 2])), [1, 1 / 3, 0.5, 0])
    assert np.isnan(is_right(log_probs, np.array([0, -1, 1, 2])))[1]


# -- what a recipe may say --------------------------------------------------------------------------------------------

TEXT = (SHIPPED / "multisource.toml").read_text()


@pytest.mark.parametrize(
    ("old", "new", "told"),
    [
        ('key = "patient"', "", r"data\.key: missing; expected the column that all sources share; add it"),
        ('label = "admissions.diagnosis"', "", r"data\.label: missing; expected the column of classes"),
        ('key = "patient"', 'key = "patient"\nfolder = "x"', r"data\.folder: found 'x' beside \[\[source\]\]"),
        ('key = "patient"', 'key = "patient"\nsize = 8', r"data\.size: found 8; expected it only of pictures"),
        ('name = "support2-sources"', 'name = "support2"', r"data\.name: found 'support2' beside \[\[source\]\]"),
        ('table = "results"', "", r"source\.laboratory: found neither; expected table or query of its database"),
        ('table = "results"', 'table = "r"\nquery = "q"', r"source\.laboratory: found table and query; expected"),
        ('sort = "entry"', 'table = "x"', r"source\.admissions\.table: found 'x'; expected it only of a SQLite"),
        ('name = "vitals"\nfile', 'name = "has"\nfile', r"source\.has: found that name; expected another"),
        ('name = "vitals"\nfile', 'name = "a.b"\nfile', r"source\.a\.b\.name: found 'a\.b'; expected:"),
        ('name = "vitals"\nfile', 'name = "notes"\nfile', r"source\.notes: found 2 of that name"),
        (
            "age = [18, 110]",
            "age = [110, 18]",
            r"source\.admissions\.outliers\.age: found \[110, 18\]; expected \[least",
        ),
        (
            "age = [18, 110]",
            "age = [18]",
            r"source\.admissions\.outliers\.age: found \[18\]; expected: List should have",
        ),
        (
            'duplicates = "last"',
            'duplicates = "latest"',
            r"source\.admissions\.duplicates: unknown rule 'latest'.*'last'",
        ),
        ('heart_rate = "median"', 'heart_rate = "meidan"', r"aggregate\.heart_rate: unknown rule 'meidan'.*'median'"),
        ('duplicates = "last"', 'duplicate = "last"', r"source\.admissions\.duplicate: unknown key.*'duplicates'"),
        (
            "plus = -32.0",
            "plsu = -32.0",
            r"source\.vitals\.convert\.\[0\]\.plsu: unknown key 'plsu'.*did you mean 'plus'",
        ),
        (
            'names = "test"',
            'name = "test"',
            r"source\.laboratory\.pivot\.name: unknown key 'name'.*did you mean 'names'",
        ),
        ('weights = "mean"', 'weights = "maen"', r"fusion\.rule: .*unknown strategy that weighs .*'maen'.*'mean'"),
    ],
)
def test_a_mistake_is_told_with_its_place(tmp_path, old, new, told):
    assert old in TEXT
    (tmp_path / "own.toml").write_text(TEXT.replace(old, new, 1))
    with pytest.raises(StillroomError, match=told):
        load_recipe(str(tmp_path / "own.toml"))


def test_sources_and_their_key_go_together(tmp_path):
    path = tmp_path / "own.toml"
    path.write_text((SHIPPED / "diagnosis.toml").read_text().replace("[data]", '[data]\nkey = "x"'))
    with pytest.raises(StillroomError, match=r"data\.key: found 'x'; expected it only with \[\[source\]\]; remove it"):
        load_recipe(str(path))
    path.write_text((SHIPPED / "diagnosis.toml").read_text().replace('"support2"', '"support2-sources"'))
    with pytest.raises(StillroomError, match=r"source: found none with data\.name 'support2-sources'; expected one"):
        load_recipe(str(path))


def test_sources_of_ones_own_lie_where_their_files_say(ws, tmp_path, monkeypatch):
    files = Path(ws.root).parent / "files"
    text = TEXT.replace('name = "support2-sources"', "# nothing", 1)
    for name in ("admissions.csv", "laboratory.sqlite", "vitals.jsonl", "notes.txt"):
        text = text.replace(f'"{name}"', f'"{files / name}"')
    (tmp_path / "own.toml").write_text(text)
    own = Workspace(load_recipe(str(tmp_path / "own.toml"), SMALL), tmp_path, Console(quiet=True))
    assert own.dataset.fingerprint == ws.dataset.fingerprint
    assert own.dataset.name == "admissions+laboratory+vitals+notes"
