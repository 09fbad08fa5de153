"""Forecasts of a made hourly table: no target crosses a block, no record knows its future, gaps stay gaps."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from pipeline.datasets.traffic import (
    BLOCK_DAYS,
    HORIZONS,
    LAGS,
    TEST_FROM,
    WEEK,
    forecasts,
    hourly,
    seasonal_naive,
    shifted,
)

START = pd.Timestamp("2017-06-01")  # four months before the test
COUNT = 170 * 24


def traffic(count: int = COUNT, seed: int = 0, start: pd.Timestamp = START) -> pd.DataFrame:
    """Return a table as the sensors' file has it: volume follows the hour and the day, and some weather."""
    draws = np.random.default_rng(seed)
    times = pd.date_range(start, periods=count, freq="h")
    is_weekend = times.day_of_week.to_numpy() >= 5
    volume = 3000 - 2000 * np.cos(2 * np.pi * times.hour.to_numpy() / 24) - 500 * is_weekend
    return pd.DataFrame(
        {
            "date_time": times.strftime("%Y-%m-%d %H:%M:%S"),
            "holiday": [
                "Labor Day" if time == pd.Timestamp("2017-09-04") else np.nan for time in times
            ],  # told of midnight alone
            "temp": 285 + draws.normal(0, 5, count),
            "rain_1h": 0.0,
            "snow_1h": 0.0,
            "clouds_all": draws.integers(0, 100, count),
            "weather_main": draws.choice(["Clear", "Rain"], count),
            "traffic_volume": (volume + draws.normal(0, 50, count)).round().astype(int),
        }
    )


def without(table: pd.DataFrame, hours: range) -> pd.DataFrame:
    return table.drop(index=list(hours)).reset_index(drop=True)


def times_of(found_from: pd.DataFrame, table: pd.DataFrame) -> np.ndarray:
    """Places in the table of records, told by their last two days of volumes, which are unlike any others'."""
    volumes = table["traffic_volume"].to_numpy(float)
    keys = {tuple(volumes[at - 5 : at + 1][::-1]): at for at in range(5, len(volumes))}
    return np.array([keys[tuple(row)] for row in found_from[[f"volume-{lag}" for lag in range(6)]].to_numpy()])


@pytest.fixture(scope="module")
def table() -> pd.DataFrame:
    return traffic()


def test_a_record_holds_the_week_before_and_asks_for_the_day_after(table):
    found = forecasts(table)
    volumes, places = table["traffic_volume"].to_numpy(float), times_of(found.frame, table)
    assert found.targets.shape == found.reference.shape == (len(places), HORIZONS)
    for row in range(0, len(places), 97):
        at = places[row]
        assert (
            found.frame.iloc[row][[f"volume-{lag}" for lag in range(LAGS)]].tolist()
            == volumes[at - LAGS + 1 : at + 1][::-1].tolist()
        )
        ahead = volumes[at + 1 : at + 1 + HORIZONS]
        assert found.targets[row][: len(ahead)].tolist() == ahead.tolist()
        assert np.isnan(found.targets[row][len(ahead) :]).all()


def test_the_naive_forecast_is_the_same_hour_of_the_week_before(table):
    found = forecasts(table)
    volumes, places = table["traffic_volume"].to_numpy(float), times_of(found.frame, table)
    for row in range(0, len(places), 97):
        at = places[row]
        assert found.reference[row].tolist() == volumes[at + 1 - WEEK : at + 1 - WEEK + HORIZONS].tolist()
        assert (
            found.frame.iloc[row][[f"naive+{h}" for h in range(1, HORIZONS + 1)]].tolist()
            == found.reference[row].tolist()
        )


