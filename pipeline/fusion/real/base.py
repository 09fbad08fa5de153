"""What fusions of real numbers return and are built from: elementwise, in one order, so that blocks don't matter."""

import math
from dataclasses import dataclass
from typing import Self

import torch
from torch import Tensor

from pipeline.errors import StillroomError
from pipeline.fusion.base import Strategy, name_of
from pipeline.fusion.distributions import sum_classes, sum_teachers
from pipeline.views import RowKeys


@dataclass(frozen=True, eq=False)
class FusedReals:
    """What a fusion says of a block of rows, all float32, `S` being the outputs of a row.

    `mean [B, *S]`; `variance [B, *S]` of the truth about it, as the strategy sees it; `weights [B, T]` sum to one,
    where they differ by output their mean over outputs; `disagreement [B]` is the weighted variance between the
    teachers, mean over outputs, in the square of the targets' unit.
    """

    mean: Tensor
    variance: Tensor
    weights: Tensor
    disagreement: Tensor


@dataclass(frozen=True)
class RealFusion(Strategy):
    """A strategy for real numbers."""

    @property
    def is_fitted_on_rows(self) -> bool:
        """Whether `fit` looks at rows at all."""
        return type(self).fit is not RealFusion.fit

    def fit(self, values: Tensor, targets: Tensor, mask: Tensor | None = None) -> Self:
        """Return a copy fitted on rows that no teacher was trained on: float [T, N, *S], [N, *S], bool [N, *S].

        Entries that `mask` leaves out may be anything, nan too. Raises: StillroomError where the rest does not do.
        """
        return self

    def fuse(self, values: Tensor, *, mask: Tensor | None = None, keys: RowKeys | None = None) -> FusedReals:
        """Return what the teachers say together: float [T, B, *S]; `mask` bool [B, *S] picks what they may part on.

        `keys` are what a strategy that draws lots draws them by.
        Raises: StillroomError when a value is not finite, before a `fit` that is needed, or for other teachers or
        outputs than it was fitted on.
        """
        raise NotImplementedError

    def fitted_state(self, name: str, like: Tensor, *, has_teachers: bool = True) -> Tensor:
        """Return what was fitted, so that it broadcasts over values `like` [T, B, *S]: [T, 1, *S] or [1, *S], float64.

        Raises: StillroomError before `fit`, or for other teachers or outputs.
        """
        if name not in self.state:
            raise StillroomError(
                f"{self.where}: it has no {name} yet; expected a fitted strategy; call fit on calibration rows"
            )
        found = self.state[name].double()
        if has_teachers and len(found) != len(like):
            raise StillroomError(
                f"{self.where}: values of {len(like)} teachers; expected the {len(found)} it was fitted on; fit again "
                f"with these teachers"
            )
        outputs, shape = found.shape[int(has_teachers) :], like.shape[2:]
        if outputs not in ((1,), shape):  # (1,): one number for all outputs
            raise StillroomError(
                f"{self.where}: rows of {list(shape)} outputs; expected the {list(outputs)} it was fitted on; fit "
                f"again on such rows"
            )
        tail = shape if outputs == shape else (1,) * len(shape)
        return found.reshape(*found.shape[: int(has_teachers)], 1, *tail)

    @property
    def where(self) -> str:
        """How errors call it."""
        return f"real fusion {name_of(self)!r}"


def checked(values: Tensor, mask: Tensor | None, where: str) -> Tensor:
    """Return values [T, B, *S] as float64. Raises StillroomError that names the first teacher and row not finite."""
    if values.ndim < 2 or not len(values):
        raise StillroomError(f"{where}: values {list(values.shape)}; expected [T, B, ...]; stack the teachers' answers")
    if mask is not None:
        check_mask(mask, values.shape[1:], where)
    check_finite(values.isfinite(), where)
    return values.double()


def together(values: Tensor, weights: Tensor, mask: Tensor | None, *, within: Tensor | float = 0.0) -> FusedReals:
    """Return the weighted mean; its variance is that between the teachers and what they have `within`.

    Float64 [T, B, *S]; weights [T, B or 1, *S or ones], which sum to one.
    """
    mean = sum_teachers(w * v for w, v in zip(weights, values, strict=True))
    spread = sum_teachers(w * (v - mean).square() for w, v in zip(weights, values, strict=True))
    disagreement = over_outputs(spread, mask)
    return FusedReals(mean.float(), (spread + within).float(), row_weights(weights, mean), disagreement)


def row_weights(weights: Tensor, mean: Tensor) -> Tensor:
    """Return the mean weights of rows over their outputs: [T, B or 1, *S or ones] -> [B, T]."""
    return torch.stack([over_outputs(own, None).expand(len(mean)) for own in weights], dim=-1)


def over_outputs(numbers: Tensor, mask: Tensor | None) -> Tensor:
    """Return the mean over a row's outputs, over those of the mask alone, 0 where it has none: [B, *S] -> [B]."""
    width = math.prod(numbers.shape[1:])
    flat = numbers.reshape(len(numbers), width)
    if mask is None:
        return (sum_classes(flat) / width).float()
    is_known = mask.reshape(len(numbers), width)
    total = sum_classes(torch.where(is_known, flat, 0.0))
    return (total / sum_classes(is_known.double()).clamp(min=1)).float()


def one_each(values: Tensor) -> tuple[int, ...]:
    """Return the shape of one number a teacher that broadcasts over values [T, B, *S]."""
    return (len(values), *[1] * (values.ndim - 1))


def check_finite(is_fine: Tensor, where: str) -> None:
    """Raise StillroomError unless all of [T, B, *S] is fine."""
    if not is_fine.all():
        teacher, row = (int(i) for i in (~is_fine).nonzero()[0][:2])
        raise StillroomError(
            f"{where}: teacher {teacher}, row {row} has a value that is not finite; expected finite numbers; mend that "
            f"teacher's answers"
        )


def check_mask(mask: Tensor, shape: torch.Size, where: str) -> None:
    if mask.dtype != torch.bool or mask.shape != shape:
        raise StillroomError(
            f"{where}: a mask {list(mask.shape)} of {mask.dtype}; expected {list(shape)} of torch.bool, true where the "
            f"targets are known; make it so"
        )


def check_flags(where: str, **flags: object) -> None:
    for name, value in flags.items():
        if not isinstance(value, bool):
            raise StillroomError(f"{where}: {name} is {value!r}; expected true or false; change {name}")
