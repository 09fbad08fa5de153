"""Every rule for alpha leaves unlabelled rows to the teachers, is what its formula says, and goes on from its state."""

import copy
import math
from dataclasses import replace

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from pipeline.errors import StillroomError
from pipeline.losses import (
    ALPHAS,
    Alpha,
    Hypergradient,
    Seen,
    conditional_alpha,
    cross_entropy,
    distillation_loss,
    kl_divergence,
    last_layer_hypergradient,
    make_alpha,
)
from pipeline.losses.rules import required
from pipeline.sparse import SparseTargets

WORDS: dict[str, dict] = {name: {"kind": name} for name in ALPHAS}
WORDS["fixed"] |= {"value": 0.3}
WORDS["scheduled"] |= {"start": 0.9, "end": 0.1}
WORDS["dwa"] |= {"every": 2}
SHARES = ["fixed", "conditional", "soft", "annealed", "scheduled", "hypergradient"]  # weights sum to one


@pytest.fixture
def generator() -> torch.Generator:
    return torch.Generator().manual_seed(13)


def batch(generator: torch.Generator, *shape: int, progress: float = 0.25, temperature: float = 1.0) -> Seen:
    """A batch of random losses' values, some rows mixed, some without a label."""
    student, teacher = 2 * torch.randn(2, *shape, generator=generator, dtype=torch.float64)
    labels = torch.randint(-1, shape[-1], shape[:-1], generator=generator)
    unmixed = torch.rand(shape[:-1], generator=generator) > 0.3
    target = (teacher / temperature).log_softmax(-1)
    ce, soft = cross_entropy(student, labels), kl_divergence(student, target, temperature=temperature)
    return Seen(target, temperature, labels, unmixed, labels >= 0, ce, soft, progress)


@pytest.mark.parametrize("name", ALPHAS)
@pytest.mark.parametrize("shape", [(200, 5), (20, 10, 5)])
def test_rows_without_a_label_are_the_teachers(name: str, shape: tuple[int, ...], generator: torch.Generator) -> None:
    seen, rule = batch(generator, *shape), make_alpha(WORDS[name], "here")
    for _ in range(6):
        ce, soft = rule(seen)
        assert ce.shape == soft.shape == shape[:-1]
        assert (ce[~seen.labelled] == 0).all()
        assert (soft[~seen.labelled] == 1).all()
        assert (ce >= 0).all()
        assert (soft >= 0).all()
        assert ce.isfinite().all()
        assert soft.isfinite().all()
        if name in SHARES:
            torch.testing.assert_close(ce + soft, torch.ones_like(ce))
    assert (ce[seen.labelled] > 0).any()


@pytest.mark.parametrize("name", ALPHAS)
def test_no_rule_pulls_the_student_or_the_target_through_its_weights(name: str, generator: torch.Generator) -> None:
    seen = batch(generator, 10, 5)
    leaves = [x.clone().requires_grad_() for x in (seen.targets, seen.ce, seen.soft)]
    ce, soft = make_alpha(WORDS[name], "here")(replace(seen, targets=leaves[0], ce=leaves[1], soft=leaves[2]))
    total = (ce + 2 * soft).sum()
    if total.requires_grad:  # uncertainty's weights have its own parameters' gradient
        assert torch.autograd.grad(total, leaves, allow_unused=True) == (None, None, None)


@pytest.mark.parametrize("name", ALPHAS)
def test_several_students_share_a_target(name: str, generator: torch.Generator) -> None:
    seen = batch(generator, 20, 3, 5)
    one = {"targets": seen.targets[:, :1], "labels": seen.labels[:, :1]}
    masks = {"unmixed": seen.unmixed[:, :1], "labelled": seen.labelled[:, :1]}
    every = {key: value.expand(20, 3, *value.shape[2:]) for key, value in (one | masks).items()}
    rules = [make_alpha(WORDS[name], "here") for _ in range(2)]
    for _ in range(5):
        found, expected = (rule(replace(seen, **own)) for rule, own in zip(rules, (one | masks, every), strict=True))
        for weights, wanted in zip(found, expected, strict=True):
            torch.testing.assert_close(weights.expand(20, 3), wanted)


