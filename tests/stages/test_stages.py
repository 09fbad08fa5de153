"""The main job on a few hundred real pictures: what is made, what is reused, what survives an interruption."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from few import OWN_TEACHER, ROOT, contents, settle, workspace

from pipeline.errors import StillroomError
from pipeline.lineage import read_manifest
from stages import distill, fuse, gc, logits, report, runs, status, teachers, verify


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A home folder in which the whole recipe has run."""
    home = tmp_path_factory.mktemp("home")
    settle(home)
    sys.path.insert(0, str(home))
    ws = workspace(home)
    distill.run(ws)
    report.run(ws)
    yield home, ws
    sys.path.remove(str(home))


@pytest.fixture
def home(made, tmp_path):
    """A copy of it, to spoil."""
    return Path(shutil.copytree(made[0], tmp_path / "home", symlinks=True))


def test_first_run_makes_everything_and_teachers_answer_once_a_row(made):
    home, ws = made
    rows = 400 * 2 + 100 + 200
    assert ws.teacher_forwards == 3 * rows
    assert len(list((home / "data" / "students").iterdir())) == 2 * 4 + 1
    assert len(list((home / "data" / "targets").iterdir())) == 4  # weighted, mean, uniform_mean, best_single


def test_second_run_does_nothing(home):
    ws = workspace(home)
    distill.run(ws)
    report.run(ws)
    assert (ws.done, ws.teacher_forwards) == ([], 0)


def test_another_student_reuses_every_store(home):
    ws = workspace(home, "student.tiny.width=10", "student.tiny.baselines=false")
    distill.run(ws, student="tiny")
    assert ws.teacher_forwards == 0
    assert {Path(path).parent.name for path in ws.done} == {"students"}
    for path in ws.done:
        assert read_manifest(Path(path)).details["teacher_forwards"] == 0


def test_changing_one_teacher_dumps_only_that_one_again(home):
    ws = workspace(home, "teacher.conv.epochs=3")
    logits.run(ws)
    assert [Path(path).parent.name + "/" + Path(path).name.split("-")[0] for path in ws.done] == [
        "teachers/conv",
        "logits/conv",
    ]


def test_changing_only_the_fusion_fuses_only(home):
    ws = workspace(home, "fusion.weighted.tau=1.0")
    fuse.run(ws)
    assert [Path(path).parent.name for path in ws.done] == ["targets"]
    assert ws.teacher_forwards == 0


def test_distill_needs_no_teacher_neither_weights_nor_code(home):
    shutil.rmtree(home / "data" / "teachers")
    (home / "own_teacher.py").unlink()
    script = (
        "import sys; from stages.__main__ import app\n"
        "sys.argv = ['stillroom', 'distill', 'few.toml', '--student', 'tiny', '--set', 'student.tiny.width=9']\n"
        "try: app()\n"
        "except SystemExit as end: assert not end.code, end.code\n"
        "code = ('pipeline.teachers', 'sklearn.naive_bayes', 'own_teacher')\n"
        "found = [name for name in sys.modules if name.startswith(code)]\n"
        "assert not found, found\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], cwd=home, capture_output=True, text=True, env={"PYTHONPATH": str(ROOT)}
    )
    assert done.returncode == 0, done.stderr
    assert "teacher_forwards: 0" in done.stdout
    assert not (home / "data" / "teachers").exists()


def test_baselines_come_by_themselves_and_see_as_many_steps(made):
    _, ws = made
    entry = ws.recipe.find("student", "tiny")
    jobs = list(runs.runs(ws, entry))
    assert {job.role for job in jobs} == {"student", "hard_labels", "best_single", "uniform_mean"}
    assert len({read_manifest(runs.folder_of(ws, job)).details["steps"] for job in jobs}) == 1


def test_results_keep_the_contract(made):
    home, _ = made
    results = json.loads((home / "data" / "reports" / "few" / "results.json").read_text())
    assert results["recipe"] == "few"
    keys = {"name", "kind", "split", "seed", "params", "accuracy", "precision", "recall", "f1", "nll", "ece"}
    for row in results["rows"]:
        assert keys | {"seconds", "teacher_forwards"} <= row.keys()
        assert row["kind"] in ("teacher", "fusion", "student", "baseline")
        assert row["split"] == "test"
        assert 0 <= row["accuracy"] <= 1
        assert row["kind"] == "teacher" or row["teacher_forwards"] == 0
    count = {(row["kind"], row["name"]): 0 for row in results["rows"]}
    for row in results["rows"]:
        count[row["kind"], row["name"]] += 1
    assert count["student", "tiny"] == 2
    assert [row["name"] for row in results["rows"] if row["kind"] == "fusion"] == ["weighted", "mean"]
    assert (
        count["baseline", "hard_labels"] == count["baseline", "best_single"] == count["baseline", "uniform_mean"] == 2
    )


