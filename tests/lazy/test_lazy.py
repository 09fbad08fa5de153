"""Laws over the whole of LAZY: what a student's loss on weighed teachers is, and that killed runs go on bit for bit."""

import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from students import CLASSES, SHAPE, VARIANTS, batch_of, begun, student, teachers, trained
from torch import nn
from toys import Killed

from pipeline.errors import StillroomError
from pipeline.lazy import LAZY, LazyLoss
from pipeline.lazy.base import mixed
from pipeline.loader import TeacherLoader
from pipeline.losses import cross_entropy, distillation_loss, kl_divergence
from pipeline.models import build_model
from pipeline.objective import Objective
from pipeline.train import Schedule, fit, predict, seeded

over_all = pytest.mark.parametrize(("name", "options"), VARIANTS)
LABELS = torch.tensor([0, 1, 2, 3, 4, -1, 2, -1])


@over_all
@pytest.mark.parametrize("alpha", [0.0, 0.4, "conditional"])
def test_the_loss_is_finite_and_teaches_the_student_and_itself_but_no_teacher(name, options, alpha):
    model, logits = student(), teachers(3, 8, CLASSES).requires_grad_()
    loss = begun(name, options, model, 3, alpha=alpha)
    own = [parameter.detach().clone() for parameter in loss.weigher.parameters()]
    batches = [batch_of(logits, LABELS, seed=seed) for seed in range(4)]
    losses = trained(loss, model, batches)
    assert all(cases.shape == (8,) and cases.isfinite().all() for cases in losses)
    assert all(parameter.grad is not None and parameter.grad.abs().sum() > 0 for parameter in model.parameters())
    assert logits.grad is None
    moved = [not torch.equal(a, b) for a, b in zip(own, loss.weigher.parameters(), strict=True)]
    assert all(moved)
    assert bool(moved) == (name in ("amtml", "adversarial", "meta_online"))
    assert sum(loss.mean_weights) == pytest.approx(1, abs=1e-5)


@over_all
def test_every_rows_weights_are_on_the_simplex_and_the_kl_is_to_their_mixture(name, options, monkeypatch):
    """So the teachers together weigh as much against labels as an offline target does."""
    model, seen = student(), []
    loss = begun(name, options, model, 3)
    weigh = type(loss.weigher).forward
    monkeypatch.setattr(type(loss.weigher), "forward", lambda self, rows: seen.append(weigh(self, rows)) or seen[-1])
    batches = [batch_of(teachers(3, 8, CLASSES, seed=seed), LABELS, seed=seed) for seed in range(3)]
    for batch in batches:
        model.train()
        logits = model(batch.inputs)
        _, parts = loss(logits, batch)
        weights = seen[-1].detach().exp().double()
        assert weights.shape == (8, 3)
        assert weights.min() >= 0
        torch.testing.assert_close(weights.sum(-1), torch.ones(8, dtype=torch.float64), atol=1e-5, rtol=0)
        mixture = torch.einsum("bt,tbc->bc", weights, (batch.teacher_logits.double() / 2).softmax(-1))
        expected = kl_divergence(logits.double(), mixture.log(), temperature=2.0)
        torch.testing.assert_close(parts["kl"].double(), expected, atol=1e-5, rtol=1e-5)
    weights = torch.cat(seen).detach().exp().mean(0)
    torch.testing.assert_close(torch.tensor(loss.mean_weights), weights, atol=1e-6, rtol=0, check_dtype=False)


@over_all
@pytest.mark.parametrize("copies", [1, 3])
@pytest.mark.parametrize("alpha", [0.0, "conditional"])
def test_one_teacher_or_its_copies_is_plain_distillation_from_it(name, options, copies, alpha):
    model, one = student(), teachers(1, 8, CLASSES)
    batch = batch_of(one.repeat(copies, 1, 1), LABELS)
    loss = begun(name, options, model, copies, alpha=alpha)
    model.train()
    logits = model(batch.inputs)
    found, parts = loss(logits, batch)
    expected, plain = distillation_loss(logits, (one[0] / 2).log_softmax(-1), LABELS, temperature=2.0, alpha=alpha)
    torch.testing.assert_close(parts["kl"], plain["kl"], atol=2e-6, rtol=1e-5)
    if name != "adversarial":
        torch.testing.assert_close(found, expected, atol=2e-6, rtol=1e-5)


