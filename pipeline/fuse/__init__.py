"""Fusing stores: several teacher stores become one target store, block by block, without a teacher.

The mixture is taken at each temperature a loss will use: softening it afterwards would be another distribution. Each
teacher's logits are first divided by the temperature fitted on its calibration rows. Memory does not grow with N. What
is kept of classes, of real numbers and of sentences lies in a module each.
"""

from pipeline.fuse.beginning import Begun, Targets, begin, begun
from pipeline.fuse.classes import score as score_targets
from pipeline.fuse.config import (
    VERSION,
    check_fit_on,
    is_honest,
    real_store_config,
    sentence_store_config,
    target_store_config,
)
from pipeline.fuse.filling import fuse_stores, open_writer, parents_of

__all__ = [
    "VERSION",
    "Begun",
    "Targets",
    "begin",
    "begun",
    "check_fit_on",
    "fuse_stores",
    "is_honest",
    "open_writer",
    "parents_of",
    "real_store_config",
    "score_targets",
    "sentence_store_config",
    "target_store_config",
]
