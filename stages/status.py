"""status: what a recipe's run consists of, what of it exists, how large it is, and what is still to be made."""

import json
from pathlib import Path
from typing import Any

from rich.table import Table

from pipeline.errors import StillroomError
from pipeline.lineage import fingerprint, read_cost, read_manifest
from pipeline.report.numbers import size as as_size
from pipeline.report.numbers import span as as_span
from stages import data, distill
from stages.workspace import Workspace

KINDS = ("plans", "teachers", "logits", "targets", "students")


def run(ws: Workspace, *, as_json: bool) -> None:
    """Print the artefacts of the recipe and those that no longer belong to it."""
    rows = [describe(kind, name, folder) for kind, name, folder in wanted(ws)]
    rows += stale(ws, {row["path"] for row in rows})
    if as_json:
        print(json.dumps({"recipe": ws.recipe.name, "artefacts": rows}, indent=1))
        return
    table = Table(
        "kind", "name", "state", "size", "took", "path", title=f"Recipe {ws.recipe.name}", title_justify="left"
    )
    for row in rows:
        took = as_span(row["seconds"]) if row["seconds"] else ""
        size = as_size(row["bytes"]) if row["bytes"] else ""
        table.add_row(row["kind"], row["name"], row["state"], size, took, row["path"])
    ws.console.print(table)
    missing = [row for row in rows if row["state"] in ("missing", "unfinished")]
    ws.console.print(f"{len(missing)} of {len(rows)} still to be made" if missing else "everything is there")


def wanted(ws: Workspace) -> list[tuple[str, str, Path]]:
    """Return (kind, name, folder) of every artefact that the recipe consists of, as far as it can be told now."""
    recipe = ws.recipe
    found = [("plans", recipe.name, data.plan_folder(ws))]
    found += [("teachers", entry.name, ws.teacher_folder(entry)) for entry in recipe.teacher]
    found += [("logits", entry.name, ws.teacher_store_folder(entry)) for entry in recipe.teacher]
    fusions = {fingerprint(ws.target_config(entry)): entry for entry in recipe.fusion}
    stores_there = all(ws.is_finished(ws.teacher_store_folder(entry)) for entry in recipe.teacher)
    jobs = [job for entry in recipe.student for job in distill.runs(ws, entry)] if stores_there else []
    for job in jobs:
        if job.fusion is not None:
            fusions.setdefault(fingerprint(ws.target_config(job.fusion)), job.fusion)
    found += [("targets", entry.name, ws.target_folder(entry)) for entry in fusions.values()]
    return found + [("students", job.name, distill.folder_of(ws, job)) for job in jobs]


def describe(kind: str, name: str, folder: Path) -> dict[str, Any]:
    """Return one artefact as JSON: kind, name, state, path, bytes, seconds."""
    try:
        state = "finished" if read_manifest(folder) else ("unfinished" if folder.exists() else "missing")
    except StillroomError:
        state = "damaged"
    size = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file()) if folder.exists() else 0
    seconds = read_cost(folder).get("seconds", 0.0)
    return {"kind": kind, "name": name, "state": state, "path": str(folder), "bytes": size, "seconds": seconds}


def stale(ws: Workspace, kept: set[str]) -> list[dict[str, Any]]:
    """Return artefacts of the recipe's names that were made from something else than the recipe says now."""
    names = {entry.name for kind in ("teacher", "fusion", "student") for entry in getattr(ws.recipe, kind)}
    rows = []
    for kind in KINDS:
        for folder in sorted((ws.root / kind).glob("*-*")):
            own = folder.name.rsplit("-", 1)[0].split("-")[0] in names
            if own and str(folder) not in kept:
                rows.append({**describe(kind, folder.name.rsplit("-", 1)[0], folder), "state": "stale"})
    return rows
