"""report: manifests become results.json for machines and one self-contained page for people."""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch

from pipeline import report as reports
from pipeline.datasets import ImageDataset
from pipeline.errors import StillroomError
from pipeline.lineage import Manifest, artefact_folder, fingerprint, read_cost, read_manifest, write_durably
from pipeline.models import SoftTree
from pipeline.report import Cost, Part
from pipeline.store import TargetStore, open_targets, open_teacher
from pipeline.tasks import Reals, Tokens
from stages import answers, auto, runs, search, sentences
from stages.judging import Judging, judge_of
from stages.league import LEAGUE
from stages.networks import load_student
from stages.recipe import AUTO, Sweep
from stages.sweep import trials, values_of
from stages.workspace import Workspace, fold_model_name

MOST_TREES = 3  # that are drawn
ENDED = {
    search.PRUNED: "ended early: trials before it were better by then",
    search.FAILED: "failed: it may have diverged",
}


@dataclass
class Found:
    """What is finished, in the recipe's order, and the names of what is not."""

    parts: list[Part] = field(default_factory=list)
    costs: list[Cost] = field(default_factory=list)
    missing: list[str] = field(default_factory=list)
    sweeps: list[reports.SweepTable] = field(default_factory=list)
    losses: list[reports.LossTable] = field(default_factory=list)

    def of(self, *kinds: str) -> list[Part]:
        """Return the parts of some kinds."""
        return [part for part in self.parts if part.row["kind"] in kinds]

    def of_shown(self) -> list[Part]:
        """Return the parts that a page lists one by one."""
        return reports.listed(self.parts, self.sweeps)


def run(ws: Workspace) -> None:
    """Write the report of what is finished, saying what is not; a page that is up to date is left alone."""
    found = Found()
    if any(ws.root.glob("*/*/manifest.json")):  # else there is nothing, and the plan would fetch the data set to say so
        _add_teachers(ws, found)
        _add_fusions(ws, found)
        _add_students(ws, found)
        found.sweeps = [_sweep(ws, sweep, found) for sweep in ws.recipe.sweep]
        _add_losses(ws, found)
    if not found.parts:
        raise StillroomError(
            f"{ws.root}: found nothing finished of recipe {ws.recipe.name!r}; expected a teacher store at least; "
            f"run 'stillroom distill {ws.recipe.name}'"
        )
    judging = judge_of(ws)
    found.parts = [answers.with_more(ws, part, judging) for part in found.parts]
    rows, league = [part.row for part in found.parts], _league(ws)
    folder = ws.root / "reports" / ws.recipe.name
    page, results = folder / "index.html", json.dumps(reports.results(ws.recipe.name, rows), indent=1) + "\n"
    if not (folder / "results.json").exists() or (folder / "results.json").read_text() != results:
        write_durably(folder / "results.json", results.encode())
    made_from = fingerprint(
        {"rows": rows, "costs": [(c.stage, c.folder.name, c.seconds) for c in found.costs], "missing": found.missing}
        | {"facts": _facts(ws, judging), "sources": reports.sources_digest(), "league": league and league.fingerprint}
        | {"sweeps": [asdict(sweep) for sweep in found.sweeps], "losses": [asdict(table) for table in found.losses]}
    )
    if not reports.is_current(page, made_from):
        write_durably(page, reports.render(_report(ws, found, league, made_from, judging)).encode())
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
        if job.fusion is not None and not job.is_lazy:
            _add_cost(found, "fuse", job.fusion.name, ws.target_folder(job.fusion))
        if student := read_manifest(folder):
            fusion = None if job.fusion is None else job.fusion.name
            entry = job.entry.name
            name = entry if job.is_own else f"{entry}: {reports.title_of(job.role)}"
            for member in runs.members(job):
                _add_cost(found, "distill", f"{name}: members", runs.folder_of(ws, member))
            found.parts.append(
                reports.student_part(student, folder, _cost(ws, job), entry=entry, role=job.role, fusion=fusion)
            )
            found.costs.append(Cost("distill", name, folder, _seconds(read_cost(folder))))
        else:
            found.missing.append(f"student {job.name}")


