"""recipes: run the recipes of a task one after the other, and write one page of what came of each.

One that fails, or misses an extra, is told on the page with its error, and the others go on.
"""

import json
import traceback
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.markup import escape

from pipeline import report as reports
from pipeline.errors import StillroomError
from pipeline.lineage import write_durably
from pipeline.report import Outcome
from stages import distill, report
from stages.document import read_document
from stages.load import SHIPPED, recipe_names
from stages.workspace import Workspace

Open = Callable[[str], Workspace]  # a recipe by name or path


def task_recipes(*, full: bool = False) -> dict[str, str]:
    """Return the shipped recipes that name a task, and which, by task and then name; the long ones when `full`."""
    documents = {name: read_document(SHIPPED / f"{name}.toml") for name in recipe_names()}
    chosen = {name: each["task"] for name, each in documents.items() if each.get("task") and (full or not _long(each))}
    return dict(sorted(chosen.items(), key=lambda pair: (pair[1], pair[0])))


def _long(document: Mapping[str, Any]) -> bool:
    return bool(document.get("long", False))


def run(names: Sequence[str], *, full: bool, root: Path, open_workspace: Open, debug: bool = False) -> int:
    """Run these recipes, or all of a task; return 1 when any failed.

    `index.html` and `overview.json` in the folder of reports are written after each, so what is finished stays told.
    """
    console, outcomes, folder = Console(), list[Outcome](), root / "reports"
    for name in names or task_recipes(full=full):
        console.print(f"[bold]recipe[/]    {escape(name)}", highlight=False, soft_wrap=True)
        outcomes.append(outcome_of(name, open_workspace, debug=debug))
        if error := outcomes[-1].error:
            console.print(f"[bold]recipe[/]    {escape(f'{name} failed: {error}')}", highlight=False, soft_wrap=True)
        write_durably(folder / "overview.json", (json.dumps(reports.overview(outcomes), indent=1) + "\n").encode())
        write_durably(folder / "index.html", reports.render_overview(outcomes).encode())
    failed = sum(outcome.error is not None for outcome in outcomes)
    console.print(
        f"[bold]recipes[/]   {escape(str(folder / 'index.html'))}: {len(outcomes)} recipes, {failed} failed",
        highlight=False,
        soft_wrap=True,
    )
    return 1 if failed else 0


def outcome_of(name: str, open_workspace: Open, *, debug: bool = False) -> Outcome:
    """Distil and report a recipe, and return what came of it; whatever it fails of is its error."""
    about: dict[str, Any] = {"recipe": name, "task": task_recipes(full=True).get(name)}
    try:
        ws = open_workspace(name)
        about = {"recipe": ws.recipe.name, "task": ws.recipe.task, "data": ws.recipe.data.name}
        faults = distill.train(ws)
        report.run(ws)
    except Exception as error:  # a model may be anybody's code, and the other recipes are not to suffer from it
        if debug:
            traceback.print_exc()
        return Outcome(**about, error=_first_line(error))
    train = ws.plan.splits["train"]
    return Outcome(
        **about | {"data": ws.dataset.name},
        labelled=len(train.labelled),
        train=len(train),
        rows=json.loads((ws.root / "reports" / ws.recipe.name / "results.json").read_text())["rows"],
        page=f"{ws.recipe.name}/index.html",
        error=faults[0].partition("\n")[0] if faults else None,
    )


def _first_line(error: Exception) -> str:
    """Return the first line of what is wrong; of an error that nobody foresaw, also its type."""
    line = str(error).partition("\n")[0]
    return line if isinstance(error, StillroomError) else f"{type(error).__name__}: {line}"
