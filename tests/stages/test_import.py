"""Predictions and ONNX files from elsewhere go the whole way: import, store, fuse, distill, report, verify."""

import json
import shutil
from pathlib import Path

import numpy as np
import onnx
import pandas as pd
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper
from PIL import Image
from rich.console import Console
from typer.testing import CliRunner

from pipeline.errors import StillroomError
from pipeline.store import open_teacher
from pipeline.teachers import Predictions
from stages import distill, importing, logits, report, teachers, verify
from stages.__main__ import app
from stages.load import load_recipe
from stages.workspace import Workspace

CLASSES = ("one", "three", "two")  # as folders are sorted
STUDENT = """
[[fusion]]
name = "mean"
strategy = "mean"
[[student]]
name = "tiny"
model = "mlp"
width = 8
depth = 1
fusion = "mean"
epochs = 2
batch_size = 16
seeds = [0]
baselines = false
"""
TRAINED = """
[[teacher]]
name = "own"
model = "mlp"
width = 4
epochs = 1
"""
ONNX = """
[[teacher]]
name = "net"
model = "onnx"
file = "{file}"
"""
PICTURES = """
name = "pictures"
[data]
folder = "{folder}"
test = 0.3
calibration = 0.3
[views]
count = 1
"""
RECORDS = """
name = "records"
[data]
table = "{table}"
label = "kind"
test = 0.3
calibration = 0.3
"""


def workspace(home: Path, name: str, *overrides: str, console: Console | None = None) -> Workspace:
    return Workspace(load_recipe(str(home / f"{name}.toml"), overrides), home / "data", console or Console(quiet=True))


def said_by(home: Path, name: str, *words, overrides=(), **options) -> tuple[Path, str]:
    """Import into a recipe; return the file and what was printed."""
    console = Console(record=True, width=200, file=open("/dev/null", "w"))  # noqa: SIM115
    path = importing.run(workspace(home, name, *overrides, console=console), *words, **options)
    return path, console.export_text()


def printed_lines(text: str) -> str:
    """The recipe's lines that an import printed."""
    return text[text.index("[[teacher]]") :]


def make_answers(labels: np.ndarray, right: float = 0.8) -> np.ndarray:
    """Probabilities float64 [N, C] that are right on most rows."""
    draws = np.random.default_rng(7)
    scores = draws.normal(0, 1, (len(labels), len(CLASSES)))
    scores[np.arange(len(labels)), labels] += 6 * (draws.random(len(labels)) < right)
    scores = np.exp(scores)
    return scores / scores.sum(1, keepdims=True)


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    """Sixty pictures of three classes, and a table of ninety records; for reading only, but for what is imported."""
    home, draws = tmp_path_factory.mktemp("home"), np.random.default_rng(0)
    for number, name in enumerate(("one", "two", "three")):
        (home / "pictures" / name).mkdir(parents=True)
        for index in range(20):
            pixels = draws.integers(0, 60, (6, 6))
            pixels[2 * number : 2 * number + 2] += 120
            Image.fromarray(pixels.astype(np.uint8)).save(home / "pictures" / name / f"{index}.png")
    kinds = draws.integers(0, 3, 90)
    table = {"size": kinds + draws.normal(0, 0.5, 90), "weight": draws.normal(0, 1, 90), "colour": kinds % 2}
    pd.DataFrame({**table, "kind": [CLASSES[kind] for kind in kinds]}).to_csv(home / "records.csv", index=False)
    (home / "pictures.toml").write_text(PICTURES.format(folder=home / "pictures") + TRAINED + STUDENT)
    (home / "records.toml").write_text(RECORDS.format(table=home / "records.csv") + TRAINED + STUDENT)
    return home


@pytest.fixture(scope="module")
def labels(home):
    """The labels of both data sets by recipe, int64 [N]."""
    return {name: workspace(home, name).dataset.labels for name in ("pictures", "records")}


