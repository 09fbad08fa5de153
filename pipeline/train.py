"""One training loop for teachers and students: batches in, best weights by calibration NLL out.

Everything that varies comes as an argument (loader, loss, evaluation), everything random is a function of (seed, step),
so a run that was killed goes on mid-epoch with the very next batch and ends with the same weights.
"""

import hashlib
import io
import math
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from pipeline.errors import StillroomError
from pipeline.lineage import write_durably
from pipeline.losses import cross_entropy, mixed_cross_entropy
from pipeline.views import Batch
from pipeline.views.draws import stream_seed

Loss = Callable[[Tensor, Batch], tuple[Tensor, Mapping[str, Tensor]]]  # logits, batch -> per case [B], parts [B]
Evaluate = Callable[[nn.Module], Mapping[str, float]]  # must hold "nll"


class Loader(Protocol):
    """Batches of an epoch, and a place to go on from."""

    def __iter__(self) -> Iterator[Batch]: ...
    def state_dict(self) -> dict[str, int]: ...
    def load_state_dict(self, state: dict[str, int]) -> None: ...


class Companion(Protocol):
    """What learns beside the model from the same backward pass (a loss with weights of its own), and is kept with it.

    Its `state_dict` holds its optimiser's too; whatever it draws is a function of (seed, step).
    """

    def step(self) -> None:
        """Take an optimiser step on the gradients that the model's step left, and forget them."""
        ...

    def state_dict(self) -> dict[str, Any]: ...
    def load_state_dict(self, state_dict: Mapping[str, Any]) -> Any: ...


@dataclass(frozen=True)
class Schedule:
    """How long and how fast: AdamW, linear warm-up over `warmup` of the steps, then cosine to zero.

    Evaluated every `evaluate_every` steps; stopped after `patience` evaluations without a better NLL (None: never).
    """

    steps: int
    evaluate_every: int
    lr: float = 1e-3
    weight_decay: float = 0.05
    warmup: float = 0.1
    clip: float | None = None
    patience: int | None = None

    def rate(self, step: int) -> float:
        """Return the learning rate of a step."""
        warm = max(1, round(self.warmup * self.steps))
        if step < warm:
            return self.lr * (step + 1) / warm
        return self.lr * 0.5 * (1 + math.cos(math.pi * (step - warm) / max(1, self.steps - warm)))


@dataclass
class Progress:
    """Where a run is: all that a checkpoint holds besides weights, optimiser and loader."""

    step: int = 0
    best_nll: float = math.inf
    best_step: int = 0
    stale: int = 0
    seconds: float = 0.0
    rows: int = 0
    history: list[dict[str, float]] = field(default_factory=list)


@dataclass(frozen=True)
class Fitted:
    """A finished run; the model it was given holds the best weights."""

    history: list[dict[str, float]]
    best_step: int
    steps: int
    rows: int
    seconds: float


def seeded(build: Callable[[], Any], seed: int) -> Any:
    """Return what `build` makes with torch's generator seeded, leaving the generator as it was."""
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(stream_seed(seed, "init"))
        return build()


