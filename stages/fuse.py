"""fuse: teacher stores become target stores, without a teacher; each target is scored as a classifier first."""

from collections.abc import Sequence
from pathlib import Path

from rich.table import Table

from pipeline import fuse
from pipeline.fusion import FUSIONS
from pipeline.lineage import require_manifest
from pipeline.report.numbers import span as as_span
from pipeline.store import open_teacher
from stages import data
from stages.recipe import FusionEntry
from stages.show import progress
from stages.workspace import Workspace


def run(ws: Workspace, only: str | None = None) -> None:
    """Fuse every target store of the recipe (or one) that isn't there, and show the league table."""
    entries = [ws.recipe.find("fusion", only)] if only else ws.recipe.fusion
    ensure_teacher_stores(ws)
    for entry in entries:
        ensure(ws, entry)
    ws.console.print(league_table(ws, entries))


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


def ensure(ws: Workspace, entry: FusionEntry) -> Path:
    """Return the folder of a finished target store. Its teacher stores must be there."""
    folder = ws.target_folder(entry)
    if ws.is_finished(folder):
        ws.say("fuse", f"{entry.name}: found in {folder.name}")
        return folder
    names = ws.fused_teachers(entry)
    stores = [open_teacher(ws.teacher_store_folder(ws.recipe.find("teacher", name))) for name in names]
    writer = fuse.open_writer(folder, entry.name, ws.target_config(entry), stores)
    with progress(ws.console, f"fuse {entry.name}", writer.layout.rows) as bar:
        filled = fuse.fuse_stores(stores, FUSIONS[entry.strategy](**entry.options), writer, on_block=bar.by)
    ws.made(folder)
    ws.say("fuse", f"{entry.name}: {len(names)} teachers, {filled.rows:,} rows in {as_span(filled.seconds)}")
    return folder


def league_table(ws: Workspace, fusions: Sequence[FusionEntry]) -> Table:
    """Return teachers and fused targets as classifiers, on calibration and test rows."""
    table = Table("", title="League table (accuracy, NLL, ECE)", title_justify="left")
    for split in ("calibration", "test"):
        for column in (split, "NLL", "ECE"):
            table.add_column(column, justify="right", no_wrap=True)
    for teacher in ws.recipe.teacher:
        scores = ws.teacher_store_scores(teacher.name)
        table.add_row(f"teacher {teacher.name}", *_cells(scores))
    for fusion in fusions:
        manifest = require_manifest(ws.target_folder(fusion), "target store", make_with="stillroom fuse")
        table.add_row(f"fusion {fusion.name}", *_cells(manifest.details["scores"]))
    return table


def _cells(scores: dict[str, dict[str, float]]) -> list[str]:
    return [f"{scores[split][key]:.4f}" for split in ("calibration", "test") for key in ("accuracy", "nll", "ece")]
