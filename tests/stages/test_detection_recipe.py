"""The recipe of boxes, whole, on some made canvases: three outputs from teachers to student, and what is judged."""

import json
import math
import shutil

import numpy as np
import pytest
import torch
from shipped import check_every_model_ran, of, rows_of, run_shipped

from pipeline.detection.decoding import decode
from pipeline.detection.scores import average_precision
from pipeline.errors import CorruptBlockError, StillroomError
from pipeline.lineage import require_manifest
from pipeline.loader import TargetLoader
from pipeline.report import pictures
from pipeline.store import open_targets, open_teacher
from pipeline.store.verify import verify
from pipeline.tasks import Boxes, parts_of
from pipeline.views import UNLABELLED
from stages import distill, logits, report
from stages.answers import answers_of
from stages.judging import judge_of
from stages.load import load_recipe
from stages.runs import folder_of, runs
from stages.workspace import Workspace
from tests.datasets.test_noise import write_idx

FEW = [
    "data.max_train=90",
    "data.max_test=30",
    "data.labelled=40",
    "data.calibration=0.25",
    "teacher.residual.width=4",
    "teacher.plain.width=4",
    "student.small.width=2",
]
FIGURES = ("ap", "ap50", "ap75", "nll")


@pytest.fixture(scope="module")
def ws(tmp_path_factory):
    from pipeline.datasets import boxed

    with pytest.MonkeyPatch.context() as patch:
        whole = boxed.BOXED["canvases"]

        def fewer(folder, entry):
            return whole(folder, entry.model_copy(update={"samples": {"train": 120, "test": 40}}))

        patch.setitem(boxed.BOXED, "canvases", fewer)
        patch.setattr(pictures, "drawn", lambda *_: b"png")
        home = tmp_path_factory.mktemp("boxes")
        return run_shipped("detection", home, lambda folder: write_idx(folder, train=500, test=200), *FEW)


def test_every_model_ran_and_has_all_figures(ws):
    check_every_model_ran(ws)
    rows = rows_of(ws)
    assert [len(of(rows, kind)) for kind in ("teacher", "fusion", "student", "baseline")] == [2, 1, 2, 4]
    for row in rows:
        assert all(0 <= row[name] <= 1 for name in FIGURES[:3]), row
        assert math.isfinite(row["nll"])


def test_stores_keep_each_output_as_it_is_and_read_back_what_was_said(ws):
    assert isinstance(ws.task, Boxes)
    store = open_teacher(ws.store_folder("residual"))
    assert [*store.outputs] == ["classes", "edges", "distances"]
    assert [each.codec.is_real for each in store.outputs.values()] == [False, False, True]
    assert store.layout.arrays["edges"].tail == (144, 4, 17)
    assert not verify(store.folder)
    targets = open_targets(ws.target_folder(ws.recipe.fusion[0]))
    assert not verify(targets.folder)
    assert targets.layout.arrays["classes/weights"].tail == (144, 2)
    assert targets.layout.arrays["distances/mean"].tail == (144, 4)
    from stages import teachers

    entry = ws.recipe.find("teacher", "residual")
    inputs = ws.replayer.batch("test", 0, np.arange(5)).inputs
    said = parts_of(ws.task.shapes, teachers.load(ws, entry, layers=[]).predict(inputs).logits)
    kept = store.at("classes").logits("test")[:5]
    torch.testing.assert_close(kept.log_softmax(-1), said["classes"].log_softmax(-1), atol=2e-2, rtol=0)
    torch.testing.assert_close(store.at("distances").logits("test")[:5], said["distances"], atol=5e-3, rtol=1e-3)


def test_the_pool_is_what_its_weights_make_of_the_calibrated_teachers(ws):
    targets = open_targets(ws.target_folder(ws.recipe.fusion[0]))
    stores = [open_teacher(ws.store_folder(name)) for name in targets.teachers]
    temperatures = [store.manifest.details["temperature"] for store in stores]
    fitted = targets.manifest.details["fitted"]
    for output in ("classes", "edges"):
        probs = torch.stack(
            [
                (store.at(output).logits("test") / own[output]).softmax(-1)
                for store, own in zip(stores, temperatures, strict=True)
            ]
        )
        weights = torch.tensor(fitted[output]["weights"]).float()
        mixed = (weights.view(-1, *[1] * (probs.ndim - 1)) * probs).sum(0).log() / fitted[output]["pool_temperature"]
        found = targets.at(output).log_probs("test")
        torch.testing.assert_close(found.exp(), mixed.softmax(-1), atol=3e-3, rtol=0)
    means = torch.stack([store.at("distances").logits("test") for store in stores])
    weights = torch.tensor(fitted["distances"]["weights"]).float().view(-1, 1, 1, 1)
    torch.testing.assert_close(targets.at("distances").means("test"), (weights * means).sum(0), atol=2e-2, rtol=1e-3)


