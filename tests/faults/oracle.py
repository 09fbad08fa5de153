"""Stores whose numbers a test holds in memory, so that what is read is never judged by what the store itself says."""

import copy
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from toys import CLASSES, small_blocks, target_writer, teacher_writer

from pipeline.dump import row_arrays
from pipeline.encoding import Encoding
from pipeline.errors import StillroomError
from pipeline.loader import TargetLoader
from pipeline.store import Block, Computed, Store, StoreWriter, TargetStore, TeacherStore, fill, parse_codec
from pipeline.store.codecs.features import parse_feature_codec
from pipeline.store.codecs.measure import OF_CLASSES
from pipeline.store.fields import Output, encode_field, held_out_codec
from pipeline.views import Replayer, RowKeys

ERROR = {**dict.fromkeys(sorted(OF_CLASSES), 1e-5), "rows": 4}
Numbers = Mapping[tuple[str, str], np.ndarray]  # by (split, array): [V, N, *tail], or [N, *tail] of samples


@dataclass(frozen=True)
class Held:
    """A store's writer, and every number that belongs into it."""

    writer: StoreWriter
    numbers: Numbers

    @property
    def folder(self) -> Path:
        """Where it lies."""
        return self.writer.folder

    def at(self, folder: Path) -> "Held":
        """Return the same numbers for a copy of the store, made there."""
        shutil.copytree(self.folder, folder)
        writer = copy.copy(self.writer)
        writer.folder = folder
        return Held(writer, self.numbers)

    def compute(self, block: Block) -> Computed:
        """Return a block from memory."""
        rows, arrays = slice(block.start, block.stop), self.writer.layout.arrays_of(block)
        every = {name: self.numbers[block.split, name] for name in arrays}
        return Computed({n: v[block.view][rows] if arrays[n].per_view else v[rows] for n, v in every.items()}, ERROR)

    def fill(self, on_block: Callable[[Block], None] = lambda block: None) -> "Held":
        """Write what is missing of it and seal it."""
        fill(self.writer, self.compute, details=lambda: {"temperature": 1.5}, on_block=on_block)
        return self

    def wrong(self, store: Store) -> list[str]:
        """Return the arrays that a store reads as other numbers; those that it refuses to read are not wrong."""
        return [name for split, name in self.numbers if self._is_wrong(store, split, name)]

    def _is_wrong(self, store: Store, split: str, name: str) -> bool:
        known = self.numbers[split, name]
        for view in range(len(known) if store.layout.arrays[name].per_view else 1):
            wanted = known[view] if store.layout.arrays[name].per_view else known
            try:
                found = store.read(split, name, view)
            except StillroomError:
                continue
            if found.dtype != wanted.dtype or found.tobytes() != wanted.tobytes():
                return True
        return False


def settled(writer: StoreWriter) -> StoreWriter:
    """Return the writer with the rows of a block as they are now, whatever a patch makes of them later."""
    writer.layout = replace(writer.layout, rows_per_block=writer.layout.block_rows)
    return writer


def rows_of(replayer: Replayer, writer: StoreWriter) -> dict[tuple[str, str], np.ndarray]:
    """Return what a store says about all rows: digests, labels, sample ids."""
    found = {}
    for split, (views, count) in writer.layout.splits.items():
        each = [row_arrays(replayer, Block(split, view, 0, 0, count)) for view in range(views)]
        found[split, "row_digest"] = np.stack([arrays["row_digest"] for arrays in each])
        found |= {(split, name): each[0][name] for name in ("labels", "sample_ids")}
    return found


def encoded(field: str, codec: Any, logits: Mapping[str, Tensor]) -> dict[tuple[str, str], np.ndarray]:
    """Return a field's arrays as a codec makes them of logits by split: float [V, N, C]."""
    found: dict[tuple[str, str], np.ndarray] = {}
    for split, values in logits.items():
        own = codec if split == "train" else held_out_codec(codec)
        parts = [encode_field(field, own, rows, RowKeys(0, v, np.arange(len(rows)))) for v, rows in enumerate(values)]
        found |= {(split, name): torch.stack([part[name] for part in parts]).numpy() for name in parts[0]}
    return found


def random_logits(writer: StoreWriter, seed: int, num_classes: int) -> dict[str, Tensor]:
    """Return logits of every row by split: float32 [V, N, C]."""
    generator = torch.Generator().manual_seed(seed)
    shapes = writer.layout.splits.items()
    return {split: 4 * torch.randn(*shape, num_classes, generator=generator) for split, shape in shapes}


def hold_teacher(
    folder: Path, replayer: Replayer, *, seed: int = 0, name: str = "a", codec: Any = "fp16", features: Any = "fp16"
) -> Held:
    """Return a teacher store of random logits and 8 random features, finished."""
    generator = torch.Generator().manual_seed(seed + 100)
    fitted = parse_feature_codec(features, "features").fit(torch.randn(64, 8, generator=generator))
    encoding = Encoding((Output("logits", (len(CLASSES),), parse_codec(codec, "codec")),), {"penultimate": fitted})
    writer = settled(teacher_writer(folder, replayer, encoding, name=name, codec=codec, feature_codec=features))
    numbers = rows_of(replayer, writer) | encoded("logits", encoding.codec, random_logits(writer, seed, len(CLASSES)))
    for split, shape in writer.layout.splits.items():
        rows = torch.randn(*shape, 8, generator=generator)
        numbers[split, "features/penultimate"] = torch.stack([fitted.encode(view) for view in rows]).numpy()
    return Held(writer, numbers).fill()


def hold_targets(folder: Path, replayer: Replayer, teacher: Held, *, codec: Any = "fp16", seed: int = 9) -> Held:
    """Return a target store of random log-probabilities at temperatures 1 and 4, finished."""
    writer = settled(target_writer(folder, [TeacherStore(teacher.folder)], codec=codec)[0])
    numbers = rows_of(replayer, writer)
    for temperature in (1, 4):
        logits = random_logits(writer, seed + temperature, len(CLASSES))
        numbers |= encoded(f"log_probs/t{temperature}", parse_codec(codec, "codec"), logits)
    drawn = np.random.default_rng(seed)
    for split, shape in writer.layout.splits.items():
        numbers[split, "weights"] = drawn.random((*shape, 1)).astype(np.float16)
        numbers[split, "disagreement"] = drawn.random(shape).astype(np.float32)
        numbers[split, "corrected"] = drawn.random(shape).astype(np.float16)
    return Held(writer, numbers).fill()


SOURCES: dict[str, dict[str, Any]] = {"resident": {}, "streamed": {"memory_budget": 0, "window": 2}}


def first_error(targets: Held, replayer: Replayer, source: str, *, batch_size: int = 7) -> StillroomError | None:
    """Return what stopped a student's loader. No batch before that may hold a wrong number."""
    known = torch.from_numpy(targets.numbers["train", "log_probs/t1"]).float().log_softmax(-1)
    try:
        store = TargetStore(targets.folder)
        loader = TargetLoader(store, replayer.samples, batch_size=batch_size, seed=3, **SOURCES[source])
        for batch in (batch for _ in range(replayer.plan.count) for batch in loader):
            wanted = known[batch.view][torch.from_numpy(batch.positions)]
            assert torch.equal(batch.target_log_probs, wanted), "a wrong number reached the student"
    except StillroomError as error:
        return error
    return None


@contextmanager
def blocks_of(rows: int) -> Iterator[None]:
    """Let new stores have blocks of this many rows."""
    with pytest.MonkeyPatch.context() as patch:
        small_blocks(patch, rows)
        yield
