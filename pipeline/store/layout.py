"""What lies where in a store: splits, arrays, blocks, and the Zarr metadata they make.

A block is n rows of one view: one Zarr chunk of every array, computed, written and committed together. Unsharded
chunks of 4-8 MB of the largest array: sharding would cost 1.3-3.2 times in writing and buy nothing at these counts.
"""

import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import zarr

from pipeline.store.chunks import compressors, largest_chunk
from pipeline.store.codecs.base import Shuffle

TARGET_BYTES = 6 << 20
MIN_ROWS, MAX_ROWS = 256, 16384


@dataclass(frozen=True)
class ArraySpec:
    """One array of the splits it is in: `[V, N, *tail]` when it belongs to rows, `[N, *tail]` when to samples.

    `shuffle` compresses its chunks (None: plain); `splits` None is all of them.
    """

    tail: tuple[int, ...]
    dtype: str
    per_view: bool = True
    shuffle: Shuffle | None = None
    splits: tuple[str, ...] | None = None

    @property
    def row_bytes(self) -> int:
        """Bytes of one row."""
        return int(np.prod(self.tail, dtype=np.int64)) * np.dtype(self.dtype).itemsize

    @property
    def fill_value(self) -> float:
        """What a chunk that was never written would read as, were reading it not an error: NaN, or 0."""
        return float("nan") if np.issubdtype(np.dtype(self.dtype), np.floating) else 0


# What every store says about its rows, whoever answered on them.
ROW_ARRAYS: Mapping[str, ArraySpec] = {
    "row_digest": ArraySpec((), "uint64"),
    "labels": ArraySpec((), "int32", per_view=False),
    "sample_ids": ArraySpec((), "int64", per_view=False),
}


@dataclass(frozen=True)
class Block:
    """Rows `start` to `stop` of one view of one split; `index` is the chunk's place along the samples."""

    split: str
    view: int
    index: int
    start: int
    stop: int

    @property
    def key(self) -> str:
        """The name of its commit record."""
        return f"{self.split}-{self.view}-{self.index}"

    @property
    def positions(self) -> np.ndarray:
        """Its rows' positions within the split: int64 [n]."""
        return np.arange(self.start, self.stop)

    def __len__(self) -> int:
        return self.stop - self.start


@dataclass(frozen=True)
class Layout:
    """The shape of a store: `splits` maps a name to (V, N), `arrays` a path ("features/penultimate") to a spec.

    `rows_per_block` is for stores that exist, which stay readable when another release would choose other blocks.
    """

    splits: Mapping[str, tuple[int, int]]
    arrays: Mapping[str, ArraySpec]
    rows_per_block: int | None = None

    @property
    def block_rows(self) -> int:
        """Rows of a block: a power of two so that the largest array's chunk has 4-8 MB, within 256 to 16,384."""
        if self.rows_per_block is not None:
            return self.rows_per_block
        largest = max(spec.row_bytes for spec in self.arrays.values())
        exponent = int(np.log2(max(1, TARGET_BYTES * 4 / 3 / largest)))
        return int(np.clip(2**exponent, MIN_ROWS, MAX_ROWS))

    @property
    def blocks(self) -> list[Block]:
        """Every block, in the order they are filled."""
        return list(self._blocks())

    def _blocks(self) -> Iterator[Block]:
        size = self.block_rows
        for split, (views, samples) in self.splits.items():
            for view in range(views):
                for index, start in enumerate(range(0, samples, size)):
                    yield Block(split, view, index, start, min(samples, start + size))

    @property
    def rows(self) -> int:
        """Rows of the whole store."""
        return sum(views * samples for views, samples in self.splits.values())

    @property
    def num_bytes(self) -> int:
        """The most bytes that all chunks take on disk: each of its whole rows, before any compression."""
        return sum(
            largest_chunk(self.chunk_rows(split) * spec.row_bytes, spec.shuffle)
            * -(-samples // self.block_rows)
            * (views if spec.per_view else 1)
            for split, (views, samples) in self.splits.items()
            for spec in self.arrays_in(split).values()
        )

    @property
    def num_blocks(self) -> int:
        """How many blocks there are, counted without listing them."""
        return sum(views * -(-samples // self.block_rows) for views, samples in self.splits.values())

    def arrays_in(self, split: str) -> dict[str, ArraySpec]:
        """Return the arrays of a split."""
        return {name: spec for name, spec in self.arrays.items() if spec.splits is None or split in spec.splits}

    def arrays_of(self, block: Block) -> dict[str, ArraySpec]:
        """Return the arrays a block has a chunk of: those of samples are written with view 0."""
        return {n: spec for n, spec in self.arrays_in(block.split).items() if spec.per_view or block.view == 0}

    def chunk_rows(self, split: str) -> int:
        """Return the rows of a split's chunks, of which the last one may be partly fill values."""
        return min(self.block_rows, self.splits[split][1])

    def chunk_path(self, block: Block, name: str) -> str:
        """Return where a block's chunk of an array lies, relative to the store."""
        spec = self.arrays[name]
        place = [block.view, block.index] if spec.per_view else [block.index]
        return "/".join([block.split, name, "c", *map(str, place), *("0" for _ in spec.tail)])

    def description(self) -> dict[str, Any]:
        """Return the layout as JSON, for the manifest."""
        return {
            "block_rows": self.block_rows,
            "splits": {name: list(shape) for name, shape in self.splits.items()},
            "arrays": {name: _spec_json(spec) for name, spec in self.arrays.items()},
        }

    def metadata(
        self, attributes: Mapping[str, Any], constants: Mapping[str, np.ndarray] | None = None
    ) -> dict[str, bytes]:
        """Return every `zarr.json` of the store by relative path, as Zarr writes them.

        `constants` are small arrays that belong to no row (what a codec was fitted to), written whole with them.
        """
        with tempfile.TemporaryDirectory() as scratch:
            root = zarr.open_group(scratch, mode="w", zarr_format=3, attributes=dict(attributes))
            for split, (views, samples) in self.splits.items():
                group = root.create_group(split)
                for name, spec in self.arrays_in(split).items():
                    rows = self.chunk_rows(split)
                    group.create_array(
                        name,
                        shape=(views, samples, *spec.tail) if spec.per_view else (samples, *spec.tail),
                        chunks=(1, rows, *spec.tail) if spec.per_view else (rows, *spec.tail),
                        dtype=spec.dtype,
                        fill_value=spec.fill_value,
                        compressors=compressors(spec.dtype, spec.shuffle),
                        config={"write_empty_chunks": True},
                    )
            for name, values in (constants or {}).items():
                root.create_array(
                    name,
                    data=values,
                    chunks=values.shape or "auto",
                    compressors=compressors(str(values.dtype), None),
                    config={"write_empty_chunks": True},  # a channel range may well be zero throughout
                )
            files = [path for path in sorted(Path(scratch).rglob("*")) if path.is_file()]
            return {path.relative_to(scratch).as_posix(): path.read_bytes() for path in files}


def _spec_json(spec: ArraySpec) -> dict[str, Any]:
    described: dict[str, Any] = {"tail": list(spec.tail), "dtype": spec.dtype, "per_view": spec.per_view}
    if spec.shuffle is not None:
        described["shuffle"] = spec.shuffle
    if spec.splits is not None:
        described["splits"] = list(spec.splits)
    return described
