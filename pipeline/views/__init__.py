"""Views: deterministic versions of samples, replayed bit for bit whenever and wherever they are asked for."""

from pipeline.views.draws import RowKeys
from pipeline.views.order import ViewLoader
from pipeline.views.plan import UNLABELLED, Split, Splits, ViewPlan, make_splits
from pipeline.views.replay import Batch, Replayer
from pipeline.views.specs import imported_code, parse_mix, parse_transforms, transform_from_spec
from pipeline.views.transforms import TRANSFORMS, Mix

__all__ = [
    "TRANSFORMS",
    "UNLABELLED",
    "Batch",
    "Mix",
    "Replayer",
    "RowKeys",
    "Split",
    "Splits",
    "ViewLoader",
    "ViewPlan",
    "imported_code",
    "make_splits",
    "parse_mix",
    "parse_transforms",
    "transform_from_spec",
]
