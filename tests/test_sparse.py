"""Sparse targets lose what a slow float64 sum loses, and pull a student where the dense ones would."""

import itertools
import math

import pytest
import torch
from torch import Tensor
from torch.nn.functional import pad

from pipeline.errors import StillroomError
from pipeline.losses import LIMITS, conditional_alpha, distillation_loss, kl_divergence
from pipeline.sparse import SparseTargets, check_sparse

INF = math.inf
SIZES = sorted({(c, k) for c in (2, 3, 10, 1000) for k in (1, c // 2, c)})
SHAPES = [(4,), (2, 3)]
TEMPERATURES = [1.0, 4.0]


@pytest.fixture
def generator() -> torch.Generator:
    return torch.Generator().manual_seed(11)


def random_logits(generator: torch.Generator, *shape: int) -> Tensor:
    return 3 * torch.randn(*shape, generator=generator, dtype=torch.float64)


def top_k(log_probs: Tensor, k: int) -> SparseTargets:
    """Keep the k likeliest classes, the others in the bucket."""
    kept = log_probs.topk(k)
    rest = log_probs.scatter(-1, kept.indices, -INF).logsumexp(-1)
    return SparseTargets(kept.indices, kept.values, rest)


def case(
    generator: torch.Generator, shape: tuple[int, ...], k: int, temperature: float = 1.0
) -> tuple[Tensor, Tensor, SparseTargets]:
    """Student logits and dense log-probabilities `[..., C]`, and their top k."""
    student, dense = random_logits(generator, *shape), random_logits(generator, *shape).div(temperature).log_softmax(-1)
    return student, dense, top_k(dense, k)


def padded(targets: SparseTargets, count: int, value: int = 0) -> SparseTargets:
    """Add padding on a class."""
    ids = pad(targets.ids, (0, count), value=value)
    return SparseTargets(ids, pad(targets.log_probs, (0, count), value=-INF), targets.log_rest)


def loss_and_gradient(
    student: Tensor, targets: Tensor | SparseTargets, temperature: float = 1.0
) -> tuple[Tensor, Tensor]:
    """Return the loss per case and the gradient of its sum."""
    student = student.detach().requires_grad_()
    loss = kl_divergence(student, targets, temperature=temperature)
    return loss.detach(), torch.autograd.grad(loss.sum(), student)[0]


def assert_same(
    student: Tensor, found: Tensor | SparseTargets, expected: Tensor | SparseTargets, temperature: float = 1.0
) -> None:
    """Value and gradient of two targets are the same, and finite."""
    first, second = (loss_and_gradient(student, targets, temperature) for targets in (found, expected))
    torch.testing.assert_close(first, second)
    assert all(part.isfinite().all() for part in first)


def slow_kl(
    logits: list[float], ids: list[int], log_probs: list[float], log_rest: float | None, temperature: float
) -> float:
    """The formula as it stands, one class at a time, for one row."""
    scores = [math.exp(z / temperature) for z in logits]
    q = [score / sum(scores) for score in scores]
    named = {i: math.exp(log_p) for i, log_p in zip(ids, log_probs, strict=True) if log_p > -INF}
    total = sum(p * math.log(p / q[i]) for i, p in named.items())
    others = [share for i, share in enumerate(q) if i not in named]
    if log_rest is not None and log_rest > -INF and others:
        total += math.exp(log_rest) * (log_rest - math.log(sum(others)))
    return temperature**2 * total


# --- the law: value and gradient


@pytest.mark.parametrize("temperature", TEMPERATURES)
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize(("num_classes", "k"), SIZES)
@pytest.mark.parametrize("has_rest", [True, False])
def test_kl_divergence_is_the_slow_sum(
    generator: torch.Generator, num_classes: int, k: int, shape: tuple[int, ...], temperature: float, has_rest: bool
) -> None:
    student, _, targets = case(generator, (*shape, num_classes), k, temperature)
    if not has_rest:
        targets = SparseTargets(targets.ids, targets.log_probs.log_softmax(-1), None)
    found = kl_divergence(student, targets, temperature=temperature)
    assert found.shape == shape
    for index in itertools.product(*map(range, shape)):
        rest = None if targets.log_rest is None else targets.log_rest[index].item()
        row = student[index].tolist(), targets.ids[index].tolist(), targets.log_probs[index].tolist(), rest
        assert found[index].item() == pytest.approx(slow_kl(*row, temperature), rel=1e-9, abs=1e-12)


@pytest.mark.parametrize("temperature", TEMPERATURES)
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("num_classes", [2, 3, 10, 1000])
def test_all_classes_kept_is_the_dense_loss(
    generator: torch.Generator, num_classes: int, shape: tuple[int, ...], temperature: float
) -> None:
    student, dense, targets = case(generator, (*shape, num_classes), num_classes, temperature)
    assert_same(student, targets, dense, temperature)
    assert_same(student, SparseTargets(targets.ids, targets.log_probs, None), dense, temperature)


@pytest.mark.parametrize("temperature", TEMPERATURES)
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize(("num_classes", "k"), SIZES)
def test_the_gradient_is_that_of_the_dense_target_that_shares_the_rest_as_the_student_does(
    generator: torch.Generator, num_classes: int, k: int, shape: tuple[int, ...], temperature: float
) -> None:
    student, _, targets = case(generator, (*shape, num_classes), k, temperature)
    log_q = (student / temperature).log_softmax(-1)
    assert targets.log_rest is not None
    tail = log_q.scatter(-1, targets.ids, -INF).log_softmax(-1).nan_to_num(-INF, neginf=-INF)  # nan: nothing left out
    shared = (targets.log_rest[..., None] + tail).scatter(-1, targets.ids, targets.log_probs)
    assert_same(student, targets, shared, temperature)
    gradient = loss_and_gradient(student, targets, temperature)[1]
    torch.testing.assert_close(gradient, temperature * (log_q.exp() - shared.exp()))


@pytest.mark.parametrize("temperature", TEMPERATURES)
@pytest.mark.parametrize(("num_classes", "k"), SIZES)
def test_nothing_is_lost_when_student_and_teacher_agree_about_the_tail(
    generator: torch.Generator, num_classes: int, k: int, temperature: float
) -> None:
    student, dense, targets = case(generator, (4, num_classes), k, temperature)
    proportional = temperature * (dense + torch.randn(4, 1, generator=generator, dtype=torch.float64))
    student = proportional.scatter(-1, targets.ids, student.gather(-1, targets.ids))
    assert_same(student, targets, dense, temperature)


@pytest.mark.parametrize(("num_classes", "k"), [(3, 1), (10, 5), (1000, 500)])
def test_what_the_bucket_hides_is_the_divergence_within_the_tail(
    generator: torch.Generator, num_classes: int, k: int
) -> None:
    student, dense, targets = case(generator, (4, num_classes), k)
    tails = [rows.scatter(-1, targets.ids, -INF) for rows in (student, dense)]
    within = kl_divergence(tails[0], tails[1].log_softmax(-1), temperature=1.0)
    assert targets.log_rest is not None
    found = kl_divergence(student, targets, temperature=1.0) + targets.log_rest.exp() * within
    torch.testing.assert_close(found, kl_divergence(student, dense, temperature=1.0))


@pytest.mark.parametrize("temperature", TEMPERATURES)
@pytest.mark.parametrize("targets", ["bucket", "draws", "padding", "no rest"])
def test_gradcheck(generator: torch.Generator, targets: str, temperature: float) -> None:
    student, _, kept = case(generator, (2, 2, 5), 3, temperature)
    sparse = {
        "bucket": kept,
        "draws": SparseTargets(kept.ids, kept.log_probs.log_softmax(-1), None),
        "padding": padded(kept, 2),
        "no rest": SparseTargets(kept.ids, kept.log_probs.log_softmax(-1), torch.full((2, 2), -INF).double()),
    }[targets]
    assert torch.autograd.gradcheck(
        lambda logits: kl_divergence(logits, sparse, temperature=temperature), student.requires_grad_()
    )


# --- random draws


def counted(rows: list[tuple[int, ...]]) -> SparseTargets:
    """Turn draws into shares of classes, padded with class 0 to as many as there are draws."""
    width = len(rows[0])
    ids, log_probs = torch.zeros(len(rows), width, dtype=torch.long), torch.full((len(rows), width), -INF).double()
    for row, draws in enumerate(rows):
        for slot, drawn in enumerate(sorted(set(draws), reverse=True)):
            ids[row, slot], log_probs[row, slot] = drawn, math.log(draws.count(drawn) / width)
    return SparseTargets(ids, log_probs, None)


@pytest.mark.parametrize("temperature", TEMPERATURES)
@pytest.mark.parametrize(("num_classes", "number"), [(2, 1), (2, 3), (3, 2), (3, 3), (4, 4)])
def test_over_all_possible_draws_the_mean_gradient_is_the_dense_one(
    generator: torch.Generator, num_classes: int, number: int, temperature: float
) -> None:
    student, dense, _ = case(generator, (num_classes,), 1, temperature)
    rows = list(itertools.product(range(num_classes), repeat=number))
    chances = torch.stack([dense[list(draws)].sum().exp() for draws in rows])
    targets = counted(rows)
    check_sparse(targets, num_classes, "draws")
    values, gradients = loss_and_gradient(student.expand(len(rows), -1), targets, temperature)
    value, gradient = loss_and_gradient(student, dense, temperature)
    torch.testing.assert_close(chances @ gradients, gradient)
    lacking = chances @ torch.special.entr(targets.log_probs.exp()).sum(-1)  # the entropy that draws have
    entropy = torch.special.entr(dense.exp()).sum()
    torch.testing.assert_close(chances @ values, value + temperature**2 * (entropy - lacking))


def test_over_many_draws_the_mean_gradient_nears_the_dense_one(generator: torch.Generator) -> None:
    student, dense, _ = case(generator, (100,), 1, temperature=3.0)
    draws = torch.multinomial(dense.exp(), 3000 * 20, replacement=True, generator=generator).view(3000, 20)
    gradients = loss_and_gradient(student.expand(3000, -1), counted([tuple(row) for row in draws.tolist()]), 3.0)[1]
    expected = loss_and_gradient(student, dense, 3.0)[1]
    standard_error = 3.0 * (dense.exp() * (1 - dense.exp()) / draws.numel()).sqrt()
    assert ((gradients.mean(0) - expected).abs() / standard_error).max() < 4


# --- bugs known from elsewhere, one test each


def test_bug_top_k_without_a_rest_is_biased(generator: torch.Generator) -> None:
    _, dense, targets = case(generator, (6, 20), 3)
    student, mass = dense, targets.log_probs.exp().sum(-1, keepdim=True)
    p = torch.zeros_like(dense).scatter(-1, targets.ids, targets.log_probs.exp())
    without = loss_and_gradient(student, SparseTargets(targets.ids, targets.log_probs, None))[1]
    torch.testing.assert_close(without, mass * student.softmax(-1) - p)  # pushes a perfect student off
    assert without.abs().max() > 0.01
    assert loss_and_gradient(student, targets)[1].abs().max() < 1e-12
    with pytest.raises(StillroomError, match="log_rest"):  # so such targets do not pass for draws
        check_sparse(SparseTargets(targets.ids, targets.log_probs, None), 20, "targets")


@pytest.mark.parametrize("has_rest", [True, False])
def test_bug_the_student_is_renormalised_over_the_kept_classes(has_rest: bool) -> None:
    kept = torch.tensor([0.75, 0.25] if not has_rest else [0.6, 0.2]).double().log()
    rest = torch.tensor(0.2).double().log() if has_rest else None
    targets = SparseTargets(torch.tensor([0, 1]), kept, rest)
    student = torch.cat([kept, torch.full((8,), 6.0).double()])  # right proportions, nearly no mass
    loss, gradient = loss_and_gradient(student, targets)
    assert loss > 5
    assert (gradient[:2] < -0.1).all()
    assert (gradient[2:] > 0.05).all()


@pytest.mark.parametrize("gap", [20.0, 28.0, 90.0, 1000.0])  # 28: the student leaves 1e-12 to the others
def test_bug_one_minus_the_kept_sum_underflows(gap: float) -> None:
    student = torch.tensor([[0.0, -1.0, -gap, -gap - 1, -gap - 2]])
    targets = SparseTargets(torch.tensor([[0, 1]]), torch.tensor([[0.5, 0.3]]).log(), torch.tensor([0.2]).log())
    kept = student[:, :2].softmax(-1)
    tail = student[:, 2:].logsumexp(-1) - student.logsumexp(-1)
    expected = 0.5 * (0.5 / kept[0, 0]).log() + 0.3 * (0.3 / kept[0, 1]).log() + 0.2 * (math.log(0.2) - tail)
    loss, gradient = loss_and_gradient(student, targets)
    assert loss.dtype == torch.float32
    torch.testing.assert_close(loss, expected)
    shared = torch.cat([torch.tensor([[0.5, 0.3]]), 0.2 * student[:, 2:].softmax(-1)], -1)
    torch.testing.assert_close(gradient, student.softmax(-1) - shared)
    if gap > 20:
        assert (1 - student.softmax(-1)[:, :2].sum(-1)).item() <= 6e-8  # the sum knows nothing any more


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("what", ["padding", "zero counts", "no rest", "no rest to have", "rounded rest", "nothing"])
def test_bug_zero_times_log_zero_is_nan(what: str, masked: bool) -> None:
    student = torch.tensor([[1.0, 0.0, -1.0, -INF if masked else -2.0]])
    half, none = math.log(0.5), torch.tensor([-INF])
    targets, same = {
        "padding": (([1, 2, 3, 3], [half, half, -INF, -INF], none), [0, 0.5, 0.5, 0]),
        "zero counts": (([0, 1, 3], torch.tensor([3.0, 1.0, 0.0]).div(4).log().tolist(), None), [0.75, 0.25, 0, 0]),
        "no rest": (([0, 1], [half, half], none), [0.5, 0.5, 0, 0]),
        "no rest to have": (([0, 1, 2, 3], [half, half, -INF, -INF], none), [0.5, 0.5, 0, 0]),
        "rounded rest": (([3, 1, 2, 0], [-50.0, half, -50.0, half], torch.tensor([-16.0])), [0.5, 0.5, 0, 0]),
        "nothing": (([0, 0], [-INF, -INF], torch.zeros(1)), None),  # the bucket has it all
    }[what]
    if what == "rounded rest" and masked:
        student[0, 3] = -2.0  # a kept class that the student rules out does cost infinity
    ids, log_probs, rest = targets
    found = SparseTargets(torch.tensor([ids]), torch.tensor([log_probs]), rest)
    if same is None:
        loss, gradient = loss_and_gradient(student, found)
        assert loss.item() == pytest.approx(0, abs=1e-6)
        assert gradient.abs().max() < 1e-6
    else:
        assert_same(student, found, torch.tensor([same]).log())


@pytest.mark.parametrize("has_rest", [True, False])
def test_bug_temperature_squared_is_forgotten(generator: torch.Generator, has_rest: bool) -> None:
    student, _, targets = case(generator, (5, 10), 4)
    if not has_rest:
        targets = SparseTargets(targets.ids, targets.log_probs.log_softmax(-1), None)
    cool, warm = loss_and_gradient(student, targets), loss_and_gradient(4 * student, targets, temperature=4.0)
    torch.testing.assert_close(warm[0], 16 * cool[0])
    torch.testing.assert_close(warm[1], 4 * cool[1])


@pytest.mark.parametrize("temperature", TEMPERATURES)
@pytest.mark.parametrize(("num_classes", "k"), SIZES)
def test_bug_cross_entropy_is_called_a_divergence(
    generator: torch.Generator, num_classes: int, k: int, temperature: float
) -> None:
    student = random_logits(generator, 4, num_classes)
    targets = top_k((student / temperature).log_softmax(-1), k)
    loss, gradient = loss_and_gradient(student, targets, temperature)
    assert loss.abs().max() < 1e-12
    assert gradient.abs().max() < 1e-12


@pytest.mark.parametrize("has_rest", [True, False])
@pytest.mark.parametrize("place", ["a kept class", "a class left out"])
def test_bug_padding_counts_as_the_class_it_lies_on(generator: torch.Generator, place: str, has_rest: bool) -> None:
    student, _, targets = case(generator, (1, 10), 3)
    if not has_rest:
        targets = SparseTargets(targets.ids, targets.log_probs.log_softmax(-1), None)
    left_out = next(c for c in range(10) if c not in targets.ids)
    wide = padded(targets, 4, value=int(targets.ids[0, 0]) if place == "a kept class" else left_out)
    assert_same(student, wide, targets)
    assert torch.equal(wide.dense(10), targets.dense(10))
    assert torch.equal(wide.argmax(), targets.argmax())
    check_sparse(wide, 10, "targets")


@pytest.mark.parametrize("dtype", [torch.int32, torch.uint16])
def test_bug_narrow_ids_wrap_or_are_refused(generator: torch.Generator, dtype: torch.dtype) -> None:
    student = random_logits(generator, 2, 60_000)
    targets = top_k(random_logits(generator, 2, 60_000).log_softmax(-1), 50)
    assert (targets.ids > 2**15).any()
    narrow = SparseTargets(targets.ids.to(dtype), targets.log_probs, targets.log_rest)
    assert_same(student, narrow, targets)
    assert torch.equal(narrow.argmax(), targets.argmax())
    assert torch.equal(narrow.dense(60_000), targets.dense(60_000))
    assert torch.equal(narrow[1:].ids.long(), targets.ids[1:])
    check_sparse(narrow, 60_000, "targets")


def test_bug_the_mean_over_kept_classes_is_taken_for_the_sum() -> None:
    targets = SparseTargets(torch.tensor([0, 1]), torch.tensor([0.5, 0.25]).log(), torch.tensor(0.25).log())
    loss = kl_divergence(torch.zeros(8), targets, temperature=1.0)
    assert loss.item() == pytest.approx(0.5 * math.log(4) + 0.25 * math.log(2) + 0.25 * math.log(0.25 / 0.75))


def test_bug_gather_takes_the_first_rows_of_a_larger_batch(generator: torch.Generator) -> None:
    student, _, targets = case(generator, (4, 10), 3)
    with pytest.raises(RuntimeError, match="expand"):
        kl_divergence(student[:3], targets, temperature=1.0)
    with pytest.raises(RuntimeError, match="expand"):
        kl_divergence(student, targets[:3], temperature=1.0)


# --- around the loss


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_students_and_targets_are_summed_in_float32(generator: torch.Generator, dtype: torch.dtype) -> None:
    student, _, targets = case(generator, (4, 2000), 1000)
    assert targets.log_rest is not None
    half = SparseTargets(targets.ids, targets.log_probs.to(dtype), targets.log_rest.to(dtype))
    wide = SparseTargets(targets.ids, half.log_probs.double(), targets.log_rest.to(dtype).double())
    found = kl_divergence(student.to(dtype), half, temperature=1.0)
    assert found.dtype == torch.float32
    expected = kl_divergence(student.to(dtype).double(), wide, temperature=1.0)
    torch.testing.assert_close(found.double(), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("has_rest", [True, False])
def test_stacked_students_lose_what_each_loses_alone(generator: torch.Generator, has_rest: bool) -> None:
    _, _, targets = case(generator, (6, 10), 4)
    if not has_rest:
        targets = SparseTargets(targets.ids, targets.log_probs.log_softmax(-1), None)
    students, labels = random_logits(generator, 3, 6, 10), torch.tensor([0, 1, -1, 3, 4, 0])

    def loss(student: Tensor) -> Tensor:
        return distillation_loss(student, targets, labels, temperature=2.0, alpha=0.4)[0]

    expected = torch.stack([loss(student) for student in students])
    torch.testing.assert_close(torch.func.vmap(loss)(students), expected)
    torch.testing.assert_close(
        kl_divergence(students, targets, temperature=2.0),
        torch.stack([kl_divergence(student, targets, temperature=2.0) for student in students]),
    )


@pytest.mark.parametrize("kind", [kind for kind, limits in LIMITS.items() if limits.takes_sparse])
@pytest.mark.parametrize("alpha", [0.0, 0.3, 1.0, "conditional", "soft", "wsl"])
@pytest.mark.parametrize("mixes", [False, True])
def test_distillation_loss_of_all_classes_is_the_dense_one(
    generator: torch.Generator, kind: str, alpha: float | str, mixes: bool
) -> None:
    student, dense, targets = case(generator, (6, 5), 5, temperature=2.0)
    labels, partners = torch.tensor([0, 1, -1, 3, 4, 0]), torch.tensor([1, 2, 3, -1, 0, 1])
    mix = torch.tensor([1.0, 0.5, 0.5, 0.5, 0.2, 1.0])
    rows = (labels, partners, mix) if mixes else (labels,)
    found = distillation_loss(student, targets, *rows, kind=kind, temperature=2.0, alpha=alpha)
    expected = distillation_loss(student, dense, *rows, kind=kind, temperature=2.0, alpha=alpha)
    torch.testing.assert_close(found, expected)


@pytest.mark.parametrize("k", [1, 5, 10])
def test_conditional_alpha_asks_for_the_first_choice(generator: torch.Generator, k: int) -> None:
    _, dense, targets = case(generator, (200, 10), k)
    labels = torch.randint(-1, 10, (200,), generator=generator)
    masks = {"unmixed": torch.rand(200, generator=generator) > 0.5, "labelled": labels >= 0}
    found = conditional_alpha(targets, labels, **masks)
    assert torch.equal(found, conditional_alpha(dense, labels, **masks))
    assert 0 < found.sum() < 200


def test_dense_shares_the_rest_uniformly(generator: torch.Generator) -> None:
    targets = SparseTargets(
        torch.tensor([[2, 0], [1, 0]]), torch.tensor([[0.5, 0.3], [1.0, 0.0]]).log(), torch.tensor([0.2, 0.0]).log()
    )
    expected = torch.tensor([[0.3, 0.1, 0.5, 0.1], [0.0, 1.0, 0.0, 0.0]]).log()
    torch.testing.assert_close(targets.dense(4), expected)
    draws = SparseTargets(targets.ids[1:], targets.log_probs[1:], None)
    assert torch.equal(draws.dense(4, tail="uniform"), expected[1:])
    with pytest.raises(ValueError, match="tail is 'none'"):
        draws.dense(4, tail="none")  # type: ignore[arg-type]


@pytest.mark.parametrize(("num_classes", "k"), SIZES)
def test_dense_is_a_distribution_with_the_same_classes(generator: torch.Generator, num_classes: int, k: int) -> None:
    _, dense, targets = case(generator, (2, 3, num_classes), k)
    found = targets.dense(num_classes)
    assert found.shape == dense.shape
    assert found.is_contiguous()
    torch.testing.assert_close(found.exp().sum(-1), torch.ones(2, 3).double())
    assert torch.equal(found.gather(-1, targets.ids), targets.log_probs)
    assert torch.equal(targets.named(num_classes).sum(-1), torch.full((2, 3), k))
    assert torch.equal(targets.argmax(), dense.argmax(-1))


def test_rows_are_taken_from_all_parts(generator: torch.Generator) -> None:
    student, _, targets = case(generator, (5, 10), 3)
    rows = torch.tensor([3, 0])
    assert len(targets) == 5
    assert len(targets[rows]) == 2
    found = kl_divergence(student[rows], targets[rows].to("cpu"), temperature=1.0)
    torch.testing.assert_close(found, kl_divergence(student, targets, temperature=1.0)[rows])
    assert SparseTargets(targets.ids, targets.log_probs, None)[rows].to("cpu").log_rest is None


@pytest.mark.parametrize(("num_classes", "k"), SIZES)
def test_distributions_pass_the_check(generator: torch.Generator, num_classes: int, k: int) -> None:
    _, _, targets = case(generator, (2, 3, num_classes), k)
    check_sparse(targets, num_classes, "targets")
    check_sparse(padded(targets, 3), num_classes, "targets")
    check_sparse(SparseTargets(targets.ids, targets.log_probs.log_softmax(-1), None), num_classes, "targets")


@pytest.mark.parametrize(
    ("ids", "probs", "rest", "message"),
    [
        ([2, 5], [0.5, 0.5], None, r"^t: row \(1,\) names class 5; expected ids from 0 to 4; check that"),
        ([2, -1], [0.5, 0.5], None, r"row \(1,\) names class -1; expected ids from 0 to 4; .*these 5 classes$"),
        ([2, 7], [1.0, 0.0], None, r"row \(1,\) names class 7"),  # padding is read too
        ([3, 3], [0.5, 0.5], None, r"row \(1,\) names class 3 twice; expected each class once; add up the draws"),
        ([0, 1], [0.5, 0.4], None, r"the mass of row \(1,\) sums to 0.9; expected 1 within 0.001; give .*log_rest"),
        ([0, 1], [0.5, 0.4], 0.102, r"the mass of row \(1,\) sums to 1.002; "),
        ([0, 1, 2, 3, 4], [0.2, 0.2, 0.2, 0.2, 0.1], 0.1, r"sums to 0.9;"),  # no class is left to have the rest
        ([0, 1], [0.5, math.nan], None, r"the mass of row \(1,\) sums to nan; "),
        ([0, 1], [0.5, 0.5], math.nan, r"the mass of row \(1,\) sums to nan; "),
        ([0, 0], [0.0, 0.0], None, r"the mass of row \(1,\) sums to 0; "),
    ],
)
def test_faults_are_named(ids: list[int], probs: list[float], rest: float | None, message: str) -> None:
    fine = torch.zeros(len(probs)).index_fill(0, torch.tensor([0]), 1.0)
    targets = SparseTargets(
        torch.tensor([list(range(len(ids))), ids]),
        torch.stack([fine, torch.tensor(probs)]).log(),
        None if rest is None else torch.tensor([0.0, rest]).log(),
    )
    check_sparse(targets[:1], 5, "t")
    with pytest.raises(StillroomError, match=message):
        check_sparse(targets, 5, "t")
