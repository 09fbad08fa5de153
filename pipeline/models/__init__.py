"""Models by name: a small zoo, torchvision's, and the user's own by import path; and a tap for their features."""

from pipeline.models.ensembles import JoinedMembers, Members
from pipeline.models.resolve import build_model, check_model, is_estimator, is_regressor, model_options
from pipeline.models.soft_estimators import SoftTargetEstimator
from pipeline.models.taps import FeatureTap, feature_widths
from pipeline.models.tree import SoftTree
from pipeline.models.zoo import (
    CODE_MODELS,
    DETECTORS,
    ESTIMATORS,
    GENERATORS,
    KINDS,
    MODELS,
    NETWORKS,
    READS,
    REGRESSORS,
    SERIES_MODELS,
    TRANSLATORS,
    WORD_MODELS,
    WRITERS,
    ZOO,
    check_reads,
    count_parameters,
)

__all__ = [
    "CODE_MODELS",
    "DETECTORS",
    "ESTIMATORS",
    "GENERATORS",
    "KINDS",
    "MODELS",
    "NETWORKS",
    "READS",
    "REGRESSORS",
    "SERIES_MODELS",
    "TRANSLATORS",
    "WORD_MODELS",
    "WRITERS",
    "ZOO",
    "FeatureTap",
    "JoinedMembers",
    "Members",
    "SoftTargetEstimator",
    "SoftTree",
    "build_model",
    "check_model",
    "check_reads",
    "count_parameters",
    "feature_widths",
    "is_estimator",
    "is_regressor",
    "model_options",
]
