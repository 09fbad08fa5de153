"""Rows of stores joined with replayed views: what a student trains on. No teacher is anywhere near.

`TargetLoader` joins what a fusion made of the teachers, `TeacherLoader` what each of them said: T times the bytes, for
strategies that need to see the student.

What fits the memory budget is held whole and shuffled globally. Beyond it, blocks stream through a shuffle window
that one background thread fills. Either way the order is a pure function of (seed, epoch, step).
"""

import math
from collections.abc import Collection, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from pipeline.errors import StaleStoreError, StillroomError
from pipeline.joined import calibrated, check_together
from pipeline.sparse import SparseTargets
from pipeline.store import Store, TargetStore, TeacherStore
from pipeline.views import Batch, Replayer, ViewLoader, ViewPlan, imported_code
from pipeline.views.order import windowed_order
from pipeline.views.replay import Samples


class Identified(Samples, Protocol):
    """Samples that know their data set's fingerprint."""

    @property
    def fingerprint(self) -> str:
        """The data set's sha256."""
        ...


Rows = Tensor | SparseTargets  # what a loss learns from
LOGITS = "logits"  # the field of a teacher store


class Resident:
    """A field of every view in memory, as stored: int64 positions [B] -> what a loss learns from."""

    def __init__(self, store: TargetStore | TeacherStore, field: str, split: str, device: torch.device):
        self._store, self._split, self._device = store, split, device
        self._views = [store.read_field(split, field, view) for view in range(store.layout.splits[split][0])]

    def order(self, epoch: int) -> np.ndarray | None:
        """Return None: any order will do."""
        return None

    def rows(self, view: int, positions: np.ndarray) -> Rows:
        """Return what is kept of rows, moved as it is stored and decoded where it is used."""
        chosen = torch.from_numpy(positions)
        stored = {part: _take(values, chosen).to(self._device) for part, values in self._views[view].items()}
        return _decode(self._store, self._split, stored)


