"""Many teachers into one target. A strategy is a frozen dataclass; its options are its recipe keys."""

from collections.abc import Callable

from pipeline.fusion.base import FusedTargets, Fusion, Outputs
from pipeline.fusion.confidence import Confidence
from pipeline.fusion.entropy import Entropy
from pipeline.fusion.gated import Gated
from pipeline.fusion.mean import Mean
from pipeline.fusion.meta import Meta
from pipeline.fusion.network import Network
from pipeline.fusion.pools import LinearPool, LogPool
from pipeline.fusion.present import Present
from pipeline.fusion.random_teacher import RandomTeacher
from pipeline.fusion.stacking import Stacking
from pipeline.fusion.target import CORRECTIONS, Target
from pipeline.fusion.vote import Vote
from pipeline.fusion.weighted import Weighted

FUSIONS: dict[str, Callable[..., Fusion]] = {
    "mean": Mean,
    "weighted": Weighted,
    "vote": Vote,
    "entropy": Entropy,
    "confidence": Confidence,
    "linear_pool": LinearPool,
    "log_pool": LogPool,
    "random_teacher": RandomTeacher,
    "network": Network,
    "meta": Meta,
    "gated": Gated,
    "stacking": Stacking,
    "present": Present,
}

__all__ = [
    "CORRECTIONS",
    "FUSIONS",
    "Confidence",
    "Entropy",
    "FusedTargets",
    "Fusion",
    "Gated",
    "LinearPool",
    "LogPool",
    "Mean",
    "Meta",
    "Network",
    "Outputs",
    "Present",
    "RandomTeacher",
    "Stacking",
    "Target",
    "Vote",
    "Weighted",
]
