"""fuse: teacher stores become target stores, without a teacher; each target is scored as a classifier first."""

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from rich.table import Table

from pipeline import fuse
from pipeline.errors import StaleStoreError
from pipeline.fusion import FUSIONS, Target
from pipeline.fusion.real import REAL_FUSIONS, RealTarget
from pipeline.fusion.sentences import SENTENCE_FUSIONS, SentenceTarget
from pipeline.lineage import differences, require_manifest
from pipeline.report import DISHONEST
from pipeline.report.numbers import span as as_span
from pipeline.store import TeacherStore, open_teacher
from pipeline.store.attributes import read_attributes
from pipeline.tasks import Task, Tokens
from stages import data, league
from stages.asks import refuse_others
from stages.mend import examine
from stages.recipe import AUTO, FusionEntry
from stages.show import progress
from stages.workspace import Workspace

FIGURES = {"accuracy": "accuracy", "nll": "NLL", "ece": "ECE"}  # of the table of teachers and targets
REAL_FIGURES = {"mae": "MAE", "rmse": "RMSE", "r2": "R²"}
SENTENCE_FIGURES = {"chrf": "chrF", "bleu": "BLEU", "nll": "NLL", "accuracy": "next piece"}


def figures_of(task: Task) -> dict[str, str]:
    """Return the figures of the table, and how each is called."""
    if isinstance(task, Tokens):
        return SENTENCE_FIGURES
    return REAL_FIGURES if task.is_real else FIGURES


def run(ws: Workspace, only: str | None = None, *, compare: bool = False, auto: bool = False) -> None:
    """Fuse every target store of the recipe (or one) that isn't there, and show the league table.

    `compare` shows every strategy there is instead, and fuses none; `auto` fuses the one that wins.
    """
    if compare or auto:
        refuse_others(ws.recipe, "fuse --all" if compare else "fuse --auto")
    entries = [ws.recipe.find("fusion", only)] if only else ws.recipe.fusion
    ensure_teacher_stores(ws)
    if compare or auto:
        ws.console.print(league.table(ws, league.ensure(ws)))
        if not auto:
            return
        entries = [league.LEAGUE]
    for entry in entries:
        if entry.is_lazy:
            ws.say("fuse", f"{entry.name}: skipped, {entry.strategy!r} weighs the teachers as each student trains")
        else:
            ensure(ws, entry, check=True)
    ws.console.print(league_table(ws, [entry for entry in entries if not entry.is_lazy]))


def ensure_teacher_stores(ws: Workspace) -> None:
    """Make the teacher stores that are missing. Only if one is missing is any code of a teacher imported."""
    folders = {entry.name: ws.teacher_store_folder(entry) for entry in ws.recipe.teacher}
    if not all(ws.is_finished(folder) for folder in folders.values()):
        from stages import logits

        logits.run(ws)
        return
    data.run(ws)
    for name, folder in folders.items():
        ws.say("logits", f"{name}: found in {folder.name}")


def ensure(ws: Workspace, entry: FusionEntry, *, check: bool = False) -> Path:
    """Return the folder of a finished target store. Its teacher stores must be there."""
    if entry.strategy == AUTO:
        league.ensure(ws, entry)
    folder, config = ws.target_folder(entry), ws.target_config(entry)
    if not fuse.is_honest(config):
        ws.say("fuse", f"{entry.name}: warning: {DISHONEST}, where the teachers' confidence is memory; not for use")
    mending = examine(ws, "fuse", entry.name, folder, check=check)
    if mending.is_sound:
        if check:
            _check_parents(ws, entry, folder)
        ws.say("fuse", f"{entry.name}: found in {folder.name}")
        return folder
    stores, target = _stores(ws, entry), target_of(ws, entry)
    begun = fuse.begun(folder, target, config) or fuse.begin(stores, target, config, f"fusion.{entry.name}")
    writer = fuse.open_writer(folder, entry.name, config, stores, begun)
    mending.begin(writer)
    with progress(ws.console, f"fuse {entry.name}", writer.layout.rows) as bar:
        filled = fuse.fuse_stores(stores, begun, writer, on_block=bar.by)
    ws.made(folder)
    ws.say("fuse", f"{entry.name}: {len(stores)} teachers, {filled.rows:,} rows in {as_span(filled.seconds)}")
    return folder


def target_of(ws: Workspace, entry: FusionEntry) -> fuse.Targets | SentenceTarget:
    """Return what an entry asks for at each output, or of whole sentences, unfitted."""
    if entry.is_of_sentences:
        return SentenceTarget(SENTENCE_FUSIONS[entry.strategy](**entry.options))
    (strategy, options), (numbers, of_numbers) = ws.strategy_of(entry), entry.numbers_strategy
    targets: dict[str, Target | RealTarget] = {}
    for output in ws.task.shapes:
        if ws.task.is_real:
            targets[output] = RealTarget(REAL_FUSIONS[strategy](**options), ws.task.metrics)
        elif output in ws.task.numbers:
            targets[output] = RealTarget(REAL_FUSIONS[numbers](**of_numbers))
        else:
            targets[output] = Target(FUSIONS[strategy](**options), entry.calibrate_pool, entry.correction)
    return targets


def _stores(ws: Workspace, entry: FusionEntry) -> list[TeacherStore]:
    return [open_teacher(ws.store_folder(name)) for name in ws.fused_teachers(entry)]


def _check_parents(ws: Workspace, entry: FusionEntry, folder: Path) -> None:
    """Raise StaleStoreError when a teacher store has other bytes than the one that was fused."""
    found, wanted = read_attributes(folder).get("parents", {}), fuse.parents_of(_stores(ws, entry))
    differing = differences({"parents": found}, {"parents": wanted})
    if differing:
        raise StaleStoreError(
            f"{folder}: fused from other teacher stores: {', '.join(differing)}; delete the folder to fuse them anew"
        )


def league_table(ws: Workspace, fusions: Sequence[FusionEntry]) -> Table:
    """Return teachers and fused targets as the students they would be, on calibration rows and then on test rows."""
    figures = figures_of(ws.task)
    scores = {f"teacher {teacher.name}": ws.teacher_store_scores(teacher.name) for teacher in ws.recipe.teacher}
    for fusion in fusions:
        manifest = require_manifest(ws.target_folder(fusion), "target store", make_with="stillroom fuse")
        mark = "" if fuse.is_honest(manifest.config) else f" ({DISHONEST})"
        scores[f"fusion {fusion.name}{mark}"] = manifest.details["scores"]
    table = Table("league table", "rows", title_justify="left")
    for column in figures.values():
        table.add_column(column, justify="right", no_wrap=True)
    for split in ("calibration", "test"):
        for name, each in scores.items():
            table.add_row(name, split, *_cells(each[split], figures))
        table.add_section()
    return table


def _cells(scores: Mapping[str, float], figures: Iterable[str]) -> list[str]:
    return [f"{scores[key]:.4f}" if key in scores else "-" for key in figures]
