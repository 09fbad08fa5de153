"""Each soft loss agrees with its formula written out one number at a time, and with what is known in closed form."""

import math

import pytest
import torch
from torch import Tensor

from pipeline.losses import SOFT_LOSSES, kl_divergence

Row = list[float]


@pytest.fixture
def generator() -> torch.Generator:
    return torch.Generator().manual_seed(5)


def softmax(logits: Row, temperature: float = 1.0) -> Row:
    scores = [math.exp(z / temperature) for z in logits]
    return [score / sum(scores) for score in scores]


def kl(p: Row, q: Row) -> float:
    return sum(a * math.log(a / b) for a, b in zip(p, q, strict=True) if a > 0)


def among_others(p: Row, y: int) -> Row:
    return [value / (1 - p[y]) for c, value in enumerate(p) if c != y]


def centred(values: Row) -> Row:
    return [value - sum(values) / len(values) for value in values]


def pearson(a: Row, b: Row) -> float:
    a, b = centred(a), centred(b)
    product = sum(x * y for x, y in zip(a, b, strict=True))
    return product / math.sqrt(sum(x * x for x in a) * sum(y * y for y in b))


def z_score(values: Row) -> Row:
    values = centred(values)
    return [value / math.sqrt(sum(v * v for v in values) / (len(values) - 1)) for value in values]


def slow(kind: str, student: list[Row], teacher: list[Row], labels: list[int], t: float) -> list[float]:
    """The loss of each row, defaults for options, from the logits of both sides."""
    q, p = ([softmax(row, t) for row in rows] for rows in (student, teacher))
    columns = [pearson([row[c] for row in p], [row[c] for row in q]) for c in range(len(p[0]))]
    losses = []
    for i, (ps, qs) in enumerate(zip(p, q, strict=True)):
        y = labels[i] if labels[i] >= 0 else ps.index(max(ps))
        middle = [(a + b) / 2 for a, b in zip(ps, qs, strict=True)]
        others = among_others(ps, y), among_others(qs, y)
        ce = [-math.log(softmax(rows[i])[y]) for rows in (student, teacher)]
        weight = 1 - math.exp(-ce[0] / ce[1]) if labels[i] >= 0 else 1.0
        scores = [softmax(z_score(rows[i]), t) for rows in (teacher, student)]
        gaps = [a - b for a, b in zip(centred(student[i]), centred(teacher[i]), strict=True)]
        value = {
            "kl": kl(ps, qs),
            "reverse_kl": kl(qs, ps),
            "jsd": (kl(ps, middle) + kl(qs, middle)) / 2,
            "wsl": weight * kl(ps, qs),
            "dkd": kl([ps[y], 1 - ps[y]], [qs[y], 1 - qs[y]]) + 2.0 * kl(*others),
            "nkd": -ps[y] * math.log(qs[y]) - 1.5 * sum(a * math.log(b) for a, b in zip(*others, strict=True)),
            "dist": 2 * (1 - pearson(ps, qs)) + 2 * (1 - sum(columns) / len(columns)),
            "zscore": kl(*scores),
            "logit_mse": sum(gap * gap for gap in gaps) / len(gaps) / t**2,
        }[kind]
        losses.append(t**2 * value)
    return losses


@pytest.mark.parametrize("kind", SOFT_LOSSES)
@pytest.mark.parametrize("temperature", [1.0, 3.0])
def test_the_formula_one_number_at_a_time(kind: str, temperature: float, generator: torch.Generator) -> None:
    student, teacher = 2 * torch.randn(2, 7, 5, generator=generator, dtype=torch.float64)
    labels = torch.tensor([0, 1, -1, 3, 4, -1, 2])
    target = (teacher / temperature).log_softmax(-1)
    found = SOFT_LOSSES[kind](student, target, temperature=temperature, labels=labels)
    expected = slow(kind, student.tolist(), teacher.tolist(), labels.tolist(), temperature)
    assert found.tolist() == pytest.approx(expected, rel=1e-7)


