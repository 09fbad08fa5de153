"""Teachers that know less and teachers trained in folds, on a few hundred real pictures, by recipe."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from few import contents, settle, workspace
from rich.console import Console

from pipeline.errors import StaleStoreError, StillroomError
from pipeline.lineage import fingerprint, read_manifest
from pipeline.store import open_teacher
from pipeline.views import Replayer
from stages import fuse, gc, logits, report, status, teachers, verify
from stages.load import load_recipe
from stages.recipe import training_config

BAYES = "teacher.bayes."


@pytest.fixture
def home(tmp_path, monkeypatch):
    settle(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    return tmp_path


def shown(home, *overrides, name="bayes"):
    ws = workspace(home, *overrides)
    return teachers.shown_labels(ws, ws.recipe.find("teacher", name)), ws


# -- teachers that know less ------------------------------------------------------------------------------------------


def test_teachers_without_the_new_keys_are_the_ones_they_were(home):
    ws = workspace(home)
    for entry in ws.recipe.teacher:
        keys = {"model", "epochs", "batch_size", "lr", "weight_decay", "warmup", "clip", "patience", "precision"}
        assert set(training_config(entry)) == {*keys, "fit_views", *entry.options}
    labels, _ = shown(home)
    assert np.array_equal(labels, ws.plan.splits["train"].labels)


def test_wrong_labels_make_another_teacher_of_the_same_plan(home):
    labels, ws = shown(home, f"{BAYES}wrong_labels=0.4")
    train = ws.plan.splits["train"]
    assert (labels != train.labels).sum() == 48  # of 120
    plain = workspace(home)
    assert ws.plan.fingerprint == plain.plan.fingerprint
    for entry, before in zip(ws.recipe.teacher, plain.recipe.teacher, strict=True):
        is_same = fingerprint(ws.teacher_config(entry)) == fingerprint(plain.teacher_config(before))
        assert is_same == (entry.name != "bayes")
    other, _ = shown(home, f"{BAYES}wrong_labels=0.4", f"{BAYES}seed=1")
    assert (labels != other).any()


@pytest.mark.parametrize("name", ["own", "bayes"])
def test_a_teacher_with_wrong_labels_knows_less_and_is_judged_by_right_ones(home, name):
    ws = workspace(home, f"teacher.{name}.wrong_labels=1.0", f"teacher.{name}.lr=0.01")
    folder = teachers.ensure(ws, ws.recipe.find("teacher", name))
    for split in ("calibration", "test"):
        shown = torch.cat([batch.labels for batch in ws.held_out(split)])
        assert np.array_equal(shown, ws.dataset.labels[ws.plan.splits[split].ids])
    accuracy = read_manifest(folder).metrics["calibration"]["accuracy"]
    assert accuracy < 0.15, "every label it saw was wrong, and calibration labels are not"


@pytest.mark.parametrize("name", ["own", "bayes"])
def test_a_teacher_without_classes_never_trains_on_their_rows(home, monkeypatch, name):
    seen = []
    batch = Replayer.batch

    def watched(self, split, view, positions):
        made = batch(self, split, view, positions)
        if split == "train":
            seen.extend(zip(positions.tolist(), made.labels.tolist(), strict=True))
        return made

    monkeypatch.setattr(Replayer, "batch", watched)
    ws = workspace(home, f'teacher.{name}.without_classes=["Sandal", "Bag"]')
    teachers.ensure(ws, ws.recipe.find("teacher", name))
    left_out = [ws.classes.index("Sandal"), ws.classes.index("Bag")]
    labels = ws.plan.splits["train"].labels
    assert {position for position, _ in seen} == set(np.flatnonzero((labels >= 0) & ~np.isin(labels, left_out)))
    assert all(labels[position] == label for position, label in seen)


def test_both_go_together(home):
    labels, ws = shown(home, f"{BAYES}wrong_labels=0.5", f'{BAYES}without_classes=["Sandal"]')
    train, sandal = ws.plan.splits["train"].labels, ws.classes.index("Sandal")
    left = (train >= 0) & (train != sandal)
    assert np.array_equal(labels >= 0, left)
    assert sandal not in labels
    assert (labels[left] != train[left]).sum() == round(0.5 * left.sum())


FAULTS = {
    'without_classes=["Sandals"]': r"teacher\.bayes\.without_classes: unknown class 'Sandals'; .* 'Sandal'",
    "without_classes=all": r"teacher\.bayes: found no train row of the classes \[\]; expected at least one",
    "one": r"teacher\.bayes\.wrong_labels: found 1 class to learn; expected two or more",
}


@pytest.mark.parametrize("fault", FAULTS)
def test_what_leaves_nothing_to_learn_is_told_before_any_teacher_is_trained(home, fault):
    classes = list(workspace(home).classes)
    overrides = {
        "without_classes=all": [f"{BAYES}without_classes={json.dumps(classes)}"],
        "one": [f"{BAYES}without_classes={json.dumps(classes[1:])}", f"{BAYES}wrong_labels=0.1"],
    }.get(fault, [BAYES + fault])
    ws = workspace(home, *overrides)
    with pytest.raises(StillroomError, match=FAULTS[fault]):
        teachers.run(ws)
    assert not (home / "data" / "teachers").exists()


@pytest.mark.parametrize("value", ["1.5", "-0.1", '"many"'])
def test_a_share_is_a_share(home, value):
    with pytest.raises(StillroomError, match=r"teacher\.bayes\.wrong_labels: found"):
        load_recipe(str(home / "few.toml"), [f"{BAYES}wrong_labels={value}"])


# -- folds ------------------------------------------------------------------------------------------------------------

FOLDS = 3
WITH_FOLDS = """
name = "few"
[data]
name = "fashion-mnist"
max_train = 500
max_test = 200
calibration = 0.2
labelled = 120
[views]
count = 2
transforms = [{ kind = "shift", pixels = 2 }]
[[teacher]]
name = "memory"
model = "sklearn.neighbors:KNeighborsClassifier"
n_neighbors = 1
fit_views = 2
[[teacher]]
name = "mlp"
model = "mlp"
width = 16
depth = 1
epochs = 15
[logits]
folds = 3
[[fusion]]
name = "held_out"
strategy = "weighted"
[[fusion]]
name = "out_of_fold"
strategy = "weighted"
fit_on = "out_of_fold"
[[fusion]]
name = "memory"
strategy = "weighted"
fit_on = "train"
honest = false
"""


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A home folder in which teachers with folds were dumped and fused, and what was said meanwhile."""
    home = tmp_path_factory.mktemp("folds")
    settle(home)
    (home / "few.toml").write_text(WITH_FOLDS)
    ws = workspace(home)
    ws.console = Console(record=True, width=200, quiet=False, file=(home / "said.txt").open("w"))
    fuse.run(ws)
    report.run(ws)
    return home, ws, ws.console.export_text()


