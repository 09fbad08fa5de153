"""distill: students stream from a target store, and so do the baselines they are compared with. No teacher is near.

Where the strategy needs the student, they stream from the teachers' own stores, and weigh the teachers as they train.
"""

import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from pipeline.lazy import LAZY, LazyLoss
from pipeline.lineage import Manifest, artefact_folder, file_digest, read_manifest, write_cost
from pipeline.loader import TargetLoader, TeacherLoader
from pipeline.losses import distillation_loss
from pipeline.metrics import agreement, classification_metrics
from pipeline.models import build_model, count_parameters
from pipeline.models.weights import save_weights
from pipeline.store import TargetStore, TeacherStore, open_targets, open_teacher
from pipeline.train import Fitted, Loader, Loss, Schedule, fit, label_loss, predict, prepare, seeded
from pipeline.views import Batch, ViewLoader, imported_code
from stages import fuse
from stages.recipe import FusionEntry, StudentEntry
from stages.show import progress, quick_scores
from stages.workspace import Workspace

LABELS_ONLY = {"kind": "labels"}


@dataclass(frozen=True)
class Run:
    """One student to train: its entry, seed, and the fusion it streams (None: labels alone)."""

    entry: StudentEntry
    role: str  # "student", or the baseline's name
    seed: int
    fusion: FusionEntry | None

    @property
    def name(self) -> str:
        """The artefact's name."""
        role = "" if self.role == "student" else f"-{self.role}"
        return f"{self.entry.name}{role}-s{self.seed}"

    @property
    def is_lazy(self) -> bool:
        """Whether it streams the teachers' own stores."""
        return self.fusion is not None and self.fusion.is_lazy

    @property
    def loss(self) -> dict[str, Any]:
        """What it minimises."""
        return dict(LABELS_ONLY) if self.fusion is None else self.entry.loss.model_dump()


def run(ws: Workspace, *, student: str | None = None) -> None:
    """Train every student and baseline that isn't there; teachers run only if a store is missing."""
    entries: list[StudentEntry] = [ws.recipe.find("student", student)] if student else ws.recipe.student
    fuse.ensure_teacher_stores(ws)
    jobs = [job for entry in entries for job in runs(ws, entry)]
    _ensure_targets(ws, jobs)
    forwards = ws.teacher_forwards
    for job in jobs:
        ensure(ws, job)
    assert ws.teacher_forwards == forwards, "a teacher ran while students trained"
    ws.say("distill", f"teacher_forwards: {ws.teacher_forwards:,}")


def _ensure_targets(ws: Workspace, jobs: list[Run]) -> None:
    """Fuse the target stores that unfinished runs stream from, each once."""
    jobs = [job for job in jobs if not job.is_lazy]
    for fusion in {job.fusion.name: job.fusion for job in jobs if job.fusion is not None}.values():
        if not ws.is_decided(fusion):
            fuse.ensure(ws, fusion)  # before it, nobody knows what its students are made from
    needed = [job.fusion for job in jobs if job.fusion is not None and not ws.is_finished(folder_of(ws, job))]
    for fusion in {ws.target_folder(entry): entry for entry in needed}.values():
        fuse.ensure(ws, fusion)


def runs(ws: Workspace, entry: StudentEntry) -> Iterator[Run]:
    """Yield a student's runs: itself, then its baselines, each over all seeds."""
    fusions: dict[str, FusionEntry | None] = {"student": ws.recipe.find("fusion", entry.fusion)}
    if entry.baselines:
        temperatures = [entry.loss.temperature]
        best = ws.best_teacher([teacher.name for teacher in ws.recipe.teacher])
        uniform = FusionEntry(name="uniform_mean", strategy="mean", temperatures=temperatures)
        single = FusionEntry(name="best_single", strategy="mean", teachers=[best], temperatures=temperatures)
        fusions |= {"uniform_mean": uniform, "best_single": single, "hard_labels": None}
    for role, fusion in fusions.items():
        yield from (Run(entry, role, seed, fusion) for seed in entry.seeds)


def folder_of(ws: Workspace, job: Run) -> Path:
    """Return where a run's student lies."""
    return artefact_folder(ws.root / "students", job.name, config_of(ws, job))


def config_of(ws: Workspace, job: Run) -> dict[str, Any]:
    """Return what a run's student is made from."""
    if job.fusion is None or not job.is_lazy:
        target = None if job.fusion is None else ws.target_config(job.fusion)
        return ws.student_config(job.entry, job.seed, target, job.loss)
    lazy = ws.lazy_config(job.fusion)
    return {**ws.student_config(job.entry, job.seed, lazy, job.loss), "lazy": lazy}


def ensure(ws: Workspace, job: Run) -> Path:
    """Return the folder of a finished student, training it if need be."""
    folder = folder_of(ws, job)
    manifest = read_manifest(folder)
    if manifest is None:
        started = time.perf_counter()
        manifest = _train(ws, job, _source(ws, job), folder)
        ws.made(folder, seconds=time.perf_counter() - started)
    scores = manifest.metrics["test"]
    ws.say("distill", f"{job.name}: test accuracy {scores['accuracy']:.4f}, NLL {scores['nll']:.4f}")
    return folder


Source = TargetStore | Sequence[TeacherStore] | None  # what a run streams: one target, the teachers, labels alone


def _source(ws: Workspace, job: Run) -> Source:
    if job.fusion is None:
        return None
    if not job.is_lazy:
        return open_targets(ws.target_folder(job.fusion))
    entries = [ws.recipe.find("teacher", name) for name in ws.fused_teachers(job.fusion)]
    return [open_teacher(ws.teacher_store_folder(entry)) for entry in entries]


