"""Losses that take a row's target class and all other classes apart, so that what is said of the others weighs more.

Trade: a sure teacher leaves almost no mass for the others, and KL then hears nothing of how they compare; here they are
normalised among themselves. Not linear in the target: the mixture of several teachers is not exact (SCIENCE 0.2).
The target class is the label, and the target's own first choice where the label is -1.
"""

import math

import torch
from torch import Tensor

from pipeline.losses.base import Targets, at_least_float32, dense_only, divergence, label_values


def decoupled_kl(
    student_logits: Tensor,
    targets: Targets,
    *,
    temperature: float,
    labels: Tensor | None = None,
    alpha: float = 1.0,
    beta: float = 2.0,
) -> Tensor:
    """Return alpha KL(b_p ‖ b_q) + beta KL(p^ ‖ q^) in nats, times temperature²: `[..., C], [..., C] -> [...]`.

    b = (p_y, 1 - p_y), ^ a distribution over the classes other than y. KL(p ‖ q) is alpha 1 and beta 1 - p_y. Where the
    target leaves the others nothing at all (-inf), the second part is 0. With C = 2 it is 0 everywhere. `beta` is tuned
    from pair to pair, 2 to 8 in the paper. Source: Zhao 2022 (2203.08679).
    """
    log_probs = dense_only(targets, "dkd")
    own_class = target_class(log_probs, labels)
    target = _Parts(log_probs, own_class)
    student = _Parts((at_least_float32(student_logits) / temperature).log_softmax(-1), own_class)
    binary = divergence(target.log_own, student.log_own) + divergence(target.log_others, student.log_others)
    others = divergence(target.log_among, student.log_among).sum(-1)
    return (alpha * binary + beta * others) * temperature**2


def normalised_kd(
    student_logits: Tensor,
    targets: Targets,
    *,
    temperature: float,
    labels: Tensor | None = None,
    gamma: float = 1.5,
) -> Tensor:
    """Return -p_y log q_y - gamma sum_{c != y} p^_c log q^_c in nats, times temperature².

    `[..., C], [..., C] -> [...]`, ^ as in `decoupled_kl`. A cross-entropy, so not 0 where student and target agree. The
    source takes the first part at temperature 1 whatever that of the second; the store has the target at `temperature`,
    so both parts are taken there, and at temperature 1, its default, nothing differs. Source: Yang 2023 (2303.13005).
    """
    log_probs = dense_only(targets, "nkd")
    own_class = target_class(log_probs, labels)
    target = _Parts(log_probs, own_class)
    student = _Parts((at_least_float32(student_logits) / temperature).log_softmax(-1), own_class)
    own = _product(target.log_own, student.log_own)
    others = _product(target.log_among, student.log_among).sum(-1)
    return -(own + gamma * others) * temperature**2


class _Parts:
    """A row's log-probabilities taken apart: of y and of all others [...], and of each among the others [..., C]."""

    def __init__(self, log_probs: Tensor, own_class: Tensor):
        is_own = torch.arange(log_probs.shape[-1], device=log_probs.device) == own_class.unsqueeze(-1)
        self.log_own = label_values(log_probs, own_class)
        others = torch.where(is_own, -math.inf, log_probs)
        self.log_others = others.logsumexp(-1)
        # where the others have nothing, they stay at -inf each: -inf - -inf would be nan
        total = torch.where(self.log_others == -math.inf, 0.0, self.log_others)
        self.log_among = others - total.unsqueeze(-1)


def target_class(log_probs: Tensor, labels: Tensor | None) -> Tensor:
    """Return the label, or the target's first choice where it is -1: `[..., C], [...] -> int64 [...]`."""
    choice = log_probs.argmax(-1)
    return choice if labels is None else torch.where(labels >= 0, labels.long(), choice)


def _product(log_probs: Tensor, log_student: Tensor) -> Tensor:
    """Return p log q, 0.0 with gradient 0 where p is 0."""
    probs = log_probs.exp()
    return probs * torch.where(probs == 0, 0.0, log_student)
