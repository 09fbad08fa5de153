"""An exponential average of a model's weights, which predicts better than the last of them where steps are noisy."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn


class WeightAverage:
    """The average of all that is in a model's state, after each step: `average = d average + (1 - d) weights`.

    d is `decay`, at first less: min(decay, (1 + t) / (10 + t)), else the first weights, which are random, would stay in
    for 1 / (1 - decay) steps. Counters take the newest value. Source: Polyak & Juditsky 1992; Tan & Le 2019 for d.
    """

    def __init__(self, model: nn.Module, decay: float):
        self.decay, self.steps = decay, 0
        self.state = {name: value.detach().clone() for name, value in model.state_dict().items()}

    @torch.no_grad()
    def update(self, model: nn.Module) -> None:
        """Take in the weights as they are now."""
        keep = min(self.decay, (1 + self.steps) / (10 + self.steps))
        self.steps += 1
        for name, value in model.state_dict().items():
            if value.is_floating_point():
                self.state[name].lerp_(value, 1 - keep)
            else:
                self.state[name].copy_(value)

    @contextmanager
    def within(self, model: nn.Module) -> Iterator[None]:
        """Have the model hold the average for a while."""
        own = {name: value.detach().clone() for name, value in model.state_dict().items()}
        model.load_state_dict(self.state)
        try:
            yield
        finally:
            model.load_state_dict(own)
