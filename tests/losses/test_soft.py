"""Laws that every soft loss holds to, and what each refuses."""

import itertools
import math

import pytest
import torch
from torch import Tensor

from pipeline.errors import StillroomError
from pipeline.losses import LIMITS, SOFT_LOSSES, check_soft_loss
from pipeline.losses.base import label_cross_entropy
from pipeline.sparse import SparseTargets

INF = math.inf
ZERO_AT_EQUALITY = ["kl", "reverse_kl", "jsd", "wsl", "dkd", "dist", "zscore", "logit_mse"]
OF_LOGITS_OVER_T = ["kl", "reverse_kl", "jsd", "dkd", "nkd", "dist", "logit_mse"]
SPARSE = [kind for kind, limits in LIMITS.items() if limits.takes_sparse]


@pytest.fixture
def generator() -> torch.Generator:
    return torch.Generator().manual_seed(3)


def random_case(generator: torch.Generator, *shape: int, temperature: float = 1.0) -> tuple[Tensor, Tensor, Tensor]:
    """Student logits and target log-probabilities float64 `[..., C]`, and labels, some -1."""
    student = 2 * torch.randn(*shape, generator=generator, dtype=torch.float64)
    target = 2 * torch.randn(*shape, generator=generator, dtype=torch.float64)
    labels = torch.randint(-1, shape[-1], shape[:-1], generator=generator)
    return student, (target / temperature).log_softmax(-1), labels


def value_and_gradient(kind: str, student: Tensor, targets: Tensor, **options: object) -> tuple[Tensor, Tensor]:
    student = student.detach().requires_grad_()
    loss = SOFT_LOSSES[kind](student, targets, **options)
    return loss.detach(), torch.autograd.grad(loss.sum(), student)[0]


def test_every_loss_has_its_limits() -> None:
    assert LIMITS.keys() == SOFT_LOSSES.keys()


@pytest.mark.parametrize("kind", SOFT_LOSSES)
@pytest.mark.parametrize("shape", [(6, 5), (2, 3, 5), (1, 5), (4, 3)])
def test_one_value_a_case_its_gradient_summing_to_zero(
    kind: str, shape: tuple[int, ...], generator: torch.Generator
) -> None:
    student, target, labels = random_case(generator, *shape, temperature=2.0)
    loss, gradient = value_and_gradient(kind, student, target, temperature=2.0, labels=labels)
    assert loss.shape == shape[:-1]
    assert (loss > 0).all()
    assert gradient.abs().max() > 1e-3
    assert gradient.sum(-1).abs().max() < 1e-9  # an offset of the logits changes nothing


@pytest.mark.parametrize("kind", SOFT_LOSSES)
def test_leading_axes_are_rows(kind: str, generator: torch.Generator) -> None:
    student, target, labels = random_case(generator, 2, 3, 5)
    loss = SOFT_LOSSES[kind](student, target, temperature=2.0, labels=labels)
    flat = SOFT_LOSSES[kind](student.flatten(0, 1), target.flatten(0, 1), temperature=2.0, labels=labels.flatten())
    torch.testing.assert_close(loss.flatten(), flat)


@pytest.mark.parametrize("kind", SOFT_LOSSES)
def test_several_students_share_a_target(kind: str, generator: torch.Generator) -> None:
    students, target, labels = random_case(generator, 4, 3, 5)
    target, labels = target[:, :1], labels[:, :1]
    found = SOFT_LOSSES[kind](students, target, temperature=2.0, labels=labels)
    expected = SOFT_LOSSES[kind](students, target.expand(4, 3, 5), temperature=2.0, labels=labels.expand(4, 3))
    torch.testing.assert_close(found, expected)


@pytest.mark.parametrize("kind", SOFT_LOSSES)
def test_stacked_students_lose_what_each_loses_alone(kind: str, generator: torch.Generator) -> None:
    students, _, _ = random_case(generator, 3, 6, 5)
    _, target, labels = random_case(generator, 6, 5)

    def loss(student: Tensor) -> Tensor:
        return SOFT_LOSSES[kind](student, target, temperature=2.0, labels=labels)

    torch.testing.assert_close(torch.func.vmap(loss)(students), torch.stack([loss(student) for student in students]))


