"""Runs that step as one end with the bits of each alone; what can't, steps by itself."""

import math
from dataclasses import replace
from functools import partial

import pytest
import torch
from company import STEPS, Charged, Many, agree, made, make_rows, mlp, network, outcome
from torch import nn
from toys import Killed

from pipeline.errors import StillroomError
from pipeline.losses import kl_divergence
from pipeline.models import FeatureTap
from pipeline.objective import Objective
from pipeline.train import Fitted, Ranks, Trainee, fit_together, label_loss
from pipeline.train.layers import LAYERS, forward, is_stackable
from pipeline.train.run import Run
from pipeline.train.stacked import Stacks, architecture, loss_key
from pipeline.train.trial import losses_agree, losses_as_one, models_agree


@pytest.fixture(scope="module")
def rows():
    return make_rows()


@pytest.fixture(autouse=True)
def patient(monkeypatch):
    """Let no clock decide, for a machine that others share may be slow for a moment."""
    monkeypatch.setattr("pipeline.train.trial.SLOWEST", math.inf)


@pytest.fixture
def sizes(monkeypatch):
    """How many stepped as one, step by step."""
    found, step = [], Stacks.step
    monkeypatch.setattr(Stacks, "step", lambda self, batches: found.append(len(batches)) or step(self, batches))
    return found


class Keyed:
    """A soft loss that says what it is."""

    def __init__(self, temperature):
        self.temperature = temperature
        self.key = ("keyed", temperature)

    def __call__(self, logits, batch):
        ce, parts = label_loss(logits, batch)
        kl = kl_divergence(logits, batch.target_log_probs, temperature=self.temperature)
        return ce + kl, {**parts, "kl": kl}


class Counting:
    """A loss that looks at what it was asked before; it has no key."""

    def __init__(self):
        self.asked = 0

    def __call__(self, logits, batch):
        self.asked += 1
        return (1 + self.asked % 3) * label_loss(logits, batch)[0], {}


def guided(seed, alpha):
    model = mlp(seed=seed)
    objective = Objective(model, steps=STEPS, kind="kl", alpha=alpha)
    return made(model, objective, companion=objective, seed=seed)


KINDS = {
    "plain": lambda: made(mlp()),
    "fast": lambda: made(mlp(seed=1), lr=0.05),
    "decayed": lambda: made(mlp(seed=2), weight_decay=0.5, clip=0.1),
    "averaged": lambda: made(mlp(seed=3), ema=0.8, lr=0.03, decay="one_cycle"),
    "patient": lambda: made(mlp(seed=4), patience=1),
    "smooth": lambda: made(mlp(seed=5), partial(label_loss, smoothing=0.2)),
    "smoother": lambda: made(mlp(seed=6), partial(label_loss, smoothing=0.2), lr=0.02),
    "soft": lambda: made(mlp(seed=7), Keyed(2.0)),
    "softer": lambda: made(mlp(seed=8), Keyed(2.0), clip=0.3),
    "softest": lambda: made(mlp(seed=9), Keyed(4.0)),
    "counting": lambda: made(mlp(seed=10), Counting()),
    "learning": lambda: guided(11, {"kind": "uncertainty", "lr": 0.1}),
    "spans": lambda: guided(12, {"kind": "dwa", "every": 2}),
    "longer": lambda: made(mlp(seed=13), steps=14),
    "stuck": lambda: made(mlp(seed=14), decay="plateau", plateau=1),
}
WORSENING = ("patient", "stuck")


def trainee(name, checkpoint=None, **options):
    run = KINDS[name]()

    def evaluate(model):
        weights = sum(float(each.detach().square().sum()) for each in model.parameters())
        return {"nll": 1.0 + run.progress.step if name in WORSENING else weights}

    return Trainee(run, evaluate, checkpoint, **options)


def judge(model):
    return {"nll": 1.0}


def driven(trainees, loader, **options):
    return dict(fit_together(trainees, loader, **options))


@pytest.fixture(scope="module")
def alone(rows):
    found = {}
    for name in KINDS:
        one = trainee(name)
        found[name] = outcome(one, driven([one], Many(rows, 1))[0])
    return found


# -- in a stack as alone ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("names", [list(KINDS), list(KINDS)[::-2], ["soft", "softer"]], ids=["all", "some", "two"])
def test_each_of_a_stack_ends_with_the_bits_it_has_alone(rows, alone, sizes, names):
    together = [trainee(name) for name in names]
    found = driven(together, Many(rows, len(names)))
    for index, name in enumerate(names):
        assert agree(outcome(together[index], found[index]), alone[name]), name
    ended = ("patient" in names) * 1
    assert sizes[0] == len(names)
    assert sizes[:STEPS] == [len(names)] * 6 + [len(names) - ended] * 5


