"""Reading stores: nothing leaves here whose bytes are not those that were committed.

Each chunk is read once, whole, and its crc32c compared with the one in its commit record, at memory speed, each time;
each record is checked against the sealed manifest when the store is opened. A missing, short, swapped, foreign or
flipped chunk is an error that names store, array and rows. `verify` also recomputes the sha256 of every chunk.
"""

import copy
from collections.abc import Mapping
from functools import cached_property
from pathlib import Path
from typing import Any, Self

import numpy as np
import torch
from torch import Tensor

from pipeline.errors import CorruptBlockError, StillroomError
from pipeline.lineage import require_manifest
from pipeline.sparse import SparseTargets
from pipeline.store.attributes import check_plan, read_attributes
from pipeline.store.chunks import DamagedChunk, load
from pipeline.store.codecs import Codec
from pipeline.store.describe import check_places, check_seal, check_sealed, is_own, layout_of
from pipeline.store.fields import HYPOTHESES, SENTENCE, TARGETS, Output, field_array, output_of, read_outputs
from pipeline.store.layout import Block
from pipeline.store.records import read_records
from pipeline.store.told import FORMAT, ROOT
from pipeline.views import Split, ViewPlan, transform_from_spec

MAKE_WITH = {"teacher store": "stillroom logits", "target store": "stillroom fuse"}


