"""What a student minimises: plain functions over `[..., C]` that return one value per case, `[...]`.

Trade: nothing is averaged here. Masks, sample weights and stacked students need the cases, and a
mean is one call for whoever wants it. Sums are taken in float32 at least, whatever comes in.
"""

from pipeline.losses.alphas import Alpha, Seen, conditional_alpha
from pipeline.losses.base import Targets
from pipeline.losses.decoupled import decoupled_kl, normalised_kd
from pipeline.losses.distillation import distillation_loss
from pipeline.losses.divergences import jensen_shannon, kl_divergence, reverse_kl, weighted_soft_labels
from pipeline.losses.hypergradient import Hypergradient, last_layer_hypergradient
from pipeline.losses.labels import cross_entropy, is_labelled, mixed_cross_entropy
from pipeline.losses.matching import correlation, logit_mse, standardised_kl
from pipeline.losses.reals import REAL_LOSSES, RealDistillation, RealLoss, squared_error
from pipeline.losses.rules import ALPHAS, make_alpha
from pipeline.losses.soft import LIMITS, SOFT_LOSSES, SoftLoss, check_soft_loss

__all__ = [
    "ALPHAS",
    "LIMITS",
    "REAL_LOSSES",
    "SOFT_LOSSES",
    "Alpha",
    "Hypergradient",
    "RealDistillation",
    "RealLoss",
    "Seen",
    "SoftLoss",
    "Targets",
    "check_soft_loss",
    "conditional_alpha",
    "correlation",
    "cross_entropy",
    "decoupled_kl",
    "distillation_loss",
    "is_labelled",
    "jensen_shannon",
    "kl_divergence",
    "last_layer_hypergradient",
    "logit_mse",
    "make_alpha",
    "mixed_cross_entropy",
    "normalised_kd",
    "reverse_kl",
    "squared_error",
    "standardised_kl",
    "weighted_soft_labels",
]
