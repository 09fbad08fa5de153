"""What a student minimises: plain functions over `[..., C]` that return one value per case, `[...]`.

Trade: nothing is averaged here. Masks, sample weights and stacked students need the cases, and a
mean is one call for whoever wants it. Sums are taken in float32 at least, whatever comes in.
"""

import math
from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional

from pipeline.errors import StillroomError, unknown_name
from pipeline.sparse import SparseTargets

Targets = Tensor | SparseTargets  # log-probabilities at the loss's temperature: [..., C], or of some classes a row


def kl_divergence(student_logits: Tensor, targets: Targets, *, temperature: float) -> Tensor:
    """Return KL(target ‖ softmax(student / temperature)) in nats, times temperature².

    `[..., C], [..., C] -> [...]`. The target holds log-probabilities taken at this temperature:
    softening them here would not be the mixture of the softened teachers. Classes of probability
    zero (-inf) count nothing. Source: Hinton, Vinyals, Dean 2015, section 2.

    Of sparse targets, all classes left out count as one (the bucket `log_rest`). Random draws have
    none: their gradient is right on average, their value too large by the entropy that draws lack.
    """
    if isinstance(targets, SparseTargets):
        return _sparse_kl(_at_least_float32(student_logits) / temperature, targets) * temperature**2
    log_probs = _at_least_float32(targets)
    log_student = functional.log_softmax(_at_least_float32(student_logits) / temperature, dim=-1)
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
    kept = _divergence(targets.log_probs, logits.gather(-1, ids) - log_total.unsqueeze(-1)).sum(-1)
    if targets.log_rest is None:
        return kept
    named = targets.named(logits.shape[-1])
    # not log(1 - sum q): once the student is sure the sum rounds to 1, and value and gradient are lost
    log_tail = logits.masked_fill(named, -math.inf).logsumexp(-1) - log_total
    # where every class is named there is no bucket; what rounding left in it would cost infinity
    log_rest = targets.log_rest.masked_fill(named.all(-1), -math.inf)
    return kept + _divergence(log_rest, log_tail)


def _divergence(log_probs: Tensor, log_student: Tensor) -> Tensor:
    """Return p (log p - log q), 0.0 where p is 0: see `kl_divergence` for why not by multiplication."""
    log_probs = _at_least_float32(log_probs)
    probs = log_probs.exp()
    return torch.where(probs == 0, 0.0, probs * (log_probs - log_student))


def cross_entropy(student_logits: Tensor, labels: Tensor) -> Tensor:
    """Return -log softmax(student)[label] in nats, 0.0 where the label is -1: `[..., C], [...] -> [...]`."""
    logits = _at_least_float32(student_logits)
    cases = functional.cross_entropy(
        logits.reshape(-1, logits.shape[-1]), labels.reshape(-1).long(), ignore_index=-1, reduction="none"
    )
    return cases.reshape(labels.shape)


def mixed_cross_entropy(student_logits: Tensor, labels: Tensor, partner_labels: Tensor, mix: Tensor) -> Tensor:
    """Return mix * CE(label) + (1 - mix) * CE(partner's label), 0.0 on rows that `is_labelled` refuses.

    Shapes `[..., C], [...], [...], [...] -> [...]`, `mix` in [0, 1] is the sample's own share.
    Source: Zhang 2018 (mixup), section 2.
    """
    mix = mix.to(_at_least_float32(student_logits).dtype)
    mixed = mix * cross_entropy(student_logits, labels) + (1 - mix) * cross_entropy(student_logits, partner_labels)
    return torch.where(is_labelled(labels, partner_labels, mix), mixed, 0.0)


def is_labelled(labels: Tensor, partner_labels: Tensor | None = None, mix: Tensor | None = None) -> Tensor:
    """Return whether each row has every label that its loss needs, `[...]`: a mixed row needs both."""
    if partner_labels is None or mix is None:
        return labels >= 0
    return (labels >= 0) & ((mix == 1) | (partner_labels >= 0))