class Streamed:
    """A field read block by block, one window ahead of where the student is.

    A background thread reads each window's chunks into one buffer and checks them; the student's thread picks its rows
    from there. Two windows are in memory, in two buffers used in turn: the one being shown and the one being read.

    A window is `window` times `frame` rows: a multiple of the store's own blocks, by default one of them. Stores with
    blocks of other sizes show their rows in one order when they have one frame.
    """

    def __init__(
        self,
        store: TargetStore | TeacherStore,
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
        return _decode(self._store, self._split, {part: values.to(self._device) for part, values in stored.items()})

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


def _decode(store: TargetStore | TeacherStore, split: str, stored: Mapping[str, Tensor]) -> Rows:
    """Return what a loss learns from: a target store's targets; a teacher's dense logits, up to a constant a row."""
    if isinstance(store, TeacherStore):
        return store.codec_in(split).decode(stored, store.num_classes)
    return store.decode(split, stored)


def _take(values: Tensor, rows: Tensor) -> Tensor:
    """Return rows of a tensor of any dtype: indexing knows no uint16 and uint32, their bytes it does."""
    return _signed(values).index_select(0, rows).view(values.dtype)


def _signed(values: Tensor) -> Tensor:
    signed = {torch.uint16: torch.int16, torch.uint32: torch.int32}.get(values.dtype)
    return values if signed is None else values.view(signed)


class TargetLoader:
    """Batches of a target store with `inputs`, `labels` and `target_log_probs`; one view of each sample an epoch.

    Ten lines in anybody's own loop: `for batch in loader: loss = kl_divergence(model(batch.inputs),
    batch.target_log_probs, temperature=1.0)`. `state_dict()` goes on with the very next batch.

    `memory_budget` is in bytes; `window` is in blocks; `check_rows` rows of each view are replayed and compared when
    the store is opened (all of them by `stillroom verify --replay`). `imports` names the code at import paths that the
    store's views may be made by: a store may come from a stranger, and only you can say that you know it.

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
        window: int = 4,
        check_rows: int = 256,
        device: torch.device | str = "cpu",
        imports: Collection[str] = (),
    ):
        self.targets = targets
        self.replayer = open_replayer(targets, samples, device=device, check_rows=check_rows, imports=imports)
        field, device = targets.field_at(temperature), torch.device(device)
        self.is_streaming = targets.field_bytes(field, split) > memory_budget
        self._source: Resident | Streamed = (
            Streamed(targets, field, split, device, seed=seed, window=window)
            if self.is_streaming
            else Resident(targets, field, split, device)
        )
        self._views = ViewLoader(self.replayer, split, batch_size=batch_size, seed=seed, order=self._source.order)

    def __len__(self) -> int:
        """Return the batches of an epoch."""
        return len(self._views)

    def __iter__(self) -> Iterator[Batch]:
        """Yield what is left of the current epoch."""
        for batch in self._views:
            yield replace(batch, target_log_probs=self._source.rows(batch.view, batch.positions))

    def state_dict(self) -> dict[str, int]:
        """Return where the loader is: seed, epoch, step."""
        return self._views.state_dict()

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Go to where another loader was."""
        self._views.load_state_dict(state)


class TeacherLoader:
    """Batches of teacher stores with `inputs`, `labels` and `teacher_logits` [T, B, ..., C]; otherwise a TargetLoader.

    Each teacher's logits are divided by its fitted temperature when `calibrate`. What top-k left out shares its mass
    evenly; random draws are refused, for only what is linear in them is right on average. The order is the
    TargetLoader's, up to the size of the blocks that are shuffled where the stores are streamed; `memory_budget` is for
    all stores together.

    Raises: StillroomError and StaleStoreError when the stores don't go together, and as TargetLoader does.
    """

    def __init__(
        self,
        stores: Sequence[TeacherStore],
        samples: Identified,
        *,
        batch_size: int,
        seed: int = 0,
        calibrate: bool = True,
        split: str = "train",
        memory_budget: int = 2 << 30,
        window: int = 4,
        check_rows: int = 256,
        device: torch.device | str = "cpu",
        imports: Collection[str] = (),
    ):
        _check_dense(stores, split)
        check_together(stores)
        self.stores, self.calibrate = list(stores), calibrate
        self.replayer = open_replayer(stores[0], samples, device=device, check_rows=check_rows, imports=imports)
        for store in stores[1:]:
            _check_rows(store, self.replayer, check_rows)
        device = torch.device(device)
        self.is_streaming = sum(store.field_bytes(LOGITS, split) for store in stores) > memory_budget
        frame = math.lcm(*(store.layout.block_rows for store in stores))
        self._sources: list[Resident | Streamed] = [
            Streamed(store, LOGITS, split, device, seed=seed, window=window, frame=frame)
            if self.is_streaming
            else Resident(store, LOGITS, split, device)
            for store in stores
        ]
        self._views = ViewLoader(self.replayer, split, batch_size=batch_size, seed=seed, order=self._order)

    def _order(self, epoch: int) -> np.ndarray | None:
        """Return the one order that all sources have in an epoch."""
        orders = [source.order(epoch) for source in self._sources]  # each prepares its windows as it is asked
        return orders[0]

    def __len__(self) -> int:
        """Return the batches of an epoch."""
        return len(self._views)

    def __iter__(self) -> Iterator[Batch]:
        """Yield what is left of the current epoch."""
        for batch in self._views:
            yield replace(batch, teacher_logits=self._logits(batch))

    def _logits(self, batch: Batch) -> Tensor:
        said = []
        for store, source in zip(self.stores, self._sources, strict=True):
            rows = source.rows(batch.view, batch.positions)
            assert isinstance(rows, Tensor)
            said.append(calibrated(store, rows, self.calibrate))
        return torch.stack(said)

    def state_dict(self) -> dict[str, int]:
        """Return where the loader is: seed, epoch, step."""
        return self._views.state_dict()

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Go to where another loader was."""
        self._views.load_state_dict(state)


def _check_dense(stores: Sequence[TeacherStore], split: str) -> None:
    if not stores:
        raise StillroomError("teachers: found no store; expected at least one; name teachers")
    for store in stores:
        if store.codec_in(split).kind == "sampled":
            raise StillroomError(
                f"{store.folder}: its logits are kept as random draws; expected another codec, for whatever is not "
                f"linear in draws is wrong even on average; set logits.codec and run 'stillroom logits' again"
            )


def open_replayer(
    targets: Store,
    samples: Identified,
    *,
    device: torch.device | str = "cpu",
    check_rows: int | None = 256,
    imports: Collection[str] = (),
) -> Replayer:
    """Return a replayer of the store's plan, after proof on `check_rows` rows a view (None: all) that it replays.

    Raises: StaleStoreError naming what changed; StillroomError when views are made by code outside `imports`.
    """
    plan = targets.plan()
    if strange := sorted(set(imported_code(plan.transforms)) - set(imports)):
        raise StillroomError(
            f"{targets.folder}: its views are made by code that it names, {strange}; expected Stillroom's transforms, "
            f"torchvision's, or code you named; if you know that code, pass imports={strange}"
        )
    if samples.fingerprint != plan.dataset:
        raise StaleStoreError(
            f"{targets.folder}: made from data set {plan.dataset[:12]}; found {samples.fingerprint[:12]} (another "
            f"picture, label, class or order); open the data it was made from, or run 'stillroom logits' again"
        )
    _check_samples(targets, plan, samples)
    replayer = Replayer(plan, samples, device=device)
    _check_rows(targets, replayer, check_rows)
    return replayer


def _check_rows(targets: Store, replayer: Replayer, check_rows: int | None) -> None:
    """Replay `check_rows` evenly spaced rows of each view, all for None."""
    for split, (views, count) in targets.layout.splits.items():
        step = 1 if check_rows is None else max(1, count // check_rows)
        for view in range(views):
            check_replay(targets, replayer, split, view, np.arange(0, count, step))


def _check_samples(targets: Store, plan: ViewPlan, samples: Identified) -> None:
    last = np.array([max(split.ids.max() for split in plan.splits.values())])
    try:
        samples.source_digests(last)
    except IndexError:
        is_there = False
    else:
        is_there = len(plan.mean) == samples.shape[0]
    if not is_there:
        raise StaleStoreError(
            f"{targets.folder}: speaks of sample {last[0]} and pictures of {len(plan.mean)} channels; expected samples "
            f"of this data set; don't use it, or run 'stillroom logits' again"
        )


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
