"""What each section of the page is told: values that the template only lays out."""

import json
from collections.abc import Sequence
from typing import Any

import numpy as np

from pipeline.report.cases import choose_cases
from pipeline.report.choices import SweepTable
from pipeline.report.contents import Report, Sample
from pipeline.report.parts import Cost, Member
from pipeline.report.summary import Entry
from pipeline.report.teaching import Choice, Example, Teaching
from pipeline.report.tree_lists import answer_of, nodes_of, steps_of

MOST_CLASSES, MOST_TEACHERS = 30, 12  # rows and columns of the table of weights
MOST_TRIALS, MOST_UNFINISHED = 50, 12  # rows of a sweep's table, with figures and without
STAGES = {"teachers": "Train teachers", "logits": "Dump", "fuse": "Fuse", "distill": "Distill"}


def teaching(report: Report) -> dict[str, Any] | None:
    """Return what the page says of the fusion in focus: a line a teacher, a line a class, rows with pictures."""
    found = report.teaching
    if found is None:
        return None
    shown, classes = found.weightiest(MOST_TEACHERS), found.most_disputed(MOST_CLASSES)
    strongest = max(float(found.weights[np.ix_(shown, classes)].max()), 1e-9)
    row = next((row for row in report.rows if (row["kind"], row["name"]) == ("fusion", found.fusion)), {})
    return {
        "title": report.titled(found.fusion),
        "teachers": [
            {
                "name": found.teachers[place],
                "weight": found.mean_weights[place],
                "leads": found.leads[place],
                "agreement": row.get("teacher_agreement", {}).get(found.teachers[place]),
            }
            for place in shown
        ],
        "left_out": len(found.teachers) - len(shown),
        "classes": [
            {
                "name": report.classes[c],
                "rows": int(found.rows[c]),
                "disagreement": found.disagreement[c],
                "weights": [{"value": w, "shade": w / strongest} for w in found.weights[shown, c]],
            }
            for c in classes
        ],
        "given": int(np.count_nonzero(found.rows)),
        "corrected": found.corrected,
        "disagreement": float(np.nansum(found.disagreement * found.rows) / found.rows.sum()),
        "examples": _examples(report, found, set(shown.tolist())),
    }


def _examples(report: Report, found: Teaching, shown: set[int]) -> list[dict[str, Any]]:
    if report.train_samples is None or not found.examples:
        return []

    names = {found.teachers[place] for place in shown}
    samples = report.train_samples(np.array([example.position for example in found.examples]))
    return [
        {
            "example": example,
            **_shown(sample),
            "truth": report.classes[example.label] if example.label >= 0 else None,
            "answers": [_said(report, each, example) for each in example.teachers if each.name in names],
            "fused": _said(report, example.fused, example) | {"name": report.answering(found.fusion)},
        }
        for example, sample in zip(found.examples, samples, strict=True)
    ]


def _said(report: Report, choice: Choice, example: Example) -> dict[str, Any]:
    return {
        "name": choice.name,
        "says": report.classes[choice.says],
        "share": f"{choice.probability * 100:.0f} %",
        "weight": "" if choice.weight is None else f"{choice.weight * 100:.0f} %",
        "right": None if example.label < 0 else choice.says == example.label,
    }


def cases(report: Report) -> list[dict[str, Any]]:
    teachers = [member for member in report.members if member.kind == "teacher"]
    fusion = next((m for m in report.members if (m.kind, m.name) == ("fusion", report.fusion)), None)
    student = next((member for member in report.members if member.kind == "student"), None)
    best = next((place for place, member in enumerate(teachers) if member.name == report.best_teacher), 0)
    chosen = choose_cases(teachers, fusion, student, report.labels, best=best)
    if not chosen:
        return []
    samples = report.samples(np.array([case.position for case in chosen]))
    answering = [member for member in [*teachers, fusion, student] if member is not None]
    return [
        {
            "reason": case.reason,
            "position": case.position,
            **_shown(sample),
            "truth": report.classes[report.labels[case.position]],
            "answers": [_answer(report, member, case.position) for member in answering],
        }
        for case, sample in zip(chosen, samples, strict=True)
    ]


def _shown(sample: Sample) -> dict[str, Any]:
    """Return what a page shows of a sample: a picture as PNG, or the words of a record."""
    if isinstance(sample, str):
        return {"text": sample}
    from pipeline.report.figures import picture

    return {"picture": picture(sample)}


