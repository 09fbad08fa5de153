"""python -m tests.bench.shuffle: what a shuffle window costs a student, against the order shuffled over all rows.

The data set lies in class order, as a folder of pictures does: 16,384 samples in blocks of 256 rows are 64 blocks. Two
figures for each window: the mean entropy of a batch's labels, against what batches drawn uniformly are expected to
have, and a student's calibration NLL at the end of its schedule, paired by seed with the global order's. Same weights
at the start, same steps, same rows an epoch; only the order differs. A window of all 64 blocks is the control: another
draw of the global order, so its interval shows what noise alone does. The default should be the smallest window that
cannot be told from the global order, nor can any larger one: entropy within `ENTROPY_WITHIN`, and the interval of the
NLL difference holds zero or ends below `MARGIN` nats.

Twice: with positions in the data set's order, and as view plans give them out, at random. In class order no window
short of the whole store will do: while a stretch of one class is longer than a block, a block is one draw from the
classes however many rows it has, and a window of W out of M blocks costs about (C - 1) / 2 * (1 / W - 1 / M) nats of
entropy, as the last table shows from labels alone. That is why plans draw positions.

Trade: teachers and student are small, so that it takes minutes; their stores are made once, under data/.
"""

import inspect
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import takewhile
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import Console
from scipy.stats import hypergeom
from torch import Tensor

from pipeline.loader import Resident, TargetLoader
from pipeline.losses import distillation_loss
from pipeline.metrics import PairedInterval, paired_interval
from pipeline.models import build_model
from pipeline.store import TargetStore, open_targets
from pipeline.store.layout import MAX_ROWS
from pipeline.train import Schedule, fit, prepare, seeded
from pipeline.views import Batch, ViewLoader
from pipeline.views.order import cut, global_order, windowed_order
from stages import fuse
from stages.load import load_recipe
from stages.memory import keep_freed_memory
from stages.recipe import StudentEntry
from stages.show import quick_scores
from stages.workspace import Workspace

OVERRIDES = (
    "name=shuffle",
    "data.max_train=20480",
    "data.calibration=0.2",  # leaves 16,384 train rows
    "data.labelled=2000",
    "teacher.vgg.width=8",
    "teacher.vgg.epochs=8",
    "teacher.vgg.lr=5e-3",
    "student.tiny.epochs=10",
    "student.tiny.batch_size=256",
)
BLOCK_ROWS = 256
DEFAULT: int = inspect.signature(TargetLoader).parameters["window"].default
WINDOWS = sorted({1, 4, 16, 64, DEFAULT})
SEEDS = {"in class order": range(5), "at random, as plans give them": range(12)}  # by where positions are
ENTROPY_WITHIN, MARGIN = 0.01, 0.002  # a share of the expected entropy; nats: 0.3 % of the student's NLL

Order = Callable[[int], np.ndarray]  # epoch -> positions, each once


@dataclass(frozen=True)
class Layout:
    """A store's samples in class order, classes of equal size."""

    num_classes: int
    rows: int
    block_rows: int

    @property
    def labels(self) -> np.ndarray:
        """Labels by position: int64 [rows]."""
        return np.arange(self.rows) * self.num_classes // self.rows


LAYOUTS = (
    Layout(10, 1 << 14, 256),
    Layout(10, 1 << 20, 16384),  # as many blocks, each 64 times the rows
    Layout(10, 1 << 18, 256),
    Layout(10, 57_000, 16384),  # the recipe `fashion`
    Layout(1000, 1_280_000, 4096),  # what fp16 stores of 1000 classes have
)


def entropy(counts: np.ndarray) -> np.ndarray:
    """Return the entropy of label counts in nats, within [0, log C]: `[..., C] -> [...]`."""
    shares = counts / counts.sum(-1, keepdims=True)
    return -(shares * np.log(np.where(shares > 0, shares, 1))).sum(-1)


def batch_entropy(labels: np.ndarray, order: np.ndarray, batch_size: int) -> float:
    """Return the mean entropy of an epoch's batches in nats: labels [N] by position, positions in order [N]."""
    num_classes = int(labels.max()) + 1
    batches = cut(order, batch_size)
    return float(np.mean([entropy(np.bincount(labels[rows], minlength=num_classes)) for rows in batches]))


def expected_entropy(class_sizes: np.ndarray, batch_size: int) -> float:
    """Return the expected entropy in nats of a batch drawn without replacement from classes of these sizes: [C].

    A class's count is hypergeometric, and the entropy is a sum over classes.
    """
    count = np.arange(1, batch_size + 1)
    share = count / batch_size
    terms = [-share * np.log(share) * hypergeom.pmf(count, class_sizes.sum(), n, batch_size) for n in class_sizes]
    return float(np.sum(terms))


