"""Divergences between the target and the student's softmax: forward, reverse, Jensen-Shannon, weighed by the label.

Trade: forward KL covers all that the teachers hold likely and its mixture is exact (SCIENCE 0.1); reverse KL settles on
what it can reach, Jensen-Shannon lies between and is bounded. No kind but `wsl` reads `labels`: all are called alike.
"""

import math

import torch
from torch import Tensor
from torch.nn import functional

from pipeline.losses.base import (
    LOWEST,
    Targets,
    at_least_float32,
    divergence,
    label_cross_entropy,
    paired,
)
from pipeline.losses.labels import cross_entropy
from pipeline.sparse import SparseTargets

SMALLEST = 1e-7  # nats: a target surer than this is as sure as float32 can tell


def kl_divergence(
    student_logits: Tensor, targets: Targets, *, temperature: float, labels: Tensor | None = None
) -> Tensor:
    """Return KL(target ‖ softmax(student / temperature)) in nats, times temperature².

    `[..., C], [..., C] -> [...]`. The target holds log-probabilities taken at this temperature:
    softening them here would not be the mixture of the softened teachers. Classes of probability
    zero (-inf) count nothing. Source: Hinton, Vinyals, Dean 2015, section 2.

    Of sparse targets, all classes left out count as one (the bucket `log_rest`). Random draws have
    none: their gradient is right on average, their value too large by the entropy that draws lack.
    """
    if isinstance(targets, SparseTargets):
        return _sparse_kl(at_least_float32(student_logits) / temperature, targets) * temperature**2
    log_probs = at_least_float32(targets)
    log_student = functional.log_softmax(at_least_float32(student_logits) / temperature, dim=-1)
    probs = log_probs.exp()
    # where, not xlogy: 0 * (-inf - log q) is nan, and so is 0 * (-inf - -inf) for a masked class
    terms = torch.where(probs > 0, probs * (log_probs - log_student), 0.0)
    return terms.sum(dim=-1) * temperature**2


def _sparse_kl(logits: Tensor, targets: SparseTargets) -> Tensor:
    """Return sum_K p (log p - log q) + r (log r - log(1 - sum_K q)), q the softmax over all C: `[..., C] -> [...]`.

    Its gradient is that of a dense target that shares the rest r as the student does.
    Source: Anshumann 2025 (2503.16870), there the "ghost token"; the first sum alone for their random draws.
    """
    # expand refuses other numbers of rows, where gather would quietly take the first ones
    ids = targets.ids.long().expand(*logits.shape[:-1], targets.ids.shape[-1])
    log_total = logits.logsumexp(-1)
    kept = _kept(targets.log_probs, logits.gather(-1, ids) - log_total.unsqueeze(-1)).sum(-1)
    if targets.log_rest is None:
        return kept
    named = targets.named(logits.shape[-1])
    # not log(1 - sum q): once the student is sure the sum rounds to 1, and value and gradient are lost
    log_tail = logits.masked_fill(named, -math.inf).logsumexp(-1) - log_total
    # where every class is named there is no bucket; what rounding left in it would cost infinity
    log_rest = targets.log_rest.masked_fill(named.all(-1), -math.inf)
    return kept + _kept(log_rest, log_tail)


def _kept(log_probs: Tensor, log_student: Tensor) -> Tensor:
    """Return p (log p - log q), 0.0 where p is 0: see `kl_divergence` for why not by multiplication."""
    log_probs = at_least_float32(log_probs)
    probs = log_probs.exp()
    return torch.where(probs == 0, 0.0, probs * (log_probs - log_student))


def reverse_kl(student_logits: Tensor, targets: Targets, *, temperature: float, labels: Tensor | None = None) -> Tensor:
    """Return KL(softmax(student / temperature) ‖ target) in nats, times temperature²: `[..., C], [..., C] -> [...]`.

    Infinite where the target rules out (-inf) what the student does not, so the target is held at e^-100 at least: a
    student that puts q on such a class pays 100 q. Of sparse targets, all classes left out count as one; random draws
    are refused, for a class that wasn't drawn is not impossible. Source: Gu 2024 (2306.08543).
    """
    log_probs, log_student = paired(at_least_float32(student_logits) / temperature, targets)
    return divergence(log_student, log_probs.clamp(min=LOWEST)).sum(-1) * temperature**2


def jensen_shannon(
    student_logits: Tensor,
    targets: Targets,
    *,
    temperature: float,
    labels: Tensor | None = None,
    beta: float = 0.5,
) -> Tensor:
    """Return beta KL(p ‖ m) + (1 - beta) KL(q ‖ m) in nats, m = beta p + (1 - beta) q, times temperature².

    `[..., C], [..., C] -> [...]`; p is the target, q the student's softmax at this temperature, `beta` in (0, 1). At
    most the entropy of beta (log 2 at 0.5); divided by beta it tends to KL(p ‖ q) as beta goes to 0, divided by
    1 - beta to KL(q ‖ p) as beta goes to 1. Sparse targets as in `reverse_kl`. Source: Agarwal 2024 (2306.13649).
    """
    log_probs, log_student = paired(at_least_float32(student_logits) / temperature, targets)
    # the floor only keeps the sum of two zeros from being the log of zero
    parts = log_probs.clamp(min=LOWEST) + math.log(beta), log_student.clamp(min=LOWEST) + math.log1p(-beta)
    log_mixture = torch.logaddexp(*parts)
    terms = beta * divergence(log_probs, log_mixture) + (1 - beta) * divergence(log_student, log_mixture)
    return terms.sum(-1) * temperature**2


def weighted_soft_labels(
    student_logits: Tensor, targets: Targets, *, temperature: float, labels: Tensor | None = None
) -> Tensor:
    """Return w_i times `kl_divergence`, w_i = 1 - exp(-CE(y, q) / CE(y, p)): `[..., C], [..., C] -> [...]`.

    What the student does well counts less, and so does what the teachers do badly; w_i carries no gradient and is 1
    where the label is -1. Both cross-entropies are those at temperature 1 (see `label_cross_entropy`). The source has
    the cross-entropy with the target where we have KL: the gradient is the same, and equality costs 0. Its weights of
    the two terms, 1 and 2.5, are the alpha rule "wsl". Source: Zhou 2021 (2102.00650).
    """
    soft = kl_divergence(student_logits, targets, temperature=temperature)
    if labels is None:
        return soft
    student_ce = cross_entropy(student_logits.detach(), labels)
    weights = lesson_weights(student_ce, label_cross_entropy(targets, labels, temperature=temperature))
    return torch.where(labels >= 0, weights, 1.0) * soft


def lesson_weights(student_ce: Tensor, target_ce: Tensor) -> Tensor:
    """Return 1 - exp(-student_ce / target_ce), in [0, 1]: what a row still has to teach."""
    return -torch.expm1(-student_ce.clamp(min=0) / target_ce.clamp(min=SMALLEST))