def test_no_target_crosses_into_another_block_or_the_test(table):
    found, places = forecasts(table), times_of(forecasts(table).frame, table)
    first_test = int((TEST_FROM - START) / pd.Timedelta(hours=1))
    assert np.array_equal(found.is_test, places >= first_test)
    assert found.is_test.any()
    assert not found.is_test.all()
    owner = dict(zip(places.tolist(), found.block.tolist(), strict=True))
    for at, block in owner.items():
        for ahead in range(1, HORIZONS + 1):
            assert owner.get(at + ahead, block) == block
        assert (at >= first_test) == (at + HORIZONS >= first_test) or at >= first_test
    train = places[~found.is_test]
    assert train.max() + HORIZONS < first_test
    assert {at // (BLOCK_DAYS * 24) for at in train} == set(found.block[~found.is_test])
    assert len(set(found.block[found.is_test])) == 1


@pytest.mark.parametrize("gap", [range(0), range(200, 380)])
@pytest.mark.parametrize("hour", [400, 1500, 2500])
def test_a_record_knows_nothing_of_its_future(gap, hour):
    table = without(traffic(), gap)
    now = pd.Timestamp(table["date_time"][hour])
    other = table.copy()
    later = other.index > hour
    draws = np.random.default_rng(9)
    for column in ("traffic_volume", "temp", "clouds_all"):
        values = other[column].to_numpy().copy()
        values[later] = draws.integers(250, 5000, later.sum())
        other[column] = values
    other.loc[later, "weather_main"] = "Squall"
    one, changed = forecasts(table), forecasts(other)
    pd.testing.assert_frame_equal(_until(one, table, now), _until(changed, other, now))


def _until(found, table: pd.DataFrame, now: pd.Timestamp) -> pd.DataFrame:
    """Records up to an hour, as tables of the hours themselves know them."""
    hours = hourly(table)
    last = hours["volume"].to_numpy()
    rows = found.frame
    keys = {tuple(np.nan_to_num(last[at - 99 : at + 1][::-1], nan=-1)): hours.index[at] for at in range(99, len(last))}
    seen = np.nan_to_num(rows[[f"volume-{lag}" for lag in range(100)]].to_numpy(), nan=-1)
    times = pd.DatetimeIndex([keys[tuple(row)] for row in seen])
    kept = rows[times <= now].reset_index(drop=True)
    assert len(kept) > 50
    return kept


def test_gaps_stay_gaps(table):
    gone = range(1000, 1030)
    found = forecasts(without(table, gone))
    volumes = table["traffic_volume"].to_numpy(float)
    volumes[list(gone)] = np.nan
    lags = found.frame[[f"volume-{lag}" for lag in range(LAGS)]].to_numpy()
    assert np.isnan(lags).any()
    by_last = {tuple(np.nan_to_num(volumes[at - 59 : at + 1][::-1], nan=-1)): at for at in range(59, len(volumes))}
    places = [by_last[tuple(np.nan_to_num(row[:60], nan=-1))] for row in lags]
    for row, at in enumerate(places):
        np.testing.assert_array_equal(lags[row], volumes[at - LAGS + 1 : at + 1][::-1])
        ahead = volumes[at + 1 : at + 1 + HORIZONS]
        np.testing.assert_array_equal(found.targets[row][: len(ahead)], ahead)
        assert np.isfinite(found.targets[row]).any()
        assert np.isfinite(lags[row, :48]).sum() >= 24


def test_the_naive_forecast_looks_further_back_over_a_gap(table):
    gone = range(1000, 1000 + 24)  # a day a week before
    hours = hourly(without(table, gone))
    found = seasonal_naive(hours["volume"])
    volumes = table["traffic_volume"].to_numpy(float)
    at = 1000 + WEEK - 1  # whose day ahead is that of the gap, a week later
    assert found[at].tolist() == volumes[at + 1 - 2 * WEEK : at + 1 - 2 * WEEK + HORIZONS].tolist()


def test_where_no_week_was_counted_it_is_the_mean_of_that_hour_so_far():
    table = without(traffic(), range(700, 700 + 9 * WEEK))
    hours = hourly(table)
    found = seasonal_naive(hours["volume"])
    volumes, at = hours["volume"].to_numpy(), 700 + 9 * WEEK + 2
    for ahead in range(1, HORIZONS + 1):
        same = [volumes[past] for past in range(at + 1) if past % WEEK == (at + ahead) % WEEK]
        assert np.isnan([volumes[at + ahead - weeks * WEEK] for weeks in range(1, 9)]).all()
        assert found[at, ahead - 1] == pytest.approx(np.nanmean(same))


def test_where_that_hour_was_never_counted_it_is_the_mean_of_all_so_far():
    table = without(traffic(), range(0, 3 * WEEK, WEEK))
    hours = hourly(table)  # begins an hour late
    volume = hours["volume"]
    found = seasonal_naive(volume)
    hour_of_week = volume.index.day_of_week.to_numpy() * 24 + volume.index.hour.to_numpy()
    at = WEEK - 2
    seen = set(hour_of_week[: at + 1][volume[: at + 1].notna()])
    assert [ahead for ahead in range(HORIZONS) if hour_of_week[at + 1 + ahead] not in seen] == [0]
    assert found[at, 0] == pytest.approx(np.nanmean(volume.to_numpy()[: at + 1]))


def test_an_hour_told_twice_counts_once_and_its_first_weather(table):
    again = table.iloc[[500, 500]].assign(weather_main=["Fog", "Mist"], traffic_volume=1)
    found = hourly(pd.concat([table.iloc[:501], again, table.iloc[501:]], ignore_index=True))
    assert len(found) == len(table)
    assert found["weather"].iloc[500] == table["weather_main"][500]
    assert found["volume"].iloc[500] == table["traffic_volume"][500]


def test_what_sensors_can_not_have_seen_is_missing(table):
    wrong = table.copy()
    wrong.loc[300, "temp"], wrong.loc[301, "rain_1h"] = 0.0, 9831.3
    found = hourly(wrong)
    assert np.flatnonzero(found["temperature"].isna()).tolist() == [300]
    assert np.flatnonzero(found["rain"].isna()).tolist() == [301]
    assert found["temperature"].iloc[299] == pytest.approx(table["temp"][299] - 273.15)


def test_a_holiday_is_one_all_day_and_known_the_day_before(table):
    frame, places = forecasts(table).frame, times_of(forecasts(table).frame, table)
    days = pd.DatetimeIndex([START + pd.Timedelta(hours=int(at)) for at in places]).normalize()
    assert np.array_equal(frame["holiday"] == 1, days == pd.Timestamp("2017-09-04"))
    assert np.array_equal(frame["holiday tomorrow"] == 1, days == pd.Timestamp("2017-09-03"))
    assert frame["holiday"].sum() == 24


def test_shifted_values_end_where_the_series_does():
    found = shifted(pd.Series([1.0, 2.0, 3.0]), np.array([-1, 0, 2]))
    np.testing.assert_array_equal(found, [[np.nan, 1, 3], [1, 2, np.nan], [2, 3, np.nan]])


def test_records_of_the_catalogue_are_made_so(tmp_path: Path, table):
    from pipeline.datasets import data_sets
    from pipeline.datasets.frames import read_traffic

    table.to_csv(tmp_path / "hourly_traffic_volume.csv", index=False)
    found, expected = read_traffic(tmp_path, data_sets()["metro-traffic"]), forecasts(table)
    np.testing.assert_array_equal(found.targets, expected.targets.astype(np.float32))
    np.testing.assert_array_equal(found.reference, expected.reference.astype(np.float32))
    assert found.official_test.tolist() == np.flatnonzero(expected.is_test).tolist()
    assert np.array_equal(found.units, expected.block)
