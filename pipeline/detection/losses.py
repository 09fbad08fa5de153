"""What a detector minimises, a picture at a time: against its objects, and against what teachers say of its cells.

All are plain functions over `[..., G, ...]` that give one value a picture, `[...]`: sums over its cells divided by how
many show an object, at least 1, so that a picture full of objects weighs as much as one with few. Unknown cells
(class -1, distances NaN) cost nothing and pull nowhere. Distances are in bins. Nothing here selects rows by a mask:
many students may be stacked.
"""

import torch
from torch import Tensor

from pipeline.detection.grid import BINS

EDGE_WEIGHT, BOX_WEIGHT = 0.5, 2.0  # beside the classes' 1; edges at 0 cost 5 points of AP on canvases
BACKGROUND_WEIGHT = 0.3  # at temperature 2, 1.0 costs a small student 15 points of AP on canvases
TINY = 1e-7


# -- labels -----------------------------------------------------------------------------------------------------------


def class_loss(class_logits: Tensor, classes: Tensor, *, focus: float = 0.0) -> Tensor:
    """Return (1 - p)^focus times -log p of each cell's class: [..., G, K + 1], int64 [..., G] -> [...] in nats.

    At `focus` 0 it is the cross-entropy, whose probabilities may be pooled with others'. Above, what is nearly sure, as
    most background is, hardly counts, and probabilities come out less sure than they should; from a start at background
    (`pipeline.models.detectors`) that gains nothing on canvases. Source: Lin 2017 (1708.02002), equation 4, over a
    softmax.
    """
    known, log_probs = classes >= 0, at_least_float32(class_logits).log_softmax(-1)
    own = log_probs.gather(-1, classes.clamp(min=0).unsqueeze(-1)).squeeze(-1)
    costs = -own * (-torch.expm1(own)).clamp(min=TINY) ** focus  # the power of 0 has no finite slope
    is_object = known & (classes < class_logits.shape[-1] - 1)
    return per_object(torch.where(known, costs, 0.0), is_object)


def edge_loss(edge_logits: Tensor, distances: Tensor) -> Tensor:
    """Return -log p of the two bins about each true distance, by nearness, mean of four edges, in nats.

    `[..., G, 4, BINS], [..., G, 4] -> [...]`. Source: Li 2020, equation 6 ("distribution focal loss").
    """
    is_object = distances.isfinite().all(-1)
    places = distances.nan_to_num().clamp(0, BINS - 1)
    low = places.floor().clamp(max=BINS - 2)
    share = (places - low).unsqueeze(-1)
    log_probs = at_least_float32(edge_logits).log_softmax(-1)
    below, above = (log_probs.gather(-1, bins.long().unsqueeze(-1)) for bins in (low, low + 1))
    costs = -((1 - share) * below + share * above).squeeze(-1).mean(-1)
    return per_object(torch.where(is_object, costs, 0.0), is_object)


def box_loss(distances: Tensor, true_distances: Tensor) -> Tensor:
    """Return 1 - GIoU of each cell's box with its true one: [..., G, 4], [..., G, 4] -> [...], from 0 to 2 an object.

    Both boxes are about the centre of one cell, so where that is and how large a bin is don't matter.
    Source: Rezatofighi 2019, algorithm 1.
    """
    is_object = true_distances.isfinite().all(-1)
    told, true = (
        torch.where(is_object.unsqueeze(-1), each, 1.0) for each in (at_least_float32(distances), true_distances)
    )
    return per_object(torch.where(is_object, 1 - generalised_iou(told, true), 0.0), is_object)


def generalised_iou(distances: Tensor, others: Tensor) -> Tensor:
    """Return the GIoU, in -1 to 1, of boxes about one point, told by distances left, top, right, bottom from 0 on.

    `[..., 4], [..., 4] -> [...]`; 0 where neither has an area.
    """
    shared, spanned = area(torch.minimum(distances, others)), area(torch.maximum(distances, others))
    union = area(distances) + area(others) - shared
    return shared / union.clamp(min=TINY) - (spanned - union) / spanned.clamp(min=TINY)


def area(distances: Tensor) -> Tensor:
    """Return (left + right) (top + bottom): [..., 4] -> [...]."""
    return (distances[..., :2] + distances[..., 2:]).prod(-1)


