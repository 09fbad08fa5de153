"""One training loop for teachers and students: batches in, best weights by calibration figures out.

Everything that varies comes as an argument (loader, loss, evaluation), so a run that was killed goes on mid-epoch with
the very next batch and ends with the same weights. Several runs may share the loader's batches; each ends with the
weights it would have had alone; those of one architecture step as one where that is faster (`pipeline.train.stacked`).
"""

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from torch import nn

from pipeline.errors import StillroomError
from pipeline.train.ranks import ALONE, Ranks
from pipeline.train.run import Companion, Evaluate, Fitted, Loss, Run, no_checkpoint
from pipeline.train.schedule import Schedule
from pipeline.train.stacked import Stacks
from pipeline.views import Batch

CHECKPOINT_SECONDS = 10.0


class Loader(Protocol):
    """Batches of an epoch, and a place to go on from."""

    def __iter__(self) -> Iterator[Batch]: ...
    def state_dict(self) -> dict[str, int]: ...
    def load_state_dict(self, state: dict[str, int]) -> None: ...


class ManyLoader(Protocol):
    """Batches of an epoch as each of several runs sees them: `shown[k]` is the k-th one's."""

    def __iter__(self) -> Iterator[Any]: ...
    def state_dict(self) -> dict[str, int]: ...
    def load_state_dict(self, state: dict[str, int]) -> None: ...


@dataclass(frozen=True)
class Trainee:
    """A run in company: how it is evaluated, where it is kept, whom it tells of its steps and its evaluations."""

    run: Run
    evaluate: Evaluate
    checkpoint: Path | None = None
    on_step: Callable[[int], None] = lambda step: None
    on_evaluate: Callable[[dict[str, float]], None] = lambda figures: None

    def judge(self) -> None:
        """Evaluate, and tell of it."""
        self.run.evaluate(self.evaluate)
        self.on_evaluate(self.run.progress.history[-1])


def fit_together(
    trainees: Sequence[Trainee], loader: ManyLoader, *, checkpoint_seconds: float = CHECKPOINT_SECONDS
) -> Iterator[tuple[int, Fitted | StillroomError]]:
    """Train all of them from one loader; yield each one's place and how it went, as soon as it is finished.

    One whose loss stops being finite yields its error, and the others go on. Those with a checkpoint go on where it
    stood: all at the same place, for they share the batches.

    Raises: StillroomError when a checkpoint is damaged; ValueError when checkpoints stand at different places.
    """
    _resume(trainees, loader)
    active = dict(enumerate(trainees))
    for index in [index for index, trainee in active.items() if trainee.run.is_finished]:
        yield index, active.pop(index).run.finish()
    stacks = Stacks([trainee.run for trainee in trainees])
    mark = saved = time.perf_counter()
    while active:
        for shown in loader:
            waited = (time.perf_counter() - mark) / len(active)
            for trainee in active.values():
                trainee.run.progress.seconds += waited
            due, failed = _advance(active, shown, stacks)
            for index, failure in sorted(failed.items()):
                del active[index]
                yield index, failure
            if due or time.perf_counter() - saved >= checkpoint_seconds:
                _save(active.values(), loader)
                saved = time.perf_counter()
            for trainee in active.values():
                trainee.on_step(trainee.run.progress.step)
            for index in [index for index, trainee in active.items() if trainee.run.is_finished]:
                yield index, active.pop(index).run.finish()
            mark = time.perf_counter()
            if not active:
                break


def _advance(active: Mapping[int, Trainee], shown: Any, stacks: Stacks) -> tuple[bool, dict[int, StillroomError]]:
    """Have all take a step and be evaluated when it is due; return whether any was, and who failed."""
    failed: dict[int, StillroomError] = {}
    started, any_due = time.perf_counter(), False
    for batches in stacks.groups(active, shown):
        failed |= stacks.step(batches) if len(batches) > 1 else _alone(active, batches)
        stepped = time.perf_counter()
        for index in batches:
            trainee = active[index]
            trainee.run.progress.seconds += (stepped - started) / len(batches)
            if index not in failed and trainee.run.is_due:
                any_due, began = True, time.perf_counter()
                try:
                    trainee.judge()
                except StillroomError as error:
                    failed[index] = error
                trainee.run.progress.seconds += time.perf_counter() - began
        started = time.perf_counter()
    return any_due, failed


def _alone(active: Mapping[int, Trainee], batches: Mapping[int, Batch]) -> dict[int, StillroomError]:
    ((index, batch),) = batches.items()
    run = active[index].run
    try:
        run.model.train()
        run.step(batch)
    except StillroomError as error:
        return {index: error}
    return {}


def _resume(trainees: Sequence[Trainee], loader: ManyLoader) -> None:
    kept = [
        (each.run, each.checkpoint) for each in trainees if each.checkpoint is not None and each.checkpoint.exists()
    ]
    places = [run.load(path) for run, path in kept]
    if not places:
        return
    if len(kept) < len(trainees) or any(place != places[0] for place in places):
        raise ValueError(f"checkpoints stand at {places}, of {len(trainees)} runs; those of one loader stand at one")
    try:
        loader.load_state_dict(places[0])
    except (KeyError, ValueError) as error:
        raise no_checkpoint(kept[0][1], error) from error


def _save(trainees: Any, loader: ManyLoader) -> None:
    for trainee in trainees:
        if trainee.checkpoint is not None:
            trainee.run.save(trainee.checkpoint, loader.state_dict())


class _Single:
    """A loader of one student's batches as one of many."""

    def __init__(self, loader: Loader):
        self._loader = loader
        self.state_dict, self.load_state_dict = loader.state_dict, loader.load_state_dict

    def __iter__(self) -> Iterator[tuple[Batch]]:
        return ((batch,) for batch in self._loader)


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
    checkpoint_seconds: float = CHECKPOINT_SECONDS,
    on_step: Callable[[int], None] = lambda step: None,
    on_evaluate: Callable[[dict[str, float]], None] = lambda figures: None,
    ranks: Ranks = ALONE,
) -> Fitted:
    """Train the model in place and leave its best weights (lowest calibration NLL, or what is monitored) in it.

    With a `checkpoint` path, a run that was killed goes on where its last checkpoint stood: one is written at every
    evaluation and every `checkpoint_seconds`. The file is removed by whoever keeps the result. A `companion` learns
    beside the model, after its step, and is in the checkpoint too.

    Raises: StillroomError when the loss stops being finite or the checkpoint is damaged.
    """
    run = Run(model, loss, schedule, seed=seed, precision=precision, where=where, companion=companion, ranks=ranks)
    trainee = Trainee(run, evaluate, checkpoint, on_step, on_evaluate)
    for _, fitted in fit_together([trainee], _Single(loader), checkpoint_seconds=checkpoint_seconds):
        if isinstance(fitted, StillroomError):
            raise fitted
        return fitted
    raise AssertionError("a run neither finished nor failed")
