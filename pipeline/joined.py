"""Rows of several teacher stores side by side: what a fusion is fitted on and what it fuses, block by block."""

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pipeline.errors import StaleStoreError, StillroomError
from pipeline.fusion import Outputs
from pipeline.store import Block, TeacherStore
from pipeline.tasks import task_of
from pipeline.views import OUT_OF_FOLD, RowKeys, Split, ViewPlan

CALIBRATION, TRAIN = "calibration", "train"
FIT_ON = (CALIBRATION, OUT_OF_FOLD, TRAIN)  # the rows that a target may be fitted on, the last only by saying so
FITTED_VALUES = 1 << 24  # logits of all teachers that it is fitted on, 64 MB: evenly spaced rows beyond


def check_together(teachers: Sequence[TeacherStore]) -> None:
    """Raise StillroomError unless all stores answer the same question on the same rows."""
    first = teachers[0]
    for other in teachers[1:]:
        if other.classes != first.classes:
            raise StillroomError(
                f"{other.folder}: {len(other.classes)} classes {list(other.classes)[:4]}...; expected the "
                f"{len(first.classes)} of {first.name!r} in the same order; dump the teachers on one data set"
            )
        if other.attributes["plan"] != first.attributes["plan"]:
            raise StaleStoreError(
                f"{other.folder}: made from another view plan than {first.folder}; expected one plan for all; "
                f"run 'stillroom logits' again"
            )
        if other.attributes.get("scale") != first.attributes.get("scale"):
            raise StaleStoreError(
                f"{other.folder}: numbers on another scale than {first.folder}; expected one for all; run 'stillroom "
                f"logits' again"
            )
        if other.attributes.get("task") != first.attributes.get("task"):
            raise StaleStoreError(
                f"{other.folder}: answers to another question than {first.folder}; expected one for all; run "
                f"'stillroom logits' again"
            )


def calibrated(store: TeacherStore, logits: Tensor, calibrate: bool) -> Tensor:
    """Return logits divided by the teacher's fitted temperature, that of the output; numbers have none."""
    if not calibrate or store.is_real:
        return logits
    fitted = store.manifest.details["temperature"]
    return logits / (fitted[store.field] if isinstance(fitted, Mapping) else fitted)


