"""Passes over the stores: students of one order and batch size train from one loader.

Each batch is read, replayed and moved once for all of them; each student ends with the bits it would have had alone.
"""

import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

from pipeline.errors import StillroomError
from pipeline.loader import BUDGET, Reading, SharedLoader, open_readings
from pipeline.tasks import Tokens
from pipeline.train import Fitted, Ranks, fit_together, place_in
from pipeline.views import imported_code
from stages import students
from stages.runs import Run, folder_of
from stages.show import progress
from stages.workspace import Workspace

Watch = Callable[[Run, Mapping[str, float]], None]  # what is told of each evaluation of a run, and may end it
TOGETHER = 32  # students in one pass at most: what each holds (weights, optimiser, best weights) adds up


def unwatched(job: Run, figures: Mapping[str, float]) -> None:
    """Watch nothing."""


def passes(ws: Workspace, jobs: Sequence[Run]) -> Iterator[list[Run]]:
    """Yield the runs that share a pass: one input, order and batch size, checkpoints at one place, room for all."""
    groups: dict[tuple[Any, ...], list[Run]] = {}
    for job in jobs:
        frame = students.reading_of(ws, job).frame("train")
        place = place_in(folder_of(ws, job) / students.CHECKPOINT)
        shows = job.fusion is None, needs_labels(ws, job)
        key = (job.entry.reads, job.order_seed, job.entry.batch_size, *shows, frame, *sorted(place.items()))
        groups.setdefault(key, []).append(job)
    for group in groups.values():
        together: list[Run] = []
        for job in group:
            if len(together) == TOGETHER or (together and _bytes(ws, [*together, job]) > BUDGET):
                yield together
                together = []
            together.append(job)
        yield together


def _bytes(ws: Workspace, jobs: Iterable[Run]) -> int:
    """Return what the stored rows of a pass take in memory, 0 where they are streamed."""
    readings = [students.reading_of(ws, job) for job in jobs]
    fields = {(store.fingerprint, name): (store, name) for each in readings for store, name in each.fields()}
    streams = any(each.frame("train") is not None for each in readings)
    return 0 if streams else sum(store.field_bytes(name, "train") for store, name in fields.values())


def train_pass(ws: Workspace, jobs: Sequence[Run], watch: Watch = unwatched) -> list[str]:
    """Train runs from one loader and seal each as it finishes; return what went wrong."""
    ranks, started = ws.ranks, time.perf_counter()
    readings = [students.reading_of(ws, job) for job in jobs]
    steps = max(ws.steps(job.entry, len(ws.plan.splits["train"]))[0] for job in jobs)
    title = jobs[0].name if len(jobs) == 1 else f"{jobs[0].name} and {len(jobs) - 1} more"
    begun, faults = list[students.Student](), list[str]()
    with progress(ws.console, f"distill {title}", steps) as bar:
        for job, reading in zip(jobs, readings, strict=True):
            tell = _told(ws, job, watch)
            try:
                begun.append(students.begin(ws, job, reading, ranks=ranks, on_step=bar.to, on_evaluate=tell))
            except StillroomError as error:  # one that can't be built is no reason to leave the others
                faults.append(_fault(job, error, jobs))
        if not begun:
            return faults
        loader = shared_loader(ws, [each.job for each in begun], [each.reading for each in begun], ranks)
        for index, fitted in fit_together([student.trainee for student in begun], loader):
            if isinstance(fitted, Fitted) and ranks.is_first:
                students.seal(ws, begun[index], fitted)
                ws.made(begun[index].folder, seconds=fitted.seconds)
            elif isinstance(fitted, StillroomError):
                faults.append(_fault(begun[index].job, fitted, jobs))
    if len(jobs) > 1:
        ws.say("distill", f"{len(jobs)} students in one pass: {time.perf_counter() - started:.1f} s")
    return faults


def _told(ws: Workspace, job: Run, watch: Watch) -> Callable[[dict[str, float]], None]:
    record = ws.recorder(folder_of(ws, job))

    def on_evaluate(figures: dict[str, float]) -> None:
        record(figures)
        watch(job, figures)

    return on_evaluate


def _fault(job: Run, error: StillroomError, company: Sequence[Run]) -> str:
    return str(error) if len(company) == 1 else f"{job.name}: {error}"


def needs_labels(ws: Workspace, job: Run) -> bool:
    """Whether a run that follows teachers learns nothing of rows without a label: pieces come after true ones."""
    return isinstance(ws.task, Tokens) and job.fusion is not None and not job.fusion.is_of_sentences


def shared_loader(ws: Workspace, jobs: Sequence[Run], readings: Sequence[Reading], ranks: Ranks) -> SharedLoader:
    """Return what the runs of a pass stream. On labels alone, batches are as large and hold labelled rows only."""
    reads = jobs[0].entry.reads
    labelled, replayer = None, ws.replayer_of(reads)
    if jobs[0].fusion is None or needs_labels(ws, jobs[0]):
        labelled = ws.plan.splits["train"].labelled
    if jobs[0].fusion is not None:
        imports = imported_code(ws.plan.transforms)
        replayer = open_readings(readings, ws.samples(reads), device=ws.device, imports=imports)
    return SharedLoader(
        readings,
        replayer,
        batch_size=jobs[0].entry.batch_size,
        seed=jobs[0].order_seed,
        positions=labelled,
        share=ranks.share,
    )
