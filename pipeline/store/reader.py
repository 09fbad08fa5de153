"""Reading stores: nothing leaves here whose bytes are not those that were committed.

Each chunk is read once, whole, and its crc32c compared with the one in its commit record, at memory speed, each time;
each record is checked against the sealed manifest when the store is opened. A missing, short, swapped, foreign or
flipped chunk is an error that names store, array and rows. `verify` also recomputes the sha256 of every chunk.
"""

from collections.abc import Mapping
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pipeline.errors import CorruptBlockError, StillroomError
from pipeline.lineage import require_manifest
from pipeline.sparse import SparseTargets
from pipeline.store.attributes import check_attributes, check_plan, read_attributes
from pipeline.store.chunks import DamagedChunk, load
from pipeline.store.codecs import Codec, parse_codec
from pipeline.store.codecs.features import Fitted, restore
from pipeline.store.describe import check_places, check_seal, check_sealed, is_own, layout_of, read_constant
from pipeline.store.fields import field_array, held_out_codec
from pipeline.store.layout import ROW_ARRAYS, Block
from pipeline.store.records import read_records
from pipeline.store.writer import FORMAT, ROOT
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
            if name.endswith("_ids") and name not in ROW_ARRAYS and out.max() >= self.num_classes:
                raise DamagedChunk(f"it names class {out.max()} of {self.num_classes}")
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

    def read_field(self, split: str, field: str, view: int = 0) -> dict[str, Tensor]:
        """Return one view of a field, whole, as stored: its parts by name, each `[N, ..., *tail]`."""
        codec = self.codec_in(split)
        return {
            part: torch.from_numpy(self.read(split, field_array(field, part), view))
            for part in codec.parts(self.num_classes)
        }

    def field_block(self, block: Block, field: str) -> dict[str, Tensor]:
        """Return a block of a field as stored: its parts by name, each `[n, ..., *tail]`."""
        codec = self.codec_in(block.split)
        return {
            part: torch.from_numpy(self.read_block(block, field_array(field, part)))
            for part in codec.parts(self.num_classes)
        }

    def field_buffers(self, split: str, field: str, chunks: int) -> dict[str, Tensor]:
        """Return room for so many chunks of a field, one behind the other: its parts by name."""
        rows, parts = chunks * self.layout.chunk_rows(split), self.codec_in(split).parts(self.num_classes)
        specs = {part: self.layout.arrays[field_array(field, part)] for part in parts}
        return {part: torch.from_numpy(np.empty((rows, *spec.tail), spec.dtype)) for part, spec in specs.items()}

    def read_field_into(self, block: Block, field: str, buffers: Mapping[str, Tensor], slot: int) -> None:
        """Read a block's chunks of a field into the buffers, at the chunk's place `slot`. Raises CorruptBlockError."""
        rows = self.layout.chunk_rows(block.split)
        for part, buffer in buffers.items():
            self.read_block_into(block, field_array(field, part), buffer.numpy()[slot * rows : (slot + 1) * rows])

    def field_bytes(self, field: str, split: str) -> int:
        """Return what a split's field takes in memory as stored, all views, in bytes."""
        views, samples = self.layout.splits[split]
        parts = self.codec_in(split).parts(self.num_classes)
        return views * samples * sum(self.layout.arrays[field_array(field, part)].row_bytes for part in parts)

    def codec_in(self, split: str) -> Codec:
        """Return the codec of a split's fields: what a held-out split is judged by is never sparse."""
        return self.codec if split == "train" else held_out_codec(self.codec)

    @cached_property
    def codec(self) -> Codec:
        """How its field lies on disk."""
        return parse_codec(self.attributes["codec"], str(self.folder))

    @property
    def classes(self) -> tuple[str, ...]:
        """The classes, in the order of the last axis."""
        return tuple(self.attributes["classes"])

    @property
    def num_classes(self) -> int:
        """C."""
        return len(self.classes)

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
            name: Split(self.read(name, "sample_ids"), self.read(name, "labels").astype(np.int64))
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


