"""report: manifests become results.json for machines and one self-contained page for people."""

import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch

from pipeline import report as reports
from pipeline.errors import StillroomError
from pipeline.lineage import Manifest, fingerprint, read_cost, read_manifest, write_durably
from pipeline.report import Cost, Member, Part
from pipeline.store import TargetStore, open_targets, open_teacher
from stages import runs
from stages.auto import chosen
from stages.league import LEAGUE
from stages.recipe import AUTO
from stages.workspace import Workspace, fold_model_name


@dataclass
class Found:
    """What is finished, in the recipe's order, and the names of what is not."""

    parts: list[Part] = field(default_factory=list)
    costs: list[Cost] = field(default_factory=list)
    missing: list[str] = field(default_factory=list)

    def of(self, *kinds: str) -> list[Part]:
        """Return the parts of some kinds."""
        return [part for part in self.parts if part.row["kind"] in kinds]


def run(ws: Workspace) -> None:
    """Write the report of what is finished, saying what is not; a page that is up to date is left alone."""
    found = Found()
    if any(ws.root.glob("*/*/manifest.json")):  # else there is nothing, and the plan would fetch the data set to say so
        _add_teachers(ws, found)
        _add_fusions(ws, found)
        _add_students(ws, found)
    if not found.parts:
        raise StillroomError(
            f"{ws.root}: found nothing finished of recipe {ws.recipe.name!r}; expected a teacher store at least; "
            f"run 'stillroom distill {ws.recipe.name}'"
        )
    rows, league = [part.row for part in found.parts], _league(ws)
    folder = ws.root / "reports" / ws.recipe.name
    page, results = folder / "index.html", json.dumps(reports.results(ws.recipe.name, rows), indent=1) + "\n"
    if not (folder / "results.json").exists() or (folder / "results.json").read_text() != results:
        write_durably(folder / "results.json", results.encode())
    made_from = fingerprint(
        {"rows": rows, "costs": [(c.stage, c.folder.name, c.seconds) for c in found.costs], "missing": found.missing}
        | {"facts": _facts(ws), "sources": reports.sources_digest(), "league": league and league.fingerprint}
    )
    if not reports.is_current(page, made_from):
        write_durably(page, reports.render(_report(ws, found, league, made_from)).encode())
        ws.done.append(str(page))
    ws.say("report", f"{page}: {reports.headline_text(rows)}")
    if found.missing:
        ws.say("report", f"not finished: {len(found.missing)}, named on the page")


def _add_teachers(ws: Workspace, found: Found) -> None:
    for entry in ws.recipe.teacher:
        trained, folder = ws.teacher_folder(entry), ws.teacher_store_folder(entry)
        training, dump = read_cost(trained), read_cost(folder)
        for fold in (None, *ws.folds):
            if ws.is_finished(model := ws.teacher_folder(entry, fold)):
                name, seconds = fold_model_name(entry.name, fold), read_cost(model).get("seconds")
                found.costs.append(Cost("teachers", name, model, seconds))
        if store := read_manifest(folder):
            found.parts.append(reports.teacher_part(store, folder, dump, training))
            found.costs.append(Cost("logits", entry.name, folder, dump.get("seconds")))
        else:
            found.missing.append(f"teacher {entry.name}")


def _add_fusions(ws: Workspace, found: Found) -> None:
    params = {part.row["name"]: part.row["params"] for part in found.of("teacher")}
    for entry in ws.recipe.fusion:
        if entry.is_lazy:
            continue  # its students stand for it
        if not ws.is_decided(entry):
            found.missing.append(f"fusion {entry.name}")
            continue
        folder = ws.target_folder(entry)
        if store := read_manifest(folder):
            found.parts.append(reports.fusion_part(store, folder, read_cost(folder), params, name=entry.name))
            found.costs.append(Cost("fuse", entry.name, folder, read_cost(folder).get("seconds")))
        else:
            found.missing.append(f"fusion {entry.name}")


def _add_students(ws: Workspace, found: Found) -> None:
    for job in _jobs(ws, found):
        folder = runs.folder_of(ws, job)
        if job.fusion and job.role != "student":
            _add_cost(found, Cost("fuse", job.fusion.name, ws.target_folder(job.fusion), None))
        if student := read_manifest(folder):
            fusion = None if job.fusion is None else job.fusion.name
            cost, entry = read_cost(folder), job.entry.name
            part = reports.student_part(student, folder, cost, entry=entry, role=job.role, fusion=fusion)
            found.parts.append(part)
            name = job.entry.name if job.role == "student" else f"{job.entry.name}: {reports.title_of(job.role)}"
            found.costs.append(Cost("distill", name, folder, part.row["seconds"]))
        else:
            found.missing.append(f"student {job.name}")


