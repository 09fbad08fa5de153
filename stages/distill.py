"""distill: students stream from a target store, and so do the baselines they are compared with. No teacher is near.

Students of one order and batch size share a pass: each batch is read, replayed and moved once for all of them. Where
the strategy needs the student, they stream from the teachers' own stores, and weigh the teachers as they train.
"""

from collections.abc import Sequence
from pathlib import Path

from pipeline.errors import StillroomError
from pipeline.lineage import read_manifest
from stages import auto as choice
from stages import fuse, generations, search
from stages.asks import refuse_others
from stages.ensembles import join
from stages.estimators import fit, is_estimator
from stages.passes import Watch, passes, train_pass, unwatched
from stages.recipe import StudentEntry, Sweep
from stages.runs import Run, folder_of, members, runs
from stages.show import in_words
from stages.workspace import Workspace


def run(ws: Workspace, *, student: str | None = None) -> None:
    """Train every student and baseline that isn't there; teachers run only if a store is missing.

    Raises: StillroomError with every student that could not be trained, once all others are finished.
    """
    if faults := train(ws, student=student):
        raise StillroomError("\n".join(faults))


def train(ws: Workspace, *, student: str | None = None, auto: bool = False) -> list[str]:
    """Train every student and baseline that isn't there; return what went wrong with those that could not be.

    With `auto`, each student's loss is chosen first, and trained in full beside the one that the recipe has.
    """
    if auto:
        refuse_others(ws.recipe, "distill --auto")
    jobs: list[Run] = []
    if ws.ranks.is_first:
        jobs = _prepared(ws, student)
    ws.ranks.wait()  # for the stores, which the first process makes
    jobs = jobs or _prepared(ws, student)
    ws.ranks.wait()
    forwards = ws.teacher_forwards
    faults = train_all(ws, jobs)
    for sweep in search.searches(ws, student):
        faults += _search(ws, sweep)
    if auto:
        faults += _train_chosen(ws, student)
    assert ws.teacher_forwards == forwards, "a teacher ran while students trained"
    ws.say("distill", f"teacher_forwards: {ws.teacher_forwards:,}")
    return faults


def _train_chosen(ws: Workspace, student: str | None) -> list[str]:
    """Try losses for each student, keep the best and train it in full; return what went wrong."""
    faults = []
    for entry in [ws.recipe.find("student", student)] if student else ws.recipe.student:
        candidates = list(choice.candidates(ws, entry).values())
        ensure_targets(ws, candidates)
        faults += train_all(ws, candidates)
        if ws.ranks.is_first:
            choice.decide(ws, entry)
        ws.ranks.wait()
        faults += train_all(ws, choice.chosen(ws, entry))
    return faults


def _prepared(ws: Workspace, student: str | None) -> list[Run]:
    """Return the runs asked for, with every store that they need."""
    fuse.ensure_teacher_stores(ws)
    jobs = [job for entry in chosen(ws, student) for job in runs(ws, entry)]
    ensure_targets(ws, jobs)
    return jobs


def chosen(ws: Workspace, student: str | None) -> list[StudentEntry]:
    """Return the students asked for: all, one by name, or those of a sweep by its student's and its own name."""
    if student is None:
        return search.all_students(ws)
    known = search.all_students(ws)
    named = [entry for entry in known if entry.name == student or entry.name.startswith(f"{student}.")]
    return named or [ws.recipe.find("student", student)]


def _search(ws: Workspace, sweep: Sweep) -> list[str]:
    """Run a search to its end; return what went wrong with trials that nobody ended."""
    faults, under_way = [], search.Search(ws, sweep)
    while not under_way.is_over:
        jobs = under_way.propose()
        wrong = train_all(ws, jobs, watch=under_way.watch)
        is_pruned = any(fault.endswith("ended early") for fault in wrong)
        faults += [] if is_pruned else wrong
        under_way.note(jobs, is_pruned=is_pruned)
    return faults


def ensure_targets(ws: Workspace, jobs: Sequence[Run]) -> None:
    """Fuse the target stores that unfinished runs stream from, each once."""
    jobs = [job for job in jobs if not job.is_lazy and job.parent is None]
    for fusion in {job.fusion.name: job.fusion for job in jobs if job.fusion is not None}.values():
        if not ws.is_decided(fusion):
            fuse.ensure(ws, fusion)  # before it, nobody knows what its students are made from
    needed = [job.fusion for job in jobs if job.fusion is not None and not ws.is_finished(folder_of(ws, job))]
    for fusion in {ws.target_folder(entry): entry for entry in needed}.values():
        fuse.ensure(ws, fusion)


def train_all(ws: Workspace, jobs: Sequence[Run], watch: Watch = unwatched) -> list[str]:
    """Train the runs that aren't finished, generation by generation; return what went wrong."""
    faults = []
    for wave in _waves(jobs):
        teachable = [job for job in wave if job.parent is None or ws.is_finished(folder_of(ws, job.parent))]
        faults += [f"{job.name}: its parent was not trained" for job in wave if job not in teachable]
        if ws.ranks.is_first:
            for job in teachable:
                if job.parent is not None and not ws.is_finished(folder_of(ws, job)):
                    generations.ensure(ws, job)
        ws.ranks.wait()
        faults += _train_wave(ws, teachable, watch)
    return faults


def _waves(jobs: Sequence[Run]) -> list[list[Run]]:
    """Return the runs by generation: those without a parent first."""
    waves: list[list[Run]] = []
    for job in jobs:
        depth, parent = 0, job.parent
        while parent is not None:
            depth, parent = depth + 1, parent.parent
        waves += [[] for _ in range(depth + 1 - len(waves))]
        waves[depth].append(job)
    return waves


def _train_wave(ws: Workspace, jobs: Sequence[Run], watch: Watch) -> list[str]:
    """Train runs that need nothing of each other, as many in a pass as share an order; return what went wrong."""
    alone = [part for job in jobs for part in (members(job) or [job])]
    unfinished = {folder_of(ws, job): job for job in alone if not ws.is_finished(folder_of(ws, job))}
    networks = [job for job in unfinished.values() if not is_estimator(job.entry)]
    planned = list(passes(ws, networks))
    ws.ranks.wait()  # before the first of them changes what is finished
    faults = []
    for jobs_of_pass in planned:
        faults += train_pass(ws, jobs_of_pass, watch)
    if not ws.ranks.is_first:
        return faults
    for job in (job for job in unfinished.values() if is_estimator(job.entry)):
        faults += fit(ws, job)
    for job in jobs:
        if job.entry.ensemble is not None and not ws.is_finished(folder_of(ws, job)):
            faults += join(ws, job)
    for job in jobs:
        if (manifest := read_manifest(folder_of(ws, job))) is not None:
            scores = manifest.metrics["test"]
            ws.say("distill", f"{job.name}: test {in_words(scores, digits=4)}")
    return faults


def ensure(ws: Workspace, job: Run) -> Path:
    """Return the folder of a finished student, training it if need be. Raises: StillroomError when it can't be."""
    if faults := train_all(ws, [job]):
        raise StillroomError("\n".join(faults))
    return folder_of(ws, job)