class Killed(BaseException):
    """Stands for a signal."""


def test_logits_killed_at_any_block_continue_and_end_byte_for_byte_the_same(made, home, monkeypatch):
    ws = workspace(home)
    entry = ws.recipe.find("teacher", "own")
    folder = ws.teacher_store_folder(entry)
    whole = contents(folder)
    shutil.rmtree(folder)
    from pipeline.dump import asking

    asked, answer = [], asking.answer
    for kill_at in (1, 2, 3):

        def dies(teacher, replayer, block, encoding, **options):
            if len(asked) == kill_at:  # noqa: B023
                raise Killed
            asked.append(block)
            return answer(teacher, replayer, block, encoding, **options)

        monkeypatch.setattr(asking, "answer", dies)
        with pytest.raises(Killed):
            logits.ensure(workspace(home), entry)
        assert read_manifest(folder) is None
    monkeypatch.setattr(asking, "answer", answer)
    resumed = workspace(home)
    logits.ensure(resumed, entry)
    assert resumed.teacher_forwards < 1100  # what was committed was not asked again
    assert contents(folder) == whole


@pytest.mark.parametrize("stage", ["teachers", "distill"])
def test_training_killed_mid_epoch_continues_and_ends_the_same(home, monkeypatch, stage):
    from safetensors.torch import load_file

    from pipeline import train

    ws = workspace(home)
    if stage == "teachers":
        entry = ws.recipe.find("teacher", "conv")
        folder, again = ws.teacher_folder(entry), lambda: teachers.ensure(workspace(home), entry)
    else:
        job = next(runs.runs(ws, ws.recipe.find("student", "tiny")))
        folder, again = runs.folder_of(ws, job), lambda: distill.ensure(workspace(home), job)
    whole = load_file(folder / "weights.safetensors")
    shutil.rmtree(folder)
    save, step, taken = train.Run.save, train.Run.step, []

    def every_step(self, path, loader):
        save(self, path, loader)

    def dies(self, batch):
        if len(taken) == 3:
            raise Killed
        taken.append(1)
        step(self, batch)

    monkeypatch.setattr(train.Run, "save", every_step)
    for loop in (train.fit, train.fit_together):
        monkeypatch.setattr(loop, "__kwdefaults__", {**loop.__kwdefaults__, "checkpoint_seconds": 0.0})
    monkeypatch.setattr(train.Run, "step", dies)
    with pytest.raises(Killed):
        again()
    assert (folder / "checkpoint.pt").exists()
    monkeypatch.setattr(train.Run, "step", step)
    again()
    assert not (folder / "checkpoint.pt").exists()
    resumed = load_file(folder / "weights.safetensors")
    assert all((whole[name] == resumed[name]).all() for name in whole)


def test_weights_changed_by_hand_are_refused(home):
    ws = workspace(home)
    entry = ws.recipe.find("teacher", "conv")
    shutil.rmtree(ws.teacher_store_folder(entry))
    path = ws.teacher_folder(entry) / "weights.safetensors"
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    with pytest.raises(StillroomError, match=r"weights\.safetensors: missing or other bytes than its manifest says"):
        logits.ensure(ws, entry)


def test_a_teacher_that_answers_with_other_classes_is_refused(home):
    (home / "nine_classes.py").write_text(
        OWN_TEACHER.replace("num_classes)", "9)").replace("def build(9", "def build(num_classes")
    )
    sys.path.insert(0, str(home))
    ws = workspace(home, "teacher.own.model=nine_classes:build")
    with pytest.raises(StillroomError, match=r"teacher\.own: answers with 9 classes; expected 10"):
        teachers.run(ws)
    sys.path.remove(str(home))


def test_another_picture_is_another_run(home):
    """One changed pixel gives another fingerprint, so nothing made from the old data is taken for the new."""
    ws, other = workspace(home), workspace(home)
    other.dataset.pixels = other.dataset.pixels.clone()
    other.dataset.pixels[3, 0, 5, 5] ^= 1
    import numpy as np

    from pipeline.datasets.digests import digest_arrays

    other.dataset.digest_all = lambda: digest_arrays(np.asarray(other.dataset.pixels))
    other.dataset.__dict__.pop("_digests", None)
    assert other.plan.fingerprint != ws.plan.fingerprint
    assert other.teacher_store_folder(other.recipe.teacher[0]) != ws.teacher_store_folder(ws.recipe.teacher[0])


