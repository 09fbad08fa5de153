"""Reading for training: blocks in shuffled order, a window of them mixed, batches of 256; the store against a memmap.

Everyone shows the same rows in the same order; only where the bytes come from differs, and that the store's are
verified. A map is read in two ways: block by block through the same code as the store, and row by row.
"""

import ctypes
import mmap
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import count
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, IterableDataset, get_worker_info

from pipeline.loader import Streamed
from pipeline.store import Block, Layout, open_targets
from pipeline.views.order import cut, windowed_order
from tests.bench.ratios import alternate, seconds, show
from tests.bench.store_peers import BATCH, CLASSES, READERS, PeerError, Peers
from tests.bench.store_write import ARRAY, BLOCK_ROWS, TARGETS, fill_store, open_writer, without_fsync

WINDOW, REPEATS = 4, 5
Decode = Callable[[str, str, Mapping[str, Tensor]], Any]  # field, split, parts as stored -> what is shown


class Source(Protocol):
    """Rows in an order of their own: `Streamed` is one."""

    def order(self, epoch: int) -> np.ndarray: ...
    def rows(self, view: int, positions: np.ndarray) -> Any: ...


@dataclass(frozen=True)
class Blocks:
    """What `Streamed` asks of a target store, wherever the blocks come from; `read` fills a block's whole chunk."""

    layout: Layout
    read: Callable[[Block, np.ndarray], object]
    decode_field: Decode

    def block(self, split: str, view: int, index: int) -> Block:
        """Return one block."""
        start = index * BLOCK_ROWS
        return Block(split, view, index, start, min(self.layout.splits[split][1], start + BLOCK_ROWS))

    def field_buffers(self, split: str, field: str, chunks: int) -> dict[str, Tensor]:
        """Return room for chunks."""
        return {"": torch.from_numpy(np.empty((chunks * BLOCK_ROWS, CLASSES), np.float16))}

    def read_field_into(self, block: Block, field: str, buffers: Mapping[str, Tensor], slot: int) -> None:
        """Read a block's chunk to its place."""
        self.read(block, buffers[""].numpy()[slot * BLOCK_ROWS : (slot + 1) * BLOCK_ROWS])


def stream(blocks: Any) -> Streamed:
    """Return Stillroom's own streaming over blocks, or over a target store."""
    return Streamed(blocks, ARRAY, "train", torch.device("cpu"), seed=0, window=WINDOW)


def as_stored(field: str, split: str, stored: Mapping[str, Tensor]) -> Tensor:
    """Return fp16 as it lies."""
    return stored[""]


@dataclass(frozen=True)
class Gathered:
    """Rows picked straight from a map, in the order in which `Streamed` shows them."""

    layout: Layout
    pick: Callable[[np.ndarray], np.ndarray]
    decode: Decode

    def order(self, epoch: int) -> np.ndarray:
        """Return an epoch's positions."""
        return np.concatenate(windowed_order(0, epoch, self.layout.splits["train"][1], BLOCK_ROWS, WINDOW))

    def rows(self, view: int, positions: np.ndarray) -> Any:
        """Return rows."""
        return self.decode("train", {"": torch.from_numpy(self.pick(positions))})


def batches(source: Source, epoch: int) -> Iterator[Any]:
    """Yield an epoch."""
    return (source.rows(0, positions) for positions in cut(source.order(epoch), BATCH))


def drain(source: Source, epoch: int) -> int:
    """Show an epoch and return its rows."""
    return sum(len(batch) for batch in batches(source, epoch))