def test_hidden_rows_show_no_object_and_teach_all_the_same(ws):
    train = ws.plan.splits["train"]
    hidden = np.flatnonzero(train.labels == UNLABELLED)
    assert len(hidden) == len(train) - 40
    assert np.isnan(train.targets[hidden]).all()
    targets = open_targets(ws.target_folder(ws.recipe.fusion[0]))
    loader = TargetLoader(targets, ws.samples(), batch_size=8, seed=0)
    batch = next(iter(loader))
    assert set(batch.fused) == {
        "classes/log_probs/t1",
        "edges/log_probs/t1",
        "distances/mean",
        "distances/variance",
    }
    assert batch.fused["edges/log_probs/t1"].shape == (8, 144, 4, 17)
    rows = batch.positions
    assert batch.targets.isnan().flatten(1).all(1).tolist() == np.isin(rows, hidden).tolist()


def test_average_precision_is_of_all_objects_and_of_what_models_say(ws):
    part = next(each for each in _parts(ws) if each.row["kind"] == "student")
    answers = answers_of(ws, part)
    objects = [torch.from_numpy(ws.dataset.objects[i]) for i in ws.plan.splits["test"].ids]
    found = decode(*ws.task.told(answers), ws.task.grid)
    expected = average_precision(found, [(each[:, 1:], each[:, 0]) for each in objects], 10)
    assert judge_of(ws).figures(answers) == expected
    assert part.row["ap"] == expected["ap"]


def _parts(ws):
    found = report.Found()
    report._add_teachers(ws, found)
    report._add_students(ws, found)
    return [report.answers.with_more(ws, part, judge_of(ws)) for part in found.parts]


def test_run_again_it_does_nothing_and_the_page_shows_boxes(ws):
    folder = ws.root / "reports" / "detection"
    assert "AP: average precision" in (folder / "index.html").read_text()
    before = json.loads((folder / "results.json").read_text())
    ws.done.clear()
    distill.run(ws)
    assert ws.done == []
    assert json.loads((folder / "results.json").read_text()) == before


def test_a_rotten_cell_is_told_by_output_and_rows(ws, tmp_path):
    store = open_teacher(ws.store_folder("plain"))
    copy = tmp_path / store.folder.name
    shutil.copytree(store.folder, copy)
    chunk = copy / store.layout.chunk_path(store.block("train", 0, 0), "edges")
    content = bytearray(chunk.read_bytes())
    content[100] ^= 1
    chunk.write_bytes(content)
    with pytest.raises(CorruptBlockError, match=r"edges of train view 0 rows 0-\d+"):
        open_teacher(copy).at("edges").logits("train")
    assert any("edges" in str(fault) for fault in verify(copy))


def test_students_follow_their_loss_and_are_alike_whoever_trains_beside_them(ws):
    (entry,) = ws.recipe.student
    for job in runs(ws, entry):
        details = require_manifest(folder_of(ws, job), "student", make_with="stillroom distill").details
        assert details["out_shape"] == [144, 83]
        parts = {"train_classes", "train_edges", "train_distances"}
        assert all(parts <= figures.keys() for figures in details["history"])
        best = min(details["history"], key=lambda figures: figures["loss"])
        assert best["step"] == details["best_step"]


def begin(root, ws, override):
    """Read the recipe, open its data, make its plan, and choose how a teacher's answers are kept."""
    found = Workspace(load_recipe("detection", [*FEW, override]), root, ws.console)
    if "data" not in override:
        found.__dict__["dataset"] = ws.dataset
    assert found.plan.views("test") == 1
    logits._encoding(found, found.recipe.teacher[0], object())


@pytest.mark.parametrize(
    ("override", "message"),
    [
        (
            "views.transforms=[{kind='flip'}]",
            r"views: found flip; expected transforms that leave things where they are",
        ),
        ("student.small.loss.kind=dkd", r"student.small.loss.kind: found 'dkd'; expected 'boxes'"),
        ("student.small.loss.alpha=conditional", r"student.small.loss.alpha: found 'conditional'; expected a number"),
        ("student.small.loss.margins=1", r"student.small.loss: unknown option 'margins'.*did you mean 'margin'"),
        ("student.small.ensemble=2", r"student.small.ensemble: found 2; expected none, .* with boxes yet"),
        (
            "student.small.model=mlp",
            r"small.model: found 'mlp', which answers with something else; expected a model of",
        ),
        ("fusion.pool.numbers=wieghted", r"fusion.pool.numbers: unknown strategy .*'weighted'"),
        ("fusion.pool.strategy=gated", r"fusion.pool.strategy: found 'gated', which reads features of a row"),
        ("fusion.pool.strategy=consensus", r"fusion.pool.strategy: found 'consensus', of sentences; expected another"),
        ("logits.folds=3", r"logits.folds: found 3; expected none, for rows of boxes have no fold"),
        ("logits.hypotheses=3", r"logits.hypotheses: found 3; expected none, for the data asks for no sentences"),
        ("data.size=64", r"fashion-canvases: size = 64; expected none"),
    ],
)
def test_what_boxes_have_not_got_is_told(tmp_path, ws, override, message):
    with pytest.raises(StillroomError, match=message):
        begin(tmp_path, ws, override)
