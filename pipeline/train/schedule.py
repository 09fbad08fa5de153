"""How long a model is trained and how fast it learns at each step."""

import math
from collections.abc import Callable
from dataclasses import dataclass, field

from pipeline.errors import StillroomError, unknown_name

ONE_CYCLE_START, ONE_CYCLE_END = 25, 1e4  # the peak rate is so many times the first, and so many times the last
REDUCED_BY = 0.5  # on a plateau


def _cosine(schedule: "Schedule", step: int, reductions: int) -> float:
    warm = schedule.warm_steps
    return 0.5 * (1 + math.cos(math.pi * (step - warm) / max(1, schedule.steps - warm)))


def _inverse(schedule: "Schedule", step: int, reductions: int) -> float:
    return 1 / (1 + schedule.decay_rate * step / schedule.evaluate_every)


def _plateau(schedule: "Schedule", step: int, reductions: int) -> float:
    return REDUCED_BY**reductions


def _constant(schedule: "Schedule", step: int, reductions: int) -> float:
    return 1.0


DECAYS: dict[str, Callable[["Schedule", int, int], float]] = {
    "cosine": _cosine,
    "one_cycle": _cosine,
    "inverse": _inverse,
    "plateau": _plateau,
    "constant": _constant,
}
MONITORS = ("nll", "kl", "mse", "energy", "loss")  # what early stopping and the best weights go by, on calibration rows


@dataclass(frozen=True)
class Schedule:
    """How long and how fast: AdamW, linear warm-up over `warmup` of the steps, then `decay`.

    Decays: "cosine" to zero; "one_cycle", which warms up from a 25th of the rate and ends at a ten-thousandth (Smith
    2018, 1708.07120); "inverse", lr / (1 + decay_rate * epochs); "plateau", halved after `plateau` evaluations without
    a better figure; "constant". Evaluated every `evaluate_every` steps; stopped after `patience` evaluations without a
    better figure of `monitor` (None: never). `ema` is the decay of an average of the weights, which is then what is
    evaluated and kept (None: the weights themselves).

    Raises: StillroomError for an unknown decay or monitor.
    """

    steps: int
    evaluate_every: int
    lr: float = 1e-3
    weight_decay: float = 0.05
    warmup: float = 0.1
    clip: float | None = None
    patience: int | None = None
    decay: str = "cosine"
    decay_rate: float = field(default=0.1, kw_only=True)
    plateau: int = field(default=3, kw_only=True)
    ema: float | None = field(default=None, kw_only=True)
    monitor: str = field(default="nll", kw_only=True)

    def __post_init__(self) -> None:
        if self.decay not in DECAYS:
            raise unknown_name("schedule", "decay", str(self.decay), DECAYS)
        if self.monitor not in MONITORS:
            raise unknown_name("schedule", "monitor", str(self.monitor), MONITORS)
        if self.ema is not None and not 0 < self.ema < 1:
            raise StillroomError(f"schedule: ema is {self.ema!r}; expected between 0 and 1; 0.999 is usual")

    @property
    def warm_steps(self) -> int:
        """The steps of the warm-up, one at least."""
        return max(1, round(self.warmup * self.steps))

    def rate(self, step: int, reductions: int = 0) -> float:
        """Return the learning rate of a step; `reductions` counts the plateaus so far."""
        warm = self.warm_steps
        first, last = (1 / ONE_CYCLE_START, 1 / ONE_CYCLE_END) if self.decay == "one_cycle" else (0.0, 0.0)
        if step < warm:
            return self.lr * (first + (1 - first) * (step + 1) / warm)
        return self.lr * max(last, DECAYS[self.decay](self, step, reductions))
