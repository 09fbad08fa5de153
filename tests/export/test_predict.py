"""New pictures of every kind are answered as the data set's would be; what can't be read is told and passed over."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from few import workspace
from PIL import Image
from torch import nn

from pipeline.datasets.pictures import decode, fit
from pipeline.errors import StillroomError
from pipeline.export import Deployed, export_program
from pipeline.lineage import Manifest, file_digest, read_manifest
from stages import export, predict
from stages.networks import load_student

CLASSES = ["red", "green", "blue"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """An export whose answers are known: the class is the colour that there is most of. It takes 3 x 8 x 8."""
    made = tmp_path_factory.mktemp("exported")
    student = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten())
    model = Deployed(student, mean=(0.0, 0.0, 0.0), std=(0.1, 0.1, 0.1))
    export_program(model, torch.randint(0, 256, (4, 3, 8, 8), dtype=torch.uint8), made / "student.pt2")
    about = export.labels(CLASSES, (3, 8, 8), (0.0,) * 3, (0.1,) * 3, ["pt2"])
    (made / "labels.json").write_text(json.dumps(about))
    digests = {name: file_digest(made / name) for name in ("student.pt2", "labels.json")}
    Manifest("export", "colours-s0", {"stage": "export", "formats": ["pt2"]}, digests).write(made)
    return made


def picture(path: Path, colour: tuple[int, int, int], mode: str = "RGB") -> Path:
    image = Image.new("RGB", (12, 9), colour)
    (image.convert(mode) if mode != "RGB" else image).save(path)
    return path


def ask(folder: Path, *images: Path, capsys, **options) -> tuple[int, list[dict], str]:
    code = predict.run(folder, list(images), as_json=True, **options)
    out, err = capsys.readouterr()
    return code, [json.loads(line) for line in out.splitlines()], err


@pytest.mark.parametrize(
    ("name", "mode"),
    [("a.png", "RGB"), ("a.png", "RGBA"), ("a.png", "P"), ("a.jpg", "RGB"), ("a.jpg", "CMYK"), ("a.tiff", "CMYK")],
)
def test_pictures_of_any_kind_are_answered(name, mode, folder, tmp_path, capsys):
    path = picture(tmp_path / name, (20, 200, 30), mode)
    code, (answer,), err = ask(folder, path, capsys=capsys, top=3)
    assert (code, err) == (0, "")
    assert answer["path"] == str(path)
    assert answer["top"][0]["class"] == "green"
    assert sum(each["probability"] for each in answer["top"]) == pytest.approx(1, abs=1e-5)


def test_probabilities_are_the_softmax_of_the_standardised_means(folder, tmp_path, capsys):
    _, (answer,), _ = ask(folder, picture(tmp_path / "a.png", (20, 40, 30)), capsys=capsys, top=3)
    exps = np.exp(np.array([20, 40, 30]) / 255 / 0.1)
    assert [each["class"] for each in answer["top"]] == ["green", "blue", "red"]
    expected = sorted(exps / exps.sum(), reverse=True)
    assert [each["probability"] for each in answer["top"]] == pytest.approx(expected, abs=1e-5)


def test_of_sixteen_bits_the_upper_eight_count(folder, tmp_path, capsys):
    deep = np.full((9, 12), 40 << 8 | 255, np.uint16)
    Image.fromarray(deep).save(tmp_path / "deep.png")
    picture(tmp_path / "flat.png", (40, 40, 40))
    _, (one, other), _ = ask(folder, tmp_path / "deep.png", tmp_path / "flat.png", capsys=capsys, top=3)
    assert one["top"] == other["top"]


def test_a_folder_is_searched_for_pictures_and_keeps_its_order(folder, tmp_path, capsys):
    (tmp_path / "in" / "ner").mkdir(parents=True)
    picture(tmp_path / "in" / "b.png", (200, 0, 0))
    picture(tmp_path / "in" / "a.gif", (0, 0, 200))
    picture(tmp_path / "in" / "ner" / "c.JPEG", (0, 200, 0))
    (tmp_path / "in" / "notes.txt").write_text("no picture")
    picture(tmp_path / "in" / ".hidden.png", (200, 0, 0))
    code, found, _ = ask(folder, tmp_path / "in", capsys=capsys)
    names = [(Path(each["path"]).name, each["top"][0]["class"]) for each in found]
    assert names == [("a.gif", "blue"), ("b.png", "red"), ("c.JPEG", "green")]
    assert code == 0


def test_what_cannot_be_read_is_told_and_the_others_are_answered(folder, tmp_path, capsys):
    good = picture(tmp_path / "good.png", (200, 0, 0))
    (tmp_path / "bad.png").write_bytes(good.read_bytes()[:40])
    (tmp_path / "none.jpg").write_bytes(b"")
    (tmp_path / "empty").mkdir()
    asked = [tmp_path / "bad.png", good, tmp_path / "gone.png", tmp_path / "none.jpg", tmp_path / "empty", good]
    code, found, err = ask(folder, *asked, capsys=capsys)
    assert code == 1
    assert [each["path"] for each in found] == [str(good)] * 2
    lines = err.splitlines()
    assert [line.split(":")[:2] for line in lines] == [
        ["error", f" {tmp_path / name}"] for name in ("bad.png", "gone.png", "none.jpg", "empty")
    ]
    assert "cannot be decoded" in lines[0]
    assert "no such file; expected a picture" in lines[1]
    assert "found no picture" in lines[3]


def test_many_pictures_go_through_in_batches(folder, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(predict, "BATCH", 3)
    colours = [(200, 0, 0), (0, 200, 0), (0, 0, 200)]
    paths = [picture(tmp_path / f"{i}.png", colours[i % 3]) for i in range(7)]
    _, found, _ = ask(folder, *paths, capsys=capsys)
    assert [each["top"][0]["class"] for each in found] == [CLASSES[i % 3] for i in range(7)]


def test_the_table_shows_names_as_they_are(folder, tmp_path, capsys):
    path = picture(tmp_path / "[red]a.png", (200, 0, 0))
    assert predict.run(folder, [path], top=2) == 0
    out = capsys.readouterr().out
    assert "[red]a.png" in out
    assert out.index("red") < out.index("green")
    assert out.count("[red]a.png") == 1


def test_more_classes_than_there_are_is_all_of_them_and_none_is_an_error(folder, tmp_path, capsys):
    path = picture(tmp_path / "a.png", (200, 0, 0))
    _, (answer,), _ = ask(folder, path, capsys=capsys, top=50)
    assert len(answer["top"]) == 3
    with pytest.raises(StillroomError, match="--top: found 0; expected 1 or more"):
        predict.run(folder, [path], top=0)


# -- folders ----------------------------------------------------------------------------------------------------------


def test_wrong_folders_are_told(folder, tmp_path):
    with pytest.raises(StillroomError, match="found no folder; expected a folder of data/exports"):
        predict.run(tmp_path / "gone", [])
    with pytest.raises(StillroomError, match="found no finished artefact"):
        predict.run(tmp_path, [])
    Manifest("league", "few", {}).write(tmp_path)
    with pytest.raises(StillroomError, match="found a league; expected"):
        predict.run(tmp_path, [])
    with pytest.raises(StillroomError, match="unknown format 'onnx'; expected one of 1; known: pt2"):
        predict.run(folder, [], format_name="onnx")


@pytest.mark.parametrize("name", ["student.pt2", "labels.json"])
def test_a_changed_file_is_refused(name, folder, tmp_path):
    copy = Path(shutil.copytree(folder, tmp_path / "copy"))
    (copy / name).write_bytes((copy / name).read_bytes() + b" ")
    with pytest.raises(StillroomError, match=f"{name}: missing or other bytes than its manifest says"):
        predict.run(copy, [])


def test_a_student_answers_from_its_own_folder_and_from_its_export_alike(finished, tmp_path, capsys, monkeypatch):
    pytest.importorskip("onnxruntime")
    monkeypatch.setattr(export, "REPEATS", {1: 1, 256: 1})
    home = Path(shutil.copytree(finished, tmp_path / "home", symlinks=True))
    ws = workspace(home)
    export.run(ws, seed=0)
    (exported,) = (home / "data" / "exports").iterdir()
    (student,) = (home / "data" / "students").glob("tiny-s0-*")
    pixels = ws.dataset.read(ws.plan.splits["test"].ids[:5])
    paths = []
    for i, grey in enumerate(pixels[:, 0].numpy()):
        paths.append(tmp_path / f"{i}.png")
        Image.fromarray(grey).save(paths[-1])
    moved = Path(shutil.move(exported, tmp_path / "elsewhere"))  # needs nothing beside it
    _, own, _ = ask(student, *paths, capsys=capsys, top=10)
    for name in (None, "pt2", "onnx", "int8"):
        code, found, _ = ask(moved, *paths, capsys=capsys, top=10, format_name=name)
        assert code == 0
        for one, other in zip(found, own, strict=True):
            mine, its = ({each["class"]: each["probability"] for each in answer["top"]} for answer in (one, other))
            assert mine.keys() == its.keys() == set(ws.classes)
            assert mine == pytest.approx(its, abs=0.1 if name == "int8" else 1e-5)

    inputs = ws.replayer.batch("test", 0, np.arange(5)).inputs
    entry = ws.recipe.find("student", "tiny")
    network = load_student(student, read_manifest(student), ws.dataset.shape)
    assert entry.model == "mlp"
    with torch.no_grad():
        probs = network.eval()(inputs).softmax(-1)
    for row, answer in zip(probs, own, strict=True):
        assert answer["top"][0]["class"] == ws.classes[int(row.argmax())]
        assert answer["top"][0]["probability"] == pytest.approx(row.max().item(), abs=1e-5)


def test_a_colour_picture_of_another_size_is_made_what_the_student_takes(finished, tmp_path, capsys):
    (student,) = (finished / "data" / "students").glob("tiny-s0-*")
    rng = np.random.default_rng(0)
    Image.fromarray(rng.integers(0, 256, (50, 70, 3), dtype=np.uint8)).save(tmp_path / "big.png")
    Image.fromarray(fit(decode(tmp_path / "big.png", 1), 28, 28)[0].numpy()).save(tmp_path / "fitted.png")
    _, (one, other), _ = ask(student, tmp_path / "big.png", tmp_path / "fitted.png", capsys=capsys, top=10)
    assert one["top"] == other["top"]


def test_a_student_without_its_plan_is_told(finished, tmp_path):
    (student,) = (finished / "data" / "students").glob("tiny-s0-*")
    alone = Path(shutil.copytree(student, tmp_path / "students" / student.name))
    with pytest.raises(StillroomError, match=r"plans.*: found nothing; expected a finished view plan"):
        predict.run(alone, [])