class TeacherStore(Store):
    """Everything one teacher said about every row."""

    def __init__(self, folder: Path | str):
        super().__init__(folder, "teacher store")
        self._feature_codecs: dict[str, Fitted] = {}
        check_attributes(self.folder, "teacher store", self.attributes, self.layout)

    def logits_block(self, block: Block) -> Tensor:
        """Return a block's logits, up to a constant a row: float32 [n, ..., C]."""
        return self.codec_in(block.split).decode(self.field_block(block, "logits"), self.num_classes)

    def logits(self, split: str, view: int = 0) -> Tensor:
        """Return one view's logits, up to a constant a row: float32 [N, ..., C]."""
        return torch.cat([self.logits_block(block) for block in self.blocks(split, view)])

    @property
    def feature_layers(self) -> tuple[str, ...]:
        """The layers whose features are kept."""
        return tuple(name.removeprefix("features/") for name in self.layout.arrays if name.startswith("features/"))

    def feature_codec(self, layer: str) -> Fitted:
        """Return how a layer's features lie on disk, as it was fitted before the dump."""
        described = self.attributes.get("features", {}).get(layer)
        if described is None:  # format 1
            width = self.layout.arrays[f"features/{layer}"].tail[-1]
            return restore({"kind": "fp16"}, {}, width)
        prefix = f"fitted/features/{layer}/"
        sealed = self.manifest.digests
        arrays = {name: read_constant(self.folder, prefix + name, sealed) for name in described["arrays"]}
        return restore(described["codec"], arrays, described["width"])

    def features(self, split: str, layer: str, view: int = 0) -> Tensor:
        """Return one view of a layer's features: float32 [N, D], or [N, k] where they were projected."""
        return torch.cat([self.features_block(block, layer) for block in self.blocks(split, view)])

    def features_block(self, block: Block, layer: str) -> Tensor:
        """Return a block of a layer's features: float32 [n, D]. Raises: StillroomError when they are not kept."""
        if layer not in self.feature_layers:
            raise StillroomError(
                f"{self.folder}: found features of {list(self.feature_layers)}; expected {layer!r}; add it to "
                f"logits.features and run 'stillroom logits'"
            )
        if f"features/{layer}" not in self.layout.arrays_in(block.split):
            raise StillroomError(
                f"{self.folder}: found no features of rows {block.split}, which other models answered on; expected "
                f"another split; fit on calibration rows"
            )
        return self._fitted_codec(layer).decode(torch.from_numpy(self.read_block(block, f"features/{layer}")))

    def _fitted_codec(self, layer: str) -> Fitted:
        if layer not in self._feature_codecs:
            self._feature_codecs[layer] = self.feature_codec(layer)
        return self._feature_codecs[layer]


class TargetStore(Store):
    """What a fusion made of several teacher stores: log-probabilities at each temperature it was taken at."""

    def __init__(self, folder: Path | str):
        super().__init__(folder, "target store")
        check_attributes(self.folder, "target store", self.attributes, self.layout)

    @property
    def temperatures(self) -> tuple[float, ...]:
        """The temperatures the mixture was taken at."""
        return tuple(self.attributes["temperatures"])

    @property
    def teachers(self) -> tuple[str, ...]:
        """The teachers, in the order of the weights' last axis."""
        return tuple(self.attributes["teachers"])

    def field_at(self, temperature: float) -> str:
        """Return the name of the field that holds log p_F at this temperature. Raises StillroomError."""
        if temperature not in self.temperatures:
            raise StillroomError(
                f"{self.folder}: found targets at temperatures {list(self.temperatures)}; expected {temperature}; "
                f"add it to the fusion's temperatures and run 'stillroom fuse'"
            )
        return temperature_array(temperature)

    def log_probs(self, split: str, view: int = 0, *, temperature: float = 1.0) -> Tensor:
        """Return one view's targets: float32 [N, ..., C], log p_F taken at the temperature."""
        stored = self.read_field(split, self.field_at(temperature), view)
        return self.codec_in(split).decode(stored, self.num_classes).log_softmax(-1)

    def decode(self, split: str, stored: Mapping[str, Tensor]) -> Tensor | SparseTargets:
        """Return what a loss learns from: log-probabilities [B, ..., C], or what a sparse codec keeps of them."""
        codec = self.codec_in(split)
        if codec.is_sparse:
            return codec.sparse(stored)  # type: ignore[attr-defined]
        return codec.decode(stored, self.num_classes).log_softmax(-1)


def temperature_array(temperature: float) -> str:
    """Return the array's name for a temperature: log_probs/t1, log_probs/t2.5."""
    return f"log_probs/t{temperature:.12g}"


def _format(folder: Path, attributes: Mapping[str, Any]) -> int:
    found = attributes.get("format")
    if type(found) is not int or found not in range(1, FORMAT + 1):
        raise StillroomError(
            f"{folder}: found store format {found!r}; expected 1 to {FORMAT}; read it with the release that wrote it"
        )
    return found


def open_teacher(folder: Path | str) -> TeacherStore:
    """Open a finished teacher store."""
    return TeacherStore(folder)


def open_targets(folder: Path | str) -> TargetStore:
    """Open a finished target store."""
    return TargetStore(folder)
