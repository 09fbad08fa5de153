"""What students of a published table learn from: a teacher's store on some views, and some classes of its rows.

A recipe's students see every row of the recipe's own views; these don't. Stores and students lie in a folder of their
own and are found again; a student takes under a minute, so one that was killed begins again. It keeps its last weights:
calibration rows show every class, so choosing weights on them would show it what its transfer set leaves out.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from pipeline import dump
from pipeline.encoding import choose_encoding
from pipeline.lineage import Manifest, artefact_folder, file_digest, fingerprint, read_manifest
from pipeline.loader import Reading, SharedLoader, open_readings
from pipeline.models import build_model
from pipeline.models.weights import load_weights, save_weights
from pipeline.objective import Objective
from pipeline.store import TeacherStore, open_teacher
from pipeline.train import Run, Trainee, fit_together, label_loss, predict, prepare, seeded
from pipeline.train.run import Loss
from pipeline.views import Batch, Replayer, ViewPlan
from stages import logits, teachers
from stages.recipe import StudentEntry, TeacherEntry, training_config
from stages.show import quick_scores
from stages.workspace import Workspace

SEEDS = range(5)
OWN, WEIGHTS = "published", "weights.safetensors"
LABELS, TEACHER = "labels", "teacher"  # what a student learns from


@dataclass(frozen=True, eq=False)
class Transfer:
    """What students learn from: one teacher's answers on the views of a plan, on the rows of some classes or all."""

    ws: Workspace
    entry: StudentEntry
    store: TeacherStore
    plan: ViewPlan
    classes: tuple[str, ...]

    @property
    def positions(self) -> np.ndarray:
        """The train rows of these classes, in the plan's order."""
        numbers = [self.ws.classes.index(name) for name in self.classes]
        return np.flatnonzero(np.isin(self.plan.splits["train"].labels, numbers))

    def config(self, way: str, seed: int) -> dict[str, Any]:
        """Return what a student of it is made from."""
        return {
            "stage": "table-published",
            "version": 1,
            "store": self.store.fingerprint,
            "classes": list(self.classes),
            "training": training_config(self.entry),
            "loss": self.entry.loss.config if way == TEACHER else LABELS,
            "seed": seed,
        }

    def folder(self, way: str, seed: int) -> Path:
        """Return where a student of it lies."""
        root = self.ws.root / OWN / "students"
        return artefact_folder(root, f"{self.entry.name}-{way}-s{seed}", self.config(way, seed))

    def untrained(self, seed: int) -> nn.Module:
        """Return the student's network, its first weights drawn from the seed."""
        entry, ws = self.entry, self.ws
        shape: dict[str, Any] = {"num_classes": len(ws.classes), "in_shape": ws.dataset.shape}
        built = seeded(lambda: build_model(entry.model, where=f"student.{entry.name}", **shape, **entry.options), seed)
        return prepare(built, ws.device)

    def trained(self, way: str, seed: int) -> nn.Module:
        """Return a finished student's network."""
        return load_weights(self.untrained(seed), self.folder(way, seed) / WEIGHTS).eval()


def store_of(ws: Workspace, name: str, plan: ViewPlan) -> TeacherStore:
    """Return a teacher's store on a plan's views: the recipe's own, or one more of the same teacher."""
    entry: TeacherEntry = ws.recipe.find("teacher", name)
    if plan.fingerprint == ws.plan.fingerprint:
        return open_teacher(logits.ensure(ws, entry))
    made_from = fingerprint(ws.teacher_config(entry))
    config = dump.teacher_store_config(
        made_from, plan, classes=ws.classes, features=[], codec="fp16", precision=entry.precision
    )
    folder = artefact_folder(ws.root / OWN / "logits", name, config)
    if read_manifest(folder) is None:
        teachers.ensure(ws, entry)
        teacher, replayer = teachers.load(ws, entry, layers=[]), Replayer(plan, ws.dataset, device=ws.device)
        asked: dict[str, Any] = {"codec": "fp16", "max_kl": 1e-4, "feature_codec": "fp16"}
        encoding = choose_encoding(teacher, replayer, task=ws.task, where=f"teacher.{name}", **asked)
        writer = dump.open_writer(folder, name, config, plan, encoding)
        dump.dump(teacher, replayer, writer, encoding, details={"seed": entry.seed})
    return open_teacher(folder)