def _add_cost(found: Found, cost: Cost) -> None:
    """Add a baseline's target store, once for all seeds and students that share it."""
    if read_manifest(cost.folder) and all(cost.folder != other.folder for other in found.costs):
        seconds = read_cost(cost.folder).get("seconds")
        found.costs.append(Cost(cost.stage, cost.name, cost.folder, seconds))


def _jobs(ws: Workspace, found: Found) -> Iterator[runs.Run]:
    """Yield the recipe's runs; while a teacher store is missing, nobody knows the best teacher, so no baselines."""
    whole = len(found.of("teacher")) == len(ws.recipe.teacher)
    for entry in ws.recipe.students:
        yield from runs.runs(ws, entry if whole else entry.model_copy(update={"baselines": False}))
        yield from chosen(ws, entry)
        if entry.baselines and not whole:
            found.missing.append(f"baselines of {entry.name}")


def _league(ws: Workspace) -> Manifest | None:
    """Return the league of all teachers' strategies, else that of the recipe's first "auto", if any is there."""
    asked = [LEAGUE, *(entry for entry in ws.recipe.fusion if entry.strategy == AUTO)]
    manifests = (read_manifest(ws.league_folder(entry)) for entry in asked)
    return next((manifest for manifest in manifests if manifest is not None), None)


def _report(ws: Workspace, found: Found, league: Manifest | None, made_from: str) -> reports.Report:
    labels = ws.plan.splits["test"].labels
    students, fusions = found.of("student"), found.of("fusion")
    focus = students[0].row["fusion"] if students else fusions[0].row["name"] if fusions else None
    stores = {part.row["name"]: open_targets(part.folder) for part in fusions}
    taught = focus if focus in stores else next(iter(stores), None)  # of a lazy fusion there is no store
    return reports.Report(
        recipe=ws.recipe.name,
        fingerprint=made_from,
        parts=found.parts,
        missing=found.missing,
        classes=ws.classes,
        members=list(_members(found, torch.from_numpy(labels))),
        labels=labels,
        fusion=focus,
        best_teacher=ws.best_teacher([part.row["name"] for part in found.of("teacher")]),
        disagreement={name: store.read("train", "disagreement") for name, store in stores.items()},
        pixels=lambda positions: ws.dataset.read(ws.plan.splits["test"].ids[positions]).numpy(),
        costs=found.costs,
        facts=_facts(ws),
        teaching=None if taught is None else _teaching(found, taught, stores[taught]),
        train_pixels=lambda positions: _as_shown(ws, positions),
        strategies=None if league is None else league.details,
    )


def _teaching(found: Found, name: str, targets: TargetStore) -> reports.Teaching:
    folders = {part.row["name"]: part.folder for part in found.of("teacher")}
    teachers = {each: open_teacher(folders[each]) for each in targets.teachers if each in folders}
    return reports.teaching_of(name, targets, teachers)


def _as_shown(ws: Workspace, positions: np.ndarray) -> np.ndarray:
    """Return train rows of view 0 as the teachers saw them: uint8 [B, C, H, W]."""
    inputs = ws.replayer.batch("train", 0, positions).inputs.cpu()
    mean, std = (torch.tensor(numbers).view(1, -1, 1, 1) for numbers in (ws.plan.mean, ws.plan.std))
    return ((inputs * std + mean) * 255).round().clamp(0, 255).to(torch.uint8).numpy()


def _members(found: Found, labels: torch.Tensor) -> Iterator[Member]:
    """Yield teachers, fusions, then the first seed of each student and of hard labels, as they answer test rows."""
    for part in found.of("teacher"):
        log_probs = open_teacher(part.folder).logits("test").log_softmax(-1)
        yield reports.member_of(part.row["name"], "teacher", log_probs, labels)
    for part in found.of("fusion"):
        store = open_targets(part.folder)
        log_probs = store.log_probs("test", temperature=min(store.temperatures))
        yield reports.member_of(part.row["name"], "fusion", log_probs, labels)
    seen = set[tuple[str, str]]()
    for part in found.of("student", "baseline"):
        row = part.row
        if (row["student"], row["name"]) not in seen and (row["kind"] == "student" or row["name"] == "hard_labels"):
            seen.add((row["student"], row["name"]))
            kind = "student" if row["kind"] == "student" else "baseline"
            name = row["name"] if kind == "student" else f"{row['student']} on hard labels"
            yield reports.member_of(name, kind, reports.student_answers(part.folder), labels)


def _facts(ws: Workspace) -> dict[str, list[tuple[str, str]]]:
    splits: dict[str, Any] = {name: (len(split), len(split.labelled)) for name, split in ws.plan.splits.items()}
    return reports.facts(ws.recipe.name, ws.dataset.name, ws.plan.config, splits, num_classes=len(ws.classes))
