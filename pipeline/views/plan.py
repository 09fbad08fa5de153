"""The view plan: the immutable list of rows of a run. Everything downstream refers to its fingerprint.

A row is one (view, sample) pair. The plan says which samples form which split, which of them show their label, how
many views a train sample has, and how each view is made. It holds no pixels.
"""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from pipeline.errors import StillroomError
from pipeline.views.draws import permutation, row_words, stream_seed, uniform
from pipeline.views.specs import spec_of
from pipeline.views.transforms import Mix, Transform

UNLABELLED = -1
OUT_OF_FOLD = "out_of_fold"  # a split that follows from train: the rows that fold models answer on


@dataclass(frozen=True, eq=False)
class Split:
    """Samples with one role: `ids` int64 [N] in data-set order, `labels` int64 [N] as learners may see them.

    Where one label does not say what is true, `targets` do, and a label is 0 where a sample has any: real numbers
    float32 [N, ...], NaN where there is none or it may not be seen, or the labels of several cases int32 [N, ...], such
    as the words of a sentence, -1 there.
    """

    ids: np.ndarray
    labels: np.ndarray
    targets: np.ndarray | None = None

    def __len__(self) -> int:
        return len(self.ids)

    @property
    def labelled(self) -> np.ndarray:
        """Positions within the split whose label may be seen: int64 [<= N]."""
        return np.flatnonzero(self.labels != UNLABELLED)


Splits = Mapping[str, Split]


def make_splits(
    labels: np.ndarray,
    official_test: np.ndarray,
    *,
    calibration: float,
    test: float,
    labelled: int | None,
    max_train: int | None = None,
    max_test: int | None = None,
    units: np.ndarray | None = None,
    considered: np.ndarray | None = None,
    seed: int,
) -> dict[str, Split]:
    """Return the splits train, calibration and test of a data set: labels int64 [N], -1 where a sample has none.

    `calibration` and `test` are shares of the labelled samples that could train, stratified; an official test split
    replaces the latter; `labelled` keeps that many train labels, stratified, and hides the rest. Train samples get
    their positions at random: data sets often lie in class order, and so would the windows a student streams through.
    Samples with one value in `units` [N] are never in two splits: shares are of whole units then, drawn whatever their
    classes, and train loses whatever, labelled or not, is of a unit that is held out. Of samples that aren't
    `considered`, no split has any.

    Raises: StillroomError when a split comes out empty or more labels are asked for than there are.
    """
    if considered is not None:
        official_test = official_test[considered[official_test]]
    everyone = np.arange(len(labels)) if considered is None else np.flatnonzero(considered)
    rest = np.setdiff1d(everyone, official_test)
    if max_train is not None:
        rest = _stratified(labels, rest, max_train, seed, "train")
    if len(official_test):
        held_out = official_test[labels[official_test] != UNLABELLED]
        if max_test is not None:
            held_out = _stratified(labels, held_out, max_test, seed, "test")
    else:
        held_out = _share(labels, rest, test, units, seed, "test")
    rest = _without(rest, held_out, units)
    calibration_ids = _share(labels, rest, calibration, units, seed, "calibration")
    train = _without(rest, calibration_ids, units)
    train = train[permutation(seed, "split", "positions", size=len(train))]
    splits = {
        "train": Split(train, _visible_labels(labels, train, labelled, seed)),
        "calibration": Split(calibration_ids, labels[calibration_ids]),
        "test": Split(held_out, labels[held_out]),
    }
    for name, split in splits.items():
        if not len(split.labelled):
            raise StillroomError(
                f"data: split {name!r} has no labelled sample; expected at least one; raise the share "
                f"or add labelled samples ({len(labels)} samples, {int((labels >= 0).sum())} labelled)"
            )
    return splits


def _share(
    labels: np.ndarray, ids: np.ndarray, share: float, units: np.ndarray | None, seed: int, stream: str
) -> np.ndarray:
    """Return a share of the labelled ids, for of all it could take every label there is: stratified, or whole units."""
    labelled = ids[labels[ids] != UNLABELLED]
    count = round(share * len(labelled))
    if units is None:
        return _stratified(labels, labelled, count, seed, stream)
    return _whole_units(units, labelled, count, seed, stream)


def _whole_units(units: np.ndarray, ids: np.ndarray, count: int, seed: int, stream: str) -> np.ndarray:
    """Return the ids of units at random, so many that they come nearest to `count` ids, sorted: int64 [about count]."""
    _, inverse, sizes = np.unique(units[ids], return_inverse=True, return_counts=True)
    order = permutation(seed, "split", stream, size=len(sizes))
    reached = np.concatenate([[0], np.cumsum(sizes[order])])
    return np.sort(ids[np.isin(inverse, order[: np.argmin(abs(reached - count))])])


