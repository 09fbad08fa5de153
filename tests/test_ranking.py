"""Rankings agree with slow sums, with scikit-learn, and with what many shuffles of ties give on average."""

import math

import numpy as np
import pytest
import torch
from sklearn.metrics import ndcg_score

from pipeline.ranking import Ranking, coverage_at, ndcg_at, standings


def answers(scores) -> torch.Tensor:
    """Return log-probabilities whose second class is as likely as the scores say: float64 [N, 2]."""
    liked = torch.as_tensor(np.asarray(scores), dtype=torch.float64)
    return torch.stack([1 - liked, liked], 1).log()


def made(count: int = 400, people: int = 30, levels: int | None = None, seed: int = 0):
    """Return scores, labels, people and items of made-up rows; with levels, scores have so many values."""
    draw = np.random.default_rng(seed)
    scores = draw.random(count) if levels is None else draw.integers(1, levels + 1, count) / (levels + 1)
    labels = (draw.random(count) < scores).astype(np.int64)
    return scores, torch.from_numpy(labels), draw.integers(0, people, count), draw.integers(0, 50, count)


def slow_ndcg(scores, labels, people, k: int) -> float:
    """Return the mean over people with a gain and more than one row, of scores without ties."""
    found = []
    for person in np.unique(people):
        own = np.flatnonzero(people == person)
        gains = [float(labels[i]) for i in sorted(own, key=lambda i: -scores[i])]
        best = sum(gain / math.log2(2 + place) for place, gain in enumerate(sorted(gains, reverse=True)[:k]))
        if best and len(own) > 1:
            found.append(sum(gain / math.log2(2 + place) for place, gain in enumerate(gains[:k])) / best)
    return sum(found) / len(found)


@pytest.mark.parametrize("k", [1, 3, 10, 100])
def test_ndcg_is_the_slow_sum(k):
    scores, labels, people, _ = made()
    assert ndcg_at(answers(scores), labels, people, k) == pytest.approx(slow_ndcg(scores, labels, people, k))


@pytest.mark.parametrize("levels", [None, 3, 1])
@pytest.mark.parametrize("k", [3, 10])
def test_ndcg_of_each_person_is_scikit_learn_s_which_takes_the_mean_of_ties(k, levels):
    scores, labels, people, _ = made(levels=levels)
    each = []
    for person in np.unique(people):
        own = people == person
        if labels[own].sum() and own.sum() > 1:
            each.append(ndcg_score([labels.numpy()[own]], [standings(answers(scores))[own]], k=k))
    assert ndcg_at(answers(scores), labels, people, k) == pytest.approx(np.mean(each))


def test_tied_scores_count_as_shuffles_of_them_do_on_average():
    scores, labels, people, items = made(120, people=6, levels=2)
    draw = np.random.default_rng(1)
    shuffles = [scores + 1e-6 * draw.random(len(scores)) for _ in range(1500)]
    ndcg = [ndcg_at(answers(each), labels, people, 5) for each in shuffles]
    coverage = [coverage_at(answers(each), people, items, 60, 5) for each in shuffles]
    assert ndcg_at(answers(scores), labels, people, 5) == pytest.approx(np.mean(ndcg), abs=0.005)
    assert coverage_at(answers(scores), people, items, 60, 5) == pytest.approx(np.mean(coverage), abs=0.005)
    assert np.std(ndcg) > 0.01, "shuffles that are all alike prove nothing"


@pytest.mark.parametrize("levels", [None, 3])
def test_the_order_of_the_rows_does_not_matter(levels):
    scores, labels, people, items = made(levels=levels)
    order = np.random.default_rng(2).permutation(len(scores))
    one = Ranking(people, items, 60).metrics(answers(scores), labels)
    other = Ranking(people, items, 60).of(order).metrics(answers(scores[order]), labels[order])
    assert one == pytest.approx(other)
    assert one.keys() == {"ndcg10", "coverage10"}


def test_closed_forms_of_two_rows():
    people, labels = np.array(["a", "a"]), torch.tensor([1, 0])
    assert ndcg_at(answers([0.9, 0.1]), labels, people) == 1
    assert ndcg_at(answers([0.1, 0.9]), labels, people) == pytest.approx(1 / math.log2(3))
    assert ndcg_at(answers([0.5, 0.5]), labels, people) == pytest.approx((1 + 1 / math.log2(3)) / 2)
    assert ndcg_at(answers([0.1, 0.9]), labels, people, k=1) == 0


def test_graded_labels_gain_what_they_are():
    people, labels = np.zeros(3, int), torch.tensor([2, 0, 1])
    log_probs = torch.tensor([[0.1, 0.8, 0.1], [0.1, 0.1, 0.8], [0.8, 0.1, 0.1]]).log()  # expected: 1.0, 1.7, 0.3
    found = 0 / 1 + 2 / math.log2(3) + 1 / 2
    assert ndcg_at(log_probs, labels, people) == pytest.approx(found / (2 + 1 / math.log2(3)))


def test_who_has_one_row_no_gain_or_no_label_is_left_out():
    people = np.array(["a", "a", "b", "c", "c", "d", "d"])
    labels = torch.tensor([0, 1, 1, 0, 0, -1, 1])
    scores = [0.2, 0.1, 0.9, 0.5, 0.6, 0.9, 0.1]
    assert ndcg_at(answers(scores), labels, people) == pytest.approx(1 / math.log2(3))  # a alone
    assert math.isnan(ndcg_at(answers(scores[2:3]), labels[2:3], people[2:3]))
    assert math.isnan(ndcg_at(answers(scores[5:6]), labels[5:6], people[5:6]))


def test_coverage_is_the_slow_count():
    scores, _, people, items = made()
    shown = set()
    for person in np.unique(people):
        own = np.flatnonzero(people == person)
        shown |= {items[i] for i in own[np.argsort(-scores[own])][:4]}
    assert coverage_at(answers(scores), people, items, 80, 4) == pytest.approx(len(shown) / 80)
    assert coverage_at(answers(scores), people, items, 80, 1000) == pytest.approx(len(set(items)) / 80)


def test_coverage_of_ties_by_hand():
    people, items = np.array([0, 0, 0, 1, 1]), np.array(["x", "y", "z", "x", "y"])
    found = coverage_at(answers([0.5, 0.5, 0.5, 0.9, 0.1]), people, items, 4, 1)
    assert found == pytest.approx((1 + 1 / 3 + 1 / 3) / 4)  # x is 1's first for sure, y and z are 0's one time in three
    with pytest.raises(ValueError, match="rows of 3 items; expected 2 at most"):
        coverage_at(answers([0.5] * 5), people, items, 2)


def test_sure_answers_keep_their_order_and_certain_ones_are_tied():
    sure = torch.tensor([[-30.0, 0.0], [-31.0, 0.0], [0.0, -31.0], [0.0, -30.0]]).log_softmax(-1)
    assert np.argsort(standings(sure)).tolist() == [2, 3, 0, 1]
    certain = answers([1.0, 1.0, 0.0])
    assert standings(certain).tolist() == [math.inf, math.inf, -math.inf]
    labels, people = torch.tensor([1, 0, 0]), np.zeros(3)
    assert ndcg_at(certain, labels, people) == pytest.approx((1 + 1 / math.log2(3)) / 2)
