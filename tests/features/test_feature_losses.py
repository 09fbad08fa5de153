"""Each feature loss against a slow reference, its gradient against differences, and what it must not depend on."""

import math

import pytest
import torch
from feature_cases import begun, draws, features_of, start_of
from torch import Tensor, nn

from pipeline.errors import StillroomError
from pipeline.features.attention import resize_maps
from pipeline.features.base import Pair, directions, projector
from pipeline.features.rkd import angle_loss, cosines, distance_loss
from pipeline.features.srd import normalised_over_rows

D = torch.float64


def pair_of(kind: str, student_width: int = 3, teacher_width: int = 4, **options: object) -> Pair:
    """A kind's own pair, in float64, without gradients of its own."""
    start = start_of(kind, (teacher_width,), student_width=student_width)
    return begun(kind, options, start).pairs["0"].double().requires_grad_(False)


def orthogonal(width: int) -> Tensor:
    return torch.linalg.qr(draws(width, width, dtype=D))[0]


def huber(a: float, b: float) -> float:
    gap = abs(a - b)
    return gap * gap / 2 if gap < 1 else gap - 0.5


@pytest.mark.parametrize("kind", ["hint", "srd", "rkd", "crd", "attention", "simkd"])
def test_the_gradient_is_that_of_small_differences(kind):
    width = 4
    options = {"negatives": 3, "width": 5, "tau": 0.5} if kind == "crd" else {}
    pair = pair_of(kind, width if kind in ("attention", "simkd") else 3, width, **options)
    student = draws(6, width if kind in ("attention", "simkd") else 3, dtype=D).abs().requires_grad_()
    teacher, weights, negatives = draws(6, width, seed=2, dtype=D), torch.rand(6, dtype=D), draws(3, width, dtype=D)
    assert torch.autograd.gradcheck(lambda each: pair(each, teacher, weights, negatives), student)


def test_hint_is_the_mean_square_and_0_for_what_the_map_meets():
    pair, student, teacher = pair_of("hint"), draws(5, 3, dtype=D), draws(5, 4, seed=2, dtype=D)
    found, regressor = pair(student, teacher, torch.ones(5), None), pair.regressor
    for row in range(5):
        said = [
            sum(float(regressor.weight[d, s] * student[row, s]) for s in range(3)) + float(regressor.bias[d])
            for d in range(4)
        ]
        assert math.isclose(
            float(found[row]), sum((a - float(b)) ** 2 for a, b in zip(said, teacher[row], strict=True)) / 4
        )
    assert pair(student, regressor(student), torch.ones(5), None).eq(0).all()


def test_srd_is_the_log_of_the_sum_of_fourth_powers_between_batch_norms():
    pair, student, teacher = pair_of("srd"), draws(7, 3, dtype=D), draws(7, 4, seed=2, dtype=D)
    norm = nn.BatchNorm1d(4, eps=1e-4, affine=False).double().train()
    gap = norm(nn.functional.linear(student, pair.adapter.weight)) - norm(teacher)
    wanted = math.log(sum(float(each) ** 4 for each in gap.flatten()))
    found = pair(student, teacher, torch.full((7,), 0.3, dtype=D), None)
    torch.testing.assert_close(found, torch.full((7,), wanted, dtype=D), rtol=1e-6, atol=0)


def test_srd_counts_a_row_by_its_weight():
    """A weight of two is the row twice, as far as the sum goes; one of nothing leaves it out."""
    pair, student, teacher = pair_of("srd"), draws(4, 3, dtype=D), draws(4, 4, seed=2, dtype=D)
    each = (normalised_over_rows(pair.adapter(student)) - normalised_over_rows(teacher)).pow(4).sum(1)
    found = pair(student, teacher, torch.tensor([0.2, 0.4, 0.0, 0.2], dtype=D), None)
    wanted = (each[0] + 2 * each[1] + each[3]) * 4 / 4
    torch.testing.assert_close(found[0], wanted.log(), rtol=1e-6, atol=0)
    assert pair(student, teacher, torch.zeros(4, dtype=D), None).isfinite().all()


