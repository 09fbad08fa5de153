"""KL, cross-entropy and their weighted sum agree with torch and slow float64 sums, and stay finite in every hole."""

import math

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from pipeline.errors import StillroomError
from pipeline.losses import (
    SOFT_LOSSES,
    cross_entropy,
    distillation_loss,
    is_labelled,
    kl_divergence,
    mixed_cross_entropy,
)

INF = math.inf


@pytest.fixture
def generator() -> torch.Generator:
    return torch.Generator().manual_seed(7)


def random_case(generator: torch.Generator, *shape: int, temperature: float = 1.0) -> tuple[Tensor, Tensor]:
    """Student logits and target log-probabilities at the temperature, float64 `[..., C]`."""
    student = 3 * torch.randn(*shape, generator=generator, dtype=torch.float64)
    target = 3 * torch.randn(*shape, generator=generator, dtype=torch.float64)
    return student, torch.log_softmax(target / temperature, dim=-1)


@pytest.mark.parametrize("temperature", [1.0, 4.0])
def test_kl_divergence_is_the_slow_sum(generator: torch.Generator, temperature: float) -> None:
    student, target = random_case(generator, 5, 3, 10, temperature=temperature)
    found = kl_divergence(student, target, temperature=temperature)
    assert found.shape == (5, 3)
    for i in range(5):
        for j in range(3):
            scores = [math.exp(z / temperature) for z in student[i, j].tolist()]
            q = [score / sum(scores) for score in scores]
            p = [math.exp(value) for value in target[i, j].tolist()]
            slow = temperature**2 * sum(a * math.log(a / b) for a, b in zip(p, q, strict=True))
            assert found[i, j].item() == pytest.approx(slow, rel=1e-10)


def test_kl_divergence_is_torch_s(generator: torch.Generator) -> None:
    student, target = random_case(generator, 20, 10, temperature=2.0)
    expected = 4 * functional.kl_div((student / 2).log_softmax(-1), target, log_target=True, reduction="none").sum(-1)
    torch.testing.assert_close(kl_divergence(student, target, temperature=2.0), expected)


@pytest.mark.parametrize("temperature", [1.0, 4.0])
def test_kl_divergence_and_its_gradient_vanish_at_the_target(generator: torch.Generator, temperature: float) -> None:
    student, _ = random_case(generator, 8, 10)
    student.requires_grad_()
    loss = kl_divergence(student, (student.detach() / temperature).log_softmax(-1), temperature=temperature)
    loss.sum().backward()
    assert loss.abs().max() < 1e-12
    assert student.grad is not None
    assert student.grad.abs().max() < 1e-12


def test_kl_divergence_of_a_one_hot_target_is_cross_entropy_with_finite_gradient(generator: torch.Generator) -> None:
    student, _ = random_case(generator, 6, 4)
    student.requires_grad_()
    labels = torch.tensor([0, 1, 2, 3, 0, 1])
    loss = kl_divergence(student, functional.one_hot(labels, 4).double().log(), temperature=1.0)
    torch.testing.assert_close(loss, functional.cross_entropy(student, labels, reduction="none"))
    loss.sum().backward()
    assert student.grad is not None
    torch.testing.assert_close(student.grad, student.detach().softmax(-1) - functional.one_hot(labels, 4))


def test_kl_divergence_is_finite_where_target_and_student_mask_a_class() -> None:
    student = torch.tensor([[1.0, 0.0, -INF]], requires_grad=True)
    loss = kl_divergence(student, torch.tensor([[0.5, 0.5, 0.0]]).log(), temperature=2.0)
    loss.sum().backward()
    assert loss.isfinite().all()
    assert student.grad is not None
    assert student.grad.isfinite().all()


def test_kl_divergence_is_taken_in_float32_for_half_inputs() -> None:
    # 2,000 classes: a sum of float16 terms would be off by about a percent
    generator = torch.Generator().manual_seed(0)
    student = torch.randn(4, 2000, generator=generator).half()
    target = torch.randn(4, 2000, generator=generator).log_softmax(-1).half()
    found = kl_divergence(student, target, temperature=1.0)
    assert found.dtype == torch.float32
    expected = kl_divergence(student.double(), target.double(), temperature=1.0)
    torch.testing.assert_close(found.double(), expected, rtol=1e-5, atol=1e-5)


def test_at_high_temperature_the_gradient_is_that_of_the_mean_squared_error(generator: torch.Generator) -> None:
    student = torch.randn(8, 10, generator=generator, dtype=torch.float64)
    teacher = torch.randn(8, 10, generator=generator, dtype=torch.float64)
    student, teacher = student - student.mean(-1, keepdim=True), teacher - teacher.mean(-1, keepdim=True)
    student.requires_grad_()
    kl_divergence(student, (teacher / 1e4).log_softmax(-1), temperature=1e4).sum().backward()
    assert student.grad is not None
    torch.testing.assert_close(student.grad, (student.detach() - teacher) / 10, atol=1e-3, rtol=0)
    assert student.grad.abs().mean() > 0.01


