"""What every model of a recipe over several sources says of test rows as if some sources were missing.

Inputs stay fitted as they were; teachers answer anew, fused targets are fused anew by what was fitted, students are
asked from their weights. Nothing is written.
"""

from collections.abc import Collection, Iterator
from itertools import combinations
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from pipeline import fuse as fusing
from pipeline.datasets import RecordDataset
from pipeline.errors import StillroomError
from pipeline.fusion import Outputs, Target
from pipeline.lineage import read_manifest
from pipeline.store import open_teacher
from pipeline.views import RowKeys
from stages import fuse, teachers
from stages.estimators import is_estimator
from stages.networks import load_student
from stages.recipe import FusionEntry
from stages.runs import folder_of, runs
from stages.workspace import Workspace

SAME = 1e-5  # nats: classes as near as that are equally likely


class Said(NamedTuple):
    """What one model says of the test rows: log-probabilities [N, C]."""

    kind: str
    name: str
    seed: int
    log_probs: Tensor


def optional_sources(ws: Workspace) -> list[str]:
    """Return the sources that a record may lack: all but the one that has the label, which every record comes from."""
    if not isinstance(ws.dataset, RecordDataset) or not ws.dataset.sources:
        raise StillroomError(f"{ws.recipe.name}: found no [[source]]; expected several; name a recipe that joins some")
    return [source for source in ws.dataset.sources if not str(ws.recipe.data.label).startswith(f"{source}.")]


def subsets(sources: Collection[str]) -> list[tuple[str, ...]]:
    """Return all sets of sources that may be missing, the smallest first."""
    return [chosen for size in range(len(sources) + 1) for chosen in combinations(sources, size)]


def said_without(ws: Workspace, missing: Collection[str]) -> Iterator[Said]:
    """Yield what teachers, fused targets and students say of the test rows as if these sources were missing.

    Everything of the recipe must be finished; lazy fusions have no target, and scikit-learn students are left out.
    """
    logits = {entry.name: _teacher_logits(ws, entry.name, missing) for entry in ws.recipe.teacher}
    for name, said in logits.items():
        yield Said("teacher", name, ws.recipe.find("teacher", name).seed, said.log_softmax(-1))
    for entry in (entry for entry in ws.recipe.fusion if not entry.is_lazy):
        yield Said("fusion", entry.name, 0, _fused(ws, entry, logits))
    yield from _students(ws, missing)


def _inputs(ws: Workspace, reads: str | None, missing: Collection[str]) -> Tensor | list[str]:
    inputs = ws.samples(reads).read_without(ws.plan.splits["test"].ids, missing)
    return inputs.to(ws.device) if isinstance(inputs, Tensor) else inputs


def _teacher_logits(ws: Workspace, name: str, missing: Collection[str]) -> Tensor:
    entry = ws.recipe.find("teacher", name)
    return teachers.load(ws, entry, layers=[]).predict(_inputs(ws, entry.reads, missing)).logits.float().cpu()


def _fused(ws: Workspace, entry: FusionEntry, logits: dict[str, Tensor]) -> Tensor:
    folder = ws.target_folder(entry)
    begun = fusing.begun(folder, fuse.target_of(ws, entry), ws.target_config(entry))
    if begun is None or not isinstance(begun.target, Target):
        raise StillroomError(f"fusion.{entry.name}: found no target store; expected one; run 'stillroom fuse' first")
    names = ws.fused_teachers(entry)
    stores = [open_teacher(ws.store_folder(name)) for name in names]
    calibrated = [
        logits[name] / (store.manifest.details["temperature"] if entry.calibrate else 1.0)
        for name, store in zip(names, stores, strict=True)
    ]
    ids = ws.plan.splits["test"].ids
    outputs = Outputs(torch.stack(calibrated), torch.full((len(ids),), -1), keys=RowKeys(ws.plan.seed, 0, ids))
    return begun.target.fuse(outputs, temperature=1.0).log_probs


def _students(ws: Workspace, missing: Collection[str]) -> Iterator[Said]:
    for entry in ws.recipe.students:
        for job in (job for job in runs(ws, entry) if not is_estimator(job.entry)):
            folder = folder_of(ws, job)
            if (manifest := read_manifest(folder)) is None:
                raise StillroomError(f"student {job.name}: not finished; expected it trained; run 'stillroom distill'")
            model = load_student(folder, manifest, ws.shape(entry.reads)).to(ws.device)
            with torch.inference_mode():
                log_probs = model(_inputs(ws, entry.reads, missing)).float().log_softmax(-1).cpu()
            name = entry.name if job.is_own else f"{entry.name} {job.role}"
            yield Said("student", name, job.seed, log_probs)


def is_right(log_probs: Tensor, labels: np.ndarray) -> np.ndarray:
    """Return each row's share of being right: [N, C], [N] -> float64 [N], NaN without a label.

    Of classes that are equally likely one is guessed, so that who is silent is right as often as chance, not as often
    as the first class occurs.
    """
    is_first = log_probs > log_probs.amax(dim=-1, keepdim=True) - SAME
    known = torch.from_numpy(labels).clamp(min=0)
    right = is_first.gather(1, known[:, None])[:, 0].double() / is_first.sum(dim=-1)
    return np.where(labels >= 0, right.numpy(), np.nan)
