"""The loop learns, keeps its best weights, and killed at any step ends as if it had not been."""

import copy
import hashlib
import io
import math
import warnings
from itertools import pairwise

import numpy as np
import pytest
import torch
from torch import nn
from toys import SHAPE, Killed, make_dataset, make_labels, make_plan

from pipeline.errors import StillroomError
from pipeline.losses import cross_entropy, distillation_loss
from pipeline.models import build_model
from pipeline.train import Schedule, fit, label_loss, predict, prepare, seeded
from pipeline.views import Replayer, ViewLoader

SCHEDULE = Schedule(steps=11, evaluate_every=3, lr=0.01, warmup=0.2)


def separable():
    """Noise with a bright bar per class."""
    pixels = np.random.default_rng(0).integers(0, 120, (60, *SHAPE), dtype=np.uint8)
    for sample, label in enumerate(make_labels()):
        pixels[sample, 0, 4 * label : 4 * label + 4] += 120
    return make_dataset(pixels)


@pytest.fixture(scope="module")
def rows() -> Replayer:
    dataset = separable()
    return Replayer(make_plan(dataset, transforms=[{"kind": "flip"}]), dataset)


def loader(rows, seed=1):
    return ViewLoader(rows, "train", batch_size=16, seed=seed)


def model(**options):
    return seeded(lambda: build_model("mlp", num_classes=3, in_shape=SHAPE, width=8, depth=1, **options), 0)


def calibration(rows):
    """An evaluation on calibration rows, without anything random."""
    held_out = [rows.batch("calibration", 0, np.arange(8))]

    def evaluate(model):
        log_probs = predict(model, iter(held_out))
        return {"nll": cross_entropy(log_probs, held_out[0].labels).mean().item()}

    return evaluate


def run(rows, network, *, schedule=SCHEDULE, loss=label_loss, evaluate=None, **options):
    evaluate = evaluate or calibration(rows)
    return fit(network, loader(rows), loss, evaluate=evaluate, schedule=schedule, seed=3, where="student.x", **options)


def bits(network):
    return {name: value.clone() for name, value in network.state_dict().items()}


def same(one, other):
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


# -- learning ---------------------------------------------------------------------------------------------------------


def test_a_separable_problem_is_learned(rows):
    network = model()
    fitted = run(rows, network, schedule=Schedule(steps=60, evaluate_every=10, lr=0.01))
    test = rows.batch("test", 0, np.arange(12))
    assert torch.equal(predict(network, iter([test])).argmax(1), test.labels)
    assert fitted.history[-1]["nll"] < 0.2 < fitted.history[0]["nll"]
    assert fitted.steps == 60
    assert fitted.rows == sum(len(batch) for _ in range(20) for batch in loader(rows))


def test_the_weights_left_are_those_of_the_lowest_nll(rows):
    nlls, seen = iter([0.9, 0.4, 0.6, 0.4]), []

    def evaluate(network):
        seen.append(bits(network))
        return {"nll": next(nlls), "accuracy": 0.5}

    network = model()
    fitted = run(rows, network, evaluate=evaluate)
    assert [entry["step"] for entry in fitted.history] == [3, 6, 9, 11]
    assert [entry["nll"] for entry in fitted.history] == [0.9, 0.4, 0.6, 0.4]
    assert fitted.best_step == 6
    assert same(bits(network), seen[1])
    assert not same(seen[1], seen[3])


def test_patience_stops_after_so_many_evaluations_without_a_better_one(rows):
    nlls = iter([0.9, 0.4, 0.6, 0.5, 0.3, 0.1])
    fitted = run(
        rows, model(), evaluate=lambda _: {"nll": next(nlls)}, schedule=Schedule(steps=99, evaluate_every=2, patience=2)
    )
    assert (fitted.steps, fitted.best_step) == (8, 4)


def test_history_holds_the_mean_of_every_part_over_the_rows_since_the_last_evaluation(rows):
    losses = []

    def loss(logits, batch):
        ce, _ = label_loss(logits, batch)
        losses.append((ce.detach().sum().item(), len(batch)))
        return ce, {"ce": ce, "twice": 2 * ce}

    history = run(rows, model(), loss=loss).history
    for entry, part in zip(history, (losses[:3], losses[3:6], losses[6:9], losses[9:]), strict=True):
        mean = sum(total for total, _ in part) / sum(count for _, count in part)
        assert entry["train_ce"] == entry["train_loss"] == pytest.approx(mean, rel=1e-5)
        assert entry["train_twice"] == pytest.approx(2 * mean, rel=1e-5)


