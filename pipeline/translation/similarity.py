"""How alike two texts are by the runs of characters they share, and the text that is most like all others.

The F-score of character n-grams, chrF: unlike words, characters give a text its due that has another ending alone. The
trade: what is said in other words is taken for something else.
"""

from collections import Counter
from collections.abc import Sequence

import numpy as np

LONGEST = 6  # characters of a run
BETA = 2  # how much more what is found of the reference counts than what is right of the hypothesis

# Of each length 1..LONGEST, the runs of a text as a set: the second "an" of "banana" is ("an", 1), so that the size of
# an intersection is the number of matches, repeated runs with it.
Profile = tuple[frozenset[object], ...]


def profile_of(text: str) -> Profile:
    """Return what `chrf` compares of a text: its runs of 1 to LONGEST characters, spaces left out."""
    characters = "".join(text.split())
    return tuple(marked([characters[i : i + n] for i in range(len(characters) - n + 1)]) for n in range(1, LONGEST + 1))


def marked(runs: list[str]) -> frozenset[object]:
    """Return runs as a set: the first of each as it is, those that repeat it with their number."""
    once = frozenset[object](runs)
    if len(once) == len(runs):
        return once
    return once | {(run, number) for run, count in Counter(runs).items() for number in range(1, count)}


def chrf(hypothesis: Profile, reference: Profile) -> float:
    """Return (1 + BETA²) P R / (BETA² P + R), from 0 to 1, of the mean precision P and recall R over run lengths.

    Lengths of which either text has no run are left out; where that is all of them, or nothing matches, it is 0.
    Source: Popović 2015, with the averages and the effective order of sacrebleu's CHRF.
    """
    precision = recall = 0.0
    order = 0
    for said, wanted in zip(hypothesis, reference, strict=True):
        if said and wanted:
            matches = len(said & wanted)
            precision += matches / len(said)
            recall += matches / len(wanted)
            order += 1
    if not precision:
        return 0.0
    precision, recall = precision / order, recall / order
    return (1 + BETA**2) * precision * recall / (BETA**2 * precision + recall)


def consensus(hypotheses: Sequence[str], weights: Sequence[float]) -> tuple[int, np.ndarray]:
    """Return the number of the hypothesis most like all, and the weighted mean similarity of each to all: float64 [N].

    A hypothesis that is proposed several times counts as often; of equals the first is returned. Where weights are
    probabilities it is the one of minimum Bayes risk. Source: Kumar & Byrne 2004; Eikema & Aziz 2020 (2005.10283).
    Raises ValueError for none, for a weight below 0 or not finite, when all are 0 or not one each.
    """
    shares = np.asarray(weights, np.float64)
    if not hypotheses or shares.shape != (len(hypotheses),):
        raise ValueError(f"{len(hypotheses)} hypotheses, weights {shares.shape}; expected at least one, a weight each")
    if not np.isfinite(shares).all() or shares.min() < 0 or not shares.sum():
        raise ValueError(f"weights {shares.tolist()}; expected finite ones from 0 on, not all 0")
    different = list(dict.fromkeys(hypotheses))
    places = np.array([different.index(text) for text in hypotheses])
    of_each = np.bincount(places, weights=shares / shares.sum())
    expected = (similarities(different) @ of_each)[places]
    return int(expected.argmax()), expected


def similarities(texts: Sequence[str]) -> np.ndarray:
    """Return `chrf` of each text, as hypothesis, to each, as reference: float64 [N, N]."""
    profiles = [profile_of(text) for text in texts]
    return np.array([[chrf(one, other) for other in profiles] for one in profiles])
