"""league: every offline strategy over the recipe's teacher stores, as a table and an artefact; no teacher runs.

A fusion whose strategy is "auto" is the league's winner: the lowest NLL on calibration rows that its fit had left out.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

from rich.table import Table

from pipeline.league import ENTRIES, standings, winner
from pipeline.lineage import Manifest, read_manifest
from pipeline.store import open_teacher
from stages.recipe import FusionEntry
from stages.show import progress
from stages.workspace import Workspace

LEAGUE = FusionEntry(name="auto", strategy="auto")  # all teachers, both calibrations


def ensure(ws: Workspace, entry: FusionEntry = LEAGUE) -> Manifest:
    """Return the finished league of a fusion's teachers. Their stores must be there."""
    folder, config = ws.league_folder(entry), ws.league_config(entry)
    manifest = read_manifest(folder)
    if manifest is None:
        names = ws.fused_teachers(entry)
        stores = [open_teacher(ws.teacher_store_folder(ws.recipe.find("teacher", name))) for name in names]
        with progress(ws.console, "league", len(config["entries"])) as bar:
            found = list(
                standings(
                    stores,
                    calibrate=entry.calibrate,
                    calibrate_pool=entry.calibrate_pool,
                    on_entry=lambda name: bar.to(list(ENTRIES).index(name)),
                )
            )
        chosen = winner(found)
        rows = [{key: value for key, value in asdict(each).items() if key != "seconds"} for each in found]
        details = {"strategy": chosen.strategy, "options": dict(chosen.options), "name": chosen.name, "rows": rows}
        manifest = Manifest(kind="league", name=ws.recipe.name, config=config, details=details)
        manifest.write(folder)
        ws.made(folder, seconds=sum(each.seconds for each in found))
    said = manifest.details
    ws.say("league", f"{said['name']} has the lowest NLL on calibration rows its fit had left out")
    return manifest


def table(ws: Workspace, manifest: Manifest) -> Table:
    """Return the league by NLL on calibration rows, teachers among the strategies."""
    out = Table(
        "",
        title="League of strategies: accuracy, NLL, ECE on calibration rows that the fit left out, and on test rows",
        title_justify="left",
    )
    for column in ("left out", "NLL", "ECE", "test", "NLL", "ECE", "as the best teacher", "weights, nats"):
        out.add_column(column, justify="right", no_wrap=True)
    teachers = [each["name"] for each in manifest.config["teachers"]]
    best = ws.best_teacher(teachers)
    rows: list[tuple[str, Mapping[str, Any]]] = [(f"teacher {name}", _teacher(ws, name)) for name in teachers]
    rows += [(each["name"], each["scores"]) for each in manifest.details["rows"] if not each["fault"]]
    for name, scores in sorted(rows, key=lambda row: row[1]["calibration"]["nll"]):
        style = "bold" if name == manifest.details["name"] else "dim" if name.startswith("teacher ") else ""
        out.add_row(name, *_figures(scores, best), style=style)
    for each in manifest.details["rows"]:
        if each["fault"]:
            out.add_row(each["name"], *["-"] * 8, style="dim")
    return out


def _teacher(ws: Workspace, name: str) -> dict[str, dict[str, float]]:
    """Return a teacher's figures as it enters a fusion: calibrated."""
    scores = ws.teacher_store_scores(name)
    return {
        split: {**each, "nll": each["calibrated_nll"], "ece": each["calibrated_ece"]} for split, each in scores.items()
    }


def _figures(scores: Mapping[str, Mapping[str, Any]], best: str) -> Sequence[str]:
    test = scores["test"]
    agreement = f"{test['agreement'][best]:.3f}" if "agreement" in test else ""
    entropy = f"{test['weight_entropy']:.3f}" if "weight_entropy" in test else ""
    numbers = [f"{scores[split][key]:.4f}" for split in ("calibration", "test") for key in ("accuracy", "nll", "ece")]
    return [*numbers, agreement, entropy]
