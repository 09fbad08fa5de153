"""logits: each teacher answers once on every row, into its store."""

import time
from pathlib import Path

import numpy as np

from pipeline import dump
from pipeline.lineage import read_manifest
from pipeline.report.numbers import size as as_size
from pipeline.report.numbers import span as as_span
from pipeline.store import Layout
from pipeline.teachers import Teacher
from stages import data, teachers
from stages.check import check_imported_teachers
from stages.recipe import TeacherEntry
from stages.show import progress
from stages.workspace import Workspace


def run(ws: Workspace) -> None:
    """Dump every teacher whose store isn't there."""
    data.run(ws)
    check_imported_teachers(ws.recipe)
    for entry in ws.recipe.teacher:
        ensure(ws, entry)


def ensure(ws: Workspace, entry: TeacherEntry) -> Path:
    """Return the folder of a finished teacher store. A teacher is trained, loaded or run only when it is not there."""
    folder = ws.teacher_store_folder(entry)
    if ws.is_finished(folder):
        ws.say("logits", f"{entry.name}: found in {folder.name}")
        return folder
    teacher_folder = teachers.ensure(ws, entry)
    teacher = teachers.load(ws, entry, layers=ws.recipe.logits.features)
    layout = dump.teacher_layout(ws.plan, len(ws.classes), teacher.feature_widths, ws.recipe.logits.codec)
    _predict_cost(ws, entry, teacher, layout)
    writer = dump.open_writer(folder, entry.name, ws.teacher_store_config(entry), ws.plan, layout)
    manifest = read_manifest(teacher_folder)
    assert manifest is not None
    details = {"parameters": manifest.details["parameters"], "seed": entry.seed, "weights": dict(manifest.digests)}
    total = sum(len(block) for block in layout.blocks)
    with progress(ws.console, f"dump {entry.name}", total) as bar:
        filled = dump.dump(
            teacher, ws.replayer, writer, batch_size=ws.recipe.logits.batch_size, details=details, on_block=bar.by
        )
    ws.teacher_forwards += filled.rows
    ws.made(folder)
    written = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
    ws.say("logits", f"{entry.name}: {filled.rows:,} rows, {as_size(written)} in {as_span(filled.seconds)}")
    return folder


def _predict_cost(ws: Workspace, entry: TeacherEntry, teacher: Teacher, layout: Layout) -> None:
    """Say how large the store will be and how long it will take, from a short trial on real rows."""
    size = min(teacher.rows_at_once or ws.recipe.logits.batch_size, len(ws.plan.splits["train"]))
    rows = np.arange(size)
    teacher.predict(ws.replayer.batch("train", 0, rows).inputs)  # the first call also pays for start-up
    started = time.perf_counter()
    teacher.predict(ws.replayer.batch("train", 0, rows).inputs)
    seconds = (time.perf_counter() - started) / size * layout.rows
    block = sum(spec.row_bytes for spec in layout.arrays.values()) * layout.block_rows
    ws.say(
        "logits",
        f"{entry.name}: {layout.rows:,} rows to dump; about {as_size(layout.num_bytes)}, "
        f"{as_span(seconds)}, blocks of {as_size(block)} in memory",
    )