@pytest.mark.parametrize("kind", SOFT_LOSSES)
def test_half_inputs_are_summed_in_float32(kind: str, generator: torch.Generator) -> None:
    student, target, labels = random_case(generator, 4, 500)
    student, target = student.half(), target.half()
    found = SOFT_LOSSES[kind](student, target, temperature=1.0, labels=labels)
    assert found.dtype == torch.float32
    expected = SOFT_LOSSES[kind](student.double(), target.double(), temperature=1.0, labels=labels)
    assert expected.dtype == torch.float64
    torch.testing.assert_close(found.double(), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("kind", ZERO_AT_EQUALITY)
@pytest.mark.parametrize("temperature", [1.0, 4.0])
def test_nothing_is_lost_where_student_and_target_agree(
    kind: str, temperature: float, generator: torch.Generator
) -> None:
    student, _, labels = random_case(generator, 8, 5)
    target = (student / temperature).log_softmax(-1)
    loss, gradient = value_and_gradient(kind, student, target, temperature=temperature, labels=labels)
    assert loss.abs().max() < 1e-7
    assert gradient.abs().max() < 1e-6


@pytest.mark.parametrize("kind", OF_LOGITS_OVER_T)
def test_the_loss_at_t_is_that_of_logits_over_t_times_t_squared(kind: str, generator: torch.Generator) -> None:
    student, target, labels = random_case(generator, 8, 5)
    found = SOFT_LOSSES[kind](3 * student, target, temperature=3.0, labels=labels)
    torch.testing.assert_close(found, 9 * SOFT_LOSSES[kind](student, target, temperature=1.0, labels=labels))


@pytest.mark.parametrize("kind", SOFT_LOSSES)
def test_gradients_are_those_of_the_values(kind: str, generator: torch.Generator) -> None:
    student, target, labels = random_case(generator, 4, 5, temperature=2.0)
    labels = None if kind == "wsl" else labels  # its weights have no gradient, on purpose

    def loss(logits: Tensor) -> Tensor:
        return SOFT_LOSSES[kind](logits, target, temperature=2.0, labels=labels)

    assert torch.autograd.gradcheck(loss, student.requires_grad_())


ROWS = {
    "confident, right": ([1e4, 0.0, -1e4], [0.0, -1e4, -2e4]),
    "confident, wrong": ([-1e4, 0.0, 1e4], [0.0, -1e4, -2e4]),
    "one-hot target": ([1.0, 2.0, -1.0], [0.0, -INF, -INF]),
    "impossible class": ([1.0, 2.0, 3.0], [math.log(0.5), math.log(0.5), -INF]),
    "impossible and confident": ([-1e4, -1e4, 1e4], [math.log(0.5), math.log(0.5), -INF]),
    "constant student": ([0.0, 0.0, 0.0], [math.log(0.7), math.log(0.2), math.log(0.1)]),
    "constant target": ([1.0, 2.0, 3.0], [-math.log(3)] * 3),
    "both constant": ([5.0, 5.0, 5.0], [-math.log(3)] * 3),
}


@pytest.mark.parametrize("kind", SOFT_LOSSES)
@pytest.mark.parametrize("row", ROWS)
def test_every_row_is_finite(kind: str, row: str) -> None:
    logits, log_probs = (torch.tensor([values, values]) for values in ROWS[row])
    for temperature, label in itertools.product([1e-2, 1.0, 1e3], [None, -1, 0, 2]):
        labels = None if label is None else torch.tensor([label, label])
        loss, gradient = value_and_gradient(kind, logits, log_probs, temperature=temperature, labels=labels)
        assert loss.isfinite().all()
        assert gradient.isfinite().all()
        assert gradient.abs().max() < 1e7 * max(1.0, temperature)


# --- targets of some classes


def top_k(log_probs: Tensor, k: int) -> SparseTargets:
    """Keep the k likeliest classes, the others in the bucket."""
    kept = log_probs.topk(k)
    rest = log_probs.scatter(-1, kept.indices, -INF).logsumexp(-1)
    return SparseTargets(kept.indices, kept.values, rest)


def pooled(log_probs: Tensor, ids: Tensor) -> Tensor:
    """Return log-probabilities of the classes named and of all others together: [..., K + 1]."""
    rest = log_probs.scatter(-1, ids, -INF).logsumexp(-1, keepdim=True)
    return torch.cat([log_probs.gather(-1, ids), rest], dim=-1)


@pytest.mark.parametrize("kind", SPARSE)
@pytest.mark.parametrize("padding", [0, 2])
def test_sparse_targets_lose_what_their_outcomes_lose(kind: str, padding: int, generator: torch.Generator) -> None:
    student, target, _ = random_case(generator, 2, 3, 8)
    targets = top_k(target, 3)
    outcomes = pooled(student.log_softmax(-1), targets.ids), pooled(target, targets.ids)
    expected = SOFT_LOSSES[kind](*outcomes, temperature=1.0)
    if padding:
        wide = torch.nn.functional.pad
        ids, log_probs = wide(targets.ids, (0, padding), value=4), wide(targets.log_probs, (0, padding), value=-INF)
        targets = SparseTargets(ids, log_probs, targets.log_rest)
    torch.testing.assert_close(SOFT_LOSSES[kind](student, targets, temperature=1.0), expected)


@pytest.mark.parametrize("kind", SPARSE)
def test_sparse_targets_of_all_classes_are_the_dense_ones(kind: str, generator: torch.Generator) -> None:
    student, target, labels = random_case(generator, 6, 5)
    for t in (1.0, 2.0):
        found = value_and_gradient(kind, student, top_k(target, 5), temperature=t, labels=labels)
        expected = value_and_gradient(kind, student, target, temperature=t, labels=labels)
        torch.testing.assert_close(found, expected)


@pytest.mark.parametrize("kind", SPARSE)
def test_sparse_targets_have_finite_gradients(kind: str, generator: torch.Generator) -> None:
    student, target, labels = random_case(generator, 4, 6)
    targets = top_k(target, 2)

    def loss(logits: Tensor) -> Tensor:
        return SOFT_LOSSES[kind](logits, targets, temperature=2.0)

    assert torch.autograd.gradcheck(loss, student.requires_grad_())
    sure = torch.eye(6)[:4] * 1e4
    for each in (top_k(torch.eye(6)[:4].log(), 1), top_k(torch.eye(6)[1:5].log(), 6), top_k(target.float(), 2)):
        found = value_and_gradient(kind, sure, each, temperature=1.0, labels=labels)
        assert all(part.isfinite().all() for part in found)


@pytest.mark.parametrize("kind", SPARSE)
def test_several_students_share_a_sparse_target(kind: str, generator: torch.Generator) -> None:
    students, target, labels = random_case(generator, 4, 3, 8)
    targets = top_k(target[:, :1], 3)
    found = SOFT_LOSSES[kind](students, targets, temperature=2.0, labels=labels[:, :1])
    for member in range(3):
        own = SOFT_LOSSES[kind](students[:, member], top_k(target[:, 0], 3), temperature=2.0, labels=labels[:, 0])
        torch.testing.assert_close(found[:, member], own)


def test_a_label_s_cross_entropy_is_brought_back_to_temperature_1(generator: torch.Generator) -> None:
    teacher = torch.randn(6, 5, generator=generator, dtype=torch.float64)
    labels = torch.tensor([0, 1, 2, 3, 4, 0])
    expected = torch.nn.functional.cross_entropy(teacher, labels, reduction="none")
    target = (teacher / 4).log_softmax(-1)
    torch.testing.assert_close(label_cross_entropy(target, labels, temperature=4.0), expected)
    torch.testing.assert_close(label_cross_entropy(top_k(target, 5), labels, temperature=4.0), expected)
    few = label_cross_entropy(top_k(teacher.log_softmax(-1), 2), labels, temperature=1.0)
    named = (teacher.topk(2).indices == labels[:, None]).any(-1)
    torch.testing.assert_close(few, torch.where(named, expected, INF))


def test_random_draws_are_no_distribution(generator: torch.Generator) -> None:
    targets = SparseTargets(torch.zeros(2, 1, dtype=torch.int64), torch.zeros(2, 1), None)
    with pytest.raises(ValueError, match="random draws"):
        SOFT_LOSSES["reverse_kl"](torch.zeros(2, 3), targets, temperature=1.0)


# --- what is refused


def check(kind: str, options: dict | None = None, **facts: object) -> None:
    facts = {"num_classes": 10, "is_sparse": False, "has_rest": True} | facts
    check_soft_loss(kind, options or {}, where="student.mine.loss", **facts)


@pytest.mark.parametrize("kind", SOFT_LOSSES)
def test_dense_targets_of_three_classes_are_everyone_s(kind: str) -> None:
    check(kind, num_classes=3)


@pytest.mark.parametrize("kind", ["zscore", "dkd"])
def test_two_classes_are_too_few(kind: str) -> None:
    with pytest.raises(StillroomError, match=rf"found kind '{kind}' with 2 classes; expected at least 3, for .*; use"):
        check(kind, num_classes=2)


@pytest.mark.parametrize("kind", sorted(SOFT_LOSSES.keys() - {"zscore", "dkd"}))
def test_two_classes_teach(kind: str, generator: torch.Generator) -> None:
    check(kind, num_classes=2)
    student, target, labels = random_case(generator, 6, 2)
    loss, gradient = value_and_gradient(kind, student, target, temperature=1.0, labels=labels)
    assert loss.isfinite().all()
    assert gradient.abs().max() > 1e-3


def test_the_reasons_hold(generator: torch.Generator) -> None:
    """With two classes the z-score knows the order only, and DKD's second part is 0."""
    student, target, labels = random_case(generator, 6, 2)
    surer = SOFT_LOSSES["zscore"](5 * student, (3 * target).log_softmax(-1), temperature=1.0)
    torch.testing.assert_close(SOFT_LOSSES["zscore"](student, target, temperature=1.0), surer)
    dkd = SOFT_LOSSES["dkd"](student, target, temperature=1.0, labels=labels, beta=8.0)
    torch.testing.assert_close(dkd, SOFT_LOSSES["kl"](student, target, temperature=1.0))


@pytest.mark.parametrize("kind", SOFT_LOSSES)
def test_who_takes_sparse_targets_and_draws(kind: str, generator: torch.Generator) -> None:
    student, target, _ = random_case(generator, 3, 5)
    if kind in SPARSE:
        check(kind, is_sparse=True)
    else:
        with pytest.raises(StillroomError, match=r"targets that name only some classes; .*use one of \['kl'"):
            check(kind, is_sparse=True)
        with pytest.raises(StillroomError, match=rf"loss '{kind}': found targets that name only some classes"):
            SOFT_LOSSES[kind](student, top_k(target, 2), temperature=1.0)
    if kind == "kl":
        check(kind, is_sparse=True, has_rest=False)
    else:
        with pytest.raises(StillroomError, match="random draws; expected 'kl'" if kind in SPARSE else "some classes"):
            check(kind, is_sparse=True, has_rest=False)


@pytest.mark.parametrize(
    ("kind", "options", "message"),
    [
        ("dkdd", {}, r"student.mine.loss: unknown kind 'dkdd'; .*did you mean .*'dkd'"),
        ("dkd", {"betta": 2.0}, r"loss: kind 'dkd': unknown option 'betta'; expected one of 2; did you mean 'beta'\?"),
        ("kl", {"beta": 2.0}, r"unknown option 'beta'; expected one of 0; known: none"),
        ("dkd", {"beta": "2"}, r"kind 'dkd': beta is '2'; expected a finite number from 0; change beta"),
        ("dkd", {"beta": True}, r"beta is True"),
        ("nkd", {"gamma": -1}, r"gamma is -1"),
        ("dist", {"gamma": math.nan}, r"gamma is nan"),
        ("jsd", {"beta": 0}, r"beta is 0; expected a number in \(0, 1\)"),
    ],
)
def test_wrong_options_are_named(kind: str, options: dict, message: str) -> None:
    with pytest.raises(StillroomError, match=message):
        check(kind, options)


@pytest.mark.parametrize("kind", SOFT_LOSSES)
def test_every_option_is_one_of_the_function_s(kind: str, generator: torch.Generator) -> None:
    student, target, labels = random_case(generator, 3, 5)
    base = SOFT_LOSSES[kind](student, target, temperature=1.0, labels=labels)
    for name in LIMITS[kind].options:
        check(kind, {name: 0.25})
        changed = SOFT_LOSSES[kind](student, target, temperature=1.0, labels=labels, **{name: 0.25})
        assert (changed - base).abs().max() > 1e-3