@pytest.mark.parametrize("name", ALPHAS)
def test_sparse_targets_of_all_classes_are_the_dense_ones(name: str, generator: torch.Generator) -> None:
    seen = batch(generator, 50, 5, temperature=2.0)
    kept = seen.targets.topk(5)
    sparse = SparseTargets(kept.indices, kept.values, torch.full((50,), -math.inf, dtype=torch.float64))
    found, expected = (make_alpha(WORDS[name], "here")(replace(seen, targets=each)) for each in (sparse, seen.targets))
    torch.testing.assert_close(found, expected)


@pytest.mark.parametrize("name", ALPHAS)
def test_a_rule_goes_on_from_its_state_bit_for_bit(name: str, generator: torch.Generator) -> None:
    seen = [batch(generator, 20, 5, progress=step / 12) for step in range(12)]
    whole, first, second = (make_alpha(WORDS[name], "here") for _ in range(3))
    expected = [learn(whole, each, step) for step, each in enumerate(seen)]
    for step, each in enumerate(seen[:5]):
        learn(first, each, step)
    second.load_state_dict(copy.deepcopy(first.state_dict()))
    for step, each in enumerate(seen[5:], 5):
        found = learn(second, each, step)
        assert all(torch.equal(a, b) for a, b in zip(found, expected[step], strict=True))
    if name in ("uncertainty", "dwa", "hypergradient"):
        labelled = [ce[each.labelled][0] for (ce, _), each in zip(expected, seen, strict=True)]
        assert len({value.item() for value in labelled}) > 3  # it has learnt something


def learn(rule: Alpha, seen: Seen, step: int) -> tuple[Tensor, Tensor]:
    """Show a batch, and let the rule learn from it in whichever way it does."""
    ce, soft = rule(seen)
    if isinstance(rule, Hypergradient):
        draws = torch.Generator().manual_seed(step)
        rule.observe(*(torch.randn(7, width, generator=draws) for width in (4, 5, 5, 4, 5)))
    if own := list(rule.parameters()):
        term = rule.term()
        assert term is not None
        loss = (ce * seen.ce.detach() + soft * seen.soft.detach() + term).mean()
        for parameter, gradient in zip(own, torch.autograd.grad(loss, own), strict=True):
            parameter.data -= 0.1 * gradient
    return ce.detach(), soft.detach()


# --- each its formula


def alpha_of(words: float | str | dict, seen: Seen) -> Tensor:
    return make_alpha(words, "here")(seen)[0]


def test_conditional_is_the_plain_function(generator: torch.Generator) -> None:
    seen = batch(generator, 50, 5)
    expected = conditional_alpha(seen.targets, seen.labels, unmixed=seen.unmixed, labelled=seen.labelled)
    assert torch.equal(alpha_of("conditional", seen), expected)
    wrong = seen.targets.argmax(-1) != seen.labels
    assert torch.equal(expected, (wrong & seen.labelled & seen.unmixed).double())


def test_soft_is_what_the_target_denies_the_label(generator: torch.Generator) -> None:
    seen = batch(generator, 50, 5)
    for alpha, row, y, is_judged in zip(alpha_of("soft", seen), seen.targets, seen.labels, seen.judged, strict=True):
        expected = 1 - math.exp(row[y]) if is_judged else 0.0
        assert alpha.item() == pytest.approx(expected)
    kept = seen.targets.topk(2)
    sparse = SparseTargets(kept.indices, kept.values, (1 - kept.values.exp().sum(-1)).log())
    found = alpha_of("soft", replace(seen, targets=sparse))
    named = (kept.indices == seen.labels[:, None]).any(-1)
    torch.testing.assert_close(found, torch.where(named, alpha_of("soft", seen), seen.judged.double()))


def test_annealed_and_scheduled_follow_the_progress(generator: torch.Generator) -> None:
    words = {"kind": "scheduled", "start": 0.8, "end": 0.2}
    for progress in (0.0, 0.25, 0.5, 0.9):
        seen = batch(generator, 20, 5, progress=progress)
        cosine = 0.5 + 0.3 * math.cos(math.pi * progress)
        for each, expected in (
            ("annealed", progress),
            (words, 0.8 - 0.6 * progress),
            (words | {"shape": "cosine"}, cosine),
        ):
            torch.testing.assert_close(alpha_of(each, seen), expected * seen.labelled.double())