@pytest.fixture
def folded(made, tmp_path):
    """A copy of it, to spoil."""
    return Path(shutil.copytree(made[0], tmp_path / "home", symlinks=True))


def names(ws, kind):
    return sorted(Path(path).name.rsplit("-", 1)[0] for path in ws.done if Path(path).parent.name == kind)


def test_each_teacher_is_also_trained_without_each_fold_and_answers_once_more_on_labelled_rows(made):
    _, ws, _ = made
    models = [f"{name}{fold}" for name in ("memory", "mlp") for fold in ("", *(f".fold{k}" for k in range(FOLDS)))]
    assert names(ws, "teachers") == sorted(models)
    assert ws.teacher_forwards == 2 * (400 * 2 + 100 + 200 + 120)


def test_rows_out_of_fold_are_answered_by_models_that_never_saw_them(made):
    _, ws, _ = made
    train = ws.plan.splits["train"]
    for entry in ws.recipe.teacher:
        store = open_teacher(ws.teacher_store_folder(entry))
        fold_of = store.read("out_of_fold", "fold")
        assert np.array_equal(fold_of, ws.fold_of)
        assert np.bincount(fold_of).tolist() == [40] * FOLDS
        assert np.array_equal(store.read("out_of_fold", "sample_ids"), train.ids[train.labelled])
        for fold in range(FOLDS):
            seen = np.flatnonzero(teachers.shown_labels(ws, entry, fold) >= 0)
            own = train.labelled[fold_of == fold]
            assert len(seen) == 80
            assert not set(seen) & set(own)
        labels = train.labels[train.labelled]
        remembered = (store.logits("train")[train.labelled].argmax(1).numpy() == labels).mean()
        honest = (store.logits("out_of_fold").argmax(1).numpy() == labels).mean()
        assert honest < remembered
        assert entry.name != "memory" or remembered == 1 > 0.85 > honest


