"""Greedy selection agrees with trying everything, never loses to the best member, and forgets useless ones."""

import itertools
import math

import pytest
import torch
from torch import Tensor

from pipeline.errors import StillroomError
from pipeline.metrics import classification_metrics
from pipeline.selection import STOPS, greedy


def members(num_members: int = 4, num_rows: int = 400, num_classes: int = 5, *, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Log-probabilities [M, N, C] of members whose errors are their own, and labels [N]."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(num_classes, (num_rows,), generator=generator)
    signal = 1.5 * torch.nn.functional.one_hot(labels, num_classes)
    noise = 1.5 * torch.randn(num_members, num_rows, num_classes, generator=generator, dtype=torch.float64)
    return (signal + noise).log_softmax(-1), labels


def mixture_nll(log_probs: Tensor, labels: Tensor, picks: list[int]) -> float:
    """The NLL of the picks' mean probability, as the metrics score it."""
    return classification_metrics(log_probs[picks].exp().mean(0).log(), labels)["nll"]


@pytest.mark.parametrize("seed", range(5))
def test_the_first_picks_are_those_that_trying_all_finds(seed):
    log_probs, labels = members(num_rows=40, seed=seed)
    found = greedy(log_probs, labels, max_size=2, stop="size")
    first = min(range(4), key=lambda member: mixture_nll(log_probs, labels, [member]))
    second = min(range(4), key=lambda member: mixture_nll(log_probs, labels, [first, member]))
    assert found.picks == [first, second]
    assert found.counts == [found.picks.count(member) for member in range(4)]
    assert found.nlls == pytest.approx([mixture_nll(log_probs, labels, found.picks[: n + 1]) for n in range(2)])


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("stop", STOPS)
def test_the_trace_falls_from_the_best_member_and_is_that_of_the_picks(stop, seed):
    log_probs, labels = members(seed=seed)
    found = greedy(log_probs, labels, max_size=12, stop=stop)
    assert found.nlls[0] == pytest.approx(min(mixture_nll(log_probs, labels, [member]) for member in range(4)))
    assert min(found.nlls) == found.nlls[-1] < found.nlls[0]
    assert len(found.picks) == len(found.nlls) == sum(found.counts) <= 12
    for size in range(1, len(found.picks) + 1):
        assert found.nlls[size - 1] == pytest.approx(mixture_nll(log_probs, labels, found.picks[:size]))


def test_each_rule_goes_on_no_longer_than_the_next():
    log_probs, labels = members(num_members=6, num_rows=60)
    by_rule = {stop: greedy(log_probs, labels, max_size=40, stop=stop).nlls for stop in STOPS}
    assert by_rule["se"] == by_rule["gain"][: len(by_rule["se"])]
    assert by_rule["gain"] == by_rule["size"][: len(by_rule["gain"])]
    assert len(by_rule["se"]) < len(by_rule["size"])


@pytest.mark.parametrize("order", list(itertools.permutations(range(4))))
def test_counts_go_with_their_members_whatever_the_order(order):
    log_probs, labels = members()
    straight, turned = greedy(log_probs, labels), greedy(log_probs[list(order)], labels)
    assert turned.counts == [straight.counts[member] for member in order]
    assert turned.nlls == straight.nlls


def test_a_useless_member_counts_nothing():
    log_probs, labels = members()
    uniform, wrong = torch.full_like(log_probs[0], -math.log(5)), log_probs[0].roll(1, dims=-1)
    found = greedy(torch.cat([uniform[None], log_probs, wrong[None]]), labels)
    assert found.counts[0] == found.counts[-1] == 0
    assert found.counts[1:-1] == greedy(log_probs, labels).counts


def test_of_equal_members_the_first_is_picked_once():
    log_probs, labels = members(num_members=1)
    assert greedy(log_probs.repeat(3, 1, 1), labels) == ([1, 0, 0], [0], [mixture_nll(log_probs, labels, [0])])
    assert greedy(log_probs, labels).counts == [1]


@pytest.mark.parametrize(("num_rows", "expected"), [(50, 1), (400, 2)])
def test_a_gain_below_its_standard_error_is_left(num_rows, expected):
    # the pair gains 0.0217 nats a row with a deviation of 0.235: one standard error at 117 rows
    steady, erratic = torch.full((num_rows,), 0.6), torch.tensor([0.95, 0.37]).repeat(num_rows // 2)
    log_probs = torch.stack([torch.stack([p, 1 - p], -1) for p in (steady, erratic)]).log()
    labels = torch.zeros(num_rows, dtype=torch.long)
    assert len(greedy(log_probs, labels, max_size=2).picks) == expected
    assert greedy(log_probs, labels, max_size=2, stop="gain").picks == [0, 1]


def test_rows_without_a_label_and_zero_probabilities_do_no_harm():
    log_probs, labels = members()
    hidden = torch.cat([labels, torch.full((7,), -1)])
    noise = torch.full((4, 7, 5), math.nan, dtype=log_probs.dtype)
    assert greedy(torch.cat([log_probs, noise], 1), hidden) == greedy(log_probs, labels)
    one_hot = torch.where(log_probs[0] == log_probs[0].amax(-1, keepdim=True), 0.0, -math.inf)
    found = greedy(torch.cat([one_hot[None], log_probs]), labels)
    assert all(map(math.isfinite, found.nlls))
    assert found.nlls[-1] <= greedy(log_probs, labels).nlls[0]


def test_a_single_row_has_no_standard_error_and_ends_with_the_best():
    log_probs, labels = members(num_rows=1)
    assert sum(greedy(log_probs, labels).counts) == 1


@pytest.mark.parametrize(
    ("options", "labelled", "message"),
    [
        ({"stop": "see"}, True, "selection: unknown stop 'see'; expected one of 3; did you mean 'se'"),
        ({"max_size": 0}, True, "selection: max_size = 0; expected 1 or more; raise it"),
        ({}, False, "selection: found no row with a label; expected at least one; select on a split that has labels"),
    ],
)
def test_what_cannot_be_selected_is_told(options, labelled, message):
    log_probs, labels = members(num_rows=8)
    with pytest.raises(StillroomError, match=message):
        greedy(log_probs, labels if labelled else torch.full_like(labels, -1), **options)


def test_a_nan_names_its_member_and_wrong_shapes_are_a_bug():
    log_probs, labels = members(num_rows=8)
    log_probs[2, 3] = math.nan
    with pytest.raises(StillroomError, match="selection: member 2 has the log-probability nan; expected numbers up to"):
        greedy(log_probs, labels)
    with pytest.raises(ValueError, match=r"expected \[M, N, C\], \[N\]"):
        greedy(log_probs, labels[1:])
