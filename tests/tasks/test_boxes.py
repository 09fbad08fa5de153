"""Boxes as tasks: three outputs side by side, each with what is true of it, and figures of cells."""

import numpy as np
import pytest
import torch

from pipeline.calibration import fit_temperature
from pipeline.detection.grid import BINS, expected_distances, width_of
from pipeline.detection.losses import box_loss, class_loss, edge_loss
from pipeline.tasks import Boxes, joined, out_shape, parts_of, task_of
from pipeline.tasks.boxes import WEIGHTS
from pipeline.views import Batch

TASK = Boxes(("bag", "shoe"), 32, 40)
OBJECTS = [
    np.array([[0, 3, 3, 15, 18], [1, 20, 10, 39, 30]], np.float32),
    np.array([[1, 2, 4, 30, 28]], np.float32),
    np.zeros((0, 5), np.float32),
]


def truth() -> torch.Tensor:
    return torch.from_numpy(TASK.cells(OBJECTS))


def outputs() -> torch.Tensor:
    """Return what some detector says: its numbers follow from its own edges."""
    logits = 2 * torch.randn(3, TASK.grid.num_cells, 3 + 4 * BINS, generator=torch.Generator().manual_seed(0))
    return torch.cat([logits, expected_distances(logits[..., 3:].unflatten(-1, (4, BINS)))], dim=-1)


def batch(targets: torch.Tensor) -> Batch:
    return Batch(
        torch.zeros(3, 1, 32, 40), torch.zeros(3, dtype=torch.int64), None, None, np.arange(3), 0, targets=targets
    )


def test_outputs_lie_side_by_side_and_come_apart_again():
    assert out_shape(TASK.shapes) == (20, width_of(2))
    parts = parts_of(TASK.shapes, outputs())
    assert {name: tuple(part.shape[1:]) for name, part in parts.items()} == TASK.shapes
    assert torch.equal(joined(TASK.shapes, parts), outputs())


def test_what_is_true_of_each_output():
    labels = torch.zeros(3, dtype=torch.int64)
    classes = TASK.truth_at("classes", labels, truth())
    edges, distances = TASK.truth_at("edges", labels, truth()), TASK.truth_at("distances", labels, truth())
    is_object = classes < 2
    assert set(classes[is_object].tolist()) == {0, 1}
    assert (classes[2] == 2).all()
    assert (edges[~is_object] == -1).all()
    assert distances[~is_object].isnan().all()
    assert torch.equal(edges[is_object], distances[is_object].round().long())
    hidden = torch.full_like(truth(), torch.nan)
    assert (TASK.truth_at("classes", labels, hidden) == -1).all()


def test_the_loss_is_the_weighted_sum_of_its_parts_and_hidden_rows_have_none():
    targets = truth()
    targets[1] = torch.nan
    loss, parts = TASK.loss(outputs(), batch(targets))
    told = parts_of(TASK.shapes, outputs())
    classes, distances = TASK.truth_at("classes", torch.zeros(3), targets), targets[..., 1:]
    expected = {
        "classes": class_loss(told["classes"], classes),
        "edges": edge_loss(told["edges"], distances),
        "distances": box_loss(told["distances"], distances),
    }
    for name, part in expected.items():
        assert torch.equal(parts[name], part)
    torch.testing.assert_close(loss, sum(WEIGHTS[name] * part for name, part in expected.items()))
    assert loss[1] == 0


def test_figures_are_of_cells_that_are_known():
    targets, answers = truth(), TASK.answers(outputs(), truth())
    assert answers.shape == (3, 20, 3 + 4)
    found = TASK.metrics(answers, targets)
    log_probs, distances = TASK.told(answers)
    classes = targets[..., 0].long()
    is_object = classes < 2
    assert found["nll"] == pytest.approx(-float(log_probs.gather(-1, classes[..., None]).mean()), rel=1e-5)
    assert found["accuracy"] == pytest.approx(float((log_probs.argmax(-1) == classes)[is_object].float().mean()))
    away = (distances - targets[..., 1:])[is_object].abs().mean() * TASK.bin_pixels
    assert found["mae"] == pytest.approx(float(away), rel=1e-5)
    steering = TASK.steering(answers, targets)
    assert steering == {"loss": found["loss"], "accuracy": found["accuracy"]}


def test_classes_and_edges_have_temperatures_of_their_own():
    figures = TASK.teacher_figures({"calibration": outputs()}, {"calibration": truth()})
    parts = parts_of(TASK.shapes, outputs())
    at = {name: TASK.truth_at(name, torch.zeros(3), truth()) for name in ("classes", "edges")}
    assert figures["temperature"] == {name: fit_temperature(parts[name], at[name]) for name in at}
    assert figures["scores"]["calibration"] == TASK.metrics(TASK.answers(outputs(), truth()), truth())


def test_a_store_says_which_boxes_it_is_of():
    assert task_of({"classes": ["bag", "shoe"], **TASK.attributes}) == TASK
    said = {"kind": "boxes", "height": 0, "width": 4, "stride": 8, "bin_pixels": 4.0}
    with pytest.raises(ValueError, match="a grid of 0 x 4"):
        task_of({"classes": ["bag"], "task": said})