@pytest.mark.parametrize("depth", [0, 1, 3])
@pytest.mark.parametrize("width", [5, 32])
def test_any_perceptron_is_stacked_with_its_bits(rows, sizes, depth, width):
    def trained(count):
        runs = [made(network("mlp", seed, width=width, depth=depth), seed=seed) for seed in range(3)]
        each = [Trainee(run, judge) for run in runs]
        passes = [each] if count == 3 else [[one] for one in each]
        for members in passes:
            driven(members, Many(rows, len(members), batch_size=13))  # of 40 rows: batches of two sizes
        return [run.model for run in runs]

    for one, other in zip(trained(3), trained(1), strict=True):
        assert all(torch.equal(a, b) for a, b in zip(one.parameters(), other.parameters(), strict=True))
    assert sizes == [3] * STEPS


def test_one_that_diverges_or_fails_leaves_the_others_their_bits(rows, alone, sizes):
    def diverging(logits, batch):
        return logits.sum(1) * (math.nan if runs[1].progress.step >= 2 else 1.0), {}

    def failing(logits, batch):
        if runs[3].progress.step == 4:
            raise StillroomError("student.x: failed; expected not to; nothing")
        return logits.square().sum(1), {}

    runs = {1: made(mlp(seed=20), diverging), 3: made(mlp(seed=21), failing)}
    together = [trainee("plain"), Trainee(runs[1], judge), trainee("counting")]
    together += [Trainee(runs[3], judge), trainee("averaged")]
    found = driven(together, Many(rows, 5))
    assert "loss is nan at step 3" in str(found[1])
    assert str(found[3]).startswith("student.x: failed")
    for index, name in ((0, "plain"), (2, "counting"), (4, "averaged")):
        assert agree(outcome(together[index], found[index]), alone[name]), name
    assert sizes == [5] * 3 + [4] * 2 + [3] * 6


def test_a_failure_of_a_shared_loss_is_everyones(rows):
    class Failing(Keyed):
        def __call__(self, logits, batch):
            if step[0] == 3:
                raise StillroomError("student.x: failed; expected not to; nothing")
            return super().__call__(logits, batch)

    step = [0]
    together = [
        Trainee(made(mlp(seed=seed), Failing(1.0)), judge, on_step=lambda now: step.__setitem__(0, now))
        for seed in range(2)
    ]
    found = driven(together, Many(rows, 2))
    assert [str(each).split(";")[0] for each in found.values()] == ["student.x: failed"] * 2
    assert [each.run.progress.step for each in together] == [3, 3]


@pytest.mark.parametrize("step", [1, 5, 7])
def test_killed_and_resumed_stacks_end_with_the_same_bits(rows, alone, tmp_path, sizes, step):
    names, results = ["averaged", "patient", "spans", "softer", "decayed"], {}

    def go_on(kill=None):
        def dies(now):
            if now == kill:
                raise Killed

        left = [name for name in names if name not in results]
        tell = {left[-1]: {"on_step": dies}} if kill is not None else {}
        together = [trainee(name, tmp_path / f"{name}.pt", **tell.get(name, {})) for name in left]
        for index, fitted in fit_together(together, Many(rows, len(left)), checkpoint_seconds=0.0):
            assert isinstance(fitted, Fitted)
            results[left[index]] = outcome(together[index], fitted)
            (tmp_path / f"{left[index]}.pt").unlink()

    with pytest.raises(Killed):
        go_on(step)
    torch.rand(3)
    go_on()
    assert all(agree(results[name], alone[name]) for name in names)
    assert min(sizes) >= 4


def test_a_checkpoint_holds_one_runs_weights(rows, tmp_path, sizes):
    def written(names):
        def dies(now):
            if now == 4:
                raise Killed

        together = [trainee(name, tmp_path / f"{name}.pt", on_step=dies) for name in names]
        with pytest.raises(Killed):
            driven(together, Many(rows, len(names)), checkpoint_seconds=0.0)
        assert len(sizes) == (4 if len(names) > 1 else 0)
        sizes.clear()
        return [len((tmp_path / f"{name}.pt").read_bytes()) for name in names]

    names = ["plain", "fast", "averaged"]
    together = written(names)
    for name in names:
        (tmp_path / f"{name}.pt").unlink()
    assert together == [written([name])[0] for name in names]


