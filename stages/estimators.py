"""scikit-learn students: no steps and no batches, but targets all the same; fitted to a few views of every row."""

import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from pipeline.errors import StillroomError
from pipeline.loader import Reading, open_readings
from pipeline.losses import make_alpha
from pipeline.losses.alphas import Seen
from pipeline.models import ESTIMATORS, REGRESSORS, SoftTargetEstimator, build_model
from pipeline.sparse import SparseTargets
from pipeline.tasks import Reals
from pipeline.views import Batch, Replayer, ViewLoader, imported_code
from stages.objectives import real_loss
from stages.recipe import Training
from stages.runs import Run, folder_of
from stages.show import progress
from stages.students import reading_of, write
from stages.workspace import Workspace

TINY = 1e-30  # a probability of nothing, as a log-probability that is finite


def is_estimator(entry: Training) -> bool:
    """Whether a student or teacher is one of scikit-learn's, which has no network and is fitted once."""
    model = entry.model
    return model.split(".")[0] == "sklearn" or model in ESTIMATORS or model in REGRESSORS


def fit(ws: Workspace, job: Run) -> list[str]:
    """Fit and seal a run's student; return what went wrong."""
    return _fit_reals(ws, job, ws.task) if isinstance(ws.task, Reals) else _fit_classes(ws, job)


def _fit_classes(ws: Workspace, job: Run) -> list[str]:
    started, where = time.perf_counter(), f"student.{job.entry.name}"
    folder, reading = folder_of(ws, job), reading_of(ws, job)
    try:
        if job.entry.model in REGRESSORS:
            raise StillroomError(
                f"{where}.model: found {job.entry.model!r}, which answers with real numbers; expected a model of "
                f"classes; name another"
            )
        if not ws.shape(job.entry.reads):
            raise StillroomError(
                f"{where}.reads: found text; expected numbers, for soft targets are fitted to those alone; name an "
                f"input of another kind, or another model"
            )
        estimator = build_model(
            job.entry.model,
            num_classes=len(ws.classes),
            in_shape=ws.shape(job.entry.reads),
            where=where,
            takes_regressors=True,
            **job.entry.options,
        )
        student = SoftTargetEstimator(estimator, len(ws.classes), space=job.entry.space, where=where)
        with progress(ws.console, f"distill {job.name}", None):
            inputs, targets = rows_of(ws, job, reading)
            student.fit(inputs, targets, seed=job.draws_seed)
    except StillroomError as error:
        return [f"{job.name}: {error}"]
    answers = {name: _answers(ws, job, student, name) for name in ("calibration", "test")}
    files = _save(student, folder)
    details = {"teacher_forwards": 0, "history": [], "steps": 0, "rows": len(inputs), "parameters": None}
    write(ws, job, folder, answers, reading.targets, model=None, details=details, files=files)
    ws.made(folder, seconds=time.perf_counter() - started)
    return []


def _fit_reals(ws: Workspace, job: Run, task: Reals) -> list[str]:
    from pipeline.teachers import RegressorTeacher, fit_rows  # here, for no other student needs the code of teachers

    started, where = time.perf_counter(), f"student.{job.entry.name}"
    folder, reading, reads = folder_of(ws, job), reading_of(ws, job), job.entry.reads
    try:
        how: dict[str, Any] = {"num_classes": len(ws.classes), "in_shape": ws.shape(reads), "where": where}
        estimator = build_model(job.entry.model, **how, is_real=True, **job.entry.options)
        with progress(ws.console, f"distill {job.name}", None):
            inputs, targets = numbers_of(ws, job, reading)
            estimator = fit_rows(estimator, [inputs], task.in_units(targets), seed=job.draws_seed, where=where)
    except StillroomError as error:
        return [f"{job.name}: {error}"]
    student = RegressorTeacher(estimator, task.standardised, where=where)  # it answers just as one that teaches
    answers = {
        name: torch.cat([student.predict(batch.inputs).logits for batch in ws.held_out(name, reads)])
        for name in ("calibration", "test")
    }
    folder.mkdir(parents=True, exist_ok=True)
    files = student.save(folder)
    details = {"teacher_forwards": 0, "history": [], "steps": 0, "rows": len(targets), "parameters": None}
    write(ws, job, folder, answers, reading.targets, model=None, details=details, files=files)
    ws.made(folder, seconds=time.perf_counter() - started)
    return []


def numbers_of(ws: Workspace, job: Run, reading: Reading) -> tuple[Any, Tensor]:
    """Return what a regressor is fitted to: inputs [N, ...] and numbers [N, P], NaN where there is nothing to learn.

    They are what minimises alpha * squared error of the label + (1 - alpha) * that of the teachers: a mean of both
    where a number is known. Raises: StillroomError for a loss of the teachers' that is none of squares.
    """
    reads = job.entry.reads
    if reading.targets is None:
        batch = ws.replayer_of(reads).batch("train", 0, ws.plan.splits["train"].labelled)
        assert batch.targets is not None
        return batch.inputs, batch.targets.cpu()
    loss = real_loss(job)
    if loss.kind != "mse":
        raise StillroomError(
            f"student.{job.entry.name}.loss.kind: found {loss.kind!r}; expected 'mse', for this student is fitted to "
            f"squares alone; change it"
        )
    replayer = open_readings([reading], ws.samples(reads), device=ws.device)
    batch = replayer.batch("train", 0, np.arange(len(ws.plan.splits["train"])))
    assert batch.targets is not None
    return batch.inputs, mixed(reading.targets.means("train"), batch.targets.cpu(), loss.alpha)


