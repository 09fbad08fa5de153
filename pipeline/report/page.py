"""The page: one HTML file that needs nothing but itself. What has no value is not shown."""

import base64
import functools
import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from pipeline.report import numbers, sections
from pipeline.report.columns import figures_of, more_of
from pipeline.report.contents import Report
from pipeline.report.parts import Member, Part
from pipeline.report.summary import BASELINES, Entry, break_even, differences, league, strategies

if TYPE_CHECKING:
    from jinja2 import Template

LARGEST_MATRIX = 16  # members of a matrix or panels of a figure that can still be read
MOST_CURVES = 6  # students whose learning curves are drawn
MARK = "stillroom-report"
KINDS = {"teacher": "Teachers", "fusion": "Fusions", "baseline": "Baselines", "student": "Students"}


def sources_digest() -> str:
    """Return the sha256 of this package's files, so that a page of another release is written anew."""
    digest = hashlib.sha256()
    for path in sorted(path for path in Path(__file__).parent.iterdir() if path.suffix in (".py", ".html", ".css")):
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
    return template("template.html").render(_values(report))


def template(name: str) -> "Template":
    """Return a template of this package, which knows how numbers are written."""
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {name: getattr(numbers, name) for name in ("count", "params", "span", "size", "p_value")}
    environment.globals |= {"plus_minus": numbers.plus_minus, "signed": numbers.signed, "limits": numbers.limits}
    environment.globals |= {"number": numbers.number, "inline": _inline, "mark": MARK}
    return environment.get_template(name)


def _values(report: Report) -> dict[str, Any]:
    rows = [part.row for part in report.listed]
    entries = league(rows)
    students = [entry for entry in entries if entry.kind == "student"]
    found = differences(rows)
    evens = {entry.name: break_even(rows, entry.name) for entry in students}
    return {
        "report": report,
        "columns": figures_of(rows),
        "more": more_of(rows),
        "groups": _grouped(entries),
        "many_students": len({entry.student for entry in entries if entry.student}) > 1,
        "students": students,
        "teachers": [entry for entry in entries if entry.kind == "teacher"],
        "differences": found,
        "headlines": [difference for difference in found if difference.baseline == "hard_labels"],
        "forwards": sum(row["teacher_forwards"] for row in report.rows if row["kind"] in ("student", "baseline")),
        "evens": {name: even for name, even in evens.items() if even is not None},
        "strategies": strategies(report.strategies) if report.strategies else [],
        "teaching": sections.teaching(report),
        "sweeps": sections.sweeps(report),
        "losses": sections.losses(report, entries),
        "trees": sections.trees(report),
        "costs": sections.costs(report),
        "artefacts": {
            title: names
            for stage, title in sections.STAGES.items()
            if (names := [cost.folder.name for cost in report.costs if cost.stage == stage])
        },
        "shown": len(_readable(report.members)),
        "cases": sections.cases(report),
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
    from pipeline.report import figures, matrices, pictures

    members = _readable(report.members)
    ordered = [entry for group in _grouped(entries).values() for entry in group]
    shown = figures_of(part.row for part in report.listed)
    made: dict[str, Any] = {"comparison": figures.comparison(ordered, found, shown.main)}
    if report.errors:
        made["errors"] = figures.by_output(report.errors, report.classes, report.unit)
    if report.grid is not None:
        made["grid"] = pictures.drawn(report.grid)
    histories = list(_histories(report.listed).items())[:MOST_CURVES]
    made["curves"] = {name: figures.learning_curves(roles, shown.steered) for name, roles in histories}
    if len(members) > 1:
        made["agreement"] = matrices.agreement_matrix(members)
    if members:
        made["reliability"] = matrices.reliability_diagrams(members, [_ece(member) for member in members])
        made["classes"] = matrices.class_recall(members, report.labels, report.classes)
    if weights := _teacher_weights(report):
        disagreement = {report.titled(name): values for name, values in report.disagreement.items()}
        made["teaching"] = matrices.teaching(weights, disagreement)
    if even is not None:
        made["pay_back"] = figures.pay_back(even)
    return made


def _teacher_weights(report: Report) -> dict[str, Mapping[str, float]]:
    """Return the mean weights of each fusion's teachers, then those that students gave them."""
    rows = [part.row for part in report.listed]
    teachers = [row["name"] for row in rows if row["kind"] == "teacher"]
    found: dict[str, Mapping[str, float]] = {}
    for row in rows:
        if row["kind"] == "fusion":
            own = row["mean_weights"]
            found[report.titled(row["name"])] = {name: own.get(name, 0.0) for name in [*teachers, *own]}
    for row in rows:
        if row["kind"] == "student" and row.get("teacher_weights"):  # its first seed stands for all
            found.setdefault(f"{row['name']}, as it trained", row["teacher_weights"])
    return found


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


@functools.lru_cache(maxsize=64)
def _inline(png: bytes) -> str:
    return "data:image/png;base64," + base64.b64encode(png).decode()
