"""Several teachers' real numbers into one: regression, boxes, series.

Trade: a number has no confidence of its own, so how far a teacher is trusted comes from what it got wrong on
calibration rows; `mean` and `median` need none. A row's result has the same bits whatever rows share its block, as in
`pipeline.fusion.base`: `fuse` works in float64, element by element, and answers in float32.
"""

from dataclasses import dataclass, replace
from typing import Self

import numpy as np
import torch
from torch import Tensor

from pipeline.errors import StillroomError
from pipeline.fusion.base import check_positive
from pipeline.fusion.distributions import sum_teachers
from pipeline.fusion.real.base import (
    FusedReals,
    RealFusion,
    check_flags,
    checked,
    one_each,
    over_outputs,
    row_weights,
    together,
)
from pipeline.fusion.real.fit import Entries, entries, non_negative_least_squares, performance_weights, residual_moments
from pipeline.views import RowKeys


@dataclass(frozen=True)
class Mean(RealFusion):
    """Every teacher counts the same. The variance is that between the teachers: 0 where they share a mistake."""

    def fuse(self, values: Tensor, *, mask: Tensor | None = None, keys: RowKeys | None = None) -> FusedReals:
        """Return the plain mean."""
        values = checked(values, mask, self.where)
        return together(values, torch.full(one_each(values), 1 / len(values), dtype=values.dtype), mask)


