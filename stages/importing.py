"""import: anybody's predictions become a teacher's file, after everything about them that can be checked was.

A file's columns, ids and scale are the importer's word: what is wrong there shows in the accuracy on calibration rows,
which is why it is printed before anything learns from it.
"""

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd
import torch
from pydantic import ValidationError

from pipeline.datasets.tables import FILES, read_file
from pipeline.errors import StillroomError, unknown_name
from pipeline.lineage import write_durably
from pipeline.metrics import classification_metrics
from pipeline.teachers import Predictions, PredictionsTeacher
from pipeline.teachers.outside import (
    KINDS,
    LABELS,
    NORMALISED,
    as_labels,
    class_places,
    labels_to_log_probs,
    order_doubt,
    rows_by_id,
)
from stages import data
from stages.asks import refuse_others
from stages.ids import IDS
from stages.recipe import TeacherEntry
from stages.teacher_files import PREDICTIONS, check_views, planned
from stages.workspace import Workspace

ARRAYS = (".npy", ".npz")
NOTABLE = 1e-6  # by which a row's sum is off: float32 is, by less


class Answered(NamedTuple):
    """What a file says: `values` [N, C], or [N] of labels, what its columns are called, and ids int64 [N]."""

    values: np.ndarray
    columns: tuple[str, ...] | None
    ids: np.ndarray | None


def run(
    ws: Workspace,
    name: str,
    path: Path,
    *,
    ids: str | None = None,
    of: str = "probs",
    classes: Sequence[str] | None = None,
    any_view: bool = False,
) -> Path:
    """Write a teacher's file from predictions of a recipe's samples, and print the lines that name it; return where.

    `ids` is a column of a table or a file of sample ids, the data set's order without; `of` one of KINDS; `classes`
    what the columns stand for, in their order. Raises: StillroomError for whatever doesn't fit the data.
    """
    refuse_others(ws.recipe, "import")
    if of not in KINDS:
        raise unknown_name("--of", "kind of prediction", of, KINDS)
    entry = _entry(name, any_view)
    data.run(ws)
    check_views(ws.plan, entry)
    found = read_rows(path, ids, of)
    if found.ids is None and len(found.values) != len(ws.dataset):
        raise StillroomError(
            f"{path}: found {len(found.values)} rows without ids; expected {len(ws.dataset)}, one a sample in the data "
            f"set's order; name their ids with --ids"
        )
    log_probs = _log_probs(ws, found, of, classes, str(path))
    own = np.arange(len(log_probs)) if found.ids is None else found.ids
    rows = rows_by_id(own, log_probs, len(ws.dataset), str(path))
    if len(rows) < len(own):
        ws.say("import", f"{len(own) - len(rows)} rows say the same of a sample again: left out")
    digests = ws.dataset.source_digests(own[rows])
    predictions = Predictions(own[rows], digests, log_probs[rows], tuple(ws.classes))
    teacher = PredictionsTeacher(predictions, where=str(path))
    teacher.check_asked(planned(ws))
    _judge(ws, teacher)
    return _keep(ws, entry, predictions)


# -- reading ----------------------------------------------------------------------------------------------------------


def read_rows(path: Path, ids: str | None, of: str) -> Answered:
    """Return what is answered in an array's or a table's file. Raises StillroomError when it can't be read so."""
    if not path.is_file():
        raise StillroomError(f"{path}: found no file; expected predictions; correct the path")
    suffix = path.suffix.lower()
    if suffix in ARRAYS:
        return _array_rows(path, ids, of)
    if suffix in FILES:
        return _table_rows(path, ids, of)
    known = ", ".join([*ARRAYS, *FILES])
    raise StillroomError(f"{path}: found {path.suffix!r}; expected one of {known}; convert the file")


def _array_rows(path: Path, ids: str | None, of: str) -> Answered:
    arrays = _arrays(path)
    own = arrays.pop("ids", None)
    if ids is not None:
        own = arrays.pop(ids) if ids in arrays else _ids_of_file(ids, f"{path}: --ids")
    if of in arrays:
        arrays = {of: arrays[of]}
    if len(arrays) != 1:
        raise StillroomError(f"{path}: found arrays {sorted(arrays)}; expected one, and 'ids'; call it {of!r}")
    (values,) = arrays.values()
    if values.ndim != (1 if of == LABELS else 2):
        wanted = "[N], a class a row" if of == LABELS else "[N, C], a number a class"
        advice = "hard answers are --of labels" if values.ndim == 1 else "save it so"
        raise StillroomError(f"{path}: found an array of shape {values.shape}; expected {wanted}; {advice}")
    return _rows(path, values, None, None if own is None else _whole(own, f"{path}: ids"))


