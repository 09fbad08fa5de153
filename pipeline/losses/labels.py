"""Losses of labels: cross-entropy, mixed where rows are, smoothed if asked."""

import torch
from torch import Tensor
from torch.nn import functional

from pipeline.losses.base import at_least_float32


def cross_entropy(student_logits: Tensor, labels: Tensor, *, smoothing: float = 0.0) -> Tensor:
    """Return -log softmax(student)[label] in nats, 0.0 where the label is -1: `[..., C], [...] -> [...]`.

    Labels may be shared by several students: [B, 1] beside logits [B, M, C]. With `smoothing` s in [0, 1] the label is
    (1 - s) onehot + s / C. Source: Szegedy 2016 (1512.00567), section 7.
    """
    logits = at_least_float32(student_logits)
    labels = labels.expand(logits.shape[:-1])
    cases = functional.cross_entropy(
        logits.reshape(-1, logits.shape[-1]),
        labels.reshape(-1).long(),
        ignore_index=-1,
        reduction="none",
        label_smoothing=smoothing,
    )
    return cases.reshape(labels.shape)


def mixed_cross_entropy(
    student_logits: Tensor, labels: Tensor, partner_labels: Tensor, mix: Tensor, *, smoothing: float = 0.0
) -> Tensor:
    """Return mix * CE(label) + (1 - mix) * CE(partner's label), 0.0 on rows that `is_labelled` refuses.

    Shapes `[..., C], [...], [...], [...] -> [...]`, `mix` in [0, 1] is the sample's own share.
    Source: Zhang 2018 (mixup), section 2.
    """
    mix = mix.to(at_least_float32(student_logits).dtype)
    own = cross_entropy(student_logits, labels, smoothing=smoothing)
    partner = cross_entropy(student_logits, partner_labels, smoothing=smoothing)
    return torch.where(is_labelled(labels, partner_labels, mix), mix * own + (1 - mix) * partner, 0.0)


def is_labelled(labels: Tensor, partner_labels: Tensor | None = None, mix: Tensor | None = None) -> Tensor:
    """Return whether each row has every label that its loss needs, `[...]`: a mixed row needs both."""
    if partner_labels is None or mix is None:
        return labels >= 0
    return (labels >= 0) & ((mix == 1) | (partner_labels >= 0))