def write_onnx(path: Path, inputs: tuple[int, ...]) -> np.ndarray:
    """A linear model of flattened inputs as an ONNX file; returns its weights."""
    weights = np.random.default_rng(3).normal(0, 0.3, (int(np.prod(inputs)), 3)).astype(np.float32)
    graph = helper.make_graph(
        [helper.make_node("Flatten", ["x"], ["f"]), helper.make_node("MatMul", ["f", "w"], ["y"])],
        "linear",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", *inputs])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", 3])],
        [numpy_helper.from_array(weights, "w")],
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9), path)
    return weights


# -- the whole way ----------------------------------------------------------------------------------------------------


def check_whole_way(home: Path, name: str, answers: np.ndarray, shape: tuple[int, ...], lines: str) -> Workspace:
    """Run a recipe whose teachers are a trained one, an imported one and an ONNX file, and look at each stage."""
    weights = write_onnx(home / f"{name}.onnx", shape)
    entries = TRAINED + lines + ONNX.format(file=home / f"{name}.onnx")
    text = (home / f"{name}.toml").read_text().replace(TRAINED, entries)
    (home / f"{name}-whole.toml").write_text(text)
    ws = workspace(home, f"{name}-whole")
    distill.run(ws)
    report.run(ws)

    ids = ws.plan.splits["test"].ids
    store = open_teacher(ws.store_folder("colleague"))
    expected = np.log(answers[ids])
    found = store.logits("test", 0).double().log_softmax(-1).numpy()
    np.testing.assert_allclose(found, expected, atol=0.02)  # fp16
    inputs = ws.replayer.batch("test", 0, np.arange(len(ids))).inputs.flatten(1).numpy()
    net = torch.from_numpy(inputs @ weights).double().log_softmax(-1)
    said = open_teacher(ws.store_folder("net")).logits("test", 0).double().log_softmax(-1)
    np.testing.assert_allclose(said, net, atol=0.02)

    rows = json.loads((ws.root / "reports" / ws.recipe.name / "results.json").read_text())["rows"]
    teachers = {row["name"]: row for row in rows if row["kind"] == "teacher"}
    assert set(teachers) == {"own", "colleague", "net"}
    right = float(np.mean(answers[ids].argmax(1) == ws.plan.splits["test"].labels))
    assert teachers["colleague"]["accuracy"] == pytest.approx(right)
    assert teachers["colleague"]["params"] is None
    assert {"fusion", "student"} <= {row["kind"] for row in rows}

    again = workspace(home, f"{name}-whole")
    distill.run(again)
    assert (again.done, again.teacher_forwards) == ([], 0)
    for each in ("colleague", "net"):
        assert verify.run(ws.store_folder(each), ws=again, as_json=False) == 0
    return ws


def test_pictures_learn_from_a_colleague_and_an_onnx_file(home, labels):
    answers = make_answers(labels["pictures"])
    np.save(home / "answers.npy", answers)
    path, text = said_by(home, "pictures", "colleague", home / "answers.npy")
    assert path.parent == home / "data" / "raw" / "predictions"
    assert "columns taken in the data set's order of classes: one, three, two" in text
    assert "warning" not in text
    ws = check_whole_way(home, "pictures", answers, (1, 6, 6), printed_lines(text))
    calibration = ws.plan.splits["calibration"]
    right = np.mean(answers[calibration.ids].argmax(1) == calibration.labels)
    assert f"calibration accuracy {right:.3f}" in text


def test_records_learn_from_a_table_with_ids_and_classes_in_another_order(home, labels):
    answers = make_answers(labels["records"])
    shuffled = np.random.default_rng(5).permutation(90)
    columns = {name: answers[shuffled, CLASSES.index(name)] for name in ("two", "one", "three")}
    pd.DataFrame({"row": shuffled, **columns}).to_csv(home / "answers.csv", index=False)
    _, text = said_by(home, "records", "colleague", home / "answers.csv", ids="row")
    assert "columns put in the data set's order of classes: one, three, two" in text
    ws = workspace(home, "records")
    check_whole_way(home, "records", answers, ws.shape(None), printed_lines(text))


# -- what a teacher is made from --------------------------------------------------------------------------------------