@pytest.mark.parametrize("temperature", [1.0, 2.0])
def test_wsl_is_the_soft_loss_wsl_at_the_published_weights(temperature: float, generator: torch.Generator) -> None:
    student, teacher = 2 * torch.randn(2, 20, 5, generator=generator, dtype=torch.float64)
    labels = torch.randint(-1, 5, (20,), generator=generator)
    target = (teacher / temperature).log_softmax(-1)
    found, _ = distillation_loss(student, target, labels, kind="kl", temperature=temperature, alpha="wsl")
    _, parts = distillation_loss(student, target, labels, kind="wsl", temperature=temperature, alpha=0.5)
    expected = torch.where(labels >= 0, parts["ce"] + 2.5 * parts["wsl"], parts["wsl"])
    torch.testing.assert_close(found, expected)


def test_uncertainty_settles_where_each_loss_weighs_one(generator: torch.Generator) -> None:
    rule, seen = make_alpha({"kind": "uncertainty", "lr": 0.02}, "here"), batch(generator, 400, 5)
    assert rule.lr == 0.02
    seen = replace(seen, ce=torch.full((400,), 3.0), soft=torch.full((400,), 0.5))
    optimizer = torch.optim.Adam(rule.parameters(), rule.lr)
    for _ in range(400):
        ce, soft = rule(seen)
        term = rule.term()
        assert term is not None
        optimizer.zero_grad()
        (ce * seen.ce + soft * seen.soft + term).mean().backward()
        optimizer.step()
    ce, soft = (weights[seen.labelled][0].item() for weights in rule(seen))
    assert ce == pytest.approx(1 / 3, rel=0.02)  # s = log of the loss, though a part of the rows has no label
    assert soft == pytest.approx(2, rel=0.02)


def test_uncertainty_stays_within_its_bounds_and_can_come_back(generator: torch.Generator) -> None:
    rule, seen = make_alpha("uncertainty", "here"), batch(generator, 20, 5)
    with torch.no_grad():
        next(rule.parameters()).copy_(torch.tensor([9.0, -9.0]))
    ce, soft = (weights[seen.labelled][0] for weights in rule(seen))
    torch.testing.assert_close(torch.stack([ce, soft]), torch.tensor([math.exp(-2), math.exp(2)]))
    assert all(
        (torch.autograd.grad(weight, list(rule.parameters()), retain_graph=True)[0] != 0).any() for weight in (ce, soft)
    )


def test_dwa_is_the_softmax_of_how_much_is_left(generator: torch.Generator) -> None:
    rule = make_alpha({"kind": "dwa", "every": 3}, "here")
    seen = [batch(generator, 20, 5) for _ in range(12)]
    means = []  # of each span: CE, soft, on labelled rows
    for step in range(0, 12, 3):
        rows = [
            torch.cat([getattr(each, name)[each.labelled] for each in seen[step : step + 3]]) for name in ("ce", "soft")
        ]
        means.append([values.mean().item() for values in rows])
    for step, each in enumerate(seen):
        found = [weights[each.labelled][0].item() for weights in rule(each)]
        done = step // 3
        ratios = [1.0, 1.0] if done < 2 else [a / b for a, b in zip(means[done - 1], means[done - 2], strict=True)]
        scores = [math.exp(ratio / 2) for ratio in ratios]
        assert found == pytest.approx([2 * score / sum(scores) for score in scores])
    rule.eval()
    before = copy.deepcopy(rule.state_dict())
    rule(seen[0])
    assert all(torch.equal(value, before[name]) for name, value in rule.state_dict().items())


# --- the hypergradient


def last_layer(generator: torch.Generator) -> dict[str, Tensor]:
    """Features with a column of ones, labels, a target, and a layer."""

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    ones = torch.ones(6, 1, dtype=torch.float64)
    return {
        "h_train": torch.cat([normal(6, 4), ones], 1),
        "h_val": torch.cat([normal(6, 4), ones], 1),
        "labels": torch.tensor([0, 1, 2, 0, 1, 2]),
        "val_labels": torch.tensor([2, 1, 0, 0, 0, 1]),
        "target": normal(6, 3).log_softmax(-1),
        "layer": normal(3, 5),
    }


