"""make table-fusion: how much it matters how teachers are fused, with whole teachers and with a broken one.

Trains what is missing (resumable: whatever is finished is found), then prints one table a setting: a student of each
strategy over five seeds, all with the same weight of the teachers in the loss.
"""

import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console

from pipeline.lineage import require_manifest
from pipeline.metrics import mean_interval, paired_interval
from stages import distill, report
from stages.load import load_recipe
from stages.memory import keep_freed_memory
from stages.workspace import Workspace

BROKEN = "resnet"
SETTINGS: Mapping[str, Sequence[str]] = {
    "clean": [],
    "wrong labels": [f"teacher.{BROKEN}.wrong_labels=0.4"],
    "blind": [f'teacher.{BROKEN}.without_classes=["Sandal", "Sneaker", "Ankle boot"]'],
}
BASELINES = ("hard_labels", "best_single", "uniform_mean")


def results_of(ws: Workspace) -> dict[str, list[dict[str, Any]]]:
    """Return the students' and baselines' rows by what they learned from, by seed."""
    found: dict[str, list[dict[str, Any]]] = {}
    path = ws.root / "reports" / ws.recipe.name / "results.json"
    for row in json.loads(path.read_text())["rows"]:
        if row["kind"] in ("student", "baseline"):
            name = row["name"] if row["kind"] == "baseline" else row["name"].removeprefix("by_")
            found.setdefault(name, []).append(row)
    return {name: sorted(rows, key=lambda row: row["seed"]) for name, rows in found.items()}


def targets_of(ws: Workspace) -> dict[str, tuple[float, float, float]]:
    """Return each fused target's own test accuracy and NLL, and the mean weight of the broken teacher."""
    found = {}
    for entry in (entry for entry in ws.recipe.fusion if not entry.is_lazy):
        scores = require_manifest(ws.target_folder(entry), "target store", make_with="stillroom fuse").details["scores"]
        test = scores["test"]
        found[entry.name] = (100 * test["accuracy"], test["nll"], test["mean_weights"].get(BROKEN, 0.0))
    return found


def show(setting: str, ws: Workspace) -> None:
    """Print one setting's table as Markdown."""
    rows, targets = results_of(ws), targets_of(ws)
    uniform = rows["uniform_mean"]
    own = ("target, %", "NLL", f"weight of {BROKEN}")
    columns = ("fusion", "student, %", "NLL", "minus uniform mean, points", "p", *own)
    print(f"\n### {setting}\n\n| {' | '.join(columns)} |\n{'|---' * len(columns)}|")
    for name in (*BASELINES, *(name for name in rows if name not in BASELINES)):
        accuracy = [100 * row["accuracy"] for row in rows[name]]
        mean, nll = mean_interval(accuracy), mean_interval([row["nll"] for row in rows[name]])
        apart = paired_interval(accuracy, [100 * row["accuracy"] for row in uniform])
        difference = "" if name == "uniform_mean" else f"{apart.mean:+.2f} [{apart.low:+.2f}, {apart.high:+.2f}]"
        p = "" if name == "uniform_mean" else f"{apart.p_value:.3f}"
        own = (
            f"{100 * targets[name][0]:.2f} | {targets[name][1]:.4f} | {targets[name][2]:.2f}"
            if name in targets
            else " | | "
        )
        print(
            f"| {name} | {mean.mean:.2f} ± {mean.mean - mean.low:.2f} | {nll.mean:.4f} | {difference} | {p} | {own} |"
        )
    cost("left_out", rows)


def cost(reference: str, rows: Mapping[str, Sequence[Mapping[str, Any]]]) -> None:
    """Print what each strategy loses by having the broken teacher among the others."""
    for name in rows:
        if name not in (reference, "hard_labels"):
            a, b = ([100 * row["accuracy"] for row in rows[each]] for each in (name, reference))
            apart = paired_interval(a, b)
            print(f"{name} - {reference}: {apart.mean:+.2f} [{apart.low:+.2f}, {apart.high:+.2f}]")


def main() -> None:
    """Make and print every setting, or those named."""
    keep_freed_memory()
    console = Console()
    for setting in sys.argv[1:] or SETTINGS:
        name = f'name="fusions-{setting.replace(" ", "-")}"'
        ws = Workspace(load_recipe("fusions", [name, *SETTINGS[setting]]), Path("data"), console)
        distill.run(ws)
        report.run(ws)
        show(setting, ws)


if __name__ == "__main__":
    main()
