"""What a student minimises, what learns beside it, and what weighs its teachers where that needs the student."""

from collections.abc import Sequence
from functools import partial

from torch import nn

from pipeline.lazy import LAZY, LazyLoss
from pipeline.losses import RealDistillation
from pipeline.objective import BoxesObjective, Followed, Objective, RealObjective
from pipeline.tasks import Boxes, Classes
from pipeline.train import Companion, Loss, label_loss
from stages.runs import Run
from stages.workspace import Workspace


def objective_of(
    ws: Workspace, job: Run, model: nn.Module, followed: Sequence[Followed], steps: int
) -> tuple[Loss, Companion | None, LazyLoss | None]:
    """Return what a run minimises, what learns beside it, and what weighs the teachers where that needs the student."""
    loss = job.entry.loss
    if job.fusion is not None and job.fusion.is_of_sentences:
        return ws.task.loss, None, None  # what it learns from are labels by now
    if not isinstance(ws.task, Classes):
        return ws.task.loss if job.fusion is None else _of_others(ws, job), None, None
    if job.fusion is None:
        smoothing = loss.smoothing if job.is_own else 0.0
        return partial(label_loss, smoothing=smoothing), None, None
    objective = Objective(
        model,
        steps=steps,
        kind=loss.kind,
        options=loss.options,
        temperature=loss.temperature,
        alpha=loss.alpha,
        smoothing=loss.smoothing,
        followed=followed,
        held_out=ws.held_out("calibration", job.entry.reads),
        where=f"student.{job.entry.name}",
    )
    if not job.is_lazy or job.is_each:
        return objective, objective, None
    lazy = lazy_loss(ws, job, model, objective, steps)
    return lazy, lazy, lazy


def _of_others(ws: Workspace, job: Run) -> Loss:
    """Return what a run minimises that follows teachers of boxes or of real numbers."""
    return boxes_loss(ws.task, job) if isinstance(ws.task, Boxes) else RealObjective(real_loss(job))


def boxes_loss(task: Boxes, job: Run) -> BoxesObjective:
    """Return what a run that follows teachers of boxes minimises."""
    said = {key: value for key, value in job.entry.loss.boxes_config.items() if key != "kind"}
    options = {key: said.pop(key) for key in job.entry.loss.options}
    return BoxesObjective(task, **said, options=options, where=f"student.{job.entry.name}.loss")


def real_loss(job: Run) -> RealDistillation:
    """Return what a run that follows real numbers minimises."""
    loss = job.entry.loss
    said = {key: value for key, value in loss.real_config.items() if key not in loss.options}
    return RealDistillation(**said, options=loss.options, where=f"student.{job.entry.name}.loss")


def lazy_loss(ws: Workspace, job: Run, model: nn.Module, objective: Objective, steps: int) -> LazyLoss:
    """Return the loss that weighs the teachers as the student trains, with whatever it learns itself."""
    assert job.fusion is not None
    plan = ws.plan
    return LazyLoss(
        LAZY[job.fusion.strategy](**job.fusion.options),
        model,
        objective,
        num_teachers=len(ws.fused_teachers(job.fusion)),
        num_classes=len(ws.classes),
        labelled=len(plan.splits["train"].labelled) if plan.plain else 0,
        steps=steps,
        seed=job.draws_seed,
    )
