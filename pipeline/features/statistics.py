"""Mean and spread of each channel of a layer, over rows that come in pieces."""

from collections.abc import Iterable

import torch
from torch import Tensor

from pipeline.errors import StillroomError

SMALLEST_SHARE = 0.01  # of the typical deviation: a channel that nearly never moves would be mostly noise at size one


def feature_statistics(rows: Iterable[Tensor]) -> tuple[Tensor, Tensor]:
    """Return mean and standard deviation (over N, not N - 1) of each channel, float32 [D]: pieces [n, D] of rows.

    One pass in float64. Raises StillroomError without any row. Source: Chan, Golub, LeVeque 1979, eq. 2.1.
    """
    count = 0
    mean = squares = torch.zeros((), dtype=torch.float64)
    for piece in rows:
        if not len(piece):
            continue
        added, values = len(piece), piece.detach().cpu().double()
        own = values.mean(0)
        shift = own - mean
        squares = squares + (values - own).square().sum(0) + shift.square() * (count * added / (count + added))
        mean = mean + shift * (added / (count + added))
        count += added
    if not count:
        raise StillroomError("feature statistics: no rows; expected one at least; give the calibration split rows")
    return mean.float(), (squares / count).sqrt().float()


def deviations(std: Tensor) -> Tensor:
    """Return what channels are divided by, float32 [D]: none under a hundredth of the typical one, never 0."""
    std = std.float()
    typical = std.square().mean().sqrt()
    return std.clamp(min=SMALLEST_SHARE * typical) if typical > 0 else torch.ones_like(std)
