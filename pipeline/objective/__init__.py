"""What a student minimises: its labels, what the teachers said, their features; and what learns beside it."""

from pipeline.objective.boxes import BoxesObjective
from pipeline.objective.following import Followed, follow
from pipeline.objective.loss import Objective, targets_of
from pipeline.objective.reals import RealObjective

__all__ = ["BoxesObjective", "Followed", "Objective", "RealObjective", "follow", "targets_of"]
