"""What fusions of real numbers are fitted by: entries of calibration rows, in float64."""

import math
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from pipeline.errors import StillroomError
from pipeline.fusion.real.base import check_finite, check_mask

PULL = 1e-9  # of the teachers' mean square, towards equal weights: copies of a teacher share theirs in any order, which
#              rounding, at 1e-16 of it, would decide at a thousandth of this


@dataclass(frozen=True, eq=False)
class Entries:
    """Calibration rows with their outputs side by side, float64; what is not known is 0.

    `values` [T, N, P], `targets` [N, P], `is_known` bool [N, P]; `shape` of a row's outputs, P in all.
    """

    values: Tensor
    targets: Tensor
    is_known: Tensor
    shape: tuple[int, ...]
    where: str

    @property
    def num_teachers(self) -> int:
        """T."""
        return len(self.values)

    @property
    def num_outputs(self) -> int:
        """P."""
        return self.targets.shape[1]

    @property
    def counts(self) -> Tensor:
        """How many rows are known of each output: int64 [P]."""
        return self.is_known.sum(dim=0)

    def as_one_output(self) -> "Entries":
        """Return the entries of all outputs as rows of one."""
        values, targets = self.values.reshape(self.num_teachers, -1, 1), self.targets.reshape(-1, 1)
        return Entries(values, targets, self.is_known.reshape(-1, 1), (1,), self.where)

    def check_count(self, least: int, why: str) -> None:
        """Raise StillroomError where an output has fewer entries."""
        few = int(self.counts.argmin())
        if self.counts[few] < least:
            raise StillroomError(
                f"{self.where}: {int(self.counts[few])} known entries{self.of_output(few)}; expected at least {least}, "
                f"{why}; give it more calibration rows{'' if self.num_outputs == 1 else ' or shared = true'}"
            )

    def of_output(self, number: int) -> str:
        """Return the words that name an output, none where there is but one."""
        place = [int(axis) for axis in np.unravel_index(number, self.shape)]
        return f" of output {place}" if self.num_outputs > 1 else ""


def entries(values: Tensor, targets: Tensor, mask: Tensor | None, where: str) -> Entries:
    """Return rows to fit on: float [T, N, *S], [N, *S], bool [N, *S].

    Raises: StillroomError when the shapes do not go together, nothing is known, or what is known is not finite.
    """
    if not len(values) or not targets.ndim or values.shape[1:] != targets.shape:
        raise StillroomError(
            f"{where}: values {list(values.shape)}, targets {list(targets.shape)}; expected [T, N, ...] and [N, ...]; "
            f"give both for the same rows"
        )
    is_known = torch.ones_like(targets, dtype=torch.bool) if mask is None else mask
    check_mask(is_known, targets.shape, where)
    if not is_known.any():
        raise StillroomError(
            f"{where}: none of {targets.numel()} calibration entries is known; expected some; give them targets or use "
            f"real fusion 'mean'"
        )
    check_finite(values.isfinite() | ~is_known, where)
    wrong = is_known & ~targets.isfinite()
    if wrong.any():
        raise StillroomError(
            f"{where}: the target of row {int(wrong.nonzero()[0][0])} is not finite; expected a number; leave it out "
            f"with the mask"
        )
    rows, outputs = len(targets), math.prod(targets.shape[1:])
    known = is_known.reshape(rows, outputs)
    return Entries(
        torch.where(known, values.double().reshape(-1, rows, outputs), 0.0),
        torch.where(known, targets.double().reshape(rows, outputs), 0.0),
        known,
        tuple(targets.shape[1:]) or (1,),
        where,
    )


def performance_weights(rows: Entries, tau: float) -> Tensor:
    """Return softmax_k(-MSE_k / var(y) / tau): float64 [T, 1]. Raises StillroomError when the targets do not vary."""
    means = rows.targets.sum(dim=0) / rows.counts.clamp(min=1)
    variance = torch.where(rows.is_known, rows.targets - means, 0.0).square().sum()
    if variance <= (rows.targets.square().sum() * torch.finfo(torch.float64).eps ** 2):
        raise StillroomError(
            f"{rows.where}: the calibration targets do not vary; expected some that do, to compare mistakes with; give "
            f"it more rows"
        )
    errors = (rows.values - rows.targets).square().sum(dim=(1, 2)) / variance
    return torch.softmax(-(errors - errors.amin()) / tau, dim=0).unsqueeze(1)


def residual_moments(rows: Entries, *, debias: bool, shared: bool) -> tuple[Tensor, Tensor]:
    """Return each teacher's mean residual, value minus target, and the variance about it: float64 [T, *S], or [T, 1].

    Without `debias` the mean is taken for 0, so the variance is the mean square error. Raises: StillroomError when an
    output has too few entries.
    """
    rows = rows.as_one_output() if shared else rows
    rows.check_count(1 + int(debias), "to have a variance")
    residuals, counts = rows.values - rows.targets, rows.counts
    bias = residuals.sum(dim=1) / counts if debias else torch.zeros_like(residuals[:, 0])
    centred = torch.where(rows.is_known, residuals - bias.unsqueeze(1), 0.0)
    variance = centred.square().sum(dim=1) / (counts - int(debias))
    shape = (rows.num_teachers, *rows.shape)
    return bias.reshape(shape), variance.reshape(shape)


def non_negative_least_squares(inputs: np.ndarray, wanted: np.ndarray) -> np.ndarray:
    """Return b >= 0 that minimises |inputs b - wanted|² + p |b - 1/T|²: float64 [N, T], [N] -> [T].

    p is a 1e-9th of the columns' mean square. Rows are first reduced to a triangle of T + 1, which has the same
    minimum. Source: Lawson & Hanson 1974.
    """
    from scipy.optimize import nnls  # here, for its import is slow

    count = inputs.shape[1]
    triangle = np.linalg.qr(np.column_stack([inputs, wanted]), mode="r")
    pull = math.sqrt(PULL * float(np.square(inputs).sum()) / count)
    if pull == 0:
        return np.zeros(count)  # values that are all 0, or that do not move
    stacked = np.concatenate([triangle[:, :count], pull * np.eye(count)])
    return np.asarray(nnls(stacked, np.concatenate([triangle[:, count], np.full(count, pull / count)]))[0])
