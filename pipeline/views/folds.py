"""Which labelled train rows a teacher learns from: all but a fold, all but some classes, some with wrong labels.

Labels alone change: a row that a learner may not see has label -1 and is never shown to it; as a partner it may still
be mixed into one, which then weighs nothing. So neither plan nor training loop knows of any of this.
"""

from collections.abc import Collection
from dataclasses import replace

import numpy as np

from pipeline.views.draws import permutation, row_words, stream_seed, uniform
from pipeline.views.plan import OUT_OF_FOLD, UNLABELLED, Split, ViewPlan


def without_classes(labels: np.ndarray, classes: Collection[int]) -> np.ndarray:
    """Return labels with those of some classes hidden: int64 [N] -> int64 [N]."""
    return np.where(np.isin(labels, list(classes)), UNLABELLED, labels)


def with_wrong_labels(labels: np.ndarray, ids: np.ndarray, share: float, classes: np.ndarray, seed: int) -> np.ndarray:
    """Return labels of which exactly round(share * their number) are wrong, drawn evenly among the other classes.

    `labels` int64 [N], -1 stays -1; `ids` int64 [N]; `classes` int64, sorted, those that may be drawn: two or more.
    Which rows and which classes follows from (seed, sample id).
    """
    shown = np.flatnonzero(labels != UNLABELLED)
    draws = uniform(row_words(stream_seed(seed, "wrong labels"), ids[shown], 0, 2))
    chosen = np.argsort(draws[:, 0], kind="stable")[: round(share * len(shown))]
    rows = shown[chosen]
    other = np.floor(draws[chosen, 1] * (len(classes) - 1)).astype(np.int64)
    wrong = labels.copy()
    wrong[rows] = classes[(np.searchsorted(classes, labels[rows]) + 1 + other) % len(classes)]
    return wrong


def assign_folds(labels: np.ndarray, folds: int, seed: int) -> np.ndarray:
    """Return the fold of each labelled row: int64 [N] -> uint8 [N], from 0 to `folds` - 1.

    The folds' sizes differ by one row at most, in all and in each class.
    """
    order = permutation(seed, "folds", folds, size=len(labels))
    order = order[np.argsort(labels[order], kind="stable")]
    fold_of = np.empty(len(labels), np.uint8)
    fold_of[order] = np.arange(len(labels)) % folds
    return fold_of


def out_of_fold(train: Split) -> Split:
    """Return the labelled train rows, in the plan's order, as a split of their own."""
    rows, targets = train.labelled, train.targets
    return Split(train.ids[rows], train.labels[rows], None if targets is None else targets[rows])


def with_out_of_fold(plan: ViewPlan) -> ViewPlan:
    """Return the plan with one more split, seen as held-out rows are; its config and fingerprint stay what they are."""
    return replace(plan, splits={**plan.splits, OUT_OF_FOLD: out_of_fold(plan.splits["train"])})
