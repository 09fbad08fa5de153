"""Rows of a target store joined with replayed views: what a student trains on. No teacher is anywhere near.

What fits the memory budget is held whole and shuffled globally. Beyond it, blocks stream through a shuffle window
that one background thread fills. Either way the order is a pure function of (seed, epoch, step).
"""

from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from pipeline.errors import StaleStoreError
from pipeline.store import Store, TargetStore
from pipeline.views import Batch, Replayer, ViewLoader
from pipeline.views.order import windowed_order
from pipeline.views.replay import Samples


class Identified(Samples, Protocol):
    """Samples that know their data set's fingerprint."""

    @property
    def fingerprint(self) -> str:
        """The data set's sha256."""
        ...


class Resident:
    """Targets of every view in memory, as stored: int64 positions [B] -> float32 [B, ..., C]."""

    def __init__(self, targets: TargetStore, array: str, split: str):
        self._codec = targets.codec
        self._views = [targets.read(split, array, view) for view in range(targets.layout.splits[split][0])]

    def order(self, epoch: int) -> np.ndarray | None:
        """Return None: any order will do."""
        return None

    def rows(self, view: int, positions: np.ndarray) -> Tensor:
        """Return targets of rows."""
        return self._codec.decode(self._views[view][positions])


class Streamed:
    """Targets read block by block, one window ahead of where the student is.

    At most two windows are in memory: the one being shown and the one being read.
    """

    def __init__(self, targets: TargetStore, array: str, split: str, *, seed: int, window: int):
        self._targets, self._array, self._split, self._seed, self._window = targets, array, split, seed, window
        self._samples = targets.layout.splits[split][1]
        self._size = targets.layout.block_rows
        self._blocks: dict[tuple[int, int], Future[np.ndarray]] = {}
        self._reader = ThreadPoolExecutor(1, thread_name_prefix="stillroom-reader")
        self._windows: list[np.ndarray] = []
        self._window_of: dict[int, int] = {}

    def order(self, epoch: int) -> np.ndarray:
        """Return an epoch's positions, window by window: int64 [N]."""
        windows = windowed_order(self._seed, epoch, self._samples, self._size, self._window)
        self._windows = [np.unique(rows // self._size) for rows in windows]
        self._window_of = {int(block): n for n, blocks in enumerate(self._windows) for block in blocks}
        return np.concatenate(windows)

    def rows(self, view: int, positions: np.ndarray) -> Tensor:
        """Return targets of rows, waiting for blocks that are not there yet."""
        wanted = [int(block) for block in np.unique(positions // self._size)]
        self._read_ahead(view, {self._window_of[block] for block in wanted})
        stored = {block: self._blocks[view, block].result() for block in wanted}
        first = stored[wanted[0]]
        out = np.empty((len(positions), *first.shape[1:]), first.dtype)
        for block, values in stored.items():
            mine = positions // self._size == block
            out[mine] = values[positions[mine] - block * self._size]
        return self._targets.codec.decode(out)

    def _read_ahead(self, view: int, shown: set[int]) -> None:
        """Hold the windows being shown and the one after; let go of the rest."""
        held = {*shown, max(shown) + 1} & set(range(len(self._windows)))
        wanted = [(view, int(block)) for number in sorted(held) for block in self._windows[number]]
        self._blocks = {key: future for key, future in self._blocks.items() if key in wanted}
        for key in wanted:
            if key not in self._blocks:
                block = self._targets.block(self._split, *key)
                self._blocks[key] = self._reader.submit(self._targets.read_block, block, self._array)


class TargetLoader:
    """Batches of a target store with `inputs`, `labels` and `target_log_probs`; one view of each sample an epoch.

    Ten lines in anybody's own loop: `for batch in loader: loss = kl_divergence(model(batch.inputs),
    batch.target_log_probs, temperature=1.0)`. `state_dict()` goes on with the very next batch.

    `memory_budget` is in bytes; `window` is in blocks; `check_rows` rows of each view are replayed and compared when
    the store is opened (all of them by `stillroom verify --replay`).

    Raises: StaleStoreError when the samples, the plan or the replay code are not those the teachers saw.
    """

    def __init__(
        self,
        targets: TargetStore,
        samples: Identified,
        *,
        batch_size: int,
        seed: int = 0,
        temperature: float = 1.0,
        split: str = "train",
        memory_budget: int = 2 << 30,
        window: int = 8,
        check_rows: int = 256,
        device: torch.device | str = "cpu",
    ):
        self.targets = targets
        self.replayer = open_replayer(targets, samples, device=device, check_rows=check_rows)
        array = targets.array_at(temperature)
        views, count = targets.layout.splits[split]
        self.is_streaming = targets.layout.arrays[array].row_bytes * views * count > memory_budget
        self._source: Resident | Streamed = (
            Streamed(targets, array, split, seed=seed, window=window)
            if self.is_streaming
            else Resident(targets, array, split)
        )
        self._device = torch.device(device)
        self._views = ViewLoader(self.replayer, split, batch_size=batch_size, seed=seed, order=self._source.order)

    def __len__(self) -> int:
        """Return the batches of an epoch."""
        return len(self._views)

    def __iter__(self) -> Iterator[Batch]:
        """Yield what is left of the current epoch."""
        for batch in self._views:
            rows = self._source.rows(batch.view, batch.positions)
            yield replace(batch, target_log_probs=rows.to(self._device).log_softmax(-1))

    def state_dict(self) -> dict[str, int]:
        """Return where the loader is: seed, epoch, step."""
        return self._views.state_dict()

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Go to where another loader was."""
        self._views.load_state_dict(state)


def open_replayer(
    targets: Store, samples: Identified, *, device: torch.device | str = "cpu", check_rows: int | None = 256
) -> Replayer:
    """Return a replayer of the store's plan, after proof on `check_rows` rows a view (None: all) that it replays.

    Raises: StaleStoreError naming what changed.
    """
    plan = targets.plan()
    if samples.fingerprint != plan.dataset:
        raise StaleStoreError(
            f"{targets.folder}: made from data set {plan.dataset[:12]}; found {samples.fingerprint[:12]} (another "
            f"picture, label, class or order); open the data it was made from, or run 'stillroom logits' again"
        )
    replayer = Replayer(plan, samples, device=device)
    for split, (views, count) in targets.layout.splits.items():
        step = 1 if check_rows is None else max(1, count // check_rows)
        for view in range(views):
            check_replay(targets, replayer, split, view, np.arange(0, count, step))
    return replayer


def check_replay(targets: Store, replayer: Replayer, split: str, view: int, positions: np.ndarray) -> None:
    """Raise StaleStoreError unless these rows replay to the digests in the store."""
    stored = targets.read(split, "row_digest", view)[positions]
    wrong = np.flatnonzero(stored != replayer.digests(split, view, positions))
    if len(wrong):
        rows = positions[wrong]
        raise StaleStoreError(
            f"{targets.folder}: row_digest of {split} view {view}: {len(wrong)} of {len(positions)} rows checked do "
            f"not replay (first: row {rows[0]}); pixels, transforms or their code changed; run 'stillroom logits' again"
        )