def test_a_fold_model_resumes_and_is_trained_for_a_missing_store_alone(folded):
    ws = workspace(folded)
    logits.run(ws)
    assert (ws.done, ws.teacher_forwards) == ([], 0)
    for folder in (folded / "data" / "teachers").glob("*.fold*"):
        shutil.rmtree(folder)
    ws = workspace(folded)
    fuse.run(ws)
    assert ws.done == [], "a finished store needs none of its teachers"
    store = ws.teacher_store_folder(ws.recipe.find("teacher", "mlp"))
    before = contents(store)
    shutil.rmtree(store)
    ws = workspace(folded)
    logits.run(ws)
    assert names(ws, "teachers") == [f"mlp.fold{k}" for k in range(FOLDS)]
    assert contents(store) == before


def test_a_dump_killed_out_of_fold_goes_on_with_the_same_bytes(folded, monkeypatch):
    from pipeline.dump import asking

    ws = workspace(folded)
    entry = ws.recipe.find("teacher", "memory")
    folder = ws.teacher_store_folder(entry)
    whole, answer = contents(folder), asking.answer
    shutil.rmtree(folder)

    def dies(teacher, replayer, block, *rest, **options):
        if block.split == "out_of_fold":
            raise KeyboardInterrupt
        return answer(teacher, replayer, block, *rest, **options)

    monkeypatch.setattr(asking, "answer", dies)
    with pytest.raises(KeyboardInterrupt):
        logits.ensure(ws, entry)
    monkeypatch.setattr(asking, "answer", answer)
    ws = workspace(folded)
    logits.ensure(ws, entry)
    assert ws.teacher_forwards == 120
    assert contents(folder) == whole


def test_verify_replays_rows_out_of_fold_and_a_damaged_block_is_made_again(folded, capsys):
    ws = workspace(folded)
    store = ws.teacher_store_folder(ws.recipe.find("teacher", "mlp"))
    whole = contents(store)
    assert verify.run(store, ws=ws, as_json=False) == 0
    (chunk,) = (path for path in (store / "out_of_fold" / "logits" / "c").rglob("*") if path.is_file())
    content = bytearray(chunk.read_bytes())
    content[100] ^= 1
    chunk.write_bytes(content)
    capsys.readouterr()
    assert verify.run(store, ws=ws, as_json=False) == 1
    assert f"{store}: logits out_of_fold view 0 rows 0-120: crc32c" in capsys.readouterr().out
    logits.run(ws)
    assert ws.teacher_forwards == 120
    assert contents(store) == whole


def test_replay_notices_a_fold_model_that_answers_otherwise(folded, capsys):
    from safetensors.torch import load_file, save_file

    from pipeline.lineage import Manifest, file_digest

    ws = workspace(folded)
    entry = ws.recipe.find("teacher", "mlp")
    folder = ws.teacher_folder(entry, 1)
    path = folder / "weights.safetensors"
    save_file({name: -value for name, value in load_file(path).items()}, path)
    Manifest(**{**vars(read_manifest(folder)), "digests": {path.name: file_digest(path)}}).write(folder)
    assert verify.run(ws.teacher_store_folder(entry), ws=ws, as_json=False) == 1
    assert "logits of out_of_fold view 0 row" in capsys.readouterr().out
    with pytest.raises(StaleStoreError, match=r"made by another teacher: weights\.fold1/weights\.safetensors"):
        logits.run(ws)


def test_status_and_gc_count_fold_models_in(folded, capsys):
    status.run(workspace(folded), as_json=True)
    artefacts = json.loads(capsys.readouterr().out)["artefacts"]
    assert {row["state"] for row in artefacts} == {"finished"}
    assert {row["name"] for row in artefacts if row["kind"] == "teachers"} >= {"memory.fold0", "mlp.fold2"}
    before = set((folded / "data").glob("*/*"))
    gc.run([workspace(folded)], delete=True)
    assert set((folded / "data").glob("*/*")) == before


