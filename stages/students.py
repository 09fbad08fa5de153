"""One student: what it is built from, reads and minimises, how it is judged, and what is kept of it."""

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from pipeline.errors import StillroomError
from pipeline.features import FeatureEntry, ThroughHead, parse_feature_loss
from pipeline.lazy import LazyLoss
from pipeline.lineage import Manifest, file_digest, write_cost
from pipeline.loader import Reading
from pipeline.losses import kl_divergence
from pipeline.metrics import agreement
from pipeline.models import build_model, count_parameters
from pipeline.models.weights import save_weights
from pipeline.objective import Followed, follow
from pipeline.store import TargetStore, TeacherStore, open_targets, open_teacher
from pipeline.tasks import Tokens, out_shape
from pipeline.train import Fitted, Ranks, Trainee, predict, prepare, seeded
from pipeline.train import Run as Training
from pipeline.views import Batch
from stages.objectives import objective_of
from stages.runs import Run, config_of, folder_of
from stages.show import answers_of, quick_scores
from stages.workspace import Workspace

WEIGHTS, ANSWERS, CHECKPOINT = "weights.safetensors", "answers.safetensors", "checkpoint.pt"
OUT_SHAPE = "out_shape"  # of a student's outputs where they are more than a number a class
HEAD_WIDTH = "head_width"  # of the teacher's classifier that a student answers through


@dataclass(frozen=True, eq=False)
class Student:
    """A run that is about to train: where it is kept, what it reads, and its training."""

    job: Run
    folder: Path
    reading: Reading
    trainee: Trainee
    lazy: LazyLoss | None

    @property
    def model(self) -> nn.Module:
        """The network in training."""
        return self.trainee.run.model


def reading_of(ws: Workspace, job: Run) -> Reading:
    """Return what a run reads of stores; they must be there."""
    if job.fusion is None:
        return Reading()
    entries = feature_entries(job)
    names = ws.fused_teachers(job.fusion) if job.is_lazy or entries else []
    teachers = tuple(open_teacher(ws.store_folder(name)) for name in names)
    features = {entry.layer: teachers for entry in entries}
    negatives = max((entry.loss.num_negatives for entry in entries), default=0)
    if job.is_lazy:
        return Reading(teachers=teachers, calibrate=job.fusion.calibrate, features=features, negatives=negatives)
    targets = open_targets(ws.target_folder(job.fusion))
    if targets.is_of_sentences:
        return Reading(targets, references=job.entry.loss.sentences_config["alpha"] == 1)
    temperature = job.entry.loss.temperature
    return Reading(targets, temperature, bool(features), features=features, negatives=negatives)


def feature_entries(job: Run) -> list[FeatureEntry]:
    """Return the feature losses of a run; baselines have none, for they show what targets alone do."""
    where = f"student.{job.entry.name}.loss.features"
    specs = job.entry.loss.features if job.is_own and job.fusion is not None else []
    return [parse_feature_loss(spec, f"{where}[{place}]") for place, spec in enumerate(specs)]


def begin(
    ws: Workspace,
    job: Run,
    reading: Reading,
    *,
    ranks: Ranks,
    on_step: Callable[[int], None],
    on_evaluate: Callable[[dict[str, float]], None] = lambda figures: None,
) -> Student:
    """Return a run ready to train, its first weights drawn from its seed."""
    entry, where = job.entry, f"student.{job.entry.name}"
    model = prepare(_untrained(ws, job), ws.device)
    stores = _feature_stores(reading)
    followed: list[Followed] = []
    if entries := feature_entries(job):
        shape = {"num_classes": len(ws.classes), "in_shape": ws.shape(entry.reads)}
        model, followed = follow(entries, model, stores, **shape, seed=job.draws_seed, where=where)  # type: ignore[arg-type]
        model = model.to(ws.device)
    steps, epoch = ws.steps(entry, len(ws.plan.splits["train"]))
    monitor = "kl" if entry.monitor == "kl" and reading.targets is not None else ws.task.steered_by
    schedule = replace(ws.schedule(entry, steps, epoch), monitor=monitor)
    loss, companion, lazy = objective_of(ws, job, model, followed, steps)
    precision, folder = ws.precision(entry), folder_of(ws, job)
    training = Training(
        model,
        loss,
        schedule,
        seed=job.draws_seed,
        precision=precision,
        where=where,
        companion=companion,
        ranks=ranks,
    )
    judge = partial(judged, ws, precision=precision, targets=reading.targets if monitor == "kl" else None, job=job)
    trainee = Trainee(training, judge, folder / CHECKPOINT, on_step, on_evaluate)
    return Student(job, folder, reading, trainee, lazy)


def _untrained(ws: Workspace, job: Run) -> nn.Module:
    entry = job.entry
    build = partial(build_model, entry.model, num_classes=len(ws.classes), in_shape=ws.shape(entry.reads))
    shape = out_shape(ws.task.shapes)
    model = seeded(lambda: build(where=f"student.{entry.name}", out_shape=shape, **entry.options), job.draws_seed)
    if not isinstance(model, nn.Module):
        raise StillroomError(
            f"student.{entry.name}.model: {entry.model} returned a {type(model).__name__}; expected a network; name "
            f"scikit-learn's own by 'sklearn.<module>:<class>', or a network"
        )
    return model


