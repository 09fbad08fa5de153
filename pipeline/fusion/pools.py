"""Stacking by a number per teacher: those that make the pool of all, not each alone, predict calibration rows best.

Trade: a teacher's number goes by what it adds to the others, so copies of one opinion share its weight, and it takes
more rows to tell than how good a teacher is alone. The linear pool is a mixture: it survives a teacher that is surely
wrong. The log pool is a product: sharper, and it can mend the confidence of all, but any teacher vetoes.
"""

from dataclasses import dataclass
from typing import Any, Self

import numpy as np
import torch
from torch import Tensor

from pipeline.errors import StillroomError
from pipeline.fusion.base import FusedTargets, Fusion, Outputs
from pipeline.fusion.distributions import (
    disagreement,
    label_nll,
    log_softmax,
    mixture,
    row_weights,
    soften,
    sum_teachers,
)
from pipeline.metrics import num_pieces

CLOSE_ENOUGH = 1e-6  # nats: the linear pool's NLL is at most this much above the lowest
PULL = 1.0  # on half the squares of b - 1/T, beside the NLL summed over rows
RULED_OUT = -1000.0  # log-probabilities in a fit: nearer to certainty than any row can tell


@dataclass(frozen=True)
class LinearPool(Fusion):
    """The mixture of lowest NLL on calibration rows, its weights then moved towards equal ones by `shrink`.

    EM: r_ik is in proportion to w_k p_k(y_i), w_k = mean_i r_ik, from equal weights until the NLL is provably within
    1e-6 nats of the lowest, or for `iterations`: after n of them it is within log(T) / n. A `shrink` of 1 is the plain
    mean; 0.1 keeps every teacher a say. Source: Yao 2018 (stacking of predictive distributions); Wolpert 1992; Cover
    1984 (the algorithm and its bound).
    """

    shrink: float = 0.1
    iterations: int = 2000

    def __post_init__(self) -> None:
        where = "fusion 'linear_pool'"
        if isinstance(self.shrink, bool) or not isinstance(self.shrink, int | float) or not 0 <= self.shrink <= 1:
            raise StillroomError(f"{where}: shrink is {self.shrink!r}; expected a number from 0 to 1; change shrink")
        if isinstance(self.iterations, bool) or not isinstance(self.iterations, int) or self.iterations < 1:
            raise StillroomError(
                f"{where}: iterations is {self.iterations!r}; expected a whole number from 1 on; change iterations"
            )

    def fit(self, outputs: Outputs) -> Self:
        """Return a copy with the weights that these rows give. Raises: StillroomError when no row has a label."""
        logits, labels = outputs.labelled("fusion 'linear_pool'")
        weights = stack_linearly(-label_nll(logits, labels), iterations=self.iterations)
        return self.with_state(weights=(1 - self.shrink) * weights + self.shrink / len(weights))

    def fuse(self, outputs: Outputs, *, temperature: float) -> FusedTargets:
        """Return the weighted mixture. Raises: StillroomError before `fit`, or for another number of teachers."""
        soft = soften(outputs.logits, temperature=temperature)
        return mixture(soft, row_weights(self.fitted_state("weights", soft.num_teachers), soft))


def stack_linearly(log_probs: Tensor, *, iterations: int) -> Tensor:
    """Return the weights [T] that make mean_i log sum_k w_k p_k(y_i) the highest: log p_k(y_i) `[T, N]`, float64.

    With g_k = mean_i p_k(y_i) / sum_j w_j p_j(y_i), a step is w_k g_k, and no weights are better by more than
    log max_k g_k. What is missing never grows and its sum over all steps is at most KL(best ‖ equal weights) <= log T.
    Source: Cover 1984.
    """
    probs = (log_probs - log_probs.amax(dim=0)).exp()  # a row's scale cancels, and no row is 0 for all
    weights = torch.full((len(probs),), 1 / len(probs), dtype=probs.dtype)
    for _ in range(iterations):
        gains = (probs / (weights @ probs)).mean(dim=1)
        if gains.amax().log() <= CLOSE_ENOUGH:
            break
        weights = weights * gains
    return weights / weights.sum()