class Store:
    """A finished store, opened for reading and verified as it is read."""

    def __init__(self, folder: Path | str, kind: str):
        self.folder = Path(folder)
        self.manifest = require_manifest(self.folder, kind, make_with=MAKE_WITH[kind])
        check_sealed(self.folder, self.manifest, ROOT)
        self.attributes = read_attributes(self.folder)
        self.format = _format(self.folder, self.attributes)
        if (self.attributes.get("kind"), self.attributes.get("fingerprint")) != (kind, self.fingerprint):
            raise StillroomError(
                f"{self.folder}: found the attributes of another store; expected its manifest's; rebuild the store"
            )
        self.layout = layout_of(self.manifest, self.folder)
        check_places(self.folder, self.layout)
        named = None if self.format == 1 else self.fingerprint
        self.records = read_records(self.folder, self.layout, named)
        check_seal(self.folder, self.manifest, self.layout, self.records)
        self._root, self._own = self.folder.resolve(), set[str]()  # folders of chunks that are no links
        self._checked: set[str] = set()  # chunks of format 1, whose records hold no crc32c: sha256 at the first read
        self._blocks = {(b.split, b.view, b.index): b for b in self.layout.blocks}
        self._at: str | None = None

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
        spec = self.layout.arrays[name]
        out = np.empty((self.layout.chunk_rows(block.split), *spec.tail), spec.dtype)
        self.read_block_into(block, name, out)
        return out[: len(block)]

    def read_block_into(self, block: Block, name: str, out: np.ndarray, *, thorough: bool = False) -> None:
        """Fill `out` with a block's whole chunk of an array: `[chunk_rows, *tail]`, of which the last may be padding.

        `thorough` also recomputes its sha256. Raises: CorruptBlockError.
        """
        spec = self.layout.arrays[name]
        if not spec.per_view:
            block = self.block(block.split, 0, block.index)  # whose record holds the chunks of samples
        path = self.layout.chunk_path(block, name)
        chunk = self.records[block.key]["chunks"][path]
        crc32c = chunk.get("crc32c")
        once = crc32c is None and path not in self._checked
        try:
            self._check_own(path)
            load(
                self.folder / path,
                out,
                spec.shuffle,
                num_bytes=chunk["bytes"],
                crc32c=crc32c,
                sha256=chunk["sha256"] if thorough or once else None,
            )
            if name.endswith("_ids") and (coded := output_of(self.outputs, name.removesuffix("_ids"))):
                _check_ids(out, coded.num_classes)
            if name in (HYPOTHESES, SENTENCE):
                _check_ids(out, len(self.classes))
        except DamagedChunk as fault:
            raise CorruptBlockError(
                f"{self.folder}: {name} of {block.split} view {block.view} rows {block.start}-{block.stop}: "
                f"{fault}; run '{MAKE_WITH[self.manifest.kind]}' to rebuild these rows"
            ) from fault
        self._checked.add(path)

    def _check_own(self, path: str) -> None:
        parent = path.rpartition("/")[0]
        if parent not in self._own:
            if not is_own(self._root, path):
                raise DamagedChunk("its folder is a link")
            self._own.add(parent)

    def read(self, split: str, name: str, view: int = 0) -> np.ndarray:
        """Return one view of an array, whole: `[N, *tail]`, as stored."""
        return np.concatenate([self.read_block(block, name) for block in self.blocks(split, view)])

    def field_parts(self, field: str, split: str) -> dict[str, str]:
        """Return the arrays that a field lies in, by part: what no codec was applied to is one array of its name."""
        coded = output_of(self.outputs, field)
        if coded is None:
            return {"": field}
        return {part: field_array(field, part) for part in coded.codec_in(split).parts(coded.num_classes)}

    def decode_field(self, field: str, split: str, stored: Mapping[str, Tensor]) -> Tensor | SparseTargets:
        """Return rows of a field as they are used: its parts as stored, each [B, ..., *tail]."""
        raise NotImplementedError

    def read_field(self, split: str, field: str, view: int = 0) -> dict[str, Tensor]:
        """Return one view of a field, whole, as stored: its parts by name, each `[N, ..., *tail]`."""
        parts = self.field_parts(field, split).items()
        return {part: torch.from_numpy(self.read(split, name, view)) for part, name in parts}

    def field_block(self, block: Block, field: str) -> dict[str, Tensor]:
        """Return a block of a field as stored: its parts by name, each `[n, ..., *tail]`."""
        parts = self.field_parts(field, block.split).items()
        return {part: torch.from_numpy(self.read_block(block, name)) for part, name in parts}

    def field_buffers(self, split: str, field: str, chunks: int) -> dict[str, Tensor]:
        """Return room for so many chunks of a field, one behind the other: its parts by name."""
        rows = chunks * self.layout.chunk_rows(split)
        specs = {part: self.layout.arrays[name] for part, name in self.field_parts(field, split).items()}
        return {part: torch.from_numpy(np.empty((rows, *spec.tail), spec.dtype)) for part, spec in specs.items()}

    def read_field_into(self, block: Block, field: str, buffers: Mapping[str, Tensor], slot: int) -> None:
        """Read a block's chunks of a field into the buffers, at the chunk's place `slot`. Raises CorruptBlockError."""
        rows, names = self.layout.chunk_rows(block.split), self.field_parts(field, block.split)
        for part, buffer in buffers.items():
            self.read_block_into(block, names[part], buffer.numpy()[slot * rows : (slot + 1) * rows])

    def field_bytes(self, field: str, split: str) -> int:
        """Return what a split's field takes in memory as stored, all views, in bytes."""
        views, samples = self.layout.splits[split]
        names = self.field_parts(field, split).values()
        return views * samples * sum(self.layout.arrays[name].row_bytes for name in names)

    @cached_property
    def outputs(self) -> dict[str, Output]:
        """What it keeps of each row, by name: most often one output; none where it keeps sentences alone."""
        return read_outputs(self.attributes, str(self.folder))

    @property
    def output(self) -> Output:
        """The output that it is looked at. Raises: StillroomError where it has none."""
        if not self.outputs:
            raise StillroomError(
                f"{self.folder}: found whole sentences and no logits; expected logits; leave {self.name!r} out, or "
                f"fuse sentences"
            )
        return self.outputs[self._at] if self._at else next(iter(self.outputs.values()))

    def at(self, output: str) -> Self:
        """Return the same store, looked at one of its outputs; as it is opened it is looked at the first."""
        other = copy.copy(self)
        other._at = output
        return other

    def codec_in(self, split: str) -> Codec:
        """Return the codec of a split's fields: what a held-out split is judged by is never sparse."""
        return self.output.codec_in(split)

    @property
    def codec(self) -> Codec:
        """How its field lies on disk."""
        return self.output.codec

    @property
    def is_real(self) -> bool:
        """Whether its answers are real numbers, in standard units, and not logits of classes."""
        return bool(self.outputs) and self.codec.is_real

    @property
    def classes(self) -> tuple[str, ...]:
        """The classes, or what the numbers are of, in the order of the last axis."""
        return tuple(self.attributes["classes"])

    @property
    def num_classes(self) -> int:
        """C."""
        return self.output.num_classes if self.outputs else len(self.classes)

    def plan(self) -> ViewPlan:
        """Return the view plan the rows were made by, rebuilt from the store alone.

        Raises: StaleStoreError when this release replays views differently.
        """
        try:
            plan = self._plan(self.attributes["plan"])
            check_plan(plan, self.layout, self.num_classes)
            is_own = plan.config == self.attributes["plan"]
        except (KeyError, TypeError, ValueError, AttributeError, ArithmeticError) as error:
            raise StillroomError(
                f"{self.folder}: found a view plan that is none ({error!r}); expected one as Stillroom writes it; "
                f"rebuild the store"
            ) from error
        if not is_own:
            raise StillroomError(f"{self.folder}: its samples are not those of its plan; rebuild the store")
        return plan

    def _plan(self, config: Mapping[str, Any]) -> ViewPlan:
        splits = {
            name: Split(
                self.read(name, "sample_ids"),
                self.read(name, "labels").astype(np.int64),
                self.read(name, TARGETS) if TARGETS in self.layout.arrays else None,
            )
            for name in self.layout.splits
        }
        return ViewPlan(
            dataset=config["dataset"],
            splits=splits,
            count=config["views"],
            transforms=tuple(transform_from_spec(spec) for spec in config["transforms"]),
            mix=None if config["mix"] is None else transform_from_spec(config["mix"]),
            seed=config["seed"],
            mean=tuple(config["mean"]),
            std=tuple(config["std"]),
        )


def _check_ids(ids: np.ndarray, num_classes: int) -> None:
    if ids.max() >= num_classes:
        raise DamagedChunk(f"it names class {ids.max()} of {num_classes}")


def _format(folder: Path, attributes: Mapping[str, Any]) -> int:
    found = attributes.get("format")
    if type(found) is not int or found not in range(1, FORMAT + 1):
        raise StillroomError(
            f"{folder}: found store format {found!r}; expected 1 to {FORMAT}; read it with the release that wrote it"
        )
    return found