def _cost(ws: Workspace, job: runs.Run) -> dict[str, Any]:
    """Return what a student cost; an ensemble costs what its members do."""
    cost = read_cost(runs.folder_of(ws, job))
    seconds = [_seconds(read_cost(runs.folder_of(ws, member))) for member in runs.members(job)]
    known = [each for each in seconds if each is not None]
    return {**cost, "seconds": (_seconds(cost) or 0.0) + sum(known)} if known else cost


def _seconds(cost: Mapping[str, Any]) -> float | None:
    return cost.get("seconds", cost.get("training_seconds"))


def _add_cost(found: Found, stage: str, name: str, folder: Path) -> None:
    """Add what is there of others' making: a target store once for all that share it, a member, a candidate."""
    if read_manifest(folder) and all(folder != other.folder for other in found.costs):
        found.costs.append(Cost(stage, name, folder, _seconds(read_cost(folder))))


def _jobs(ws: Workspace, found: Found) -> Iterator[runs.Run]:
    """Yield the recipe's runs; while a teacher store is missing, nobody knows the best teacher, so no baselines."""
    whole = len(found.of("teacher")) == len(ws.recipe.teacher)
    own = {entry.name for entry in ws.recipe.student}
    for entry in search.all_students(ws):
        fusion = runs.fusion_of(ws, entry)
        if fusion is not None and not ws.is_decided(fusion):
            found.missing.append(f"student {entry.name}")
            continue
        yield from runs.runs(ws, entry if whole else entry.model_copy(update={"baselines": False}))
        yield from auto.chosen(ws, entry) if entry.name in own else ()  # a trial's loss is its own
        if entry.baselines and not whole:
            found.missing.append(f"baselines of {entry.name}")


def _sweep(ws: Workspace, sweep: Sweep, found: Found) -> reports.SweepTable:
    title, student = f"{sweep.student}.{sweep.name}", ws.recipe.find("student", sweep.student)
    if sweep.search == "optuna":
        tried = search.read_trials(ws, sweep)
        values = {f"{title}.{trial['number']}": trial["values"] for trial in tried}
        faults = {f"{title}.{trial['number']}": ENDED[trial["state"]] for trial in tried if trial["state"] in ENDED}
    else:
        values, faults = {entry.name: values_of(sweep, entry) for entry in trials(sweep, student)}, {}
    return reports.sweep_table(title, values, found.parts, seeds=len(sweep.seeds), faults=faults)


def _add_losses(ws: Workspace, found: Found) -> None:
    """Add the choices of a loss that were made, and what trying cost."""
    for entry in ws.recipe.student:
        if not auto.chosen(ws, entry):
            continue
        manifest = read_manifest(artefact_folder(ws.root / "autos", entry.name, auto.config(ws, entry)))
        assert manifest is not None  # else nothing is chosen
        found.losses.append(reports.loss_table(entry.name, manifest.details))
        for job in auto.candidates(ws, entry).values():
            _add_cost(found, "distill", f"{entry.name}: losses tried", runs.folder_of(ws, job))


def _trees(ws: Workspace, found: Found) -> Iterator[reports.Tree]:
    """Yield the soft decision trees among the students, the first seed of each; a sweep's best stands for it.

    They read pictures, which are drawn, or a table, whose columns have names: what an encoder says tells nobody a word.
    """
    seen = set[str]()
    for part in reports.listed(found.of("student"), found.sweeps):
        name, manifest = part.row["name"], part.manifest
        if manifest is None or name in seen or manifest.config["training"]["model"] != "soft_tree":
            continue
        seen.add(name)
        reads = manifest.config["training"].get("reads")
        names = getattr(ws.samples(reads), "names", None)
        if names is None and not isinstance(ws.dataset, ImageDataset):
            continue
        model = load_student(part.folder, manifest, ws.shape(reads))
        if isinstance(model, SoftTree):  # and no ensemble of some
            inputs, labels = [batch.inputs.cpu() for batch in ws.held_out("test", reads)], ws.plan.splits["test"].labels
            yield reports.tree_of(name, part.row["seed"], model, inputs, labels, names=names)