class Reading:
    """The rows as a store and as a plain file, and ways to show an epoch of either."""

    def __init__(self, rows_file: Path, folder: Path, rows: int):
        self.rows_file, self.folder, self.num_rows = rows_file, folder, rows
        self.layout = Layout({"train": (1, rows)}, TARGETS)
        self.files = [path for path in folder.rglob("*") if path.is_file()]
        self.log_probs: Decode = open_targets(folder).decode
        self._epochs = count()
        self._map: np.ndarray | None = None

    @property
    def map(self) -> np.ndarray:
        """The plain file, mapped."""
        if self._map is None:
            self._map = np.memmap(self.rows_file, np.float16, "r", shape=(self.num_rows, CLASSES))
        return self._map

    def store(self, decode: Decode) -> Streamed:
        """Return the store's rows, opened afresh."""
        store = open_targets(self.folder)
        return stream(Blocks(self.layout, lambda block, out: store.read_block_into(block, ARRAY, out), decode))

    def block_by_block(self, decode: Decode) -> Streamed:
        """Return the map's rows, copied block by block as the store's are."""

        def read(block: Block, out: np.ndarray) -> None:
            out[: len(block)] = self.map[block.start : block.stop]

        return stream(Blocks(self.layout, read, decode))

    def row_by_row(self, decode: Decode) -> Gathered:
        """Return the map's rows, picked one by one."""
        return Gathered(self.layout, lambda positions: self.map[positions], decode)

    def epoch(self, source: Source) -> float:
        """Return the seconds of the next epoch."""
        return seconds(lambda: drain(source, next(self._epochs)))

    def first_epoch(self, make: Callable[[Decode], Source], decode: Decode) -> float:
        """Return the seconds of a new source's epoch; it is made outside the clock."""
        return self.epoch(make(decode))

    def cold_epoch(self, source: Source) -> float:
        """Return the seconds of the next epoch after everything was dropped from the page cache."""
        self._map = None  # what is mapped stays
        evict([self.rows_file, *self.files])
        return self.epoch(source)


