"""What every feature loss keeps to, over the whole dict; and how a term weighs and standardises its teachers."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from feature_cases import VARIANTS, begun, draws, features_of, negatives_of, start_of

from pipeline.errors import StillroomError
from pipeline.features import FEATURE_LOSSES, FeatureRows, FeatureStart, feature_statistics
from pipeline.features.statistics import deviations

variants = pytest.mark.parametrize(("kind", "options"), VARIANTS)


def loss_of(kind: str, options: dict[str, Any], start: FeatureStart, count: int, weights: Any = None) -> Any:
    term, (student, teachers) = begun(kind, options, start), features_of(start, count)
    return term, student, term(student, teachers, weights, negatives_of(start))


@variants
@pytest.mark.parametrize("count", [1, 2, 7])
def test_a_loss_gives_a_number_and_a_gradient_for_each_row(kind, options, count):
    term, student, loss = loss_of(kind, options, start_of(kind), count)
    assert loss.shape == (count,)
    assert loss.dtype == torch.float32
    loss.mean().backward()
    parts = [student, *term.parameters()]
    assert all(each.grad is not None and each.grad.isfinite().all() for each in parts)
    assert count < 3 or any(each.grad.any() for each in parts)
    assert term.state_dict().keys() == dict(term.named_parameters()).keys(), "statistics come with the start"


@variants
def test_equal_rows_and_channels_that_never_move_keep_loss_and_gradient_finite(kind, options):
    start = start_of(kind)
    flat = replace(start, statistics=tuple(None if s is None else (s[0], s[1] * 0) for s in start.statistics))
    for begin, value in ((start, 0.5), (flat, 0.0)):
        term = begun(kind, options, begin)
        student = torch.full((5, begin.student_width), value, requires_grad=True)
        teachers = tuple(torch.full((5, width), value) for width in begin.widths)
        loss = term(student, teachers, None, negatives_of(begin))
        loss.mean().backward()
        assert loss.isfinite().all()
        assert student.grad is None or student.grad.isfinite().all()


@variants
def test_half_precision_and_autocast_come_out_in_float32(kind, options):
    start = start_of(kind)
    term, (student, teachers) = begun(kind, options, start), features_of(start, 6)
    plain = term(student, teachers, None, negatives_of(start))
    with torch.autocast("cpu", torch.bfloat16):
        torch.testing.assert_close(term(student, teachers, None, negatives_of(start)), plain, rtol=0, atol=0)
    assert term(student.bfloat16(), teachers, None, negatives_of(start)).dtype == torch.float32


@variants
def test_the_same_seed_begins_the_same_and_another_state_is_taken_over(kind, options):
    first, second = begun(kind, options), begun(kind, options, start_of(kind, seed=9))
    again = begun(kind, options)
    assert all(torch.equal(a, b) for a, b in zip(first.parameters(), again.parameters(), strict=True))
    assert not list(first.parameters()) or not torch.equal(next(first.parameters()), next(second.parameters()))
    second.load_state_dict(first.state_dict())
    student, teachers = features_of(start_of(kind), 5)
    rows = negatives_of(start_of(kind))
    assert torch.equal(first(student, teachers, None, rows), second(student, teachers, None, rows))


@variants
def test_a_teacher_without_the_layer_has_no_say_whatever_its_weight(kind, options):
    start = start_of(kind)
    term, (student, teachers) = begun(kind, options, start), features_of(start, 5)
    rows, weights = negatives_of(start), torch.rand(5, 3) + 0.1
    other = weights.clone()
    other[:, 1] = 7.0
    torch.testing.assert_close(term(student, teachers, weights, rows), term(student, teachers, other, rows))
    torch.testing.assert_close(term(student, teachers, torch.ones(5, 3), rows), term(student, teachers, None, rows))


@pytest.mark.parametrize(("kind", "options"), [each for each in VARIANTS if each[0] != "simkd"])
def test_teachers_may_come_in_any_order(kind, options):
    start, count = start_of(kind, (9, 16)), 6
    back = replace(start, widths=start.widths[::-1], statistics=start.statistics[::-1], heads=start.heads[::-1])
    term, swapped = begun(kind, options, start), begun(kind, options, back)
    first, second = (term.pairs[name].state_dict() for name in "01")
    swapped.pairs["0"].load_state_dict(second)
    swapped.pairs["1"].load_state_dict(first)
    (student, teachers), rows, weights = features_of(start, count), negatives_of(start), torch.rand(count, 2)
    found = swapped(student, teachers[::-1], weights.flip(1), FeatureRows(rows.negatives[::-1]))
    torch.testing.assert_close(found, term(student, teachers, weights, rows))


@pytest.mark.parametrize("kind", [kind for kind in FEATURE_LOSSES if kind not in ("srd", "rkd")])
def test_the_loss_is_the_weighted_sum_of_each_teachers_own(kind):
    widths = (0, 0, 16) if kind == "simkd" else (9, 0, 16)
    start, options = start_of(kind, widths), {"negatives": 6} if kind == "crd" else {}
    term, (student, teachers), rows = begun(kind, options, start), features_of(start, 5), negatives_of(start)
    weights, total, sums = torch.rand(5, 3), torch.zeros(5), torch.zeros(5)
    for teacher in start.followed:
        alone = replace(start, widths=tuple(w if t == teacher else 0 for t, w in enumerate(widths)))
        total += weights[:, teacher] * begun(kind, options, alone)(student, teachers, None, rows)
        sums += weights[:, teacher]
    torch.testing.assert_close(term(student, teachers, weights, rows), total / sums)


def test_a_row_whose_teachers_have_no_weight_gives_nothing():
    start = start_of("hint")
    weights = torch.tensor([[0.0, 1.0, 0.0], [0.5, 0.0, 0.5]])
    _, student, loss = loss_of("hint", {}, start, 2, weights)
    assert loss[0] == 0
    assert loss[1] > 0
    loss.sum().backward()
    assert student.grad[0].eq(0).all()
    assert student.grad[1].ne(0).any()


@pytest.mark.parametrize("kind", [kind for kind in FEATURE_LOSSES if kind != "attention"])
def test_a_teachers_scale_and_offset_are_taken_off_channel_by_channel(kind):
    start = start_of(kind)
    (student, teachers), rows = features_of(start, 6), negatives_of(start)
    scale, offset = draws(16, seed=8).abs() * 100 + 1, 50 * draws(16, seed=9)
    mean, std = start.statistics[2]
    moved = replace(start, statistics=(*start.statistics[:2], (mean * scale + offset, deviations(std) * scale)))
    moved_rows = replace(rows, negatives=(*rows.negatives[:2], rows.negatives[2] * scale + offset))
    found = begun(kind, {}, moved)(student, (*teachers[:2], teachers[2] * scale + offset), None, moved_rows)
    torch.testing.assert_close(found, begun(kind, {}, start)(student, teachers, None, rows), rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("kind", FEATURE_LOSSES)
def test_no_teacher_with_the_layer_is_an_error(kind):
    with pytest.raises(
        StillroomError, match=rf"features '{kind}': none of 2 teachers has layer '.*' in its store; expected one"
    ):
        begun(kind, {}, start_of(kind, (0, 0)))


def test_features_of_other_shapes_are_a_callers_bug():
    start = start_of("hint")
    term, (student, teachers) = begun("hint", {}, start), features_of(start, 4)
    for wrong in (teachers[:2], (teachers[0][:3], *teachers[1:]), (teachers[2], *teachers[1:])):
        with pytest.raises(ValueError, match="the term expects"):
            term(student, wrong)
    with pytest.raises(ValueError, match=r"'student': \(4, 3\)"):
        term(student[:, :3], teachers)


@pytest.mark.parametrize("sizes", [[100], [1, 99], [3, 0, 50, 47], [1] * 100])
def test_statistics_are_numpys_whatever_the_pieces(sizes):
    rows = 1e4 + draws(100, 5, dtype=torch.float64) * torch.tensor([1e-2, 1.0, 3.0, 0.0, 1e3])
    mean, std = feature_statistics(iter(rows.float().split(sizes)))
    wanted = rows.float().double().numpy()
    assert mean.dtype == std.dtype == torch.float32
    np.testing.assert_allclose(mean, wanted.mean(0), rtol=1e-7)
    np.testing.assert_allclose(std, wanted.std(0), rtol=1e-6)


def test_statistics_of_nothing_are_told():
    with pytest.raises(StillroomError, match="feature statistics: no rows; expected one at least"):
        feature_statistics([torch.zeros(0, 3)])


def test_a_channel_that_hardly_moves_is_not_blown_up():
    typical = (100 / 3) ** 0.5
    torch.testing.assert_close(
        deviations(torch.tensor([10.0, 1e-5, 0.0])), torch.tensor([10, typical / 100, typical / 100])
    )
    assert deviations(torch.zeros(3)).eq(1).all()
