"""teachers: train each on the labelled rows, or find it finished."""

import time
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from pipeline.errors import StillroomError, unknown_name
from pipeline.lineage import Manifest, file_digest, read_manifest
from pipeline.models import WRITERS, build_model, count_parameters
from pipeline.models.estimators import load_sklearn
from pipeline.models.taps import find_layer
from pipeline.models.weights import load_weights
from pipeline.tasks import Reals, Tokens, out_shape
from pipeline.teachers import (
    RULE,
    RegressorTeacher,
    RuleTeacher,
    SklearnTeacher,
    SourceTeacher,
    Teacher,
    TorchTeacher,
    fit_regressor,
    fit_sklearn,
    fit_torch,
)
from pipeline.teachers.sklearn import ESTIMATOR
from pipeline.teachers.torch import WEIGHTS
from pipeline.train import OWN, Evaluate, Fitted, own_figure, own_loss, prepare, seeded
from pipeline.translation.vocabulary import Vocabulary
from pipeline.views import UNLABELLED, Replayer, ViewLoader, with_wrong_labels, without_classes
from stages import data, teacher_files
from stages.check import check_imported_teachers
from stages.recipe import TeacherEntry
from stages.show import in_words, progress, quick_scores
from stages.workspace import Workspace, fold_model_name, is_rule

FILES = (WEIGHTS, ESTIMATOR, RULE, *teacher_files.FILES.values())  # what a teacher may be kept in


def run(ws: Workspace) -> None:
    """Train every teacher that isn't there."""
    check(ws)
    for entry in ws.recipe.teacher:
        ensure(ws, entry)


def check(ws: Workspace) -> None:
    """Fetch the data; raise StillroomError with what is wrong with any teacher, before one is trained."""
    data.run(ws)
    check_imported_teachers(ws.recipe)
    rows = len(ws.plan.splits["train"].labelled)
    if len(ws.folds) > rows:
        raise StillroomError(
            f"logits.folds: found {len(ws.folds)}; expected at most {rows}, the labelled train rows; lower it"
        )
    for entry in ws.recipe.teacher:
        teacher_files.check_views(ws.plan, entry)
        for fold in (None, *ws.folds):
            shown_labels(ws, entry, fold)


def ensure(ws: Workspace, entry: TeacherEntry, fold: int | None = None) -> Path:
    """Return the folder of a finished teacher, or of its model without a fold, training or copying it if need be."""
    folder = ws.teacher_folder(entry, fold)
    manifest = read_manifest(folder)
    if manifest is None:
        started = time.perf_counter()
        details = _train(ws, entry, fold, folder)
        seconds = time.perf_counter() - started
        manifest = _seal(ws, entry, fold, folder, details)
        ws.made(folder, seconds=seconds)
    scores = manifest.metrics["calibration"]
    ws.say("teachers", f"{manifest.name}: calibration {in_words(scores)}")
    return folder


def shown_labels(ws: Workspace, entry: TeacherEntry, fold: int | None = None) -> np.ndarray:
    """Return the train labels that a teacher, or its model without a fold, learns from: int64 [N], -1 where hidden.

    They are hidden of rows that lack the one source that it reads: of those it will say nothing.
    Raises: StillroomError for an unknown class, and when nothing is left to learn from.
    """
    where, classes, train = f"teacher.{entry.name}", list(ws.classes), ws.plan.splits["train"]
    for name in entry.without_classes:
        if name not in classes:
            raise unknown_name(f"{where}.without_classes", "class", name, classes)
    left_out = [classes.index(name) for name in entry.without_classes]
    kept = np.setdiff1d(np.arange(len(classes)), left_out)
    labels = without_classes(train.labels, left_out)
    if entry.wrong_labels:
        if len(kept) < 2:
            raise StillroomError(
                f"{where}.wrong_labels: found {len(kept)} class to learn; expected two or more, or no label can be "
                f"wrong; set it to 0"
            )
        labels = with_wrong_labels(labels, train.ids, entry.wrong_labels, kept, entry.seed)
    if (has_source := ws.has_source(entry.reads)) is not None:
        labels = np.where(has_source[train.ids], labels, UNLABELLED)
    if fold is not None:
        labels = labels.copy()
        labels[train.labelled[ws.fold_of == fold]] = UNLABELLED
    if (labels == UNLABELLED).all():
        raise StillroomError(
            f"{where}: found no train row of the classes {[classes[c] for c in kept]}"
            f"{'' if fold is None else f' without fold {fold}'}; expected at least one to learn from; take classes out "
            f"of without_classes"
        )
    return labels


