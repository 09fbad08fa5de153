"""What a student minimises on a batch: its labels' loss and the teachers' loss, weighed row by row."""

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from pipeline.errors import StillroomError
from pipeline.losses.alphas import Alpha, Seen
from pipeline.losses.base import Targets
from pipeline.losses.labels import cross_entropy, is_labelled, mixed_cross_entropy
from pipeline.losses.rules import make_alpha
from pipeline.losses.soft import SOFT_LOSSES, check_soft_loss
from pipeline.sparse import SparseTargets

WHERE = "distillation loss"


def distillation_loss(
    student_logits: Tensor,
    targets: Targets,
    labels: Tensor,
    partner_labels: Tensor | None = None,
    mix: Tensor | None = None,
    *,
    kind: str = "kl",
    temperature: float,
    alpha: float | str | Mapping[str, Any] | Alpha,
    options: Mapping[str, Any] = {},
    smoothing: float = 0.0,
    progress: float = 0.0,
) -> tuple[Tensor, dict[str, Tensor]]:
    """Return alpha * CE + (1 - alpha) * soft loss per case `[...]`, and both parts unweighted.

    `alpha` is a number in [0, 1], or the words of a rule in ALPHAS that chooses it row by row, or a rule made by
    `make_alpha`: it must be one where it follows the training, which is at `progress`, from 0 to under 1. Rows
    without a label take alpha 0: students learn from all rows. `options` are the soft loss's own, `smoothing` that of
    the labels. The parts are `{"ce", kind}`, so runs with different alpha compare; "ce" is 0.0 on rows without a label.

    Raises: StillroomError for an unknown kind or rule, an alpha outside [0, 1], a temperature not above 0, options or
    targets that the kind can't take; ValueError when only one of `partner_labels` and `mix` is given.
    """
    if (partner_labels is None) != (mix is None):
        raise ValueError("partner_labels and mix come together or not at all")
    _check(student_logits, targets, kind, temperature, options, smoothing)
    rule = _rule(alpha)
    labelled = is_labelled(labels, partner_labels, mix)
    unmixed = torch.ones_like(labelled) if mix is None else mix == 1
    single = torch.where(unmixed, labels, -1)
    soft = SOFT_LOSSES[kind](student_logits, targets, temperature=temperature, labels=single, **options)
    if partner_labels is None or mix is None:
        ce = cross_entropy(student_logits, labels, smoothing=smoothing)
    else:
        ce = mixed_cross_entropy(student_logits, labels, partner_labels, mix, smoothing=smoothing)
    ce_weight, soft_weight = rule(Seen(targets, temperature, labels, unmixed, labelled, ce, soft, progress))
    loss, term = ce_weight * ce + soft_weight * soft, rule.term()
    return loss if term is None else loss + term, {"ce": ce, kind: soft}


def _check(
    student_logits: Tensor,
    targets: Targets,
    kind: str,
    temperature: float,
    options: Mapping[str, Any],
    smoothing: float,
) -> None:
    sparse = isinstance(targets, SparseTargets)
    check_soft_loss(
        kind,
        options,
        num_classes=student_logits.shape[-1],
        is_sparse=sparse,
        has_rest=not isinstance(targets, SparseTargets) or targets.log_rest is not None,
        where=WHERE,
    )
    if not 0 < temperature < math.inf:
        raise StillroomError(
            f"{WHERE}: temperature is {temperature!r}; expected a number above 0; 1 leaves logits as they are"
        )
    if not 0 <= smoothing <= 1:
        raise StillroomError(
            f"{WHERE}: smoothing is {smoothing!r}; expected a number in [0, 1]; 0 leaves labels as they are"
        )


def _rule(alpha: float | str | Mapping[str, Any] | Alpha) -> Alpha:
    if isinstance(alpha, Alpha):
        return alpha
    rule = make_alpha(alpha, WHERE)
    if rule.follows_training:
        raise StillroomError(
            f"{WHERE}: alpha is {alpha!r}, which follows the training; expected a rule that is kept from step to step; "
            "make it once with make_alpha and give it with the progress"
        )
    return rule