# -- what steps alone -------------------------------------------------------------------------------------------------


class Inherited(nn.Linear):
    """A layer that may do anything."""


def tapped():
    model = mlp()
    FeatureTap(model, ["penultimate"])
    return model


ALONE = {
    "convolutions": lambda: made(network("vgg_small", width=4)),
    "dropout": lambda: made(mlp(dropout=0.1)),
    "penalty": lambda: made(Charged()),
    "members": lambda: made(network("hydra", trunk="mlp", width=8, depth=1, heads=2)),
    "running means": lambda: made(nn.Sequential(nn.Flatten(), nn.Linear(192, 3), nn.BatchNorm1d(3))),
    "listened to": lambda: made(tapped()),
    "heard at the end": lambda: made(heard(mlp())),
    "inherited": lambda: made(nn.Sequential(nn.Flatten(), Inherited(192, 3))),
    "frozen": lambda: made(frozen(mlp())),
    "halves": lambda: Run(mlp(), label_loss, made(mlp()).schedule, seed=0, precision="bf16", where="x"),
    "ranks": lambda: Run(
        mlp(), label_loss, made(mlp()).schedule, seed=0, precision="fp32", where="x", ranks=Ranks(0, 2)
    ),
    "double": lambda: made(mlp().double()),
}


def heard(model):
    model.register_full_backward_hook(lambda *_: None)
    return model


def frozen(model):
    next(model.parameters()).requires_grad_(False)
    return model


@pytest.mark.parametrize("name", ALONE)
def test_what_can_not_be_stacked_has_no_architecture(name):
    assert architecture(ALONE[name]()) is None
    assert architecture(made(mlp())) is not None


def test_one_architecture_is_one_in_all_that_counts():
    def of(*layers):
        return architecture(made(nn.Sequential(nn.Flatten(), *layers)))

    same = [of(nn.Linear(192, 3)), of(nn.Linear(192, 3))]
    other = [of(nn.Linear(192, 4)), of(nn.Linear(192, 3, bias=False)), of(nn.Linear(192, 3), nn.ReLU())]
    other += [of(nn.Linear(192, 3), nn.LayerNorm(3)), of(nn.Linear(192, 3), nn.LayerNorm(3, eps=1e-3))]
    assert same[0] == same[1]
    assert len({same[0], *other}) == 6


@pytest.mark.parametrize("name", ["convolutions", "dropout", "listened to"])
def test_what_can_not_be_stacked_steps_by_itself(rows, sizes, name):
    driven([Trainee(ALONE[name](), judge) for _ in range(2)], Many(rows, 2))
    assert sizes == []


def test_runs_that_see_other_inputs_step_by_themselves(rows, sizes):
    class Apart(Many):
        def __iter__(self):
            for shown in super().__iter__():
                yield [replace(batch, inputs=batch.inputs.clone()) for batch in shown]

    driven([trainee("plain"), trainee("fast")], Apart(rows, 2))
    assert sizes == []


def test_other_architectures_are_stacks_of_their_own(rows, alone, sizes):
    wide = [Trainee(made(mlp(width=9, seed=seed)), judge) for seed in range(3)]
    together = [wide[0], trainee("plain"), wide[1], trainee("fast"), wide[2]]
    found = driven(together, Many(rows, 5))
    assert sizes == [3, 2] * STEPS
    assert all(agree(outcome(together[k], found[k]), alone[name]) for k, name in ((1, "plain"), (3, "fast")))


# -- the trial --------------------------------------------------------------------------------------------------------


@pytest.fixture
def batch(rows):
    return next(iter(Many(rows, 1)))[0]


def test_models_as_one_give_what_each_gives(batch):
    models = [mlp(seed=seed) for seed in range(3)]
    assert is_stackable(models[0])
    found = forward(models, batch.inputs.expand(3, *batch.inputs.shape))
    assert all(torch.equal(own, model(batch.inputs)) for own, model in zip(found, models, strict=True))
    assert models_agree(models, batch.inputs)


def other_order(layers, x):
    """Sums from the last input to the first: the same numbers in other bits."""
    return torch.stack(
        [
            nn.functional.linear(each.flip(1), layer.weight.flip(1), layer.bias)
            for each, layer in zip(x, layers, strict=True)
        ]
    )


def other_gradient(layers, x):
    """The same answers, and a gradient that is nothing like it."""
    found = [layer(own) for layer, own in zip(layers, x, strict=True)]
    return torch.stack([each.detach() + 2 * (each - each.detach()) for each in found])


