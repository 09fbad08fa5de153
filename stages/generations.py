"""Born-again students: each generation learns from what the one before says of every row. Source: Furlanello 2018.

A finished student is a teacher like any other: it is run once, into a store, and the next generation streams that.
Source: 1805.04770, where labels teach beside it, as alpha says here.
"""

from pathlib import Path

from pipeline import dump
from pipeline.encoding import choose_encoding, stored_encoding
from pipeline.lineage import artefact_folder, require_manifest
from pipeline.models import count_parameters
from pipeline.train import prepare
from stages import fuse
from stages.mend import examine
from stages.networks import load_student
from stages.runs import Run, folder_of
from stages.show import progress
from stages.workspace import Workspace


def ensure(ws: Workspace, job: Run) -> None:
    """Make what a later generation streams: its parent's answers, and the target store that holds nothing else."""
    assert job.fusion is not None
    assert job.parent is not None
    _ensure_store(ws, job.parent)
    fuse.ensure(ws, job.fusion)


def _ensure_store(ws: Workspace, parent: Run) -> Path:
    from pipeline.teachers.torch import TorchTeacher  # here: what else a student streams needs no teacher's code

    config = ws.store_config(parent.name)
    folder = artefact_folder(ws.root / "logits", parent.name, config)
    mending = examine(ws, "logits", parent.name, folder, check=False)
    if mending.is_sound:
        return folder
    manifest = require_manifest(folder_of(ws, parent), "student", make_with="stillroom distill")
    reads = parent.entry.reads
    shape, replayer = ws.shape(reads), ws.replayer_of(reads)
    model = load_student(folder_of(ws, parent), manifest, shape)
    precision = ws.precision(parent.entry)
    teacher = TorchTeacher(prepare(model, ws.device), [], shape, precision=precision)
    batch_size, where = ws.recipe.logits.batch_size, f"student.{parent.name}"
    encoding = stored_encoding(folder, config) or choose_encoding(
        teacher,
        replayer,
        task=ws.task,
        codec=ws.recipe.logits.codec,
        max_kl=ws.recipe.logits.max_kl,
        feature_codec="fp16",
        where=where,
        batch_size=batch_size,
    )
    writer = dump.open_writer(folder, parent.name, config, ws.plan, encoding, weights=dict(manifest.digests))
    mending.begin(writer)
    details = {"parameters": count_parameters(model), "seed": parent.seed, "weights": dict(manifest.digests)}
    with progress(ws.console, f"dump {parent.name}", sum(map(len, writer.missing()))) as bar:
        filled = dump.dump(teacher, replayer, writer, encoding, batch_size=batch_size, details=details, on_block=bar.by)
    ws.made(folder)
    ws.say("distill", f"{parent.name}: answered on {filled.rows:,} rows for the next generation")
    return folder
