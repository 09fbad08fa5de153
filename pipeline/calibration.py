"""One number per teacher that makes its confidence honest: the temperature.

Trade: one parameter cannot mend a teacher that is wrong per class, but it cannot overfit a small
calibration split either, and it never changes which class comes first.
"""

import math

import torch
from torch import Tensor

from pipeline.errors import StillroomError

LOWEST, HIGHEST = 0.05, 20.0  # a split without a single error asks for 0, one worse than chance for infinity


def fit_temperature(logits: Tensor, labels: Tensor) -> float:
    """Return the temperature T in [0.05, 20] for which softmax(logits / T) has the lowest mean NLL.

    `[..., C], [...] -> float`; rows of label -1 are left out. The NLL is convex in 1/T, so the root of
    its slope is the only minimum, and the nearer end of the range is the answer when there is no root.
    Logits that say nothing at all give 1. Source: Guo 2017 (1706.04599), section 4.2.

    Raises: StillroomError when no row has a label or a labelled row's logits are not finite.
    """
    rows, truth = _labelled_rows(logits, labels)

    def slope(log_temperature: float) -> float:
        """Return d NLL / d (1/T) = mean(E_q[z] - z_label), which rises with 1/T."""
        expected = (torch.softmax(rows / math.exp(log_temperature), dim=1) * rows).sum(dim=1)
        return (expected - truth).mean().item()

    coldest, hottest = slope(math.log(LOWEST)), slope(math.log(HIGHEST))
    if coldest == hottest == 0:
        return 1.0
    if coldest <= 0:
        return LOWEST
    if hottest >= 0:
        return HIGHEST
    from scipy.optimize import brentq  # here, because it takes 0.25 s to import

    return math.exp(brentq(slope, math.log(LOWEST), math.log(HIGHEST), xtol=1e-10))


def _labelled_rows(logits: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """Return the labelled rows' logits, shifted to a maximum of 0, `[N, C]`, and that of each label `[N]`."""
    logits, labels = logits.reshape(-1, logits.shape[-1]), labels.reshape(-1)
    labelled = labels >= 0
    if not labelled.any():
        raise StillroomError(
            f"calibration: none of {len(labels)} rows has a label; expected at least one; give the split labels"
        )
    rows = logits[labelled].double()
    finite = rows.isfinite().all(dim=1)
    if not finite.all():
        row = int(labelled.nonzero()[:, 0][~finite][0])
        raise StillroomError(
            f"calibration: row {row} has a logit that is not finite; expected finite logits; "
            "look for an overflow in the teacher"
        )
    rows = rows - rows.amax(dim=1, keepdim=True)
    return rows, rows.gather(1, labels[labelled].long()[:, None])[:, 0]
