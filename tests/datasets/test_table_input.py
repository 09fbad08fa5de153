"""The table's vector: what a slow reading by hand gives, whatever is missing, constant, rare or new."""

import math
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch

from pipeline.datasets.inputs import parse_input
from pipeline.errors import StillroomError

NAN = float("nan")


def fitted(train: pd.DataFrame, **options: Any) -> Any:
    return parse_input("x", {"kind": "table", **options}, list(train)).fit(train, Path("nowhere"))


def vectors(train: pd.DataFrame, frame: pd.DataFrame | None = None, **options: Any) -> list[list[float]]:
    found = fitted(train, **options).read(train if frame is None else frame)
    assert found.dtype == torch.float32
    return found.tolist()


def quantile(values: list[float], share: float) -> float:
    """Return a quantile by interpolation between the sorted values."""
    values = sorted(value for value in values if not math.isnan(value))
    place = share * (len(values) - 1)
    low = int(place)
    high = min(low + 1, len(values) - 1)
    return values[low] + (place - low) * (values[high] - values[low])


def scaled_by_hand(train: list[float], rows: list[float], scale: str, clip: tuple[float, float]) -> list[float]:
    ends = quantile(train, clip[0]), quantile(train, clip[1])
    middle = quantile([min(max(value, ends[0]), ends[1]) for value in train if not math.isnan(value)], 0.5)

    def plain(value: float) -> float:
        value = middle if math.isnan(value) else min(max(value, ends[0]), ends[1])
        return math.log(1 + value - ends[0]) if scale == "log" else value

    seen, asked = [plain(value) for value in train], [plain(value) for value in rows]
    if scale == "minmax":
        return [(value - min(seen)) / (max(seen) - min(seen)) for value in asked]
    if scale == "none":
        return asked
    mean = sum(seen) / len(seen)
    std = math.sqrt(sum((value - mean) ** 2 for value in seen) / len(seen))
    return [(value - mean) / std for value in asked]


@pytest.mark.parametrize("scale", ["standard", "minmax", "log", "none"])
@pytest.mark.parametrize("clip", [(0.0, 1.0), (0.05, 0.9)])
def test_numbers_are_those_of_a_slow_reading_by_hand(scale, clip):
    draw = np.random.default_rng(3)
    train = draw.lognormal(1, 2, 60).tolist()
    train[4] = train[17] = NAN
    rows = [NAN, -5.0, 0.3, 2.0, 1e9]
    found = vectors(pd.DataFrame({"x": train}), pd.DataFrame({"x": rows}), scale=scale, clip=list(clip))
    expected = scaled_by_hand(train, rows, scale, clip)
    assert [row[0] for row in found] == pytest.approx(expected, rel=1e-6, abs=1e-7)
    assert [row[1] for row in found] == [1, 0, 0, 0, 0]


def test_single_columns_are_scaled_otherwise():
    frame = pd.DataFrame({name: [0.0, 1.0, 4.0, 10.0] for name in "abcd"})
    options = {"scale": "minmax", "clip": [0, 1], "none": ["b"], "log": ["c"], "standard": ["d"]}
    train = frame["a"].tolist()
    expected = [scaled_by_hand(train, train, scale, (0, 1)) for scale in ("standard", "minmax", "log", "none")]
    found = np.array(vectors(frame, **options)).T  # columns of one scale stand together
    assert np.allclose(found, expected, atol=1e-6)


def test_a_gap_has_a_column_only_if_train_has_one():
    train, test = pd.DataFrame({"x": [1.0, 3.0]}), pd.DataFrame({"x": [NAN, math.inf]})
    assert vectors(train, test, scale="none", clip=[0, 1]) == [[2], [2]]
    gap = pd.DataFrame({"x": [1.0, 3.0, -math.inf]})
    assert vectors(gap, test, scale="none", clip=[0, 1]) == [[2, 1], [2, 1]]


def test_a_column_without_a_number_is_zero_and_missing_throughout():
    train = pd.DataFrame({"x": [NAN, NAN], "y": [1.0, 2.0]})
    for scale in ("standard", "minmax", "log", "none"):
        found = np.array(vectors(train, pd.DataFrame({"x": [5.0, NAN], "y": [1.0, 2.0]}), none=["y"], scale=scale))
        assert np.isfinite(found).all()
        assert found.tolist()[0][-1] in (0, 1)
        assert (found[:, 0] == 0).all() or scale == "none"