def fitting_rows(
    teachers: Sequence[TeacherStore], calibrate: bool, layers: Sequence[str] = (), fit_on: str = CALIBRATION
) -> Outputs:
    """Return what all teachers say of the calibration rows: of evenly spaced ones, where they are very many.

    Or, by `fit_on`, of the rows out of fold, or of the labelled train rows in their first view. Raises: StillroomError
    where the stores have no such rows with labels.
    """
    plan, first = teachers[0].plan(), teachers[0]
    _check_fitting_rows(teachers, plan, fit_on)
    split = plan.splits[fit_on]
    rows = split.labelled if fit_on == TRAIN else np.arange(len(split))
    values = len(teachers) * math.prod(first.output.shape)
    rows = rows[:: max(1, -(-len(rows) * values // FITTED_VALUES))]

    def parts() -> Iterator[Outputs]:
        for block in first.blocks(fit_on, 0):
            own = rows[(block.start <= rows) & (rows < block.stop)] - block.start
            yield stored_rows(teachers, plan, block, calibrate, layers)[torch.from_numpy(own)]
            if fit_on == OUT_OF_FOLD:  # others are looked at when they are fused
                same_rows(teachers, block, "row_digest")

    return join_outputs(parts(), len(rows))


def _check_fitting_rows(teachers: Sequence[TeacherStore], plan: ViewPlan, fit_on: str) -> None:
    without = [store.name for store in teachers if fit_on not in store.layout.splits]
    if without:
        raise StillroomError(
            f"fusion: found no rows out of fold in the stores of {without}; expected them to fit on; set logits.folds, "
            f"e.g. to 5, and run 'stillroom logits'"
        )
    if plan.is_mixed(fit_on, 0):
        raise StillroomError(
            f"fusion: found every view of {fit_on} mixed; expected one whose rows have a label of their own to fit on; "
            f"lower views.mix.views, or fit on {CALIBRATION!r}"
        )


def join_outputs(parts: Iterable[Outputs], num_rows: int) -> Outputs:
    """Return the rows of several blocks as one's, so many in all; no part is held beside the next."""
    whole: Outputs | None = None
    start = 0
    for part in parts:
        if whole is None:
            whole = _room(part, num_rows)
        own = slice(start, start + len(part))
        for room, values in zip(_arrays_of(whole), _arrays_of(part), strict=True):
            room[own] = values
        start = own.stop
    assert whole is not None
    return whole


def _room(part: Outputs, num_rows: int) -> Outputs:
    """Return room for so many rows such as these."""
    teachers, _, *tail = part.logits.shape
    features = {
        layer: tuple(each.new_empty(num_rows, each.shape[1]) for each in all_) for layer, all_ in part.features.items()
    }
    keys = None if part.keys is None else replace(part.keys, ids=np.empty(num_rows, part.keys.ids.dtype))
    labels = part.labels.new_empty(num_rows, *part.labels.shape[1:])
    targets = None if part.targets is None else part.targets.new_empty(num_rows, *part.targets.shape[1:])
    return Outputs(part.logits.new_empty(teachers, num_rows, *tail), labels, features, keys, targets)


def _arrays_of(outputs: Outputs) -> list[Any]:
    """Return everything that rows are made of, rows along the first axis of each."""
    more: list[Any] = [] if outputs.keys is None else [outputs.keys.ids]
    more += [] if outputs.targets is None else [outputs.targets]
    return [*outputs.logits, outputs.labels, *(each for all_ in outputs.features.values() for each in all_), *more]


@dataclass(frozen=True, eq=False)
class StoredRows:
    """What all teachers stored of a block's rows: decoded a few at a time, for they take twice the memory or more.

    `stored` are each teacher's parts of the logits, in the order of `stores`; the rest is as in Outputs.
    """

    stores: Sequence[TeacherStore]
    split: str
    stored: Sequence[Mapping[str, Tensor]]
    labels: Tensor
    features: Mapping[str, tuple[Tensor, ...]]
    keys: RowKeys
    calibrate: bool
    targets: Tensor | None = None

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def num_teachers(self) -> int:
        """T."""
        return len(self.stores)

    @property
    def num_values(self) -> int:
        """The numbers that each teacher says of a row."""
        return math.prod(self.stores[0].output.shape)

    def __getitem__(self, rows: slice | Tensor) -> Outputs:
        """Return what all teachers say of some of the rows."""
        chosen = rows if isinstance(rows, slice) else rows.numpy()
        return Outputs(
            torch.stack(
                [self._logits(store, parts, rows) for store, parts in zip(self.stores, self.stored, strict=True)]
            ),
            self.labels[rows],
            {layer: tuple(each[rows] for each in all_) for layer, all_ in self.features.items()},
            replace(self.keys, ids=self.keys.ids[chosen]),
            None if self.targets is None else self.targets[rows],
        )

    def _logits(self, store: TeacherStore, parts: Mapping[str, Tensor], rows: slice | Tensor) -> Tensor:
        some = {name: values[rows] for name, values in parts.items()}
        return calibrated(store, store.codec_in(self.split).decode(some, store.num_classes), self.calibrate)


def stored_rows(
    teachers: Sequence[TeacherStore], plan: ViewPlan, block: Block, calibrate: bool, layers: Sequence[str] = ()
) -> StoredRows:
    """Return what all teachers stored of a block's rows, and what is true of these, labels -1 on views that are mixed.

    It is what they say at the output that the stores are looked at.
    """
    split = plan.splits[block.split]
    labels, targets = _truth(teachers[0], split, slice(block.start, block.stop))
    if plan.is_mixed(block.split, block.view):
        labels = torch.full_like(labels, -1)
    return StoredRows(
        teachers,
        block.split,
        [_logits_at(store, block) for store in teachers],
        labels,
        {layer: _features_of(teachers, block, layer) for layer in layers},
        RowKeys(plan.seed, block.view, split.ids[block.start : block.stop]),
        calibrate,
        targets,
    )


def _truth(store: TeacherStore, split: Split, rows: slice) -> tuple[Tensor, Tensor | None]:
    """Return the labels [n, ...] of some rows at the output of a store, or, of numbers, a label a row and targets."""
    labels = torch.from_numpy(split.labels[rows])
    targets = None if split.targets is None else torch.from_numpy(split.targets[rows])
    truth = task_of(store.attributes).truth_at(store.field, labels, targets)
    return (labels, truth) if store.is_real else (truth, None)


def held_out_rows(
    teachers: Sequence[TeacherStore], split: str, calibrate: bool, layers: Sequence[str] = ()
) -> Iterator[StoredRows]:
    """Yield what all teachers stored of a held-out split, block by block."""
    plan = teachers[0].plan()
    return (stored_rows(teachers, plan, block, calibrate, layers) for block in teachers[0].blocks(split, 0))


def _features_of(teachers: Sequence[TeacherStore], block: Block, layer: str) -> tuple[Tensor, ...]:
    """Return each teacher's features: [B, 0] of one without the layer, as a forest is. Raises where none has it."""
    having = [store for store in teachers if layer in store.feature_layers] or teachers
    none = torch.empty(len(block), 0)
    return tuple(_features_at(store, block, layer) if store in having else none for store in teachers)


def _logits_at(store: TeacherStore, block: Block) -> dict[str, Tensor]:
    """Return the parts of a store's logits on the rows of another store's block: their blocks need not coincide."""
    own, place = _own_blocks(store, block)
    read = [store.field_block(each, store.field) for each in own]
    return {name: _one([parts[name] for parts in read])[place] for name in read[0]}


def _features_at(store: TeacherStore, block: Block, layer: str) -> Tensor:
    own, place = _own_blocks(store, block)
    return _one([store.features_block(each, layer) for each in own])[place]


def _rows(store: TeacherStore, block: Block, name: str) -> np.ndarray:
    own, place = _own_blocks(store, block)
    return np.concatenate([store.read_block(each, name) for each in own])[place]


def _own_blocks(store: TeacherStore, block: Block) -> tuple[list[Block], slice]:
    """Return the blocks of a store that hold the rows of another's block, and where among theirs these rows are."""
    size = store.layout.block_rows
    indices = range(block.start // size, -(-block.stop // size))
    start = block.start - indices[0] * size
    return [store.block(block.split, block.view, index) for index in indices], slice(start, start + len(block))


def _one(parts: Sequence[Tensor]) -> Tensor:
    """Return parts as one, without a copy where they are one."""
    return parts[0] if len(parts) == 1 else torch.cat(list(parts))


def same_rows(teachers: Sequence[TeacherStore], block: Block, name: str) -> np.ndarray:
    """Return what all teacher stores say of a block's rows. Raises StaleStoreError when they differ."""
    first, *others = (_rows(store, block, name) for store in teachers)
    for store, values in zip(teachers[1:], others, strict=True):
        if not np.array_equal(first, values, equal_nan=first.dtype.kind == "f"):
            raise StaleStoreError(
                f"{store.folder}: {name} of {block.split} view {block.view} rows {block.start}-{block.stop} differ "
                f"from those of {teachers[0].name!r}; expected the same rows; run 'stillroom logits' again"
            )
    return first