def case(generator: torch.Generator, *shape: int) -> tuple[Tensor, Tensor, Tensor]:
    student, teacher = 2 * torch.randn(2, *shape, generator=generator, dtype=torch.float64)
    return student, teacher.log_softmax(-1), torch.randint(0, shape[-1], shape[:-1], generator=generator)


def gradient(kind: str, student: Tensor, targets: Tensor, **options: object) -> Tensor:
    student = student.detach().requires_grad_()
    return torch.autograd.grad(SOFT_LOSSES[kind](student, targets, **options).sum(), student)[0]


def test_dkd_is_kl_taken_apart(generator: torch.Generator) -> None:
    student, target, labels = case(generator, 6, 5)
    own = {"temperature": 2.0, "labels": labels}
    binary = SOFT_LOSSES["dkd"](student, target, **own, alpha=1.0, beta=0.0)
    others = SOFT_LOSSES["dkd"](student, target, **own, alpha=0.0, beta=1.0)
    p_label = target.exp().gather(-1, labels[:, None]).squeeze(-1)
    torch.testing.assert_close(binary + (1 - p_label) * others, kl_divergence(student, target, temperature=2.0))
    torch.testing.assert_close(SOFT_LOSSES["dkd"](student, target, **own, alpha=3.0, beta=5.0), 3 * binary + 5 * others)


def test_dkd_of_a_target_without_others_is_cross_entropy(generator: torch.Generator) -> None:
    student, _, labels = case(generator, 6, 5)
    one_hot = torch.nn.functional.one_hot(labels, 5).double().log()
    expected = torch.nn.functional.cross_entropy(student, labels, reduction="none")
    torch.testing.assert_close(SOFT_LOSSES["dkd"](student, one_hot, temperature=1.0, labels=labels), expected)
    torch.testing.assert_close(SOFT_LOSSES["nkd"](student, one_hot, temperature=1.0, labels=labels), expected)


def test_dkd_hears_the_others_of_a_teacher_that_is_all_but_sure() -> None:
    target = torch.tensor([[0.0, -40.0, -41.0, -42.0]])
    student = torch.tensor([[40.0, 0.0, 0.0, 0.0]])
    assert gradient("kl", student, target, temperature=1.0).abs().max() < 1e-15
    assert gradient("dkd", student, target, temperature=1.0)[0, 1] < -0.3


def test_nkd_s_others_are_pulled_to_the_target_s(generator: torch.Generator) -> None:
    student, target, labels = case(generator, 6, 5)
    is_own = torch.nn.functional.one_hot(labels, 5).bool()
    found = gradient("nkd", student, target, temperature=1.0, labels=labels, gamma=2.0)
    found = found - gradient("nkd", student, target, temperature=1.0, labels=labels, gamma=0.0)
    among = [x.masked_fill(is_own, -math.inf).softmax(-1) for x in (student, target)]
    torch.testing.assert_close(found, 2 * (among[0] - among[1]))


def test_jensen_shannon_is_symmetric_bounded_and_lies_between_both_kl(generator: torch.Generator) -> None:
    student, target, _ = case(generator, 6, 5)
    jsd = SOFT_LOSSES["jsd"](student, target, temperature=1.0)
    torch.testing.assert_close(jsd, SOFT_LOSSES["jsd"](target, student.log_softmax(-1), temperature=1.0))
    assert (jsd < math.log(2)).all()
    apart = SOFT_LOSSES["jsd"](torch.tensor([[1e4, 0.0]]), torch.tensor([[-math.inf, 0.0]]), temperature=1.0)
    torch.testing.assert_close(apart, torch.tensor([math.log(2)]))
    small = 1e-6
    forward = SOFT_LOSSES["jsd"](student, target, temperature=1.0, beta=small) / small
    backward = SOFT_LOSSES["jsd"](student, target, temperature=1.0, beta=1 - small) / small
    torch.testing.assert_close(forward, kl_divergence(student, target, temperature=1.0), rtol=1e-3, atol=0)
    torch.testing.assert_close(backward, SOFT_LOSSES["reverse_kl"](student, target, temperature=1.0), rtol=1e-3, atol=0)


