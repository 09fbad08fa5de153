"""The page: one HTML file that needs nothing but itself. What has no value is not shown."""

import base64
import functools
import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from pipeline.report import numbers
from pipeline.report.cases import choose_cases
from pipeline.report.parts import Cost, Member, Part
from pipeline.report.summary import BASELINES, DISHONEST, Entry, break_even, differences, league, strategies
from pipeline.report.teaching import Choice, Example, Teaching

LARGEST_MATRIX = 16  # members of a matrix or panels of a figure that can still be read
MOST_CURVES = 6  # students whose learning curves are drawn
MOST_CLASSES, MOST_TEACHERS = 30, 12  # rows and columns of the table of weights
MARK = "stillroom-report"
STAGES = {"teachers": "Train teachers", "logits": "Dump", "fuse": "Fuse", "distill": "Distill"}
KINDS = {"teacher": "Teachers", "fusion": "Fusions", "baseline": "Baselines", "student": "Students"}


@dataclass(frozen=True)
class Report:
    """Everything a page is made of.

    `members` answer on the test rows of `labels` int64 [N]: teachers, fusions, then students and hard labels of one
    seed. `fusion` is that of the first student; `disagreement` maps every fusion to its teachers' divergence on
    train rows. `pixels` and `train_pixels` return uint8 [B, C, H, W] of test positions, and of train positions as
    view 0 shows them. `strategies` are the details of a league's manifest.
    """

    recipe: str
    fingerprint: str
    parts: Sequence[Part]
    missing: Sequence[str]
    classes: Sequence[str]
    members: Sequence[Member]
    labels: np.ndarray
    fusion: str | None
    best_teacher: str | None
    disagreement: Mapping[str, np.ndarray]
    pixels: Callable[[np.ndarray], np.ndarray]
    costs: Sequence[Cost]
    facts: Mapping[str, Sequence[tuple[str, str]]]
    teaching: Teaching | None = None
    train_pixels: Callable[[np.ndarray], np.ndarray] | None = None
    strategies: Mapping[str, Any] | None = None

    @property
    def rows(self) -> list[dict[str, Any]]:
        """The rows of `results.json`."""
        return [part.row for part in self.parts]


def sources_digest() -> str:
    """Return the sha256 of this package's files, so that a page of another release is written anew."""
    digest = hashlib.sha256()
    for path in sorted(path for path in Path(__file__).parent.iterdir() if path.suffix in (".py", ".html")):
        digest.update(path.read_bytes())
    return digest.hexdigest()


def is_current(page: Path, fingerprint: str) -> bool:
    """Whether a page is there and made from what the fingerprint stands for."""
    try:
        with page.open(encoding="utf-8") as file:
            return f'<meta name="{MARK}" content="{fingerprint}">' in file.read(1000)
    except (FileNotFoundError, UnicodeDecodeError):
        return False


def render(report: Report) -> str:
    """Return the page as HTML."""
    from jinja2 import Environment, StrictUndefined

    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    environment.filters |= {name: getattr(numbers, name) for name in ("count", "params", "span", "size", "p_value")}
    environment.globals |= {"plus_minus": numbers.plus_minus, "signed": numbers.signed, "limits": numbers.limits}
    environment.globals |= {"number": numbers.number, "inline": _inline, "mark": MARK}
    template = environment.from_string(Path(__file__).with_name("template.html").read_text(encoding="utf-8"))
    return template.render(_values(report))


