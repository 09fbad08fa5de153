"""Which finished runs a command is about that takes one of each student."""

from pipeline.errors import StillroomError, near_names
from pipeline.lineage import read_manifest
from stages.recipe import StudentEntry
from stages.runs import Run, folder_of, fusion_of, runs
from stages.search import all_students
from stages.students import WEIGHTS
from stages.workspace import Workspace


def finished(ws: Workspace, student: str | None, seed: int | None) -> list[Run]:
    """Return the run to export of each student that has one. Raises: StillroomError when none has."""
    entries = _named(ws, student) if student else ws.recipe.student
    chosen = [job for entry in entries if (job := best(ws, entry, seed)) is not None]
    if not chosen:
        what = f"student {student!r}" if student else "students"
        of_seed = "" if seed is None else f" of seed {seed}"
        raise StillroomError(
            f"{ws.root / 'students'}: found no finished {what}{of_seed} of recipe {ws.recipe.name!r}; expected one to "
            f"export; run 'stillroom distill {ws.recipe.name}', or name another"
        )
    networks = [job for job in chosen if _is_network(ws, job)]
    for job in chosen:
        if networks and job not in networks:
            ws.say("export", f"{job.name}: no network, passed over")
    return networks or chosen


def _is_network(ws: Workspace, job: Run) -> bool:
    """Whether a finished run's student has a network's weights."""
    manifest = read_manifest(folder_of(ws, job))
    return manifest is not None and WEIGHTS in manifest.digests


def _named(ws: Workspace, name: str) -> list[StudentEntry]:
    """Return the student of a name, which may be a sweep's trial. Raises: StillroomError with near names."""
    known = {entry.name: entry for entry in all_students(ws)}
    if name not in known:
        raise StillroomError(f"{ws.recipe.name}: no student {name!r}; expected one it has; {near_names(name, known)}")
    return [known[name]]


def best(ws: Workspace, entry: StudentEntry, seed: int | None) -> Run | None:
    """Return a student's finished run of a seed, or of the lowest NLL on calibration rows; None if there is none."""
    fusion = fusion_of(ws, entry)
    if fusion is not None and not ws.is_decided(fusion):
        return None
    found = list[tuple[float, Run]]()
    for job in runs(ws, entry.model_copy(update={"baselines": False})):
        manifest = read_manifest(folder_of(ws, job))
        if manifest is not None and seed in (None, job.seed):
            found.append((manifest.metrics["calibration"]["nll"], job))
    return min(found, key=lambda each: each[0])[1] if found else None