def shuffled(size: int, *, seed: int, window: int | None, block_rows: int) -> Order:
    """Return the windowed order of positions, or for no window the global one."""
    if window is None:
        return lambda epoch: global_order(seed, epoch, size)
    return lambda epoch: np.concatenate(windowed_order(seed, epoch, size, block_rows, window))


class HeldRows:
    """Every view of the train split in memory with its targets: what `ViewLoader` asks of a replayer, by indexing.

    Its positions are the plan's, or in class order.
    """

    def __init__(self, ws: Workspace, targets: TargetStore, temperature: float, *, in_class_order: bool):
        self.plan = ws.plan
        labels = ws.dataset.labels[ws.plan.splits["train"].ids]
        places = np.argsort(labels, kind="stable") if in_class_order else np.arange(len(labels))
        self.labels = labels[places]
        resident = Resident(targets, targets.field_at(temperature), "train", ws.device)
        self._views = [
            replace(ws.replayer.batch("train", view, places), target_log_probs=resident.rows(view, places))
            for view in range(ws.plan.count)
        ]

    def batch(self, split: str, view: int, positions: np.ndarray) -> Batch:
        """Return rows by their place."""
        chosen = torch.from_numpy(positions)
        rows = {name: part[chosen] for name, part in vars(self._views[view]).items() if isinstance(part, Tensor)}
        return replace(self._views[view], positions=positions, **rows)


@dataclass(frozen=True)
class Study:
    """A student to train again and again, and its rows."""

    ws: Workspace
    entry: StudentEntry
    rows: HeldRows
    positions: str

    @property
    def seeds(self) -> range:
        """Of its students."""
        return SEEDS[self.positions]

    def order(self, window: int | None, seed: int) -> Order:
        """Return the order a student sees."""
        return shuffled(len(self.rows.labels), seed=seed, window=window, block_rows=BLOCK_ROWS)

    def entropy(self, window: int | None) -> float:
        """Return the mean entropy of all batches that the students see."""
        epochs, size = round(self.entry.epochs), self.entry.batch_size
        orders = [self.order(window, seed)(epoch) for seed in self.seeds for epoch in range(epochs)]
        return float(np.mean([batch_entropy(self.rows.labels, order, size) for order in orders]))

    def train(self, window: int | None, seed: int) -> float:
        """Return a student's calibration NLL after its last step: the best on the way would hide a bad order."""
        entry, ws = self.entry, self.ws
        build = lambda: build_model(  # noqa: E731
            entry.model, num_classes=len(ws.classes), in_shape=ws.dataset.shape, **entry.options
        )
        steps, _ = ws.steps(entry, len(self.rows.labels))
        fitted = fit(
            prepare(seeded(build, seed), ws.device),
            ViewLoader(
                self.rows,  # type: ignore[arg-type]
                "train",
                batch_size=entry.batch_size,
                seed=seed,
                order=self.order(window, seed),
            ),
            self.loss,
            evaluate=lambda model: quick_scores(model, ws.held_out("calibration"), ws.precision(entry)),
            schedule=Schedule(steps, steps, entry.lr, entry.weight_decay, entry.warmup, entry.clip),
            seed=seed,
            where=f"student.{entry.name}",
            precision=ws.precision(entry),
        )
        return fitted.history[-1]["nll"]

    def loss(self, logits: Tensor, batch: Batch) -> Any:
        """Return the recipe's loss."""
        options, targets = self.entry.loss.model_dump(), batch.target_log_probs
        assert targets is not None
        return distillation_loss(logits, targets, batch.labels, batch.partner_labels, batch.mix, **options)


def open_studies() -> list[Study]:
    """Return a study for each way that positions can lie, their stores made when they are not there."""
    ws = Workspace(load_recipe("smoke", OVERRIDES), Path("data"), Console(quiet=True))
    fuse.ensure_teacher_stores(ws)
    entry: StudentEntry = ws.recipe.find("student", "tiny")
    targets = open_targets(fuse.ensure(ws, ws.recipe.find("fusion", entry.fusion)))
    return [
        Study(ws, entry, HeldRows(ws, targets, entry.loss.temperature, in_class_order="class" in lie), lie)
        for lie in SEEDS
    ]


@dataclass(frozen=True)
class Outcome:
    """A window's two figures: entropy as a share of the expected, and the NLL less that of the global order."""

    window: int
    entropy: float
    nll: PairedInterval

    @property
    def mixes(self) -> bool:
        """Whether its batches are as mixed as the global order's."""
        return self.entropy >= 1 - ENTROPY_WITHIN

    @property
    def teaches(self) -> bool:
        """Whether its students are as good as the global order's."""
        return self.nll.low <= 0 <= self.nll.high or self.nll.high < MARGIN


