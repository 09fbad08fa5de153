"""Fusions of sentences: what is chosen was written by somebody, whoever stands where, and references stay unseen."""

from itertools import permutations

import numpy as np
import pytest
import torch

from pipeline.errors import StillroomError
from pipeline.fusion.sentences import SENTENCE_FUSIONS, Proposals, SentenceTarget
from pipeline.fusion.sentences.base import NOTHING, proposals_of
from pipeline.fusion.sentences.strategies import Consensus, mean_similarities, without_references
from pipeline.translation.similarity import chrf, consensus, profile_of

LENGTH = 6
TEXTS = ["abrir archivo", "abrir el archivo", "cerrar la fila", "abrir un fichero", "archivo", "la fila se cierra"]
over_strategies = pytest.mark.parametrize("name", SENTENCE_FUSIONS)


def tokens_for(text: str) -> list[int]:
    """Return made-up pieces that tell texts apart: 1 + the place among TEXTS, 0 behind it."""
    return [1 + TEXTS.index(text)] + [0] * (LENGTH - 1)


def made(said: list[list[list[str]]], references: list[str | None], scores: list[list[list[float]]] | None = None):
    """Return proposals of texts by row, teacher and place."""
    rows, count = len(said), max(len(own) for row in said for own in row)
    tokens, values, texts = [], [], []
    for teacher in range(len(said[0])):
        ids, own, words = torch.zeros(rows, count, LENGTH, dtype=torch.int64), torch.full((rows, count), NOTHING), []
        for row in range(rows):
            for place in range(count):
                there = place < len(said[row][teacher])
                words.append(said[row][teacher][place] if there else "")
                if there:
                    ids[row, place] = torch.tensor(tokens_for(said[row][teacher][place]))
                    own[row, place] = -0.5 * place if scores is None else scores[row][teacher][place]
        tokens.append(ids)
        values.append(own)
        texts.append(words)
    return proposals_of(tokens, values, texts, references)


def few() -> Proposals:
    """Three rows of two teachers, two sentences each at most; the last row has none."""
    return made(
        [
            [["abrir archivo", "archivo"], ["abrir el archivo", "abrir un fichero"]],
            [["cerrar la fila"], ["la fila se cierra", "cerrar la fila"]],
            [[], []],
        ],
        ["abrir un fichero", None, None],
    )


def text_of(tokens: torch.Tensor) -> str:
    return "" if not tokens[0] else TEXTS[int(tokens[0]) - 1]


@over_strategies
def test_what_is_chosen_was_proposed_and_weights_say_by_whom(name: str):
    rows = few()
    fused = SentenceTarget(SENTENCE_FUSIONS[name]()).fit(rows).fuse(rows)
    for row, said in enumerate(rows.rows[:2]):
        text = text_of(fused.tokens[row])
        wrote = sorted({owner for owner, each in zip(said.owners, said.texts, strict=True) if each == text})
        assert wrote
        assert fused.weights[row].nonzero()[:, 0].tolist() == wrote
        assert float(fused.weights[row].sum()) == pytest.approx(1)
    assert not fused.tokens[2].any()  # nobody wrote anything
    assert not fused.weights[2].any()
    assert fused.disagreement[2] == 0


@over_strategies
def test_rows_are_fused_each_by_itself(name: str):
    rows = few()
    target = SentenceTarget(SENTENCE_FUSIONS[name]()).fit(rows)
    whole = target.fuse(rows)
    for row in range(len(rows)):
        alone = target.fuse(
            Proposals(tuple(each[row : row + 1] for each in rows.tokens), [rows.rows[row]], [rows.references[row]])
        )
        assert torch.equal(alone.tokens[0], whole.tokens[row])
        assert torch.equal(alone.weights[0], whole.weights[row])
        assert torch.equal(alone.disagreement[0], whole.disagreement[row])


