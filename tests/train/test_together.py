"""Runs that share one pass end with the bits of each alone, whatever their company does: stops, fails, is killed."""

import math

import pytest
import torch
from company import (
    KINDS,
    STEPS,
    Charged,
    Many,
    agree,
    bits,
    made,
    make_rows,
    mlp,
    network,
    outcome,
    same,
    schedule,
    trainee,
)
from toys import Killed

from pipeline.errors import StillroomError
from pipeline.train import Fitted, Trainee, fit_together, label_loss


@pytest.fixture(scope="module")
def rows():
    return make_rows()


def driven(trainees, loader, **options):
    return dict(fit_together(trainees, loader, **options))


@pytest.fixture(scope="module")
def alone(rows):
    """How each kind ends by itself."""
    found = {}
    for name in KINDS:
        one = trainee(rows, name)
        found[name] = outcome(one, driven([one], Many(rows, 1))[0])
    return found


def diverging(rows, step=5):
    """A run whose loss is nan from a step on."""
    run = made(mlp(seed=8))
    run.loss = lambda logits, batch: (logits.sum(1) * (math.nan if run.progress.step >= step else 1.0), {})
    return Trainee(run, lambda model: {"nll": 1.0})


# -- in company as alone ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("names", [list(KINDS), list(KINDS)[::-1], ["tree", "smooth"]], ids=["all", "reversed", "two"])
def test_each_of_a_pass_ends_with_the_bits_it_has_alone(rows, alone, names):
    together = [trainee(rows, name) for name in names]
    found = driven(together, Many(rows, len(names)))
    assert found.keys() == set(range(len(names)))
    for index, name in enumerate(names):
        assert agree(outcome(together[index], found[index]), alone[name]), name


def test_the_kinds_are_as_different_as_their_names_say(alone):
    steps = {name: found[2][2] for name, found in alone.items()}
    assert steps.pop("patient") == 6  # the second evaluation was no better
    assert steps.pop("longer") == 14
    assert set(steps.values()) == {STEPS}
    assert alone["guided"][1]["rule.log_variances"].abs().min() > 0.1
    assert "train_penalty" in alone["tree"][2][0][0]
    assert not same(alone["plain"][0], alone["longer"][0])


def test_one_that_diverges_yields_its_error_when_it_shows_and_the_others_finish(rows, alone):
    together = [trainee(rows, "plain"), diverging(rows), trainee(rows, "smooth")]
    found = list(fit_together(together, Many(rows, 3)))
    assert [index for index, _ in found] == [1, 0, 2]
    error = found[0][1]
    assert isinstance(error, StillroomError)
    assert str(error).startswith("student.x: loss is nan at step 6; expected a finite number; lower lr (now 0.01)")
    assert together[1].run.progress.step == 6
    assert agree(outcome(together[0], found[1][1]), alone["plain"])
    assert agree(outcome(together[2], found[2][1]), alone["smooth"])


def test_where_all_diverge_the_pass_ends(rows):
    found = driven([diverging(rows), diverging(rows, 0)], Many(rows, 2))
    assert [str(found[index]).split(";")[0][-6:] for index in (0, 1)] == ["step 6", "step 3"]


def test_each_is_told_of_its_own_steps_until_it_ends(rows):
    told = {name: [] for name in ("plain", "patient", "longer")}
    driven([trainee(rows, name, on_step=told[name].append) for name in told], Many(rows, 3))
    assert told == {name: list(range(1, steps + 1)) for name, steps in (("plain", 11), ("patient", 6), ("longer", 14))}


def test_each_is_told_of_its_own_evaluations(rows):
    told = {name: [] for name in ("plain", "patient")}
    together = [trainee(rows, name, on_evaluate=told[name].append) for name in told]
    found = driven(together, Many(rows, 2))
    assert [found[0].history, found[1].history] == list(told.values())


# -- killed and resumed -----------------------------------------------------------------------------------------------


def go_on(rows, folder, results, names, *, seconds, kill=None):
    """Drive what has no result yet; whoever is finished is kept and its checkpoint removed, as a stage does."""

    def dies(step):
        if step == kill:
            raise Killed

    left = [name for name in names if name not in results]
    tell = {left[-1]: {"on_step": dies}} if kill is not None else {}  # the last one: the others have stepped too
    together = [trainee(rows, name, folder / f"{name}.pt", **tell.get(name, {})) for name in left]
    for index, fitted in fit_together(together, Many(rows, len(left)), checkpoint_seconds=seconds):
        assert isinstance(fitted, Fitted)
        results[left[index]] = outcome(together[index], fitted)
        (folder / f"{left[index]}.pt").unlink()