def _arrays(path: Path) -> dict[str, np.ndarray]:
    try:
        found = np.load(path, allow_pickle=False)
        return {"": found} if isinstance(found, np.ndarray) else {name: found[name] for name in found.files}
    except Exception as error:  # zip files and headers are broken in many ways
        raise StillroomError(
            f"{path}: cannot be read ({str(error).partition(chr(10))[0]}); expected arrays of numbers as numpy saves "
            f"them, without pickle; write it again"
        ) from error


def _table_rows(path: Path, ids: str | None, of: str) -> Answered:
    frame = read_file(path)
    column = ids if ids in frame else ("id" if ids is None and "id" in frame else None)
    own = None
    if column is not None:
        own = _whole(frame[column].to_numpy(), f"{path}: {column}")
        frame = frame.drop(columns=column)
    elif ids is not None:
        own = _ids_of_file(ids, f"{path}: --ids", columns=list(frame))
    if of == LABELS:
        if frame.shape[1] != 1:
            raise StillroomError(
                f"{path}: found columns {list(frame)[:6]}; expected one of labels besides the ids; drop the others"
            )
        return _rows(path, frame.iloc[:, 0].to_numpy(), None, own)
    for name in frame if len(frame) else ():
        if not pd.api.types.is_numeric_dtype(frame[name].dtype):
            raise StillroomError(f"{path}: found text in column {name!r}; expected a number a class; drop the column")
    values = frame.to_numpy(np.float64) if len(frame) else np.zeros(frame.shape)
    return _rows(path, values, tuple(frame), own)


def _ids_of_file(ids: str, where: str, columns: Sequence[str] | None = None) -> np.ndarray:
    """Return the sample ids of a file: an .npy array, or a table of one column."""
    path = Path(ids)
    if not path.is_file():
        if columns is not None:
            raise unknown_name(where, "column or file", ids, columns)
        raise StillroomError(f"{where}: found no file {ids!r}; expected one of sample ids; correct the path")
    if path.suffix.lower() in ARRAYS:
        arrays = _arrays(path)
        values = arrays["ids"] if "ids" in arrays else next(iter(arrays.values()), np.zeros(0))
    else:
        frame = read_file(path)
        values = frame["id" if "id" in frame else frame.columns[0]].to_numpy()
    return _whole(values, str(path))


def _whole(values: np.ndarray, where: str) -> np.ndarray:
    """Return sample ids as int64 [N]. Raises StillroomError, naming the row, for what is no whole number."""
    numbers = pd.to_numeric(pd.Series(values.reshape(-1)), errors="coerce").to_numpy(np.float64)
    wrong = ~(numbers == np.floor(numbers)) | (np.abs(numbers) > 2**53)  # beyond, float64 has no halves to see
    if values.ndim != 1 or wrong.any():
        found = (
            f"{values.reshape(-1)[wrong].tolist()[0]!r} in row {int(wrong.argmax())}"
            if wrong.any()
            else f"{values.shape}"
        )
        raise StillroomError(f"{where}: found {found}; expected a sample id in each row, whole numbers; mend the ids")
    return numbers.astype(np.int64)


def _rows(path: Path, values: np.ndarray, columns: tuple[str, ...] | None, ids: np.ndarray | None) -> Answered:
    if not len(values):
        raise StillroomError(f"{path}: found no rows; expected predictions; correct the path")
    if ids is not None and len(ids) != len(values):
        raise StillroomError(f"{path}: found {len(values)} rows and {len(ids)} ids; expected one id a row; mend them")
    return Answered(values, columns, ids)


# -- classes ----------------------------------------------------------------------------------------------------------