def test_cross_entropy_is_torch_s_and_zero_without_a_label(generator: torch.Generator) -> None:
    student, _ = random_case(generator, 4, 3, 5)
    labels = torch.randint(0, 5, (4, 3), generator=generator)
    labels[1, 2] = -1
    found = cross_entropy(student, labels)
    expected = functional.cross_entropy(student.movedim(-1, 1), labels, ignore_index=-1, reduction="none")
    torch.testing.assert_close(found, expected)
    assert found[1, 2] == 0.0
    assert (found > 0).sum() == 11


def test_cross_entropy_takes_a_single_case_and_narrow_integers() -> None:
    found = cross_entropy(torch.zeros(4).half(), torch.tensor(2, dtype=torch.int16))
    assert found.shape == ()
    assert found.dtype == torch.float32
    assert found.item() == pytest.approx(math.log(4))


def test_mixed_cross_entropy_is_cross_entropy_against_the_mixed_label(generator: torch.Generator) -> None:
    student, _ = random_case(generator, 5, 4)
    labels, partners = torch.tensor([0, 1, 2, 3, 0]), torch.tensor([1, 1, 3, 0, 2])
    mix = torch.tensor([0.0, 0.3, 0.5, 0.9, 1.0], dtype=torch.float64)
    one_hot = functional.one_hot
    soft = mix[:, None] * one_hot(labels, 4) + (1 - mix[:, None]) * one_hot(partners, 4)
    expected = -(soft * student.log_softmax(-1)).sum(-1)
    torch.testing.assert_close(mixed_cross_entropy(student, labels, partners, mix), expected)


def test_smoothed_cross_entropy_is_that_of_the_smoothed_label(generator: torch.Generator) -> None:
    student, _ = random_case(generator, 5, 4)
    labels, partners = torch.tensor([0, 1, -1, 3, 0]), torch.tensor([1, 1, 3, 0, 2])
    mix = torch.tensor([1.0, 0.3, 0.5, 0.9, 0.0], dtype=torch.float64)

    def slow(rows: Tensor) -> Tensor:
        smooth = 0.8 * functional.one_hot(rows.clamp(min=0), 4) + 0.2 / 4
        return -(smooth * student.log_softmax(-1)).sum(-1) * (rows >= 0)

    torch.testing.assert_close(cross_entropy(student, labels, smoothing=0.2), slow(labels))
    found = mixed_cross_entropy(student, labels, partners, mix, smoothing=0.2)
    torch.testing.assert_close(found, (mix * slow(labels) + (1 - mix) * slow(partners)) * (labels >= 0))
    _, parts = distillation_loss(student, student, labels, partners, mix, temperature=1.0, alpha=0.5, smoothing=0.2)
    torch.testing.assert_close(parts["ce"], found)


def test_labels_are_shared_by_several_students(generator: torch.Generator) -> None:
    students, target = random_case(generator, 6, 3, 5)
    labels = torch.tensor([0, 1, -1, 3, 4, 0])
    loss, parts = distillation_loss(
        students, target[:, :1], labels.unsqueeze(1), temperature=2.0, alpha="conditional", kind="dkd"
    )
    for member in range(3):
        alone, own = distillation_loss(
            students[:, member], target[:, 0], labels, temperature=2.0, alpha="conditional", kind="dkd"
        )
        torch.testing.assert_close(loss[:, member], alone)
        torch.testing.assert_close({name: part[:, member] for name, part in parts.items()}, own)


def test_options_and_the_single_label_reach_the_soft_loss(generator: torch.Generator) -> None:
    student, target = random_case(generator, 4, 5)
    worst = int(target[1].argmin())
    labels, partners = torch.tensor([0, worst, 2, -1]), torch.tensor([1, 1, 1, 1])
    mix = torch.tensor([1.0, 0.5, 1.0, 1.0])
    rows = (student, target, labels, partners, mix)
    _, parts = distillation_loss(*rows, kind="dkd", temperature=2.0, alpha=0.5, options={"beta": 7.0})
    single = torch.tensor([0, -1, 2, -1])  # a mixed row has no single label
    expected = SOFT_LOSSES["dkd"](student, target, temperature=2.0, labels=single, beta=7.0)
    torch.testing.assert_close(parts["dkd"], expected)
    assert (expected[1] - SOFT_LOSSES["dkd"](student, target, temperature=2.0, labels=labels, beta=7.0)[1]).abs() > 1e-3


def test_a_mixed_row_needs_both_labels() -> None:
    labels = torch.tensor([2, 2, -1, 2, -1])
    partners = torch.tensor([-1, -1, 1, 1, 1])
    mix = torch.tensor([1.0, 0.5, 0.5, 0.5, 1.0])
    expected = [True, False, False, True, False]
    assert is_labelled(labels, partners, mix).tolist() == expected
    assert (mixed_cross_entropy(torch.zeros(5, 3), labels, partners, mix) > 0).tolist() == expected
    assert is_labelled(labels).tolist() == [True, True, False, True, False]


