"""Losses between a student's features and those of its teachers: each a frozen dataclass, its options recipe keys."""

from pipeline.features.attention import Attention
from pipeline.features.base import FeatureLoss, FeatureRows, FeatureStart, FeatureTerm
from pipeline.features.crd import Crd
from pipeline.features.hint import Hint
from pipeline.features.rkd import Rkd
from pipeline.features.simkd import PROJECTED, Simkd, ThroughHead
from pipeline.features.spec import FEATURE_LOSSES, FeatureEntry, parse_feature_loss
from pipeline.features.srd import Srd
from pipeline.features.statistics import feature_statistics
from pipeline.features.tap import StudentTap

VERSION = 1  # of what the losses make of the same features

__all__ = [
    "FEATURE_LOSSES",
    "PROJECTED",
    "VERSION",
    "Attention",
    "Crd",
    "FeatureEntry",
    "FeatureLoss",
    "FeatureRows",
    "FeatureStart",
    "FeatureTerm",
    "Hint",
    "Rkd",
    "Simkd",
    "Srd",
    "StudentTap",
    "ThroughHead",
    "feature_statistics",
    "parse_feature_loss",
]
