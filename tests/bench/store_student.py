"""A small CNN's epochs from a store that must stream, against the same epochs with all targets in memory."""

from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import numpy as np
import torch
from rich.console import Console

from pipeline.loader import Resident, Streamed, TargetLoader
from pipeline.losses import distillation_loss
from pipeline.models import build_model
from pipeline.store import open_targets
from pipeline.train import Run, Schedule, prepare
from pipeline.views import Batch
from pipeline.views.order import cut, global_order
from stages import fuse, logits
from stages.load import load_recipe
from stages.workspace import Workspace
from tests.bench.ratios import alternate, seconds, show
from tests.bench.store_peers import BATCH, CLASSES
from tests.bench.store_write import ARRAY, fill_store, open_writer, without_fsync

CPU = torch.device("cpu")
SHAPE, REPEATS = (1, 28, 28), 5
Epoch = Callable[[], Iterator[Batch]]


def from_targets(outputs: torch.Tensor, batch: Batch) -> object:
    """Return a batch's loss."""
    assert batch.target_log_probs is not None
    return distillation_loss(
        outputs, batch.target_log_probs, batch.labels, batch.partner_labels, batch.mix,
        kind="kl", temperature=1.0, alpha="conditional",
    )  # fmt: skip


def student(num_classes: int) -> Run:
    """Return the CNN, ready to step."""
    model = build_model("vgg_small", num_classes=num_classes, in_shape=SHAPE, width=8)
    prepared = prepare(model, CPU)
    return Run(prepared, from_targets, Schedule(10**9, 10**9), seed=0, precision="fp32", where="bench")  # type: ignore[arg-type]


def train(run: Run, batches: Iterator[Batch]) -> None:
    """Step through an epoch."""
    run.model.train()
    for batch in batches:
        run.step(batch)


def compare_epochs(name: str, run: Run, a: Epoch, b: Epoch) -> None:
    """Print the time of an epoch of `a` ÷ one of `b`."""
    times = [partial(seconds, lambda epoch=epoch: train(run, epoch())) for epoch in (a, b)]
    show(name, alternate(*times, REPEATS), "goal <= 1.05")


def recipe_ratio() -> None:
    """Print the ratio on the small recipe's targets, whose artefacts are made when they are not there."""
    ws = Workspace(load_recipe("smoke"), Path("data"), Console(quiet=True))
    logits.run(ws)
    targets = open_targets(fuse.ensure(ws, ws.recipe.fusion[0]))
    streamed, resident = (
        TargetLoader(targets, ws.dataset, batch_size=BATCH, memory_budget=budget) for budget in (0, 1 << 40)
    )
    assert streamed.is_streaming
    assert not resident.is_streaming
    run = student(len(ws.classes))
    name = f"CNN, recipe {ws.recipe.name!r}, 10 classes: streamed ÷ in memory"
    compare_epochs(name, run, streamed.__iter__, resident.__iter__)


def wide_batches(source: Streamed | Resident, count: int, inputs: torch.Tensor) -> Iterator[Batch]:
    """Yield an epoch of 1000-class targets beside inputs that cost nothing."""
    order = source.order(0)
    for positions in cut(global_order(0, 0, count) if order is None else order, BATCH):
        labels = torch.from_numpy(positions % CLASSES)
        yield Batch(inputs[: len(positions)], labels, None, None, positions, 0, source.rows(0, positions))


def wide_ratio(rows: np.ndarray, scratch: Path) -> None:
    """Print the ratio on 1000-class targets, a hundred times the bytes a step."""
    with without_fsync():
        fill_store(open_writer(scratch / "wide", len(rows)), rows)
    targets, run, inputs = open_targets(scratch / "wide"), student(CLASSES), torch.randn(BATCH, *SHAPE)
    streamed = Streamed(targets, ARRAY, "train", CPU, seed=0, window=1)
    resident = Resident(targets, ARRAY, "train", CPU)
    epochs = [partial(wide_batches, source, len(rows), inputs) for source in (streamed, resident)]
    compare_epochs("CNN, 1000 classes, no pictures read: streamed ÷ in memory", run, *epochs)


def report(rows: np.ndarray, scratch: Path) -> None:
    """Print both ratios."""
    print("\nstudent epochs: time")
    recipe_ratio()
    wide_ratio(rows[: 1 << 13], scratch)
