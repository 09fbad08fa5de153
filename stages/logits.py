"""logits: each teacher answers once on every row, into its store; damaged blocks of a finished store are made again.

With folds, a teacher's store also keeps what its fold models say of the labelled train rows they were not trained on.
"""

import functools
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from pipeline import dump
from pipeline.encoding import Encoding, choose_encoding, stored_encoding
from pipeline.errors import StaleStoreError
from pipeline.lineage import Manifest, differences, read_manifest, require_manifest
from pipeline.report.numbers import size as as_size
from pipeline.report.numbers import span as as_span
from pipeline.store.attributes import read_attributes
from pipeline.store.writer import StoreWriter
from pipeline.teachers import Teacher
from stages import teachers
from stages.mend import examine
from stages.recipe import TeacherEntry
from stages.show import progress
from stages.workspace import Workspace


def run(ws: Workspace) -> None:
    """Dump every teacher whose store isn't there; read every byte of those that are, and rebuild what is damaged."""
    teachers.check(ws)
    for entry in ws.recipe.teacher:
        ensure(ws, entry, check=True)


def ensure(ws: Workspace, entry: TeacherEntry, *, check: bool = False) -> Path:
    """Return the folder of a finished teacher store. A teacher is trained, loaded or run only when it is not there."""
    folder = ws.teacher_store_folder(entry)
    mending = examine(ws, "logits", entry.name, folder, check=check)
    if mending.is_sound:
        if check:
            _check_weights(ws, entry, folder)
        ws.say("logits", f"{entry.name}: found in {folder.name}")
        return folder
    manifest = require_manifest(teachers.ensure(ws, entry), "teacher", make_with="stillroom teachers")
    for fold in ws.folds:
        teachers.ensure(ws, entry, fold)
    teacher = teachers.load(ws, entry, layers=ws.recipe.logits.features)
    config = ws.teacher_store_config(entry)
    encoding = stored_encoding(folder, config) or _encoding(ws, entry, teacher)
    writer = dump.open_writer(
        folder,
        entry.name,
        config,
        ws.replayer_of(entry.reads).plan,
        encoding,
        weights=_weights(ws, entry),
        head=teacher.head,
        task=ws.task,
    )
    mending.begin(writer)
    return _dump(ws, entry, teacher, writer, encoding, manifest)


def _encoding(ws: Workspace, entry: TeacherEntry, teacher: Teacher) -> Encoding:
    logits, where = ws.recipe.logits, f"teacher.{entry.name}"
    encoding = choose_encoding(
        teacher,
        ws.replayer_of(entry.reads),
        task=ws.task,
        codec=ws.codec_of(logits),
        max_kl=logits.max_kl,
        feature_codec=logits.feature_codec,
        where=where,
        batch_size=logits.batch_size,
        hypotheses=logits.hypotheses,
    )
    if logits.codec == "auto":
        ws.say("logits", f"{entry.name}: codec {encoding.codec} is the smallest with a mean KL under {logits.max_kl:g}")
    return encoding


def _dump(
    ws: Workspace, entry: TeacherEntry, teacher: Teacher, writer: StoreWriter, encoding: Encoding, manifest: Manifest
) -> Path:
    details = {"parameters": manifest.details["parameters"], "seed": entry.seed, "weights": _weights(ws, entry)}
    missing = sum(map(len, writer.missing()))
    _predict_cost(ws, entry, teacher, writer, missing)
    with progress(ws.console, f"dump {entry.name}", missing) as bar:
        filled = dump.dump(
            teacher,
            ws.replayer_of(entry.reads),
            writer,
            encoding,
            batch_size=ws.recipe.logits.batch_size,
            details=details,
            folds=fold_models(ws, entry),
            on_block=bar.by,
        )
    ws.teacher_forwards += filled.rows
    ws.made(writer.folder)
    written = sum(path.stat().st_size for path in writer.folder.rglob("*") if path.is_file())
    ws.say("logits", f"{entry.name}: {filled.rows:,} rows, {as_size(written)} in {as_span(filled.seconds)}")
    return writer.folder


def fold_models(ws: Workspace, entry: TeacherEntry) -> dump.FoldModels | None:
    """Return a teacher's fold models, each loaded when it is first asked and then kept; None without folds."""
    load = functools.cache(lambda fold: teachers.load(ws, entry, layers=[], fold=fold))
    return dump.FoldModels(ws.fold_of, load) if ws.folds else None


def _weights(ws: Workspace, entry: TeacherEntry) -> dict[str, str]:
    """Return the sha256 of the files of a teacher and of its fold models, as far as they are there."""
    weights: dict[str, str] = {}
    for fold in (None, *ws.folds):
        manifest, prefix = read_manifest(ws.teacher_folder(entry, fold)), "" if fold is None else f"fold{fold}/"
        weights |= {prefix + name: digest for name, digest in (manifest.digests if manifest else {}).items()}
    return weights


def _check_weights(ws: Workspace, entry: TeacherEntry, folder: Path) -> None:
    """Raise StaleStoreError when the teacher that is there has other weights than the one that answered."""
    said: Mapping[str, Any] = read_attributes(folder).get("weights", {})
    there = _weights(ws, entry)
    found = {name: digest for name, digest in said.items() if name in there}
    if differing := differences({"weights": found}, {"weights": there}):
        raise StaleStoreError(
            f"{folder}: made by another teacher: {', '.join(differing)}; delete the folder to let this one answer, or "
            f"put the weights back"
        )


def _predict_cost(ws: Workspace, entry: TeacherEntry, teacher: Teacher, writer: StoreWriter, missing: int) -> None:
    """Say how large the store will be and how long it will take, from a short trial on real rows."""
    layout = writer.layout
    size = min(teacher.rows_at_once or ws.recipe.logits.batch_size, len(ws.plan.splits["train"]))
    inputs = ws.replayer_of(entry.reads).batch("train", 0, np.arange(size)).inputs
    teacher.predict(inputs).logits.cpu()  # the first call also pays for start-up; the copy waits for a GPU
    started = time.perf_counter()
    teacher.predict(inputs).logits.cpu()
    seconds = (time.perf_counter() - started) / size * missing
    block = sum(spec.row_bytes for spec in layout.arrays.values()) * layout.block_rows
    ws.say(
        "logits",
        f"{entry.name}: {missing:,} of {layout.rows:,} rows to dump; chunks of at most {as_size(layout.num_bytes)}, "
        f"about {as_span(seconds)}, blocks of {as_size(block)} in memory",
    )