def _train(ws: Workspace, entry: TeacherEntry, fold: int | None, folder: Path) -> dict[str, Any]:
    if teacher_files.is_file(entry):
        teacher_files.keep(ws, entry, folder)
        return {"parameters": None, "history": []}
    model = build(ws, entry)
    if is_rule(entry):
        _rule(ws, entry, model).save(folder)
        return {"parameters": None, "history": []}
    replayer = ws.replayer_of(entry.reads).showing(shown_labels(ws, entry, fold))
    name = fold_model_name(entry.name, fold)
    if not isinstance(model, nn.Module):
        plain = ws.plan.plain or [0]
        how: dict[str, Any] = {"views": plain[: entry.fit_views], "seed": entry.seed, "where": f"teacher.{name}"}
        with progress(ws.console, f"fit {name}", None):
            if isinstance(ws.task, Reals):
                estimator = fit_regressor(model, replayer, in_units=ws.task.in_units, **how)
            else:
                estimator = fit_sklearn(model, replayer, **how)
        _of_estimator(ws, estimator).save(folder)
        return {"parameters": None, "history": []}
    for layer in ws.recipe.logits.features:  # what the dump will ask for must be there before the training is paid for
        find_layer(model, layer, f"teacher.{entry.name}")
    fitted = _train_torch(ws, entry, prepare(model, ws.device), replayer, name, folder)
    return {"parameters": count_parameters(model), "history": fitted.history, "best_step": fitted.best_step}


