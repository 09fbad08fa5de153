"""Each teacher has one vote, for its first choice.

Trade: indifferent to how confident, calibrated or scaled a teacher is, so it suits rules and other people's
predictions; it forgets everything a teacher knows beyond its first choice. Counting votes needs nothing; `log_odds`
needs labels to learn how often each teacher is right, `dawid_skene` needs none, but many rows and at least three
teachers whose mistakes have little to do with each other.
"""

import math
from dataclasses import dataclass
from typing import Self

import torch
from torch import Tensor
from torch.nn import functional

from pipeline.errors import StillroomError, unknown_name
from pipeline.fusion.base import FusedTargets, Fusion, Outputs, check_finite, check_positive
from pipeline.fusion.distributions import (
    Softened,
    disagreement,
    log_softmax,
    normalised,
    row_weights,
    soften,
    sum_teachers,
    uniform_weights,
)

KINDS = ("soft", "hard", "log_odds", "dawid_skene")
ROUNDS = 20_000  # of EM: it takes some tens, thousands where the teachers hardly agree or are two
SETTLED = 1e-6  # of a row's probabilities, on average over the rows
OWN_VOTE = 1.0  # vote that each class is given for itself
WHERE = "fusion 'vote'"


@dataclass(frozen=True)
class Vote(Fusion):
    """The teachers' first choices made a distribution p(c), softened as softmax(log p / temperature).

    `kind="soft"`: the share of votes, (n_c + smoothing) / (T + C * smoothing). `"hard"` lets only the winner's vote
    count (n = 1, of one vote). Among classes with equally many votes the one with the most summed probability (at
    temperature 1) wins, then the lowest number. Source: Papernot 2017 (PATE), section 2.

    `"log_odds"`: p = softmax(sum_k w_k 1[argmax z_k = c]), w_k = max(0, log((C - 1) a_k / (1 - a_k))) with the accuracy
    a_k = (right + 1) / (rows + 2) on calibration rows: what naive Bayes says when a teacher errs towards every other
    class alike. A teacher no better than guessing has no vote; when none is better, `fit` raises, for targets that say
    nothing would pass unnoticed. Source: Nitzan & Paroush 1982.

    `"dawid_skene"`: the posterior p(c) prod_k p_k(vote | c), with confusions found by EM on calibration rows whose
    labels it does not look at. `smoothing` is added to every count, so a class without votes stays possible, and one
    vote to each class's own: the votes of one or two teachers fit any confusion, and alone would call it all noise.
    The weights reported are shares of sum_c p(c) p_k(c | c). Source: Dawid & Skene 1979.

    The disagreement is always that of the probabilities behind the votes.
    """

    kind: str = "soft"
    smoothing: float = 0.1

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise unknown_name(WHERE, "kind", str(self.kind), KINDS)
        check_positive(WHERE, "smoothing", self.smoothing)

    @property
    def is_fitted_on_rows(self) -> bool:
        """Whether `fit` looks at rows: counting votes needs none."""
        return self.kind in ("log_odds", "dawid_skene")

    def fit(self, outputs: Outputs) -> Self:
        """Return a copy that knows how far to trust each teacher; this very strategy where votes are just counted.

        Raises: StillroomError when labels are missing where needed, when no teacher is better than guessing, or when
        EM does not settle.
        """
        if self.kind == "log_odds":
            return self.with_state(log_odds=log_odds(*outputs.labelled(WHERE)))
        if self.kind == "dawid_skene":
            check_finite(WHERE, outputs.logits)
            votes = outputs.logits.argmax(dim=-1).flatten(1)
            return self.with_state(**dawid_skene(votes, outputs.num_classes, smoothing=self.smoothing))
        return self

    def fuse(self, outputs: Outputs, *, temperature: float) -> FusedTargets:
        """Return the votes. Raises: StillroomError before a `fit` that is needed, or for another number of teachers."""
        soft = soften(outputs.logits, temperature=temperature)
        scores, weights = self._scores(outputs.logits, soft)
        return FusedTargets(log_softmax(scores, temperature=temperature), weights, disagreement(soft, weights))

    def _scores(self, logits: Tensor, soft: Softened) -> tuple[Tensor, Tensor]:
        """Return log p(c) of the rows up to a constant `[..., C]`, and the teachers' weights `[..., T]`."""
        num_teachers = soft.num_teachers
        if self.kind == "log_odds":
            odds = self.fitted_state("log_odds", num_teachers).float()
            return count_votes(logits, odds), row_weights(normalised(odds, WHERE), soft)
        if self.kind == "dawid_skene":
            votes = logits.argmax(dim=-1)
            weights = row_weights(self.fitted_state("weights", num_teachers), soft)
            found = {name: self.fitted_state(name) for name in ("seen", "log_confusion", "log_prior")}
            return posterior_scores(votes, **found, smoothing=self.smoothing).float(), weights
        votes = count_votes(logits)
        if self.kind == "hard":
            votes = elect(votes, log_softmax(logits))
        # the shares' common denominator is a constant that the softmax does not see
        return (votes + self.smoothing).log(), uniform_weights(soft)


def count_votes(logits: Tensor, worth: Tensor | None = None) -> Tensor:
    """Return how many teachers have each class as first choice, or what their votes `[T]` are worth in all.

    `[T, ..., C] -> [..., C]`, float32.
    """
    num_classes = logits.shape[-1]
    worth = torch.ones(len(logits)) if worth is None else worth
    onehots = (functional.one_hot(z.argmax(dim=-1), num_classes) for z in logits)
    return sum_teachers(own * onehot for own, onehot in zip(worth, onehots, strict=True))


