"""data: fetch the data set, check it by hash, lay down the view plan."""

from pathlib import Path

from pipeline.datasets import ImageDataset
from pipeline.errors import StillroomError, unknown_name
from pipeline.lineage import Manifest, artefact_folder
from pipeline.models import READS
from stages.ids import IDS
from stages.workspace import Workspace


def plan_folder(ws: Workspace) -> Path:
    """Return where the view plan's manifest lies."""
    return artefact_folder(ws.root / "plans", ws.recipe.name, ws.plan.config)


def _shape(ws: Workspace) -> dict[str, list[int]]:
    """Return what the manifest says of a sample's shape: of pictures one, of records each input has its own."""
    return {"shape": list(ws.dataset.shape)} if isinstance(ws.dataset, ImageDataset) else {}


def check_reads(ws: Workspace) -> None:
    """Raise StillroomError with every model that names an input there is not, or one of a kind that it can't read."""
    dataset, faults = ws.dataset, list[str]()
    named = [] if isinstance(dataset, ImageDataset) else list(dataset.inputs)
    for section, entries in (("teacher", ws.recipe.teacher), ("student", ws.recipe.students)):
        for entry in entries:
            where, wanted = f"{section}.{entry.name}.reads", READS.get(entry.model)
            if entry.reads not in (None, IDS, *named):
                faults.append(str(unknown_name(where, "input", str(entry.reads), named)))
            elif isinstance(dataset, ImageDataset) or entry.reads == IDS or wanted is None:
                continue
            elif (given := dataset.gives(entry.reads)) != wanted:
                found = repr(entry.reads or named[0])
                faults.append(
                    f"{where}: found {found}, {given}; expected {wanted}, which {entry.model} reads; name another "
                    f"input or model"
                )
    if faults:
        raise StillroomError("\n".join(f"{ws.recipe.name}: {fault}" for fault in faults))


def run(ws: Workspace) -> None:
    """Make sure that the data are there and whole, and that their plan is written down."""
    check_reads(ws)
    folder = plan_folder(ws)
    if not ws.is_finished(folder):
        Manifest(
            kind="view plan",
            name=ws.recipe.name,
            config=ws.plan.config,
            details={"classes": list(ws.classes), **_shape(ws), "samples": len(ws.dataset)},
        ).write(folder)
        ws.made(folder)
    splits = ws.plan.splits
    sizes = ", ".join(f"{name} {len(split):,}" for name, split in splits.items())
    labelled = len(splits["train"].labelled)
    ws.say("data", f"{ws.dataset.name}: {sizes}; {labelled:,} train labels; {ws.plan.count} views")
