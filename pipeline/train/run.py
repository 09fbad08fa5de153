"""A model in training: it steps, is evaluated, saved and loaded; everything random is a function of (seed, step)."""

import hashlib
import io
import math
from collections.abc import Callable, Mapping
from contextlib import nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from pipeline.errors import StillroomError
from pipeline.lineage import write_durably
from pipeline.train.average import WeightAverage
from pipeline.train.ranks import ALONE, Ranks
from pipeline.train.schedule import Schedule
from pipeline.views import Batch
from pipeline.views.draws import stream_seed

Lost = tuple[Tensor, Mapping[str, Tensor]]  # per case [B], parts [B]
Loss = Callable[[Tensor, Batch], Lost]  # of the logits; runs whose losses have an equal `key` may have them as one
Evaluate = Callable[[nn.Module], Mapping[str, float]]  # must hold what the schedule monitors
Place = dict[str, int]  # where a loader stands


class Companion(Protocol):
    """What learns beside the model from the same backward pass (a loss with weights of its own), and is kept with it.

    Its `state_dict` holds its optimiser's too; whatever it draws is a function of (seed, step).
    """

    def step(self, lr: float) -> None:
        """Take an optimiser step on the gradients that the model's step left, and forget them; `lr` is the model's."""
        ...

    def parameters(self) -> Any: ...
    def state_dict(self) -> dict[str, Any]: ...
    def load_state_dict(self, state_dict: Mapping[str, Any]) -> Any: ...


@dataclass
class Progress:
    """Where a run is: all that a checkpoint holds besides weights, optimiser and loader. `best` is the monitored."""

    step: int = 0
    best_nll: float = math.inf
    best_step: int = 0
    stale: int = 0
    seconds: float = 0.0
    rows: int = 0
    history: list[dict[str, float]] = field(default_factory=list)
    reductions: int = 0
    reduced_at: int = 0


@dataclass(frozen=True)
class Fitted:
    """A finished run; the model it was given holds the best weights."""

    history: list[dict[str, float]]
    best_step: int
    steps: int
    rows: int
    seconds: float


