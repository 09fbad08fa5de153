"""Hourly traffic with weather and holidays, as records: one an hour, from which the next day is forecast.

A record holds what is known at its hour: the volumes of the week before, the weather, the calendar of the day that is
forecast, and a reference forecast. Gaps stay gaps: of a volume that was not counted, neither a lag nor a target is
made up.
"""

from typing import NamedTuple

import numpy as np
import pandas as pd

LAGS, HORIZONS, WEEK = 168, 24, 168  # hours
WEEKS_BACK = 8  # that the reference forecast looks for the same hour of the week
TEST_FROM = pd.Timestamp("2017-10-01")  # the last, whole year
BLOCK_DAYS = 28  # calibration takes whole blocks of so many days
LEAST_KNOWN = 24  # of the last two days' volumes, and of the targets one, or the hour is no record


class Forecasts(NamedTuple):
    """Hours to forecast from: `frame`, a row each; `targets` and `reference` [N, 24]; `block` [N]; `is_test` [N]."""

    frame: pd.DataFrame
    targets: np.ndarray
    reference: np.ndarray
    block: np.ndarray
    is_test: np.ndarray


def forecasts(table: pd.DataFrame) -> Forecasts:
    """Return hours with the volumes 1 to 24 hours ahead as targets, NaN where not counted; the last year is the test.

    Hours of one block of 28 days are to stay in one split, and those whose forecast reaches into another block are left
    out: no target is learned from that is asked for elsewhere.
    """
    hours = hourly(table)
    volume = hours["volume"]
    lags = shifted(volume, -np.arange(LAGS))
    targets = shifted(volume, np.arange(1, HORIZONS + 1))
    reference = seasonal_naive(volume)
    block = (hours.index - hours.index[0]).days // BLOCK_DAYS
    block = np.where(hours.index >= TEST_FROM, block.max() + 1, block)
    ahead = np.minimum(np.arange(len(hours)) + HORIZONS, len(hours) - 1)
    is_record = (np.isfinite(lags[:, :48]).sum(1) >= LEAST_KNOWN) & np.isfinite(targets).any(1)
    is_record &= (block == block[ahead]) & (np.arange(len(hours)) >= LAGS)
    rows = np.flatnonzero(is_record)
    frame = pd.concat(
        [
            calendar(hours.index[rows], hours["holiday"], hours.index[rows] + pd.Timedelta(hours=HORIZONS)),
            hours[["temperature", "rain", "snow", "clouds", "weather"]].iloc[rows].reset_index(drop=True),
            pd.DataFrame(lags[rows], columns=[f"volume-{lag}" for lag in range(LAGS)]),
            pd.DataFrame(reference[rows], columns=[f"naive+{h}" for h in range(1, HORIZONS + 1)]),
        ],
        axis=1,
    )
    is_test = np.asarray(hours.index[rows] >= TEST_FROM)
    return Forecasts(frame, targets[rows], reference[rows], np.asarray(block)[rows], is_test)


def hourly(table: pd.DataFrame) -> pd.DataFrame:
    """Return one row an hour without gaps in time; of an hour told several times, with several weathers, the first.

    Rain beyond 100 mm an hour and temperatures of 0 K, which the sensors report at times, are missing.
    """
    time = pd.to_datetime(table["date_time"])
    told = table.assign(time=time).drop_duplicates("time").set_index("time").sort_index()
    holiday = table.assign(day=time.dt.normalize()).dropna(subset=["holiday"]).groupby("day")["holiday"].first()
    hours = told.reindex(pd.date_range(told.index[0], told.index[-1], freq="h"))
    return pd.DataFrame(
        {
            "volume": hours["traffic_volume"].astype(np.float64),
            "temperature": hours["temp"].where(hours["temp"] > 200) - 273.15,
            "rain": hours["rain_1h"].where(hours["rain_1h"] <= 100),
            "snow": hours["snow_1h"],
            "clouds": hours["clouds_all"].astype(np.float64),
            "weather": hours["weather_main"],
            "holiday": pd.Series(hours.index.normalize().map(holiday), index=hours.index),
        }
    )


def calendar(times: pd.DatetimeIndex, holidays: pd.Series, tomorrow: pd.DatetimeIndex) -> pd.DataFrame:
    """Return what the calendar says of hours and of the same hour a day later: hours on a circle, days, holidays."""
    is_holiday = holidays.notna().groupby(holidays.index.normalize()).any()
    angle = 2 * np.pi * times.hour.to_numpy() / 24
    season = 2 * np.pi * times.day_of_year.to_numpy() / 366
    return pd.DataFrame(
        {
            "hour sine": np.sin(angle),
            "hour cosine": np.cos(angle),
            "year sine": np.sin(season),
            "year cosine": np.cos(season),
            "weekday": times.day_name().astype(object),
            "hour": times.hour.astype(str).astype(object),
            "holiday": np.asarray(is_holiday.reindex(times.normalize(), fill_value=False), dtype=np.float64),
            "holiday tomorrow": np.asarray(is_holiday.reindex(tomorrow.normalize(), fill_value=False), np.float64),
        }
    )


def shifted(values: pd.Series, offsets: np.ndarray) -> np.ndarray:
    """Return values at each hour plus offsets: float64 [N], int [K] -> [N, K], NaN beyond the ends."""
    places = np.arange(len(values))[:, None] + offsets[None, :]
    inside = (places >= 0) & (places < len(values))
    return np.where(inside, values.to_numpy()[places.clip(0, len(values) - 1)], np.nan)


def seasonal_naive(volume: pd.Series) -> np.ndarray:
    """Return what the same hour of a week before had, for 1 to 24 hours ahead: float64 [N, 24].

    Where it was not counted, that of two weeks before, up to eight; then the mean of that hour of the week, or of all
    hours, up to the one that is forecast from. Source: Hyndman & Athanasopoulos 2021, section 5.2.
    """
    ahead = np.arange(1, HORIZONS + 1)
    forecast = shifted(volume, ahead - WEEK)
    for weeks in range(2, WEEKS_BACK + 1):
        forecast = np.where(np.isnan(forecast), shifted(volume, ahead - weeks * WEEK), forecast)
    hour_of_week = volume.index.day_of_week.to_numpy() * 24 + volume.index.hour.to_numpy()
    own = pd.DataFrame({hour: volume.where(hour_of_week == hour) for hour in range(WEEK)})
    so_far = own.expanding().mean().ffill().to_numpy()  # of each hour of the week: [N, 168]
    usual = np.take_along_axis(so_far, (hour_of_week[:, None] + ahead) % WEEK, axis=1)
    usual = np.where(np.isnan(usual), volume.expanding().mean().to_numpy()[:, None], usual)
    return np.where(np.isnan(forecast), usual, forecast)
