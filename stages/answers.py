"""What finished artefacts answer on the test rows, and the figures that are made of it for a report."""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from pipeline import report as reports
from pipeline.datasets import ImageDataset
from pipeline.lineage import read_cost
from pipeline.real_metrics import regression_metrics, rmse_of_outputs
from pipeline.report import Member, Part
from pipeline.store import TargetStore, TeacherStore, open_targets, open_teacher
from pipeline.tasks import Reals, Tokens, joined
from stages.judging import Judging
from stages.sentences import speed
from stages.workspace import Workspace


def answers_of(ws: Workspace, part: Part) -> Tensor:
    """Return what a part answers on the test rows: log-probabilities [N, C] of classes, as its task keeps them."""
    kind, task = part.row["kind"], ws.task
    if kind not in ("teacher", "fusion"):
        return reports.student_answers(part.folder, as_kept=task.is_real or not task.is_plain)
    stored = _of_teacher(open_teacher(part.folder)) if kind == "teacher" else _of_targets(open_targets(part.folder))
    return task.answers(joined(task.shapes, stored), task.truth(ws.plan.splits["test"]))


def _of_teacher(store: TeacherStore) -> dict[str, Tensor]:
    return {name: store.at(name).logits("test") for name in store.outputs}


def _of_targets(store: TargetStore) -> dict[str, Tensor]:
    return {name: store.at(name).answers("test") for name in store.outputs}


def disagreement(store: TargetStore) -> np.ndarray:
    """Return how far a fusion's teachers are apart on each train row, mean over its cases: float32 [N]."""
    own = store.read("train", store.prefix + "disagreement")
    return own.reshape(len(own), -1).mean(axis=1)


def with_more(ws: Workspace, part: Part, judging: Judging | None) -> Part:
    """Return a part with the figures that tables are judged by: areas under curves, gaps between groups, rankings."""
    if judging is not None:
        return reports.with_figures(part, judging.figures(answers_of(ws, part)))
    if isinstance(ws.task, Tokens):
        return reports.with_figures(part, speed(ws, part, read_cost(part.folder)))
    test, groups, ranking = ws.plan.splits["test"], ws.dataset.group_of, ws.dataset.ranking
    if isinstance(ws.task, Reals):
        reference = _reference(ws, ws.task)
        return part if reference is None else reports.with_skill(part, reference)
    named = None if groups is None else groups[test.ids].tolist()
    ranked = None if ranking is None else ranking.of(test.ids)
    return reports.with_more(part, answers_of(ws, part), torch.from_numpy(test.labels), named, ranked)


def _reference(ws: Workspace, task: Reals) -> float | None:
    """Return the rmse of the data set's reference forecast on test rows, None where it has none."""
    test, dataset = ws.plan.splits["test"], ws.dataset
    if isinstance(dataset, ImageDataset) or dataset.reference is None:
        return None
    forecast = torch.from_numpy(dataset.reference[test.ids])
    return regression_metrics(forecast, task.in_units(task.truth(test)))["rmse"]


def errors(ws: Workspace, listed: Sequence[Part]) -> dict[str, tuple[str, list[float]]]:
    """Return the rmse of each number on test rows by model, after its kind; of baselines that on hard labels."""
    truth, squares = ws.task.truth(ws.plan.splits["test"]), dict[tuple[str, str], list[torch.Tensor]]()
    assert isinstance(ws.task, Reals)
    std = torch.tensor(ws.task.std, dtype=torch.float64)
    for part in listed:
        kind, name = part.row["kind"], part.row["name"]
        if kind == "baseline" and name != "hard_labels":
            continue
        shown = f"{part.row['student']} on hard labels" if kind == "baseline" else name
        squares.setdefault((kind, shown), []).append(rmse_of_outputs(answers_of(ws, part), truth).square())
    return {
        f"{name} (fusion)" if kind == "fusion" else name: (kind, (torch.stack(own).mean(0).sqrt() * std).tolist())
        for (kind, name), own in squares.items()
    }


def members(ws: Workspace, listed: Sequence[Part]) -> list[Member]:
    """Return teachers, fusions, then the first seed of each student and of hard labels, as they answer test rows."""
    labels, seen, found = torch.from_numpy(ws.plan.splits["test"].labels), set[tuple[str, str]](), list[Member]()
    order = {"teacher": 0, "fusion": 1}
    for part in sorted(listed, key=lambda part: order.get(part.row["kind"], 2)):
        row, kind, name = part.row, part.row["kind"], part.row["name"]
        if kind in ("student", "baseline"):
            if (row["student"], name) in seen or (kind == "baseline" and name != "hard_labels"):
                continue
            seen.add((row["student"], name))
            name = name if kind == "student" else f"{row['student']} on hard labels"
        found.append(reports.member_of(name, kind, answers_of(ws, part), labels))
    return found
