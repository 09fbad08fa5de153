"""Losses that match something else than probabilities: how they correlate, their logits' shape, the logits themselves.

Trade: the first two let a small student keep its own scale, the last asks for the teachers' scale too. None is linear
in the target's probabilities, so a fused target is an approximation there, except of mean logits for `logit_mse`.
No kind reads `labels`: all losses are called alike.
"""

import math

import torch
from torch import Tensor

from pipeline.losses.base import Targets, at_least_float32, dense_only, divergence

SPREAD = 1e-12  # sum of squares: probabilities that differ by less than its root, 1e-6, differ by rounding
SMALLEST_STD = 1e-3  # of logits: bounds the gradient where a student says the same of every class, as at its start
IMPOSSIBLE = -16.0  # nats, below float32's rounding of 1: what a class of probability 0 counts as, among logits


def correlation(
    student_logits: Tensor,
    targets: Targets,
    *,
    temperature: float,
    labels: Tensor | None = None,
    beta: float = 2.0,
    gamma: float = 2.0,
) -> Tensor:
    """Return beta (1 - rho of a row) + gamma (1 - mean over classes of rho down the batch), times temperature².

    `[..., C], [..., C] -> [...]`; rho is Pearson's correlation of target and student probabilities at this temperature,
    leading axes count as one batch. The second part is one value, shared by all cases, so that the mean over cases is
    the published loss; a case's own value depends on its batch. 0 where the student's probabilities are the target's up
    to one scale and offset. A row or column that is constant has rho 0. Source: Huang 2022 (2205.10536).
    """
    student = (at_least_float32(student_logits) / temperature).softmax(-1)
    target = dense_only(targets, "dist").exp().expand_as(student)
    rows = 1 - _pearson(student, target, dim=-1)
    columns = 1 - _pearson(student.flatten(0, -2), target.flatten(0, -2), dim=0).mean()
    return (beta * rows + gamma * columns) * temperature**2


def _pearson(first: Tensor, second: Tensor, *, dim: int) -> Tensor:
    """Return the correlation along an axis, 0.0 with a finite gradient where one side is constant."""
    first, second = first - first.mean(dim, keepdim=True), second - second.mean(dim, keepdim=True)
    spreads = (first.square().sum(dim) + SPREAD) * (second.square().sum(dim) + SPREAD)
    return (first * second).sum(dim) / spreads.sqrt()


def standardised_kl(
    student_logits: Tensor, targets: Targets, *, temperature: float, labels: Tensor | None = None
) -> Tensor:
    """Return KL(softmax(Z(log p) / T) ‖ softmax(Z(student) / T)) in nats, times T²: `[..., C], [..., C] -> [...]`.

    Z takes a row's mean off and divides by its standard deviation (C - 1 degrees of freedom), so neither the scale nor
    the offset of logits matters, and log-probabilities of any temperature serve as logits. The row with C = 2 is always
    (-0.707, 0.707): of no use there. A class of probability 0 counts as 1e-7, or as the least likely if that is less.
    Weight 9 and T 2 in the source, against KD with 0.9 and T 4. Source: Sun 2024 (2403.01427).
    """
    target = (_standardised(_possible(dense_only(targets, "zscore"))) / temperature).log_softmax(-1)
    student = (_standardised(at_least_float32(student_logits)) / temperature).log_softmax(-1)
    return divergence(target, student).sum(-1) * temperature**2


def _standardised(logits: Tensor) -> Tensor:
    centred = logits - logits.mean(-1, keepdim=True)
    return centred / centred.std(-1, keepdim=True).clamp(min=SMALLEST_STD)


def logit_mse(student_logits: Tensor, targets: Targets, *, temperature: float, labels: Tensor | None = None) -> Tensor:
    """Return the mean over classes of (centred student logits - centred T log p)²: `[..., C], [..., C] -> [...]`.

    log p at temperature T is a teacher's logits over T up to an offset, and taking the mean off both sides removes it.
    Half its gradient is KL's (times T²) as T grows. A class of probability 0 counts as in `standardised_kl`.
    Source: Ba and Caruana 2014 (1312.6184); Kim 2021 (2105.08919).
    """
    student = at_least_float32(student_logits)
    target = temperature * _possible(dense_only(targets, "logit_mse"))
    gap = student - target
    return (gap - gap.mean(-1, keepdim=True)).square().mean(-1)


def _possible(log_probs: Tensor) -> Tensor:
    """Return log-probabilities without -inf: impossible classes come last, at most as likely as `IMPOSSIBLE`."""
    is_possible = log_probs != -math.inf
    last = torch.where(is_possible, log_probs, math.inf).amin(-1, keepdim=True).clamp(max=IMPOSSIBLE)
    return torch.where(is_possible, log_probs, last)