def per_object(costs: Tensor, weights: Tensor) -> Tensor:
    """Return the sum of costs over that of weights, taken for at least 1: [..., G], [..., G] -> [...]."""
    return costs.sum(-1) / weights.float().sum(-1).clamp(min=1)


# -- teachers ---------------------------------------------------------------------------------------------------------


def class_divergence(
    student_logits: Tensor,
    target_log_probs: Tensor,
    *,
    temperature: float,
    background_weight: float = BACKGROUND_WEIGHT,
) -> Tensor:
    """Return KL(target ‖ student) of the classes, times temperature², in nats: [..., G, K + 1] twice -> [...].

    The target is taken at this temperature. A cell weighs p + `background_weight` (1 - p), p its `foreground_of`, and
    the sum is divided by that of p. Source: Chen 2017, equation 3, who weigh background by 1.5 among proposals of which
    a quarter or more show an object; here it is nearly all cells.
    """
    foreground = foreground_of(target_log_probs, temperature=temperature)
    weights = foreground + background_weight * (1 - foreground)
    costs = kl_divergence(student_logits, target_log_probs, temperature=temperature)
    return per_object(weights * costs, foreground)


def edge_divergence(
    student_edge_logits: Tensor, target_log_probs: Tensor, foreground: Tensor, *, temperature: float
) -> Tensor:
    """Return KL(target ‖ student) of the edges, mean of four, times temperature², weighed by `foreground`.

    `[..., G, 4, BINS]` twice, `[..., G]` in 0-1 -> `[...]` in nats. The target is taken at this temperature.
    Source: Zheng 2022 (2102.12252), equation 3 ("localisation distillation"), where regions are chosen instead.
    """
    costs = kl_divergence(student_edge_logits, target_log_probs, temperature=temperature).mean(-1)
    return per_object(foreground * costs, foreground)


def bounded_boxes(
    student_distances: Tensor,
    teacher_distances: Tensor,
    true_distances: Tensor,
    classes: Tensor,
    foreground: Tensor,
    *,
    margin: float = 0.0,
) -> Tensor:
    """Return the student's squared error while it is not better than the teachers' by `margin`, then 0, in bins².

    Distances `[..., G, 4]`, classes and foreground `[..., G]` -> `[...]`; the mean of four edges. Cells of unknown
    class cost the squared distance to the teachers, weighed by `foreground`, instead; known background costs nothing.
    Source: Chen 2017, equation 4 ("teacher bounded regression").
    """
    is_object, student = true_distances.isfinite().all(-1), at_least_float32(student_distances)
    truth = torch.where(is_object.unsqueeze(-1), true_distances, teacher_distances)
    own, theirs = ((each - truth).square().mean(-1) for each in (student, teacher_distances))
    followed = torch.where(classes < 0, foreground * (student - teacher_distances).square().mean(-1), 0.0)
    costs = torch.where(is_object, torch.where(own + margin > theirs, own, 0.0), followed)
    return per_object(costs, torch.where(classes < 0, foreground, is_object.float()))


def foreground_of(class_log_probs: Tensor, *, temperature: float) -> Tensor:
    """Return how likely each cell shows an object, as told at temperature 1: [..., G, K + 1] -> [..., G] in 0-1.

    Brought back from `temperature` by softmax(temperature log p), exact for one teacher and close for a mixture:
    softened itself, background would seem to be full of objects.
    """
    return 1 - (temperature * at_least_float32(class_log_probs)).softmax(-1)[..., -1]


def at_least_float32(values: Tensor) -> Tensor:
    """Return values in float32, or in float64 if they are: of half precision, sums over cells are lost."""
    return values if values.dtype == torch.float64 else values.float()


def kl_divergence(student_logits: Tensor, target_log_probs: Tensor, *, temperature: float) -> Tensor:
    """Return KL(target ‖ softmax(student / temperature)) times temperature², in nats: [..., C], [..., C] -> [...]."""
    log_probs = at_least_float32(target_log_probs)
    log_student = (at_least_float32(student_logits) / temperature).log_softmax(-1)
    is_possible = log_probs > -torch.inf  # 0 * -inf is nan
    gaps = torch.where(is_possible, log_probs, 0.0) - torch.where(is_possible, log_student, 0.0)
    return (log_probs.exp() * gaps).sum(-1) * temperature**2
