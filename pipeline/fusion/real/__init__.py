"""Several teachers' real numbers into one. A strategy is a frozen dataclass; its options are its recipe keys."""

from collections.abc import Callable

from pipeline.fusion.real.base import FusedReals, RealFusion
from pipeline.fusion.real.draw import Draw
from pipeline.fusion.real.strategies import InverseVariance, Mean, Median, Moments, Stacking, Weighted
from pipeline.fusion.real.target import RealTarget

REAL_FUSIONS: dict[str, Callable[..., RealFusion]] = {
    "mean": Mean,
    "weighted": Weighted,
    "inverse_variance": InverseVariance,
    "median": Median,
    "stacking": Stacking,
    "moments": Moments,
    "draw": Draw,
}

__all__ = [
    "REAL_FUSIONS",
    "Draw",
    "FusedReals",
    "InverseVariance",
    "Mean",
    "Median",
    "Moments",
    "RealFusion",
    "RealTarget",
    "Stacking",
    "Weighted",
]