class Run:
    """A model in training: step, evaluate, save, load.

    A model with a method `penalty()` has it added to its loss: a scalar of its last forward pass.
    """

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
        ranks: Ranks = ALONE,
    ):
        self.model, self.loss, self.schedule, self.seed, self.where = model, loss, schedule, seed, where
        self.companion, self.ranks, self.precision = companion, ranks, precision
        self.device = next(model.parameters()).device
        self.autocast = torch.autocast(self.device.type, torch.bfloat16, enabled=precision == "bf16")
        self.optimizer = torch.optim.AdamW(_decay_groups(model, schedule.weight_decay), lr=schedule.lr, fused=True)
        self.average = None if schedule.ema is None else WeightAverage(model, schedule.ema)
        self.progress = Progress()
        self.best: dict[str, Tensor] = {}
        self._penalty: Callable[[], Tensor] | None = getattr(model, "penalty", None)
        self._sums: dict[str, Tensor] = {}
        self._cases = 0

    def step(self, batch: Batch) -> None:
        """Take one optimiser step."""
        self.begin()
        with self.autocast:
            logits = self.model(batch.inputs)
        loss, parts = self.loss(logits.float(), batch)
        self.total(batch, loss, parts).backward()
        self.ranks.add_gradients(self._learning())
        self.clip()
        self.optimizer.step()
        self.end(batch, loss, parts)

    def begin(self) -> None:
        """Set what is a function of the step: what dropout draws, and the rate."""
        self._seed_dropout(stream_seed(self.seed, "step", self.progress.step))
        rate = self.rate
        for group in self.optimizer.param_groups:
            group["lr"] = rate

    @property
    def rate(self) -> float:
        """The learning rate of the next step."""
        return self.schedule.rate(self.progress.step, self.progress.reductions)

    def total(self, batch: Batch, loss: Tensor, parts: Mapping[str, Tensor]) -> Tensor:
        """Return what is minimised, and forget the last step's gradients.

        It is the mean over the whole batch's cases, of which this process has a share.
        """
        self.optimizer.zero_grad(set_to_none=True)
        mean = loss.mean() if batch.whole is None else loss.sum() / batch.whole
        if self._penalty is None:
            return mean
        penalty = self._penalty()
        self._count({"penalty": penalty.detach() * len(batch)}, 0)
        return mean + penalty / self.ranks.count

    def clip(self) -> None:
        """Shorten the gradient to the schedule's `clip`, where there is one."""
        if self.schedule.clip is not None:
            nn.utils.clip_grad_norm_(self.model.parameters(), self.schedule.clip)

    def end(self, batch: Batch, loss: Tensor, parts: Mapping[str, Tensor]) -> None:
        """Have what learns beside the model follow its step, and count the step."""
        if self.companion is not None:
            self.companion.step(self.rate)
        if self.average is not None:
            self.average.update(self.model)
        self._count({"loss": loss, **parts}, len(batch))
        self.progress.step += 1
        self.progress.rows += batch.whole or len(batch)

    def _learning(self) -> list[nn.Parameter]:
        beside = [] if self.companion is None else list(self.companion.parameters())
        return [*self.model.parameters(), *beside]

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
        cases = torch.tensor(float(self._cases), device=self.device)
        sums = self.ranks.sums({**self._sums, "cases": cases})
        count = sums.pop("cases")
        train = {f"train_{name}": (total / count).item() for name, total in sums.items()}
        self._sums, self._cases = {}, 0
        self._check_finite(train)
        self.ranks.average_buffers(self.model)
        with nullcontext() if self.average is None else self.average.within(self.model):
            measured = self.ranks.from_first(dict(evaluate(self.model)) if self.ranks.is_first else None)
        monitored = measured[self.schedule.monitor]
        self._check_finite({self.schedule.monitor: monitored})
        progress.history.append({"step": progress.step, **train, **measured})
        progress.stale += 1
        if monitored < progress.best_nll:
            progress.best_nll, progress.best_step, progress.stale = monitored, progress.step, 0
            kept = self.model.state_dict() if self.average is None else self.average.state
            self.best = {name: value.detach().clone() for name, value in kept.items()}
        waited = len(progress.history) - progress.reduced_at
        if progress.stale and min(progress.stale, waited) >= self.schedule.plateau:
            progress.reductions, progress.reduced_at = progress.reductions + 1, len(progress.history)

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

    @property
    def is_due(self) -> bool:
        """Whether it is to be evaluated now."""
        return self.progress.step % self.schedule.evaluate_every == 0 or self.progress.step == self.schedule.steps

    def finish(self) -> Fitted:
        """Leave the best weights in the model and return how it went."""
        self.model.load_state_dict(self.best)
        progress = self.progress
        return Fitted(progress.history, progress.best_step, progress.step, progress.rows, progress.seconds)

    def save(self, path: Path, place: Place) -> None:
        """Write everything that the rest of the run depends on; `place` is where the loader stands."""
        if not self.ranks.is_first:
            return
        state = {
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "best": self.best,
            "sums": self._sums,
            "cases": self._cases,
            "progress": vars(self.progress),
            "loader": place,
        }
        if self.companion is not None:
            state["companion"] = self.companion.state_dict()
        if self.average is not None:
            state["average"] = {"state": self.average.state, "steps": self.average.steps}
        buffer = io.BytesIO()
        torch.save(state, buffer)
        write_durably(path, hashlib.sha256(buffer.getvalue()).digest() + buffer.getvalue())

    def load(self, path: Path) -> Place:
        """Go on from a checkpoint; return where its loader stood. Raises StillroomError when the file is damaged."""
        try:
            state = _read(path, self.device)
            self.model.load_state_dict(state["model"])
            self.optimizer.load_state_dict(state["optimizer"])
            self.best, self._sums, self._cases = state["best"], state["sums"], state["cases"]
            self.progress = Progress(**state["progress"])
            if self.companion is not None:
                self.companion.load_state_dict(state["companion"])
            if self.average is not None:
                self.average.state, self.average.steps = state["average"]["state"], state["average"]["steps"]
            if not self.ranks.is_first:  # its sums are all processes', or they would count them again
                self._sums, self._cases = {}, 0
            return {str(name): int(value) for name, value in state["loader"].items()}
        except (RuntimeError, KeyError, TypeError, ValueError, OSError, AttributeError) as error:
            raise no_checkpoint(path, error) from error


def no_checkpoint(path: Path, error: Exception) -> StillroomError:
    """Return the error for a file that is no checkpoint of this run."""
    reason = next(iter(str(error).splitlines()), type(error).__name__)
    return StillroomError(
        f"{path}: found no usable checkpoint ({reason}); expected one of this run; delete it to start over"
    )


def place_in(path: Path) -> Place:
    """Return where the loader of a checkpoint stood, {} where there is none that can be read."""
    try:
        state = _read(path, torch.device("cpu"))
        return {str(name): int(value) for name, value in state["loader"].items()}
    except (RuntimeError, KeyError, TypeError, ValueError, OSError, AttributeError):
        return {}


def _read(path: Path, device: torch.device) -> Any:
    written = path.read_bytes()
    digest, content = written[:32], written[32:]
    if hashlib.sha256(content).digest() != digest:  # torch.load takes flipped bits for weights
        raise ValueError("its bytes are not those that were written")
    return torch.load(io.BytesIO(content), weights_only=True, map_location=device)


def _decay_groups(model: nn.Module, weight_decay: float) -> list[dict[str, Any]]:
    """Return parameter groups: matrices and kernels decay, biases and norms don't."""
    matrices = [p for p in model.parameters() if p.ndim > 1]
    vectors = [p for p in model.parameters() if p.ndim <= 1]
    return [{"params": matrices, "weight_decay": weight_decay}, {"params": vectors, "weight_decay": 0.0}]