LEARNERS = ["averaged", "smooth", "patient", "stuck", "guided"]
KILLS = [(0.0, step, LEARNERS) for step in (1, 3, 6, 7, 11)] + [(1e9, 8, LEARNERS)]
KILLS += [(0.0, 5, ["tree", "normed", "longer"])]


@pytest.mark.parametrize(("seconds", "step", "names"), KILLS)
def test_killed_at_any_step_all_go_on_with_the_same_bits(rows, alone, tmp_path, seconds, step, names):
    """Averages, plateaus, what learns beside them: at 1e9 seconds the steps since an evaluation are retaken."""
    results = {}
    with pytest.raises(Killed):
        go_on(rows, tmp_path, results, names, seconds=seconds, kill=step)
    assert ("patient" in results) == ("patient" in names and step > 6)
    torch.rand(3)  # the generator is anywhere when a new process starts
    go_on(rows, tmp_path, results, names, seconds=seconds)
    for name in names:
        assert agree(results[name], alone[name]), name


def stopped(rows, name, path, step):
    def dies(now):
        if now == step:
            raise Killed

    with pytest.raises(Killed):
        driven([trainee(rows, name, path, on_step=dies)], Many(rows, 1), checkpoint_seconds=0.0)


@pytest.mark.parametrize("other", [2, None], ids=["another step", "no checkpoint"])
def test_checkpoints_at_different_places_are_no_pass(rows, tmp_path, other):
    stopped(rows, "plain", tmp_path / "plain.pt", 4)
    if other is not None:
        stopped(rows, "smooth", tmp_path / "smooth.pt", other)
    together = [trainee(rows, name, tmp_path / f"{name}.pt") for name in ("plain", "smooth")]
    with pytest.raises(ValueError, match=r"checkpoints stand at .*'step': 1.* of 2 runs; those of one loader stand at"):
        driven(together, Many(rows, 2))


def test_checkpoints_at_one_place_are_a_pass_though_made_apart(rows, alone, tmp_path):
    for name in ("plain", "smooth"):
        stopped(rows, name, tmp_path / f"{name}.pt", 4)
    together = [trainee(rows, name, tmp_path / f"{name}.pt") for name in ("plain", "smooth")]
    found = driven(together, Many(rows, 2))
    assert all(agree(outcome(together[k], found[k]), alone[name]) for k, name in enumerate(("plain", "smooth")))


def test_a_checkpoint_of_a_finished_run_is_finished_at_once(rows, alone, tmp_path):
    stopped(rows, "plain", tmp_path / "plain.pt", STEPS)
    one = trainee(rows, "plain", tmp_path / "plain.pt", on_step=lambda step: pytest.fail("it went on"))
    assert agree(outcome(one, driven([one], Many(rows, 1))[0]), alone["plain"])


# -- what a run minimises, averages and goes by -----------------------------------------------------------------------


def test_the_average_kept_is_the_slow_one_and_leaves_training_alone(rows):
    after, judged = [], []
    plain = made(mlp(), steps=40, evaluate_every=8)
    driven([Trainee(plain, lambda _: {"nll": 1.0}, on_step=lambda _: after.append(bits(plain.model)))], Many(rows, 1))

    start = bits(mlp())
    model, nlls = mlp(), iter([0.5, 0.4, 0.3, 0.6, 0.7])
    run = made(model, steps=40, evaluate_every=8, ema=0.7)
    raw = []

    def evaluate(shown):
        judged.append(bits(shown))
        return {"nll": next(nlls)}

    (fitted,) = driven([Trainee(run, evaluate, on_step=lambda _: raw.append(bits(model)))], Many(rows, 1)).values()
    average = {name: value.double() for name, value in start.items()}
    slow = []
    for step, weights in enumerate(after):
        keep = min(0.7, (1 + step) / (10 + step))
        average = {name: keep * average[name] + (1 - keep) * weights[name].double() for name in average}
        slow.append(average)
    assert len({min(0.7, (1 + step) / (10 + step)) for step in range(40)}) > 10  # its rate was in force, and the cap
    for weights, expected in zip(raw[:-1], after, strict=False):  # after the last step the best ones are in the model
        assert same(weights, expected)
    for number, found in enumerate(judged):
        for name, value in found.items():
            torch.testing.assert_close(value.double(), slow[8 * (number + 1) - 1][name], rtol=1e-4, atol=1e-6)
    assert fitted.best_step == 24
    assert same(bits(model), judged[2])
    assert not same(judged[2], after[23])