@pytest.mark.parametrize(("name", "options"), [each for each in VARIANTS if each[0] != "meta_online"])
def test_permuting_the_teachers_permutes_their_weights(name, options):
    """All along a training, whatever is learned on the way (meta_online has columns of its own for each: see there)."""
    order, models = torch.tensor([2, 0, 1]), [student(), student()]
    batches = [(teachers(3, 8, CLASSES, seed=seed), seed) for seed in range(5)]
    one, other = (begun(name, options, model, 3) for model in models)
    trained(one, models[0], [batch_of(z, LABELS, seed=seed) for z, seed in batches])
    trained(other, models[1], [batch_of(z[order], LABELS, seed=seed) for z, seed in batches])
    # a discriminator that names teachers has drawn outputs of its own for each of them: there only the weights agree
    tolerance = 1e-4
    assert other.mean_weights == pytest.approx([one.mean_weights[k] for k in order], abs=tolerance)
    if not options.get("identity"):
        for a, b in zip(models[0].parameters(), models[1].parameters(), strict=True):
            torch.testing.assert_close(a, b, atol=1e-4, rtol=1e-3)


@over_all
def test_the_same_training_twice_ends_with_the_same_bits_and_draws_nothing(name, options):
    before = torch.get_rng_state()
    ends = []
    for _ in range(2):
        model = student()
        loss = begun(name, options, model, 3)
        trained(loss, model, [batch_of(teachers(3, 8, CLASSES, seed=seed), LABELS, seed=seed) for seed in range(3)])
        ends.append([*model.state_dict().values(), *loss.weigher.state_dict().values()])
    assert all(torch.equal(a, b) for a, b in zip(*ends, strict=True))
    assert torch.equal(torch.get_rng_state(), before)


@over_all
@pytest.mark.parametrize("temperature", [0.5, 4.0])
def test_extreme_logits_stay_finite(name, options, temperature):
    logits = torch.zeros(3, 8, CLASSES)
    logits[0, :, 0], logits[1, :, 1:], logits[2, ::2, 3] = -60000.0, -60000.0, 300.0
    model = student()
    with torch.no_grad():
        model.classifier.weight.mul_(1000)
    loss = begun(name, options, model, 3, temperature=temperature, alpha="conditional")
    for cases in trained(loss, model, [batch_of(logits, LABELS)] * 3):
        assert cases.isfinite().all()
    assert all(p.isfinite().all() for p in (*model.parameters(), *loss.weigher.parameters()))


# -- in a real run ----------------------------------------------------------------------------------------------------


SCHEDULE = Schedule(steps=9, evaluate_every=4, lr=0.01)


def run(stores, dataset, name, options, **saved: Any):
    """A short training from two teachers' stores: the student's weights, the loss's state, the history."""
    shape, num_classes = dataset.shape, stores.teachers[0].num_classes
    build = {"num_classes": num_classes, "in_shape": shape, "width": 8, "depth": 1, "dropout": 0.3}
    model = seeded(lambda: build_model("mlp", **build), 0)
    loader = TeacherLoader(stores.teachers, dataset, batch_size=13, seed=3)
    settings = {"labelled": 10, "seed": 5, "steps": SCHEDULE.steps}
    objective = Objective(model, steps=SCHEDULE.steps, temperature=2.0, alpha="conditional")
    loss = LazyLoss(LAZY[name](**options), model, objective, num_teachers=2, num_classes=num_classes, **settings)
    held_out = [loader.replayer.batch("calibration", 0, np.arange(8))]

    def evaluate(model: nn.Module) -> dict[str, float]:
        return {"nll": cross_entropy(predict(model, iter(held_out)), held_out[0].labels).mean().item()}

    fitted = fit(
        model, loader, loss, evaluate=evaluate, schedule=SCHEDULE, seed=5, where="student.x", companion=loss, **saved
    )
    return model.state_dict(), loss.state_dict(), fitted.history


def equal(one: Any, other: Any) -> bool:
    """Whether two nested states are the same, to the bit."""
    if isinstance(one, torch.Tensor):
        return torch.equal(one, other)
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(equal(one[key], other[key]) for key in one)
    if isinstance(one, list | tuple):
        return len(one) == len(other) and all(map(equal, one, other))
    return one == other


@over_all
def test_killed_at_any_step_and_resumed_it_ends_with_the_same_bits(stores, dataset, tmp_path, name, options):
    whole = run(stores, dataset, name, options)
    for step in (2, 4, 7):
        saved = {"checkpoint": tmp_path / f"{step}.pt", "checkpoint_seconds": 0.0}

        def kill(now, step=step):
            if now == step:
                raise Killed

        with pytest.raises(Killed):
            run(stores, dataset, name, options, on_step=kill, **saved)
        torch.rand(3)  # the generator is anywhere when a new process starts
        steps = []
        again = run(stores, dataset, name, options, on_step=steps.append, **saved)
        assert steps == list(range(step + 1, 10))
        assert equal(again, whole)