@pytest.mark.parametrize("wrong", [other_order, other_gradient])
def test_a_layer_with_other_bits_is_refused(rows, alone, batch, sizes, monkeypatch, wrong):
    monkeypatch.setitem(LAYERS, nn.Linear, wrong)
    models = [mlp(seed=seed) for seed in range(2)]
    torch.testing.assert_close(
        forward(models, batch.inputs.expand(2, *batch.inputs.shape))[1], models[1](batch.inputs), rtol=1e-4, atol=1e-5
    )
    assert not models_agree(models, batch.inputs)
    together = [trainee("plain"), trainee("fast")]
    found = driven(together, Many(rows, 2))
    assert sizes == []
    assert agree(outcome(together[1], found[1]), alone["fast"])


def test_layers_with_another_axis_between_them_are_refused(rows, sizes):
    def made_of_tokens():
        layers = nn.Flatten(2), nn.Linear(144, 4), nn.Flatten(), nn.Linear(4, 3)
        return Trainee(made(nn.Sequential(*layers)), judge)

    assert architecture(made_of_tokens().run) is not None
    found = driven([made_of_tokens(), made_of_tokens()], Many(rows, 2))
    assert all(isinstance(each, Fitted) for each in found.values())
    assert sizes == []


def test_slower_is_refused_with_the_same_bits(rows, alone, sizes, monkeypatch):
    monkeypatch.setattr("pipeline.train.trial.SLOWEST", 0.0)
    together = [trainee("soft"), trainee("softer")]
    found = driven(together, Many(rows, 2))
    assert sizes == []
    assert agree(outcome(together[1], found[1]), alone["softer"])


def test_trials_leave_nothing_behind(batch):
    models = [mlp(seed=seed) for seed in range(2)]
    before, state = [each.clone() for each in models[0].parameters()], torch.get_rng_state()
    assert models_agree(models, batch.inputs)
    assert losses_agree(Keyed(2.0), [model(batch.inputs) for model in models], batch)
    assert torch.equal(state, torch.get_rng_state())
    assert all(each.grad is None for model in models for each in model.parameters())
    assert all(torch.equal(a, b) for a, b in zip(models[0].parameters(), before, strict=True))


def test_losses_as_one_are_each_ones_own(batch):
    logits = torch.randn(3, len(batch), 3, generator=torch.Generator().manual_seed(0))
    assert losses_agree(Keyed(3.0), logits.unbind(), batch)
    for own, (loss, parts) in zip(logits, losses_as_one(Keyed(3.0), logits, batch), strict=True):
        expected, each = Keyed(3.0)(own, batch)
        assert torch.equal(loss, expected)
        assert parts.keys() == each.keys() == {"ce", "kl"}
        assert all(torch.equal(parts[name], each[name]) for name in each)


def asking(logits, batch):
    return (logits.sum(1) if logits.sum() > 0 else logits.square().sum(1)), {}


def drawing(logits, batch):
    return (logits * torch.rand_like(logits)).sum(1), {}


def between_runs():
    """A loss that is another one at every call."""
    asked = iter(range(1, 1000))
    return lambda logits, batch: (logits.sum(1) * next(asked), {})


@pytest.mark.parametrize("loss", [asking, drawing, between_runs()])
def test_losses_that_are_not_the_same_as_one_are_refused(batch, loss):
    logits = torch.randn(3, len(batch), 3, generator=torch.Generator().manual_seed(0))
    assert not losses_agree(loss, logits.unbind(), batch)


def test_losses_are_shared_where_they_say_they_are_the_same():
    assert loss_key(label_loss) == loss_key(label_loss) is not None
    assert loss_key(partial(label_loss, smoothing=0.1)) == loss_key(partial(label_loss, smoothing=0.1))
    assert loss_key(partial(label_loss, smoothing=0.1)) != loss_key(partial(label_loss, smoothing=0.2))
    assert loss_key(Keyed(1.0)) == loss_key(Keyed(1.0)) != loss_key(Keyed(2.0))
    assert loss_key(Counting()) is loss_key(lambda logits, batch: label_loss(logits, batch)) is None


def test_losses_of_one_key_are_computed_once(rows):
    asked = []

    class Listed(Keyed):
        def __call__(self, logits, batch):
            asked.append(logits)
            return super().__call__(logits, batch)

    driven(
        [Trainee(made(mlp(seed=seed), Listed(2.0), steps=30), judge) for seed in range(4)],
        Many(rows, 4),
    )
    tried = 4 * 3 * (4 + 1)  # batches of two sizes, mixed or not; three times, in turn and as one
    assert len(asked) == 30 + tried