def test_an_average_takes_running_means_and_counters_along(rows):
    run = made(network("vgg_small", width=4), ema=0.9, steps=6)
    driven([Trainee(run, lambda _: {"nll": 1.0})], Many(rows, 1))
    state = run.average.state
    counters = [name for name, value in state.items() if not value.is_floating_point()]
    assert counters
    assert all(state[name].item() == 6 for name in counters)


def test_what_is_monitored_picks_the_weights_and_stops(rows):
    figures = iter([{"nll": 0.5, "kl": 0.9}, {"nll": 0.6, "kl": 0.2}, {"nll": 0.1, "kl": 0.3}, {"nll": 0.0, "kl": 0.4}])
    seen = []

    def evaluate(model):
        seen.append(bits(model))
        return next(figures)

    run = made(mlp(), steps=99, monitor="kl", patience=2)
    fitted = driven([Trainee(run, evaluate)], Many(rows, 1))[0]
    assert (fitted.best_step, fitted.steps) == (6, 12)
    assert same(bits(run.model), seen[1])
    assert [entry["nll"] for entry in fitted.history] == [0.5, 0.6, 0.1, 0.0]


def test_what_is_monitored_must_be_finite_and_nothing_else_need_be(rows):
    def ended(monitor):
        run = made(mlp(), monitor=monitor)
        return driven([Trainee(run, lambda _: {"nll": 1.0, "kl": math.inf})], Many(rows, 1))[0]

    assert isinstance(ended("nll"), Fitted)
    assert "student.x: kl is inf at step 3" in str(ended("kl"))


def test_a_models_penalty_is_added_once_to_the_mean_loss(rows):
    batch = next(iter(Many(rows, 1)))[0]
    expected = Charged()
    (label_loss(expected(batch.inputs), batch)[0].mean() + expected.penalty()).backward()
    run = made(Charged())
    run.step(batch)
    for found, wanted in zip(run.model.parameters(), expected.parameters(), strict=True):
        torch.testing.assert_close(found.grad, wanted.grad)


def test_the_penalty_is_told_in_the_history_as_a_mean_over_rows(rows):
    run, asked = made(Charged()), []
    inner = run._penalty
    run._penalty = lambda: asked.append(inner()) or asked[-1]
    fitted = driven([Trainee(run, lambda _: {"nll": 1.0})], Many(rows, 1))[0]
    sizes = [len(batch) for _ in range(5) for (batch,) in Many(rows, 1)][:STEPS]
    first = sum(value.item() * size for value, size in zip(asked[:3], sizes, strict=False)) / sum(sizes[:3])
    assert fitted.history[0]["train_penalty"] == pytest.approx(first, rel=1e-5)
    assert fitted.history[0]["train_loss"] == pytest.approx(fitted.history[0]["train_ce"])


def test_members_each_learn_from_every_label(rows):
    batch = next(iter(Many(rows, 1)))[0]
    run = made(network("hydra", trunk="mlp", width=8, depth=1, heads=3))
    expected = network("hydra", trunk="mlp", width=8, depth=1, heads=3)
    logits = expected.train()(batch.inputs)
    assert logits.shape == (len(batch), 3, 3)
    losses = [label_loss(logits[:, member], batch)[0].mean() for member in range(3)]
    (sum(losses) / 3).backward()
    run.model.train()
    run.step(batch)
    for found, wanted in zip(run.model.parameters(), expected.parameters(), strict=True):
        torch.testing.assert_close(found.grad, wanted.grad)
    run.evaluate(lambda _: {"nll": 1.0})
    assert run.progress.history[0]["train_ce"] == pytest.approx(sum(losses).item() / 3)


def test_a_rate_that_falls_on_plateaus_is_the_one_that_steps_take(rows):
    rates = []
    nlls = iter([0.9, 0.8, 0.8, 0.8, 0.8, 0.7, 0.9, 0.9, 0.9, 0.9])
    run = made(mlp(), decay="plateau", plateau=2, evaluate_every=1, steps=10, warmup=0)
    take = run.step
    run.step = lambda batch: (take(batch), rates.append(run.optimizer.param_groups[0]["lr"]))
    driven([Trainee(run, lambda _: {"nll": next(nlls)})], Many(rows, 1))
    # stale after evaluations 3 and 4: halved; after 5: one, 6 is better; stale after 7 and 8: halved; 9 and 10: halved
    assert rates == [0.01] * 4 + [0.005] * 4 + [0.0025] * 2
    assert run.progress.reductions == 3
    assert schedule(decay="plateau").rate(50, 3) == 0.01 / 8
