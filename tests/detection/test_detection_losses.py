"""Losses of detectors: each against a loop, what is unknown costs nothing, and what is right nothing either."""

import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor
from torchvision.ops import generalized_box_iou

from pipeline.detection import (
    BINS,
    Grid,
    bounded_boxes,
    box_loss,
    class_divergence,
    class_loss,
    edge_divergence,
    edge_loss,
    expected_distances,
    foreground_of,
    split_truth,
)

K, B = 3, 5
GRID = Grid(32, 40)
G = GRID.num_cells
HIDDEN, EMPTY = 2, 3  # rows: one of which nothing is known, one that shows nothing
T = 2.0


def truth() -> tuple[Tensor, Tensor]:
    """Classes [B, G] and distances [B, G, 4] of one to three objects a picture, of none, and of a hidden picture."""
    draws = torch.Generator().manual_seed(1)
    rows = []
    for row in range(B):
        corners = torch.rand(0 if row == EMPTY else 1 + row % 3, 2, generator=draws) * 16
        extents = 8 + 8 * torch.rand(corners.shape, generator=draws)
        labels = torch.randint(0, K, (len(corners),), generator=draws)
        rows.append(GRID.encode(torch.cat([corners, corners + extents], dim=1), labels, K))
    rows[HIDDEN] = torch.full_like(rows[0], torch.nan)
    classes, distances = split_truth(torch.stack(rows))
    return classes, distances.double()