def _league(ws: Workspace) -> Manifest | None:
    """Return the league of all teachers' strategies, else that of the recipe's first "auto", if any is there."""
    asked = [LEAGUE, *(entry for entry in ws.recipe.fusion if entry.strategy == AUTO)]
    manifests = (read_manifest(ws.league_folder(entry)) for entry in asked)
    return next((manifest for manifest in manifests if manifest is not None), None)


def _report(
    ws: Workspace, found: Found, league: Manifest | None, made_from: str, judging: Judging | None
) -> reports.Report:
    labels, is_of_classes = ws.plan.splits["test"].labels, ws.task.is_plain and not ws.task.is_real
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
        members=answers.members(ws, found.of_shown()) if is_of_classes else [],
        labels=labels,
        fusion=focus,
        best_teacher=ws.best_teacher([part.row["name"] for part in found.of("teacher")]),
        disagreement={name: answers.disagreement(store) for name, store in stores.items()},
        errors=answers.errors(ws, found.of_shown()) if ws.task.is_real and judging is None else {},
        grid=None if judging is None else judging.grid(found.of_shown(), partial(answers.answers_of, ws)),
        written=sentences.written(ws, found.of_shown()) if isinstance(ws.task, Tokens) else [],
        unit=ws.task.unit if isinstance(ws.task, Reals) else "",
        samples=lambda positions: _shown(ws, ws.plan.splits["test"].ids[positions]),
        costs=found.costs,
        facts=_facts(ws, judging),
        teaching=None if taught is None or not is_of_classes else _teaching(found, taught, stores[taught]),
        train_samples=lambda positions: _as_shown(ws, positions),
        strategies=None if league is None else league.details,
        sweeps=found.sweeps,
        ensembles=reports.ensemble_tables(found.parts),
        losses=found.losses,
        trees=list(islice(_trees(ws, found), MOST_TREES)),
    )


def _teaching(found: Found, name: str, targets: TargetStore) -> reports.Teaching:
    folders = {part.row["name"]: part.folder for part in found.of("teacher")}
    teachers = {each: open_teacher(folders[each]) for each in targets.teachers if each in folders}
    return reports.teaching_of(name, targets, teachers)


def _shown(ws: Workspace, ids: np.ndarray) -> Sequence[reports.Sample]:
    """Return samples for people: pictures uint8 [B, C, H, W], or what their records say."""
    dataset = ws.dataset
    return list(dataset.read(ids).numpy()) if isinstance(dataset, ImageDataset) else dataset.show(ids)


def _as_shown(ws: Workspace, positions: np.ndarray) -> Sequence[reports.Sample]:
    """Return train rows of view 0 as the teachers saw them: pictures uint8 [B, C, H, W], or what their records say."""
    if not isinstance(ws.dataset, ImageDataset):
        return _shown(ws, ws.plan.splits["train"].ids[positions])
    inputs = ws.replayer.batch("train", 0, positions).inputs.cpu()
    mean, std = (torch.tensor(numbers).view(1, -1, 1, 1) for numbers in (ws.plan.mean, ws.plan.std))
    return list(((inputs * std + mean) * 255).round().clamp(0, 255).to(torch.uint8).numpy())


def _facts(ws: Workspace, judging: Judging | None) -> dict[str, list[tuple[str, str]]]:
    splits: dict[str, Any] = {name: (len(split), len(split.labelled)) for name, split in ws.plan.splits.items()}
    found = reports.facts(ws.recipe.name, ws.dataset.name, ws.plan.config, splits, num_classes=len(ws.classes))
    return found if judging is None else {**found, "Judge": judging.facts()}