@pytest.fixture
def imported(home, labels, tmp_path):
    """The recipe of pictures with an imported teacher alone: the text of its lines, in a home of its own."""
    own = Path(shutil.copytree(home, tmp_path / "home", ignore=shutil.ignore_patterns("data")))
    np.save(own / "answers.npy", make_answers(labels["pictures"]))
    (own / "pictures.toml").write_text(PICTURES.format(folder=own / "pictures") + TRAINED + STUDENT)
    _, text = said_by(own, "pictures", "colleague", own / "answers.npy")
    recipe = PICTURES.format(folder=own / "pictures") + printed_lines(text) + STUDENT
    (own / "alone.toml").write_text(recipe)
    return own


def test_a_teacher_is_made_from_its_files_bytes_not_from_their_place(imported):
    ws = workspace(imported, "alone")
    logits.run(ws)
    entry = ws.recipe.teacher[0]
    folder = ws.teacher_folder(entry)
    moved = shutil.move(entry.options["file"], imported / "moved.safetensors")
    again = workspace(imported, "alone", f'teacher.colleague.file="{moved}"')
    logits.run(again)
    assert (again.done, again.teacher_forwards) == ([], 0)
    said = Predictions.read(Path(moved))
    other = Predictions(said.ids, said.digests, said.logits[:, ::-1], said.classes)
    (imported / "moved.safetensors").write_bytes(other.to_bytes())
    changed = workspace(imported, "alone", f'teacher.colleague.file="{moved}"')
    assert changed.teacher_folder(changed.recipe.teacher[0]) != folder
    with pytest.raises(StillroomError, match=r"colleague.file: found no file .*; expected its predictions"):
        workspace(imported, "alone").teacher_config(entry)


def test_the_copy_that_was_kept_is_the_one_that_answers_and_damage_to_it_is_told(imported):
    ws = workspace(imported, "alone")
    folder = teachers.ensure(ws, ws.recipe.teacher[0])
    assert sorted(path.name for path in folder.iterdir()) == ["cost.json", "manifest.json", "predictions.safetensors"]
    kept = folder / "predictions.safetensors"
    kept.write_bytes(kept.read_bytes()[:-1] + b"\x01")
    with pytest.raises(StillroomError, match=r"predictions.safetensors: missing or other bytes than its manifest says"):
        teachers.load(ws, ws.recipe.teacher[0], layers=[])


def test_predictions_of_pictures_that_changed_since_are_refused(imported):
    Image.fromarray(np.zeros((6, 6), np.uint8)).save(imported / "pictures" / "one" / "3.png")
    ws = workspace(imported, "alone")
    with pytest.raises(StillroomError, match=r"colleague: found predictions of 1 samples that have changed"):
        teachers.run(ws)
    assert not ws.is_finished(ws.teacher_folder(ws.recipe.teacher[0]))


def test_the_same_pictures_at_another_size_may_keep_their_predictions(imported):
    ws = workspace(imported, "alone", "data.size=4", 'logits.codec="auto"')
    logits.run(ws)
    assert ws.teacher_forwards == 60


# -- views ------------------------------------------------------------------------------------------------------------

SHIFT = 'views.transforms=[{ kind = "shift", pixels = 1 }]'
MIXUP = 'views.mix={ kind = "mixup", views = 1 }'


@pytest.mark.parametrize("overrides", [["views.count=3"], [SHIFT], ["views.count=2", SHIFT]])
def test_views_are_answered_only_when_the_recipe_says_so_and_then_all_alike(imported, overrides):
    with pytest.raises(StillroomError, match=r"found . views .*; expected it as it is, .* any_view = true"):
        teachers.run(workspace(imported, "alone", *overrides))
    with pytest.raises(StillroomError, match=r"import with --any-view"):
        said_by(imported, "pictures", "other", imported / "answers.npy", overrides=overrides)
    _, text = said_by(imported, "pictures", "other", imported / "answers.npy", overrides=overrides, any_view=True)
    assert "any_view = true" in text
    ws = workspace(imported, "alone", *overrides, "teacher.colleague.any_view=true")
    logits.run(ws)
    store = open_teacher(ws.store_folder("colleague"))
    views = [store.logits("train", view) for view in range(ws.plan.count)]
    assert all(torch.equal(view, views[0]) for view in views)
    assert verify.run(store.folder, ws=ws, as_json=False) == 0