def _values(report: Report) -> dict[str, Any]:
    rows = report.rows
    entries = league(rows)
    students = [entry for entry in entries if entry.kind == "student"]
    found = differences(rows)
    evens = {entry.name: break_even(rows, entry.name) for entry in students}
    return {
        "report": report,
        "groups": _grouped(entries),
        "many_students": len({entry.student for entry in entries if entry.student}) > 1,
        "students": students,
        "teachers": [entry for entry in entries if entry.kind == "teacher"],
        "differences": found,
        "headlines": [difference for difference in found if difference.baseline == "hard_labels"],
        "forwards": sum(row["teacher_forwards"] for row in rows if row["kind"] in ("student", "baseline")),
        "evens": {name: even for name, even in evens.items() if even is not None},
        "strategies": strategies(report.strategies) if report.strategies else [],
        "teaching": _teaching(report),
        "costs": _costs(report),
        "artefacts": {
            title: names
            for stage, title in STAGES.items()
            if (names := [cost.folder.name for cost in report.costs if cost.stage == stage])
        },
        "shown": len(_readable(report.members)),
        "cases": _cases(report),
        "figures": _figures(report, entries, found, next((e for e in evens.values() if e is not None), None)),
    }


def _grouped(entries: Sequence[Entry]) -> dict[str, list[Entry]]:
    """Return the league by kind; baselines by student, in the order people ask for them."""
    order = {name: place for place, name in enumerate(BASELINES)}
    students = list(dict.fromkeys(entry.student for entry in entries))
    ordered = sorted(
        entries, key=lambda e: (students.index(e.student), order.get(e.name, 0)) if e.kind == "baseline" else (0, 0)
    )
    return {title: [entry for entry in ordered if entry.kind == kind] for kind, title in KINDS.items()}


def _figures(report: Report, entries: Sequence[Entry], found: Sequence[Any], even: Any) -> dict[str, Any]:
    from pipeline.report import figures

    members = _readable(report.members)
    ordered = [entry for group in _grouped(entries).values() for entry in group]
    made: dict[str, Any] = {"comparison": figures.comparison(ordered, found)}
    histories = list(_histories(report.parts).items())[:MOST_CURVES]
    made["curves"] = {name: figures.learning_curves(roles) for name, roles in histories}
    if len(members) > 1:
        made["agreement"] = figures.agreement_matrix(members)
    if members:
        made["reliability"] = figures.reliability_diagrams(members, [_ece(member) for member in members])
        made["classes"] = figures.class_recall(members, report.labels, report.classes)
    teachers = [row["name"] for row in report.rows if row["kind"] == "teacher"]
    weights = {
        _titled(report, row["name"]): {
            name: row["mean_weights"].get(name, 0.0) for name in [*teachers, *row["mean_weights"]]
        }
        for row in report.rows
        if row["kind"] == "fusion"
    }
    for row in report.rows:
        if row["kind"] == "student" and row.get("teacher_weights"):  # its first seed stands for all
            weights.setdefault(f"{row['name']}, as it trained", row["teacher_weights"])
    if weights:
        made["teaching"] = figures.teaching(
            weights, {_titled(report, name): values for name, values in report.disagreement.items()}
        )
    if even is not None:
        made["pay_back"] = figures.pay_back(even)
    return made


def _is_honest(report: Report, fusion: str) -> bool:
    """Whether a fusion was fitted on rows that are no memory of its teachers."""
    rows = (row for row in report.rows if (row["kind"], row["name"]) == ("fusion", fusion))
    return bool(next(rows, {}).get("honest", True))


def _titled(report: Report, fusion: str) -> str:
    """Return a fusion's name, marked where it was fitted on train rows."""
    return fusion if _is_honest(report, fusion) else f"{fusion} ({DISHONEST})"


def _answering(report: Report, fusion: str) -> str:
    """Return what a fusion is called among others that answer."""
    return f"{fusion} (fusion)" if _is_honest(report, fusion) else f"{fusion} (fusion, {DISHONEST})"


