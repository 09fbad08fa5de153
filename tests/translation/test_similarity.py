"""chrF as sacrebleu has it, and the hypothesis that is most like all others as a loop finds it."""

import random

import numpy as np
import pytest
import sacrebleu

from pipeline.translation.similarity import chrf, consensus, marked, profile_of, similarities

TEXT = "Añadir la fila al archivo de datos banana aaaa no sí 12 (y) ¿qué? el valor número columnas"
WORDS = TEXT.split()


def texts(count: int, seed: int = 0) -> list[str]:
    draw = random.Random(seed)
    return [" ".join(draw.choices(WORDS, k=draw.randint(0, 9))) for _ in range(count)]


def test_chrf_is_that_of_sacrebleu():
    edges = ["", " ", "a", "ab", "abc", "aaaaaaaa", "aaaa", "  a  b ", "日本", "a\u0301b"]
    rows = [*zip(texts(300), texts(300, 1), strict=True), *((one, other) for one in edges for other in edges)]
    for hypothesis, reference in rows:
        found = chrf(profile_of(hypothesis), profile_of(reference))
        assert found == pytest.approx(sacrebleu.sentence_chrf(hypothesis, [reference]).score / 100, abs=1e-12)


def test_a_text_is_most_like_itself_and_spaces_do_not_count():
    rows = [text for text in texts(50) if text]
    table = similarities(rows)
    assert np.diag(table) == pytest.approx(np.ones(len(rows)))
    assert table.min() >= 0
    assert chrf(profile_of("a b c d"), profile_of("abcd")) == 1
    assert chrf(profile_of(""), profile_of("")) == 0  # nothing is like nothing, as in sacrebleu


def test_recall_counts_more_than_precision():
    short, long = profile_of("abcdef"), profile_of("abcdefghijkl")
    assert chrf(long, short) > chrf(short, long)


def test_repeated_runs_count_as_often_as_both_have_them():
    once, twice, thrice = (marked(["an"] * count) for count in (1, 2, 3))
    assert [len(once & thrice), len(twice & thrice), len(thrice & thrice)] == [1, 2, 3]
    assert marked([]) == frozenset()


# -- consensus --------------------------------------------------------------------------------------------------------


def slowly(hypotheses: list[str], weights: list[float]) -> list[float]:
    return [
        sum(
            weight * sacrebleu.sentence_chrf(one, [other]).score / 100
            for other, weight in zip(hypotheses, weights, strict=True)
        )
        / sum(weights)
        for one in hypotheses
    ]


@pytest.mark.parametrize("seed", range(20))
def test_consensus_is_what_a_loop_finds(seed):
    draw = random.Random(seed)
    hypotheses = draw.choices(texts(6, seed), k=8)
    weights = [draw.choice([0.0, 0.5, 1.0, 3.0]) for _ in range(7)] + [1.0]
    place, expected = consensus(hypotheses, weights)
    wanted = slowly(hypotheses, weights)
    assert expected == pytest.approx(wanted, abs=1e-12)
    assert place == expected.tolist().index(max(expected.tolist()))
    assert wanted[place] == pytest.approx(max(wanted))


def test_what_is_proposed_twice_counts_twice():
    pool = ["la fila", "el archivo", "la fila"]
    assert consensus(pool, [1, 1, 1])[0] == 0
    twice, once = consensus(pool, [1, 1, 1])[1], consensus(pool[:2], [2, 1])[1]
    assert twice[:2] == pytest.approx(once)
    assert twice[0] == twice[2]
    assert consensus(["el archivo", "la fila", "la fila"], [3, 1, 1])[0] == 0


def test_the_order_of_hypotheses_does_not_matter_but_for_ties():
    pool, weights = texts(8, 5), [1.0, 2, 3, 4, 1, 2, 3, 4]
    place, expected = consensus(pool, weights)
    order = [3, 1, 7, 0, 2, 6, 5, 4]
    other, shuffled = consensus([pool[i] for i in order], [weights[i] for i in order])
    assert shuffled == pytest.approx(expected[order])
    assert order[other] == place
    assert consensus(["abcd", "bcde"], [1, 1])[0] == consensus(["bcde", "abcd"], [1, 1])[0] == 0


def test_one_hypothesis_and_empty_ones():
    assert consensus(["la fila"], [0.3])[0] == 0
    assert consensus(["la fila"], [0.3])[1] == pytest.approx([1.0])
    assert consensus(["", ""], [1, 1])[0] == 0
    assert consensus(["", "la fila"], [1, 1])[0] == 1


@pytest.mark.parametrize(
    ("hypotheses", "weights", "message"),
    [
        ([], [], "0 hypotheses"),
        (["a"], [1, 2], r"1 hypotheses, weights \(2,\); expected at least one, a weight each"),
        (["a", "b"], [0, 0], r"weights \[0.0, 0.0\]; expected finite ones from 0 on, not all 0"),
        (["a", "b"], [-1, 2], "expected finite ones from 0 on"),
        (["a", "b"], [float("nan"), 2], "expected finite ones from 0 on"),
    ],
)
def test_impossible_pools_are_refused(hypotheses, weights, message):
    with pytest.raises(ValueError, match=message):
        consensus(hypotheses, weights)
