"""How far answers in real numbers are off, in the unit of what is asked for.

Entries that are not known (NaN) count nowhere. All figures are means over entries, so that an output that is known more
often counts more.
"""

import math

import torch
from torch import Tensor

from pipeline.errors import StillroomError


def regression_metrics(values: Tensor, targets: Tensor) -> dict[str, float]:
    """Return mae and rmse in the targets' unit, and r2, about each output's mean: `[N, ...], [N, ...]`, NaN unknown.

    `r2` is nan where the known targets do not vary. Source: Hyndman & Koehler 2006 (mae, rmse); Draper & Smith 1998.

    Raises: StillroomError when nothing is known, or an answer to something known is not finite.
    """
    values, targets = values.double(), targets.double()
    is_known = targets.isfinite()
    if not is_known.any():
        raise StillroomError(
            f"metrics: none of {targets.numel()} numbers is known; expected at least one; score rows with targets"
        )
    wrong = is_known & ~values.isfinite()
    if wrong.any():
        raise StillroomError(
            f"metrics: row {int(wrong.nonzero()[0, 0])} has an answer that is not finite; expected numbers; look for "
            f"an overflow upstream"
        )
    errors = torch.where(is_known, values - targets, 0.0)
    count = int(is_known.sum())
    squares = errors.square().sum().item()
    means = torch.where(is_known, targets, 0.0).sum(0) / is_known.sum(0).clamp(min=1)
    # told by the extremes: the mean of equal numbers need not be that number to the last bit
    varies = targets.where(is_known, -math.inf).amax(0) > targets.where(is_known, math.inf).amin(0)
    spread = torch.where(is_known & varies, targets - means, 0.0).square().sum().item()
    return {
        "mae": errors.abs().sum().item() / count,
        "rmse": math.sqrt(squares / count),
        "r2": 1 - squares / spread if spread > 0 else math.nan,
    }


def rmse_of_outputs(values: Tensor, targets: Tensor) -> Tensor:
    """Return the rmse of each output, nan of one that no row knows: `[N, P], [N, P]` -> float64 [P]."""
    is_known = targets.isfinite()
    squares = torch.where(is_known, values.double() - targets.double(), 0.0).square().sum(0)
    return (squares / is_known.sum(0)).sqrt()


def skill(rmse: float, reference: float) -> float:
    """Return 1 - rmse / that of a reference forecast: 0 as good as it, 1 perfect. Source: Murphy 1988, of the root."""
    return 1 - rmse / reference if reference > 0 else math.nan