def _answer(report: Report, member: Member, position: int) -> dict[str, Any]:
    predicted = int(member.predictions[position])
    return {
        "name": report.answering(member.name) if member.kind == "fusion" else member.label,
        "kind": member.kind,
        "says": report.classes[predicted],
        "share": f"{member.confidence[position] * 100:.0f} %",
        "right": predicted == report.labels[position],
    }


def costs(report: Report) -> list[dict[str, Any]]:
    """Return a line a stage and name, and a sum a stage."""
    lines: list[dict[str, Any]] = []
    for stage, title in STAGES.items():
        own = [cost for cost in report.costs if cost.stage == stage]
        groups: dict[str, list[Cost]] = {}
        for cost in own:
            groups.setdefault(_cost_title(report, cost), []).append(cost)
        lines += [_line(title, name, costs) for name, costs in groups.items()]
        if len(groups) > 1:
            lines.append(_line(title, "together", own, total=True))
    return lines


def _cost_title(report: Report, cost: Cost) -> str:
    """Return the line that a cost belongs to: trials that aren't listed one by one share their sweep's."""
    if cost.stage == "fuse":
        return report.titled(cost.name)
    if cost.stage == "distill" and len(report.listed) < len(report.parts):
        return next((f"{sweep.title} (sweep)" for sweep in report.sweeps if sweep.has(cost.name)), cost.name)
    return cost.name


def _line(stage: str, name: str, costs: Sequence[Cost], *, total: bool = False) -> dict[str, Any]:
    seconds = [cost.seconds for cost in costs if cost.seconds is not None]
    return {
        "stage": stage,
        "name": name,
        "total": total,
        "runs": len(costs),
        "bytes": sum(cost.num_bytes for cost in costs),
        "seconds": sum(seconds) if seconds else None,
    }


def sweeps(report: Report) -> list[dict[str, Any]]:
    """Return a table a sweep that anything is finished of."""
    return [_sweep(sweep) for sweep in report.sweeps if sweep.finished]


def _sweep(sweep: SweepTable) -> dict[str, Any]:
    finished = sweep.finished
    unfinished = [trial for trial in sweep.trials if not trial.seeds]
    return {
        "table": sweep,
        "left_out": len(finished[MOST_TRIALS:]),
        "not_named": len(unfinished[MOST_UNFINISHED:]),
        "lines": [
            {
                "name": trial.name.removeprefix(f"{sweep.title}."),
                "shown": [_value(trial.values[key]) for key in sweep.keys],
                "trial": trial,
                "is_best": trial is sweep.best,
            }
            for trial in [*finished[:MOST_TRIALS], *unfinished[:MOST_UNFINISHED]]
        ],
    }


def _value(value: Any) -> str:
    """Return what a recipe says of a key: 0.0001, 3, true, dkd, {"kind": "fixed"}."""
    if isinstance(value, float):
        return f"{value:.6g}"
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str)


def losses(report: Report, entries: Sequence[Entry]) -> list[dict[str, Any]]:
    """Return a table of each choice of a loss, and what full training made of the winner and of the recipe's loss."""
    students = {entry.name: entry for entry in entries if entry.kind == "student"}
    return [
        {
            "table": table,
            "in_full": [students[name] for name in (f"{table.student}.best", table.student) if name in students],
        }
        for table in report.losses
    ]


def trees(report: Report) -> list[dict[str, Any]]:
    """Return each tree with its figures, or its lists where it reads a table, and what it says of its example."""
    found = []
    for tree in report.trees:
        sample, label = report.samples(np.array([tree.position]))[0], int(report.labels[tree.position])
        truth = report.classes[label] if label >= 0 else "no label"
        said = {"tree": tree, "truth": truth, "says": report.classes[tree.says]}
        if tree.names is not None:
            lists = {"root": nodes_of(tree, report.classes), "steps": steps_of(tree)}
            found.append({**said, **lists, "leaf": answer_of(tree.leaf, report.classes), "record": sample})
            continue
        from pipeline.report.tree_figures import path_figure, tree_figure

        pictures = {
            "top": tree_figure(tree, report.classes),
            "path": path_figure(tree, np.asarray(sample), report.classes, truth),
        }
        found.append({**said, **pictures})
    return found
