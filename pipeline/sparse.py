"""Targets that name only some classes: what a sparse codec keeps, and what a loss learns from.

Trade: a vocabulary of 50,000 classes has no room for dense targets. The classes left out are one bucket with its exact
mass (`log_rest`), or nothing at all where the targets are random draws that are right on average (`log_rest` None).
"""

import math
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from pipeline.errors import StillroomError

MASS_TOLERANCE = 1e-3  # lets rounded log-probabilities pass; kept classes without their rest are off by far more


@dataclass(frozen=True, eq=False)
class SparseTargets:
    """Log-probabilities of `K` of `C` classes a row, at the temperature of the loss.

    `ids` integers [..., K] in 0..C-1, distinct in a row where `log_probs` float [..., K] is above -inf (-inf pads, on
    any id); `log_rest` float [...] is the log of the mass of all other classes together, None where there is no such
    bucket. `check_sparse` says whether all that is so.
    """

    ids: Tensor
    log_probs: Tensor
    log_rest: Tensor | None

    @property
    def is_kept(self) -> Tensor:
        """Which entries are classes and not padding: bool [..., K]."""
        return self.log_probs != -math.inf

    def to(self, device: torch.device | str) -> "SparseTargets":
        """Return the same targets on another device."""
        rest = None if self.log_rest is None else self.log_rest.to(device)
        return SparseTargets(self.ids.to(device), self.log_probs.to(device), rest)

    def argmax(self) -> Tensor:
        """Return each row's first choice among the classes it names: int64 [...]."""
        best = self.log_probs.argmax(-1, keepdim=True)
        return self.ids.long().gather(-1, best).squeeze(-1)

    def named(self, num_classes: int) -> Tensor:
        """Return which classes a row names: bool [..., C]."""
        return self._spread(self.is_kept, False, num_classes)

    def dense(self, num_classes: int, tail: Literal["uniform"] = "uniform") -> Tensor:
        """Return log-probabilities of all classes, the rest shared equally by those left out: [..., C].

        Classes without mass are -inf. Source: marginal smoothing of Shen & Xing 2022 (2112.01528).
        """
        if tail != "uniform":
            raise ValueError(f"tail is {tail!r}; the rest can only be shared uniformly")
        log_probs = self._spread(self.log_probs, -math.inf, num_classes)
        if self.log_rest is None:
            return log_probs.contiguous()
        named = self.named(num_classes)
        share = self.log_rest - (num_classes - named.sum(-1)).double().log().to(self.log_rest.dtype)
        return torch.where(named, log_probs, share.unsqueeze(-1))

    def __len__(self) -> int:
        return len(self.ids)

    def __getitem__(self, rows: Tensor | slice) -> "SparseTargets":
        """Return the targets of some rows."""
        rest = None if self.log_rest is None else self.log_rest[rows]
        return SparseTargets(self.ids[rows], self.log_probs[rows], rest)

    def _spread(self, values: Tensor, empty: float, num_classes: int) -> Tensor:
        """Return values `[..., K]` at their classes and `empty` elsewhere: [..., C]."""
        # padding goes to a class behind the last: its own id may be that of a class kept, or of one left out
        ids = torch.where(self.is_kept, self.ids.long(), num_classes)
        classes = values.new_full((*ids.shape[:-1], num_classes + 1), empty)
        return classes.scatter_(-1, ids, values)[..., :-1]


def check_sparse(targets: SparseTargets, num_classes: int, where: str) -> None:
    """Check that every row is a distribution over the classes.

    Raises: StillroomError for ids outside 0..C-1 (padding's too, losses read them), a class named twice in a row, and
    mass that does not sum to one; the bucket's mass counts only where a class is left out to have it.
    """
    ids = targets.ids.long()
    if (at := _first((ids < 0) | (ids >= num_classes))) is not None:
        raise StillroomError(
            f"{where}: row {at[:-1]} names class {ids[at].item()}; expected ids from 0 to {num_classes - 1}; "
            f"check that the targets were made for these {num_classes} classes"
        )
    # padding gets ids of its own, so that no two are the same
    ids = torch.where(targets.is_kept, ids, -1 - torch.arange(ids.shape[-1], device=ids.device)).sort(-1).values
    if (at := _first(ids.diff() == 0)) is not None:
        raise StillroomError(
            f"{where}: row {at[:-1]} names class {ids[at].item()} twice; expected each class once; "
            "add up the draws of a class, and pad with log-probability -inf"
        )
    mass = _mass(targets, num_classes)
    if (at := _first(~((mass - 1).abs() <= MASS_TOLERANCE))) is not None:  # put so that nan is refused too
        raise StillroomError(
            f"{where}: the mass of row {at} sums to {mass[at].item():.6g}; expected 1 within {MASS_TOLERANCE}; "
            "give the mass of the classes left out as log_rest, or divide the counts of random draws by their number"
        )


def _mass(targets: SparseTargets, num_classes: int) -> Tensor:
    """Return the mass of each row's classes and bucket: float64 [...]."""
    mass = targets.log_probs.double().exp().sum(-1)
    if targets.log_rest is None:
        return mass
    rest = targets.log_rest.double().exp()
    return mass + torch.where(targets.named(num_classes).all(-1), 0.0, rest)


def _first(bad: Tensor) -> tuple[int, ...] | None:
    """Return the index of the first entry that is bad, None where all is well."""
    return tuple(bad.nonzero()[0].tolist()) if bad.any() else None
