"""Pairs of texts as pieces: what a translator reads of a record, what it is to write, and what is missing."""

import random
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

from pipeline.datasets.inputs.pair import FittedPair, Pair
from pipeline.errors import StillroomError
from pipeline.translation.vocabulary import BOS, EOS, NO_ANSWER, PAD, Vocabulary, forced

RAW = Path("nowhere")
ENGLISH, SPANISH = (
    text.split()
    for text in (
        "open the file row of column delete add insert a",
        "abrir el archivo fila de columna eliminar añadir insertar una",
    )
)
OPTIONS = {"length": 8, "pieces": 80}


def frame(count: int = 60, seed: int = 0) -> pd.DataFrame:
    draw = random.Random(seed)
    texts = [
        [" ".join(draw.choices(words, k=draw.randint(1, 4))) for words in (ENGLISH, SPANISH)] for _ in range(count)
    ]
    made = pd.DataFrame(texts, columns=["english", "spanish"], dtype=object)
    made.loc[5:9, "spanish"] = None
    return made


def fitted(train: pd.DataFrame | None = None, **options: object) -> FittedPair:
    return Pair(**{**OPTIONS, **options}).fit(frame() if train is None else train, RAW)


def test_a_pair_is_the_source_s_pieces_and_the_target_shifted():
    made, table = fitted(), frame()
    assert made.shape == (2, 8)
    found, wanted = made.read(table), made.tokens(table)
    assert (found.dtype, wanted.dtype) == (torch.int64, torch.int64)
    assert (found.shape, wanted.shape) == ((60, 2, 8), (60, 8))
    assert torch.equal(found[:, 0], made.vocabulary.encode(table["english"].tolist(), 8))
    for row, text, tokens in zip(found[:, 1], table["spanish"], wanted, strict=True):
        if text is None:
            assert (row == PAD).all()
            assert (tokens == NO_ANSWER).all()
            continue
        pieces = made.vocabulary.encode([text], 8)[0]
        assert torch.equal(tokens, torch.where(pieces == PAD, NO_ANSWER, pieces))
        assert row[0] == BOS
        assert torch.equal(row[1:], pieces[:-1])
    assert torch.equal(found[:, 1], forced(wanted))


def test_what_is_written_comes_back_as_text():
    made, table = fitted(length=30), frame()
    known = table.dropna()
    assert made.vocabulary.decode(made.tokens(known)) == known["spanish"].tolist()
    assert made.vocabulary.decode(made.read(table)[:, 0]) == table["english"].tolist()


def test_long_texts_are_cut_and_empty_ones_end_at_once():
    made = fitted(length=3)
    table = pd.DataFrame({"english": ["the file of the row", ""], "spanish": ["", "el archivo de la fila"]})
    found, tokens = made.read(table), made.tokens(table)
    assert found[0, 0, -1] == EOS
    assert found[1, 0].tolist() == [EOS, PAD, PAD]
    assert tokens[0].tolist() == [EOS, NO_ANSWER, NO_ANSWER]
    assert tokens[1, -1] == EOS
    assert found[1, 1].tolist() == [BOS, *tokens[1, :2].tolist()]


def test_a_missing_source_is_padding():
    table = frame().assign(english=None)
    found = fitted().read(table)
    assert (found[:, 0] == PAD).all()
    assert torch.equal(found[:, 1], fitted().read(frame())[:, 1])


def test_the_order_of_train_rows_does_not_matter():
    for seed in range(3):
        order = np.random.default_rng(seed).permutation(60)
        assert fitted(frame().iloc[order]).vocabulary == fitted().vocabulary


def test_the_vocabulary_is_of_the_train_rows_both_columns_and_of_sources_without_a_target():
    table = frame()
    texts = [*table["english"], *table["spanish"].dropna()]
    assert fitted(table).vocabulary == Vocabulary.learn(texts, 80)
    assert fitted(table.iloc[:30]).vocabulary != fitted(table).vocabulary
    assert len(fitted(table.assign(spanish=None)).vocabulary) > 20


def test_a_row_has_its_pieces_whoever_is_read_with_it():
    made, table = fitted(), frame()
    whole = made.read(table)
    for ids in ([5], [59, 0, 0], []):
        assert torch.equal(made.read(table.iloc[ids]), whole[ids])
        assert torch.equal(made.tokens(table.iloc[ids]), made.tokens(table)[ids])


def test_other_columns_may_be_named():
    table = frame().rename(columns={"english": "a", "spanish": "b"})
    assert torch.equal(fitted(table, text="a", translation="b").read(table), fitted().read(frame()))
    back = fitted(table, text="b", translation="a")
    assert torch.equal(back.read(table)[:, 0], fitted().tokens(frame()).clamp(min=PAD))


def test_what_cannot_be_fitted_is_told():
    with pytest.raises(
        StillroomError, match=r"input of kind pair: found no column 'spanich'; expected one of 2; .*'span"
    ):
        fitted(translation="spanich")
    with pytest.raises(StillroomError, match="vocabulary: found 1 different characters in 0 texts, for 80 pieces"):
        fitted(frame().iloc[:0])
    with pytest.raises(StillroomError, match="for 10 pieces; expected texts, and a piece for each of their characters"):
        fitted(pieces=10)


def test_it_says_what_it_reads():
    made = Pair()
    assert made == Pair("english", "spanish", 24, 2000)
    assert (made.gives, made.learns, made.is_costly, made.version) == ("pairs", True, False, 1)
    assert made.columns == ("english", "spanish")
    assert made.naming == ("text", "translation")