def test_reverse_kl_of_an_impossible_class_costs_a_hundred_nats_of_its_mass() -> None:
    target = torch.tensor([[0.5, 0.5, 0.0]], dtype=torch.float64).log()
    student = torch.tensor([[0.4, 0.4, 0.2]], dtype=torch.float64).log()
    found = SOFT_LOSSES["reverse_kl"](student, target, temperature=1.0)
    assert found.item() == pytest.approx(2 * 0.4 * math.log(0.8) + 0.2 * (math.log(0.2) + 100))
    assert gradient("reverse_kl", student, target, temperature=1.0)[0, 2] > 10


def test_dist_is_zero_for_any_scale_and_offset_of_the_probabilities(generator: torch.Generator) -> None:
    _, target, _ = case(generator, 6, 5)
    student = (0.3 * target.exp() + 0.7 / 5).log()
    assert SOFT_LOSSES["dist"](student, target, temperature=1.0).abs().max() < 1e-6
    assert kl_divergence(student, target, temperature=1.0).min() > 0.01


def test_dist_s_second_part_is_one_value_for_the_batch(generator: torch.Generator) -> None:
    student, target, _ = case(generator, 6, 5)
    found = SOFT_LOSSES["dist"](student, target, temperature=1.0, beta=0.0, gamma=1.0)
    torch.testing.assert_close(found, found[:1].expand(6))
    columns = torch.stack([torch.corrcoef(torch.stack(pair))[0, 1] for pair in zip(
        student.softmax(-1).T, target.exp().T, strict=True)])  # fmt: skip
    assert found[0].item() == pytest.approx(1 - columns.mean().item())
    alone = SOFT_LOSSES["dist"](student[:1], target[:1], temperature=1.0, beta=0.0, gamma=1.0)
    assert alone.item() == 1.0  # a batch of one has nothing to correlate


def test_zscore_sees_neither_scale_nor_offset(generator: torch.Generator) -> None:
    student, target, _ = case(generator, 6, 5)
    found = SOFT_LOSSES["zscore"](student, target, temperature=2.0)
    torch.testing.assert_close(SOFT_LOSSES["zscore"](7 * student - 3, target, temperature=2.0), found)
    other_temperature = (target / 4).log_softmax(-1)
    torch.testing.assert_close(SOFT_LOSSES["zscore"](student, other_temperature, temperature=2.0), found)


def test_half_the_gradient_of_logit_mse_is_kl_s_at_high_temperature(generator: torch.Generator) -> None:
    student, teacher = torch.randn(2, 6, 5, generator=generator, dtype=torch.float64)
    t = 1e4
    found = gradient("logit_mse", student, (teacher / t).log_softmax(-1), temperature=t) / 2
    torch.testing.assert_close(
        gradient("kl", student, (teacher / t).log_softmax(-1), temperature=t), found, atol=1e-3, rtol=0
    )
    gaps = student - teacher
    torch.testing.assert_close(found, (gaps - gaps.mean(-1, keepdim=True)) / 5, atol=1e-9, rtol=0)


def test_wsl_s_weights_have_no_gradient_and_turn_off_what_is_learnt(generator: torch.Generator) -> None:
    student, target, labels = case(generator, 6, 5)
    values = [SOFT_LOSSES[kind](student, target, temperature=2.0, labels=labels) for kind in ("wsl", "kl")]
    weights = values[0] / values[1]
    found = gradient("wsl", student, target, temperature=2.0, labels=labels)
    torch.testing.assert_close(found, weights[:, None] * gradient("kl", student, target, temperature=2.0))
    sure = 50 * torch.nn.functional.one_hot(labels, 5).double()
    assert gradient("wsl", sure, target, temperature=2.0, labels=labels).abs().max() < 1e-9
    assert gradient("kl", sure, target, temperature=2.0).abs().max() > 0.1