def errors(case: dict[str, Tensor], temperature: float) -> tuple[Tensor, Tensor, Tensor]:
    """Each case's derivative by its logits: of CE, of the soft loss, of the held-out CE."""
    train, held_out = (case[name] @ case["layer"].T for name in ("h_train", "h_val"))
    ce = train.softmax(-1) - functional.one_hot(case["labels"], 3)
    kd = temperature * ((train / temperature).softmax(-1) - case["target"].exp())
    return ce, kd, held_out.softmax(-1) - functional.one_hot(case["val_labels"], 3)


def test_the_hypergradient_is_autograd_s_through_a_step_of_the_last_layer(generator: torch.Generator) -> None:
    case, step = last_layer(generator), 1e-6
    rule = make_alpha({"kind": "hypergradient", "start": 0.3}, "here")
    assert isinstance(rule, Hypergradient)
    a = rule.logit.clone().requires_grad_()
    layer = case["layer"].clone().requires_grad_()
    train = case["h_train"] @ layer.T
    loss, _ = distillation_loss(train, case["target"], case["labels"], temperature=2.0, alpha=0.0)
    mixed = a.sigmoid() * cross_entropy(train, case["labels"]) + (1 - a.sigmoid()) * loss
    gradient = torch.autograd.grad(mixed.mean(), layer, create_graph=True)[0]
    held_out = cross_entropy(case["h_val"] @ (layer - step * gradient).T, case["val_labels"]).mean()
    expected = torch.autograd.grad(held_out, a)[0] / step
    ce, kd, val = errors(case, 2.0)
    found = rule.observe(case["h_train"], ce, kd, case["h_val"], val)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=0)
    assert found.abs() > 1e-3
    assert (rule.logit - a.detach()).item() == pytest.approx(-rule.lr * math.copysign(1, expected))


def test_the_closed_form_is_the_product_of_the_mean_gradients(generator: torch.Generator) -> None:
    case = last_layer(generator)
    ce, kd, val = errors(case, 1.0)
    train = sum(torch.outer(e, h) for e, h in zip(ce - kd, case["h_train"], strict=True)) / 6
    held_out = sum(torch.outer(e, h) for e, h in zip(val, case["h_val"], strict=True)) / 6
    found = last_layer_hypergradient(case["h_train"], ce - kd, case["h_val"], val)
    assert found.item() == pytest.approx(-(train * held_out).sum().item())


@pytest.mark.parametrize("labels_are_right", [True, False])
def test_alpha_goes_where_held_out_rows_gain(labels_are_right: bool, generator: torch.Generator) -> None:
    case = last_layer(generator)
    truth, lie = torch.tensor([0, 1, 2, 0, 1, 2]), torch.tensor([1, 2, 0, 1, 2, 0])
    case["labels"] = truth if labels_are_right else lie
    case["target"] = (10.0 * functional.one_hot(lie if labels_are_right else truth, 3)).double().log_softmax(-1)
    case["h_val"], case["val_labels"] = case["h_train"], truth
    rule = make_alpha("hypergradient", "here")
    assert isinstance(rule, Hypergradient)
    ce, kd, val = errors(case, 1.0)
    for _ in range(200):
        rule.observe(case["h_train"], ce, kd, case["h_val"], val)
    alpha = alpha_value = rule.logit.sigmoid().item()
    assert alpha > 0.95 if labels_are_right else alpha < 0.05
    assert 0.01 < alpha_value < 0.99  # and it can come back
    for _ in range(3):
        rule.observe(*(torch.zeros_like(x) for x in (case["h_train"], ce, kd, case["h_val"], val)))
    assert rule.logit.isfinite()


# --- recipe words


