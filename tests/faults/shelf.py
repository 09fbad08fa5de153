"""Stores to harm: which of their chunks may be swapped, and what another teacher's store may give one of them."""

import shutil
from dataclasses import dataclass
from pathlib import Path

from oracle import Held, blocks_of, hold_targets, hold_teacher

from pipeline.lineage import MANIFEST
from pipeline.store.records import RECORDS
from pipeline.store.verify import verify
from pipeline.views import Replayer

Swap = tuple[str, str]
SWAPS: dict[str, tuple[Swap, set[str]]] = {
    "with the next rows": (("train/logits/c/1/0/0", "train/logits/c/1/1/0"), {"logits"}),
    "with another view": (("train/logits/c/0/0/0", "train/logits/c/2/0/0"), {"logits"}),
    "with another array": (("train/labels/c/1", "train/row_digest/c/0/0"), {"labels", "row_digest"}),
    "with another split": (("test/labels/c/0", "calibration/labels/c/0"), {"labels"}),
    "of samples": (("train/sample_ids/c/0", "train/sample_ids/c/1"), {"sample_ids"}),
}  # fmt: skip
WHOLE_BLOCK = [f"train/{name}/c/1/1" for name in ("logits", "logits_range", "row_digest", "features/penultimate")]
FOREIGN: dict[str, list[str]] = {
    "a chunk": ["train/logits/c/1/1/0"],
    "a chunk and its record": ["train/logits/c/1/1/0", "records/train-1-1.json"],
    "a whole block": [*WHOLE_BLOCK, "records/train-1-1.json"],
    "all records": [RECORDS],
    "the manifest": [MANIFEST],
    "the attributes": ["zarr.json"],
    "what a codec was fitted to": ["fitted"],
    "all but the manifest": ["train", "calibration", "test", "fitted", "zarr.json", RECORDS],
}


@dataclass(frozen=True)
class Shelf:
    """Two compressed teacher stores and a plain target store, in blocks of 20 rows."""

    teacher: Held
    other: Held
    targets: Held


def lay_shelf(root: Path, replayer: Replayer) -> Shelf:
    """Return the stores, made in this folder."""
    with blocks_of(20):
        teacher = hold_teacher(root / "a", replayer, codec="companded8", features="uint8")
        other = hold_teacher(root / "b", replayer, seed=1, name="b", codec="companded8", features="uint8")
        return Shelf(teacher, other, hold_targets(root / "t", replayer, other))


def take(mine: Path, theirs: Path, paths: list[str]) -> None:
    """Replace files and folders of a store by another store's."""
    for path in paths:
        if (theirs / path).is_dir():
            shutil.rmtree(mine / path)
            shutil.copytree(theirs / path, mine / path)
        else:
            shutil.copyfile(theirs / path, mine / path)


def is_found(folder: Path) -> bool:
    """Whether both ways to verify find a fault."""
    return bool(verify(folder, thorough=False)) and bool(verify(folder))