def conditional_alpha(targets: Targets, labels: Tensor, *, unmixed: Tensor, labelled: Tensor) -> Tensor:
    """Return 1.0 where the target's first choice is not the label, else 0.0: `[..., C], [...] -> [...]`.

    The label speaks where the teachers are wrong, the teachers everywhere else; a mixed row has no
    single label to be wrong about, so there the teachers speak. Source: Meng 2019 (1904.12399).
    """
    choices = targets.argmax() if isinstance(targets, SparseTargets) else targets.argmax(dim=-1)
    return ((choices != labels) & unmixed & labelled).to(_dtype(targets))


SoftLoss = Callable[..., Tensor]  # (student_logits, targets, *, temperature) -> [...]
AlphaRule = Callable[..., Tensor]  # (targets, labels, *, unmixed, labelled) -> alpha [...] in [0, 1]

SOFT_LOSSES: dict[str, SoftLoss] = {"kl": kl_divergence}
ALPHAS: dict[str, AlphaRule] = {"conditional": conditional_alpha}


def distillation_loss(
    student_logits: Tensor,
    targets: Targets,
    labels: Tensor,
    partner_labels: Tensor | None = None,
    mix: Tensor | None = None,
    *,
    kind: str = "kl",
    temperature: float,
    alpha: float | str,
) -> tuple[Tensor, dict[str, Tensor]]:
    """Return alpha * CE + (1 - alpha) * soft loss per case `[...]`, and both parts unweighted.

    `alpha` is a number in [0, 1], or the name of a rule in ALPHAS that chooses it row by row. Rows
    without a label take alpha 0: students learn from all rows. The parts are `{"ce", kind}`, so runs
    with different alpha compare; "ce" is 0.0 on rows without a label.

    Raises: StillroomError for an unknown kind or rule, an alpha outside [0, 1], a temperature not
    above 0; ValueError when only one of `partner_labels` and `mix` is given.
    """
    if (partner_labels is None) != (mix is None):
        raise ValueError("partner_labels and mix come together or not at all")
    if kind not in SOFT_LOSSES:
        raise unknown_name("distillation loss", "kind", kind, SOFT_LOSSES)
    if not 0 < temperature < math.inf:
        raise StillroomError(
            f"distillation loss: temperature is {temperature!r}; expected a number above 0; 1 leaves logits as they are"
        )
    soft = SOFT_LOSSES[kind](student_logits, targets, temperature=temperature)
    if partner_labels is None or mix is None:
        ce = cross_entropy(student_logits, labels)
    else:
        ce = mixed_cross_entropy(student_logits, labels, partner_labels, mix)
    weight = _row_alpha(alpha, targets, labels, partner_labels, mix)
    return weight * ce + (1 - weight) * soft, {"ce": ce, kind: soft}


def _row_alpha(
    alpha: float | str, targets: Targets, labels: Tensor, partner_labels: Tensor | None, mix: Tensor | None
) -> Tensor:
    """Return alpha per row, `[...]`, 0.0 on rows without a label."""
    labelled = is_labelled(labels, partner_labels, mix)
    if isinstance(alpha, str):
        if alpha not in ALPHAS:
            raise unknown_name("distillation loss", "alpha", alpha, ALPHAS)
        unmixed = torch.ones_like(labelled) if mix is None else mix == 1
        return ALPHAS[alpha](targets, labels, unmixed=unmixed, labelled=labelled)
    if not 0 <= alpha <= 1:
        raise StillroomError(
            f"distillation loss: alpha is {alpha!r}; expected a number in [0, 1] or one of {sorted(ALPHAS)}; "
            "1 is labels only, 0 teachers only"
        )
    return labelled.to(_dtype(targets)) * alpha


def _dtype(targets: Targets) -> torch.dtype:
    """Return the type in which losses of these targets are summed."""
    log_probs = targets.log_probs if isinstance(targets, SparseTargets) else targets
    return torch.promote_types(log_probs.dtype, torch.float32)


def _at_least_float32(values: Tensor) -> Tensor:
    """Return the values in float32, or in float64 if they are: float16 steps by 0.008 near -10."""
    return values if values.dtype == torch.float64 else values.float()