def test_words_make_rules() -> None:
    for name, words in WORDS.items():
        rule = make_alpha(words, "here")
        assert type(rule) is ALPHAS[name]
        assert not [option for option in required(ALPHAS[name]) if option not in words]
    assert make_alpha(0.4, "here").value == 0.4
    assert make_alpha(1, "here").value == 1
    scheduled = make_alpha({"kind": "scheduled", "start": 0.5, "end": 1.0, "shape": "cosine"}, "here")
    assert (scheduled.start, scheduled.end, scheduled.shape) == (0.5, 1.0, "cosine")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (1.5, r"student.mine: alpha is 1.5; expected a number in \[0, 1\] or one of \['annealed'.*; 1 is labels only"),
        (math.nan, r"alpha is nan; expected a number in \[0, 1\]"),
        (True, r"alpha is True; expected a number"),
        (None, r"alpha is None; expected a number"),
        ("conditonal", r"unknown alpha 'conditonal'; .*did you mean 'conditional'\?"),
        ({"value": 0.5}, r"alpha is \{'value': 0.5\}; expected a key 'kind'"),
        ("scheduled", r"alpha 'scheduled' has no start; expected a number in \[0, 1\]; write alpha = \{ kind = \"sch"),
        ("fixed", r"alpha 'fixed' has no value"),
        ({"kind": "wsl", "wieght": 2}, r"alpha 'wsl': unknown option 'wieght'; .*did you mean 'weight'\?"),
        ({"kind": "wsl", "weight": "2"}, r"alpha 'wsl': weight is '2'; expected a finite number from 0; change weight"),
        ({"kind": "dwa", "every": 1.5}, r"every is 1.5; expected a whole number from 1"),
        (
            {"kind": "scheduled", "start": 0, "end": 1, "shape": "sine"},
            r"shape is 'sine'; expected one of \['linear'",
        ),
        ({"kind": "uncertainty", "lr": 0}, r"lr is 0; expected a finite number above 0"),
    ],
)
def test_wrong_words_are_named(words: object, message: str) -> None:
    with pytest.raises(StillroomError, match=message):
        make_alpha(words, "student.mine")  # type: ignore[arg-type]


def test_a_rule_that_follows_the_training_is_given_with_the_progress(generator: torch.Generator) -> None:
    student, teacher = 2 * torch.randn(2, 6, 5, generator=generator, dtype=torch.float64)
    rows = (student, teacher.log_softmax(-1), torch.tensor([0, 1, -1, 3, 4, 0]))
    for name, words in WORDS.items():
        if ALPHAS[name].follows_training:
            with pytest.raises(StillroomError, match=r"which follows the training; .* make it once with make_alpha"):
                distillation_loss(*rows, temperature=1.0, alpha=words)
    rule = make_alpha("annealed", "here")
    found, _ = distillation_loss(*rows, temperature=1.0, alpha=rule, progress=0.75)
    expected, parts = distillation_loss(*rows, temperature=1.0, alpha=0.75)
    torch.testing.assert_close(found, expected)
    found, _ = distillation_loss(*rows, temperature=1.0, alpha=make_alpha("uncertainty", "here"))
    torch.testing.assert_close(found, parts["ce"] + parts["kl"])  # s = 0 at first
    rule = make_alpha("uncertainty", "here")
    with torch.no_grad():
        next(rule.parameters()).copy_(torch.tensor([0.5, 1.0]))
    found, _ = distillation_loss(*rows, temperature=1.0, alpha=rule)
    ce, soft, term = math.exp(-0.5) * parts["ce"], math.exp(-1.0) * parts["kl"], 1.5 * 5 / 6
    torch.testing.assert_close(found, torch.where(rows[2] >= 0, ce + soft, parts["kl"]) + term, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("kind", ["kl", "reverse_kl", "jsd", "wsl"])
@pytest.mark.parametrize("alpha", [0.0, 0.3, 1.0, "conditional", "soft", "wsl"])
@pytest.mark.parametrize("mixes", [False, True])
def test_the_loss_of_sparse_targets_of_all_classes_is_the_dense_one(
    kind: str, alpha: float | str, mixes: bool, generator: torch.Generator
) -> None:
    student, teacher = 2 * torch.randn(2, 6, 5, generator=generator, dtype=torch.float64)
    dense = (teacher / 2).log_softmax(-1)
    kept = dense.topk(5)
    sparse = SparseTargets(kept.indices, kept.values, torch.full((6,), -math.inf, dtype=torch.float64))
    labels, partners = torch.tensor([0, 1, -1, 3, 4, 0]), torch.tensor([1, 2, 3, -1, 0, 1])
    mix = torch.tensor([1.0, 0.5, 0.5, 0.5, 0.2, 1.0])
    rows = (labels, partners, mix) if mixes else (labels,)
    found, expected = (
        distillation_loss(student, each, *rows, kind=kind, temperature=2.0, alpha=alpha) for each in (sparse, dense)
    )
    torch.testing.assert_close(found, expected)