def elect(votes: Tensor, log_probs: Tensor) -> Tensor:
    """Return one vote for the winner of `votes [..., C]`; ties go by the probability sum of `[T, ..., C]`."""
    support = sum_teachers(log_probs.exp())
    tied = votes == votes.amax(dim=-1, keepdim=True)
    winner = torch.where(tied, support, -1.0).argmax(dim=-1)
    return functional.one_hot(winner, votes.shape[-1]).float()


def log_odds(logits: Tensor, labels: Tensor) -> Tensor:
    """Return what each teacher's vote is worth in nats, float64 [T], 0 for one that is no better than guessing.

    `[T, N, C], [N] -> [T]`. Raises StillroomError when none is better.
    """
    right = (logits.argmax(dim=-1) == labels).double().sum(dim=1)
    accuracy = (right + 1) / (len(labels) + 2)
    wrong_classes = max(logits.shape[-1] - 1, 1)  # one class: all are right, and any worth will do
    worth = (wrong_classes * accuracy / (1 - accuracy)).log().clamp(min=0)
    if not worth.any():
        raise StillroomError(
            f"{WHERE} by log_odds: accuracies {[round(a, 3) for a in accuracy.tolist()]} on {len(labels)} rows of "
            f"{logits.shape[-1]} classes; expected a teacher better than guessing; use kind 'soft' or better teachers"
        )
    return worth


def dawid_skene(votes: Tensor, num_classes: int, *, smoothing: float) -> dict[str, Tensor]:
    """Return by EM what the votes alone, int64 [T, N], say of the teachers and classes, float64 but for `seen`.

    `seen` int64 [J] are the classes that got votes, in order; `log_confusion` [T, J + 1, C] of the chance that a
    teacher votes for the j-th of them when the class is c, the last row being that of any one other class than c
    without votes; `log_prior` [C]; `weights` [T]. It begins with the share of votes, which settles which class is
    which. Raises: StillroomError when the posteriors still move after 20,000 rounds.
    """
    seen = votes.unique()
    patterns, repeats = votes.unique(dim=1, return_counts=True)  # rows of the same votes have one posterior
    columns, share = torch.searchsorted(seen, patterns.contiguous()), repeats.double() / votes.shape[1]
    posterior = sum_teachers(functional.one_hot(own, num_classes).double() for own in patterns) / len(votes)
    for _ in range(ROUNDS):
        log_confusion, log_prior = _count(columns, posterior * repeats.unsqueeze(-1), seen, smoothing)
        before, posterior = posterior, _scores_of(columns, log_confusion, log_prior).softmax(dim=-1)
        moved = (share @ (posterior - before).abs().sum(dim=-1)).item()
        if moved < SETTLED:
            own = (log_confusion[:, torch.arange(len(seen)), seen] + log_prior[seen]).exp().sum(dim=1)
            weights = normalised(own, WHERE)
            return {"seen": seen, "log_confusion": log_confusion, "log_prior": log_prior, "weights": weights}
    raise StillroomError(
        f"{WHERE} by dawid_skene: a row's probabilities still move by {moved:.1e} after {ROUNDS} rounds of EM; "
        f"expected less than {SETTLED:.0e}; use kind 'soft', more calibration rows or a larger smoothing"
    )


def _count(columns: Tensor, posterior: Tensor, seen: Tensor, smoothing: float) -> tuple[Tensor, Tensor]:
    """Return the logs of confusions and prior: smoothed shares of rows, by what [M, C] of them are of a class."""
    num_classes = posterior.shape[-1]
    rows = posterior.sum(dim=0)
    # the last row is of classes without votes, whose own vote `posterior_scores` adds
    own = functional.pad(OWN_VOTE * functional.one_hot(seen, num_classes).double(), (0, 0, 0, 1))
    counts = torch.stack([own.index_add(0, chosen, posterior) for chosen in columns]) + smoothing
    log_confusion = counts.log() - (rows + num_classes * smoothing + OWN_VOTE).log()
    return log_confusion, ((rows + smoothing) / (rows.sum() + num_classes * smoothing)).log()


def _scores_of(columns: Tensor, log_confusion: Tensor, log_prior: Tensor) -> Tensor:
    """Return log p(c) + sum_k log p_k(vote | c): `[T, ...], [T, J + 1, C], [C] -> [..., C]`."""
    return log_prior + sum_teachers(own[chosen] for own, chosen in zip(log_confusion, columns, strict=True))


def posterior_scores(
    votes: Tensor, seen: Tensor, log_confusion: Tensor, log_prior: Tensor, *, smoothing: float
) -> Tensor:
    """Return each class's log-posterior up to a constant, given votes that EM may not have seen.

    `[T, ...], [J], [T, J + 1, C], [C] -> [..., C]`.
    """
    places = torch.searchsorted(seen, votes)
    is_new = seen[places.clamp(max=len(seen) - 1)] != votes
    scores = _scores_of(torch.where(is_new, len(seen), places), log_confusion, log_prior)
    if not is_new.any():
        return scores
    onehots = (
        functional.one_hot(own, len(log_prior)) * new.unsqueeze(-1) for own, new in zip(votes, is_new, strict=True)
    )
    return scores + (math.log(smoothing + OWN_VOTE) - math.log(smoothing)) * sum_teachers(onehots)