def _train_torch(ws: Workspace, entry: TeacherEntry, model: Any, replayer: Replayer, name: str, folder: Path) -> Fitted:
    positions = replayer.labelled
    steps, epoch = ws.steps(entry, len(positions))
    schedule = ws.schedule(entry, steps, max(epoch, steps // 25))
    loader = ViewLoader(
        replayer,
        "train",
        batch_size=entry.batch_size,
        seed=entry.seed,
        positions=positions,
        views=None if entry.mixed else ws.plan.plain,
    )
    checkpoint, own = folder / "checkpoint.pt", own_loss(model)
    with progress(ws.console, f"train {name}", steps) as bar:
        fitted = fit_torch(
            model,
            loader,
            evaluate=_evaluation(ws, entry) if own is None else _own_evaluation(ws, entry),
            schedule=schedule if own is None else replace(schedule, monitor=OWN),
            seed=entry.seed,
            where=f"teacher.{name}",
            precision=ws.precision(entry),
            checkpoint=checkpoint,
            on_step=bar.to,
            loss=own or ws.task.loss,
        )
    TorchTeacher(model, [], ws.shape(entry.reads), precision=ws.precision(entry)).save(folder)
    checkpoint.unlink(missing_ok=True)
    return fitted


def _evaluation(ws: Workspace, entry: TeacherEntry) -> Evaluate:
    rows, truth = ws.held_out("calibration", entry.reads), ws.task.truth(ws.plan.splits["calibration"])
    return lambda model: quick_scores(model, rows, truth, ws.task, ws.precision(entry))


def _own_evaluation(ws: Workspace, entry: TeacherEntry) -> Evaluate:
    """Return what steers a model that learns in another way than it answers: to answer may take it many steps."""
    rows = ws.held_out("calibration", entry.reads)
    return lambda model: own_figure(model, rows, ws.precision(entry))


def build(ws: Workspace, entry: TeacherEntry) -> Any:
    """Return a teacher's model, untrained: a module, or an estimator. Raises StillroomError for one of a file."""
    if teacher_files.is_file(entry):
        raise StillroomError(
            f"teacher.{entry.name}: found a file where a model is built, as logits.max_gb does; expected one to train; "
            f"leave max_gb out"
        )
    if is_rule(entry):
        return WRITERS[entry.model](**entry.options)
    build = partial(build_model, entry.model, num_classes=len(ws.classes), in_shape=ws.shape(entry.reads))
    shape = out_shape(ws.task.shapes)
    return seeded(
        lambda: build(where=f"teacher.{entry.name}", is_real=ws.task.is_real, out_shape=shape, **entry.options),
        entry.seed,
    )


def _seal(ws: Workspace, entry: TeacherEntry, fold: int | None, folder: Path, details: dict[str, Any]) -> Manifest:
    teacher = load(ws, entry, layers=[], fold=fold)
    figures = _figures(ws, entry, teacher)
    manifest = Manifest(
        kind="teacher",
        name=fold_model_name(entry.name, fold),
        config=ws.teacher_config(entry, fold),
        digests={name: file_digest(folder / name) for name in FILES if (folder / name).exists()},
        metrics={**figures.pop("scores"), **figures},
        details=details,
    )
    manifest.write(folder)
    return manifest


def _figures(ws: Workspace, entry: TeacherEntry, teacher: Teacher) -> dict[str, Any]:
    """Return a teacher's figures on calibration rows, and what is fitted there."""
    batches, truth = ws.held_out("calibration", entry.reads), ws.task.truth(ws.plan.splits["calibration"])
    if isinstance(teacher, RuleTeacher):
        assert isinstance(ws.task, Tokens)
        written = torch.cat([teacher.write(batch.inputs, 1)[0][:, 0] for batch in batches])
        return {"scores": {"calibration": ws.task.sentence_figures(written, truth)}}
    outputs = torch.cat([teacher.predict(batch.inputs).logits.cpu() for batch in batches])
    return ws.task.teacher_figures({"calibration": outputs}, {"calibration": truth})


def _rule(ws: Workspace, entry: TeacherEntry, rule: Any) -> RuleTeacher:
    """Return a rule as a teacher. Raises StillroomError where no sentences are asked for."""
    if not isinstance(ws.task, Tokens):
        raise StillroomError(
            f"teacher.{entry.name}.model: found {entry.model!r}, which writes sentences; expected another, for the "
            f"data asks for none; name one"
        )
    return RuleTeacher(rule, Vocabulary(ws.task.vocabulary), ws.task.length)


def load(ws: Workspace, entry: TeacherEntry, *, layers: list[str], fold: int | None = None) -> Teacher:
    """Return a trained teacher, or its model without a fold, from its folder; one of a source is silent without it.

    Raises: StillroomError when its weights aren't those it sealed.
    """
    teacher, source = _opened(ws, entry, layers, fold), ws.source_of(entry.reads)
    return teacher if source is None else SourceTeacher(teacher, source.has_source)


def _opened(ws: Workspace, entry: TeacherEntry, layers: list[str], fold: int | None) -> Teacher:
    folder = ws.teacher_folder(entry, fold)
    manifest = read_manifest(folder)
    for name, wanted in (manifest.digests if manifest else {}).items():
        if not (folder / name).exists() or file_digest(folder / name) != wanted:
            raise StillroomError(
                f"{folder / name}: missing or other bytes than its manifest says; expected sha256 {wanted[:12]}; "
                f"delete {folder} and run 'stillroom teachers' again"
            )
    if teacher_files.is_file(entry):
        return teacher_files.open_file(ws, entry, folder / teacher_files.FILES[entry.model])
    if (folder / RULE).exists():
        return _rule(ws, entry, build(ws, entry))
    if (folder / ESTIMATOR).exists():
        package = entry.model.partition(":")[0].split(".")[0]
        return _of_estimator(ws, load_sklearn(folder / ESTIMATOR, package=package))
    model = prepare(load_weights(build(ws, entry), folder / WEIGHTS), ws.device)
    return TorchTeacher(model, layers, ws.shape(entry.reads), precision=ws.precision(entry))


def _of_estimator(ws: Workspace, estimator: Any) -> SklearnTeacher | RegressorTeacher:
    """Return a fitted estimator as a teacher of what is asked for."""
    if isinstance(ws.task, Reals):
        return RegressorTeacher(estimator, ws.task.standardised)
    return SklearnTeacher(estimator, len(ws.classes))