def _feature_stores(reading: Reading) -> Sequence[TeacherStore]:
    return next(iter(reading.features.values()), ())


def judged(
    ws: Workspace, model: nn.Module, *, precision: str, targets: TargetStore | None, job: Run
) -> dict[str, float]:
    """Return what training is steered by: NLL and accuracy on calibration rows; with targets, how far it is from them.

    "kl" is KL(target ‖ student) at the temperature of the loss, times its square, in nats.
    """
    rows = ws.held_out("calibration", job.entry.reads)
    figures = quick_scores(model, rows, ws.task.truth(ws.plan.splits["calibration"]), ws.task, precision)
    if targets is not None:
        temperature = job.entry.loss.temperature
        wanted = targets.log_probs("calibration", temperature=temperature)
        log_probs = predict(model, iter(rows), precision=precision)
        figures["kl"] = kl_divergence(log_probs, wanted, temperature=temperature).mean().item()
    return figures


def seal(ws: Workspace, student: Student, fitted: Fitted) -> Manifest:
    """Write a trained student: weights, answers on held-out rows, and its manifest."""
    job, model, folder = student.job, student.model, student.folder
    precision = ws.precision(job.entry)
    rows = {name: ws.held_out(name, job.entry.reads) for name in ("calibration", "test")}
    answers = {
        name: predict(model, iter(batches), precision=precision, answers=answers_of(ws.task))
        for name, batches in rows.items()
    }
    folder.mkdir(parents=True, exist_ok=True)
    save_weights(model, folder / WEIGHTS)
    details: dict[str, Any] = {
        "teacher_forwards": 0,  # `train` holds it to that
        "history": fitted.history,
        "best_step": fitted.best_step,
        "steps": fitted.steps,
        "rows": fitted.rows,
    }
    if isinstance(model, ThroughHead):
        details[HEAD_WIDTH] = model.width
    if not ws.task.is_plain:
        details[OUT_SHAPE] = list(out_shape(ws.task.shapes))
    if student.lazy is not None and job.fusion is not None:
        details["teacher_weights"] = dict(zip(ws.fused_teachers(job.fusion), student.lazy.mean_weights, strict=True))
    written, cost = _written(ws, model, rows) if isinstance(ws.task, Tokens) else ({}, {})
    manifest = write(ws, job, folder, answers, student.reading.targets, model=model, details=details, sentences=written)
    write_cost(folder, {"training_seconds": fitted.seconds, **cost})
    (folder / CHECKPOINT).unlink(missing_ok=True)
    return manifest


def _written(
    ws: Workspace, model: nn.Module, rows: Mapping[str, Sequence[Batch]]
) -> tuple[dict[str, Tensor], dict[str, float]]:
    """Return the sentences that a translator writes of held-out rows, by split [N, L], and what that took."""
    from pipeline.teachers.writers import written_by  # here: what else a student streams needs no teacher's code

    started = time.perf_counter()
    found = {
        name: torch.cat([written_by(model, batch.inputs, ws.beams)[0][:, 0].cpu() for batch in batches])
        for name, batches in rows.items()
    }
    seconds = time.perf_counter() - started
    assert isinstance(ws.task, Tokens)
    words = sum(len(text.split()) for tokens in found.values() for text in ws.task.texts(tokens))
    return found, {"writing_seconds": seconds, "words": float(words)}


def write(
    ws: Workspace,
    job: Run,
    folder: Path,
    answers: Mapping[str, Tensor],
    targets: TargetStore | None,
    *,
    model: nn.Module | None,
    details: Mapping[str, Any],
    files: Sequence[str] = (WEIGHTS,),
    sentences: Mapping[str, Tensor] | None = None,
) -> Manifest:
    """Seal a student's folder, whose `files` are there: its answers by split, log-probabilities [N, C] or [N, P].

    Of a translator also the `sentences` that it writes.
    """
    exact = isinstance(ws.task, Tokens)  # whose answers hold numbers of pieces
    kept = {name: (rows if exact else rows.half()).contiguous() for name, rows in answers.items()}
    save_file(kept | {f"{name}_sentences": rows for name, rows in (sentences or {}).items()}, folder / ANSWERS)
    metrics: dict[str, Any] = {
        name: ws.task.metrics(rows, ws.task.truth(ws.plan.splits[name])) for name, rows in answers.items()
    }
    for name, rows in (sentences or {}).items():
        assert isinstance(ws.task, Tokens)
        metrics[name] |= ws.task.sentence_figures(rows, ws.task.truth(ws.plan.splits[name]))
    if targets is not None and not targets.is_real and ws.task.is_plain:
        fused = targets.log_probs("test", temperature=job.entry.loss.temperature)
        metrics["test"]["agreement"] = agreement(answers["test"], fused)
    counted = {} if model is None else {"parameters": count_parameters(model)}
    manifest = Manifest(
        kind="student",
        name=job.name,
        config=config_of(ws, job),
        digests={name: file_digest(folder / name) for name in (*files, ANSWERS)},
        metrics=metrics,
        details={"seed": job.seed, **counted, **details},
    )
    manifest.write(folder)
    return manifest