class Run:
    """A model in training: step, evaluate, save, load."""

    def __init__(
        self,
        model: nn.Module,
        loss: Loss,
        schedule: Schedule,
        *,
        seed: int,
        precision: str,
        where: str,
        companion: Companion | None = None,
    ):
        self.model, self.loss, self.schedule, self.seed, self.where = model, loss, schedule, seed, where
        self.companion = companion
        self.device = next(model.parameters()).device
        self.autocast = torch.autocast(self.device.type, torch.bfloat16, enabled=precision == "bf16")
        self.optimizer = torch.optim.AdamW(_decay_groups(model, schedule.weight_decay), lr=schedule.lr, fused=True)
        self.progress = Progress()
        self.best: dict[str, Tensor] = {}
        self._sums: dict[str, Tensor] = {}
        self._cases = 0

    def step(self, batch: Batch) -> None:
        """Take one optimiser step."""
        progress = self.progress
        self._seed_dropout(stream_seed(self.seed, "step", progress.step))
        for group in self.optimizer.param_groups:
            group["lr"] = self.schedule.rate(progress.step)
        with self.autocast:
            logits = self.model(batch.inputs)
        loss, parts = self.loss(logits.float(), batch)
        self.optimizer.zero_grad(set_to_none=True)
        loss.mean().backward()
        if self.schedule.clip is not None:
            nn.utils.clip_grad_norm_(self.model.parameters(), self.schedule.clip)
        self.optimizer.step()
        if self.companion is not None:
            self.companion.step()
        self._count({"loss": loss, **parts}, len(batch))
        progress.step += 1
        progress.rows += len(batch)

    def _seed_dropout(self, seed: int) -> None:
        """Make dropout a function of the step; torch.manual_seed would queue a call for an absent GPU each time."""
        if self.device.type == "cuda":
            torch.cuda.manual_seed(seed)
        torch.default_generator.manual_seed(seed)

    def _count(self, parts: Mapping[str, Tensor], cases: int) -> None:
        for name, values in parts.items():
            self._sums[name] = self._sums.get(name, torch.zeros((), device=self.device)) + values.detach().sum()
        self._cases += cases

    def evaluate(self, evaluate: Evaluate) -> None:
        """Record training and calibration figures; keep the weights when they are the best so far."""
        progress = self.progress
        train = {f"train_{name}": (total / self._cases).item() for name, total in self._sums.items()}
        self._sums, self._cases = {}, 0
        self._check_finite(train)
        measured = evaluate(self.model)
        self._check_finite({"nll": measured["nll"]})
        progress.history.append({"step": progress.step, **train, **measured})
        progress.stale += 1
        if measured["nll"] < progress.best_nll:
            progress.best_nll, progress.best_step, progress.stale = measured["nll"], progress.step, 0
            self.best = {name: value.detach().clone() for name, value in self.model.state_dict().items()}

    def _check_finite(self, figures: Mapping[str, float]) -> None:
        for name, value in figures.items():
            if not math.isfinite(value):
                raise StillroomError(
                    f"{self.where}: {name.removeprefix('train_')} is {value} at step {self.progress.step}; expected a "
                    f"finite number; lower lr (now {self.schedule.lr:g}) or set clip"
                )

    @property
    def is_finished(self) -> bool:
        """Whether the steps are taken or patience has run out."""
        patience = self.schedule.patience
        return self.progress.step >= self.schedule.steps or (patience is not None and self.progress.stale >= patience)

    def save(self, path: Path, loader: Loader) -> None:
        """Write everything that the rest of the run depends on."""
        buffer = io.BytesIO()
        state = {
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "best": self.best,
            "sums": self._sums,
            "cases": self._cases,
            "progress": vars(self.progress),
            "loader": loader.state_dict(),
        }
        if self.companion is not None:
            state["companion"] = self.companion.state_dict()
        torch.save(state, buffer)
        write_durably(path, hashlib.sha256(buffer.getvalue()).digest() + buffer.getvalue())

    def load(self, path: Path, loader: Loader) -> None:
        """Go on from a checkpoint. Raises StillroomError when the file is damaged."""
        try:
            written = path.read_bytes()
            digest, content = written[:32], written[32:]
            if hashlib.sha256(content).digest() != digest:  # torch.load takes flipped bits for weights
                raise ValueError("its bytes are not those that were written")
            state = torch.load(io.BytesIO(content), weights_only=True, map_location=self.device)
            self.model.load_state_dict(state["model"])
            self.optimizer.load_state_dict(state["optimizer"])
            self.best, self._sums, self._cases = state["best"], state["sums"], state["cases"]
            self.progress = Progress(**state["progress"])
            loader.load_state_dict(state["loader"])
            if self.companion is not None:
                self.companion.load_state_dict(state["companion"])
        except (RuntimeError, KeyError, TypeError, ValueError, OSError) as error:
            reason = next(iter(str(error).splitlines()), type(error).__name__)
            raise StillroomError(
                f"{path}: found no usable checkpoint ({reason}); expected one of this run; delete it to start over"
            ) from error


