"""Rows of several teacher stores side by side: what a fusion is fitted on and what it fuses, block by block."""

from collections.abc import Callable, Iterator, Sequence

import numpy as np
import torch
from torch import Tensor

from pipeline.errors import StaleStoreError, StillroomError
from pipeline.fusion import Outputs
from pipeline.store import Block, TeacherStore
from pipeline.views import OUT_OF_FOLD, RowKeys, ViewPlan

CALIBRATION, TRAIN = "calibration", "train"
FIT_ON = (CALIBRATION, OUT_OF_FOLD, TRAIN)  # the rows that a target may be fitted on, the last only by saying so
FITTED_VALUES = 1 << 24  # logits of all teachers that it is fitted on, 64 MB: evenly spaced rows beyond
EVERY = slice(None)


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


def calibrated(store: TeacherStore, logits: Tensor, calibrate: bool) -> Tensor:
    """Return logits divided by the teacher's fitted temperature."""
    return logits / store.manifest.details["temperature"] if calibrate else logits


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
    rows = rows[:: max(1, -(-len(rows) * len(teachers) * first.num_classes // FITTED_VALUES))]
    kept = []
    for block in first.blocks(fit_on, 0):
        own = rows[(block.start <= rows) & (rows < block.stop)] - block.start
        kept.append(outputs_of(teachers, plan, block, calibrate, layers, torch.from_numpy(own)))
        if fit_on == OUT_OF_FOLD:  # others are looked at when they are fused
            same_rows(teachers, block, "row_digest")
    return join_outputs(kept)


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


def join_outputs(parts: Sequence[Outputs]) -> Outputs:
    """Return the rows of several blocks as one's."""
    first = parts[0]
    keys = None
    if first.keys is not None:
        ids = [part.keys.ids for part in parts if part.keys is not None]
        keys = RowKeys(first.keys.seed, first.keys.view, np.concatenate(ids))
    features = {
        layer: tuple(torch.cat(each) for each in zip(*(part.features[layer] for part in parts), strict=True))
        for layer in first.features
    }
    logits = torch.cat([part.logits for part in parts], dim=1)
    return Outputs(logits, torch.cat([part.labels for part in parts]), features, keys)


def outputs_of(
    teachers: Sequence[TeacherStore],
    plan: ViewPlan,
    block: Block,
    calibrate: bool,
    layers: Sequence[str] = (),
    rows: slice | Tensor = EVERY,
) -> Outputs:
    """Return what all teachers say of a block's rows, or of some, and their labels: -1 on views that are mixed."""
    split = plan.splits[block.split]
    labels = torch.from_numpy(split.labels[block.start : block.stop])[rows]
    if plan.is_mixed(block.split, block.view):
        labels = torch.full_like(labels, -1)
    return Outputs(
        torch.stack([calibrated(store, _logits_at(store, block)[rows], calibrate) for store in teachers]),
        labels,
        {layer: tuple(each[rows] for each in _features_of(teachers, block, layer)) for layer in layers},
        RowKeys(plan.seed, block.view, split.ids[block.start : block.stop][rows]),
    )


def blocks_of_outputs(
    teachers: Sequence[TeacherStore], split: str, calibrate: bool, layers: Sequence[str] = ()
) -> Iterator[Outputs]:
    """Yield what all teachers say of a held-out split, block by block."""
    plan = teachers[0].plan()
    return (outputs_of(teachers, plan, block, calibrate, layers) for block in teachers[0].blocks(split, 0))


def _logits_at(store: TeacherStore, block: Block) -> Tensor:
    """Return a store's logits on the rows of another store's block: blocks of two stores need not coincide."""
    return _at(store, block, store.logits_block, torch.cat)


def _features_of(teachers: Sequence[TeacherStore], block: Block, layer: str) -> tuple[Tensor, ...]:
    """Return each teacher's features: [B, 0] of one without the layer, as a forest is. Raises where none has it."""
    having = [store for store in teachers if layer in store.feature_layers] or teachers
    none = torch.empty(len(block), 0)
    return tuple(_features_at(store, block, layer) if store in having else none for store in teachers)


def _features_at(store: TeacherStore, block: Block, layer: str) -> Tensor:
    return _at(store, block, lambda own: store.features_block(own, layer), torch.cat)


def _rows(store: TeacherStore, block: Block, name: str) -> np.ndarray:
    return _at(store, block, lambda own: store.read_block(own, name), np.concatenate)


def _at[A: (Tensor, np.ndarray)](
    store: TeacherStore, block: Block, read: Callable[[Block], A], join: Callable[[list[A]], A]
) -> A:
    size = store.layout.block_rows
    indices = range(block.start // size, -(-block.stop // size))
    parts = [read(store.block(block.split, block.view, index)) for index in indices]
    start = block.start - indices[0] * size
    return join(parts)[start : start + len(block)]


def same_rows(teachers: Sequence[TeacherStore], block: Block, name: str) -> np.ndarray:
    """Return what all teacher stores say of a block's rows. Raises StaleStoreError when they differ."""
    first, *others = (_rows(store, block, name) for store in teachers)
    for store, values in zip(teachers[1:], others, strict=True):
        if not np.array_equal(first, values):
            raise StaleStoreError(
                f"{store.folder}: {name} of {block.split} view {block.view} rows {block.start}-{block.stop} differ "
                f"from those of {teachers[0].name!r}; expected the same rows; run 'stillroom logits' again"
            )
    return first
