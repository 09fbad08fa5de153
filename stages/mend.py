"""What a stage finds where its store should be: nothing, something unfinished, a sound store, or one with damage.

A stage asked for by name reads every byte of its stores and makes damaged blocks again; a stage that only needs them
looks whether they are finished, for every chunk is checked again when it is read.
"""

from dataclasses import dataclass
from pathlib import Path

from pipeline.errors import StillroomError
from pipeline.lineage import Manifest, read_manifest
from pipeline.store.files import sweep
from pipeline.store.verify import Fault, verify
from pipeline.store.writer import StoreWriter
from stages.workspace import Workspace


@dataclass(frozen=True)
class Mending:
    """Whether a store is sound, and what is to be done before it is filled when it is not."""

    is_sound: bool
    manifest: Manifest | None = None
    is_damaged: bool = False

    def begin(self, writer: StoreWriter) -> None:
        """Open a damaged store for filling. Raises StaleStoreError when it was made from something else."""
        if self.is_damaged:
            writer.unseal(self.manifest)


def examine(ws: Workspace, stage: str, name: str, folder: Path, *, check: bool) -> Mending:
    """Return what a stage finds in a store's folder; `check` reads every byte. Damage is told, fault by fault."""
    try:
        manifest = read_manifest(folder)
    except StillroomError as error:
        if not check:
            raise
        ws.say(stage, f"{name}: {error}")
        return Mending(False, None, True)
    if manifest is None or not check:
        return Mending(manifest is not None, manifest)
    sweep(folder)
    faults = verify(folder, thorough=False)
    for fault in faults:
        ws.say(stage, f"{name}: {fault}")
    harmful = [fault for fault in faults if not is_stray(fault)]
    if harmful:
        ws.say(stage, f"{name}: {len(harmful)} fault{'s' * (len(harmful) != 1)}; damaged blocks are made again")
    return Mending(not harmful, manifest, bool(harmful))


def is_stray(fault: Fault) -> bool:
    """Whether a fault is a file too many, which harms nothing."""
    return fault.rows == "no rows"