def smallest(outcomes: Sequence[Outcome], passes: Callable[[Outcome], bool]) -> int | None:
    """Return the smallest window that passes as all larger ones do, None when the largest fails."""
    falling = sorted(outcomes, key=lambda each: -each.window)
    return min((each.window for each in takewhile(passes, falling)), default=None)


def compare_windows(study: Study) -> list[Outcome]:
    """Print both figures of the global order and of every window beside it, and return the windows'."""
    labels, size = study.rows.labels, study.entry.batch_size
    expected = expected_entropy(np.bincount(labels), size)
    steps, _ = study.ws.steps(study.entry, len(labels))
    students = f"{len(study.seeds)} students a line, {steps:,} steps each"
    print(f"\npositions {study.positions}: blocks of {BLOCK_ROWS} rows, {students}")
    print(f"entropy expected of batches of {size} drawn uniformly: {expected:.4f} nats\n")
    print("window    rows  a class   entropy    of expected      NLL   less global's   95 % interval")
    reference = [study.train(None, seed) for seed in study.seeds]
    whole = study.entropy(None)
    print(f"global  {len(labels):6,} {'':8}    {whole:.4f}         {whole / expected:6.1%}   {np.mean(reference):.4f}")
    outcomes = list[Outcome]()
    for window in WINDOWS:
        entropy_seen, nll = study.entropy(window), [study.train(window, seed) for seed in study.seeds]
        outcome = Outcome(window, entropy_seen / expected, paired_interval(nll, reference))
        rows, less = window * BLOCK_ROWS, outcome.nll
        print(
            f"{window:6}  {rows:6,} {rows / len(study.ws.classes):8,.0f}    {entropy_seen:.4f}         "
            f"{outcome.entropy:6.1%}   {np.mean(nll):.4f}         {less.mean:+.4f}   "
            f"{less.low:+.4f} to {less.high:+.4f}{'  (default)' if window == DEFAULT else ''}",
            flush=True,
        )
        outcomes.append(outcome)
    return outcomes


def compare_layouts(batch_size: int) -> None:
    """Print entropy as a share of the expected in stores of other sizes: from labels alone, nobody learns."""
    windows = (*WINDOWS, 256)
    print("\nclasses       rows  block rows  blocks   of expected at a window of" + "".join(f"{w:7}" for w in windows))
    for layout in LAYOUTS:
        labels, blocks = layout.labels, -(-layout.rows // layout.block_rows)
        expected = expected_entropy(np.bincount(labels), batch_size)
        orders = (shuffled(layout.rows, seed=0, window=window, block_rows=layout.block_rows)(0) for window in windows)
        shares = "".join(f"{batch_entropy(labels, order, batch_size) / expected:7.1%}" for order in orders)
        print(
            f"{layout.num_classes:7,}  {layout.rows:9,}  {layout.block_rows:10,}  {blocks:6,}{'':29}{shares}",
            flush=True,
        )


def conclusion(outcomes: Sequence[Outcome], blocks: int) -> str:
    """Return one line: the smallest window like the global order, against the loader's default."""
    mixes, teaches = smallest(outcomes, lambda each: each.mixes), smallest(outcomes, lambda each: each.teaches)
    best = smallest(outcomes, lambda each: each.mixes and each.teaches)
    alone = f"entropy within {ENTROPY_WITHIN:.0%}: {mixes}; NLL interval holds 0 or ends below {MARGIN:+g}: {teaches}"
    default = (
        f"TargetLoader's default is {DEFAULT} ({DEFAULT * BLOCK_ROWS:,} rows here, {DEFAULT * MAX_ROWS:,} at most)"
    )
    if best is None:
        return f"conclusion: no window of {blocks} blocks passes ({alone}); {default}"
    verdict = "large enough" if best <= DEFAULT else "too small"
    return f"conclusion: {best} of {blocks} blocks, {best * BLOCK_ROWS:,} rows ({alone}); {default}: {verdict}"


def main() -> None:
    """Print the tables and the conclusion."""
    keep_freed_memory()
    torch.set_num_threads(1)  # on a shared machine two threads wait for each other longer than they work
    started = time.perf_counter()
    studies = open_studies()
    for study in studies:
        outcomes = compare_windows(study)
    compare_layouts(study.entry.batch_size)
    print(f"\n{time.perf_counter() - started:.0f} s, of which {time.process_time():.0f} s on a core")
    print(conclusion(outcomes, -(-len(study.rows.labels) // BLOCK_ROWS)))  # of positions as plans give them


if __name__ == "__main__":
    main()