def mixed(means: Tensor, targets: Tensor, alpha: float) -> Tensor:
    """Return what minimises the loss of rows that show `targets`, NaN where unknown: [N, P], [N, P] -> [N, P].

    A row's known numbers share alpha, all its numbers share 1 - alpha; NaN where neither says anything.
    """
    is_known = targets.isfinite().double()
    own = alpha * is_known / is_known.sum(-1, keepdim=True).clamp(min=1)
    theirs = (1 - alpha * is_known.amax(-1, keepdim=True)) / targets.shape[-1]
    return (own * targets.nan_to_num() + theirs * means) / (own + theirs)  # 0 / 0 is NaN


def _save(student: SoftTargetEstimator, folder: Path) -> list[str]:
    folder.mkdir(parents=True, exist_ok=True)
    return list(student.save(folder))


def _answers(ws: Workspace, job: Run, student: SoftTargetEstimator, split: str) -> Tensor:
    return torch.cat([student.log_probs(batch.inputs.cpu()) for batch in ws.held_out(split, job.entry.reads)])


def rows_of(ws: Workspace, job: Run, reading: Reading) -> tuple[Tensor, Tensor]:
    """Return what an estimator is fitted to: inputs [N, ...] and log-probabilities [N, C], its `fit_views` of each row.

    Its alpha is in the targets, for at temperature 1 alpha CE + (1 - alpha) KL is the cross-entropy to their mixture
    (SCIENCE 0.3). Raises: StillroomError for a rule for alpha that follows the training, and lazy fusions.
    """
    views = range(min(job.entry.fit_views, ws.plan.count))
    if job.fusion is None:
        labelled = ws.plan.splits["train"].labelled
        parts = [ws.replayer_of(job.entry.reads).batch("train", view, labelled) for view in views]
        return torch.cat([part.inputs.cpu() for part in parts]), torch.cat([_labels(part, ws) for part in parts])
    if reading.targets is None:
        raise StillroomError(
            f"found fusion {job.fusion.name!r}, which needs the student's steps; expected a stored one; name another"
        )
    imports = imported_code(ws.plan.transforms)
    replayer = open_readings([reading], ws.samples(job.entry.reads), device=ws.device, imports=imports)
    seen = [_view(replayer, reading, job, view) for view in views]
    return torch.cat([inputs for inputs, _ in seen]), torch.cat([targets for _, targets in seen])


def _labels(batch: Batch, ws: Workspace) -> Tensor:
    onehot = functional.one_hot(batch.labels.cpu(), len(ws.classes)).double()
    if batch.mix is not None and batch.partner_labels is not None:
        share = batch.mix.cpu().double()[:, None]
        partner = functional.one_hot(batch.partner_labels.cpu().clamp(min=0), len(ws.classes)).double()
        onehot = share * onehot + (1 - share) * partner
    return onehot.clamp(min=TINY).log()


def _view(replayer: Replayer, reading: Reading, job: Run, view: int) -> tuple[Tensor, Tensor]:
    """Return one view's inputs and targets, corrected by the labels that are shown."""
    assert reading.targets is not None
    rule = make_alpha(job.entry.loss.alpha, f"student.{job.entry.name}.loss")
    if rule.follows_training:
        raise StillroomError(
            f"loss.alpha: found {job.entry.loss.alpha!r}, which follows the training; expected a number, 'conditional' "
            f"or 'soft', for this student takes no steps; change it"
        )
    targets = reading.targets
    stored = targets.read_field("train", targets.field_at(reading.temperature), view)
    decoded = targets.decode_field(targets.field_at(reading.temperature), "train", stored)
    log_probs = (decoded.dense(targets.num_classes) if isinstance(decoded, SparseTargets) else decoded).double()
    positions = ViewLoader(replayer, "train", batch_size=1, seed=0).positions
    batch = replayer.batch("train", view, positions)
    labels = batch.labels.cpu()
    unmixed = torch.ones_like(labels, dtype=torch.bool) if batch.mix is None else batch.mix.cpu() == 1
    labelled = (labels >= 0) & unmixed
    zero = torch.zeros(len(labels), dtype=torch.float64)
    ce_weight, _ = rule(Seen(log_probs, reading.temperature, labels, unmixed, labelled, zero, zero, 0.0))
    alpha = torch.where(labelled, ce_weight.clamp(0, 1), 0.0).detach()[:, None]
    onehot = functional.one_hot(labels.clamp(min=0), targets.num_classes).double()
    return batch.inputs.cpu(), (alpha * onehot + (1 - alpha) * log_probs.exp()).clamp(min=TINY).log()
