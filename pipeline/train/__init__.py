"""Training: one loop for teachers and students, alone, together in one pass, or over several processes."""

from pipeline.train.models import label_loss, predict, prepare, seeded, squared_loss
from pipeline.train.own import OWN, own_figure, own_loss
from pipeline.train.ranks import ALONE, Ranks
from pipeline.train.run import Companion, Evaluate, Fitted, Loss, Run, place_in
from pipeline.train.schedule import DECAYS, MONITORS, Schedule
from pipeline.train.together import Loader, Trainee, fit, fit_together

__all__ = [
    "ALONE",
    "DECAYS",
    "MONITORS",
    "OWN",
    "Companion",
    "Evaluate",
    "Fitted",
    "Loader",
    "Loss",
    "Ranks",
    "Run",
    "Schedule",
    "Trainee",
    "fit",
    "fit_together",
    "label_loss",
    "own_figure",
    "own_loss",
    "place_in",
    "predict",
    "prepare",
    "seeded",
    "squared_loss",
]
