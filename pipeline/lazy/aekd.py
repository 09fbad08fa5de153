"""Teachers count by how well they agree on where the student should go.

Trade: nothing to learn and one small exact problem a step; a teacher that pulls against the others loses its say for
that batch, whether it is wrong or the only one that is right.
"""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from pipeline.errors import StillroomError
from pipeline.fusion.base import check_positive
from pipeline.lazy.base import Lazy, Rows, Start, Weigher, shared_by_all

RIDGE = 1e-10  # of the mean curvature: teachers that say the same share their weight equally
TIGHT = 1e-12


@dataclass(frozen=True)
class Aekd(Lazy):
    """AE-KD: weights of a batch that minimise ||sum_k w_k g_k||^2, w on the simplex, none above `cap`.

    g_k, the gradient of KL(p_k ‖ q) in the student's logits over the batch, is q - p_k row by row up to a factor that
    all share: the mixture is the point nearest to the student that the capped weights reach. A cap of 1/T is the mean.
    Source: Du 2020 (NeurIPS, "Agree to disagree").
    """

    cap: float = 0.6

    def __post_init__(self) -> None:
        check_positive("fusion 'aekd'", "cap", self.cap)
        if self.cap > 1:
            raise StillroomError(f"fusion 'aekd': cap is {self.cap!r}; expected at most 1; lower it")

    def check(self, num_teachers: int) -> None:
        """Raise StillroomError when the cap leaves weights that cannot sum to one."""
        if self.cap * num_teachers < 1 - TIGHT:
            raise StillroomError(
                f"fusion 'aekd': cap is {self.cap:g} with {num_teachers} teacher{'s' * (num_teachers != 1)}; expected "
                f"at least {1 / num_teachers:.6g}, or the weights cannot sum to one; raise it, or name more teachers"
            )

    def begin(self, start: Start) -> Weigher:
        """Return what weighs the teachers."""
        return _Agreement(self.cap)


class _Agreement(Weigher):
    def __init__(self, cap: float):
        super().__init__()
        self._cap = cap

    @torch.no_grad()
    def forward(self, rows: Rows) -> Tensor:
        gradients = rows.student_log_probs.exp() - rows.log_probs.exp()
        flat = gradients.flatten(1).double()
        gram = (flat @ flat.T).cpu().numpy()
        return shared_by_all(rows, torch.from_numpy(least_norm(gram, self._cap)))


def least_norm(gram: np.ndarray, cap: float) -> np.ndarray:
    """Return the w that minimises w^T G w, sum w = 1, 0 <= w <= cap: float64 [T, T] -> [T].

    A primal active-set method from the uniform weights: exact up to rounding, in a few dozen systems of T equations.
    Source: Nocedal & Wright 2006, algorithm 16.3.
    """
    count = len(gram)
    gram = gram + np.eye(count) * max(RIDGE * np.trace(gram) / count, np.finfo(float).tiny)
    gram = gram / np.abs(gram).max()
    weights, bound = np.full(count, 1 / count), np.full(count, np.nan)  # bound: where a weight is held, nan where free
    if cap * count <= 1 + TIGHT:
        return weights
    for _ in range(50 * count):  # each round lowers the norm or holds one more; a handful is what it takes
        free = np.isnan(bound)
        move = _newton(gram, weights, free)
        if np.abs(move).max() > TIGHT:
            length, blocking = _longest(weights, move, cap)
            weights = weights + length * move
            if blocking is not None:
                weights[blocking] = bound[blocking] = 0.0 if move[blocking] < 0 else cap
            continue
        released = _released(gram @ weights, bound, free)
        if not released:
            break
        bound[released] = np.nan
    weights = weights.clip(0, cap)
    return weights / weights.sum()


def _newton(gram: np.ndarray, weights: np.ndarray, free: np.ndarray) -> np.ndarray:
    """Return the move of the free weights to their minimum with the sum kept: [T]."""
    count, move = int(free.sum()), np.zeros(len(weights))
    if count < 2:
        return move
    system = np.ones((count + 1, count + 1))
    system[:count, :count], system[count, count] = gram[np.ix_(free, free)], 0.0
    move[free] = np.linalg.solve(system, np.append(-(gram @ weights)[free], 0.0))[:count]
    return move


def _longest(weights: np.ndarray, move: np.ndarray, cap: float) -> tuple[float, int | None]:
    """Return the share of the move, up to all, that stays within the bounds, and the weight that ends it."""
    with np.errstate(divide="ignore", invalid="ignore"):
        room = np.where(move < 0, -weights / move, np.where(move > 0, (cap - weights) / move, np.inf))
    room = room.clip(min=0)  # rounding may have left a weight a hair outside
    blocking = int(room.argmin())
    return (float(room[blocking]), blocking) if room[blocking] < 1 else (1.0, None)


def _released(slope: np.ndarray, bound: np.ndarray, free: np.ndarray) -> list[int]:
    """Return the held weights to let go, [] at the optimum: the worst one, or two that can only move together."""
    low, high = np.flatnonzero(bound == 0), np.flatnonzero(bound > 0)
    if free.any():
        level = slope[free].mean()
        wrong = np.zeros(len(slope))
        wrong[low], wrong[high] = level - slope[low], slope[high] - level
        worst = int(wrong.argmax())
        return [worst] if wrong[worst] > TIGHT else []
    if not len(low) or not len(high):
        return []
    gain, loss = int(low[slope[low].argmin()]), int(high[slope[high].argmax()])
    return [gain, loss] if slope[loss] - slope[gain] > TIGHT else []
