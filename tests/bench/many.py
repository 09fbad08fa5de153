"""Sixteen students in one pass against sixteen runs of one, beside what it would be if each took its own steps.

Reading, replay and start-up are shared by all; where students are stacked, their steps are shared, too, and the ratio
may be below that.

`python -m tests.bench.many fashion`; a part of make bench.
"""

import itertools
import statistics
import sys
from collections.abc import Callable
from pathlib import Path

from rich.console import Console

from pipeline.loader import Reading, SharedLoader, open_readings
from pipeline.store import open_targets
from pipeline.train import Run, Trainee, fit_together
from pipeline.train.stacked import Stacks
from stages import fuse, logits, students
from stages.load import load_recipe
from stages.memory import keep_freed_memory
from stages.recipe import StudentEntry
from stages.runs import Run as Job
from stages.runs import runs
from stages.workspace import Workspace
from tests.bench.ratios import REPEATS, seconds, show

STUDENTS = 16


def trainees(ws: Workspace, jobs: list[Job], reading: Reading, steps: int) -> list[Trainee]:
    """Return students ready for so many steps, none of which is an evaluation."""
    begun = [students.begin(ws, job, reading, ranks=ws.ranks, on_step=lambda step: None) for job in jobs]
    return [Trainee(_stepping(each.trainee.run, steps), lambda model: {"nll": 0.0}) for each in begun]


def _stepping(run: Run, steps: int) -> Run:
    run.schedule = type(run.schedule)(steps, steps, run.schedule.lr)
    return run


def loader(ws: Workspace, readings: list[Reading], batch_size: int) -> SharedLoader:
    """Return what they stream; opening proves rows and reads them, as a run's start does."""
    replayer = open_readings(readings, ws.dataset, device=ws.device)
    return SharedLoader(readings, replayer, batch_size=batch_size)


Pass = Callable[[int], None]


def passes(ws: Workspace, entry: StudentEntry, steps: int) -> tuple[Pass, Callable[[], None], Callable[[int], int]]:
    """Return a pass of k students, what of it is shared (start-up, reading, replay), and how many step as one."""
    job = next(runs(ws, entry.model_copy(update={"baselines": False})))
    assert job.fusion is not None
    targets = open_targets(fuse.ensure(ws, job.fusion))
    reading = Reading(targets, entry.loss.temperature)

    def together(count: int) -> None:
        shared = loader(ws, [reading] * count, entry.batch_size)
        for _ in fit_together(trainees(ws, [job] * count, reading, steps), shared):
            pass

    def nothing_learns() -> None:
        shared = loader(ws, [reading], entry.batch_size)
        epochs = itertools.chain.from_iterable(iter(shared) for _ in itertools.count())
        for shown in itertools.islice(epochs, steps):
            shown[0]

    def stacked(count: int) -> int:
        begun = [each.run for each in trainees(ws, [job] * count, reading, steps)]
        shown = next(iter(loader(ws, [reading] * count, entry.batch_size)))
        sizes = [len(batches) for batches in Stacks(begun).groups(range(count), shown)]
        return max(sizes) if max(sizes) > 1 else 0

    return together, nothing_learns, stacked


def report(ws: Workspace, entry: StudentEntry, steps: int) -> None:
    """Print the ratio of one pass to as many runs, beside that of shared reading alone, measured in the same turns."""
    together, nothing_learns, stacked = passes(ws, entry, steps)
    together(1)
    ratios, limits = [], []
    for _ in range(max(3, REPEATS // 2)):
        alone = seconds(lambda: [together(1) for _ in range(STUDENTS)])
        shared, own = seconds(nothing_learns), seconds(lambda: together(STUDENTS))
        limits.append((shared + alone - STUDENTS * shared) / alone)
        ratios.append(own / alone)
    name = f"student {entry.name!r}: {STUDENTS} in one pass ÷ {STUDENTS} runs, {steps} steps"
    within = statistics.median(ratios) / statistics.median(limits)
    how = f"{stepping} stepped as one" if (stepping := stacked(STUDENTS)) else "each stepped by itself"
    reading_shared = f"with reading, replay and start-up once and {STUDENTS} times a student's own step it would be"
    show(
        name, ratios, f"{how}; {reading_shared} {statistics.median(limits):.2f}: {within:.2f} times that, goal <= 1.10"
    )


def main() -> None:
    """Print the ratio for the recipe's first student."""
    keep_freed_memory()
    ws = Workspace(load_recipe(sys.argv[1] if len(sys.argv) > 1 else "fashion"), Path("data"), Console(quiet=True))
    logits.run(ws)
    report(ws, ws.recipe.student[0], steps=int(sys.argv[2]) if len(sys.argv) > 2 else 223)


if __name__ == "__main__":
    main()
