"""One number per teacher that makes its confidence honest: the temperature.

Trade: one parameter cannot mend a teacher that is wrong per class, but it cannot overfit a small
calibration split either, and it never changes which class comes first.
"""

import math
from collections.abc import Iterator

import torch
from torch import Tensor

from pipeline.errors import StillroomError

PIECE, LEAST_ROWS = 1 << 18, 64  # values, 2 MB of float64, but so many rows: few rows' sums depend on torch's threads
LOWEST, HIGHEST = 0.05, 20.0  # a split without a single error asks for 0, one worse than chance for infinity


def fit_temperature(logits: Tensor, labels: Tensor) -> float:
    """Return the temperature T in [0.05, 20] for which softmax(logits / T) has the lowest mean NLL.

    `[..., C], [...] -> float`; rows of label -1 are left out. The NLL is convex in 1/T, so the root of
    its slope is the only minimum, and the nearer end of the range is the answer when there is no root.
    Logits that say nothing at all give 1. Source: Guo 2017 (1706.04599), section 4.2.

    Raises: StillroomError when no row has a label or a labelled row's logits are not finite.
    """
    logits, labels = logits.reshape(-1, logits.shape[-1]), labels.reshape(-1)
    _check_rows(logits, labels)

    def slope(log_temperature: float) -> float:
        """Return d NLL / d (1/T) = mean(E_q[z] - z_label), which rises with 1/T."""
        temperature, of_rows = math.exp(log_temperature), []
        for rows, truth in _pieces(logits, labels):
            expected = torch.softmax(rows / temperature, dim=1).mul_(rows).sum(dim=1)
            of_rows.append(expected - truth)
        return torch.cat(of_rows).mean().item()

    coldest, hottest = slope(math.log(LOWEST)), slope(math.log(HIGHEST))
    if coldest == hottest == 0:
        return 1.0
    if coldest <= 0:
        return LOWEST
    if hottest >= 0:
        return HIGHEST
    from scipy.optimize import brentq  # here, because it takes 0.25 s to import

    return math.exp(brentq(slope, math.log(LOWEST), math.log(HIGHEST), xtol=1e-10))


def _check_rows(logits: Tensor, labels: Tensor) -> None:
    """Raise StillroomError unless there is a row with a label, and all such rows are finite."""
    labelled = labels >= 0
    if not labelled.any():
        raise StillroomError(
            f"calibration: none of {len(labels)} rows has a label; expected at least one; give the split labels"
        )
    finite = torch.cat([rows.isfinite().all(dim=1) for rows in logits.tensor_split(_num_pieces(logits))])
    if not finite[labelled].all():
        row = int((labelled & ~finite).nonzero()[0, 0])
        raise StillroomError(
            f"calibration: row {row} has a logit that is not finite; expected finite logits; "
            "look for an overflow in the teacher"
        )


def _pieces(logits: Tensor, labels: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield the labelled rows' logits, shifted to a maximum of 0, float64 `[n, C]`, and that of each label `[n]`.

    Made anew each time: a split's logits in double precision may take gigabytes.
    """
    count = _num_pieces(logits)
    for rows, own in zip(logits.tensor_split(count), labels.tensor_split(count), strict=True):
        labelled = own >= 0
        rows = rows[labelled].double()
        rows = rows - rows.amax(dim=1, keepdim=True)
        yield rows, rows.gather(1, own[labelled].long()[:, None])[:, 0]


def _num_pieces(logits: Tensor) -> int:
    num_rows, num_classes = logits.shape
    return max(1, min(num_rows // LEAST_ROWS, -(-num_rows * num_classes // PIECE)))
