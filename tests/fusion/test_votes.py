"""Votes: counted by the formula, weighed as naive Bayes weighs them, and judged without labels as Dawid & Skene did."""

import itertools
import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import torch
from test_fusions import rows_of, teachers
from torch import Tensor
from torch.nn import functional

import pipeline.fusion.vote
from pipeline.errors import StillroomError
from pipeline.fusion import FUSIONS, Vote
from pipeline.fusion.vote import dawid_skene, log_odds


def logits_of(votes: Any, classes: int) -> Tensor:
    """Logits of teachers who vote so: `[T, N] -> [T, N, C]`."""
    return functional.one_hot(torch.as_tensor(votes), classes).float()


# -- counted ----------------------------------------------------------------------------------------------------------


def test_votes_are_the_formula() -> None:
    logits = logits_of([[0, 1], [0, 2], [3, 1]], 4)
    found = Vote(smoothing=0.1).fuse(rows_of(logits), temperature=1.0).log_probs.exp()
    expected = (torch.tensor([[2.0, 0, 0, 1], [0, 2, 1, 0]]) + 0.1) / 3.4
    torch.testing.assert_close(found, expected)
    hard = Vote(kind="hard", smoothing=0.1).fuse(rows_of(logits), temperature=1.0).log_probs.exp()
    torch.testing.assert_close(hard, (torch.tensor([[1.0, 0, 0, 0], [0, 1, 0, 0]]) + 0.1) / 1.4)


@pytest.mark.parametrize("kind", ["soft", "hard", "log_odds", "dawid_skene"])
def test_votes_soften_with_the_temperature(kind: str) -> None:
    logits = teachers(3, 20, 10)
    vote = Vote(kind=kind).fit(rows_of(logits, logits[0].argmax(-1)))
    at_one = vote.fuse(rows_of(logits), temperature=1.0).log_probs
    softened = vote.fuse(rows_of(logits), temperature=4.0).log_probs
    torch.testing.assert_close(softened, (at_one / 4).log_softmax(-1), atol=1e-5, rtol=0)


def test_a_tied_hard_vote_goes_to_the_most_probable_of_the_tied_classes() -> None:
    # one vote each for 0 and 1; class 2 has the largest probability sum but no vote
    probs = torch.tensor([[[0.51, 0.00, 0.49]], [[0.00, 0.52, 0.48]]])
    logits = (probs + 1e-6).log()
    assert Vote(kind="hard").fuse(rows_of(logits), temperature=1.0).log_probs.argmax(-1).item() == 1
    assert Vote(kind="hard").fuse(rows_of(logits[:, :, [1, 0, 2]]), temperature=4.0).log_probs.argmax(-1).item() == 0


def test_an_unbroken_tie_goes_to_the_lowest_class() -> None:
    logits = torch.tensor([[[2.0, 0.0]], [[0.0, 2.0]]])
    for teachers_in_order in (logits, logits.flip(0)):
        assert Vote(kind="hard").fuse(rows_of(teachers_in_order), temperature=1.0).log_probs.argmax(-1).item() == 0


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"kind": "sof"}, r"fusion 'vote': unknown kind 'sof'; .*did you mean 'soft'\?"),
        ({"kind": "logodds"}, r"unknown kind 'logodds'; .*did you mean 'log_odds'\?"),
        ({"smoothing": 0.0}, r"fusion 'vote': smoothing is 0.0; expected a finite number above 0; change"),
    ],
)
def test_wrong_options_are_named_at_once(options: dict[str, Any], message: str) -> None:
    with pytest.raises(StillroomError, match=message):
        FUSIONS["vote"](**options)


