"""Ensembles as students: what is known of a row is known of each member's answer to it."""

from typing import overload

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


def mean_of_members(cases: Tensor, rows: Tensor) -> Tensor:
    """Return each row's value, the mean over members where there are several: [B, M, ...] -> [B, ...].

    The members' losses have nothing to do with one another, so the mean trains each as if it were alone, at a rate that
    the optimiser's own scale undoes.
    """
    return cases if cases.ndim == rows.ndim else cases.mean(1)