def _decay_groups(model: nn.Module, weight_decay: float) -> list[dict[str, Any]]:
    """Return parameter groups: matrices and kernels decay, biases and norms don't."""
    matrices = [p for p in model.parameters() if p.ndim > 1]
    vectors = [p for p in model.parameters() if p.ndim <= 1]
    return [{"params": matrices, "weight_decay": weight_decay}, {"params": vectors, "weight_decay": 0.0}]


def prepare(model: nn.Module, device: torch.device) -> nn.Module:
    """Return the model on its device, with channels last where it convolves: several times faster on a CPU.

    Not on a CPU when a 1x1 convolution has a stride: its backward pass there writes out of bounds for some batch
    sizes (torch 2.15, oneDNN; 12 -> 24 channels, 28x28, batch 125 crashes).
    """
    model = model.to(device)
    convolutions = [layer for layer in model.modules() if isinstance(layer, nn.Conv2d)]
    unsafe = any(layer.kernel_size == (1, 1) and max(layer.stride) > 1 for layer in convolutions)
    if convolutions and not (unsafe and device.type == "cpu"):
        model = model.to(memory_format=torch.channels_last)
    return model


def fit(
    model: nn.Module,
    loader: Loader,
    loss: Loss,
    *,
    evaluate: Evaluate,
    schedule: Schedule,
    seed: int,
    where: str,
    precision: str = "fp32",
    companion: Companion | None = None,
    checkpoint: Path | None = None,
    checkpoint_seconds: float = 10.0,
    on_step: Callable[[int], None] = lambda step: None,
) -> Fitted:
    """Train the model in place and leave its best weights (lowest calibration NLL) in it.

    With a `checkpoint` path, a run that was killed goes on where its last checkpoint stood: one is written at every
    evaluation and every `checkpoint_seconds`. The file is removed by whoever keeps the result. A `companion` learns
    beside the model, after its step, and is in the checkpoint too.

    Raises: StillroomError when the loss stops being finite or the checkpoint is damaged.
    """
    run = Run(model, loss, schedule, seed=seed, precision=precision, where=where, companion=companion)
    if checkpoint is not None and checkpoint.exists():
        run.load(checkpoint, loader)
    mark = saved = time.perf_counter()
    while not run.is_finished:
        for batch in loader:
            model.train()
            run.step(batch)
            due = run.progress.step % schedule.evaluate_every == 0 or run.progress.step == schedule.steps
            if due:
                run.evaluate(evaluate)
            now = time.perf_counter()
            run.progress.seconds, mark = run.progress.seconds + now - mark, now
            if checkpoint is not None and (due or now - saved >= checkpoint_seconds):
                run.save(checkpoint, loader)
                saved = time.perf_counter()
            on_step(run.progress.step)
            if run.is_finished:
                break
    progress = run.progress
    model.load_state_dict(run.best)
    return Fitted(progress.history, progress.best_step, progress.step, progress.rows, progress.seconds)


def label_loss(logits: Tensor, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
    """Return the cross-entropy with the batch's labels, mixed where its rows are: [B, C] -> [B]."""
    if batch.mix is None or batch.partner_labels is None:
        ce = cross_entropy(logits, batch.labels)
    else:
        ce = mixed_cross_entropy(logits, batch.labels, batch.partner_labels, batch.mix)
    return ce, {"ce": ce}


@torch.no_grad()
def predict(model: nn.Module, batches: Iterator[Batch], *, precision: str = "fp32") -> Tensor:
    """Return the model's log-probabilities over batches, in evaluation mode: float32 [N, C] on the CPU."""
    was_training = model.training
    model.eval()
    device = next(model.parameters()).device
    with torch.autocast(device.type, torch.bfloat16, enabled=precision == "bf16"):
        rows = [model(batch.inputs).float().log_softmax(-1).cpu() for batch in batches]
    model.train(was_training)
    return torch.cat(rows)