def test_a_constant_column_is_zero():
    train, test = pd.DataFrame({"x": [7, 7, 7]}), pd.DataFrame({"x": [7, 8, 6]})
    assert vectors(train, test) == [[0], [0], [0]]
    assert vectors(train, test, scale="minmax") == [[0], [0], [0]]
    assert vectors(train, test, scale="log") == [[0], [0], [0]]


def test_categories_rare_missing_and_new():
    train = pd.DataFrame({"c": ["b"] * 3 + ["a"] * 2 + ["rare", "odd"] + [None]})
    test = pd.DataFrame({"c": ["a", "b", "rare", "odd", None, "new", "Ä"]})
    assert vectors(train, test, min_frequency=2) == [
        [1, 0, 0, 0],
        [0, 1, 0, 0],
        [0, 0, 1, 0],
        [0, 0, 1, 0],
        [0, 0, 0, 1],
        [0, 0, 0, 0],
        [0, 0, 0, 0],
    ]


def test_without_rare_or_missing_values_there_is_no_column_for_them():
    train = pd.DataFrame({"c": ["b", "a", "b", "a"]})
    assert vectors(train, pd.DataFrame({"c": ["a", "b", None]}), min_frequency=2) == [[1, 0], [0, 1], [0, 0]]


def test_a_category_that_is_missing_throughout_has_one_column():
    train = pd.DataFrame({"c": np.array([None, None], dtype=object), "x": [0.0, 1.0]})
    assert vectors(train, scale="none", clip=[0, 1]) == [[0, 1], [1, 1]]


def test_truth_values_and_named_numbers_are_categories():
    train = pd.DataFrame({"is_new": [True, False, True], "zip": [10, 20, 10]})
    assert vectors(train, categories=["zip"], min_frequency=1) == [[0, 1, 1, 0], [1, 0, 0, 1], [0, 1, 1, 0]]


def test_columns_and_dropped_ones():
    frame = pd.DataFrame({"a": [0.0, 1.0], "b": [5.0, 6.0], "c": ["x", "y"]})
    assert vectors(frame, columns=["b", "a"], scale="none", clip=[0, 1]) == [[5, 0], [6, 1]]
    assert vectors(frame, drop=["a", "c"], scale="none", clip=[0, 1]) == [[5], [6]]
    with pytest.raises(StillroomError, match="found no columns; expected at least one"):
        fitted(frame, drop=["a", "b", "c"])
    with pytest.raises(StillroomError, match="found no train rows"):
        fitted(frame.iloc[:0])


def test_no_rows_have_the_shape_of_rows():
    made = fitted(pd.DataFrame({"a": [0.0, 1.0], "c": ["x", "y"]}), min_frequency=1)
    assert tuple(made.read(pd.DataFrame({"a": [], "c": []})).shape) == (0, 3) == (0, *made.shape)


def test_every_number_has_the_name_of_what_it_says():
    train = pd.DataFrame(
        {
            "sex": ["male", "female"] * 3,
            "age": [20.0, 30.0, NAN, 50.0, 60.0, 70.0],
            "creatinine": [0.5, 1.0, 2.0, 4.0, 8.0, 16.0],
            "race": ["a", "a", "b", "c", None, "a"],
            "zip": [1, 1, 2, 2, 3, 3],
            "urine": [NAN] * 4 + [0.5, 1.0],
        }
    )
    made = fitted(train, log=["creatinine"], categories=["zip"], min_frequency=2)
    assert made.names == (
        *("age", "urine", "creatinine", "age missing", "urine missing", "sex = female", "sex = male"),
        *("race = a", "race rare", "race missing", "zip = 1", "zip = 2", "zip = 3"),
    )
    assert (len(made.names),) == made.shape
    column = {name: values for name, *values in zip(made.names, *made.read(train).tolist(), strict=True)}
    for name, values in column.items():
        of, _, said = name.partition(" ")
        known = train[of]
        expected = {"missing": known.isna(), "rare": known.isin(["b", "c"])}.get(said, known.astype(str) == said[2:])
        if said:
            assert values == expected.tolist(), name
        else:
            order = np.argsort(known.fillna(known.median()).to_numpy(), kind="stable")
            assert np.argsort(values, kind="stable").tolist() == order.tolist(), name


@pytest.mark.parametrize("kept", [["sex"], ["age"], ["sex", "age"]])
def test_names_of_one_kind_of_column_alone(kept):
    train = pd.DataFrame({"sex": ["male", "female"], "age": [20.0, 30.0]})
    names = {"sex": ("sex = female", "sex = male"), "age": ("age",)}
    made = fitted(train, columns=kept, min_frequency=1)
    assert made.names == tuple(name for column in sorted(kept) for name in names[column])
    assert (len(made.names),) == made.shape
