"""Choosing one of several teachers' sentences. None needs a teacher again: they go by what was written."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal, Self

import numpy as np

from pipeline.errors import StillroomError
from pipeline.fusion.base import check_positive
from pipeline.fusion.sentences.base import Proposals, Proposed, SentenceFusion
from pipeline.translation.similarity import chrf, consensus, profile_of


@dataclass(frozen=True)
class Consensus(SentenceFusion):
    """The sentence most like all that were written: what most teachers say in nearly the same words.

    Each teacher's sentences share its weight by their likelihoods; teachers weigh alike, or by how like the references
    their likeliest ones are on calibration rows, softmax(chrF / `tau`). Trade: of two good ways to say a thing the
    commoner wins.
    Source: Kumar & Byrne 2004; Eikema & Aziz 2020 (minimum Bayes risk, by chrF).
    """

    by: Literal["uniform", "chrf"] = "uniform"
    tau: float = 0.05

    def __post_init__(self) -> None:
        if self.by not in ("uniform", "chrf"):
            raise StillroomError(f"fusion 'consensus': by is {self.by!r}; expected 'uniform' or 'chrf'; change it")
        check_positive("fusion 'consensus'", "tau", self.tau)

    @property
    def is_fitted_on_rows(self) -> bool:
        """Whether `fit` looks at rows at all."""
        return self.by == "chrf"

    def fit(self, proposals: Proposals) -> Self:
        """Return a copy with the teachers' weights. Raises: StillroomError where no row has a reference."""
        if self.by == "uniform":
            return self
        qualities = mean_similarities(proposals)
        weights = np.exp((qualities - qualities.max()) / self.tau)
        return self.with_state(weights=weights / weights.sum())

    def choose(self, row: Proposed, reference: str | None, weights: Sequence[float]) -> int:
        """Return the place of the sentence of the least expected loss."""
        return consensus(row.texts, shares(row, weights))[0]


@dataclass(frozen=True)
class Best(SentenceFusion):
    """The sentence that its own teacher finds likeliest, by length: of one teacher, its beam search's answer.

    Trade: teachers that are sure of everything always win.
    """

    def choose(self, row: Proposed, reference: str | None, weights: Sequence[float]) -> int:
        """Return the place of the highest score, the first of equals."""
        return int(np.argmax(row.scores))


@dataclass(frozen=True)
class Nearest(SentenceFusion):
    """The sentence most like the reference where that may be seen, else the `Consensus` of all.

    Source: Kim & Rush 2016 (1606.07947), section 3.3 ("sequence-level interpolation"), by chrF instead of BLEU.
    """

    def choose(self, row: Proposed, reference: str | None, weights: Sequence[float]) -> int:
        """Return the place of the sentence nearest to the reference, or to all."""
        if reference is None:
            return consensus(row.texts, shares(row, weights))[0]
        wanted = profile_of(reference)
        return int(np.argmax([chrf(profile_of(text), wanted) for text in row.texts]))


def shares(row: Proposed, weights: Sequence[float]) -> list[float]:
    """Return the weight of each proposal: those of a teacher share its own by how likely it finds them."""
    likelihoods = np.exp(np.array(row.scores) - max(row.scores))
    sums = np.bincount(row.owners, likelihoods, minlength=len(weights))
    return [weights[owner] * own / sums[owner] for owner, own in zip(row.owners, likelihoods, strict=True)]


def mean_similarities(proposals: Proposals) -> np.ndarray:
    """Return the mean chrF of each teacher's likeliest sentence with the reference: float64 [T], 0 for none."""
    sums, count = np.zeros(proposals.num_teachers), 0
    for row, reference in zip(proposals.rows, proposals.references, strict=True):
        if reference is None:
            continue
        wanted, count = profile_of(reference), count + 1
        for teacher in set(row.owners):
            sums[teacher] += chrf(profile_of(first_of(row, teacher)), wanted)
    if not count:
        raise StillroomError(
            "fusion: none of the calibration rows has a reference; expected at least one; give them some, or use "
            "consensus by 'uniform'"
        )
    return sums / count


def first_of(row: Proposed, teacher: int) -> str:
    """Return a teacher's first sentence, "" where it has none."""
    return row.texts[row.owners.index(teacher)] if teacher in row.owners else ""


def without_references(proposals: Proposals) -> Proposals:
    """Return the same rows with no reference to be seen: how rows are judged that a student is judged by."""
    return replace(proposals, references=[None] * len(proposals))
