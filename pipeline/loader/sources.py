"""Rows of one field of a store, by position: from memory, or from blocks that stream through a shuffle window."""

from collections.abc import Collection
from concurrent.futures import Future, ThreadPoolExecutor

import numpy as np
import torch
from torch import Tensor

from pipeline.sparse import SparseTargets
from pipeline.store import Store
from pipeline.views.order import windowed_order

Rows = Tensor | SparseTargets  # what a loss learns from


class Resident:
    """A field of every view in memory, as stored: int64 positions [B] -> what a loss learns from."""

    def __init__(self, store: Store, field: str, split: str, device: torch.device):
        self._store, self._field, self._split, self._device = store, field, split, device
        self._views = [store.read_field(split, field, view) for view in range(store.layout.splits[split][0])]

    def order(self, epoch: int) -> np.ndarray | None:
        """Return None: any order will do."""
        return None

    def rows(self, view: int, positions: np.ndarray) -> Rows:
        """Return what is kept of rows, moved as it is stored and decoded where it is used."""
        chosen = torch.from_numpy(positions)
        stored = {part: _take(values, chosen).to(self._device) for part, values in self._views[view].items()}
        return self._store.decode_field(self._field, self._split, stored)


class Streamed:
    """A field read block by block, one window ahead of where the student is.

    A background thread reads each window's chunks into one buffer and checks them; the student's thread picks its rows
    from there. Two windows are in memory, in two buffers used in turn: the one being shown and the one being read.

    A window is `window` times `frame` rows: a multiple of the store's own blocks, by default one of them. Stores with
    blocks of other sizes show their rows in one order when they have one frame.
    """

    def __init__(
        self,
        store: Store,
        field: str,
        split: str,
        device: torch.device,
        *,
        seed: int,
        window: int,
        frame: int | None = None,
    ):
        self._store, self._field, self._split, self._device = store, field, split, device
        self._seed, self._window = seed, window
        self._samples, self._size = store.layout.splits[split][1], store.layout.block_rows
        self._frame = frame or self._size
        self._rows = store.layout.chunk_rows(split)
        self._reader = ThreadPoolExecutor(1, thread_name_prefix="stillroom-reader")
        self._read: dict[tuple[int, int], Future[dict[str, Tensor]]] = {}
        self._spare: list[dict[str, Tensor]] = []
        self._windows: list[np.ndarray] = []  # the blocks of each
        self._place = np.zeros((2, -(-self._samples // self._size)), np.int64)  # window and slot there of each block

    def order(self, epoch: int) -> np.ndarray:
        """Return an epoch's positions, window by window: int64 [N]."""
        windows = windowed_order(self._seed, epoch, self._samples, self._frame, self._window)
        self._windows = [np.unique(rows // self._size) for rows in windows]
        for number, blocks in enumerate(self._windows):
            self._place[:, blocks] = [np.full(len(blocks), number), np.arange(len(blocks))]
        self._let_go({})
        return np.concatenate(windows)

    def rows(self, view: int, positions: np.ndarray) -> Rows:
        """Return what is kept of rows, waiting for blocks that are not there yet."""
        block, row = np.divmod(positions, self._size)
        number, slot = self._place[:, block]
        low, high = int(number.min()), int(number.max())  # a batch lies in one window, or in two at their border
        shown = set(range(low, high + 1))
        self._read_ahead(view, shown)
        index = torch.from_numpy(slot * self._rows + row)
        if low == high:
            stored = {part: _take(values, index) for part, values in self._read[view, low].result().items()}
        else:
            stored = self._spanning(view, number, index)
        moved = {part: values.to(self._device) for part, values in stored.items()}
        return self._store.decode_field(self._field, self._split, moved)

    def _spanning(self, view: int, number: np.ndarray, index: Tensor) -> dict[str, Tensor]:
        """Return rows of several windows, by part: each row's window and place there."""
        out: dict[str, Tensor] = {}
        for window in np.unique(number):
            mine = torch.from_numpy(number == window)
            for part, values in self._read[view, int(window)].result().items():
                rows = out.setdefault(part, torch.empty((len(index), *values.shape[1:]), dtype=values.dtype))
                _signed(rows)[mine] = _signed(_take(values, index[mine]))
        return out

    def _read_ahead(self, view: int, shown: set[int]) -> None:
        """Hold the windows being shown and the one after; let go of the rest."""
        held = sorted({*shown, max(shown) + 1} & set(range(len(self._windows))))
        self._let_go({(view, number) for number in held})
        for number in held:
            if (view, number) not in self._read:
                spare = self._spare.pop() if self._spare else None
                self._read[view, number] = self._reader.submit(self._read_window, view, number, spare)

    def _let_go(self, held: Collection[tuple[int, int]]) -> None:
        for key in [key for key in self._read if key not in held]:
            window = self._read.pop(key)
            if not window.cancel() and window.exception() is None and len(self._spare) < 2:
                self._spare.append(window.result())

    def _read_window(self, view: int, number: int, spare: dict[str, Tensor] | None) -> dict[str, Tensor]:
        """Return the chunks of a window's blocks one behind the other, by part."""
        blocks = min(self._window * (self._frame // self._size), len(self._place[0]))
        buffers = spare or self._store.field_buffers(self._split, self._field, blocks)
        for slot, index in enumerate(self._windows[number]):
            block = self._store.block(self._split, view, int(index))
            self._store.read_field_into(block, self._field, buffers, slot)
        return buffers


def _take(values: Tensor, rows: Tensor) -> Tensor:
    """Return rows of a tensor of any dtype: indexing knows no uint16 and uint32, their bytes it does."""
    return _signed(values).index_select(0, rows).view(values.dtype)


def _signed(values: Tensor) -> Tensor:
    signed = {torch.uint16: torch.int16, torch.uint32: torch.int32}.get(values.dtype)
    return values if signed is None else values.view(signed)