def test_mixed_views_stay_refused(imported):
    ws = workspace(imported, "alone", "views.count=2", MIXUP, "teacher.colleague.any_view=true")
    with pytest.raises(StillroomError, match=r"colleague: found mixed views in the plan; expected none"):
        distill.run(ws)


# -- files ------------------------------------------------------------------------------------------------------------


def log_probs_of(path: Path) -> np.ndarray:
    """What a file says of every sample, in order."""
    kept = Predictions.read(path)
    assert kept.ids.tolist() == list(range(len(kept.ids)))
    return kept.logits


def test_every_way_to_say_the_same_is_kept_as_the_same(home, labels, tmp_path):
    answers, order = make_answers(labels["pictures"]), np.random.default_rng(2).permutation(60)
    np.savez(tmp_path / "named.npz", ids=order, probs=answers[order], notes=np.zeros(3))
    np.save(tmp_path / "shuffled.npy", answers[order])
    np.save(tmp_path / "ids.npy", order)
    pd.DataFrame({"order": order}).to_csv(tmp_path / "ids.csv", index=False)
    np.save(tmp_path / "logits.npy", np.log(answers) + 3)
    np.save(tmp_path / "turned.npy", answers[:, ::-1])
    frame = pd.DataFrame({"id": order, **{name: answers[order, c] for c, name in enumerate(CLASSES)}})
    frame.to_json(tmp_path / "lines.jsonl", orient="records", lines=True, double_precision=15)
    frame.set_axis(["id", "p0", "p1", "p2"], axis=1).to_csv(tmp_path / "numbered.csv", index=False)
    frame.drop(columns="id").iloc[np.argsort(order)].to_csv(tmp_path / "ordered.tsv", sep="\t", index=False)
    ways = {
        "named.npz": {},
        "shuffled.npy": {"ids": str(tmp_path / "ids.npy")},
        "logits.npy": {"of": "logits"},
        "turned.npy": {"classes": ["two", "three", "one"]},
        "lines.jsonl": {},
        "numbered.csv": {"classes": list(CLASSES)},
        "ordered.tsv": {},
    }
    for name, options in ways.items():
        path, _ = said_by(home, "pictures", "ways", tmp_path / name, **options)
        np.testing.assert_allclose(log_probs_of(path), np.log(answers), atol=1e-5, err_msg=name)
    path, _ = said_by(home, "pictures", "ways", tmp_path / "shuffled.npy", ids=str(tmp_path / "ids.csv"))
    np.testing.assert_allclose(log_probs_of(path), np.log(answers), atol=1e-5)


def test_hard_answers_by_name_and_by_number_are_the_same_teacher(home, labels, tmp_path):
    said = labels["pictures"].copy()
    said[::5] = (said[::5] + 1) % 3
    pd.DataFrame({"id": range(60), "answer": [CLASSES[label] for label in said]}).to_csv(
        tmp_path / "a.csv", index=False
    )
    np.save(tmp_path / "b.npy", said)
    np.save(tmp_path / "c.npy", 2 - said)
    paths = [
        said_by(home, "pictures", "hard", tmp_path / "a.csv", of="labels")[0],
        said_by(home, "pictures", "hard", tmp_path / "b.npy", of="labels")[0],
        said_by(home, "pictures", "hard", tmp_path / "c.npy", of="labels", classes=["two", "three", "one"])[0],
    ]
    assert len(set(paths)) == 1
    assert log_probs_of(paths[0]).argmax(1).tolist() == said.tolist()


def test_rows_twice_and_sums_that_are_off_are_told(home, labels, tmp_path):
    answers, ids = make_answers(labels["pictures"]), np.arange(60)
    answers[3] *= 1.0005
    np.savez(tmp_path / "twice.npz", ids=np.append(ids, 7), probs=np.vstack([answers, answers[7]]))
    path, text = said_by(home, "pictures", "twice", tmp_path / "twice.npz")
    assert "1 rows say the same of a sample again: left out" in text
    assert "rows divided by their sums, which were off by 5.0e-04 at most" in text
    np.testing.assert_allclose(np.exp(log_probs_of(path)).sum(1), 1, atol=1e-5)


