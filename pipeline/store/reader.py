"""Reading stores: nothing leaves here whose bytes are not those that were committed.

Each chunk's sha256 is checked against its record the first time it is read, each record against the sealed manifest
when the store is opened. A missing, short, swapped or flipped chunk is an error that names store, array and rows.
"""

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import zarr
from torch import Tensor

from pipeline.errors import CorruptBlockError, StillroomError
from pipeline.lineage import Manifest, file_digest, require_manifest
from pipeline.store.codecs import CODECS
from pipeline.store.fill import RECORDS, read_records, records_digest
from pipeline.store.layout import ArraySpec, Block, Layout
from pipeline.views import Split, ViewPlan, transform_from_spec

MAKE_WITH = {"teacher store": "stillroom logits", "target store": "stillroom fuse"}


class Store:
    """A finished store, opened for reading and verified as it is read."""

    def __init__(self, folder: Path | str, kind: str):
        self.folder = Path(folder)
        self.manifest = require_manifest(self.folder, kind, make_with=MAKE_WITH[kind])
        self.layout = layout_of(self.manifest)
        self.records = read_records(self.folder, self.layout)
        check_seal(self.folder, self.manifest, self.records)
        self.group = zarr.open_group(self.folder, mode="r")
        self.attributes: Mapping[str, Any] = self.group.attrs["stillroom"]  # type: ignore[assignment]
        self._arrays: dict[tuple[str, str], Any] = {}
        self._checked: set[str] = set()
        self._blocks = {(b.split, b.view, b.index): b for b in self.layout.blocks}

    @property
    def name(self) -> str:
        """The teacher's or fusion's name."""
        return self.manifest.name

    @property
    def fingerprint(self) -> str:
        """What it was made from, as sha256."""
        return self.manifest.fingerprint

    def blocks(self, split: str, view: int) -> list[Block]:
        """Return the blocks of one view, in order."""
        return [block for block in self.layout.blocks if (block.split, block.view) == (split, view)]

    def block(self, split: str, view: int, index: int) -> Block:
        """Return one block."""
        return self._blocks[split, view, index]

    def read_block(self, block: Block, name: str) -> np.ndarray:
        """Return a block of an array: `[n, *tail]`, as stored. Raises CorruptBlockError."""
        if not self.layout.arrays[name].per_view:
            block = self.block(block.split, 0, block.index)  # whose record holds the chunks of samples
        path = self.layout.chunk_path(block, name)
        if path not in self._checked:
            fault = chunk_fault(self.folder / path, self.records[block.key]["chunks"][path])
            if fault:
                raise CorruptBlockError(
                    f"{self.folder}: {name} of {block.split} view {block.view} rows {block.start}-{block.stop}: "
                    f"{fault}; delete the folder and run '{MAKE_WITH[self.manifest.kind]}' to rebuild it"
                )
            self._checked.add(path)
        array, rows = self._array(block.split, name), slice(block.start, block.stop)
        return array[(block.view, rows) if self.layout.arrays[name].per_view else rows]

    def read(self, split: str, name: str, view: int = 0) -> np.ndarray:
        """Return one view of an array, whole: `[N, *tail]`, as stored."""
        return np.concatenate([self.read_block(block, name) for block in self.blocks(split, view)])

    def _array(self, split: str, name: str) -> Any:
        if (split, name) not in self._arrays:
            self._arrays[split, name] = zarr.open_array(
                self.folder / split / name, mode="r", config={"read_missing_chunks": False}
            )
        return self._arrays[split, name]

    def plan(self) -> ViewPlan:
        """Return the view plan the rows were made by, rebuilt from the store alone.

        Raises: StaleStoreError when this release replays views differently.
        """
        config = self.attributes["plan"]
        splits = {
            name: Split(self.read(name, "sample_ids"), self.read(name, "labels").astype(np.int64))
            for name in self.layout.splits
        }
        plan = ViewPlan(
            dataset=config["dataset"],
            splits=splits,
            count=config["views"],
            transforms=tuple(transform_from_spec(spec) for spec in config["transforms"]),
            mix=None if config["mix"] is None else transform_from_spec(config["mix"]),
            seed=config["seed"],
            mean=tuple(config["mean"]),
            std=tuple(config["std"]),
        )
        if plan.config != config:
            raise StillroomError(f"{self.folder}: its samples are not those of its plan; rebuild the store")
        return plan


