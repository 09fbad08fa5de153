"""Whether several models, or several losses, may be computed as one: the same bits on a trial, in less time.

Nothing is left behind: no gradient, no drawn number, no count.
"""

import math
import time
from collections.abc import Callable, Sequence
from itertools import chain

import torch
from torch import Tensor, nn

from pipeline.errors import StillroomError
from pipeline.train.layers import forward
from pipeline.train.run import Loss, Lost
from pipeline.views import Batch

REPEATS = 3  # each with other numbers, and the fastest counts
CLOSE = 1e-5  # of the largest value: how far another order of sums may lead on a GPU
SLOWEST = 1.0  # as one ÷ in turn

Work = Callable[[Tensor], Sequence[Tensor]]


def models_agree(models: Sequence[nn.Module], inputs: Tensor) -> bool:
    """Return whether stackable models, as one, give the logits and gradients that each gives alone, and faster.

    The gradients are those of a random direction of the logits, for a loss may have none on some rows.
    """
    together = inputs.expand(len(models), *inputs.shape)
    weights = [list(model.parameters()) for model in models]

    def in_turn(directions: Tensor) -> list[Tensor]:
        found: list[Tensor] = []
        for model, own, direction in zip(models, weights, directions, strict=True):
            logits = model(inputs)
            found += [logits, *torch.autograd.grad(logits, own, direction)]
        return found

    def as_one(directions: Tensor) -> list[Tensor]:
        logits = forward(models, together)
        gradients = torch.autograd.grad(logits, list(chain.from_iterable(weights)), directions)
        found, count = list[Tensor](), len(weights[0])
        for place, own in enumerate(logits.unbind()):
            found += [own, *gradients[place * count : (place + 1) * count]]
        return found

    try:
        with torch.no_grad():
            shape = forward(models, together).shape
    except RuntimeError:  # of layers between which another axis runs, as tokens do
        return False
    return _wins(in_turn, as_one, [_noise(repeat, shape, inputs.device) for repeat in range(REPEATS)])


def losses_agree(loss: Loss, logits: Sequence[Tensor], batch: Batch) -> bool:
    """Return whether a loss of several runs' logits, each [B, C], is as one what it is in turn, and faster.

    It must be a function of logits and batch: what it counts it would count for each.
    """

    def in_turn(rows: Tensor) -> list[Tensor]:
        return _with_gradients(rows, [loss(own, batch) for own in rows.unbind()])

    def as_one(rows: Tensor) -> list[Tensor]:
        return _with_gradients(rows, losses_as_one(loss, rows, batch))

    at = torch.stack([each.detach() for each in logits])
    trials = [at + _noise(repeat, at.shape, at.device) for repeat in range(REPEATS)]
    return _wins(in_turn, as_one, [trial.requires_grad_() for trial in trials])


def losses_as_one(loss: Loss, logits: Tensor, batch: Batch) -> list[Lost]:
    """Return the loss of each run's logits and its parts, each [B]: [K, B, C] -> K of them."""
    losses, parts = torch.vmap(lambda own: loss(own, batch))(logits)
    each = {name: part.unbind() for name, part in parts.items()}
    return [(own, {name: part[k] for name, part in each.items()}) for k, own in enumerate(losses.unbind())]


def _with_gradients(logits: Tensor, found: Sequence[Lost]) -> list[Tensor]:
    gradient = torch.autograd.grad([loss.mean() for loss, _ in found], logits)
    return [*gradient, *chain.from_iterable([loss, *parts.values()] for loss, parts in found)]


def _noise(seed: int, shape: Sequence[int], device: torch.device) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(device)


def _wins(in_turn: Work, as_one: Work, trials: Sequence[Tensor]) -> bool:
    """Return whether both give the same on all trials and the second is faster.

    On a GPU the clock is not asked: bits differ there, and a run that is repeated has to go the same way.
    """
    fastest = [math.inf, math.inf]
    for trial in trials:
        found = []
        for place, work in enumerate((in_turn, as_one)):
            started = time.perf_counter()
            try:
                found.append(work(trial))
            except (RuntimeError, StillroomError):  # one that asks for a value can't be as one; alone it tells why
                return False
            fastest[place] = min(fastest[place], time.perf_counter() - started)
        if not all(_agree(one, other) for one, other in zip(*found, strict=True)):
            return False
    return trials[0].device.type != "cpu" or fastest[1] < SLOWEST * fastest[0]


def _agree(one: Tensor, other: Tensor) -> bool:
    if one.device.type != "cpu":
        return bool((one - other).abs().max() <= CLOSE * one.abs().max())
    # of one that diverged, nan is as good as nan; and 0 as -0, which is lost in the first sum of an optimiser
    return torch.equal(one.isnan(), other.isnan()) and torch.equal(one.nan_to_num(), other.nan_to_num())