def test_a_checkpoint_of_another_loss_is_told(stores, dataset, tmp_path):
    path = tmp_path / "checkpoint.pt"
    run(stores, dataset, "amtml", {"dims": 4}, checkpoint=path)
    for name, options in (("amtml", {"dims": 5}), ("adversarial", {})):
        with pytest.raises(StillroomError, match=r"checkpoint.pt: found no usable checkpoint \(.+\); expected one of"):
            run(stores, dataset, name, options, checkpoint=path)


# -- what is refused, and what is left alone --------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("aekd", {"cap": 0}, r"fusion 'aekd': cap is 0; expected a finite number above 0; change cap"),
        ("aekd", {"cap": 1.5}, r"fusion 'aekd': cap is 1.5; expected at most 1; lower it"),
        ("amtml", {"dims": 0}, r"fusion 'amtml': dims is 0; expected a whole number from 1; change dims"),
        ("amtml", {"dims": 2.0}, r"fusion 'amtml': dims is 2.0; expected a whole number"),
        ("adversarial", {"weight": math.inf}, r"fusion 'adversarial': weight is inf; expected a finite number above 0"),
        ("adversarial", {"identity": 1}, r"fusion 'adversarial': identity is 1; expected true or false; change"),
        ("meta_online", {"every": 0}, r"fusion 'meta_online': every is 0; expected a whole number from 1"),
        ("meta_online", {"buffer": "x"}, r"fusion 'meta_online': buffer is 'x'; expected a whole number from 1"),
        ("meta_online", {"lr": -1}, r"fusion 'meta_online': lr is -1; expected a finite number above 0"),
        ("curriculum", {"tau": 0}, r"fusion 'curriculum': tau is 0; expected a finite number above 0"),
        ("curriculum", {"easy_first": "no"}, r"fusion 'curriculum': easy_first is 'no'; expected true or false"),
    ],
)
def test_wrong_options_are_named_at_once(name, options, message):
    with pytest.raises(StillroomError, match=message):
        LAZY[name](**options)


def test_meta_online_without_a_label_is_refused_before_training():
    with pytest.raises(
        StillroomError, match=r"fusion 'meta_online': found no train row that shows its label on a view"
    ):
        begun("meta_online", {}, student(), 2, labelled=0)


def test_a_student_without_a_linear_classifier_is_refused_by_those_who_read_features():
    convolutional = nn.Sequential(nn.Conv2d(1, CLASSES, 4), nn.Flatten())
    begun("aekd", {}, convolutional, 2)
    with pytest.raises(StillroomError, match=r"fusion 'amtml': Sequential has no nn.Linear"):
        begun("amtml", {}, convolutional, 2)
    other = nn.Sequential(nn.Flatten(), nn.Linear(16, 7), nn.Linear(7, 7), nn.Conv1d(1, 1, 1))
    with pytest.raises(
        StillroomError, match=r"last nn.Linear gives 7 numbers; expected its 5 logits; give it a linear"
    ):
        begun("amtml", {}, other, 2)


def test_a_batch_without_teachers_is_a_callers_mistake():
    model = student()
    batch = replace(batch_of(teachers(2, 4, CLASSES)), teacher_logits=None)
    with pytest.raises(ValueError, match="no teacher_logits; stream it from a TeacherLoader"):
        begun("aekd", {}, model, 2)(model(batch.inputs), batch)


def test_an_evaluation_in_between_leaves_no_features_behind():
    model = student()
    loss = begun("amtml", {}, model, 2)
    model.eval()
    model(torch.zeros(3, *SHAPE))
    with pytest.raises(StillroomError, match=r"the student's last nn.Linear did not run; expected it in every forward"):
        loss(torch.zeros(3, CLASSES), batch_of(teachers(2, 3, CLASSES)))


def test_mixed_is_the_log_of_the_mixture_with_its_gradient():
    log_probs = teachers(3, 4, CLASSES).double().log_softmax(-1)
    scores = torch.randn(4, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0)).requires_grad_()
    assert torch.autograd.gradcheck(lambda s: mixed(log_probs, s.log_softmax(-1)), scores)
    weights = torch.tensor([1.0, 0.0, 0.0]).log().expand(4, 3)
    torch.testing.assert_close(mixed(log_probs.float(), weights), log_probs[0].float())