class TeacherStore(Store):
    """Everything one teacher said about every row."""

    def __init__(self, folder: Path | str):
        super().__init__(folder, "teacher store")
        self.codec = CODECS[self.attributes["codec"]]

    @property
    def classes(self) -> tuple[str, ...]:
        """The classes, in the order of the last axis."""
        return tuple(self.attributes["classes"])

    def logits_block(self, block: Block) -> Tensor:
        """Return a block's logits, up to a constant a row: float32 [n, ..., C]."""
        return self.codec.decode(self.read_block(block, "logits"))

    def logits(self, split: str, view: int = 0) -> Tensor:
        """Return one view's logits, up to a constant a row: float32 [N, ..., C]."""
        return self.codec.decode(self.read(split, "logits", view))


class TargetStore(Store):
    """What a fusion made of several teacher stores: log-probabilities at each temperature it was taken at."""

    def __init__(self, folder: Path | str):
        super().__init__(folder, "target store")
        self.codec = CODECS[self.attributes["codec"]]

    @property
    def classes(self) -> tuple[str, ...]:
        """The classes, in the order of the last axis."""
        return tuple(self.attributes["classes"])

    @property
    def temperatures(self) -> tuple[float, ...]:
        """The temperatures the mixture was taken at."""
        return tuple(self.attributes["temperatures"])

    @property
    def teachers(self) -> tuple[str, ...]:
        """The teachers, in the order of the weights' last axis."""
        return tuple(self.attributes["teachers"])

    def array_at(self, temperature: float) -> str:
        """Return the name of the array that holds log p_F at this temperature. Raises StillroomError."""
        if temperature not in self.temperatures:
            raise StillroomError(
                f"{self.folder}: found targets at temperatures {list(self.temperatures)}; expected {temperature}; "
                f"add it to the fusion's temperatures and run 'stillroom fuse'"
            )
        return temperature_array(temperature)

    def log_probs(self, split: str, view: int = 0, *, temperature: float = 1.0) -> Tensor:
        """Return one view's targets: float32 [N, ..., C], log p_F taken at the temperature."""
        return self.codec.decode(self.read(split, self.array_at(temperature), view)).log_softmax(-1)


def temperature_array(temperature: float) -> str:
    """Return the array's name for a temperature: log_probs/t1, log_probs/t2.5."""
    return f"log_probs/t{temperature:.12g}"


def layout_of(manifest: Manifest) -> Layout:
    """Return the layout that a store's manifest describes."""
    details = manifest.details
    return Layout(
        {name: (views, samples) for name, (views, samples) in details["splits"].items()},
        {name: ArraySpec(tuple(a["tail"]), a["dtype"], a["per_view"]) for name, a in details["arrays"].items()},
        details["block_rows"],
    )


def check_seal(folder: Path, manifest: Manifest, records: Mapping[str, Any]) -> None:
    """Raise CorruptBlockError unless records and Zarr metadata are those that the manifest sealed."""
    if records_digest(records) != manifest.digests[RECORDS]:
        raise CorruptBlockError(f"{folder}: the commit records are not those the manifest sealed; rebuild the store")
    for path, wanted in manifest.digests.items():
        if path == RECORDS:
            continue
        if not (folder / path).is_file() or file_digest(folder / path) != wanted:
            raise CorruptBlockError(f"{folder / path}: missing or edited; expected sha256 {wanted[:12]}; rebuild it")


def chunk_fault(path: Path, wanted: Mapping[str, Any]) -> str | None:
    """Return what is wrong with a chunk's file, None when its bytes are those that were committed."""
    try:
        content = path.read_bytes()
    except FileNotFoundError:
        return "the chunk is missing"
    except OSError as error:
        return f"the chunk cannot be read ({error})"
    if len(content) != wanted["bytes"]:
        return f"the chunk has {len(content)} bytes, the commit record says {wanted['bytes']}"
    found = hashlib.sha256(content).hexdigest()
    if found != wanted["sha256"]:
        return f"sha256 {found[:12]}, the commit record says {wanted['sha256'][:12]}"
    return None


def open_teacher(folder: Path | str) -> TeacherStore:
    """Open a finished teacher store."""
    return TeacherStore(folder)


def open_targets(folder: Path | str) -> TargetStore:
    """Open a finished target store."""
    return TargetStore(folder)
