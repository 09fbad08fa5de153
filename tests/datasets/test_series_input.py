"""Columns that are one another's past, as a series: order, scale, and gaps that say so."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

from pipeline.datasets.inputs import config_of, parse_input
from pipeline.datasets.inputs.series import Series
from pipeline.errors import StillroomError

RAW = Path("nowhere")
COLUMNS = ["a-0", "a-1", "a-2", "b-0", "b-1", "b-2", "wind"]


def frame(count: int = 30, seed: int = 0) -> pd.DataFrame:
    draws = np.random.default_rng(seed)
    made = pd.DataFrame({name: draws.normal(10 * place, 1 + place, count) for place, name in enumerate(COLUMNS)})
    made.loc[::4, "a-1"], made.loc[::5, "wind"] = np.nan, np.nan
    made.loc[3, "b-2"] = np.inf
    return made


def test_steps_are_oldest_first_standardised_with_gaps_marked():
    table = frame()
    fitted = Series(("a", "b"), 3, ("wind",)).fit(table, RAW)
    assert fitted.shape == (3, 5)
    found = fitted.read(table)
    assert found.dtype == torch.float32
    assert found.shape == (30, 3, 5)
    for place, name in enumerate("ab"):
        lags = table[[f"{name}-2", f"{name}-1", f"{name}-0"]].to_numpy()
        lags = np.where(np.isfinite(lags), lags, np.nan)
        mean, std = np.nanmean(lags), np.nanstd(lags)
        expected = np.nan_to_num((lags - mean) / std)
        np.testing.assert_allclose(found[:, :, 2 * place], expected, rtol=1e-5, atol=1e-6)
        np.testing.assert_array_equal(found[:, :, 2 * place + 1], np.isfinite(lags))
    wind = table["wind"].to_numpy()
    expected = np.nan_to_num((wind - np.nanmean(wind)) / np.nanstd(wind))
    for step in range(3):
        np.testing.assert_allclose(found[:, step, 4], expected, rtol=1e-5, atol=1e-6)


def test_the_scale_is_that_of_the_rows_it_was_fitted_on():
    table = frame()
    other = table * 3 + 1
    fitted = Series(("a",), 2).fit(table, RAW)
    found = fitted.read(other)[:, -1, 0]
    lags = table[["a-1", "a-0"]].to_numpy()
    expected = (other["a-0"].to_numpy() - np.nanmean(lags)) / np.nanstd(lags)
    np.testing.assert_allclose(found, expected, rtol=1e-5)


def test_a_row_is_the_same_whoever_is_read_beside_it():
    table = frame()
    fitted = Series(("a", "b"), 3, ("wind",)).fit(table, RAW)
    whole = fitted.read(table)
    parts = torch.cat([fitted.read(table.iloc[rows]) for rows in np.array_split(np.arange(30), 7)])
    assert torch.equal(parts, whole)


def test_a_series_that_never_varies_or_is_never_there():
    table = frame().assign(**{"a-0": 4.0, "a-1": 4.0, "b-0": np.nan, "b-1": np.nan})
    found = Series(("a", "b"), 2).fit(table, RAW).read(table)
    assert (found == torch.tensor([0.0, 1.0, 0.0, 0.0])).all()


def test_a_step_that_is_missing_is_named():
    with pytest.raises(
        StillroomError, match=r"input of kind series: found no column 'a-3'; expected 4 of each series; .*'a-0'"
    ):
        Series(("a",), 4).fit(frame(), RAW)


def test_no_rows_and_no_series_are_told():
    for series, rows in (("a",), 0), ((), 5):
        with pytest.raises(StillroomError, match="found no train rows or no series; expected some; name one"):
            Series(tuple(series), 2).fit(frame().iloc[:rows], RAW)


def test_as_a_recipe_says_it():
    spec = {"kind": "series", "series": ["a", "b"], "length": 3, "beside": ["wind"]}
    made = parse_input("week", spec, COLUMNS)
    assert made == Series(("a", "b"), 3, ("wind",))
    assert config_of(made) == {"kind": "series", "version": 1, "series": ["a", "b"], "length": 3, "beside": ["wind"]}
    assert (made.gives, made.learns) == ("series", True)


@pytest.mark.parametrize(
    ("said", "message"),
    [
        ({"length": 1}, "input.week.length: found 1; .*greater than or equal to 2; correct it"),
        ({"length": 2.5}, "input.week.length: found 2.5; .*integer"),
        ({"beside": ["wimd"]}, "input.week.beside: found 'wimd'; expected one of 7 columns; .*'wind'"),
        ({"lenght": 3}, "input.week: series found option 'lenght'; expected only its own; .*'length'"),
    ],
)
def test_what_a_recipe_may_not_say(said, message):
    with pytest.raises(StillroomError, match=message):
        parse_input("week", {"kind": "series", "series": ["a"], "length": 3, **said}, COLUMNS)
