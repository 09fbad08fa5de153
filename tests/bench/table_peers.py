"""make table-peers: students of torchdistill, whose teachers run in the training loop, beside ours from the store.

Each pair has one loss, one teacher, the same batches in the same order, first weights from the same seed and the same
steps of AdamW; their epochs run in turn in one process. What is left between them is how answers are kept (16 bits) and
how the losses round. Runs in .venv-peers, resumable: students that are finished are found.

Trade: neither side picks its best weights by calibration rows and neither decays weights, for theirs would do both
another way.
"""

import json
import logging
import math
import statistics
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from torch import Tensor, nn

from pipeline.lineage import fingerprint, write_durably
from pipeline.loader import TargetLoader
from pipeline.losses import distillation_loss
from pipeline.metrics import agreement, classification_metrics, mean_interval, paired_interval
from pipeline.models import build_model
from pipeline.objective import Objective
from pipeline.store import open_targets
from pipeline.train import Run, Schedule, predict, prepare, seeded
from pipeline.views import Batch, ViewLoader
from stages import data, fuse, logits, teachers
from stages.load import load_recipe
from stages.memory import keep_freed_memory
from stages.recipe import FusionEntry
from stages.workspace import Workspace
from tests.bench.ratios import seconds

SEEDS, EPOCHS, BATCH, LR = range(5), 2, 256, 4e-3
LABELS = {"none": "none", "all": "57,000 rows", "few": "3,000 rows"}


@dataclass(frozen=True)
class Case:
    """One loss in the words of both; theirs times `scale` is ours.

    Their losses leave T² out where labels have no weight. `labels`: those that either sees, of "none", "few", "all".
    """

    name: str
    kind: str
    temperature: float
    theirs: str
    words: Mapping[str, Any]
    scale: float = 1.0
    options: Mapping[str, float] = field(default_factory=dict)
    names: tuple[str, ...] = ("vgg",)
    alpha: float = 0.0
    labels: str = "none"

    @property
    def fusion(self) -> FusionEntry:
        """The target store it learns from: the mean of its teachers, with nothing fitted."""
        entry = {"name": f"peers.{'.'.join(self.names)}", "strategy": "mean", "teachers": list(self.names)}
        return FusionEntry.model_validate(
            {**entry, "calibrate": False, "calibrate_pool": False, "temperatures": [1.0, 2.0, 4.0]}
        )


KD = {"temperature": 4.0}
MIXED = Case("half labels, half KD, T 4", "kl", 4.0, "KDLoss", {**KD, "alpha": 0.5}, alpha=0.5, labels="all")
TRAINED = (
    Case("KD, T 4", "kl", 4.0, "KDLoss", {**KD, "alpha": 0.0}, 16.0),
    Case("KD, T 4", "kl", 4.0, "KDLoss", {**KD, "alpha": 0.0}, 16.0, names=("resnet", "vgg")),
    Case("DIST, T 1", "dist", 1.0, "DISTLoss", {"beta": 1.0, "gamma": 1.0}, options={"beta": 1.0, "gamma": 1.0}),
    MIXED,
)
STANDARDISED = Case("z-scores, T 2", "zscore", 2.0, "LogitStdKDLoss", {"temperature": 2.0, "alpha": 0.0}, 4.0)
FEW = replace(MIXED, words={**MIXED.words, "ignore_index": -1}, labels="few")
COMPARED = (*TRAINED, STANDARDISED, FEW)


class MeanOfTeachers(nn.Module):
    """Several teachers as one: logits whose softmax at the temperature is the mean of theirs at it."""

    def __init__(self, models: Sequence[nn.Module], temperature: float):
        super().__init__()
        self.models, self.temperature = nn.ModuleList(models), temperature

    def forward(self, inputs: Tensor) -> Tensor:
        """Return [B, C, H, W] -> [B, classes]."""
        answers = torch.stack([model(inputs) / self.temperature for model in self.models]).log_softmax(-1)
        return self.temperature * (answers.logsumexp(0) - math.log(len(self.models)))