def _log_probs(ws: Workspace, found: Answered, of: str, names: Sequence[str] | None, where: str) -> np.ndarray:
    """Return the log-probabilities float32 [N, C] that a file's rows say, its classes in the data set's order."""
    classes = list(ws.classes)
    if of == LABELS:
        labels = as_labels(_texts(found.values), classes if names is None else names, where)
        places = range(len(classes)) if names is None else class_places(names, classes, f"{where}: --classes")
        return labels_to_log_probs(np.argsort(places)[labels], len(classes))
    width = found.values.shape[1]
    if names is not None and len(names) != width:
        raise StillroomError(
            f"{where}: found {width} columns besides the ids and {len(names)} names; expected as many; mend --classes"
        )
    columns = names if names is not None else found.columns
    if columns is None and width != len(classes):
        raise StillroomError(
            f"{where}: found {width} columns; expected {len(classes)}, one for each class ({_shown(classes)}); mend it"
        )
    places = list(range(width)) if columns is None else class_places(columns, classes, where)
    if columns is None:
        ws.say("import", f"columns taken in the data set's order of classes: {_shown(classes)}")
    elif places != list(range(width)):
        ws.say("import", f"columns put in the data set's order of classes: {_shown(classes)}")
    if found.values.dtype.kind not in "fiu":
        raise StillroomError(f"{where}: found {found.values.dtype}; expected numbers; convert the array")
    log_probs, off = NORMALISED[of](found.values.astype(np.float64)[:, places], where)
    if off > NOTABLE:
        ws.say("import", f"rows divided by their sums, which were off by {off:.1e} at most")
    return log_probs


def _texts(values: np.ndarray) -> list[str]:
    """Return labels as text; 3.0 is 3, for one missing value turns a column of whole numbers into fractions."""
    return [str(int(v)) if isinstance(v, float) and v.is_integer() else str(v) for v in values.tolist()]


def _shown(classes: Sequence[str]) -> str:
    return ", ".join(classes[:12]) + (f" and {len(classes) - 12} more" if len(classes) > 12 else "")


# -- telling and keeping ----------------------------------------------------------------------------------------------


def _entry(name: str, any_view: bool) -> TeacherEntry:
    try:
        said = {"name": name, "model": PREDICTIONS, "reads": IDS, **({"any_view": True} if any_view else {})}
        return TeacherEntry.model_validate(said)
    except ValidationError as error:
        raise StillroomError(
            f"NAME: found {name!r}; expected at most 60 letters, digits, underscores and dots; choose such a name"
        ) from error


def _judge(ws: Workspace, teacher: PredictionsTeacher) -> None:
    """Say how good the predictions are on calibration rows, and whether they seem to be mixed up."""
    split = ws.plan.splits["calibration"]
    logits, labels = teacher.predict(split.ids).logits, torch.from_numpy(split.labels)
    scores = classification_metrics(logits.log_softmax(-1), labels)
    ws.say(
        "import",
        f"calibration accuracy {scores['accuracy']:.3f}, NLL {scores['nll']:.3f} on {len(split):,} rows; whether their "
        f"labels were known to whoever predicted them, nobody can tell here",
    )
    if doubt := order_doubt(logits.argmax(-1).numpy(), split.labels, ws.classes):
        ws.say("import", f"warning: {doubt}")


def _keep(ws: Workspace, entry: TeacherEntry, predictions: Predictions) -> Path:
    """Write the file, named by its bytes, and print the entry that a recipe needs."""
    content = predictions.to_bytes()
    path = ws.root / "raw" / PREDICTIONS / f"{entry.name}-{hashlib.sha256(content).hexdigest()[:12]}.safetensors"
    write_durably(path, content)
    ws.done.append(str(path))
    lines = [
        "[[teacher]]",
        f'name = "{entry.name}"',
        f'model = "{PREDICTIONS}"',
        f'reads = "{IDS}"',
        f"file = {json.dumps(str(path), ensure_ascii=False)}",
        *(["any_view = true"] if entry.options.get("any_view") else []),
    ]
    there = any(teacher.name == entry.name for teacher in ws.recipe.teacher)
    place = f"in place of its teacher {entry.name!r}" if there else "add them"
    ws.say("import", f"{len(predictions.ids):,} predictions in {path}; the lines for the recipe, {place}:")
    ws.console.print("\n".join(lines), markup=False, highlight=False, soft_wrap=True)
    return path