def test_only_matrices_decay(rows):
    network, still = model(), Schedule(steps=1, evaluate_every=1, lr=0.1, weight_decay=0.5, warmup=0)
    before = bits(network)
    run(rows, network, schedule=still, loss=lambda logits, batch: (0.0 * logits.sum(1), {}))
    for name, value in network.state_dict().items():
        expected = before[name] * (1 - 0.1 * 0.5) if value.ndim > 1 else before[name]
        torch.testing.assert_close(value, expected)


def test_clipping_bounds_the_gradient(rows):
    sizes = []

    def watch(network):
        sizes.append(torch.stack([p.grad.norm() for p in network.parameters()]).norm().item())
        return {"nll": 1.0}

    run(rows, model(), evaluate=watch, schedule=Schedule(steps=3, evaluate_every=1, clip=0.01))
    assert all(size == pytest.approx(0.01, rel=1e-3) for size in sizes)


# -- killed and resumed -----------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def whole(rows):
    """A run that was not interrupted, and its history."""
    network = model(dropout=0.5)
    return bits(network), run(rows, network), bits(network)


@pytest.mark.parametrize("seconds", [0.0, 1e9])
@pytest.mark.parametrize("step", range(1, SCHEDULE.steps + 1))
def test_killed_at_any_step_and_resumed_it_ends_with_the_same_bits(rows, whole, tmp_path, step, seconds):
    """With `seconds` at 1e9 the checkpoint is that of the last evaluation, and the steps since are taken again."""
    first, fitted, last = whole
    saved = {"checkpoint": tmp_path / "checkpoint.pt", "checkpoint_seconds": seconds}

    def kill(now):
        if now == step:
            raise Killed

    network = model(dropout=0.5)
    assert same(bits(network), first)
    with pytest.raises(Killed):
        run(rows, network, on_step=kill, **saved)
    torch.rand(3)  # the generator is anywhere when a new process starts
    resumed = model(dropout=0.5)
    steps = []
    again = run(rows, resumed, on_step=steps.append, **saved)
    assert steps == list(range((step if seconds == 0 or step == 11 else step - step % 3) + 1, 12))
    assert same(bits(resumed), last)
    assert again.history == fitted.history
    assert (again.best_step, again.steps, again.rows) == (fitted.best_step, fitted.steps, fitted.rows)


def test_dropout_differs_from_step_to_step(rows):
    network, masks = model(dropout=0.5), []
    network.hidden1[3].register_forward_hook(lambda _, inputs, output: masks.append(output.detach()[0] == 0))
    run(rows, network, evaluate=lambda _: {"nll": 1.0}, schedule=Schedule(steps=6, evaluate_every=6))
    assert len({tuple(mask.tolist()) for mask in masks}) > 3


