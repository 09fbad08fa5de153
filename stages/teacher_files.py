"""Teachers that come as a file: anybody's predictions, looked up by sample id, and ONNX models. Nothing is trained.

Such a teacher is made from the file's bytes, wherever they lie. They are copied into its folder, and read there.
"""

import functools
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from pipeline.errors import StillroomError, near_names
from pipeline.lineage import file_digest, write_durably
from stages.ids import IDS
from stages.recipe import TeacherEntry, Training

if TYPE_CHECKING:
    from pipeline.teachers import OnnxTeacher, PredictionsTeacher
    from pipeline.views import ViewPlan
    from stages.rows import Rows

PREDICTIONS, ONNX = "predictions", "onnx"
FILES = {PREDICTIONS: "predictions.safetensors", ONNX: "model.onnx"}  # what a model's file is called in its folder
DEFAULTS: dict[str, dict[str, Any]] = {
    PREDICTIONS: {"any_view": False},
    ONNX: {"output": "logits", "pictures": "standardised"},
}
ANSWERING = ("name", "model", "reads")  # an entry's own keys that say how it answers; the others are of training


def is_file(entry: Training) -> bool:
    """Whether an entry's model comes as a file."""
    return entry.model in FILES


# -- what a recipe may say --------------------------------------------------------------------------------------------


def faults(entry: TeacherEntry, folds: int | None) -> Iterator[str]:
    """Yield what is wrong with the entry of such a teacher; whether the file is there is asked when it is needed."""
    where, defaults = f"teacher.{entry.name}", DEFAULTS[entry.model]
    for key in entry.model_fields_set - {*ANSWERING, *entry.options}:
        yield f"{where}.{key}: found {getattr(entry, key)!r}; expected none, for it is not trained here; remove it"
    for key in entry.options.keys() - {"file", *defaults}:
        near = near_names(key, ["file", *defaults, *ANSWERING])
        yield f"{where}: unknown key {key!r}; expected a key of {entry.model!r}; {near}"
    if not isinstance(file := entry.options.get("file"), str) or not file:
        yield f"{where}.file: found {file!r}; expected the path of its file; set it"
    if entry.model == PREDICTIONS:
        yield from _predictions_faults(entry, where)
    else:
        yield from _onnx_faults(entry, where)
    if folds is not None:
        yield (
            f"logits.folds: found {folds} with teacher {entry.name!r}; expected none, for a teacher that comes as a "
            f"file can't be trained again without a fold; leave one of them out"
        )


def _predictions_faults(entry: TeacherEntry, where: str) -> Iterator[str]:
    if entry.reads != IDS:
        yield (
            f"{where}.reads: found {entry.reads!r}; expected {IDS!r}, for predictions are looked up by sample id; set "
            f"reads = {IDS!r}"
        )
    if not isinstance(any_view := entry.options.get("any_view", False), bool):
        yield f"{where}.any_view: found {any_view!r}; expected true or false; correct it"


def _onnx_faults(entry: TeacherEntry, where: str) -> Iterator[str]:
    from pipeline.teachers.onnx import OUTPUTS, PICTURES

    for key, known in (("output", OUTPUTS), ("pictures", tuple(PICTURES))):
        if (found := entry.options.get(key, DEFAULTS[ONNX][key])) not in known:
            yield f"{where}.{key}: unknown {key} {found!r}; expected a known one; {near_names(str(found), known)}"


def check_views(plan: "ViewPlan", entry: TeacherEntry) -> None:
    """Raise StillroomError where a plan has rows that predictions say nothing of: they are of samples, not of views."""
    if entry.model != PREDICTIONS:
        return
    where = f"teacher.{entry.name}"
    if plan.mix is not None:
        raise StillroomError(
            f"{where}: found mixed views in the plan; expected none, for its predictions are of samples, and nobody "
            f"was asked about two at once; leave views.mix out"
        )
    if (plan.count > 1 or plan.transforms) and not entry.options.get("any_view", False):
        what = f"{plan.count} views" + (f" through {len(plan.transforms)} transforms" if plan.transforms else "")
        raise StillroomError(
            f"{where}: found {what} of a train sample; expected it as it is, for predictions are of samples; set "
            f"views.count = 1 without transforms, or any_view = true (import with --any-view), the same of every view"
        )


# -- the file ---------------------------------------------------------------------------------------------------------


def config(entry: TeacherEntry) -> dict[str, Any]:
    """Return what a teacher that comes as a file is made from: its bytes, and how they are read."""
    options = {**DEFAULTS[entry.model], **entry.options, "file": _digest(_file(entry))}
    options.pop("any_view", None)  # a permission: the answers are the same
    return {"model": entry.model, **options}


def _file(entry: TeacherEntry) -> Path:
    path = Path(entry.options["file"]).expanduser()
    if not path.is_file():
        made_with = "'stillroom import'" if entry.model == PREDICTIONS else "whatever exports it"
        raise StillroomError(
            f"teacher.{entry.name}.file: found no file {entry.options['file']!r}; expected its {entry.model}; correct "
            f"the path, or make it with {made_with}"
        )
    return path


def _digest(path: Path) -> str:
    status = path.stat()
    return _digest_of(path.resolve(), status.st_mtime_ns, status.st_size)


@functools.lru_cache(maxsize=64)  # fingerprints are asked for again and again; a large file takes a second
def _digest_of(path: Path, modified: int, size: int) -> str:
    return file_digest(path)


def keep(ws: "Rows", entry: TeacherEntry, folder: Path) -> None:
    """Copy a teacher's file into its folder. Raises StillroomError when it is no teacher of this recipe's plan."""
    check_views(ws.plan, entry)
    copy = folder / FILES[entry.model]
    write_durably(copy, _file(entry).read_bytes())
    try:
        if file_digest(copy) != config(entry)["file"]:
            raise StillroomError(f"{_file(entry)}: changed while it was read; expected one file; run again")
        teacher = open_file(ws, entry, copy)
        if entry.model == PREDICTIONS:
            teacher.check_asked(planned(ws))  # type: ignore[union-attr]
    except BaseException:
        copy.unlink()
        raise


def planned(ws: "Rows") -> np.ndarray:
    """Return the ids of the plan's samples, int64 [N]."""
    return np.concatenate([split.ids for split in ws.plan.splits.values()])


def open_file(ws: "Rows", entry: TeacherEntry, path: Path) -> "OnnxTeacher | PredictionsTeacher":
    """Return the teacher of a file. Raises StillroomError when it holds none, or one of other samples or classes."""
    from pipeline.teachers import OnnxTeacher, Predictions, PredictionsTeacher  # here: a recipe is checked without them

    where = f"teacher.{entry.name}"
    if entry.model == PREDICTIONS:
        found = PredictionsTeacher(Predictions.read(path), where=where)
        found.check_made_for(ws.classes, ws.dataset.source_digests, len(ws.dataset))
        return found
    options = {**DEFAULTS[ONNX], **entry.options}
    return OnnxTeacher(
        path,
        len(ws.classes),
        ws.shape(entry.reads),
        output=options["output"],
        pictures=options["pictures"],
        mean=ws.plan.mean,
        std=ws.plan.std,
        where=where,
    )
