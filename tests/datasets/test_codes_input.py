"""Codes: a value's number is its place among the train rows' values, whoever stands beside it."""

import numpy as np
import pandas as pd
import pytest
import torch

from pipeline.datasets.inputs import parse_input
from pipeline.datasets.inputs.codes import Codes
from pipeline.errors import StillroomError

COLUMNS = ["who", "what", "tags"]


def make_frame(count: int = 60, seed: int = 0) -> pd.DataFrame:
    draw = np.random.default_rng(seed)
    tags = [" ".join(draw.choice(["Red", "green", "blue", "Sci-Fi"], draw.integers(0, 4))) for _ in range(count)]
    return pd.DataFrame(
        {
            "who": draw.integers(0, 20, count),
            "what": draw.choice(np.array(["a", "b", "c", None], dtype=object), count),
            "tags": np.array([text or None for text in tags], dtype=object),
        }
    )


def fitted(train: pd.DataFrame, **options):
    made = parse_input("x", {"kind": "codes", **options}, list(train))
    assert isinstance(made, Codes)
    return made.fit(train, None)


def test_a_value_s_number_is_its_place_among_the_train_rows_values():
    train = pd.DataFrame({"what": ["b", "a", "b", None], "n": [30, 9, 9, 30]})
    found = fitted(train)
    asked = pd.DataFrame({"what": ["a", "b", "c", None], "n": [9, 30, 5, 9]})
    assert found.read(asked).tolist() == [[1, 2], [2, 1], [0, 0], [0, 2]]  # by text: "30" stands before "9"
    assert found.shape == (2,)
    assert found.sizes == {"what": 2, "n": 2}


def test_no_two_values_of_a_column_share_a_number_and_none_is_left_out():
    train = pd.DataFrame({"who": [f"u{i}" for i in range(3000)]})
    codes = fitted(train).read(train)
    assert sorted(codes[:, 0].tolist()) == list(range(1, 3001))


def test_lists_are_words_cut_and_padded():
    train = pd.DataFrame({"tags": ["Star Trek: War, The", "war", None, "  "], "who": list("abcd")})
    found = fitted(train, columns=["who"], lists={"tags": 3})
    numbers = {"star": 1, "the": 2, "trek": 3, "war": 4}
    assert found.sizes == {"who": 4, "tags": 4}
    assert found.shape == (4,)
    wanted = [[numbers[word] for word in ("star", "trek", "war")], [numbers["war"], 0, 0], [0] * 3, [0] * 3]
    assert found.read(train)[:, 1:].tolist() == wanted
    asked = pd.DataFrame({"tags": ["peace THE war", "x=m.1 (war)"], "who": ["a", "e"]})
    assert found.read(asked).tolist() == [[1, 0, numbers["the"], numbers["war"]], [0, 0, numbers["war"], 0]]


def test_all_columns_but_the_lists_are_single_values():
    frame = make_frame()
    every = fitted(frame, lists={"tags": 2})
    named = fitted(frame, columns=["who", "what"], lists={"tags": 2})
    assert torch.equal(every.read(frame), named.read(frame))
    assert every.shape == (4,)
    assert fitted(frame).shape == (3,)


def test_the_order_of_train_rows_and_their_repetition_do_not_matter():
    frame = make_frame()
    options = {"lists": {"tags": 3}}
    one, other = fitted(frame, **options), fitted(pd.concat([frame.iloc[::-1], frame]), **options)
    assert torch.equal(one.read(frame), other.read(frame))


def test_a_row_has_its_numbers_whoever_is_read_with_it():
    frame = make_frame()
    found = fitted(frame.iloc[:30], lists={"tags": 3})
    whole = found.read(frame)
    assert whole.dtype == torch.int64
    assert (whole[30:, 0] == 0).any(), "a value that no train row has"
    for ids in ([5], [59, 0, 0], []):
        assert torch.equal(found.read(frame.iloc[ids]), whole[ids])


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ({"columns": ["whoo"]}, r"input\.x\.columns: found 'whoo'.*did you mean 'who'\?"),
        ({"columns": []}, r"input\.x\.columns: found none; expected at least one"),
        ({"lists": {"tag": 3}}, r"input\.x\.lists: found 'tag'.*did you mean 'tags'\?"),
        ({"lists": {"tags": 0}}, r"input\.x\.lists: found 0; expected greater than or equal to 1"),
        ({"lists": ["tags"]}, r"input\.x\.lists: found \['tags'\]; expected a valid dictionary"),
        ({"list": {"tags": 3}}, r"input\.x: codes found option 'list'.*did you mean 'lists'\?"),
    ],
)
def test_a_mistyped_declaration_is_told(spec, message):
    with pytest.raises(StillroomError, match=message):
        parse_input("x", {"kind": "codes", **spec}, COLUMNS)


def test_without_train_rows_there_is_nothing_to_learn():
    with pytest.raises(StillroomError, match="input of kind codes: found no train rows; expected at least one"):
        fitted(make_frame(0))
