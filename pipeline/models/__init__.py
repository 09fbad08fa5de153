"""Models by name: a small zoo, torchvision's, and the user's own by import path; and a tap for their features."""

from pipeline.models.resolve import build_model, check_model, is_estimator
from pipeline.models.taps import FeatureTap, feature_widths
from pipeline.models.zoo import MODELS, count_parameters

__all__ = ["MODELS", "FeatureTap", "build_model", "check_model", "count_parameters", "feature_widths", "is_estimator"]