@pytest.mark.parametrize("kind", SOFT_LOSSES)
@pytest.mark.parametrize("alpha", [0.0, 0.3, 1.0, "conditional", "soft", {"kind": "fixed", "value": 0.7}])
def test_distillation_loss_lies_between_its_parts_and_takes_the_soft_one_without_labels(
    kind: str, alpha: float | str | dict, generator: torch.Generator
) -> None:
    student, target = random_case(generator, 6, 2, 5)
    labels = torch.randint(0, 5, (6, 2), generator=generator)
    labels[0] = -1
    loss, parts = distillation_loss(student, target, labels, kind=kind, temperature=1.0, alpha=alpha)
    assert parts.keys() == {"ce", kind}
    torch.testing.assert_close(loss[0], parts[kind][0])
    torch.testing.assert_close(parts["ce"], cross_entropy(student, labels))
    torch.testing.assert_close(parts[kind], SOFT_LOSSES[kind](student, target, temperature=1.0, labels=labels))
    low, high = torch.minimum(parts["ce"], parts[kind]), torch.maximum(parts["ce"], parts[kind])
    assert ((loss >= low - 1e-9) & (loss <= high + 1e-9))[1:].all()
    if isinstance(alpha, float):
        torch.testing.assert_close(loss[1:], (alpha * parts["ce"] + (1 - alpha) * parts[kind])[1:])


def test_parts_are_the_same_whatever_alpha(generator: torch.Generator) -> None:
    student, target = random_case(generator, 6, 5)
    labels = torch.randint(0, 5, (6,), generator=generator)
    _, low = distillation_loss(student, target, labels, temperature=4.0, alpha=0.1)
    _, high = distillation_loss(student, target, labels, temperature=4.0, alpha=0.9)
    assert torch.equal(low["ce"], high["ce"])
    assert torch.equal(low["kl"], high["kl"])


def test_conditional_alpha_takes_the_label_where_the_target_is_wrong_on_unmixed_rows() -> None:
    target = torch.tensor([[0.8, 0.2]] * 4).log()
    labels, partners = torch.tensor([0, 1, 1, -1]), torch.tensor([0, -1, 0, 1])
    mix = torch.tensor([1.0, 1.0, 0.5, 1.0])
    student = torch.tensor([[0.0, 1.0]] * 4)
    loss, parts = distillation_loss(student, target, labels, partners, mix, temperature=1.0, alpha="conditional")
    torch.testing.assert_close(loss, torch.stack([parts["kl"][0], parts["ce"][1], parts["kl"][2], parts["kl"][3]]))
    assert (parts["ce"][1] - parts["kl"][1]).abs() > 0.01


def test_stacked_students_lose_what_each_loses_alone(generator: torch.Generator) -> None:
    _, target = random_case(generator, 6, 5)
    students = torch.randn(3, 6, 5, generator=generator, dtype=torch.float64)
    labels, partners = torch.tensor([0, 1, -1, 3, 4, 0]), torch.tensor([1, 2, 3, -1, 0, 1])
    mix = torch.tensor([1.0, 0.5, 0.5, 0.5, 0.2, 1.0])

    def loss(student: Tensor) -> Tensor:
        return distillation_loss(student, target, labels, partners, mix, temperature=2.0, alpha=0.4)[0]

    torch.testing.assert_close(torch.func.vmap(loss)(students), torch.stack([loss(student) for student in students]))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"kind": "kll"}, r"unknown kind 'kll'; expected one of 9; .*kl"),
        ({"alpha": "conditonal"}, r"unknown alpha 'conditonal'; .*did you mean 'conditional'\?"),
        (
            {"alpha": 1.5},
            r"alpha is 1.5; expected a number in \[0, 1\] or one of \['annealed', .*\]; 1 is labels only",
        ),
        ({"alpha": "annealed"}, r"alpha is 'annealed', which follows the training; .*make_alpha"),
        ({"temperature": 0.0}, r"temperature is 0.0; expected a number above 0; 1 leaves"),
        ({"smoothing": 1.5}, r"smoothing is 1.5; expected a number in \[0, 1\]; 0 leaves"),
        ({"kind": "jsd", "options": {"beta": 1.0}}, r"kind 'jsd': beta is 1.0; expected a number in \(0, 1\); change"),
    ],
)
def test_wrong_options_are_named(options: dict, message: str) -> None:
    arguments = {"temperature": 1.0, "alpha": 0.5} | options
    with pytest.raises(StillroomError, match=message):
        distillation_loss(torch.zeros(2, 3), torch.zeros(2, 3), torch.zeros(2, dtype=torch.long), **arguments)


def test_partner_labels_without_mix_are_refused() -> None:
    labels = torch.zeros(2, dtype=torch.long)
    with pytest.raises(ValueError, match="come together"):
        distillation_loss(torch.zeros(2, 3), torch.zeros(2, 3), labels, labels, temperature=1.0, alpha=0.5)