def test_srd_does_not_see_a_teachers_scale_and_offset_nor_the_students():
    pair, student, teacher = pair_of("srd"), draws(50, 3, dtype=D), draws(50, 4, seed=2, dtype=D)
    weights = torch.ones(50, dtype=D)
    moved = pair(student * 9 + 4, teacher * 9 - 5, weights, None)
    torch.testing.assert_close(moved, pair(student, teacher, weights, None), rtol=1e-3, atol=0)


def test_srd_follows_the_worst_rows_and_stays_finite_where_all_is_met():
    student = draws(6, 4, dtype=D).requires_grad_()
    pair = pair_of("srd", 4, 4)
    with torch.no_grad():
        pair.adapter.weight.copy_(torch.eye(4))
    loss = pair(student, student.detach(), torch.ones(6, dtype=D), None)
    torch.testing.assert_close(loss, torch.full((6,), math.log(1e-6), dtype=D))
    loss.mean().backward()
    assert student.grad.eq(0).all()


def slow_distance(student: Tensor, teacher: Tensor) -> list[float]:
    def relative(x: Tensor) -> list[list[float]]:
        found = [[math.dist(a.tolist(), b.tolist()) for b in x] for a in x]
        apart = [each for row in found for each in row if each > 0]
        return [[each / (sum(apart) / len(apart)) for each in row] for row in found]

    s, t, count = relative(student), relative(teacher), len(student)
    return [sum(huber(s[i][j], t[i][j]) for j in range(count)) / count for i in range(count)]


def slow_angle(student: Tensor, teacher: Tensor) -> list[float]:
    def cosine(x: Tensor, i: int, j: int, k: int) -> float:
        a, b = x[j] - x[i], x[k] - x[i]
        length = float((a.norm() * b.norm()).detach())
        return float((a @ b).detach()) / length if length > 0 else 0.0

    span = range(len(student))
    return [
        sum(huber(cosine(student, i, j, k), cosine(teacher, i, j, k)) for j in span for k in span) / len(span) ** 2
        for i in span
    ]


def test_rkd_is_its_slow_sums():
    student, teacher = draws(7, 3, dtype=D), draws(7, 5, seed=2, dtype=D)
    distance, angle = torch.tensor(slow_distance(student, teacher)), torch.tensor(slow_angle(student, teacher))
    torch.testing.assert_close(distance_loss(student, teacher).float(), distance)
    torch.testing.assert_close(angle_loss(student, teacher, group_rows=7).float(), angle)
    found = pair_of("rkd", 3, 5)(student, teacher, torch.ones(7), None)
    torch.testing.assert_close(found.float(), 25 * distance + 50 * angle)


def test_angles_are_taken_within_groups_that_are_nearly_equal():
    student, teacher = draws(7, 3, dtype=D).requires_grad_(), draws(7, 5, seed=2, dtype=D)
    found = angle_loss(student, teacher, group_rows=3)
    parts = [slow_angle(student[rows], teacher[rows]) for rows in (slice(0, 3), slice(3, 5), slice(5, 7))]
    torch.testing.assert_close(found.float(), torch.tensor([*parts[0], *parts[1], *parts[2]]))
    found.sum().backward()
    assert student.grad.isfinite().all()


def test_rkd_does_not_see_rotation_shift_and_scale():
    pair, student, teacher = pair_of("rkd", 4, 4), draws(9, 4, dtype=D), draws(9, 4, seed=2, dtype=D)
    plain = pair(student, teacher, torch.ones(9), None)
    moved = pair(3 * student @ orthogonal(4) + 7, teacher @ orthogonal(4) / 5 - 2, torch.ones(9), None)
    torch.testing.assert_close(moved, plain)
    still = pair(3 * teacher @ orthogonal(4) + 7, teacher, torch.ones(9), None)
    torch.testing.assert_close(still, torch.zeros(9, dtype=D), atol=1e-12, rtol=0)


def test_rkd_of_rows_that_are_one_for_the_student_has_a_modest_gradient():
    student = draws(6, 4)
    student[3:] = student[2]
    student[5] += 1e-8
    student.requires_grad_()
    loss = pair_of("rkd", 4, 4).float()(student, draws(6, 4, seed=2), torch.ones(6), None)
    loss.mean().backward()
    assert loss.isfinite().all()
    assert student.grad.isfinite().all()
    assert student.grad.abs().max() < 1e3
    assert cosines(student.detach())[3, 4].eq(0).all()