@over_strategies
def test_teachers_may_stand_in_any_order(name: str):
    said = [["abrir archivo", "archivo"], ["abrir el archivo", "abrir un fichero"], ["cerrar la fila"]]
    scores = [[-0.1, -2.0], [-0.4, -0.9], [-3.0]]
    wanted = None
    for order in permutations(range(3)):
        rows = made([[said[t] for t in order]], [None], [[scores[t] for t in order]])
        fused = SentenceTarget(SENTENCE_FUSIONS[name]()).fit(rows).fuse(rows)
        found = text_of(fused.tokens[0]), [float(fused.weights[0, order.index(t)]) for t in range(3)]
        wanted = wanted or found
        assert found == wanted
        assert float(fused.disagreement[0]) == pytest.approx(float(1 - _mean_apart([each[0] for each in said])), 1e-6)


def _mean_apart(texts: list[str]) -> float:
    pairs = [chrf(profile_of(a), profile_of(b)) for i, a in enumerate(texts) for j, b in enumerate(texts) if i != j]
    return float(np.mean(pairs))


def test_the_consensus_is_the_slow_one_and_a_teachers_sentences_share_its_weight():
    rows = few()
    fused = SentenceTarget(Consensus()).fuse(rows)
    for row in (0, 1):
        said = rows.rows[row]
        of = [sum(np.exp(s) for s, o in zip(said.scores, said.owners, strict=True) if o == owner) for owner in (0, 1)]
        weights = [0.5 * np.exp(score) / of[owner] for score, owner in zip(said.scores, said.owners, strict=True)]
        assert text_of(fused.tokens[row]) == said.texts[consensus(said.texts, weights)[0]]


def test_the_nearest_takes_what_is_most_like_the_reference_and_without_one_the_consensus():
    rows, target = few(), SentenceTarget(SENTENCE_FUSIONS["nearest"]())
    assert text_of(target.fuse(rows).tokens[0]) == "abrir un fichero"
    hidden, plain = target.fuse(without_references(rows)), SentenceTarget(Consensus()).fuse(rows)
    assert torch.equal(hidden.tokens, plain.tokens)


def test_the_best_is_of_the_highest_score():
    rows = made([[["archivo"], ["cerrar la fila", "abrir archivo"]]], [None], [[[-1.0], [-2.0, -0.2]]])
    assert text_of(SentenceTarget(SENTENCE_FUSIONS["best"]()).fuse(rows).tokens[0]) == "abrir archivo"


def test_weights_by_chrf_follow_who_is_nearer_to_the_references_and_are_kept():
    rows = made(
        [[["abrir archivo"], ["la fila se cierra"]], [["cerrar la fila"], ["archivo"]]],
        ["abrir el archivo", "cerrar la fila"],
    )
    fitted = SentenceTarget(Consensus(by="chrf", tau=0.1)).fit(rows)
    qualities = mean_similarities(rows)
    assert qualities[0] > qualities[1]
    expected = np.exp(qualities / 0.1)
    np.testing.assert_allclose(fitted.state["weights"], expected / expected.sum(), rtol=1e-6)
    again = SentenceTarget(Consensus(by="chrf", tau=0.1)).restored(fitted.state)
    assert torch.equal(again.fuse(rows).tokens, fitted.fuse(rows).tokens)
    with pytest.raises(StillroomError, match="fusion 'consensus': proposals of 3 teachers; expected the 2 it was"):
        fitted.fusion.teacher_weights(3)


def test_wrong_options_and_rows_without_references_are_told():
    with pytest.raises(StillroomError, match="by is 'bleu'; expected 'uniform' or 'chrf'"):
        Consensus(by="bleu")  # type: ignore[arg-type]
    with pytest.raises(StillroomError, match="tau is 0; expected a finite number above 0"):
        Consensus(tau=0)
    with pytest.raises(StillroomError, match="none of the calibration rows has a reference"):
        SentenceTarget(Consensus(by="chrf")).fit(without_references(few()))
