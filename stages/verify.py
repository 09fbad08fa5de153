"""verify: read every byte of a store, or of every store below a folder, and name each fault."""

import json
from pathlib import Path

import numpy as np
from torch import Tensor

from pipeline.errors import StillroomError
from pipeline.lineage import read_manifest
from pipeline.loader import open_replayer
from pipeline.store import Store, open_targets, open_teacher
from pipeline.store.verify import Fault, is_store, verify
from pipeline.views import OUT_OF_FOLD, imported_code
from stages import logits, teachers
from stages.workspace import Workspace

SAME = 0.9999  # cosine of a teacher's stored and repeated logits; fp16 alone leaves more than 0.999999
NEAR = 0.001  # of a number beyond 1, of others the distance itself; fp16 leaves half of it
REPEATED = 256  # rows a teacher is asked again


def run(path: Path, *, ws: Workspace | None, as_json: bool) -> int:
    """Print the faults of the stores at a path and return 0 sound, 1 unsound, 2 not a store."""
    stores = [path] if is_store(path) else sorted(folder for folder in path.glob("**/") if is_store(folder))
    faults = [fault for store in stores for fault in _faults(store, ws)]
    code = 2 if not stores else int(bool(faults))
    if as_json:
        print(json.dumps({"stores": [str(s) for s in stores], "faults": [vars(f) for f in faults], "exit": code}))
    elif not stores:
        print(f"{path}: not a store")
    else:
        for fault in faults:
            print(fault)
        print(f"{len(stores)} store{'s' * (len(stores) != 1)}, {len(faults)} fault{'s' * (len(faults) != 1)}")
    return code


def _faults(folder: Path, ws: Workspace | None) -> list[Fault]:
    faults = verify(folder)
    if faults or ws is None:
        return faults
    manifest = read_manifest(folder)
    assert manifest is not None
    store = open_teacher(folder) if manifest.kind == "teacher store" else open_targets(folder)
    try:
        open_replayer(store, ws.samples(), check_rows=None, imports=imported_code(ws.plan.transforms))
        if manifest.kind == "teacher store":
            _ask_again(ws, store)
    except StillroomError as error:
        return [Fault(str(folder), "row_digest", "replay", str(error))]
    return []


def _ask_again(ws: Workspace, store: Store) -> None:
    """Raise StillroomError unless the teacher repeats what it said on a sample of rows."""
    entries = [e for e in ws.recipe.teacher if ws.teacher_store_folder(e).resolve() == store.folder.resolve()]
    if not entries:
        raise StillroomError(
            f"{store.folder}: recipe {ws.recipe.name!r} has no such store; expected the recipe it was made by; "
            f"name it with --recipe (and --set)"
        )
    if not all(ws.is_finished(ws.teacher_folder(entries[0], fold)) for fold in (None, *ws.folds)):
        raise StillroomError(f"{store.folder}: its teacher's weights are gone; --replay expects them; leave it out")
    teacher, folds = teachers.load(ws, entries[0], layers=[]), logits.fold_models(ws, entries[0])
    plan, teacher_store = store.plan(), open_teacher(store.folder)
    for split in plan.splits:
        for view in range(plan.views(split)):
            size = len(plan.splits[split])
            rows = np.arange(0, size, max(1, size // REPEATED))
            asked = [(teacher, rows)] if folds is None or split != OUT_OF_FOLD else folds.asked(rows)
            said = teacher_store.logits(split, view).double()
            for one, own in asked:
                inputs = ws.replayer_of(entries[0].reads).batch(split, view, own).inputs
                again = one.predict(inputs).logits.cpu().double()
                if teacher_store.is_real:
                    _check_near(store, split, view, own, said[own], again)
                else:
                    _check_same(store, split, view, own, said[own], again - again.amax(-1, keepdim=True))


def _check_near(store: Store, split: str, view: int, rows: np.ndarray, said: Tensor, again: Tensor) -> None:
    """Raise StillroomError unless numbers [n, P] in standard units are those that were said, to half precision."""
    apart = ((said - again).abs() / again.abs().clamp(min=1)).amax(-1)
    if not apart.max() <= NEAR:
        raise StillroomError(
            f"{store.folder}: values of {split} view {view} row {rows[int(apart.argmax())]}: {apart.max():.4f} off the "
            f"teacher's answer now; expected <= {NEAR}; dump it again"
        )


def _check_same(store: Store, split: str, view: int, rows: np.ndarray, said: Tensor, again: Tensor) -> None:
    cosine = (said * again).sum(-1) / (said.norm(dim=-1) * again.norm(dim=-1)).clamp(min=1e-12)
    cosine[~(said.any(-1) | again.any(-1))] = 1.0  # silent then and now: a teacher of a source that the row lacks
    if cosine.min() < SAME:
        raise StillroomError(
            f"{store.folder}: logits of {split} view {view} row {rows[int(cosine.argmin())]}: cosine "
            f"{cosine.min():.4f} with the teacher's answer now; expected >= {SAME}; dump it again"
        )
