"""Proof that a store's rows are those that are replayed, before anything is learned from them."""

from collections.abc import Collection
from typing import Protocol

import numpy as np
import torch

from pipeline.errors import StaleStoreError, StillroomError
from pipeline.store import Store
from pipeline.views import Replayer, ViewPlan, imported_code
from pipeline.views.replay import Samples


class Identified(Samples, Protocol):
    """Samples that know their data set's fingerprint."""

    @property
    def fingerprint(self) -> str:
        """The data set's sha256."""
        ...


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
    check_rows_of(targets, replayer, check_rows)
    return replayer


def check_rows_of(targets: Store, replayer: Replayer, check_rows: int | None) -> None:
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
        is_there = not plan.mean or len(plan.mean) == samples.shape[0]
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
