"""distill: students stream from a target store, and so do the baselines they are compared with. No teacher is near."""

import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from pipeline.lineage import Manifest, artefact_folder, file_digest, read_manifest, write_cost
from pipeline.loader import TargetLoader
from pipeline.losses import distillation_loss
from pipeline.metrics import agreement, classification_metrics
from pipeline.models import build_model, count_parameters
from pipeline.models.weights import save_weights
from pipeline.store import TargetStore, open_targets
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
    target = None if job.fusion is None else ws.target_config(job.fusion)
    return ws.student_config(job.entry, job.seed, target, job.loss)


def ensure(ws: Workspace, job: Run) -> Path:
    """Return the folder of a finished student, training it if need be."""
    folder = folder_of(ws, job)
    manifest = read_manifest(folder)
    if manifest is None:
        targets = None if job.fusion is None else open_targets(ws.target_folder(job.fusion))
        started = time.perf_counter()
        manifest = _train(ws, job, targets, folder)
        ws.made(folder, seconds=time.perf_counter() - started)
    scores = manifest.metrics["test"]
    ws.say("distill", f"{job.name}: test accuracy {scores['accuracy']:.4f}, NLL {scores['nll']:.4f}")
    return folder


def _train(ws: Workspace, job: Run, targets: TargetStore | None, folder: Path) -> Manifest:
    entry, forwards = job.entry, ws.teacher_forwards
    build = partial(build_model, entry.model, num_classes=len(ws.classes), in_shape=ws.dataset.shape)
    model = prepare(seeded(lambda: build(where=f"student.{entry.name}", **entry.options), job.seed), ws.device)
    steps, epoch = ws.steps(entry, len(ws.plan.splits["train"]))
    schedule = Schedule(steps, epoch, entry.lr, entry.weight_decay, entry.warmup, entry.clip, entry.patience)
    precision, checkpoint = ws.precision(entry), folder / "checkpoint.pt"
    with progress(ws.console, f"distill {job.name}", steps) as bar:
        fitted = fit(
            model,
            _loader(ws, job, targets),
            _loss(job),
            evaluate=lambda model: quick_scores(model, ws.held_out("calibration"), precision),
            schedule=schedule,
            seed=job.seed,
            where=f"student.{entry.name}",
            precision=precision,
            checkpoint=checkpoint,
            on_step=bar.to,
        )
    answers = {name: predict(model, iter(ws.held_out(name)), precision=precision) for name in ("calibration", "test")}
    save_weights(model, folder / "weights.safetensors")
    save_file({name: rows.half().contiguous() for name, rows in answers.items()}, folder / "answers.safetensors")
    manifest = _seal(ws, job, model, targets, fitted, answers, folder, ws.teacher_forwards - forwards)
    checkpoint.unlink(missing_ok=True)
    return manifest


def _loader(ws: Workspace, job: Run, targets: TargetStore | None) -> Loader:
    """Return what the student streams. On labels alone, batches are as large and hold labelled rows only."""
    if targets is None:
        labelled = ws.plan.splits["train"].labelled
        return ViewLoader(ws.replayer, "train", batch_size=job.entry.batch_size, seed=job.seed, positions=labelled)
    temperature = job.entry.loss.temperature
    batch_size, seed = job.entry.batch_size, job.seed
    return TargetLoader(
        targets,
        ws.dataset,
        batch_size=batch_size,
        seed=seed,
        temperature=temperature,
        device=ws.device,
        imports=imported_code(ws.plan.transforms),
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
    targets: TargetStore | None,
    fitted: Fitted,
    answers: Mapping[str, Tensor],
    folder: Path,
    forwards: int,
) -> Manifest:
    labels = {name: torch.from_numpy(ws.plan.splits[name].labels) for name in answers}
    metrics: dict[str, Any] = {name: classification_metrics(rows, labels[name]) for name, rows in answers.items()}
    if targets is not None:
        fused = targets.log_probs("test", temperature=job.entry.loss.temperature)
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
            "teacher_forwards": forwards,
        },
    )
    manifest.write(folder)
    write_cost(folder, {"training_seconds": fitted.seconds})
    return manifest