@dataclass(frozen=True)
class Median(RealFusion):
    """The middle teacher of each output, of two middle ones their mean: a wild teacher moves nothing.

    A teacher's weight is the share of outputs in which it is the middle one. Variance and disagreement are mean squares
    of all teachers' distances from the median.
    """

    def fuse(self, values: Tensor, *, mask: Tensor | None = None, keys: RowKeys | None = None) -> FusedReals:
        """Return the median."""
        values = checked(values, mask, self.where)
        count, ordered = len(values), values.sort(dim=0).values
        middle = [ordered[(count - 1) // 2], ordered[count // 2]]
        mean = middle[0] + (middle[1] - middle[0]) / 2
        is_middle = [(values == each).double() for each in middle]
        weights = sum_teachers(own / sum_teachers(own) / 2 for own in is_middle)
        variance = sum_teachers((values - mean).square()) / count
        return FusedReals(mean.float(), variance.float(), row_weights(weights, mean), over_outputs(variance, mask))


@dataclass(frozen=True)
class Weighted(RealFusion):
    """Teachers count by their mean square error on calibration rows: w_k = softmax_k(-MSE_k / var(y) / tau).

    The targets' variance is about each output's mean, both sums over all entries, so that no unit matters: MSE / var is
    1 - R². The variance is that between the teachers. Source: SCIENCE 2, "performance weights".
    """

    tau: float = 0.1

    def __post_init__(self) -> None:
        check_positive(self.where, "tau", self.tau)

    def fit(self, values: Tensor, targets: Tensor, mask: Tensor | None = None) -> Self:
        """Return a copy with weights [T, 1]. Raises: StillroomError also when the targets do not vary."""
        return self.with_state(weights=performance_weights(entries(values, targets, mask, self.where), self.tau))

    def fuse(self, values: Tensor, *, mask: Tensor | None = None, keys: RowKeys | None = None) -> FusedReals:
        """Return the weighted mean."""
        values = checked(values, mask, self.where)
        return together(values, self.fitted_state("weights", values), mask)


@dataclass(frozen=True)
class InverseVariance(RealFusion):
    """A product of Gaussians: mu = sum_k mu_k / s_k² / sum_k 1 / s_k², variance 1 / sum_k 1 / s_k².

    s_k² is teacher k's residual variance on calibration rows, of each output, or of all together (`shared`). `debias`
    takes its mean residual away first; without it s_k² is the mean square error. Of unbiased teachers whose mistakes
    have nothing to do with each other, no unbiased mean has less variance; of others, the variance is too small. A
    teacher without a mistake has all the weight. Source: SCIENCE 9; Cochran 1937.
    """

    debias: bool = True
    shared: bool = False

    def __post_init__(self) -> None:
        check_flags(self.where, debias=self.debias, shared=self.shared)

    def fit(self, values: Tensor, targets: Tensor, mask: Tensor | None = None) -> Self:
        """Return a copy with bias and variance [T, *S], of all outputs [T, 1]."""
        rows = entries(values, targets, mask, self.where)
        bias, variance = residual_moments(rows, debias=self.debias, shared=self.shared)
        return self.with_state(bias=bias, variance=variance)

    def fuse(self, values: Tensor, *, mask: Tensor | None = None, keys: RowKeys | None = None) -> FusedReals:
        """Return the mean weighted by precision, of values that were debiased if they should be."""
        values = checked(values, mask, self.where)
        variance = self.fitted_state("variance", values)
        least = variance.amin(dim=0)
        precision = torch.where(variance == least, 1.0, least / variance)  # over the highest: finite where least is 0
        total = sum_teachers(precision)
        found = together(values - self.fitted_state("bias", values), precision / total, mask)
        return replace(found, variance=(least / total).expand_as(found.mean).float())


@dataclass(frozen=True)
class Stacking(RealFusion):
    """A regression without negative weights: mu = b_0 + sum_k b_k mu_k, b_k >= 0, least squares on calibration rows.

    `shared` fits one b for all outputs, else each output has its own; b_0 is 0 unless `intercept`. The b are pulled
    towards 1 / T by next to nothing, so that they are unique; they need not sum to one: the weights reported do. The
    variance is that of the residuals on the calibration rows. Source: Breiman 1996, "Stacked regressions".
    """

    shared: bool = True
    intercept: bool = False

    def __post_init__(self) -> None:
        check_flags(self.where, shared=self.shared, intercept=self.intercept)

    def fit(self, values: Tensor, targets: Tensor, mask: Tensor | None = None) -> Self:
        """Return a copy with factors [T, *S] and intercept, variance [*S]; 1 for S where shared.

        Raises: StillroomError also when there are not more entries than unknowns, or no teacher is of any use.
        """
        rows = entries(values, targets, mask, self.where)
        rows = rows.as_one_output() if self.shared else rows
        rows.check_count(rows.num_teachers + int(self.intercept) + 1, "one more than it has unknowns")
        found = [self._fit_output(rows, output) for output in range(rows.num_outputs)]
        factors, intercept, variance = (np.stack(part, axis=-1) for part in zip(*found, strict=True))
        return self.with_state(
            factors=factors.reshape(-1, *rows.shape),
            intercept=intercept.reshape(rows.shape),
            variance=variance.reshape(rows.shape),
        )

    def _fit_output(self, rows: "Entries", output: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Return factors [T], intercept [] and variance [] of one output."""
        is_known = rows.is_known[:, output]
        inputs, wanted = rows.values[:, is_known, output].T.numpy(), rows.targets[is_known, output].numpy()
        centre = inputs.mean(axis=0) if self.intercept else np.zeros(rows.num_teachers)
        middle = wanted.mean() if self.intercept else 0.0
        factors = non_negative_least_squares(inputs - centre, wanted - middle)
        if not factors.any():
            raise StillroomError(
                f"{self.where}: every teacher's weight{rows.of_output(output)} is 0; expected teachers that move with "
                f"the targets; use real fusion 'mean'{'' if self.shared else ' or shared = true'}"
            )
        intercept = middle - centre @ factors
        residuals = wanted - intercept - inputs @ factors
        unknowns = rows.num_teachers + int(self.intercept)
        return factors, np.asarray(intercept), np.asarray(residuals @ residuals / (len(wanted) - unknowns))

    def fuse(self, values: Tensor, *, mask: Tensor | None = None, keys: RowKeys | None = None) -> FusedReals:
        """Return the regression's answer."""
        values = checked(values, mask, self.where)
        factors = self.fitted_state("factors", values)
        found = together(values, factors / sum_teachers(factors), mask)
        mean = sum_teachers(b * v for b, v in zip(factors, values, strict=True))
        mean = mean + self.fitted_state("intercept", values, has_teachers=False)
        variance = self.fitted_state("variance", values, has_teachers=False).expand_as(mean)
        return replace(found, mean=mean.float(), variance=variance.float())


@dataclass(frozen=True)
class Moments(RealFusion):
    """A mixture of Gaussians by its moments: mu = sum_k w_k mu_k, variance = sum_k w_k (s_k² + mu_k²) - mu².

    s_k² is teacher k's mean square error on calibration rows, of each output or of all together (`shared`). Equal
    weights, or with `tau` those of 'weighted'. The variance grows where teachers part, and never falls below their own,
    so it is no smaller for mistakes that they share. Source: SCIENCE 9; Lakshminarayanan 2017, section 2.4.
    """

    tau: float | None = None
    shared: bool = False

    def __post_init__(self) -> None:
        if self.tau is not None:
            check_positive(self.where, "tau", self.tau)
        check_flags(self.where, shared=self.shared)

    def fit(self, values: Tensor, targets: Tensor, mask: Tensor | None = None) -> Self:
        """Return a copy with weights [T, 1] and variance [T, *S], of all outputs [T, 1]."""
        rows = entries(values, targets, mask, self.where)
        _, variance = residual_moments(rows, debias=False, shared=self.shared)
        count = rows.num_teachers
        equal = torch.full((count, 1), 1 / count, dtype=torch.float64)
        weights = equal if self.tau is None else performance_weights(rows, self.tau)
        return self.with_state(weights=weights, variance=variance)

    def fuse(self, values: Tensor, *, mask: Tensor | None = None, keys: RowKeys | None = None) -> FusedReals:
        """Return the mixture's mean and variance."""
        values = checked(values, mask, self.where)
        weights = self.fitted_state("weights", values)
        return together(values, weights, mask, within=sum_teachers(weights * self.fitted_state("variance", values)))