def ensure(transfer: Transfer, ways: Sequence[str] = (LABELS, TEACHER)) -> None:
    """Train the students of all seeds that aren't there: those of one seed in one pass, in the same order of rows."""
    for seed in SEEDS:
        wanted = [way for way in ways if read_manifest(transfer.folder(way, seed)) is None]
        if wanted:
            train(transfer, wanted, seed)
            transfer.ws.say("published", f"{transfer.entry.name} s{seed}: {', '.join(wanted)}")


def train(transfer: Transfer, ways: Sequence[str], seed: int) -> None:
    """Train one seed's students from one loader and keep their weights; as many steps, however few the rows."""
    ws, entry = transfer.ws, transfer.entry
    reading = Reading(teachers=(transfer.store,), calibrate=False)
    replayer = open_readings([reading], ws.dataset, device=ws.device)
    size, rows = entry.batch_size, transfer.positions
    loader = SharedLoader([reading] * len(ways), replayer, batch_size=size, seed=seed, positions=rows)
    steps, _ = ws.steps(entry, len(transfer.plan.splits["train"]))
    precision = ws.precision(entry)
    evaluate = partial(quick_scores, batches=ws.held_out("calibration"), precision=precision)
    trainees = []
    for way in ways:
        model = transfer.untrained(seed)
        loss = label_loss if way == LABELS else soft_loss(model, entry, steps)
        where, schedule = f"student.{entry.name}", ws.schedule(entry, steps, steps)  # evaluated once, at its end
        run = Run(model, loss, schedule, seed=seed, precision=precision, where=where)
        trainees.append(Trainee(run, evaluate))
    for index, fitted in fit_together(trainees, loader):
        if isinstance(fitted, Exception):
            raise fitted
        keep(transfer, ways[index], seed, trainees[index].run.model, {"rows": len(rows), "steps": fitted.steps})


def keep(transfer: Transfer, way: str, seed: int, model: nn.Module, details: Mapping[str, Any]) -> None:
    """Write a trained student's weights and seal its folder."""
    folder = transfer.folder(way, seed)
    save_weights(model, folder / WEIGHTS)
    digests, name = {WEIGHTS: file_digest(folder / WEIGHTS)}, f"{transfer.entry.name}-{way}-s{seed}"
    Manifest("student", name, transfer.config(way, seed), digests, details=details).write(folder)


def soft_loss(model: nn.Module, entry: StudentEntry, steps: int) -> Loss:
    """Return the recipe's loss for one teacher's logits, which come as those of the only member of a fusion."""
    said = entry.loss
    objective = Objective(
        model, steps=steps, kind=said.kind, options=said.options, temperature=said.temperature, alpha=said.alpha
    )

    def loss(logits: Tensor, batch: Batch) -> tuple[Tensor, Mapping[str, Tensor]]:
        assert batch.teacher_logits is not None
        (only,) = batch.teacher_logits
        targets = (only / said.temperature).log_softmax(-1)
        return objective(logits, replace(batch, target_log_probs=targets, teacher_logits=None))

    return loss


def answers(transfer: Transfer, way: str, seed: int, split: str) -> tuple[Tensor, Tensor]:
    """Return a finished student's log-probabilities [N, C] and the labels [N] of a held-out split."""
    batches = transfer.ws.held_out(split)
    return predict(transfer.trained(way, seed), iter(batches)), torch.cat([batch.labels for batch in batches]).cpu()