def test_verify_says_sound_unsound_and_not_a_store(home, capsys):
    ws = workspace(home)
    store = ws.teacher_store_folder(ws.recipe.teacher[0])
    assert verify.run(store, ws=None, as_json=False) == 0
    assert verify.run(store, ws=ws, as_json=False) == 0
    assert verify.run(home / "data", ws=None, as_json=False) == 0
    chunk = next(path for path in (store / "train" / "logits" / "c").rglob("*") if path.is_file())
    content = bytearray(chunk.read_bytes())
    content[100] ^= 1
    chunk.write_bytes(content)
    capsys.readouterr()
    assert verify.run(store, ws=None, as_json=False) == 1
    assert f"{store}: logits train view 0 rows 0-400: crc32c" in capsys.readouterr().out
    assert verify.run(store, ws=None, as_json=True) == 1
    assert json.loads(capsys.readouterr().out)["faults"][0]["array"] == "logits"
    assert verify.run(home / "data" / "students", ws=None, as_json=False) == 2


def test_replay_notices_a_teacher_that_answers_otherwise(home):
    from safetensors.torch import load_file, save_file

    from pipeline.lineage import Manifest, file_digest

    ws = workspace(home)
    entry = ws.recipe.find("teacher", "own")
    folder = ws.teacher_folder(entry)
    weights = load_file(folder / "weights.safetensors")
    save_file({name: -value for name, value in weights.items()}, folder / "weights.safetensors")
    manifest = read_manifest(folder)
    forged = {**vars(manifest), "digests": {"weights.safetensors": file_digest(folder / "weights.safetensors")}}
    Manifest(**forged).write(folder)
    assert verify.run(ws.teacher_store_folder(entry), ws=ws, as_json=False) == 1


def test_status_and_gc_know_what_belongs_to_the_recipe(home, capsys):
    status.run(workspace(home), as_json=True)
    artefacts = json.loads(capsys.readouterr().out)["artefacts"]
    assert {row["state"] for row in artefacts} == {"finished"}
    changed = workspace(home, "teacher.conv.epochs=3")
    status.run(changed, as_json=True)
    states = [(row["kind"], row["name"], row["state"]) for row in json.loads(capsys.readouterr().out)["artefacts"]]
    assert ("teachers", "own", "finished") in states
    assert [name for kind, name, state in states if (kind, state) == ("teachers", "missing")] == ["conv"]
    assert [name for kind, name, state in states if (kind, state) == ("teachers", "stale")] == ["conv"]
    before = set((home / "data").glob("*/*"))
    gc.run([workspace(home)], delete=True)
    assert set((home / "data").glob("*/*")) == before
    gc.run([workspace(home, "student.other.width=13")], delete=False)
    assert set((home / "data").glob("*/*")) == before
    gc.run([workspace(home, "student.other.width=13")], delete=True)
    gone = before - set((home / "data").glob("*/*"))
    assert [path.name.rsplit("-", 1)[0] for path in gone] == ["other-s0"]


def test_a_teacher_without_mixed_views_is_the_one_that_the_plain_views_alone_make(home):
    mixing = ("views.count=3", 'views.mix={ kind = "mixup", views = 1 }')
    plain, without, with_mixed = (
        workspace(home, *mixing[: 2 * has_mixing], *own)
        for has_mixing, own in ((False, ()), (True, ("teacher.conv.mixed=false",)), (True, ()))
    )
    entries = [ws.recipe.teacher[0] for ws in (plain, without, with_mixed)]
    weights = [
        (teachers.ensure(ws, entry) / "weights.safetensors").read_bytes()
        for ws, entry in zip((plain, without, with_mixed), entries, strict=True)
    ]
    assert without.plan.plain == [0, 1]
    assert weights[0] == weights[1] != weights[2]


@pytest.mark.parametrize(("fusion", "rows_of_student"), [("mean", 400), ("labels", 120)])
def test_status_counts_an_epoch_of_a_network_and_a_single_pass_of_an_estimator(home, fusion, rows_of_student):
    network = """model = "mlp"\nwidth = 12\ndepth = 1\nfusion = "mean"\nepochs = 1"""
    estimator = f"""model = "sklearn.tree:DecisionTreeRegressor"\nfit_views = 2\nfusion = "{fusion}\""""
    recipe = (home / "few.toml").read_text()
    assert network in recipe
    (home / "few.toml").write_text(recipe.replace(network, estimator).replace("temperature = 2.0, alpha = 0.3", ""))
    ws = workspace(home)
    rows = {(wanted.kind, wanted.name): wanted.rows for wanted in status.wanted(ws)}
    assert rows["teachers", "conv"] == 2 * -(-120 // 32) * 32
    assert rows["teachers", "bayes"] == 120
    assert rows["students", "tiny-s0"] == 2 * -(-400 // 128) * 128
    assert rows["students", "other-s0"] == 2 * rows_of_student


def test_the_readmes_training_loop_runs_as_written(home, monkeypatch):
    import re

    code = re.search(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), re.S).group(1)
    monkeypatch.chdir(home)
    names: dict = {}
    exec(compile(code.replace("pool-", "weighted-"), "README.md", "exec"), names)  # its recipe names another fusion
    assert names["loader"].state_dict() == {"seed": 0, "epoch": 1, "step": 0}
    assert names["loss"].isfinite()
