"""Trainees of several kinds on one tiny problem, alone or in company; the tests of training share them."""

from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from toys import SHAPE, make_dataset, make_labels, make_plan

from pipeline.losses import cross_entropy
from pipeline.models import build_model
from pipeline.objective import Objective
from pipeline.train import Run, Schedule, Trainee, label_loss, predict, seeded
from pipeline.views import Batch, Replayer, ViewLoader

STEPS = 11
TEACHER = (3 * torch.randn(40, 3, generator=torch.Generator().manual_seed(9))).log_softmax(-1)  # of each train row


def make_rows() -> Replayer:
    """Noise with a bright bar per class, flipped at random: 40 train rows."""
    pixels = np.random.default_rng(0).integers(0, 120, (60, *SHAPE), dtype=np.uint8)
    for sample, label in enumerate(make_labels()):
        pixels[sample, 0, 4 * label : 4 * label + 4] += 120
    dataset = make_dataset(pixels)
    return Replayer(make_plan(dataset, transforms=[{"kind": "flip"}]), dataset)


class Many:
    """A loader whose batches are shown to several runs, each with the teacher's answers beside it."""

    def __init__(self, rows: Replayer, count: int, **options: Any):
        self._loader = ViewLoader(rows, "train", **{"batch_size": 16, "seed": 1, **options})
        self._count = count
        self.state_dict, self.load_state_dict = self._loader.state_dict, self._loader.load_state_dict

    def __iter__(self) -> Iterator[list[Batch]]:
        for batch in self._loader:
            yield [replace(batch, target_log_probs=TEACHER[torch.from_numpy(batch.positions)])] * self._count


def network(name: str = "mlp", seed: int = 0, **options: Any) -> torch.nn.Module:
    build = {"num_classes": 3, "in_shape": SHAPE, **options}
    return seeded(lambda: build_model(name, **build), seed)


mlp = partial(network, width=8, depth=1)


class Charged(torch.nn.Module):
    """A network that pays for the size of its weights."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = mlp()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.inner(x)

    def penalty(self) -> torch.Tensor:
        return 0.3 * self.inner.classifier.weight.square().sum()


def schedule(**options: Any) -> Schedule:
    return Schedule(**{"steps": STEPS, "evaluate_every": 3, "lr": 0.01, "warmup": 0.2, **options})


def made(
    model: torch.nn.Module, loss: Any = label_loss, *, seed: int = 3, companion: Any = None, **options: Any
) -> Run:
    return Run(model, loss, schedule(**options), seed=seed, precision="fp32", where="student.x", companion=companion)


def guided(model: torch.nn.Module, **options: Any) -> Run:
    """A run whose loss learns beside it."""
    objective = Objective(model, steps=STEPS, kind="kl", alpha={"kind": "uncertainty", "lr": 0.1})
    return made(model, objective, companion=objective, **options)


KINDS: dict[str, Callable[[], Run]] = {
    "plain": lambda: made(mlp()),
    "averaged": lambda: made(mlp(seed=1), lr=0.03, decay="one_cycle", ema=0.9, clip=0.5),
    "smooth": lambda: made(mlp(dropout=0.5), partial(label_loss, smoothing=0.2), seed=7),
    "patient": lambda: made(mlp(seed=2), patience=1),
    "stuck": lambda: made(mlp(seed=3), decay="plateau", plateau=1),
    "guided": lambda: guided(mlp(seed=4), lr=0.02),
    "tree": lambda: made(network("soft_tree", depth=2)),
    "members": lambda: made(network("hydra", trunk="mlp", width=8, depth=1, heads=2)),
    "normed": lambda: made(network("vgg_small", width=4), ema=0.8),
    "longer": lambda: made(mlp(), steps=14),
}
WORSENING = ("patient", "stuck")  # whose evaluations get worse and worse


def trainee(rows: Replayer, name: str, checkpoint: Path | None = None, **options: Any) -> Trainee:
    run = KINDS[name]()
    held_out = rows.batch("calibration", 0, np.arange(8))

    def evaluate(model: torch.nn.Module) -> dict[str, float]:
        nll = cross_entropy(predict(model, iter([held_out])), held_out.labels).mean().item()
        return {"nll": 1.0 + run.progress.step if name in WORSENING else nll, "seen": nll}

    return Trainee(run, evaluate, checkpoint, **options)


def bits(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    return {name: value.clone() for name, value in model.state_dict().items()}


def same(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def outcome(trainee: Trainee, fitted: Any) -> tuple[Any, ...]:
    """All that training leaves behind but its seconds."""
    beside = trainee.run.companion
    learned = {} if beside is None else {k: v for k, v in beside.state_dict().items() if isinstance(v, torch.Tensor)}
    return bits(trainee.run.model), learned, (fitted.history, fitted.best_step, fitted.steps, fitted.rows)


def agree(one: tuple[Any, ...], other: tuple[Any, ...]) -> bool:
    return same(one[0], other[0]) and same({k: v.clone() for k, v in one[1].items()}, other[1]) and one[2] == other[2]
