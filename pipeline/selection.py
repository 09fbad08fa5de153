"""Which trained models to join, and how often each counts: greedy ensemble selection on calibration rows.

Trade: it tries M mixtures a pick rather than all weights at once, so it may miss the best mixture, but counts of a few
picks overfit a small calibration split far less than fitted weights do.
"""

import math
from typing import NamedTuple

import torch
from torch import Tensor

from pipeline.errors import StillroomError, unknown_name
from pipeline.metrics import FLOOR

STOPS = ("se", "gain", "size")


class Selection(NamedTuple):
    """How often each member was picked, the picks in order, and the mixture's NLL in nats after each of them."""

    counts: list[int]
    picks: list[int]
    nlls: list[float]


def greedy(log_probs: Tensor, labels: Tensor, *, max_size: int = 25, stop: str = "se") -> Selection:
    """Return the members whose mean probability has a low NLL, picked one by one with replacement: `[M, N, C], [N]`.

    Begins with the best member and goes on with the one that lowers the NLL most, the first of equals. Rows of label
    -1 are left out. `stop` is when to end before `max_size` picks: "se" once the best gain is below one standard error
    of the rows' gains, "gain" once there is none, "size" never, to return the best of all the sizes on the way. So the
    NLL is never above that of the best member. Source: Caruana 2004, sections 2.1 and 2.2.

    Raises: StillroomError for no labelled row, a log-probability that is nan, no size or an unknown `stop`.
    """
    if stop not in STOPS:
        raise unknown_name("selection", "stop", stop, STOPS)
    if max_size < 1:
        raise StillroomError(f"selection: max_size = {max_size!r}; expected 1 or more; raise it")
    true_probs = true_probabilities(log_probs, labels)
    total, losses = torch.zeros_like(true_probs[0]), torch.full_like(true_probs[0], math.inf)
    picks: list[int] = []
    nlls: list[float] = []
    while len(picks) < max_size:
        candidates = nll_rows((total + true_probs) / (len(picks) + 1))
        best = first_least(candidates.mean(1))
        if picks and stop != "size" and is_too_little(losses - candidates[best], stop=stop):
            break
        total, losses = total + true_probs[best], candidates[best]
        picks.append(best)
        nlls.append(losses.mean().item())
    size = nlls.index(min(nlls)) + 1
    return Selection([picks[:size].count(member) for member in range(len(log_probs))], picks[:size], nlls[:size])


def true_probabilities(log_probs: Tensor, labels: Tensor) -> Tensor:
    """Return each member's probability of the label on labelled rows, all that an NLL takes: float64 [M, n]."""
    if log_probs.ndim != 3 or log_probs.shape[1:2] != labels.shape or not len(log_probs):
        raise ValueError(f"log_probs {tuple(log_probs.shape)}, labels {tuple(labels.shape)}; expected [M, N, C], [N]")
    labelled = (labels >= 0).nonzero()[:, 0]
    if not len(labelled):
        raise StillroomError(
            "selection: found no row with a label; expected at least one; select on a split that has labels"
        )
    probs = log_probs[:, labelled, labels[labelled].long()].double().exp()
    if probs.isnan().any():
        member = int(probs.isnan().any(1).nonzero()[0])
        raise StillroomError(
            f"selection: member {member} has the log-probability nan; expected numbers up to 0; leave it out or retrain"
        )
    return probs


def nll_rows(probs: Tensor) -> Tensor:
    """Return -log of the truth's probability per row in nats, a zero taken as `metrics` does."""
    return -probs.clamp(min=FLOOR).log()


def first_least(values: Tensor) -> int:
    """Return the index of the least value, the first of equals (argmin may return any)."""
    return int((values == values.min()).nonzero()[0])


def is_too_little(gains: Tensor, *, stop: str) -> bool:
    """Return whether rows' gains [n] are no reason to go on: none on average, or under its standard error."""
    gain = gains.mean().item()
    if stop == "gain" or gain <= 0:
        return gain <= 0
    return not gain >= gains.std().item() / math.sqrt(len(gains))  # one row has no standard error (nan): stop
