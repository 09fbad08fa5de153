"""Judges of what answers, row by row, don't tell: how real pictures look, how well boxes fit."""

from pathlib import Path

from pipeline.tasks import Boxes, Draws
from stages.judging.boxes import BoxJudging
from stages.judging.contract import Judging
from stages.judging.pictures import PictureJudging, folder_of
from stages.workspace import Workspace

__all__ = ["BoxJudging", "Judging", "PictureJudging", "judge_folder", "judge_of"]


def judge_of(ws: Workspace) -> Judging | None:
    """Return the judge of a recipe's test rows, None where answers row by row tell all."""
    if isinstance(ws.task, Draws):
        return PictureJudging(ws)
    return BoxJudging(ws) if isinstance(ws.task, Boxes) else None


def judge_folder(ws: Workspace) -> Path | None:
    """Return where the judge of a recipe is kept, None for one that has nothing to keep."""
    return folder_of(ws) if isinstance(ws.task, Draws) else None
