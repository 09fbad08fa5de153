"""The recipe over hours that ships, whole, on some months of made traffic: forecasts of the next day, in vehicles."""

import math
from collections import Counter
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from shipped import BASELINES, SEEDS, of, rows_of, run_shipped

from pipeline.datasets.traffic import HORIZONS
from pipeline.lineage import require_manifest
from pipeline.report import figures
from pipeline.store import open_targets
from pipeline.store.verify import verify
from stages.runs import folder_of, runs

FEW = [
    "data.max_train=400",
    "data.max_test=150",
    "data.calibration=0.3",
    "teacher.boosting.max_iter=4",
    "teacher.recurrent.width=4",
    "teacher.convolutions.width=4",
    "teacher.convolutions.depth=2",
    "student.tiny.lr=1e-2",
]


def write_traffic(folder: Path) -> None:
    """Lay down hours as the sensors' file has them: a rhythm of days and weeks, a storm, an hour told twice, a gap."""
    draws = np.random.default_rng(0)
    times = pd.date_range("2017-06-01", "2017-11-20", freq="h")
    count, hour = len(times), times.hour.to_numpy()
    busy = np.where(times.day_of_week.to_numpy() < 5, 1.0, 0.6)
    volume = busy * (3000 - 2500 * np.cos(2 * np.pi * (hour - 3) / 24)) + draws.normal(0, 150, count)
    table = pd.DataFrame(
        {
            "date_time": times.strftime("%Y-%m-%d %H:%M:%S"),
            "holiday": np.where(times == pd.Timestamp("2017-07-04"), "Independence Day", None),
            "temp": (288 + draws.normal(0, 5, count)).round(2),
            "rain_1h": np.where(draws.random(count) < 0.05, 3.0, 0.0),
            "snow_1h": 0.0,
            "clouds_all": draws.integers(0, 100, count),
            "weather_main": draws.choice(["Clear", "Clouds", "Rain"], count),
            "traffic_volume": volume.clip(0).round().astype(int),
        }
    )
    table.loc[500, "temp"], table.loc[600, "rain_1h"] = 0.0, 9831.3
    table = pd.concat([table.iloc[:700], table.iloc[699:900], table.iloc[940:]])
    table.to_csv(folder / "hourly_traffic_volume.csv", index=False)


@pytest.fixture(scope="module")
def ws(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(figures, "by_output", lambda *_: b"png")
        return run_shipped("traffic", tmp_path_factory.mktemp("hours"), write_traffic, *FEW)


def test_every_model_ran_and_has_its_row(ws):
    rows = rows_of(ws)
    expected = Counter(
        [("teacher", entry.name, None, 0) for entry in ws.recipe.teacher]
        + [("fusion", entry.name, None, None) for entry in ws.recipe.fusion]
        + [("student", entry.name, entry.name, seed) for entry in ws.recipe.student for seed in SEEDS]
        + [("baseline", role, "tiny", seed) for role in BASELINES for seed in SEEDS]
    )
    assert Counter((row["kind"], row["name"], row.get("student"), row["seed"]) for row in rows) == expected
    for entry in ws.recipe.teacher:
        trained = require_manifest(ws.teacher_folder(entry), "teacher", make_with="stillroom teachers")
        assert trained.config["training"]["model"] == entry.model
    for entry in ws.recipe.student:
        for job in runs(ws, entry):
            manifest = require_manifest(folder_of(ws, job), "student", make_with="stillroom distill")
            assert manifest.details["steps"] > 0
            assert manifest.details["teacher_forwards"] == 0


def test_figures_are_in_vehicles_and_skill_is_over_last_week(ws):
    rows = rows_of(ws)
    assert ws.task.unit == "vehicles an hour"
    by_name = {row["name"]: row for row in of(rows, "teacher")}
    naive = by_name["naive"]
    assert 100 < naive["rmse"] < 400  # last week's noise and this week's, each of 150
    assert naive["skill"] == pytest.approx(0, abs=0.02)  # but for what its input clips
    reference = naive["rmse"] / (1 - naive["skill"])
    for row in rows:
        assert 0 < row["mae"] <= row["rmse"] < 5000
        assert row["skill"] == pytest.approx(1 - row["rmse"] / reference)
        assert math.isfinite(row["r2"])
        assert "accuracy" not in row
    stack = next(row for row in of(rows, "fusion") if row["name"] == "stack")
    assert stack["rmse"] < max(row["rmse"] for row in by_name.values())
    assert sum(stack["mean_weights"].values()) == pytest.approx(1, abs=1e-3)


def test_the_naive_teacher_says_what_was_counted_a_week_before(ws):
    test = ws.plan.splits["test"]
    manifest = require_manifest(
        ws.teacher_store_folder(ws.recipe.find("teacher", "naive")), "teacher store", make_with="stillroom logits"
    )
    reference, truth = ws.dataset.reference[test.ids], ws.dataset.targets[test.ids]
    known = np.isfinite(truth)
    rmse = math.sqrt(np.square((reference - truth)[known], dtype=np.float64).mean())
    assert manifest.details["scores"]["test"]["rmse"] == pytest.approx(rmse, rel=1e-4)


def test_whole_blocks_of_weeks_are_held_out(ws):
    blocks = ws.dataset.units
    owned = {name: set(blocks[split.ids]) for name, split in ws.plan.splits.items()}
    assert not owned["train"] & owned["calibration"]
    assert not owned["test"] & (owned["train"] | owned["calibration"])
    assert len(owned["test"]) == 1


def test_stores_hold_a_day_of_hours_and_are_sound(ws):
    for fusion in ws.recipe.fusion:
        store = open_targets(ws.target_folder(fusion))
        assert store.means("test").shape == (len(ws.plan.splits["test"]), HORIZONS)
        assert verify(store.folder) == []


def test_the_page_tells_everything_and_misses_nothing(ws):
    page = (ws.root / "reports" / "traffic" / "index.html").read_text()
    assert "vehicles an hour" in page
    assert "skill" in page
    assert "Not finished" not in page