def teacher_of(ws: Workspace, case: Case) -> nn.Module:
    """Return what theirs asks in its loop, in evaluation mode: their boxes leave that to the caller."""
    models = [teachers.load(ws, ws.recipe.find("teacher", name), layers=[]).model for name in case.names]  # type: ignore[attr-defined]
    return (models[0] if len(models) == 1 else MeanOfTeachers(models, case.temperature)).eval()


def student_of(ws: Workspace, seed: int) -> nn.Module:
    """Return a perceptron with its first weights."""
    shape = {"num_classes": len(ws.classes), "in_shape": ws.dataset.shape}
    return prepare(seeded(lambda: build_model("mlp", width=128, depth=2, **shape), seed), torch.device("cpu"))


def schedule_of(loader: TargetLoader) -> Schedule:
    """Return the rates of both."""
    return Schedule(EPOCHS * len(loader), len(loader), LR, weight_decay=0.0)


def their_loss(case: Case) -> Any:
    """Return their loss on (student's outputs, teacher's, labels), each module's by its path."""
    from torchdistill.losses import mid_level

    root = {"student_module_path": ".", "teacher_module_path": "."}
    io = {"student_module_io": "output", "teacher_module_io": "output"}
    return getattr(mid_level, case.theirs)(**root, **io, **case.words)


def their_box(case: Case, teacher: nn.Module, student: nn.Module, schedule: Schedule) -> Any:
    """Return their training loop's parts: forward passes of both, the loss, a step of optimiser and rate."""
    from torchdistill.core.distillation import get_distillation_box

    term = {"criterion": their_loss(case), "weight": case.scale}  # or AdamW's epsilon would tell T² from 1
    config = {
        "num_epochs": EPOCHS,
        "teacher": {"requires_grad": False, "forward_proc": "forward_batch_only"},
        "student": {"forward_proc": "forward_batch_only"},
        "criterion": {"key": "WeightedSumLoss", "kwargs": {"sub_terms": {"soft": term}}},
        "optimizer": {"key": "AdamW", "kwargs": {"lr": LR, "weight_decay": 0.0, "fused": True}},
        "scheduler": {
            "key": "LambdaLR",
            "kwargs": {"lr_lambda": lambda step: schedule.rate(step) / LR},
            "scheduling_step": 1,
        },
    }
    return get_distillation_box(teacher, student, {}, config, torch.device("cpu"), None, False, 1.0)


def their_epoch(box: Any, batches: Iterable[Batch]) -> None:
    """Train as the examples of their repository do."""
    box.pre_epoch_process()
    for batch in batches:
        box.pre_forward_process()
        loss = box.forward_process(batch.inputs, batch.labels, {})
        box.post_forward_process(loss)
    box.post_epoch_process()


def our_run(case: Case, student: nn.Module, schedule: Schedule, seed: int) -> Run:
    """Return a student of ours, ready to step."""
    objective = Objective(
        student,
        steps=schedule.steps,
        kind=case.kind,
        options=case.options,
        temperature=case.temperature,
        alpha=case.alpha,
    )
    return Run(student, objective, schedule, seed=seed, precision="fp32", where="peers", companion=objective)


def our_epoch(run: Run, batches: Iterable[Batch]) -> None:
    """Step through an epoch."""
    run.model.train()
    for batch in batches:
        run.step(batch)


def shown(ws: Workspace, case: Case, batches: Iterable[Batch]) -> Iterator[Batch]:
    """Yield batches with the labels that a case lets both see: the plan hides all but 3,000."""
    labels = torch.from_numpy(ws.dataset.labels[ws.plan.splits["train"].ids]).long()
    for batch in batches:
        yield replace(batch, labels=labels[batch.positions]) if case.labels == "all" else batch