@pytest.mark.parametrize("kind", ["log_odds", "dawid_skene"])
def test_votes_that_are_fitted_refuse_to_guess(kind: str) -> None:
    logits = teachers(3, 10, 4)
    vote = Vote(kind=kind)
    assert vote.is_fitted_on_rows
    with pytest.raises(StillroomError, match=r"fusion 'vote': it has no .* yet; expected a fitted strategy; call fit"):
        vote.fuse(rows_of(logits), temperature=1.0)
    fitted = vote.fit(rows_of(logits, logits[0].argmax(-1)))
    with pytest.raises(StillroomError, match="logits of 2 teachers; expected the 3 it was fitted on; fit again"):
        fitted.fuse(rows_of(logits[:2]), temperature=1.0)
    logits[2, 4, 0] = math.nan
    with pytest.raises(StillroomError, match="fusion 'vote': teacher 2, row 4 has a logit that is not finite"):
        vote.fit(rows_of(logits, torch.zeros(10, dtype=torch.long)))


@pytest.mark.parametrize("kind", ["soft", "hard"])
def test_counting_needs_no_fit(kind: str) -> None:
    vote = Vote(kind=kind)
    assert not vote.is_fitted_on_rows
    assert vote.fit(rows_of(teachers(2, 5, 3))) is vote


# -- weighed by log-odds ----------------------------------------------------------------------------------------------


def naive_bayes(votes: Sequence[int], accuracies: Sequence[float], classes: int) -> list[float]:
    """Return the posterior by enumeration: classes equally likely, and a mistake equally likely any other class."""
    joint = []
    for truth in range(classes):
        chance = 1 / classes
        for vote, accuracy in zip(votes, accuracies, strict=True):
            chance *= accuracy if vote == truth else (1 - accuracy) / (classes - 1)
        joint.append(chance)
    return [chance / sum(joint) for chance in joint]


@pytest.mark.parametrize("classes", [2, 3, 5])
def test_a_log_odds_vote_is_naive_bayes(classes: int) -> None:
    right = [18, 13, 11]  # of 20: all above guessing
    labels = torch.zeros(20, dtype=torch.long)
    choices = torch.stack([(torch.arange(20) >= count).long() for count in right])
    vote = Vote(kind="log_odds").fit(rows_of(logits_of(choices, classes), labels))
    accuracies = [(count + 1) / 22 for count in right]
    patterns = list(itertools.product(range(classes), repeat=3))
    found = vote.fuse(rows_of(logits_of(np.array(patterns).T, classes)), temperature=1.0)
    expected = [naive_bayes(pattern, accuracies, classes) for pattern in patterns]
    torch.testing.assert_close(found.log_probs.exp(), torch.tensor(expected), atol=1e-6, rtol=0)
    odds = [math.log((classes - 1) * a / (1 - a)) for a in accuracies]
    assert vote.fitted()["log_odds"] == pytest.approx(odds)
    assert found.weights[0].tolist() == pytest.approx([each / sum(odds) for each in odds])


def test_accuracies_of_none_and_all_stay_finite_and_a_guesser_has_no_vote() -> None:
    labels = torch.arange(40) % 4
    always, never = labels, (labels + 1) % 4
    guesser = torch.where(torch.arange(40) < 8, labels, (labels + 2) % 4)  # 9/42, below a quarter
    vote = Vote(kind="log_odds").fit(rows_of(logits_of(torch.stack([always, never, guesser]), 4), labels))
    assert vote.fitted()["log_odds"] == pytest.approx([math.log(3 * 41), 0, 0])
    found = vote.fuse(rows_of(logits_of([[1], [2], [2]], 4)), temperature=1.0)
    assert found.log_probs.argmax(-1).item() == 1
    assert found.weights.tolist() == [[1, 0, 0]]


def test_teachers_who_all_guess_are_refused() -> None:
    labels = torch.arange(30) % 3
    with pytest.raises(
        StillroomError, match=r"by log_odds: accuracies \[0.031, 0.031\] on 30 rows of 3 classes; expected"
    ):
        log_odds(logits_of(torch.stack([labels + 1, labels + 2]) % 3, 3), labels)
    with pytest.raises(StillroomError, match="fusion 'vote': none of 30 rows has a label"):
        Vote(kind="log_odds").fit(rows_of(logits_of(torch.stack([labels, labels]), 3)))


