"""Judges of what answers, row by row, don't tell: how real pictures look, how well boxes fit."""

from pipeline.tasks import Boxes, Draws
from stages.judging.boxes import BoxJudging
from stages.judging.contract import Judging
from stages.judging.pictures import PictureJudging
from stages.workspace import Workspace

__all__ = ["BoxJudging", "Judging", "PictureJudging", "judge_of"]


def judge_of(ws: Workspace) -> Judging | None:
    """Return the judge of a recipe's test rows, None where answers row by row tell all."""
    if isinstance(ws.task, Draws):
        return PictureJudging(ws)
    return BoxJudging(ws) if isinstance(ws.task, Boxes) else None
