"""Several teachers' real numbers into one: regression, boxes, series.

Trade: a number has no confidence of its own, so how far a teacher is trusted comes from what it got wrong on
calibration rows; `mean` and `median` need none. A row's result has the same bits whatever rows share its block, as in
`pipeline.fusion.base`: `fuse` works in float64, element by element, and answers in float32.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Self

import numpy as np
import torch
from torch import Tensor

from pipeline.errors import StillroomError
from pipeline.fusion.base import check_positive, sum_classes, sum_teachers, with_fitted

PULL = 1e-12  # of the teachers' mean square, towards equal weights: copies of a teacher share theirs in any order


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
class RealFusion:
    """A frozen dataclass whose fields are plain JSON options; a wrong option raises StillroomError at once.

    `state` holds what was fitted, as arrays by name, teachers along the first axis of those that have one.
    """

    state: Mapping[str, Tensor] = field(default_factory=dict, init=False, repr=False, compare=False)

    @property
    def is_fitted_on_rows(self) -> bool:
        """Whether `fit` looks at rows at all."""
        return type(self).fit is not RealFusion.fit

    def fit(self, values: Tensor, targets: Tensor, mask: Tensor | None = None) -> Self:
        """Return a copy fitted on rows that no teacher was trained on: float [T, N, *S], [N, *S], bool [N, *S].

        Entries that `mask` leaves out may be anything, nan too. Raises: StillroomError where the rest does not do.
        """
        return self

    def fuse(self, values: Tensor, *, mask: Tensor | None = None) -> FusedReals:
        """Return what the teachers say together: float [T, B, *S]; `mask` bool [B, *S] picks what they may part on.

        Raises: StillroomError when a value is not finite, before a `fit` that is needed, or for other teachers or
        outputs than it was fitted on.
        """
        raise NotImplementedError

    def fitted(self) -> dict[str, Any]:
        """Return what was fitted, as JSON for people: the small arrays; lists run by teacher position."""
        return {name: values.tolist() for name, values in self.state.items() if values.numel() <= 1000}

    def with_state(self, **state: Tensor | np.ndarray) -> Self:
        """Return a copy that holds what was fitted."""
        return with_fitted(self, state={name: torch.as_tensor(values) for name, values in state.items()})

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
        return f"real fusion {next((name for name, made in REAL_FUSIONS.items() if made is type(self)), '?')!r}"


@dataclass(frozen=True)
class Mean(RealFusion):
    """Every teacher counts the same. The variance is that between the teachers: 0 where they share a mistake."""

    def fuse(self, values: Tensor, *, mask: Tensor | None = None) -> FusedReals:
        """Return the plain mean."""
        values = checked(values, mask, self.where)
        return together(values, torch.full(_ones(values), 1 / len(values), dtype=values.dtype), mask)


@dataclass(frozen=True)
class Median(RealFusion):
    """The middle teacher of each output, of two middle ones their mean: a wild teacher moves nothing.

    A teacher's weight is the share of outputs in which it is the middle one. Variance and disagreement are mean squares
    of all teachers' distances from the median.
    """

    def fuse(self, values: Tensor, *, mask: Tensor | None = None) -> FusedReals:
        """Return the median."""
        values = checked(values, mask, self.where)
        count, ordered = len(values), values.sort(dim=0).values
        middle = [ordered[(count - 1) // 2], ordered[count // 2]]
        mean = middle[0] + (middle[1] - middle[0]) / 2
        is_middle = [(values == each).double() for each in middle]
        weights = sum_teachers(own / sum_teachers(own) / 2 for own in is_middle)
        variance = sum_teachers((values - mean).square()) / count
        return FusedReals(mean.float(), variance.float(), _row_weights(weights, mean), _over_outputs(variance, mask))


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

    def fuse(self, values: Tensor, *, mask: Tensor | None = None) -> FusedReals:
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
        _check_flags(self.where, debias=self.debias, shared=self.shared)

    def fit(self, values: Tensor, targets: Tensor, mask: Tensor | None = None) -> Self:
        """Return a copy with bias and variance [T, *S], of all outputs [T, 1]."""
        rows = entries(values, targets, mask, self.where)
        bias, variance = residual_moments(rows, debias=self.debias, shared=self.shared)
        return self.with_state(bias=bias, variance=variance)

    def fuse(self, values: Tensor, *, mask: Tensor | None = None) -> FusedReals:
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
        _check_flags(self.where, shared=self.shared, intercept=self.intercept)

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

    def fuse(self, values: Tensor, *, mask: Tensor | None = None) -> FusedReals:
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
        _check_flags(self.where, shared=self.shared)

    def fit(self, values: Tensor, targets: Tensor, mask: Tensor | None = None) -> Self:
        """Return a copy with weights [T, 1] and variance [T, *S], of all outputs [T, 1]."""
        rows = entries(values, targets, mask, self.where)
        _, variance = residual_moments(rows, debias=False, shared=self.shared)
        count = rows.num_teachers
        equal = torch.full((count, 1), 1 / count, dtype=torch.float64)
        weights = equal if self.tau is None else performance_weights(rows, self.tau)
        return self.with_state(weights=weights, variance=variance)

    def fuse(self, values: Tensor, *, mask: Tensor | None = None) -> FusedReals:
        """Return the mixture's mean and variance."""
        values = checked(values, mask, self.where)
        weights = self.fitted_state("weights", values)
        return together(values, weights, mask, within=sum_teachers(weights * self.fitted_state("variance", values)))


