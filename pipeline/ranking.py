"""How well a classifier's answers order what each person would see first.

Every row is a pair of a person and an item, and stands as high as the label that is expected of it. Only the rows that
are given are ranked: what nobody rated is no part of it, so figures are those of ordering what was met anyway.
Rows with one score have no order: they share the mean of what their places give, whatever their order in the file.
"""

import math
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

PLACES = 10  # of a list that people look at


@dataclass(frozen=True, eq=False)
class Ranking:
    """Who ranks what: of each row the person and the item [N], and how many items there are to show."""

    people: np.ndarray
    items: np.ndarray
    num_items: int

    def of(self, rows: np.ndarray) -> "Ranking":
        """Return the ranking of some rows, by their numbers [B], among as many items."""
        return Ranking(self.people[rows], self.items[rows], self.num_items)

    def metrics(self, log_probs: Tensor, labels: Tensor) -> dict[str, float]:
        """Return `ndcg10` and `coverage10` of answers about these rows: [N, C], [N] -> shares 0-1, nan for none."""
        return {
            "ndcg10": ndcg_at(log_probs, labels, self.people),
            "coverage10": coverage_at(log_probs, self.people, self.items, self.num_items),
        }


def ndcg_at(log_probs: Tensor, labels: Tensor, people: np.ndarray, k: int = PLACES) -> float:
    """Return the mean over people of what their first k rows gain, over the most they could: [N, C], [N], [N] -> 0-1.

    A row gains its label (0 or 1 of two classes), divided by log2(1 + place). Rows of label -1 are left out, and so are
    people with one row and those with no gain; nan where nobody is left. Of equal scores it is what a shuffle gives on
    average. Source: Jarvelin & Kekalainen 2002; ties as McSherry & Najork 2008.
    """
    labelled = (labels >= 0).cpu().numpy()
    gains, scores = labels.cpu().numpy()[labelled].astype(np.float64), standings(log_probs)[labelled]
    people = np.unique(people[labelled], return_inverse=True)[1]
    if not len(people):
        return math.nan
    found, best = (_discounted(gains, order, people, k) for order in (scores, gains))
    counted = (best > 0) & (np.bincount(people) > 1)
    return float((found[counted] / best[counted]).mean()) if counted.any() else math.nan


def coverage_at(log_probs: Tensor, people: np.ndarray, items: np.ndarray, num_items: int, k: int = PLACES) -> float:
    """Return the share of items that stand among anybody's first k rows: [N, C], [N], [N] -> 0-1.

    Of equal scores at the k-th place it is the share expected when each person's are shuffled. Raises ValueError for
    rows of more items than there are.
    """
    kinds, item = np.unique(items, return_inverse=True)
    if len(kinds) > num_items:
        raise ValueError(f"rows of {len(kinds)} items; expected {num_items} at most")
    people = np.unique(people, return_inverse=True)[1]
    group, first, size = _ties(standings(log_probs), people)
    shown = (np.clip(k - first, 0, size) / size)[group]  # how likely each row is among its person's first k
    missed = np.ones(len(kinds))
    np.multiply.at(missed, item, 1 - shown)
    return float((1 - missed).sum() / num_items)


def standings(log_probs: Tensor) -> np.ndarray:
    """Return how high each row stands: [N, C] -> float64 [N], the log-odds of its expected label over the last one.

    Of two classes these are the log-odds of the last. Unlike the expected label itself they tell sure answers apart.
    """
    grades = torch.arange(log_probs.shape[-1], dtype=torch.float64, device=log_probs.device)
    above, below = ((log_probs.double() + each.log()).logsumexp(-1) for each in (grades, grades.flip(0)))
    return (above - below).cpu().numpy().round(10)  # at another place in a tensor the last bits may be others


def _discounted(gains: np.ndarray, scores: np.ndarray, people: np.ndarray, k: int) -> np.ndarray:
    """Return the discounted gain of each person's first k rows by score, with ties' means: float64 [people]."""
    group, first, size = _ties(scores, people)
    worth = np.concatenate([[0.0], np.cumsum(1 / np.log2(2 + np.arange(k)))])
    shares = (worth[np.minimum(first + size, k)] - worth[np.minimum(first, k)]) / size
    return np.bincount(people, gains * shares[group], minlength=people.max() + 1)


def _ties(scores: np.ndarray, people: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return each row's group of one person and one score, int64 [N], and of each group how many rows of the person
    stand before it, and how many are in it: int64 [groups].
    """
    order = np.lexsort((-scores, people))
    starts = np.ones(len(order), bool)
    starts[1:] = (people[order][1:] != people[order][:-1]) | (scores[order][1:] != scores[order][:-1])
    group = np.empty(len(order), np.int64)
    group[order] = np.cumsum(starts) - 1
    place = np.flatnonzero(starts)
    begins = np.searchsorted(people[order], people[order][place])  # where the group's person begins
    return group, place - begins, np.diff(np.append(place, len(order)))