def _train(ws: Workspace, job: Run, source: Source, folder: Path) -> Manifest:
    entry, forwards = job.entry, ws.teacher_forwards
    build = partial(build_model, entry.model, num_classes=len(ws.classes), in_shape=ws.dataset.shape)
    model = prepare(seeded(lambda: build(where=f"student.{entry.name}", **entry.options), job.seed), ws.device)
    steps, epoch = ws.steps(entry, len(ws.plan.splits["train"]))
    schedule = Schedule(steps, epoch, entry.lr, entry.weight_decay, entry.warmup, entry.clip, entry.patience)
    precision, checkpoint = ws.precision(entry), folder / "checkpoint.pt"
    lazy = _lazy_loss(ws, job, model, steps) if job.is_lazy else None
    with progress(ws.console, f"distill {job.name}", steps) as bar:
        fitted = fit(
            model,
            _loader(ws, job, source),
            lazy or _loss(job),
            evaluate=lambda model: quick_scores(model, ws.held_out("calibration"), precision),
            schedule=schedule,
            seed=job.seed,
            where=f"student.{entry.name}",
            precision=precision,
            companion=lazy,
            checkpoint=checkpoint,
            on_step=bar.to,
        )
    answers = {name: predict(model, iter(ws.held_out(name)), precision=precision) for name in ("calibration", "test")}
    save_weights(model, folder / "weights.safetensors")
    save_file({name: rows.half().contiguous() for name, rows in answers.items()}, folder / "answers.safetensors")
    details: dict[str, Any] = {"teacher_forwards": ws.teacher_forwards - forwards}
    if lazy is not None and job.fusion is not None:
        details["teacher_weights"] = dict(zip(ws.fused_teachers(job.fusion), lazy.mean_weights, strict=True))
    manifest = _seal(ws, job, model, source, fitted, answers, folder, details)
    checkpoint.unlink(missing_ok=True)
    return manifest


def _loader(ws: Workspace, job: Run, source: Source) -> Loader:
    """Return what the student streams. On labels alone, batches are as large and hold labelled rows only."""
    if source is None:
        labelled = ws.plan.splits["train"].labelled
        return ViewLoader(ws.replayer, "train", batch_size=job.entry.batch_size, seed=job.seed, positions=labelled)
    temperature = job.entry.loss.temperature
    batch_size, seed = job.entry.batch_size, job.seed
    device, imports = ws.device, imported_code(ws.plan.transforms)
    if isinstance(source, TargetStore):
        return TargetLoader(
            source,
            ws.dataset,
            batch_size=batch_size,
            seed=seed,
            temperature=temperature,
            device=device,
            imports=imports,
        )
    assert job.fusion is not None
    return TeacherLoader(
        source,
        ws.dataset,
        batch_size=batch_size,
        seed=seed,
        calibrate=job.fusion.calibrate,
        device=device,
        imports=imports,
    )


def _lazy_loss(ws: Workspace, job: Run, model: nn.Module, steps: int) -> LazyLoss:
    """Return the loss that weighs the teachers as the student trains, with whatever it learns itself."""
    assert job.fusion is not None
    plan, loss = ws.plan, job.entry.loss
    shows_labels = not all(plan.is_mixed("train", view) for view in range(plan.count))
    return LazyLoss(
        LAZY[job.fusion.strategy](**job.fusion.options),
        model,
        num_teachers=len(ws.fused_teachers(job.fusion)),
        num_classes=len(ws.classes),
        labelled=len(plan.splits["train"].labelled) if shows_labels else 0,
        steps=steps,
        seed=job.seed,
        temperature=loss.temperature,
        alpha=loss.alpha,
        kind=loss.kind,
    )


def _loss(job: Run) -> Loss:
    if job.fusion is None:
        return label_loss
    loss = job.entry.loss

    def from_targets(logits: Tensor, batch: Batch) -> tuple[Tensor, Mapping[str, Tensor]]:
        assert batch.target_log_probs is not None
        return distillation_loss(
            logits,
            batch.target_log_probs,
            batch.labels,
            batch.partner_labels,
            batch.mix,
            kind=loss.kind,
            temperature=loss.temperature,
            alpha=loss.alpha,
        )

    return from_targets


def _seal(
    ws: Workspace,
    job: Run,
    model: nn.Module,
    source: Source,
    fitted: Fitted,
    answers: Mapping[str, Tensor],
    folder: Path,
    details: Mapping[str, Any],
) -> Manifest:
    labels = {name: torch.from_numpy(ws.plan.splits[name].labels) for name in answers}
    metrics: dict[str, Any] = {name: classification_metrics(rows, labels[name]) for name, rows in answers.items()}
    if isinstance(source, TargetStore):
        fused = source.log_probs("test", temperature=job.entry.loss.temperature)
        metrics["test"]["agreement"] = agreement(answers["test"], fused)
    manifest = Manifest(
        kind="student",
        name=job.name,
        config=config_of(ws, job),
        digests={name: file_digest(folder / name) for name in ("weights.safetensors", "answers.safetensors")},
        metrics=metrics,
        details={
            "seed": job.seed,
            "parameters": count_parameters(model),
            "history": fitted.history,
            "best_step": fitted.best_step,
            "steps": fitted.steps,
            "rows": fitted.rows,
            **details,
        },
    )
    manifest.write(folder)
    write_cost(folder, {"training_seconds": fitted.seconds})
    return manifest
