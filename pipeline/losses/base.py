"""What the losses share: the types they take, the width they sum in, and targets that name only some classes."""

import math

import torch
from torch import Tensor

from pipeline.errors import StillroomError
from pipeline.sparse import SparseTargets

Targets = Tensor | SparseTargets  # log-probabilities at the loss's temperature: [..., C], or of some classes a row

LOWEST = -100.0  # nats: exp of it is about the smallest number that float32 knows


def at_least_float32(values: Tensor) -> Tensor:
    """Return the values in float32, or in float64 if they are: float16 steps by 0.008 near -10."""
    return values if values.dtype == torch.float64 else values.float()


def summed_dtype(targets: Targets) -> torch.dtype:
    """Return the type in which losses of these targets are summed."""
    log_probs = targets.log_probs if isinstance(targets, SparseTargets) else targets
    return torch.promote_types(log_probs.dtype, torch.float32)


def dense_only(targets: Targets, kind: str) -> Tensor:
    """Return the targets in float32 at least. Raises: StillroomError when they name only some classes."""
    if isinstance(targets, SparseTargets):
        raise StillroomError(
            f"loss {kind!r}: found targets that name only some classes; expected log-probabilities of all; use 'kl', "
            "or keep the targets dense"
        )
    return at_least_float32(targets)


def divergence(log_probs: Tensor, log_others: Tensor) -> Tensor:
    """Return p (log p - log o) per class, 0.0 with gradient 0 where p is 0, whatever stands there."""
    probs = log_probs.exp()
    gap = torch.where(probs == 0, 0.0, log_probs) - torch.where(probs == 0, 0.0, log_others)
    return probs * gap


def paired(logits: Tensor, targets: Targets) -> tuple[Tensor, Tensor]:
    """Return log-probabilities of target and student over the same outcomes, `[..., C]` each.

    Of sparse targets the outcomes are the K classes named and the bucket of all others, `[..., K + 1]`; padding, and
    a bucket with no class in it, is -inf on both sides. Raises: ValueError for random draws, which have no bucket.
    """
    if not isinstance(targets, SparseTargets):
        return at_least_float32(targets), logits.log_softmax(-1)
    if targets.log_rest is None:
        raise ValueError("random draws have no log_rest; a class that wasn't drawn is not impossible")
    ids = targets.ids.long().expand(*logits.shape[:-1], targets.ids.shape[-1])
    log_total, named = logits.logsumexp(-1, keepdim=True), targets.named(logits.shape[-1])
    log_kept = (logits.gather(-1, ids) - log_total).masked_fill(~targets.is_kept, -math.inf)
    # not log(1 - sum of the kept): once the student is sure that sum rounds to 1, and value and gradient are lost
    log_tail = logits.masked_fill(named, -math.inf).logsumexp(-1, keepdim=True) - log_total
    log_rest = targets.log_rest.masked_fill(named.all(-1), -math.inf).unsqueeze(-1)
    log_probs = torch.cat([at_least_float32(targets.log_probs), at_least_float32(log_rest)], dim=-1)
    return log_probs, torch.cat([log_kept, log_tail], dim=-1)


def label_cross_entropy(targets: Targets, labels: Tensor, *, temperature: float) -> Tensor:
    """Return -log p(label) in nats of the target brought back to temperature 1, detached: `[..., C], [...] -> [...]`.

    Bringing back, softmax(temperature * log p), is exact for one teacher and close for a mixture. inf where sparse
    targets don't name the label; of no meaning where the label is -1.
    """
    if not isinstance(targets, SparseTargets):
        log_probs = at_least_float32(targets.detach())
        return -label_values((temperature * log_probs).log_softmax(-1), labels)
    log_probs = at_least_float32(targets.log_probs.detach())
    is_label = (targets.ids == labels.unsqueeze(-1)) & targets.is_kept
    if targets.log_rest is not None:
        log_probs = torch.cat([log_probs, at_least_float32(targets.log_rest.detach()).unsqueeze(-1)], dim=-1)
    kept = (temperature * log_probs).log_softmax(-1)[..., : targets.ids.shape[-1]]
    return -torch.where(is_label, kept, -math.inf).amax(-1)


def label_values(values: Tensor, labels: Tensor) -> Tensor:
    """Return each row's value at its label, at class 0 where the label is -1: `[..., C], [...] -> [...]`."""
    shape = torch.broadcast_shapes(values.shape[:-1], labels.shape)
    index = labels.clamp(min=0).long().expand(shape).unsqueeze(-1)
    return values.expand(*shape, values.shape[-1]).gather(-1, index).squeeze(-1)