def test_without_folds_everything_is_called_what_it_was(made, home):
    _, ws, _ = made
    (home / "few.toml").write_text(
        WITH_FOLDS[: WITH_FOLDS.index('[[fusion]]\nname = "out_of_fold"')].replace("folds = 3", "")
    )
    plain = workspace(home)
    assert plain.plan.fingerprint == ws.plan.fingerprint
    for entry in plain.recipe.teacher:
        assert plain.teacher_config(entry) == ws.teacher_config(entry)
        config = ws.teacher_store_config(entry)
        assert config.pop("folds") == FOLDS
        assert plain.teacher_store_config(entry) == config
    (fusion,) = plain.recipe.fusion
    assert not {"fit_on", "honest"} & plain.target_config(fusion).keys()


def test_what_was_fitted_on_train_rows_says_so_everywhere(made):
    home, ws, said = made
    weights = {}
    for fusion in ws.recipe.fusion:
        manifest = read_manifest(ws.target_folder(fusion))
        weights[fusion.name] = manifest.details["fitted"]["weights"][0]
        is_honest = fusion.name != "memory"
        assert manifest.details.get("honest", True) is is_honest
        assert (f"fusion {fusion.name} (fitted on training rows)" in said) is not is_honest
        assert (f"{fusion.name}: warning: fitted on training rows" in said) is not is_honest
    assert weights["memory"] > max(weights["held_out"], weights["out_of_fold"])
    page = home / "data" / "reports" / "few"
    assert "memory (fitted on training rows)" in (page / "index.html").read_text()
    rows = json.loads((page / "results.json").read_text())["rows"]
    assert [row["name"] for row in rows if not row.get("honest", True)] == ["memory"]


RECIPE_FAULTS = {
    "fusion.held_out.fit_on=train": r"fusion\.held_out\.fit_on: found 'train', .* honest = false",
    "fusion.held_out.fit_on=out_fold": r"fusion\.held_out\.fit_on: unknown rows 'out_fold'.*'out_of_fold'",
    "logits.folds=1": r"logits\.folds: found 1; expected",
    "logits.folds=256": r"logits\.folds: found 256; expected",
}


@pytest.mark.parametrize("fault", RECIPE_FAULTS)
def test_a_recipe_is_told_what_cannot_be(made, fault):
    with pytest.raises(StillroomError, match=RECIPE_FAULTS[fault]):
        workspace(made[0], fault)


def test_fitting_out_of_fold_without_folds_is_told_before_anything_runs(made, tmp_path):
    (tmp_path / "few.toml").write_text(WITH_FOLDS.replace("folds = 3", ""))
    with pytest.raises(
        StillroomError, match=r"fusion\.out_of_fold\.fit_on: found 'out_of_fold' without folds; expected"
    ):
        load_recipe(str(tmp_path / "few.toml"))


def test_more_folds_than_labelled_rows_are_told_before_any_teacher_is_trained(home):
    (home / "few.toml").write_text(WITH_FOLDS)
    with pytest.raises(
        StillroomError, match=r"logits\.folds: found 200; expected at most 120, the labelled train rows"
    ):
        teachers.run(workspace(home, "logits.folds=200"))
    assert not (home / "data" / "teachers").exists()


def test_a_budget_counts_rows_out_of_fold(made):
    from stages import budget

    _, ws, _ = made
    kept, size = budget.asked_of(ws.recipe), budget._size(ws)
    samples = {name: count for name, count in size.samples.items() if name != "out_of_fold"}
    promised = size.num_bytes(kept) - replace(size, samples=samples).num_bytes(kept)
    folders = [ws.teacher_store_folder(entry) / "out_of_fold" for entry in ws.recipe.teacher]
    chunks = [path for folder in folders for path in folder.rglob("c/**/*") if path.is_file()]
    assert len(chunks) == 2 * 5
    assert sum(path.stat().st_size for path in chunks) == promised