# -- Dawid & Skene ----------------------------------------------------------------------------------------------------


def voters(confusions: np.ndarray, prior: np.ndarray, rows: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Draw labels [N] and votes [T, N] of teachers with these confusions [T, C, C], the true class first."""
    drawn = np.random.default_rng(seed)
    labels = drawn.choice(len(prior), size=rows, p=prior)
    votes = [[drawn.choice(len(prior), p=own[label]) for label in labels] for own in confusions]
    return labels, np.array(votes)


def slow_dawid_skene(votes: np.ndarray, classes: int, smoothing: float, rounds: int) -> tuple[Any, Any, Any]:
    """Return posteriors [N, C], confusions [T, C, C] and prior by EM in loops, plain probabilities, row by row."""
    num_teachers, rows = votes.shape
    posterior = np.zeros((rows, classes))
    for k, i in itertools.product(range(num_teachers), range(rows)):
        posterior[i, votes[k, i]] += 1 / num_teachers
    for _ in range(rounds):
        confusion = np.full((num_teachers, classes, classes), smoothing)
        for k, i, c in itertools.product(range(num_teachers), range(rows), range(classes)):
            confusion[k, c, votes[k, i]] += posterior[i, c]
        for k, c in itertools.product(range(num_teachers), range(classes)):
            confusion[k, c, c] += 1  # the one vote to each class's own
            confusion[k, c] /= confusion[k, c].sum()
        prior = (posterior.sum(0) + smoothing) / (posterior.sum(0) + smoothing).sum()
        for i in range(rows):
            chances = prior.copy()
            for k in range(num_teachers):
                chances *= confusion[k, :, votes[k, i]]
            posterior[i] = chances / chances.sum()
    return posterior, confusion, prior


def noisy(accuracy: float, classes: int) -> np.ndarray:
    """Confusion of a teacher whose mistakes go anywhere alike."""
    return np.full((classes, classes), (1 - accuracy) / (classes - 1)) + np.eye(classes) * (
        accuracy - (1 - accuracy) / (classes - 1)
    )


@pytest.mark.parametrize(("classes", "smoothing"), [(3, 0.1), (3, 1.0), (2, 0.1)])
def test_dawid_skene_is_the_slow_one(classes: int, smoothing: float) -> None:
    confusions = np.stack([noisy(accuracy, classes) for accuracy in (0.9, 0.8, 0.75, 0.7)])
    _, votes = voters(confusions, np.full(classes, 1 / classes), 60)
    posterior, confusion, prior = slow_dawid_skene(votes, classes, smoothing, rounds=150)
    vote = Vote(kind="dawid_skene", smoothing=smoothing).fit(rows_of(logits_of(votes, classes)))
    found = vote.fuse(rows_of(logits_of(votes, classes)), temperature=1.0)
    torch.testing.assert_close(found.log_probs.double().exp(), torch.tensor(posterior), atol=1e-4, rtol=0)
    state = vote.state
    np.testing.assert_allclose(state["log_confusion"][:, :-1].exp().mT, confusion, atol=1e-4)
    np.testing.assert_allclose(state["log_prior"].exp(), prior, atol=1e-4)
    shares = np.einsum("c,kcc->k", prior, confusion)
    np.testing.assert_allclose(found.weights[0], shares / shares.sum(), atol=1e-4)


def test_dawid_skene_recovers_confusions_without_a_label_and_beats_the_majority() -> None:
    mixes_up = np.array([[0.95, 0.05, 0.0], [0.05, 0.15, 0.8], [0.0, 0.1, 0.9]])  # takes class 1 for class 2
    confusions = np.stack([mixes_up, mixes_up, noisy(0.95, 3), noisy(0.85, 3), noisy(0.8, 3)])
    prior = np.array([0.5, 0.3, 0.2])
    labels, votes = voters(confusions, prior, 4000)
    found = dawid_skene(torch.tensor(votes), 3, smoothing=0.1)
    np.testing.assert_allclose(found["log_confusion"][:, :-1].exp().mT, confusions, atol=0.05)
    np.testing.assert_allclose(found["log_prior"].exp(), prior, atol=0.03)
    rows = rows_of(logits_of(votes, 3))
    by_confusion = Vote(kind="dawid_skene").fit(rows).fuse(rows, temperature=1.0).log_probs.argmax(-1).numpy()
    by_majority = Vote().fuse(rows, temperature=1.0).log_probs.argmax(-1).numpy()
    assert (by_confusion == labels).mean() > (by_majority == labels).mean() + 0.03


@pytest.mark.parametrize("teachers_alike", [1, 2])
def test_one_teacher_or_its_copy_is_believed(teachers_alike: int) -> None:
    """Their votes fit pure noise as well: only the vote that each class has for itself says otherwise."""
    _, votes = voters(noisy(0.9, 10)[None], np.full(10, 0.1), 300)
    rows = rows_of(logits_of(votes.repeat(teachers_alike, axis=0), 10))
    found = Vote(kind="dawid_skene").fit(rows).fuse(rows, temperature=1.0)
    assert np.array_equal(found.log_probs.argmax(-1).numpy(), votes[0])


def test_classes_without_votes_stay_possible_and_a_new_one_can_be_voted_for() -> None:
    _, votes = voters(np.stack([noisy(0.9, 3)] * 3), np.full(3, 1 / 3), 200)
    vote = Vote(kind="dawid_skene").fit(rows_of(logits_of(votes, 6)))  # nobody votes for 3, 4 or 5
    assert vote.state["log_confusion"].shape == (3, 4, 6)
    found = vote.fuse(rows_of(logits_of([[4, 0, 4], [4, 0, 0], [4, 0, 0]], 6)), temperature=1.0).log_probs
    assert found.isfinite().all()
    assert found.argmax(-1).tolist() == [4, 0, 0]
    # written out for the first row: nothing was counted of class 4, and each class c has its own n_c
    counted = (vote.state["log_prior"].exp() * (200 + 0.6) - 0.1).clamp(min=0)
    own = [0.1 + (c == 4) for c in range(6)]
    chances = torch.tensor([math.log(own[c] / (counted[c] + 0.6 + 1)) * 3 for c in range(6)], dtype=torch.float64)
    expected = (chances + vote.state["log_prior"]).log_softmax(-1)
    torch.testing.assert_close(found[0].double(), expected, atol=1e-4, rtol=0)


def test_dawid_skene_says_when_it_does_not_settle(monkeypatch: pytest.MonkeyPatch) -> None:
    _, votes = voters(np.stack([noisy(0.5, 4)] * 3), np.full(4, 0.25), 100)
    monkeypatch.setattr(pipeline.fusion.vote, "ROUNDS", 3)
    with pytest.raises(
        StillroomError, match=r"by dawid_skene: a row's probabilities still move by .* after 3 rounds of EM"
    ):
        dawid_skene(torch.tensor(votes), 4, smoothing=0.1)


def test_dawid_skene_does_not_look_at_labels_and_is_restored_from_its_state() -> None:
    labels, votes = voters(np.stack([noisy(0.9, 4)] * 3), np.full(4, 0.25), 300)
    rows = rows_of(logits_of(votes, 4))
    blind = Vote(kind="dawid_skene").fit(rows)
    seeing = Vote(kind="dawid_skene").fit(rows_of(rows.logits, torch.tensor(labels)))
    assert all(torch.equal(values, seeing.state[name]) for name, values in blind.state.items())
    again = Vote(kind="dawid_skene").with_state(**{name: values.numpy() for name, values in blind.state.items()})
    found, expected = again.fuse(rows, temperature=4.0), blind.fuse(rows, temperature=4.0)
    assert torch.equal(found.log_probs, expected.log_probs)
    assert torch.equal(found.weights, expected.weights)