def evict(paths: Sequence[Path]) -> None:
    """Drop files from the page cache. Raises RuntimeError when they stay."""
    for path in paths:
        descriptor = os.open(path, os.O_RDONLY)
        os.fsync(descriptor)
        os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
        os.close(descriptor)
    share = cached_pages(paths) / max(1, sum(-(-path.stat().st_size // mmap.PAGESIZE) for path in paths))
    if share > 0.01:
        raise RuntimeError(f"{share:.0%} of the pages stay in the page cache")


def cached_pages(paths: Sequence[Path]) -> int:
    """Return how many of the files' pages are in memory, by mincore(2)."""
    libc, cached = ctypes.CDLL(None, use_errno=True), 0
    for path in paths:
        mapped = np.memmap(path, np.uint8, "r")
        pages = np.zeros(-(-len(mapped) // mmap.PAGESIZE), np.uint8)
        address, length = ctypes.c_void_p(mapped.ctypes.data), ctypes.c_size_t(len(mapped))
        if libc.mincore(address, length, ctypes.c_void_p(pages.ctypes.data)):
            raise OSError(ctypes.get_errno(), "mincore", str(path))
        cached += int((pages & 1).sum())
    return cached


class Windows(IterableDataset[Tensor]):
    """The usual way with worker processes: each opens the store, takes every n-th window and yields its batches."""

    def __init__(self, folder: Path, num_rows: int):
        self.folder, self.num_rows, self.epoch = folder, num_rows, 0
        self._store: Any = None

    def __iter__(self) -> Iterator[Tensor]:
        """Yield this worker's share of the next epoch, as stored: half the bytes to hand over."""
        worker = get_worker_info()
        if self._store is None:
            self._store = open_targets(self.folder)
            self._buffers = self._store.field_buffers("train", ARRAY, WINDOW)
        windows = windowed_order(0, self.epoch, self.num_rows, BLOCK_ROWS, WINDOW)
        self.epoch += 1
        for positions in windows[worker.id :: worker.num_workers]:
            yield from self._window(positions)

    def _window(self, positions: np.ndarray) -> Iterator[Tensor]:
        blocks, slot = np.unique(positions // BLOCK_ROWS, return_inverse=True)
        for place, index in enumerate(blocks):
            self._store.read_field_into(self._store.block("train", 0, int(index)), ARRAY, self._buffers, place)
        rows = torch.from_numpy(slot * BLOCK_ROWS + positions % BLOCK_ROWS)
        return (self._buffers[""][chosen] for chosen in rows.tensor_split(-(-len(rows) // BATCH)))


def check_equal(reading: Reading) -> None:
    """Assert that the store, both readings of the map and a loader's own store show the same numbers in one order."""
    ways = (reading.store, reading.block_by_block, reading.row_by_row)
    sources: list[Source] = [stream(open_targets(reading.folder)), *(way(reading.log_probs) for way in ways)]
    for shown in zip(*(batches(source, 0) for source in sources), strict=True):
        assert all(torch.equal(shown[0], other) for other in shown[1:])


def against_memmap(reading: Reading) -> None:
    """Print the store's speed ÷ that of a memmap read unverified, warm and cold."""
    makers = {"block by block": reading.block_by_block, "row by row": reading.row_by_row}
    for way, make in makers.items():
        for what, decode in {"fp16 as stored": as_stored, "log-probabilities": reading.log_probs}.items():
            ours, theirs = reading.store(decode), make(decode)
            first = [partial(reading.first_epoch, maker, decode) for maker in (make, reading.store)]
            cases = {
                f"warm, first epoch, {what}": (first, "goal >= 0.5"),
                f"warm, later epochs, {what}": ([partial(reading.epoch, s) for s in (theirs, ours)], "goal >= 0.5"),
                f"cold, {what}": ([partial(reading.cold_epoch, s) for s in (theirs, ours)], "goal >= 0.8"),
            }
            for case, (pair, goal) in cases.items():
                try:
                    show(f"{case}: ÷ memmap, {way}", alternate(*pair, REPEATS), goal)
                except RuntimeError as error:
                    print(f"{f'{case}: ÷ memmap, {way}':<70} not run: {error}", flush=True)


def against_workers(reading: Reading) -> None:
    """Print the store's speed ÷ that of a DataLoader with two lasting workers over the same store."""
    dataset = Windows(reading.folder, reading.num_rows)
    loader = DataLoader(dataset, batch_size=None, num_workers=2, persistent_workers=True, prefetch_factor=4)
    for what, decode in {"fp16 as stored": as_stored, "log-probabilities": reading.log_probs}.items():
        ours = reading.store(decode)

        def theirs(decode: Decode = decode) -> float:
            shown: list[int] = []
            took = seconds(lambda: shown.extend(len(decode("train", {"": batch})) for batch in loader))
            assert sum(shown) == reading.num_rows
            return took

        ratios = alternate(theirs, partial(reading.epoch, ours), REPEATS)
        show(f"warm, later epochs, {what}: ÷ DataLoader, 2 workers", ratios, "goal >= 5")


def against_peers(reading: Reading, scratch: Path, peers: Peers) -> None:
    """Print the store's speed a row ÷ that of other formats' own loaders, fp16 as stored on both sides."""
    ours = reading.store(as_stored)
    for name in READERS:
        folder, label = scratch / name.split()[0], f"warm, later epochs, fp16 as stored: ÷ {name}"
        try:
            peers.prepare(name, folder)
            pair = partial(peers.read, name, folder), lambda: reading.epoch(ours) / reading.num_rows
            show(label, alternate(*pair, REPEATS))
        except PeerError as error:
            print(f"{label:<70} not run: {error}", flush=True)


def report(rows: np.ndarray, rows_file: Path, scratch: Path, peers: Peers) -> None:
    """Print every comparison of reading."""
    print(
        f"\nreading for training, batches of 256 from windows of {WINDOW} blocks: speed of the store ÷ that of others"
    )
    with without_fsync():
        fill_store(open_writer(scratch / "store", len(rows)), rows)
    reading = Reading(rows_file, scratch / "store", len(rows))
    check_equal(reading)
    against_memmap(reading)
    against_workers(reading)
    against_peers(reading, scratch, peers)