def _teaching(report: Report) -> dict[str, Any] | None:
    """Return what the page says of the fusion in focus: a line a teacher, a line a class, rows with pictures."""
    found = report.teaching
    if found is None:
        return None
    shown, classes = found.weightiest(MOST_TEACHERS), found.most_disputed(MOST_CLASSES)
    strongest = max(float(found.weights[np.ix_(shown, classes)].max()), 1e-9)
    row = next((row for row in report.rows if (row["kind"], row["name"]) == ("fusion", found.fusion)), {})
    return {
        "title": _titled(report, found.fusion),
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
    if report.train_pixels is None or not found.examples:
        return []
    from pipeline.report.figures import picture

    names = {found.teachers[place] for place in shown}
    pixels = report.train_pixels(np.array([example.position for example in found.examples]))
    return [
        {
            "example": example,
            "picture": picture(image),
            "truth": report.classes[example.label] if example.label >= 0 else None,
            "answers": [_said(report, each, example) for each in example.teachers if each.name in names],
            "fused": _said(report, example.fused, example) | {"name": _answering(report, found.fusion)},
        }
        for example, image in zip(found.examples, pixels, strict=True)
    ]


def _said(report: Report, choice: Choice, example: Example) -> dict[str, Any]:
    return {
        "name": choice.name,
        "says": report.classes[choice.says],
        "share": f"{choice.probability * 100:.0f} %",
        "weight": "" if choice.weight is None else f"{choice.weight * 100:.0f} %",
        "right": None if example.label < 0 else choice.says == example.label,
    }


def _readable(members: Sequence[Member]) -> list[Member]:
    """Return at most as many members as a matrix shows: beyond that, the last teachers go."""
    teachers = [member for member in members if member.kind == "teacher"]
    others = [member for member in members if member.kind != "teacher"][:LARGEST_MATRIX]
    return [*teachers[: LARGEST_MATRIX - len(others)], *others]


def _ece(member: Member) -> float:
    confidence, accuracy, count = member.curve
    return float((np.abs(confidence - accuracy) * count).sum() / count.sum())


def _histories(parts: Sequence[Part]) -> dict[str, dict[str, list[Any]]]:
    """Return student -> role -> a history a seed."""
    found: dict[str, dict[str, list[Any]]] = {}
    for part in parts:
        if part.history and part.row.get("student"):
            role = "student" if part.row["kind"] == "student" else part.row["name"]
            found.setdefault(part.row["student"], {}).setdefault(role, []).append(part.history)
    return found


def _cases(report: Report) -> list[dict[str, Any]]:
    teachers = [member for member in report.members if member.kind == "teacher"]
    fusion = next((m for m in report.members if (m.kind, m.name) == ("fusion", report.fusion)), None)
    student = next((member for member in report.members if member.kind == "student"), None)
    best = next((place for place, member in enumerate(teachers) if member.name == report.best_teacher), 0)
    chosen = choose_cases(teachers, fusion, student, report.labels, best=best)
    if not chosen:
        return []
    from pipeline.report.figures import picture

    pixels = report.pixels(np.array([case.position for case in chosen]))
    answering = [member for member in [*teachers, fusion, student] if member is not None]
    return [
        {
            "reason": case.reason,
            "position": case.position,
            "picture": picture(image),
            "truth": report.classes[report.labels[case.position]],
            "answers": [_answer(report, member, case.position) for member in answering],
        }
        for case, image in zip(chosen, pixels, strict=True)
    ]


def _answer(report: Report, member: Member, position: int) -> dict[str, Any]:
    predicted = int(member.predictions[position])
    return {
        "name": _answering(report, member.name) if member.kind == "fusion" else member.label,
        "kind": member.kind,
        "says": report.classes[predicted],
        "share": f"{member.confidence[position] * 100:.0f} %",
        "right": predicted == report.labels[position],
    }


def _costs(report: Report) -> list[dict[str, Any]]:
    """Return a line a stage and name, and a sum a stage."""
    lines: list[dict[str, Any]] = []
    for stage, title in STAGES.items():
        own = [cost for cost in report.costs if cost.stage == stage]
        for name in dict.fromkeys(cost.name for cost in own):
            titled = _titled(report, name) if stage == "fuse" else name
            lines.append(_line(title, titled, [cost for cost in own if cost.name == name]))
        if len({cost.name for cost in own}) > 1:
            lines.append(_line(title, "together", own, total=True))
    return lines


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


@functools.lru_cache(maxsize=64)
def _inline(png: bytes) -> str:
    return "data:image/png;base64," + base64.b64encode(png).decode()
