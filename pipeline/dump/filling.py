"""Filling a teacher store: every block that is missing, and the teacher's figures on held-out rows."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pipeline.answers import Teacher
from pipeline.dump import asking
from pipeline.dump.asking import FoldModels
from pipeline.dump.config import teacher_layout
from pipeline.encoding import Encoding
from pipeline.store import HEAD, Block, Computed, Filled, StoreWriter, fill
from pipeline.store.fields import (
    HYPOTHESES,
    field_array,
)
from pipeline.store.fill import Run
from pipeline.tasks import Classes, Task, Tokens, task_of
from pipeline.transfer import HostCopies
from pipeline.views import OUT_OF_FOLD, Replayer, ViewPlan


def open_writer(
    folder: Path,
    name: str,
    config: Mapping[str, Any],
    plan: ViewPlan,
    encoding: Encoding,
    *,
    weights: Mapping[str, str] | None = None,
    head: tuple[np.ndarray, np.ndarray] | None = None,
    task: Task | None = None,
) -> StoreWriter:
    """Return the writer of a teacher store; `weights` are the sha256 of the teacher's files by name.

    `head` is its classifier, weights [C, D] and offsets [C], for students that answer through it; `task` what it was
    asked, the config's classes unless it is given.
    """
    asked: Task = task or Classes(tuple(config["classes"]))
    attributes = {
        "plan": plan.config,
        "classes": config["classes"],
        "fields": {name: "real" if name in asked.numbers else "categorical" for name in encoding.shapes},
        "weights": dict(weights or {}),
        **encoding.attributes,
        **asked.attributes,
        **({} if asked.is_plain or asked.truth_kept is None else asked.truth_kept.json),
        **({} if head is None else {"head": True}),
    }
    return StoreWriter(
        folder,
        teacher_layout(plan, encoding, asked),
        kind="teacher store",
        name=name,
        config=config,
        attributes=attributes,
        constants=encoding.constants | ({} if head is None else dict(zip(HEAD, head, strict=True))),
    )


def dump(
    teacher: Teacher,
    replayer: Replayer,
    writer: StoreWriter,
    encoding: Encoding,
    *,
    batch_size: int = 256,
    details: Mapping[str, Any],
    folds: FoldModels | None = None,
    run: Run = map,
    on_block: Callable[[Block], None] = lambda block: None,
) -> Filled:
    """Fill a teacher store; `details` go into its manifest beside the teacher's figures on held-out rows.

    On a GPU, replaying goes on a batch ahead in one thread and writing a block behind in another; a failure in either
    stops the dump.

    Raises: StillroomError when an answer isn't finite or has another number of classes.
    """
    on_gpu = replayer.device.type == "cuda"
    copies = HostCopies(replayer.device)

    def compute(block: Block) -> Callable[[], Computed]:
        where, own = f"teacher.{writer.name}", folds if block.split == OUT_OF_FOLD else None
        return asking.answer(
            teacher, replayer, block, encoding, batch_size=batch_size, folds=own, copies=copies, where=where
        )

    def figures() -> dict[str, Any]:
        return {**details, **held_out_figures(writer, encoding, replayer.plan)}

    behind = 2 if on_gpu else 0  # on a CPU torch owns every core, and one thread more only waits for one
    return fill(writer, compute, run=run, write_behind=behind, on_block=on_block, details=figures)


def held_out_figures(writer: StoreWriter, encoding: Encoding, plan: ViewPlan) -> dict[str, Any]:
    """Return the teacher's figures on calibration rows, test rows and out of fold, and what is fitted on the first.

    Those out of fold are its fold models', at its own temperature.
    """
    splits = [name for name in ("calibration", "test", OUT_OF_FOLD) if name in plan.splits]
    task = task_of(writer.attributes)
    truths = {name: task.truth(plan.splits[name]) for name in splits}
    figures: dict[str, Any] = {"scores": {name: {} for name in splits}}
    if encoding.outputs:
        figures = task.teacher_figures({name: _committed(writer, encoding, name) for name in splits}, truths)
    if encoding.sentences is not None:
        assert isinstance(task, Tokens)
        for name in splits:
            first = torch.from_numpy(writer.read(name, HYPOTHESES)[:, 0].astype(np.int64))
            figures["scores"][name] |= task.sentence_figures(first, truths[name])
    return figures


def _committed(writer: StoreWriter, encoding: Encoding, split: str) -> Tensor:
    """Return a split's outputs as they were committed."""
    stored = {
        each.name: {
            part: torch.from_numpy(writer.read(split, field_array(each.name, part)))
            for part in each.codec_in(split).parts(each.num_classes)
        }
        for each in encoding.outputs
    }
    return encoding.decode(split, stored)
