"""status: what a recipe's run consists of, what of it exists, how large it is, and what is still to be made."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.table import Table

from pipeline.errors import StillroomError
from pipeline.lineage import read_cost, read_manifest
from pipeline.models import WRITERS
from pipeline.report.numbers import size as as_size
from pipeline.report.numbers import span as as_span
from stages import data, runs
from stages.auto import chosen
from stages.estimators import is_estimator
from stages.judging import judge_folder
from stages.league import LEAGUE
from stages.recipe import AUTO, StudentEntry, TeacherEntry
from stages.search import all_students
from stages.workspace import Workspace, fold_model_name

KINDS = ("plans", "budgets", "teachers", "logits", "leagues", "targets", "students", "autos", "judges", "exports")


@dataclass(frozen=True)
class Wanted:
    """An artefact that a recipe consists of, and what making it takes: rows a model sees or answers on."""

    kind: str
    name: str
    folder: Path
    rows: int


def run(ws: Workspace, *, as_json: bool) -> None:
    """Print the artefacts of the recipe and those that no longer belong to it."""
    rows = [{**describe(w.kind, w.name, w.folder), "rows": w.rows} for w in wanted(ws)]
    rows += stale(ws, {row["path"] for row in rows})
    if as_json:
        print(json.dumps({"recipe": ws.recipe.name, "artefacts": rows}, indent=1))
        return
    table = Table(
        "kind", "name", "state", "size", "took", "rows", "path", title=f"Recipe {ws.recipe.name}", title_justify="left"
    )
    for row in rows:
        took = as_span(row["seconds"]) if row["seconds"] else ""
        size = as_size(row["bytes"]) if row["bytes"] else ""
        table.add_row(row["kind"], row["name"], row["state"], size, took, f"{row['rows']:,}", Path(row["path"]).name)
    ws.console.print(table)
    missing = [row for row in rows if row["state"] in ("missing", "unfinished", "damaged")]
    cost = f", {sum(row['rows'] for row in missing):,} rows" if missing else ""
    ws.console.print(f"{len(missing)} of {len(rows)} still to be made{cost}" if missing else "everything is there")


def wanted(ws: Workspace) -> list[Wanted]:
    """Return every artefact that the recipe consists of.

    While a teacher store is missing nobody knows the best teacher, so the students and baselines can't be told.
    """
    recipe, plan = ws.recipe, ws.plan
    answers = sum(plan.views(name) * len(split) for name, split in plan.splits.items())
    labelled = len(plan.splits["train"].labelled)
    found = [Wanted("plans", recipe.name, data.plan_folder(ws), 0)]
    for entry in recipe.teacher:
        shown = _shown(ws, entry, labelled)
        for fold in (None, *ws.folds):
            name = fold_model_name(entry.name, fold)
            found.append(Wanted("teachers", name, ws.teacher_folder(entry, fold), shown))
    found += [Wanted("logits", entry.name, ws.teacher_store_folder(entry), answers) for entry in recipe.teacher]
    jobs = (
        [j for entry in all_students(ws) for j in (*runs.runs(ws, entry), *chosen(ws, entry))] if is_dumped(ws) else []
    )
    jobs = [job for job in jobs if job.fusion is None or ws.is_decided(job.fusion)]
    found += [Wanted("logits", name, ws.store_folder(name), answers) for name in ws.born]
    leagues = {ws.league_folder(entry) for entry in (*recipe.fusion, LEAGUE) if entry.strategy == AUTO}
    found += [Wanted("leagues", recipe.name, folder, 0) for folder in sorted(leagues) if folder.exists()]
    fusions = [*recipe.fusion, *(job.fusion for job in jobs if job.fusion is not None)]
    targets = {ws.target_folder(fusion): fusion.name for fusion in reversed(fusions) if ws.is_stored(fusion)}
    found += [Wanted("targets", name, folder, answers) for folder, name in reversed(targets.items())]
    for job in jobs:
        has_labels_alone = job.fusion is None and is_estimator(job.entry)  # networks take equal steps
        shown = _shown(ws, job.entry, labelled if has_labels_alone else len(plan.splits["train"]))
        found += [Wanted("students", each.name, runs.folder_of(ws, each), shown) for each in runs.members(job)]
        found.append(Wanted("students", job.name, runs.folder_of(ws, job), 0 if job.entry.ensemble else shown))
    judge = judge_folder(ws)
    return found if judge is None else [*found, Wanted("judges", ws.dataset.name, judge, 0)]


def _shown(ws: Workspace, entry: TeacherEntry | StudentEntry, rows: int) -> int:
    """Return how many rows a model of `rows` learns from, as often as it sees them; a rule that writes learns none."""
    if entry.model in WRITERS:
        return 0
    if is_estimator(entry):
        return rows * min(entry.fit_views, ws.plan.count)
    return ws.steps(entry, rows)[0] * min(entry.batch_size, rows)


def is_dumped(ws: Workspace) -> bool:
    """Whether every teacher store is there."""
    return all(ws.is_finished(ws.teacher_store_folder(entry)) for entry in ws.recipe.teacher)


def describe(kind: str, name: str, folder: Path) -> dict[str, Any]:
    """Return one artefact as JSON: kind, name, state, path, bytes, seconds."""
    try:
        state = "finished" if read_manifest(folder) else ("unfinished" if folder.exists() else "missing")
    except StillroomError:
        state = "damaged"
    size = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file()) if folder.exists() else 0
    seconds = read_cost(folder).get("seconds", 0.0)
    seconds = seconds if isinstance(seconds, int | float) else 0.0
    return {"kind": kind, "name": name, "state": state, "path": str(folder), "bytes": size, "seconds": seconds}


def stale(ws: Workspace, kept: set[str]) -> list[dict[str, Any]]:
    """Return artefacts that this recipe made when it said something else."""
    rows = []
    for kind in KINDS:
        for folder in sorted((ws.root / kind).glob("*-*")):
            if str(folder) not in kept and read_cost(folder).get("recipe") == ws.recipe.name:
                described = describe(kind, folder.name.rsplit("-", 1)[0], folder)
                rows.append({**described, "state": "stale", "rows": 0})
    return rows
