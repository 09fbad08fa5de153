"""Views: deterministic versions of samples, replayed bit for bit whenever and wherever they are asked for."""

from pipeline.views.draws import RowKeys
from pipeline.views.folds import assign_folds, out_of_fold, with_out_of_fold, with_wrong_labels, without_classes
from pipeline.views.order import ViewLoader
from pipeline.views.plan import OUT_OF_FOLD, UNLABELLED, Split, Splits, ViewPlan, make_splits
from pipeline.views.replay import Batch, Inputs, Replayer
from pipeline.views.specs import imported_code, parse_mix, parse_transforms, transform_from_spec
from pipeline.views.transforms import TRANSFORMS, Mix

__all__ = [
    "OUT_OF_FOLD",
    "TRANSFORMS",
    "UNLABELLED",
    "Batch",
    "Inputs",
    "Mix",
    "Replayer",
    "RowKeys",
    "Split",
    "Splits",
    "ViewLoader",
    "ViewPlan",
    "assign_folds",
    "imported_code",
    "make_splits",
    "out_of_fold",
    "parse_mix",
    "parse_transforms",
    "transform_from_spec",
    "with_out_of_fold",
    "with_wrong_labels",
    "without_classes",
]