@dataclass(frozen=True)
class LogPool(Fusion):
    """softmax(sum_k b_k log p_k / temperature) with the b >= 0 of lowest NLL on calibration rows.

    The prior N(1/T, 1) on each b weighs less than a row: it decides between equally good b, such as those of copies of
    a teacher, and ends the growth of b where no row is mistaken; one calibrated teacher has b = 1. The weights reported
    are b / sum b; the disagreement is the mixture's with these weights.
    Source: Hinton 2002 (products of experts); Genest & Zidek 1986 (logarithmic pools).
    """

    def fit(self, outputs: Outputs) -> Self:
        """Return a copy with the exponents that these rows give.

        Raises: StillroomError when no row has a label, or when all exponents are 0: the rows say that the teachers know
        nothing.
        """
        logits, labels = outputs.labelled("fusion 'log_pool'")
        exponents = stack_in_logs(logits, labels)
        if not exponents.any():
            raise StillroomError(
                f"fusion 'log_pool': the exponent of every teacher is 0 on {len(labels)} rows, so none of "
                f"{len(exponents)} is better than guessing there; expected at least one above 0; look at the labels "
                f"and the teachers' class order, or use fusion 'mean'"
            )
        return self.with_state(exponents=exponents)

    def fuse(self, outputs: Outputs, *, temperature: float) -> FusedTargets:
        """Return the product. Raises: StillroomError before `fit`, or for another number of teachers."""
        soft = soften(outputs.logits, temperature=temperature)
        exponents = self.fitted_state("exponents", soft.num_teachers)
        weights = row_weights(exponents / exponents.sum(), soft)
        terms = (own * z for own, z in zip(exponents.to(soft.sums), soft.shifted, strict=True))
        # `shifted` are logits over the temperature but for a constant per row, which the softmax does not see
        return FusedTargets(log_softmax(sum_teachers(terms)), weights, disagreement(soft, weights))


def stack_in_logs(logits: Tensor, labels: Tensor) -> Tensor:
    """Return the exponents b >= 0 of lowest NLL of softmax(sum_k b_k z_k), the prior's included: float64 [T].

    `[T, N, C], [N] -> [T]`. The function is convex and its slope in b_k is mean_i(E_pool[z_k] - z_k(y_i)).
    """
    from scipy.optimize import minimize  # here, because it takes 0.25 s to import

    pieces = logits.tensor_split(num_pieces(*logits.shape[1:]), dim=1)
    chosen = labels.expand(len(logits), -1).unsqueeze(-1).tensor_split(len(pieces), dim=1)
    own = torch.cat([_ruled(z).gather(-1, y).squeeze(-1) for z, y in zip(pieces, chosen, strict=True)], dim=1)
    start = torch.full((len(logits),), 1 / len(logits), dtype=torch.float64)
    pull = PULL / len(labels)

    def nll_and_slope(values: np.ndarray) -> tuple[float, np.ndarray]:
        exponents = torch.from_numpy(values)
        found = [_log_sums_and_means(_ruled(piece), exponents) for piece in pieces]
        log_sums, means = (torch.cat(each, dim=-1) for each in zip(*found, strict=True))
        slopes = torch.stack([each.mean() for each in means]) - own.mean(dim=1)
        nll = (log_sums - exponents @ own).mean()
        away = exponents - start
        return (nll + pull / 2 * away @ away).item(), (slopes + pull * away).numpy()

    options: dict[str, Any] = {"ftol": 0.0, "gtol": 1e-10, "maxiter": 1000}
    bounds = [(0, None)] * len(logits)
    found = minimize(nll_and_slope, start.tolist(), jac=True, method="L-BFGS-B", bounds=bounds, options=options)
    return torch.from_numpy(found.x)


def _ruled(logits: Tensor) -> Tensor:
    """Return logits less their maximum, not below -1000: float64."""
    logits = logits.double()
    return (logits - logits.amax(dim=-1, keepdim=True)).clamp_(min=RULED_OUT)


def _log_sums_and_means(shifted: Tensor, exponents: Tensor) -> tuple[Tensor, Tensor]:
    """Return the log-sum-exp of pooled rows [n], and the pool's mean of each teacher's logits [T, n]."""
    pooled = torch.tensordot(exponents, shifted, dims=1)
    log_sums = pooled.logsumexp(dim=-1)
    probs = (pooled - log_sums.unsqueeze(-1)).exp_()
    return log_sums, torch.stack([(probs * z).sum(dim=-1) for z in shifted])
