"""Many teachers into one target. A strategy is a frozen dataclass; its options are its recipe keys."""

from collections.abc import Callable

from pipeline.fusion.base import FusedTargets, Fusion, Outputs
from pipeline.fusion.mean import Mean
from pipeline.fusion.target import CORRECTIONS, Target
from pipeline.fusion.vote import Vote
from pipeline.fusion.weighted import Weighted

FUSIONS: dict[str, Callable[..., Fusion]] = {"mean": Mean, "weighted": Weighted, "vote": Vote}

__all__ = ["CORRECTIONS", "FUSIONS", "FusedTargets", "Fusion", "Mean", "Outputs", "Target", "Vote", "Weighted"]
