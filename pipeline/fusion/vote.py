"""Each teacher has one vote, for its first choice.

Trade: indifferent to how confident, calibrated or scaled a teacher is, so it suits rules and other
people's predictions; it forgets everything a teacher knows beyond its first choice.
"""

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from pipeline.errors import unknown_name
from pipeline.fusion.base import (
    FusedTargets,
    Fusion,
    Outputs,
    check_positive,
    disagreement,
    log_softmax,
    soften,
    sum_teachers,
    uniform_weights,
)

KINDS = ("soft", "hard")


@dataclass(frozen=True)
class Vote(Fusion):
    """The share of votes, (n_c + smoothing) / (T + C * smoothing), softened as softmax(log p / temperature).

    `kind="hard"` lets only the winner's vote count (n = 1, of one vote). Among classes with equally
    many votes the one with the most summed probability (at temperature 1) wins, then the lowest number.
    Source: Papernot 2017 (PATE), section 2.
    """

    kind: str = "soft"
    smoothing: float = 0.1

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise unknown_name("fusion 'vote'", "kind", str(self.kind), KINDS)
        check_positive("fusion 'vote'", "smoothing", self.smoothing)

    def fuse(self, outputs: Outputs, *, temperature: float) -> FusedTargets:
        """Return the votes; the disagreement is that of the probabilities behind them."""
        soft = soften(outputs.logits, temperature=temperature)
        votes = count_votes(outputs.logits)
        if self.kind == "hard":
            votes = elect(votes, log_softmax(outputs.logits))
        weights = uniform_weights(soft)
        # the shares' common denominator is a constant that the softmax does not see
        fused = log_softmax((votes + self.smoothing).log(), temperature=temperature)
        return FusedTargets(fused, weights, disagreement(soft, weights))


def count_votes(logits: Tensor) -> Tensor:
    """Return how many teachers have each class as their first choice: `[T, ..., C] -> [..., C]`."""
    num_classes = logits.shape[-1]
    return sum_teachers(functional.one_hot(z.argmax(dim=-1), num_classes).float() for z in logits)


def elect(votes: Tensor, log_probs: Tensor) -> Tensor:
    """Return one vote for the winner of `votes [..., C]`; ties go by the probability sum of `[T, ..., C]`."""
    support = sum_teachers(log_probs.exp())
    tied = votes == votes.amax(dim=-1, keepdim=True)
    winner = torch.where(tied, support, -1.0).argmax(dim=-1)
    return functional.one_hot(winner, votes.shape[-1]).float()