REAL_FUSIONS: dict[str, Callable[..., RealFusion]] = {
    "mean": Mean,
    "weighted": Weighted,
    "inverse_variance": InverseVariance,
    "median": Median,
    "stacking": Stacking,
    "moments": Moments,
}


# -- what `fuse` is built from: elementwise, in one order -------------------------------------------------------------


def checked(values: Tensor, mask: Tensor | None, where: str) -> Tensor:
    """Return values [T, B, *S] as float64. Raises StillroomError that names the first teacher and row not finite."""
    if values.ndim < 2 or not len(values):
        raise StillroomError(f"{where}: values {list(values.shape)}; expected [T, B, ...]; stack the teachers' answers")
    if mask is not None:
        _check_mask(mask, values.shape[1:], where)
    _check_finite(values.isfinite(), where)
    return values.double()


def together(values: Tensor, weights: Tensor, mask: Tensor | None, *, within: Tensor | float = 0.0) -> FusedReals:
    """Return the weighted mean; its variance is that between the teachers and what they have `within`.

    Float64 [T, B, *S]; weights [T, B or 1, *S or ones], which sum to one.
    """
    mean = sum_teachers(w * v for w, v in zip(weights, values, strict=True))
    spread = sum_teachers(w * (v - mean).square() for w, v in zip(weights, values, strict=True))
    disagreement = _over_outputs(spread, mask)
    return FusedReals(mean.float(), (spread + within).float(), _row_weights(weights, mean), disagreement)


def _row_weights(weights: Tensor, mean: Tensor) -> Tensor:
    """Return the mean weights of rows over their outputs: [T, B or 1, *S or ones] -> [B, T]."""
    return torch.stack([_over_outputs(own, None).expand(len(mean)) for own in weights], dim=-1)


def _over_outputs(numbers: Tensor, mask: Tensor | None) -> Tensor:
    """Return the mean over a row's outputs, over those of the mask alone, 0 where it has none: [B, *S] -> [B]."""
    width = math.prod(numbers.shape[1:])
    flat = numbers.reshape(len(numbers), width)
    if mask is None:
        return (sum_classes(flat) / width).float()
    is_known = mask.reshape(len(numbers), width)
    total = sum_classes(torch.where(is_known, flat, 0.0))
    return (total / sum_classes(is_known.double()).clamp(min=1)).float()


def _ones(values: Tensor) -> tuple[int, ...]:
    """Return the shape of one number a teacher that broadcasts over values [T, B, *S]."""
    return (len(values), *[1] * (values.ndim - 1))


# -- what `fit` is built from -----------------------------------------------------------------------------------------


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
    _check_mask(is_known, targets.shape, where)
    if not is_known.any():
        raise StillroomError(
            f"{where}: none of {targets.numel()} calibration entries is known; expected some; give them targets or use "
            f"real fusion 'mean'"
        )
    _check_finite(values.isfinite() | ~is_known, where)
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

    p is a 1e-12th of the columns' mean square. Rows are first reduced to a triangle of T + 1, which has the same
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


def _check_finite(is_fine: Tensor, where: str) -> None:
    """Raise StillroomError unless all of [T, B, *S] is fine."""
    if not is_fine.all():
        teacher, row = (int(i) for i in (~is_fine).nonzero()[0][:2])
        raise StillroomError(
            f"{where}: teacher {teacher}, row {row} has a value that is not finite; expected finite numbers; mend that "
            f"teacher's answers"
        )


def _check_mask(mask: Tensor, shape: torch.Size, where: str) -> None:
    if mask.dtype != torch.bool or mask.shape != shape:
        raise StillroomError(
            f"{where}: a mask {list(mask.shape)} of {mask.dtype}; expected {list(shape)} of torch.bool, true where the "
            f"targets are known; make it so"
        )


def _check_flags(where: str, **flags: object) -> None:
    for name, value in flags.items():
        if not isinstance(value, bool):
            raise StillroomError(f"{where}: {name} is {value!r}; expected true or false; change {name}")
