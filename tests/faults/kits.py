"""Small stores to break, each with the one call that makes it or goes on with it: what a stage does, less its talk."""

import copy
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from laws import Expected, expected_of

from pipeline.store import ArraySpec, Block, Computed, Filled, Layout, StoreWriter, fill
from pipeline.store.codecs.measure import OF_CLASSES
from stages.mend import examine

QUIET: Any = SimpleNamespace(say=lambda stage, text: None)
ARRAYS = {"values": ArraySpec((3,), "float32"), "row": ArraySpec((), "uint64"), "ids": ArraySpec((), "int64", False)}
FEW = Layout({"train": (2, 4), "test": (1, 2)}, ARRAYS, rows_per_block=2)  # 5 blocks
TINY = Layout({"train": (2, 3)}, {name: ARRAYS[name] for name in ("row", "ids")}, rows_per_block=3)  # 2 blocks
PACKED = Layout(
    {"train": (2, 40)},
    {"row": ArraySpec((), "uint64", True, "shuffle"), "code": ArraySpec((8,), "uint8", True, "noshuffle")},
    rows_per_block=40,
)
FITTED = {"fitted/code/step": np.linspace(0.5, 2, 8, dtype=np.float32), "fitted/code/low": np.zeros(8, np.float32)}


def lay_out_once(patch: pytest.MonkeyPatch) -> None:
    """Have Zarr lay out like arrays once: stores that differ in their attributes alone differ in the root's file."""
    metadata, laid = Layout.metadata, dict[str, dict[str, bytes]]()

    def remembered(layout: Layout, attributes: Any, constants: Any = None) -> dict[str, bytes]:
        values = {name: array.tobytes() for name, array in (constants or {}).items()}
        key = repr((layout.splits, layout.arrays, layout.block_rows, values))
        if key not in laid:
            laid[key] = metadata(layout, attributes, constants)
        return {**laid[key], **metadata(Layout({}, {}), attributes)}

    patch.setattr(Layout, "metadata", remembered)


def numbers(split: str, name: str, view: int, rows: np.ndarray, spec: ArraySpec, author: int = 0) -> np.ndarray:
    """Return what an author says of rows: a pure function, so that a test knows it without any store."""
    seed = 1000 * author + 100 * view + sum(map(ord, split + name))
    values = np.add.outer(rows * 7 + seed * (1 if spec.per_view else 0), np.arange(int(np.prod(spec.tail))))
    return (values % 251).reshape(len(rows), *spec.tail).astype(spec.dtype)


@dataclass(frozen=True)
class Kit:
    """A store of made-up numbers. `author` is who answers: another one says otherwise of every row."""

    layout: Layout
    constants: Mapping[str, np.ndarray] = field(default_factory=dict)
    kind: str = "teacher store"

    @cached_property
    def _writer(self) -> StoreWriter:
        made_from = {"teacher": "t", "layout": repr(self.layout)}
        return StoreWriter(
            Path("nowhere"),
            self.layout,
            kind=self.kind,
            name="toy",
            config=made_from,
            attributes={"made_from": made_from},
            constants=self.constants,
        )

    def writer(self, folder: Path) -> StoreWriter:
        """Return a writer; Zarr lays out the metadata once, for all of them."""
        writer = copy.copy(self._writer)
        writer.folder, writer._synced = folder, set()
        return writer

    def compute(self, block: Block, author: int = 0) -> Computed:
        """Return a block as its author computes it."""
        arrays = {
            name: numbers(block.split, name, block.view if spec.per_view else 0, block.positions, spec, author)
            for name, spec in self.layout.arrays_of(block).items()
        }
        error = {**dict.fromkeys(sorted(OF_CLASSES), float(author)), "rows": len(block)}
        return Computed(arrays, error, {"forward_seconds": 0.5})

    def ensure(self, folder: Path, compute: Callable[[Block], Computed] | None = None, **options: Any) -> Filled:
        """Make the store, go on with it, mend it or find it sound, as a stage that is asked by name."""
        mending = examine(QUIET, "logits", "toy", folder, check=True)
        if mending.is_sound:
            return Filled()
        writer = self.writer(folder)
        mending.begin(writer)
        return fill(writer, compute or self.compute, details=lambda: {"seed": 0}, **options)

    def expected(self, folder: Path) -> Expected:
        """Return the uninterrupted store, made in this folder; its numbers are those of the author, not the store's."""
        self.ensure(folder)
        splits = self.layout.splits.items()
        truth = {
            (split, name, view): numbers(split, name, view if spec.per_view else 0, np.arange(samples), spec)
            for split, (views, samples) in splits
            for name, spec in self.layout.arrays_in(split).items()
            for view in range(views)
        }
        return expected_of(folder, self.kind, truth)


KITS = {"plain": Kit(TINY), "compressed": Kit(PACKED), "constants": Kit(TINY, FITTED), "blocks": Kit(FEW)}
