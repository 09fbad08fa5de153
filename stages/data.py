"""data: fetch the data set, check it by hash, lay down the view plan."""

from pathlib import Path

from pipeline.lineage import Manifest, artefact_folder
from stages.workspace import Workspace


def plan_folder(ws: Workspace) -> Path:
    """Return where the view plan's manifest lies."""
    return artefact_folder(ws.root / "plans", ws.recipe.name, ws.plan.config)


def run(ws: Workspace) -> None:
    """Make sure that the data are there and whole, and that their plan is written down."""
    folder = plan_folder(ws)
    if not ws.is_finished(folder):
        Manifest(
            kind="view plan",
            name=ws.recipe.name,
            config=ws.plan.config,
            details={"classes": list(ws.classes), "shape": list(ws.dataset.shape), "samples": len(ws.dataset)},
        ).write(folder)
        ws.made(folder)
    splits = ws.plan.splits
    sizes = ", ".join(f"{name} {len(split):,}" for name, split in splits.items())
    labelled = len(splits["train"].labelled)
    ws.say("data", f"{ws.dataset.name}: {sizes}; {labelled:,} train labels; {ws.plan.count} views")