def loaders(ws: Workspace, case: Case, seed: int) -> tuple[TargetLoader, ViewLoader]:
    """Return what ours and theirs train on: the same rows in the same order."""
    targets = open_targets(fuse.ensure(ws, case.fusion))
    ours = TargetLoader(targets, ws.dataset, batch_size=BATCH, seed=seed, temperature=case.temperature)
    return ours, ViewLoader(ws.replayer, "train", batch_size=BATCH, seed=seed)


def train_pair(ws: Workspace, case: Case, seed: int) -> dict[str, Any]:
    """Return both students' test accuracy, in percent, on how many test rows they agree, and ours ÷ theirs of times."""
    loader, views = loaders(ws, case, seed)
    schedule, ours, theirs = schedule_of(loader), student_of(ws, seed), student_of(ws, seed)
    run, box = our_run(case, ours, schedule, seed), their_box(case, teacher_of(ws, case), theirs, schedule)
    ratios = []
    for _ in range(EPOCHS):
        took = seconds(lambda: our_epoch(run, shown(ws, case, loader)))
        ratios.append(took / seconds(lambda: their_epoch(box, shown(ws, case, views))))
    said = [predict(model, iter(ws.held_out("test"))) for model in (ours, theirs)]
    labels = torch.from_numpy(ws.plan.splits["test"].labels)
    scores = [100 * classification_metrics(each, labels)["accuracy"] for each in said]
    agree = agreement(*said)
    return {"seed": seed, "ours": scores[0], "theirs": scores[1], "agree": 100 * agree, "ratios": ratios}


def pairs(ws: Workspace, case: Case, path: Path) -> list[dict[str, Any]]:
    """Return every seed's pair; those of a file that were made in the same way are taken from it."""
    kept = json.loads(path.read_text()) if path.exists() else {}
    training = {"case": repr(case), "epochs": EPOCHS, "batch": BATCH, "lr": LR, "peer": version("torchdistill")}
    made_from = {"target": ws.target_config(case.fusion), **training}
    rows = kept.setdefault(fingerprint(made_from), [])
    for seed in SEEDS:
        if seed not in [row["seed"] for row in rows]:
            rows.append(train_pair(ws, case, seed))
            write_durably(path, json.dumps(kept, indent=1).encode())
            ws.console.print(f"{case.name}, {case.labels}: {rows[-1]}", soft_wrap=True)
    return rows


# -- what both call the same loss -----------------------------------------------------------------------------------


def compare_losses(ws: Workspace) -> None:
    """Print, for one batch, our value, theirs, the farthest gradients, and how far the store's rounding is from it."""
    columns = ("loss", "labels", "ours", "theirs", "times", "value apart", "gradient apart", "ours from the store")
    print(f"\n| {' | '.join(columns)} |\n{'|---' * len(columns)}|")
    for case in COMPARED:
        loader, views = loaders(ws, case, 0)
        batch, same = next(shown(ws, case, loader)), next(shown(ws, case, views))
        assert torch.equal(batch.inputs, same.inputs)
        with torch.no_grad():
            answers = teacher_of(ws, case)(batch.inputs)
        student = 3 * torch.randn(answers.shape, generator=torch.Generator().manual_seed(0))
        assert isinstance(batch.target_log_probs, Tensor)
        ours = partial(our_value, case, batch.labels, (answers / case.temperature).log_softmax(-1))
        stored = partial(our_value, case, batch.labels, batch.target_log_probs)
        theirs = partial(their_value, case, batch.labels, answers)
        (a, slope), (b, their_slope), (kept, _) = (with_gradient(loss, student) for loss in (ours, theirs, stored))
        apart = (slope - case.scale * their_slope).abs().max() / slope.abs().max()
        figures = f"{a:.6f} | {b:.6f} | {case.scale:g} | {abs(case.scale * b / a - 1):.1e} | {apart:.1e}"
        print(f"| {case.name}, {len(case.names)} | {LABELS[case.labels]} | {figures} | {kept:.6f} |")


