"""What a student of real numbers minimises: squared errors against labels and against what the teachers say.

All are plain functions `[..., P] -> [...]`, the mean over a row's outputs, in standard units. Unknown targets are NaN
and count nowhere; teachers answer everything.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from pipeline.errors import StillroomError, unknown_name
from pipeline.losses.options import Option, check_options, number

RealLoss = Callable[..., Tensor]  # (values, mean, *, variance, targets, **options) -> [...]


def squared_error(values: Tensor, targets: Tensor) -> Tensor:
    """Return the mean squared error of what a row shows, 0.0 of one that shows nothing: `[..., P], [..., P] -> [...]`.

    Rows with gaps weigh as much as whole ones.
    """
    is_known = targets.isfinite()
    errors = torch.where(is_known, values - targets.nan_to_num(), 0.0).square()
    return errors.sum(-1) / is_known.sum(-1).clamp(min=1)


def mse(values: Tensor, mean: Tensor, *, variance: Tensor, targets: Tensor) -> Tensor:
    """Return the squared distance to the teachers' mean."""
    return (values - mean).square().mean(-1)


def huber(values: Tensor, mean: Tensor, *, variance: Tensor, targets: Tensor, delta: float = 1.0) -> Tensor:
    """Return squares up to a distance `delta`, then a line: a wild answer pulls no harder. Source: Huber 1964.

    Twice Huber's, so that near the target it is the squared distance.
    """
    return 2 * functional.huber_loss(values, mean, reduction="none", delta=delta).mean(-1)


def gaussian(values: Tensor, mean: Tensor, *, variance: Tensor, targets: Tensor, floor: float = 0.01) -> Tensor:
    """Return KL(N(mean, variance) ‖ N(values, variance)) in nats: outputs that teachers know better weigh more.

    The variance is at least `floor`, in squares of standard units.
    """
    return ((values - mean).square() / (2 * variance.clamp(min=floor))).mean(-1)


def bounded(values: Tensor, mean: Tensor, *, variance: Tensor, targets: Tensor, margin: float = 0.0) -> Tensor:
    """Return the student's squared error while it is not better than the teachers' by `margin`, then 0.

    Against labels where they are known, and against the teachers elsewhere. Source: Chen 2017, equation 4 ("teacher
    bounded regression").
    """
    own = squared_error(values, targets)
    theirs = squared_error(mean, targets)
    shows = targets.isfinite().any(-1)
    return torch.where(shows, torch.where(own + margin > theirs, own, 0.0), (values - mean).square().mean(-1))


def attentive(values: Tensor, mean: Tensor, *, variance: Tensor, targets: Tensor) -> Tensor:
    """Return the squared distance to the teachers, less where they are wrong: (1 - e / max e) of it.

    e is the root of the teachers' squared error on a row's label, its maximum that of the rows at hand; rows without a
    label count in full. Source: Saputra 2019 (1908.00858), equation 6, whose maximum is over all training rows.
    """
    errors = squared_error(mean, targets).sqrt()
    weights = 1 - errors / errors.amax().clamp(min=torch.finfo(torch.float32).tiny)
    return torch.where(targets.isfinite().any(-1), weights, 1.0) * (values - mean).square().mean(-1)


REAL_LOSSES: dict[str, RealLoss] = {
    "mse": mse,
    "huber": huber,
    "gaussian": gaussian,
    "bounded": bounded,
    "attentive": attentive,
}
REAL_OPTIONS: dict[str, Mapping[str, Option]] = {
    "huber": {"delta": number(0, is_open=True)},
    "gaussian": {"floor": number(0, is_open=True)},
    "bounded": {"margin": number(0)},
}


@dataclass(frozen=True)
class RealDistillation:
    """alpha * squared error of the label + (1 - alpha) * what `kind` makes of the teachers' answer, row by row.

    Rows that show nothing learn from the teachers alone. Raises: StillroomError for an unknown kind, its options, and
    an alpha that is no number in [0, 1]: rules for it know classes alone.
    """

    kind: str = "mse"
    alpha: float = 0.5
    options: Mapping[str, Any] = field(default_factory=dict)
    where: str = "loss"

    def __post_init__(self) -> None:
        if self.kind not in REAL_LOSSES:
            raise unknown_name(f"{self.where}.kind", "loss of real numbers", self.kind, REAL_LOSSES)
        if isinstance(self.alpha, bool) or not isinstance(self.alpha, int | float) or not 0 <= self.alpha <= 1:
            raise StillroomError(
                f"{self.where}.alpha: found {self.alpha!r}; expected a number from 0 to 1, for rules are of classes; "
                f"change it, or leave it out"
            )
        check_options(self.where, self.options, REAL_OPTIONS.get(self.kind, {}))

    def __call__(
        self, values: Tensor, mean: Tensor, variance: Tensor, targets: Tensor
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Return the loss of each row and its parts, unweighted: `[..., P]` each -> `[...]`."""
        soft = REAL_LOSSES[self.kind](values, mean, variance=variance, targets=targets, **self.options)
        hard = squared_error(values, targets)
        shows = targets.isfinite().any(-1)
        loss = torch.where(shows, self.alpha * hard + (1 - self.alpha) * soft, soft)
        return loss, {"se": hard, self.kind: soft}
