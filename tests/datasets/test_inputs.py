"""Inputs: mistyped tables are told, and texts and words are what they say."""

import numpy as np
import pandas as pd
import pytest
import torch

from pipeline.datasets.inputs import INPUTS, config_of, parse_input
from pipeline.datasets.inputs.words import Words, split_words
from pipeline.errors import StillroomError

COLUMNS = ["text", "title", "age"]


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ({}, r"input\.x\.kind: unknown kind of input 'None'"),
        ({"kind": "tabel"}, r"input\.x\.kind: unknown kind of input 'tabel'.*did you mean 'table'\?"),
        ({"kind": "words", "lenght": 3}, r"input\.x: words found option 'lenght'.*did you mean 'length'\?"),
        ({"kind": "words", "length": 0}, r"input\.x\.length: found 0; expected greater than or equal to 1; correct it"),
        ({"kind": "words", "length": True}, r"input\.x\.length: found True; expected a valid integer"),
        ({"kind": "words", "ngrams": 3}, r"input\.x\.ngrams: found 3; expected 1 or 2"),
        ({"kind": "text", "columns": "text"}, r"input\.x\.columns: found 'text'; expected a valid tuple"),
        ({"kind": "text", "columns": ["titel"]}, r"input\.x\.columns: found 'titel'.*did you mean 'title'\?"),
        ({"kind": "text", "columns": []}, r"input\.x\.columns: found none; expected at least one; known: age"),
        ({"kind": "table", "drop": ["agee"]}, r"input\.x\.drop: found 'agee'.*did you mean 'age'\?"),
        ({"kind": "table", "log": ["agee"]}, r"input\.x\.log: found 'agee'.*did you mean 'age'\?"),
        ({"kind": "table", "scale": "lgo"}, r"input\.x\.scale: found 'lgo'; expected 'standard', 'minmax', 'log' or"),
        ({"kind": "table", "clip": [0, 2]}, r"input\.x\.clip: found 2; expected less than or equal to 1"),
        ({"kind": "embedding", "encoder": "minlm"}, r"input\.x\.encoder: unknown encoder 'minlm'.*mean 'minilm'\?"),
        ({"kind": "embedding", "encoder": "imdb"}, r"input\.x\.encoder: unknown encoder 'imdb'"),
    ],
)
def test_a_mistyped_input_is_told(spec, message):
    with pytest.raises(StillroomError, match=message):
        parse_input("x", spec, COLUMNS)


ASKED = {  # what a kind can't do without
    "series": {"series": ["load"], "length": 3},
    "noise": {"dims": 4, "columns": ["age", "title"]},
    "pair": {"text": "text", "translation": "title"},
}


@pytest.mark.parametrize("kind", INPUTS)
def test_config_is_whole_and_makes_the_same_input_again(kind):
    made = parse_input("x", {"kind": kind, **ASKED.get(kind, {})}, COLUMNS)
    config = config_of(made)
    own = {key: value for key, value in config.items() if key not in ("version", "encoder_sha256")}
    assert parse_input("x", own, COLUMNS) == made
    assert config["version"] == made.version
    assert ("encoder_sha256" in config) == (kind == "embedding")


def read_words(*texts: str | None, **options: object) -> torch.Tensor:
    frame = pd.DataFrame({"text": np.array(texts, dtype=object)})
    made = parse_input("x", {"kind": "words", **options}, ["text"])
    assert isinstance(made, Words)
    found = made.read(frame)
    assert found.dtype == torch.int64
    assert tuple(found.shape) == (len(texts), *made.shape)
    return found


def test_texts_are_joined_and_missing_ones_are_empty():
    frame = pd.DataFrame({"title": ["a", None, "c"], "text": ["x", "y", None], "age": [1, 2, 3]})
    read = parse_input("x", {"kind": "text", "columns": ["title", "text"]}, COLUMNS).fit(frame, None).read
    assert read(frame) == ["a\nx", "\ny", "c\n"]
    numbers = parse_input("x", {"kind": "text", "columns": ["age"]}, COLUMNS).fit(frame, None)
    assert numbers.read(frame) == ["1", "2", "3"]


def test_words_are_split_as_people_read_them():
    text = "It's GOOD :) isn\u2019t it?! see http://x.y/z:door 2nd <3 very_long :D =( ;-P"
    assert split_words(text) == [
        *("it's", "good", ":)", "isn\u2019t", "it", "?", "!", "see", "http", ":/", "x", "y", "z", "door", "2nd", "<3"),
        *("very", "long", ":d", "=(", ";-p"),
    ]
    assert split_words("très bien 日本語 Ünï") == ["très", "bien", "日本語", "ünï"]
    assert split_words("cafe\u0301") == split_words("caf\u00e9")
    assert split_words(" .,;- \n") == []


def test_the_numbers_of_words_are_fixed():
    """Stores and weights are made of them: they may never change."""
    assert read_words("good film", length=2).tolist() == [[1017608, 82753]]
    assert read_words("good film", length=2, ngrams=2).tolist() == [[1017608, 82753, 907483]]


def test_words_are_padded_at_the_end_cut_and_independent_of_others():
    one, two = read_words("good"), read_words("bad")
    both = read_words("good bad", "", None, "bad", length=3)
    assert both[0].tolist() == [one[0, 0], two[0, 0], 0]
    assert both[1:3].tolist() == [[0] * 3] * 2
    assert both[3].tolist() == [two[0, 0], 0, 0]
    long = read_words("good bad good bad", length=3)
    assert long.tolist() == [[one[0, 0], two[0, 0], one[0, 0]]]


def test_numbers_of_words_stay_within_the_buckets():
    texts = [" ".join(f"w{i}" for i in range(500))]
    few = read_words(*texts, length=500, buckets=7)
    assert set(few.unique().tolist()) == set(range(1, 8))
    many = read_words(*texts, length=500)
    assert many.max() <= 2**20
    assert len(many.unique()) > 490


def test_pairs_come_after_the_words_and_know_their_order():
    found = read_words("not good", "good not", "good", "", length=3, ngrams=2)
    alone = read_words("not good", "good not", length=3)
    assert torch.equal(found[:2, :2], alone[:, :2])
    assert found[0, 2] != found[1, 2]
    assert (found[:2, 3:] == 0).all()
    assert found[2].tolist() == [alone[0, 1], 0, 0, 0, 0]
    assert found[3].tolist() == [0] * 5
    inside = read_words("is not good", length=3, ngrams=2)
    assert inside[0, 4] == found[0, 2]


def test_pairs_spread_over_all_buckets():
    texts = [" ".join(f"w{i}" for i in range(4000))]
    counts = np.bincount((read_words(*texts, length=4000, ngrams=2, buckets=64)[0, 4000:]).numpy(), minlength=65)[1:]
    assert counts.min() > 30
    assert counts.max() < 100
