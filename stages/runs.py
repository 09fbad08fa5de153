"""Which students a recipe consists of: each student and its baselines, over all seeds; what each is made from."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipeline import dump
from pipeline.lineage import artefact_folder, fingerprint
from pipeline.tasks import Boxes, Task, Tokens
from stages.recipe import EACH, LABELS, FusionEntry, StudentEntry
from stages.workspace import Workspace

LABELS_ONLY = {"kind": "labels"}


@dataclass(frozen=True)
class Run:
    """One student to train: its entry, seed, and the fusion it streams (None: labels alone).

    Of an ensemble, `member` says which this is; of a born-again student, `parent` is the generation before.
    """

    entry: StudentEntry
    role: str  # "student", or the baseline's name
    seed: int
    fusion: FusionEntry | None
    member: int | None = None
    parent: "Run | None" = None

    @property
    def name(self) -> str:
        """The artefact's name."""
        role = "" if self.role == "student" else f"-{self.role}"
        member = "" if self.member is None else f".m{self.member}"
        return f"{self.entry.name}{role}-s{self.seed}{member}"

    @property
    def is_lazy(self) -> bool:
        """Whether it streams the teachers' own stores."""
        return self.fusion is not None and self.fusion.is_lazy

    @property
    def is_each(self) -> bool:
        """Whether each member of it follows a teacher of its own."""
        return self.fusion is not None and self.fusion.strategy == EACH

    @property
    def draws_seed(self) -> int:
        """What its first weights and its dropout follow: each member's own."""
        return self.seed if self.member is None else 1_000_003 * (self.seed + 1) + self.member

    @property
    def order_seed(self) -> int:
        """What the order of its rows follows."""
        return self.draws_seed if self.entry.order_seed is None else self.entry.order_seed

    def loss(self, task: Task) -> dict[str, Any]:
        """Return what it minimises, as its fingerprint says it."""
        loss = self.entry.loss
        if self.fusion is None:
            return {**LABELS_ONLY, **({"smoothing": loss.smoothing} if self.is_own and loss.smoothing else {})}
        if isinstance(task, Boxes):
            return loss.boxes_config
        if self.fusion.is_of_sentences:
            return loss.sentences_config
        return loss.real_config if task.is_real else loss.config

    @property
    def is_own(self) -> bool:
        """Whether it is what its entry says, and no baseline."""
        return self.role == "student"


def runs(ws: Workspace, entry: StudentEntry) -> Iterator[Run]:
    """Yield a student's runs: itself, then its baselines, each over all seeds."""
    fusions: dict[str, FusionEntry | None] = {"student": fusion_of(ws, entry)}
    if asked := entry.compared_with:
        baselines = {**_baselines(ws, entry, fusions["student"]), "hard_labels": None}
        fusions |= {role: baselines[role] for role in asked}
    for role, fusion in fusions.items():
        yield from (Run(entry, role, seed, fusion) for seed in entry.seeds)
    for seed in entry.seeds if entry.generations > 1 else ():
        yield from _generations(ws, Run(entry, "student", seed, fusions["student"]))


def _baselines(ws: Workspace, entry: StudentEntry, fusion: FusionEntry | None) -> dict[str, FusionEntry]:
    """Return what a student's baselines learn from: all teachers alike, and the best alone."""
    names, of_sentences = [teacher.name for teacher in ws.recipe.teacher], fusion is not None and fusion.is_of_sentences
    best = ws.best_teacher(names, of_sentences=of_sentences)
    if of_sentences:
        return {
            "uniform_mean": FusionEntry(name="uniform_mean", strategy="consensus"),
            "best_single": FusionEntry(name="best_single", strategy="best", teachers=[best]),
        }
    temperatures = [entry.loss.temperature]
    return {
        "uniform_mean": FusionEntry(name="uniform_mean", strategy="mean", temperatures=temperatures),
        "best_single": FusionEntry(name="best_single", strategy="mean", teachers=[best], temperatures=temperatures),
    }


def _generations(ws: Workspace, first: Run) -> Iterator[Run]:
    """Yield the generations after the first, each taught by the one before."""
    parent, entry = first, first.entry
    for generation in range(2, entry.generations + 1):
        ws.born[parent.name] = dump.teacher_store_config(
            fingerprint(config_of(ws, parent)),
            ws.plan,
            classes=ws.classes,
            features=[],
            codec=ws.recipe.logits.codec,
            max_kl=ws.recipe.logits.max_kl,
            precision=entry.precision,
        )
        own = entry.model_copy(update={"name": f"{entry.name}.g{generation}"})
        fusion = FusionEntry(
            name=own.name, strategy="mean", teachers=[parent.name], temperatures=[entry.loss.temperature]
        )
        parent = Run(own, "student", first.seed, fusion, parent=parent)
        yield parent


def members(job: Run) -> list[Run]:
    """Return the runs that an ensemble is joined from."""
    return [Run(job.entry, job.role, job.seed, job.fusion, member) for member in range(job.entry.ensemble or 0)]


def fusion_of(ws: Workspace, entry: StudentEntry) -> FusionEntry | None:
    """Return the fusion that a student learns from, None for labels alone."""
    if entry.fusion == LABELS:
        return None
    return FusionEntry(name=EACH, strategy=EACH) if entry.fusion == EACH else ws.recipe.find("fusion", entry.fusion)


def folder_of(ws: Workspace, job: Run) -> Path:
    """Return where a run's student lies."""
    return artefact_folder(ws.root / "students", job.name, config_of(ws, job))


def config_of(ws: Workspace, job: Run) -> dict[str, Any]:
    """Return what a run's student is made from."""
    loss = job.loss(ws.task)
    if job.fusion is None:
        config = ws.student_config(job.entry, job.seed, None, loss)
    elif job.is_lazy:
        lazy = ws.lazy_config(job.fusion)
        config = {**ws.student_config(job.entry, job.seed, lazy, loss), "lazy": lazy}
    else:
        config = ws.student_config(job.entry, job.seed, ws.target_config(job.fusion), loss)
    if isinstance(ws.task, Tokens):
        config["beams"] = ws.beams
    if job.entry.ensemble is not None:
        config["members"] = job.entry.ensemble
    return config if job.member is None else {**config, "member": job.member}