def logits(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


CLASSES, TRUE = truth()
STUDENT, STUDENT_EDGES = logits(B, G, K + 1), logits(B, G, 4, BINS, seed=1)
TARGET = (logits(B, G, K + 1, seed=2) / T).log_softmax(-1)
TARGET_EDGES = (logits(B, G, 4, BINS, seed=3) / T).log_softmax(-1)
TOLD = expected_distances(STUDENT_EDGES)
TAUGHT = expected_distances(T * TARGET_EDGES)
FOREGROUND = foreground_of(TARGET, temperature=T)

# what a student is asked, as a function of what it says
ASKED: dict[str, tuple[Tensor, Callable[[Tensor], Tensor]]] = {
    "class": (STUDENT, lambda says: class_loss(says, CLASSES)),
    "edge": (STUDENT_EDGES, lambda says: edge_loss(says, TRUE)),
    "box": (TOLD, lambda says: box_loss(says, TRUE)),
    "class divergence": (STUDENT, lambda says: class_divergence(says, TARGET, temperature=T)),
    "edge divergence": (STUDENT_EDGES, lambda says: edge_divergence(says, TARGET_EDGES, FOREGROUND, temperature=T)),
    "bounded": (TOLD, lambda says: bounded_boxes(says, TAUGHT, TRUE, CLASSES, FOREGROUND)),
}
OF_LABELS = ("class", "edge", "box")


def by_rows(row: Callable[[int], float]) -> np.ndarray:
    return np.array([row(number) for number in range(B)])


def num_objects(row: int) -> int:
    return sum(0 <= each < K for each in CLASSES[row].tolist())


# -- each against a loop ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("focus", [0.0, 1.0, 2.5])
def test_class_loss_is_that_of_a_loop(focus):
    log_probs = STUDENT.log_softmax(-1)

    def slow(row: int) -> float:
        total = 0.0
        for cell in range(G):
            if (label := int(CLASSES[row, cell])) >= 0:
                own = log_probs[row, cell, label].item()
                total += -((1 - math.exp(own)) ** focus) * own
        return total / max(1, num_objects(row))

    np.testing.assert_allclose(class_loss(STUDENT, CLASSES, focus=focus), by_rows(slow), rtol=1e-6)


def test_edge_loss_is_that_of_a_loop():
    log_probs = STUDENT_EDGES.log_softmax(-1)

    def slow(row: int) -> float:
        total = 0.0
        for cell in range(G):
            for edge in range(4):
                distance = TRUE[row, cell, edge].item()
                if not math.isnan(distance):
                    low = min(int(distance), BINS - 2)
                    total -= (low + 1 - distance) * log_probs[row, cell, edge, low].item() / 4
                    total -= (distance - low) * log_probs[row, cell, edge, low + 1].item() / 4
        return total / max(1, num_objects(row))

    np.testing.assert_allclose(edge_loss(STUDENT_EDGES, TRUE), by_rows(slow), rtol=1e-6)


def test_edges_at_both_ends_of_the_bins_are_told_by_the_outer_ones():
    distances = torch.tensor([[[0.0, 16.0, 15.75, 0.25]]])
    log_probs = STUDENT_EDGES[:1, :1].log_softmax(-1)[0, 0]
    wanted = log_probs[0, 0] + log_probs[1, 16] + log_probs[2, 15] / 4 + 3 * log_probs[2, 16] / 4
    wanted += 3 * log_probs[3, 0] / 4 + log_probs[3, 1] / 4
    assert edge_loss(STUDENT_EDGES[:1, :1], distances).item() == pytest.approx(-wanted.item() / 4)


def test_box_loss_is_that_of_torchvision():
    signs = torch.tensor([-1, -1, 1, 1])  # of a box about (0, 0)

    def slow(row: int) -> float:
        cells = [cell for cell in range(G) if 0 <= CLASSES[row, cell] < K]
        told, true = (signs * each[row, cells] for each in (TOLD, TRUE))
        return (1 - generalized_box_iou(told, true).diagonal()).sum().item() / max(1, len(cells))

    np.testing.assert_allclose(box_loss(TOLD, TRUE), by_rows(slow), rtol=1e-6)


def slow_kl(log_probs: Tensor, student: Tensor) -> float:
    q = (student / T).softmax(-1).tolist()
    return T * T * sum(math.exp(a) * (a - math.log(b)) for a, b in zip(log_probs.tolist(), q, strict=True))


@pytest.mark.parametrize("weight", [0.0, 0.3, 1.5])
def test_class_divergence_is_that_of_a_loop(weight):
    def slow(row: int) -> float:
        costs = objects = 0.0
        for cell in range(G):
            likely = 1 - (T * TARGET[row, cell]).softmax(-1)[K].item()
            costs += (likely + weight * (1 - likely)) * slow_kl(TARGET[row, cell], STUDENT[row, cell])
            objects += likely
        return costs / max(1, objects)

    found = class_divergence(STUDENT, TARGET, temperature=T, background_weight=weight)
    np.testing.assert_allclose(found, by_rows(slow), rtol=1e-6)


def test_edge_divergence_is_that_of_a_loop():
    def slow(row: int) -> float:
        costs = 0.0
        for cell in range(G):
            edges = zip(TARGET_EDGES[row, cell], STUDENT_EDGES[row, cell], strict=True)
            costs += FOREGROUND[row, cell].item() * sum(slow_kl(*each) for each in edges) / 4
        return costs / max(1, FOREGROUND[row].sum().item())

    found = edge_divergence(STUDENT_EDGES, TARGET_EDGES, FOREGROUND, temperature=T)
    np.testing.assert_allclose(found, by_rows(slow), rtol=1e-6)


@pytest.mark.parametrize("margin", [0.0, 20.0])
def test_bounded_boxes_are_those_of_a_loop(margin):
    def slow(row: int) -> float:
        costs = weights = 0.0
        for cell in range(G):
            student, teacher, true = (each[row, cell] for each in (TOLD, TAUGHT, TRUE))
            own, theirs = ((each - true).square().mean().item() for each in (student, teacher))
            if CLASSES[row, cell] == -1:
                costs += FOREGROUND[row, cell].item() * (student - teacher).square().mean().item()
                weights += FOREGROUND[row, cell].item()
            elif CLASSES[row, cell] < K:
                costs += own if own + margin > theirs else 0.0
                weights += 1
        return costs / max(1, weights)

    found = bounded_boxes(TOLD, TAUGHT, TRUE, CLASSES, FOREGROUND, margin=margin)
    np.testing.assert_allclose(found, by_rows(slow), rtol=1e-6)


# -- laws -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ASKED)
def test_one_value_a_picture_not_negative_with_finite_gradients(name):
    says, loss = ASKED[name]
    says = says.clone().requires_grad_()
    found = loss(says)
    assert found.shape == (B,)
    assert (found >= 0).all()
    (gradient,) = torch.autograd.grad(found.sum(), says)
    assert gradient.isfinite().all()
    assert gradient[0].abs().sum() > 0


@pytest.mark.parametrize("name", OF_LABELS)
def test_hidden_pictures_cost_nothing_and_pull_nowhere(name):
    says, loss = ASKED[name]
    says = says.clone().requires_grad_()
    found = loss(says)
    assert found[HIDDEN] == 0
    (gradient,) = torch.autograd.grad(found.sum(), says)
    assert (gradient[HIDDEN] == 0).all()
    assert (gradient[EMPTY] == 0).all() == (name != "class"), "where nothing is, that is to be said, and no box"


@pytest.mark.parametrize("name", [name for name in ASKED if name not in OF_LABELS])
def test_hidden_pictures_learn_from_the_teachers(name):
    says, loss = ASKED[name]
    says = says.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(loss(says)[HIDDEN], says)
    assert (gradient[HIDDEN] != 0).all()


def test_known_background_has_no_box_to_follow():
    says = TOLD.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(bounded_boxes(says, TAUGHT, TRUE, CLASSES, FOREGROUND).sum(), says)
    is_background = CLASSES == K
    assert is_background.any()
    assert (gradient[is_background] == 0).all()


@pytest.mark.parametrize("name", ASKED)
def test_pictures_are_judged_apart_and_cells_in_any_order(name, monkeypatch):
    says, loss = ASKED[name]
    whole = loss(says)
    for constant in ("CLASSES", "TRUE", "TARGET", "TARGET_EDGES", "TAUGHT", "FOREGROUND"):
        monkeypatch.setitem(globals(), constant, globals()[constant].flip(1)[1:])
    torch.testing.assert_close(loss(says.flip(1)[1:]), whole[1:])


def test_who_is_right_has_nothing_to_learn():
    told = TRUE.nan_to_num(1.0)
    assert box_loss(told, TRUE).max() < 1e-6
    assert bounded_boxes(told, TAUGHT, TRUE, CLASSES, FOREGROUND)[[0, 1, EMPTY]].max() == 0
    sure = 100.0 * torch.nn.functional.one_hot(CLASSES.clamp(min=0), K + 1).double()
    assert class_loss(sure, CLASSES).max() < 1e-6


def test_who_says_what_the_teachers_say_has_nothing_to_learn():
    assert class_divergence(T * TARGET, TARGET, temperature=T).abs().max() < 1e-12
    assert edge_divergence(T * TARGET_EDGES, TARGET_EDGES, FOREGROUND, temperature=T).abs().max() < 1e-12
    assert bounded_boxes(TAUGHT, TAUGHT, torch.full_like(TRUE, math.nan), CLASSES * 0 - 1, FOREGROUND).max() < 1e-12


def test_a_target_that_rules_a_class_out_is_finite_and_so_is_its_gradient():
    target = TARGET.clone()
    target[:, ::2, 0] = -torch.inf
    says = STUDENT.clone().requires_grad_()
    found = class_divergence(says, target.log_softmax(-1), temperature=T)
    (gradient,) = torch.autograd.grad(found.sum(), says)
    assert found.isfinite().all()
    assert gradient.isfinite().all()


def test_how_likely_an_object_is_does_not_depend_on_the_temperature_of_one_teacher():
    teacher = logits(B, G, K + 1, seed=2)
    wanted = 1 - teacher.softmax(-1)[..., K]
    for temperature in (1.0, 2.0, 10.0):
        found = foreground_of((teacher / temperature).log_softmax(-1), temperature=temperature)
        torch.testing.assert_close(found, wanted)


def test_a_box_without_area_is_as_far_as_a_box_can_be_and_finite():
    says = torch.zeros(1, 1, 4, requires_grad=True)
    found = box_loss(says, torch.zeros(1, 1, 4))
    found.sum().backward()
    assert found.item() == pytest.approx(1)
    assert says.grad is not None
    assert says.grad.isfinite().all()


def test_losses_of_a_stack_of_students_are_those_of_each():
    for says, loss in ASKED.values():
        stack = torch.stack([says, says.roll(1, 0)])
        torch.testing.assert_close(torch.func.vmap(loss)(stack), torch.stack([loss(each) for each in stack]))