def test_a_wrong_order_of_classes_shows_at_once(home, labels, tmp_path):
    np.save(tmp_path / "turned.npy", make_answers(labels["pictures"])[:, [1, 2, 0]])
    _, text = said_by(home, "pictures", "turned", tmp_path / "turned.npy")
    assert "warning: in another order of classes they would be right on" in text


def table(tmp_path: Path, **columns) -> Path:
    pd.DataFrame(columns).to_csv(tmp_path / "x.csv", index=False)
    return tmp_path / "x.csv"


def arrays(tmp_path: Path, name: str = "x.npz", **values) -> Path:
    np.savez(tmp_path / name, **values)
    return tmp_path / name


THIRDS = np.full((60, 3), 1 / 3)
ANSWERS = {name: [0.5, 0.25] for name in CLASSES}
FAULTS = {
    "no file": (lambda t: t / "x.npy", {}, "x.npy: found no file; expected predictions"),
    "another format": (lambda t: shutil.copy(__file__, t), {}, "found '.py'; expected one of .npy, .npz, .csv"),
    "garbage": (lambda t: (t / "x.npy").write_bytes(b"x" * 50) and t / "x.npy", {}, "x.npy: cannot be read"),
    "pickle": (
        lambda t: np.save(t / "x.npy", np.array([{}], object)) or t / "x.npy",
        {},
        "x.npy: cannot be read .*; expected arrays of numbers as numpy saves them, without pickle",
    ),
    "too few": (lambda t: arrays(t, p=THIRDS[:50]), {}, "found 50 rows without ids; expected 60"),
    "ids of others": (lambda t: arrays(t, p=THIRDS, ids=np.arange(5)), {}, "found 60 rows and 5 ids"),
    "not the plan's": (lambda t: arrays(t, p=THIRDS[:9], ids=np.arange(9)), {}, "no prediction of 51 of 60 samples"),
    "unknown ids": (lambda t: arrays(t, p=THIRDS, ids=np.arange(60) + 1), {}, r"1 ids of no sample \(60\)"),
    "no whole ids": (lambda t: arrays(t, p=THIRDS, ids=np.arange(60) / 2), {}, "ids: found 0.5 in row 1; expected a s"),
    "two arrays": (lambda t: arrays(t, p=THIRDS, q=THIRDS), {}, r"found arrays \['p', 'q'\]; expected one"),
    "one axis": (
        lambda t: arrays(t, p=np.zeros(60)),
        {},
        r"shape \(60,\); expected \[N, C\].*hard answers are --of la",
    ),
    "four classes": (lambda t: arrays(t, p=np.full((60, 4), 0.25)), {}, "found 4 columns; expected 3, one for each cl"),
    "names too few": (lambda t: arrays(t, p=THIRDS), {"classes": ["one"]}, "found 3 columns besides the ids and 1 nam"),
    "words": (lambda t: arrays(t, p=np.full((60, 3), "x")), {}, "found <U1; expected numbers"),
    "unknown column": (lambda t: table(t, **ANSWERS), {"ids": "ident"}, "unknown column or file 'ident'"),
    "text": (lambda t: table(t, id=[0, 1], note=["a", "b"], **ANSWERS), {}, "found text in column 'note'"),
    "other classes": (lambda t: table(t, id=[0, 1], four=[0, 1], **ANSWERS), {}, r"columns \['four'\] that are no cla"),
    "no class": (lambda t: table(t, id=[0, 1], one=[0, 1]), {}, r"no column for 2 classes, \['three', 'two'\]"),
    "empty ids": (lambda t: table(t, id=["0", ""], **ANSWERS), {}, "id: found nan in row 1"),
    "two labels": (
        lambda t: table(t, id=[0], a=["one"], b=["one"]),
        {"of": "labels"},
        r"found columns \['a', 'b'\]; e",
    ),
    "no rows": (lambda t: table(t, id=[], one=[], two=[], three=[]), {}, "x.csv: found no rows"),
    "no kind": (lambda t: arrays(t, p=THIRDS), {"of": "prob"}, "--of: unknown kind of prediction 'prob'; .*'probs'"),
    "percent": (lambda t: arrays(t, p=THIRDS * 100), {}, "they look like percent: divide them by 100"),
    "no name": (lambda t: arrays(t, p=THIRDS), {"name": "a b"}, "NAME: found 'a b'; expected at most 60 letters"),
}


