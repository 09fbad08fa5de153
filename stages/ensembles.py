"""Ensembles of students: trained members, of which those are joined that help on calibration rows."""

from collections.abc import Sequence

import torch
from torch import Tensor

from pipeline.lineage import require_manifest
from pipeline.metrics import classification_metrics
from pipeline.models import JoinedMembers, count_parameters
from pipeline.models.weights import save_weights
from pipeline.report import student_answers
from pipeline.selection import greedy
from pipeline.store import open_targets
from stages.networks import load_student
from stages.runs import Run, folder_of, members
from stages.students import HEAD_WIDTH, WEIGHTS, write
from stages.workspace import Workspace


def join(ws: Workspace, job: Run) -> list[str]:
    """Seal an ensemble whose members are finished; return what went wrong with those that aren't.

    Members are picked one by one, as often as they lower the NLL on calibration rows by more than its standard error.
    """
    parts = [each for each in members(job) if ws.is_finished(folder_of(ws, each))]
    if not parts:
        return [f"{job.name}: found no finished member of {job.entry.ensemble}; expected one at least; mend its faults"]
    answers = {name: _answers(ws, parts, name) for name in ("calibration", "test")}
    labels = torch.from_numpy(ws.plan.splits["calibration"].labels)
    selection = greedy(answers["calibration"], labels)
    weights = torch.tensor(selection.counts, dtype=torch.float64)
    mixtures = {name: _mixture(rows, weights) for name, rows in answers.items()}
    manifests = [require_manifest(folder_of(ws, part), "student", make_with="stillroom distill") for part in parts]
    shape = ws.shape(job.entry.reads)
    networks = [load_student(folder_of(ws, p), m, shape) for p, m in zip(parts, manifests, strict=True)]
    model = JoinedMembers(networks, selection.counts)
    folder = folder_of(ws, job)
    folder.mkdir(parents=True, exist_ok=True)
    save_weights(model, folder / WEIGHTS)
    test = torch.from_numpy(ws.plan.splits["test"].labels)
    alone = [classification_metrics(rows, test)["accuracy"] for rows in answers["test"]]
    details = {
        "counts": dict(zip([part.name for part in parts], selection.counts, strict=True)),
        "calibration_nll": selection.nlls,
        "members_accuracy": alone,
        "teacher_forwards": 0,
        "history": [],
        "steps": max(each.details["steps"] for each in manifests),
        "rows": sum(each.details["rows"] for each in manifests),
    }
    if (width := manifests[0].details.get(HEAD_WIDTH)) is not None:
        details[HEAD_WIDTH] = width
    is_stored = job.fusion is not None and not job.is_lazy
    targets = open_targets(ws.target_folder(job.fusion)) if is_stored and job.fusion is not None else None
    write(ws, job, folder, mixtures, targets, model=model, details=details)
    ws.made(folder, seconds=0.0)
    kept = sum(count > 0 for count in selection.counts)
    ws.say("distill", f"{job.name}: {kept} of {len(parts)} members joined, {count_parameters(model):,} parameters")
    return []


def _answers(ws: Workspace, parts: Sequence[Run], split: str) -> Tensor:
    """Return what each member says of a split: [M, N, C]."""
    return torch.stack([student_answers(folder_of(ws, part), split) for part in parts])


def _mixture(log_probs: Tensor, weights: Tensor) -> Tensor:
    """Return the log of the members' weighted mean probability: [M, N, C], [M] -> [N, C]."""
    shares = (weights / weights.sum()).log().to(log_probs)
    return (log_probs + shares[:, None, None]).logsumexp(0)
