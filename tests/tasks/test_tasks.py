"""Tasks: what numbers are scaled by, and that classes and numbers are judged as their own figures say."""

import math

import numpy as np
import pytest
import torch

from pipeline.calibration import fit_temperature
from pipeline.errors import StillroomError
from pipeline.metrics import classification_metrics
from pipeline.real_metrics import regression_metrics
from pipeline.tasks import Classes, Reals, Task, task_of
from pipeline.train import label_loss
from pipeline.views import Batch, Split

NAN = math.nan
TARGETS = np.array([[1.0, 5.0], [3.0, NAN], [5.0, 5.0], [NAN, 5.0]], np.float32)


def batch(targets: torch.Tensor | None, labels: torch.Tensor) -> Batch:
    positions = np.arange(len(labels))
    return Batch(torch.zeros(len(labels), 1), labels, None, None, positions, 0, targets=targets)


def reals() -> Reals:
    return Reals.of(("price", "area"), TARGETS, "m")


def test_the_scale_is_that_of_what_is_known():
    task = reals()
    assert task.mean == (3.0, 5.0)
    assert task.std == (pytest.approx(math.sqrt(8 / 3)), 1.0)  # what does not vary stays in its own steps
    assert (task.names, task.unit, task.is_real) == (("price", "area"), "m", True)


def test_a_number_that_no_row_shows_is_told():
    hidden = np.where([False, True], NAN, TARGETS).astype(np.float32)
    with pytest.raises(
        StillroomError, match="data: no train row shows 'area'; expected at least one; leave the column"
    ):
        Reals.of(("price", "area"), hidden)


def test_standard_units_and_back():
    task = reals()
    standard = task.standardised(TARGETS)
    assert standard.dtype == np.float32
    assert np.nanmean(standard[:, 0]) == pytest.approx(0, abs=1e-7)
    assert np.nanstd(standard[:, 0]) == pytest.approx(1, rel=1e-6)
    back = task.in_units(torch.from_numpy(standard))
    assert back.dtype == torch.float64
    np.testing.assert_allclose(back, TARGETS, rtol=1e-6)


@pytest.mark.parametrize("task", [reals(), Classes(("ring", "bar"))], ids=["reals", "classes"])
def test_a_store_says_which_task_it_is_of(task: Task):
    found = task_of({"classes": list(task.names), **task.attributes})
    assert found == task
    assert type(found) is type(task)


# -- numbers ----------------------------------------------------------------------------------------------------------


def test_the_truth_of_numbers_is_their_targets():
    split = Split(np.arange(4), np.zeros(4, np.int64), TARGETS)
    np.testing.assert_array_equal(reals().truth(split).numpy(), TARGETS)


def test_the_loss_of_numbers_is_the_mean_square_of_what_a_row_shows():
    targets = torch.tensor([[1.0, 2.0], [NAN, 4.0], [NAN, NAN]])
    loss, parts = reals().loss(
        torch.tensor([[2.0, 4.0], [9.0, 1.0], [5.0, 5.0]]), batch(targets, torch.zeros(3).long())
    )
    assert loss.tolist() == [2.5, 9.0, 0.0]
    assert parts.keys() == {"se"}


def test_the_loss_of_members_is_their_mean():
    targets = torch.tensor([[1.0, 2.0], [NAN, 4.0]])
    outputs = torch.tensor([[[2.0, 4.0], [1.0, 2.0]], [[0.0, 5.0], [0.0, 7.0]]])
    loss, _ = reals().loss(outputs, batch(targets, torch.zeros(2).long()))
    assert loss.tolist() == [1.25, 5.0]


def test_figures_of_numbers_are_in_their_unit_those_that_steer_in_standard_ones():
    task, draws = reals(), torch.Generator().manual_seed(0)
    truth = torch.from_numpy(task.standardised(TARGETS))
    answers = torch.randn(4, 2, generator=draws)
    assert task.steering(answers, truth) == pytest.approx(
        {"mse": regression_metrics(answers, truth)["rmse"] ** 2, "mae": regression_metrics(answers, truth)["mae"]}
    )
    own = regression_metrics(answers.double() * torch.tensor(task.std) + torch.tensor(task.mean), torch.tensor(TARGETS))
    assert task.metrics(answers, truth) == pytest.approx(own, rel=1e-5)
    figures = task.teacher_figures({"calibration": answers, "test": answers}, {"calibration": truth, "test": truth})
    assert figures == {"scores": {"calibration": task.metrics(answers, truth), "test": task.metrics(answers, truth)}}
    assert {task.steered_by, task.ranked_by} <= {*task.steering(answers, truth), *task.metrics(answers, truth)}


def test_r2_is_left_out_where_the_truth_does_not_vary():
    task = reals()
    truth = torch.from_numpy(task.standardised(TARGETS[[0, 0, 0]]))
    assert task.metrics(truth + 1, truth).keys() == {"mae", "rmse"}


def test_outputs_of_numbers_are_their_answers():
    outputs = torch.randn(3, 2, dtype=torch.float64)
    assert torch.equal(reals().answers(outputs, outputs), outputs.float())


# -- classes ----------------------------------------------------------------------------------------------------------


def test_classes_are_judged_as_their_metrics_say():
    task, draws = Classes(("ring", "bar", "dot")), torch.Generator().manual_seed(0)
    logits, truth = 2 * torch.randn(50, 3, generator=draws), torch.arange(50) % 3
    answers = task.answers(logits, truth)
    assert torch.equal(answers, logits.log_softmax(-1))
    expected = classification_metrics(answers, truth)
    assert task.metrics(answers, truth) == expected
    steering = task.steering(answers, truth)
    assert steering == pytest.approx({"nll": expected["nll"], "accuracy": expected["accuracy"]})
    figures = task.teacher_figures({"calibration": logits}, {"calibration": truth})
    temperature = fit_temperature(logits, truth)
    assert figures["temperature"] == temperature
    cooled = classification_metrics((logits / temperature).log_softmax(-1), truth)
    scores = figures["scores"]["calibration"]
    assert scores == {**expected, "calibrated_nll": cooled["nll"], "calibrated_ece": cooled["ece"]}
    assert task.ranked_by in scores
    assert task.steered_by in steering


def test_classes_learn_from_labels_as_the_label_loss_does():
    task, labels = Classes(("ring", "bar", "dot")), torch.tensor([0, -1, 2])
    logits = torch.randn(3, 3, generator=torch.Generator().manual_seed(0))
    loss, parts = task.loss(logits, batch(None, labels))
    expected, _ = label_loss(logits, batch(None, labels))
    assert torch.equal(loss, expected)
    assert parts.keys() == {"ce"}
    split = Split(np.arange(3), labels.numpy())
    assert task.truth(split).tolist() == [0, -1, 2]