def importing_into(home: Path, path: Path, *, name: str = "x", **options) -> None:
    said_by(home, "pictures", name, path, **options)


@pytest.mark.parametrize("fault", FAULTS)
def test_what_does_not_fit_is_refused_and_nothing_is_written(home, tmp_path, fault):
    make, options, told = FAULTS[fault]
    before = sorted((home / "data" / "raw" / "predictions").glob("*"))
    with pytest.raises(StillroomError, match=told):
        importing_into(home, Path(make(tmp_path)), **options)
    assert sorted((home / "data" / "raw" / "predictions").glob("*")) == before


# -- recipes ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("lines", "told"),
    [
        (
            'model = "predictions"\nfile = "x"',
            "teacher.new.reads: found None; expected 'id', for predictions are looked",
        ),
        ('model = "predictions"\nreads = "id"', "teacher.new.file: found None; expected the path of its file"),
        ('model = "predictions"\nreads = "id"\nfile = "x"\nepochs = 3', "teacher.new.epochs: found 3.*; expected none"),
        (
            'model = "predictions"\nreads = "id"\nfile = "x"\nany_views = true',
            "unknown key 'any_views'.*mean 'any_view'",
        ),
        ('model = "predictions"\nreads = "id"\nfile = "x"\nany_view = 1', "any_view: found 1; expected true or false"),
        ('model = "onnx"\nfile = "x"\noutput = "prob"', "teacher.new.output: unknown output 'prob'; .*mean 'probs'"),
        ('model = "onnx"\nfile = "x"\npictures = "byte"', "unknown pictures 'byte'; .*mean 'bytes'"),
        ('model = "onnx"\nfile = 3', "teacher.new.file: found 3; expected the path"),
        ('model = "mlp"\nreads = "id"', "teacher.new.reads: found 'id'; expected an input of the data"),
        ('model = "onnx"\nfile = "x"\n[logits]\nfolds = 2', "logits.folds: found 2 with teacher 'new'; expected none"),
        ('model = "mlp"\n[[input]]\nname = "id"\nkind = "text"', "input.id: found that name; expected another"),
        (
            'model = "mlp"\n[[student]]\nname = "s"\nmodel = "mlp"\nreads = "id"\nfusion = "mean"',
            "student.s.reads: found 'id'",
        ),
    ],
)
def test_what_a_recipe_says_of_a_teacher_of_a_file_is_checked(tmp_path, lines, told):
    text = PICTURES.format(folder=tmp_path) + '[[fusion]]\nname = "mean"\n[[teacher]]\nname = "new"\n' + lines
    (tmp_path / "x.toml").write_text(text)
    with pytest.raises(StillroomError, match=told):
        load_recipe(str(tmp_path / "x.toml"))


def test_the_command_prints_the_lines_and_one_line_for_a_mistake(home, labels, tmp_path):
    np.save(tmp_path / "a.npy", make_answers(labels["pictures"]))

    def command(*words: str):
        words = ("import", str(home / "pictures.toml"), "colleague", str(tmp_path / "a.npy"), *words)
        return CliRunner().invoke(app, [*words, "--data-dir", str(tmp_path / "data")])

    done = command("--classes", "one, three,two")
    assert done.exit_code == 0, done.output
    (path,) = (tmp_path / "data" / "raw" / "predictions").iterdir()
    assert printed_lines(done.stdout).splitlines() == [
        "[[teacher]]",
        'name = "colleague"',
        'model = "predictions"',
        'reads = "id"',
        f'file = "{path}"',
    ]
    wrong = command("--of", "logits")
    assert wrong.exit_code == 1
    assert wrong.stderr.startswith("error: ")
    assert "pass --of probs" in wrong.stderr
    assert len(wrong.stderr.splitlines()) == 1
    assert "Example: stillroom import " in CliRunner().invoke(app, ["import", "--help"]).stdout