def _without(ids: np.ndarray, taken: np.ndarray, units: np.ndarray | None) -> np.ndarray:
    """Return the ids that are not taken, nor of a unit that is, sorted."""
    left = np.setdiff1d(ids, taken)
    return left if units is None else left[~np.isin(units[left], units[taken])]


def _visible_labels(labels: np.ndarray, train: np.ndarray, count: int | None, seed: int) -> np.ndarray:
    visible = labels[train]
    if count is None:
        return visible
    available = train[visible != UNLABELLED]
    if count > len(available):
        raise StillroomError(
            f"data.labelled: found {count}; expected at most {len(available)}, the labelled train samples; lower it"
        )
    kept = _stratified(labels, available, count, seed, "labelled")
    return np.where(np.isin(train, kept), visible, UNLABELLED)


def _stratified(labels: np.ndarray, ids: np.ndarray, count: int, seed: int, stream: str) -> np.ndarray:
    """Return `count` of the ids, each class at its own share (largest remainder), sorted: int64 [<= count]."""
    if count >= len(ids):
        return np.sort(ids)
    classes, inverse, sizes = np.unique(labels[ids], return_inverse=True, return_counts=True)
    exact = sizes * (count / len(ids))
    quota = np.floor(exact).astype(int)
    quota[np.argsort(quota - exact, kind="stable")[: count - quota.sum()]] += 1
    order = permutation(seed, "split", stream, size=len(ids))
    chosen = [ids[order[inverse[order] == number][: quota[number]]] for number in range(len(classes))]
    return np.sort(np.concatenate(chosen))


@dataclass(frozen=True, eq=False)
class ViewPlan:
    """Which rows a run has and how each is made.

    `dataset` is the data set's fingerprint, `count` the views of a train sample (held-out samples have one, the
    identity), `mean` and `std` the per-channel numbers that pictures are standardised with, none of records.
    """

    dataset: str
    splits: Splits
    count: int
    transforms: tuple[Transform, ...]
    mix: Mix | None
    seed: int
    mean: tuple[float, ...]
    std: tuple[float, ...]

    def views(self, split: str) -> int:
        """Return V of a split."""
        return self.count if split == "train" else 1

    def is_mixed(self, split: str, view: int) -> bool:
        """Say whether the rows of a view are mixed with partners."""
        return self.mix is not None and split == "train" and view >= self.count - self.mix.views

    @property
    def plain(self) -> list[int]:
        """The views of train rows that are not mixed."""
        return [view for view in range(self.count) if not self.is_mixed("train", view)]

    @cached_property
    def config(self) -> dict[str, Any]:
        """The plan as JSON: what its fingerprint is taken of. Rows out of fold follow from it and are no part of it."""
        return {
            "dataset": self.dataset,
            "splits": {
                name: {"count": len(split), "ids": _digest(split.ids), "labels": _digest(split.labels)}
                | ({} if split.targets is None else {"targets": _digest(split.targets, split.targets.dtype.str)})
                for name, split in self.splits.items()
                if name != OUT_OF_FOLD
            },
            "views": self.count,
            "transforms": [spec_of(transform) for transform in self.transforms],
            "mix": None if self.mix is None else spec_of(self.mix),
            "seed": self.seed,
            "mean": list(self.mean),
            "std": list(self.std),
        }

    @cached_property
    def fingerprint(self) -> str:
        """Return the sha256 of the plan's canonical JSON."""
        return hashlib.sha256(json.dumps(self.config, sort_keys=True, separators=(",", ":")).encode()).hexdigest()

    @cached_property
    def recipe_digest(self) -> int:
        """Return 64 bits of how rows are made (transforms, mixing, seed, standardisation), whatever the samples."""
        made_by = {key: self.config[key] for key in ("transforms", "mix", "seed", "mean", "std")}
        return int.from_bytes(hashlib.sha256(json.dumps(made_by, sort_keys=True).encode()).digest()[:8], "little")

    def parameters(self, split: str, view: int, ids: np.ndarray) -> list[np.ndarray]:
        """Return each transform's realised parameters for rows: ids int64 [B] -> list of float64 [B, P].

        Every transform has a stream of its own, so that changing one leaves the draws of the others alone.
        """
        if split != "train":
            return []
        return [
            transform.parameters(row_words(stream_seed(self.seed, "transform", place), ids, view, transform.num_words))
            for place, transform in enumerate(self.transforms)
        ]

    def mixing(self, view: int, ids: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return the partners (positions within the train split) and the mix parameters: int64 [B], float64 [B, 4]."""
        if self.mix is None:
            raise ValueError("this plan mixes no views")
        words = row_words(stream_seed(self.seed, "mix"), ids, view, self.mix.num_words)
        partners = np.floor(uniform(words[:, 0]) * len(self.splits["train"])).astype(np.int64)
        return partners, self.mix.parameters(words)


def _digest(values: np.ndarray, dtype: str = "<i8") -> str:
    return hashlib.sha256(np.ascontiguousarray(values, dtype).tobytes()).hexdigest()
