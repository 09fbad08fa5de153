"""Several answers a row: of an ensemble's members, to each of which all that is known of the row applies, or of a row's
own cases, such as the words of a sentence, of which each has a label of its own.
"""

from typing import overload

import torch
from torch import Tensor


@overload
def for_members(logits: Tensor, rows: Tensor) -> Tensor: ...
@overload
def for_members(logits: Tensor, rows: None) -> None: ...
def for_members(logits: Tensor, rows: Tensor | None) -> Tensor | None:
    """Return rows' labels or shares once a member where logits are [B, M, ..., C]: [B, ...] -> [B, M, ...]."""
    if rows is None or rows.ndim == logits.ndim - 1:
        return rows
    return rows.unsqueeze(1).expand(-1, logits.shape[1], *rows.shape[1:])


def for_member_targets(outputs: Tensor, rows: Tensor) -> Tensor:
    """Return rows' numbers so that they broadcast over members, where outputs are [B, M, P]: [B, P] -> [B, 1, P]."""
    return rows if rows.ndim == outputs.ndim else rows.unsqueeze(1)


def of_rows(cases: Tensor, labels: Tensor) -> Tensor:
    """Return each row's share of its cases' loss: [B, ...] and labels [B, ...], -1 where no case is -> [B].

    Over a batch it is the mean of all cases: each word of a batch counts alike, whatever sentence it stands in.
    """
    if labels.ndim == 1:
        return cases
    is_case = labels >= 0
    share = len(labels) / is_case.sum().clamp(min=1)
    return torch.where(is_case, cases, 0.0).flatten(1).sum(1) * share


def mean_of_members(cases: Tensor, rows: Tensor) -> Tensor:
    """Return each row's value, the mean over members where there are several: [B, M, ...] -> [B, ...].

    The members' losses have nothing to do with one another, so the mean trains each as if it were alone, at a rate that
    the optimiser's own scale undoes.
    """
    return cases if cases.ndim == rows.ndim else cases.mean(1)