def with_gradient(loss: Callable[[Tensor], Tensor], logits: Tensor) -> tuple[float, Tensor]:
    """Return a loss's value and its gradient by the logits [B, C]."""
    logits = logits.clone().requires_grad_()
    value = loss(logits)
    (slope,) = torch.autograd.grad(value, logits)
    return value.item(), slope


def our_value(case: Case, labels: Tensor, targets: Tensor, student: Tensor) -> Tensor:
    """Return the mean over a batch of our loss."""
    words: Mapping[str, Any] = {"kind": case.kind, "temperature": case.temperature, "options": case.options}
    return distillation_loss(student, targets, labels, alpha=case.alpha, **words)[0].mean()


def their_value(case: Case, labels: Tensor, answers: Tensor, student: Tensor) -> Tensor:
    """Return their loss of a batch."""
    return their_loss(case)({".": {"output": student}}, {".": {"output": answers}}, labels)


def few_labels(ws: Workspace) -> None:
    """Print what either does with rows without a label, where student and teacher agree, so that labels are all."""
    batch = next(iter(loaders(ws, FEW, 0)[1]))
    student = torch.zeros(len(batch), len(ws.classes))
    try:
        found = f"{their_value(MIXED, batch.labels, student, student):.4f}"
    except (IndexError, RuntimeError, ValueError) as error:
        found = f"{type(error).__name__}: {error}"
    theirs = their_value(FEW, batch.labels, student, student)
    ours = our_value(FEW, batch.labels, student.log_softmax(-1), student)
    none = their_value(FEW, torch.full_like(batch.labels, -1), student, student)
    share = (batch.labels >= 0).float().mean()
    print(f"\n{MIXED.name}, {share:.1%} of a batch's rows labelled: theirs {found}")
    print(f"with ignore_index -1: theirs {theirs:.4f}, ours {ours:.4f}; theirs where no row is labelled: {none:.4f}")


def show(ws: Workspace, path: Path) -> None:
    """Print the table as Markdown."""
    compared = ("ours, %", "theirs, %", "apart, points", "p", "same answer, %", "epoch's time, ours ÷ theirs")
    columns = ("loss", "teachers", "labels", *compared)
    print(f"\n| {' | '.join(columns)} |\n{'|---' * len(columns)}|")
    for case in TRAINED:
        rows = pairs(ws, case, path)
        ours, theirs = ([row[side] for row in rows] for side in ("ours", "theirs"))
        means = [mean_interval(side) for side in (ours, theirs)]
        apart, ratios = paired_interval(ours, theirs), [ratio for row in rows for ratio in row["ratios"]]
        cells = [
            *(f"{mean.mean:.2f} ± {mean.mean - mean.low:.2f}" for mean in means),
            f"{apart.mean:+.2f} [{apart.low:+.2f}, {apart.high:+.2f}]",
            f"{apart.p_value:.2f}",
            f"{statistics.mean(row['agree'] for row in rows):.1f}",
            f"{statistics.median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f})",
        ]
        print(f"| {case.name} | {', '.join(case.names)} | {LABELS[case.labels]} | {' | '.join(cells)} |", flush=True)


def main() -> None:
    """Make what is missing, compare the losses, train the pairs, print both tables."""
    keep_freed_memory()
    logging.getLogger().setLevel(logging.WARNING)  # theirs logs to the root
    ws = Workspace(load_recipe("fashion"), Path("data"), Console(stderr=True))
    data.run(ws)
    for name in sorted({name for case in TRAINED for name in case.names}):
        logits.ensure(ws, ws.recipe.find("teacher", name))
    rows = sum(ws.plan.views(name) * len(split) for name, split in ws.plan.splits.items())
    once = rows / len(ws.plan.splits["train"])
    print(f"torchdistill {version('torchdistill')}; a teacher's store: as many answers as {once:.1f} of their epochs")
    compare_losses(ws)
    few_labels(ws)
    show(ws, ws.root / "reports" / "peers" / "pairs.json")


if __name__ == "__main__":
    main()