def test_crd_is_its_slow_sum():
    pair = pair_of("crd", 3, 4, negatives=5, width=6, tau=0.3)
    student, teacher, negatives = draws(4, 3, dtype=D), draws(4, 4, seed=2, dtype=D), draws(5, 4, seed=3, dtype=D)
    found = pair(student, teacher, torch.ones(4), negatives)

    def unit(layer: nn.Linear, x: Tensor) -> Tensor:
        mapped = layer.weight @ x + layer.bias
        return mapped / mapped.norm()

    for row in range(4):
        anchor = unit(pair.student_map, student[row])
        own = math.exp(float(anchor @ unit(pair.teacher_map, teacher[row])) / 0.3)
        others = sum(math.exp(float(anchor @ unit(pair.teacher_map, each)) / 0.3) for each in negatives)
        assert math.isclose(float(found[row]), -math.log(own / (own + others)), rel_tol=1e-9)


def test_crd_is_small_where_a_row_is_told_apart_and_wants_negatives():
    pair = pair_of("crd", 4, 4, width=4, tau=0.01)
    with torch.no_grad():
        pair.student_map.weight.copy_(torch.eye(4))
        pair.teacher_map.weight.copy_(torch.eye(4))
    rows = torch.eye(4, dtype=D)
    assert pair(rows, rows, torch.ones(4), -rows).max() < 1e-6
    assert pair(rows, -rows, torch.ones(4), rows).min() > 50
    assert pair(rows, rows, torch.ones(4), rows[:0]).abs().max() < 1e-12
    with pytest.raises(ValueError, match="no negatives; have the loader draw num_negatives rows"):
        pair(rows, rows, torch.ones(4), None)


def test_attention_does_not_see_scale_and_is_0_for_equal_maps_and_2_for_disjoint():
    pair, maps = pair_of("attention", 16, 16), draws(3, 16, dtype=D).abs()
    assert pair(5 * maps, maps / 3, torch.ones(3), None).abs().max() < 1e-12
    student, teacher = torch.zeros(2, 16, dtype=D), torch.zeros(2, 16, dtype=D)
    student[:, 2] = 4
    teacher[:, 3] = 1
    teacher[1] = 0
    assert pair(student, teacher, torch.ones(2), None).tolist() == [2.0, 1.0]


def test_a_students_map_comes_to_the_teachers_size():
    maps = torch.arange(16.0).reshape(1, 16)
    assert resize_maps(maps, 4).tolist() == [[2.5, 4.5, 10.5, 12.5]]
    larger = resize_maps(maps, 64).reshape(8, 8)
    torch.testing.assert_close(larger.mean(), maps.mean())
    assert (larger.diff(dim=0) >= 0).all()
    assert (larger.diff(dim=1) >= 0).all()
    assert resize_maps(maps[:, :6], 6).shape == (1, 6)  # as many: no matter what shape
    start = start_of("attention", (9,), student_width=16)
    student, teachers = features_of(start, 3)
    assert begun("attention", {}, start)(student, teachers).shape == (3,)


def test_maps_that_are_no_squares_must_be_of_one_size():
    begun("attention", {}, start_of("attention", (6,), student_width=6))
    with pytest.raises(StillroomError, match=r"maps of 6 and 9 positions \(student, teacher 0\); expected as many"):
        begun("attention", {}, start_of("attention", (9,), student_width=6))


def test_directions_have_length_one_or_none():
    vectors = torch.tensor([[3.0, 4.0], [0.0, 0.0], [1e-8, 0.0]], requires_grad=True)
    found = directions(vectors)
    torch.testing.assert_close(found, torch.tensor([[0.6, 0.8], [0, 0], [0, 0]]))
    found.sum().backward()
    assert vectors.grad[1:].eq(0).all()


def test_a_projector_keeps_unit_variance():
    layer = projector(400, 300, torch.Generator().manual_seed(1))
    assert abs(layer(draws(200, 400)).std().item() - 1) < 0.05
    assert layer.bias.eq(0).all()