DAMAGES = {
    "emptied": lambda content: b"",
    "another file": lambda content: b"not a checkpoint",
    "half of it": lambda content: content[: len(content) // 2],
    "one bit": lambda content: content[:3000] + bytes([content[3000] ^ 1]) + content[3001:],
    "another model's": lambda content: resaved(content, model={"a": torch.zeros(1)}),
    "without its best weights": lambda content: resaved(content, best=None),
    "another seed's": lambda content: resaved(content, loader={"seed": 9, "epoch": 0, "step": 1}),
}


def resaved(content, **changes):
    state = {**torch.load(io.BytesIO(content[32:])), **changes}
    buffer = io.BytesIO()
    torch.save({name: value for name, value in state.items() if value is not None}, buffer)
    return hashlib.sha256(buffer.getvalue()).digest() + buffer.getvalue()


@pytest.mark.parametrize("what", DAMAGES)
def test_a_damaged_checkpoint_is_told(rows, tmp_path, what):
    path = tmp_path / "checkpoint.pt"
    run(rows, model(), checkpoint=path)
    path.write_bytes(DAMAGES[what](path.read_bytes()))
    with pytest.raises(
        StillroomError, match=r"checkpoint.pt: found no usable checkpoint \(.+\); .*; delete it to start"
    ):
        run(rows, model(), checkpoint=path)


# -- faults -----------------------------------------------------------------------------------------------------------


def test_a_loss_that_is_not_finite_says_where_and_when(rows):
    def broken(logits, batch):
        return logits.sum(1) * math.nan, {}

    with pytest.raises(StillroomError, match=r"student.x: loss is nan at step 3; expected a finite number; lower lr"):
        run(rows, model(), loss=broken)


def test_an_nll_that_is_not_finite_says_where_and_when(rows):
    with pytest.raises(StillroomError, match=r"student.x: nll is nan at step 3; expected a finite number; lower lr"):
        run(rows, model(), evaluate=lambda _: {"nll": math.nan})


# -- pieces -----------------------------------------------------------------------------------------------------------


def test_the_rate_warms_up_in_a_line_and_falls_in_a_cosine_to_zero():
    schedule = Schedule(steps=100, evaluate_every=10, lr=2.0, warmup=0.1)
    rates = [schedule.rate(step) for step in range(101)]
    assert rates[:10] == pytest.approx([0.2 * (step + 1) for step in range(10)])
    assert rates[10] == max(rates) == 2.0
    assert rates[55] == pytest.approx(1.0)
    assert rates[100] == pytest.approx(0.0)
    assert all(later < earlier for earlier, later in pairwise(rates[10:]))
    assert Schedule(steps=1, evaluate_every=1, lr=2.0, warmup=0.0).rate(0) == 2.0


def test_seeded_builds_alike_and_leaves_the_generator_alone():
    before = torch.get_rng_state()
    one, other, third = (seeded(lambda: nn.Linear(3, 3).weight, seed) for seed in (1, 1, 2))
    assert torch.equal(one, other)
    assert not torch.equal(one, third)
    assert torch.equal(torch.get_rng_state(), before)


def test_label_loss_mixes_labels_where_rows_are_mixed(rows):
    logits = torch.randn(5, 3, generator=torch.Generator().manual_seed(0))
    mixed, plain = rows.batch("train", 2, np.arange(5)), rows.batch("train", 0, np.arange(5))
    expected = mixed.mix * cross_entropy(logits, mixed.labels) + (1 - mixed.mix) * cross_entropy(
        logits, mixed.partner_labels
    )
    torch.testing.assert_close(label_loss(logits, mixed)[0], expected)
    torch.testing.assert_close(label_loss(logits, plain)[1]["ce"], cross_entropy(logits, plain.labels))


def test_a_student_learns_from_targets_where_no_label_is_seen(rows):
    teacher = torch.tensor([[4.0, 0, 0], [0, 4, 0], [0, 0, 4]]).log_softmax(-1)

    def soft(logits, batch):
        hidden = torch.full_like(batch.labels, -1)
        return distillation_loss(logits, teacher[batch.labels], hidden, temperature=1.0, alpha=0.5)

    network = model()
    plain = Replayer(make_plan(separable(), mix=None), separable())
    fit(
        network,
        loader(plain),
        soft,
        evaluate=calibration(plain),
        schedule=Schedule(steps=60, evaluate_every=20, lr=0.01),
        seed=0,
        where="s",
    )
    test = plain.batch("test", 0, np.arange(12))
    assert torch.equal(predict(network, iter([test])).argmax(1), test.labels)


def test_predict_answers_in_evaluation_mode_and_leaves_the_mode_alone(rows):
    network = model(dropout=0.5).train()
    batches = [rows.batch("test", 0, np.arange(7)), rows.batch("test", 0, np.arange(7, 12))]
    found = predict(network, iter(batches))
    assert network.training
    still = copy.deepcopy(network).eval()
    expected = torch.cat([still(batch.inputs).log_softmax(-1) for batch in batches])
    torch.testing.assert_close(found, expected.detach())


CHANNELS_LAST = {
    "a 3x3 convolution": (lambda: nn.Sequential(nn.Conv2d(4, 8, 3, stride=2), nn.Conv2d(8, 8, 1)), True),
    "a strided 1x1 convolution": (lambda: nn.Sequential(nn.Conv2d(4, 8, 3), nn.Conv2d(8, 8, 1, stride=2)), False),
    "no convolution": (lambda: nn.Sequential(nn.Flatten(), nn.Linear(4, 8)), False),
}


@pytest.mark.parametrize("what", CHANNELS_LAST)
def test_prepare_puts_channels_last_where_that_is_fast_and_safe(what):
    build, expected = CHANNELS_LAST[what]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        network = prepare(build(), torch.device("cpu"))
    four = [p for p in network.parameters() if p.ndim == 4 and p.shape[-1] > 1]
    assert all(p.is_contiguous(memory_format=torch.channels_last) == expected for p in four)
    assert bool(four) == ("convolution" in what and not what.startswith("no"))
