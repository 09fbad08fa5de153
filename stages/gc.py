"""gc: delete artefacts that none of the recipes named refers to. Says what would go; deletes when told to."""

import shutil
from collections.abc import Sequence

from pipeline.errors import StillroomError
from pipeline.report.numbers import size as as_size
from stages import status
from stages.workspace import Workspace


def run(workspaces: Sequence[Workspace], *, delete: bool) -> None:
    """Print, or delete, what is not reachable from the recipes."""
    for ws in workspaces:
        if not status.is_dumped(ws):
            raise StillroomError(
                f"gc: recipe {ws.recipe.name!r} has not dumped all its teachers; expected their stores, without which "
                f"its students can't be told from waste; run 'stillroom logits {ws.recipe.name}' first"
            )
    kept = {wanted.folder.resolve() for ws in workspaces for wanted in status.wanted(ws)}
    root, console = workspaces[0].root, workspaces[0].console
    total = 0
    for kind in status.KINDS:
        for folder in sorted(path for path in (root / kind).glob("*-*") if path.is_dir()):
            if folder.resolve() in kept:
                continue
            size = status.describe(kind, folder.name, folder)["bytes"]
            total += size
            console.print(
                f"{'deleted' if delete else 'would delete'} {folder} ({as_size(size)})", soft_wrap=True, markup=False
            )
            if delete:
                shutil.rmtree(folder)
    hint = "" if delete or not total else "; add --yes to delete"
    console.print(f"{as_size(total)} {'freed' if delete else 'to free'}{hint}")
