"""Numbers of which many would do: one scale for all of them, and figures that a blur doesn't win."""

import math

import numpy as np
import pytest
import torch

from pipeline.errors import StillroomError
from pipeline.generation import energy_distance
from pipeline.tasks import Draws, Reals, task_of
from pipeline.tasks.draws import JUDGED_ROWS

NAMES = tuple(f"{number}" for number in range(6))


def pixels(rows: int, seed: int = 0) -> np.ndarray:
    draws = np.random.default_rng(seed)
    return (draws.random((rows, 6)) * np.array([0, 0.01, 1, 1, 1, 1])).astype(np.float32)  # the first never varies


def test_all_numbers_have_one_scale():
    shown = pixels(500)
    task = Draws.of(NAMES, np.concatenate([shown, np.full((3, 6), np.nan, np.float32)]))
    assert task.mean == (pytest.approx(float(shown.mean()), rel=1e-5),) * 6
    assert task.std == (pytest.approx(float(shown.std()), rel=1e-5),) * 6
    assert task.standardised(shown).std() == pytest.approx(1, rel=1e-5)
    assert np.abs(task.standardised(shown)).max() < 4  # a pixel that hardly varies is not blown up
    with pytest.raises(StillroomError, match="data: no train row shows '0'"):
        Draws.of(NAMES, np.full((3, 6), np.nan, np.float32))


def test_a_store_tells_draws_from_numbers():
    task = Draws.of(NAMES, pixels(20))
    found = task_of({"classes": list(NAMES), **task.attributes})
    assert (type(found), found) == (Draws, task)
    plain = Reals.of(NAMES, pixels(20))
    assert type(task_of({"classes": list(NAMES), **plain.attributes})) is Reals


def test_the_figure_that_steers_prefers_draws_to_their_mean_which_the_squares_do_not():
    task = Draws.of(NAMES, pixels(400))
    truth, drawn = (torch.from_numpy(task.standardised(pixels(300, seed))) for seed in (1, 2))
    blur = truth.mean(0).expand(300, -1)
    sharp, blurred = task.steering(drawn, truth), task.steering(blur, truth)
    assert sharp["energy"] < blurred["energy"]
    assert sharp["mse"] > blurred["mse"]
    assert task.steered_by in sharp
    assert task.ranked_by in task.metrics(drawn, truth)
    assert task.metrics(drawn, truth)["rmse"] == pytest.approx(math.sqrt(sharp["mse"]) * task.std[0], rel=1e-5)


def test_rows_that_are_not_known_and_those_beyond_the_most_count_nowhere():
    task = Draws.of(NAMES, pixels(400))
    truth, drawn = (torch.from_numpy(pixels(JUDGED_ROWS + 30, seed)) for seed in (1, 2))
    truth[::40] = torch.nan
    is_known = truth.isfinite().all(1)
    wanted = energy_distance(drawn[is_known][:JUDGED_ROWS], truth[is_known][:JUDGED_ROWS])
    assert task.steering(drawn, truth)["energy"] == pytest.approx(wanted, rel=1e-6)
