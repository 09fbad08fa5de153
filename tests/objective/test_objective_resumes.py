"""What learns beside a student is kept with it: killed at any step, all goes on bit for bit from real stores."""

import itertools

import pytest
import torch
from toys import SHAPE, Killed

from pipeline.features import parse_feature_loss
from pipeline.loader import Reading, SharedLoader
from pipeline.losses import cross_entropy
from pipeline.models import build_model
from pipeline.objective import Objective, follow
from pipeline.train import Run, Schedule, Trainee, fit_together, predict, seeded
from pipeline.views import ViewLoader

STEPS = 23
CASES = {
    "uncertainty and srd": ({"kind": "uncertainty", "lr": 0.05}, [{"kind": "srd"}]),
    "hypergradient": ({"kind": "hypergradient", "lr": 0.3}, []),
    "crd and hint": ("conditional", [{"kind": "crd", "negatives": 9, "width": 4}, {"kind": "hint"}]),
    "dwa and rkd": ({"kind": "dwa", "every": 4}, [{"kind": "rkd", "teachers": ["b"]}]),
}


def begun(stores, replayer, name, seed=0):
    """A run from the stores, and its loader."""
    alpha, specs = CASES[name]
    entries = [parse_feature_loss(spec, "here") for spec in specs]
    model = seeded(lambda: build_model("mlp", num_classes=3, in_shape=SHAPE, width=6, depth=1, dropout=0.3), seed)
    shape = {"num_classes": 3, "in_shape": SHAPE, "seed": seed, "where": "student.x"}
    model, followed = follow(entries, model, stores.teachers, **shape)
    held_out = list(ViewLoader(replayer, "calibration", batch_size=5, seed=0))
    objective = Objective(model, steps=STEPS, alpha=alpha, followed=followed, held_out=held_out)
    schedule = Schedule(STEPS, 7, 0.01, ema=0.9)
    run = Run(model, objective, schedule, seed=seed, precision="fp32", where="student.x", companion=objective)
    features = {"penultimate": tuple(stores.teachers)} if specs else {}
    negatives = max((entry.loss.num_negatives for entry in entries), default=0)
    reading = Reading(stores.targets, weights=bool(specs), features=features, negatives=negatives)

    def evaluate(model):
        log_probs = predict(model, iter(held_out))
        return {"nll": cross_entropy(log_probs, torch.cat([each.labels for each in held_out])).mean().item()}

    return run, evaluate, SharedLoader([reading], replayer, batch_size=7, seed=2)


def driven(stores, replayer, name, path, kill=None):
    run, evaluate, loader = begun(stores, replayer, name)

    def dies(step):
        if step == kill:
            raise Killed

    trainee = Trainee(run, evaluate, path, dies)
    ((_, fitted),) = fit_together([trainee], loader, checkpoint_seconds=0.0)
    return run, fitted.history


def flat(state):
    """A state as tensors and plain values by path."""
    if isinstance(state, dict):
        return {f"{key}.{path}": value for key, each in state.items() for path, value in flat(each).items()}
    if isinstance(state, list | tuple):
        return flat(dict(enumerate(state)))
    return {"": state.tolist() if isinstance(state, torch.Tensor) else state}


@pytest.fixture(scope="module")
def whole(stores, replayer, tmp_path_factory):
    return {name: driven(stores, replayer, name, tmp_path_factory.mktemp("whole") / "c.pt") for name in CASES}


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("kill", [1, 7, 10, 15])
def test_killed_and_resumed_all_that_learns_ends_with_the_same_bits(stores, replayer, whole, tmp_path, name, kill):
    with pytest.raises(Killed):
        driven(stores, replayer, name, tmp_path / "c.pt", kill)
    torch.rand(2)
    run, history = driven(stores, replayer, name, tmp_path / "c.pt")
    expected, told = whole[name]
    assert history == told
    assert flat(run.model.state_dict()) == flat(expected.model.state_dict())
    assert flat(run.companion.state_dict()) == flat(expected.companion.state_dict())
    assert flat(run.optimizer.state_dict()) == flat(expected.optimizer.state_dict())


def test_what_is_kept_did_move(stores, replayer, whole):
    for name in CASES:
        start = flat(begun(stores, replayer, name)[0].companion.state_dict())
        end = flat(whole[name][0].companion.state_dict())
        assert end["_extra_state.taken."] == STEPS
        learned = [path for path in end if path in start and not path.startswith("_extra") and end[path] != start[path]]
        expected = {
            "uncertainty and srd": ("rule.", "terms.0.pairs.0.adapter", "terms.0.pairs.1.adapter"),
            "hypergradient": ("rule.logit", "rule.averages", "rule.observed"),
            "crd and hint": ("terms.0.pairs.1.student_map", "terms.0.pairs.1.teacher_map", "terms.1.pairs.0"),
            "dwa and rkd": ("rule.latest", "rule.earlier"),
        }
        for prefix in expected[name]:
            assert any(path.startswith(prefix) for path in learned), (name, prefix, learned)


def test_alpha_moves_on_calibration_rows_within_its_bounds(stores, replayer):
    """At a rate far beyond use it runs into a bound, and not through it."""
    run, _, loader = begun(stores, replayer, "hypergradient")
    run.loss.rule.lr = 3.0
    seen = set()
    for shown in itertools.islice(itertools.chain.from_iterable(iter(loader) for _ in itertools.count()), 60):
        run.model.train()
        run.step(shown[0])
        seen.add(run.loss.rule.logit.item())
    assert len(seen) > 1
    assert max(map(abs, seen)) == 4.0
