"""Sweeps make students like any other: which ones is a law of grid and draws, and one that fails stops no other."""

import math
import shutil
from pathlib import Path

import pytest
from kinds import recipe, settle
from rich.console import Console

from pipeline.errors import StillroomError
from stages import distill, logits, runs
from stages.load import load_recipe
from stages.recipe import LossEntry, StudentEntry, Sweep
from stages.sweep import MOST, trials, values_of
from stages.workspace import Workspace

STUDENT = StudentEntry(name="tiny", model="mlp", width=8, loss=LossEntry(kind="dkd", beta=3.0))


def made(over, student=STUDENT, **options):
    return trials(Sweep(**{"name": "lrs", "student": student.name, "over": over, **options}), student)


def drawn(over, count=200, **options):
    found = made(over, search="random", trials=count, **options)
    return [values_of(Sweep(name="lrs", student="tiny", over=over), entry) for entry in found]


# -- grids ------------------------------------------------------------------------------------------------------------


def test_a_grid_is_every_combination_in_order_the_last_key_fastest():
    found = made({"lr": [0.1, 0.2, 0.3], "loss.temperature": [1.0, 4.0]})
    assert [entry.name for entry in found] == [f"tiny.lrs.{number}" for number in range(6)]
    expected = [(lr, temperature) for lr in (0.1, 0.2, 0.3) for temperature in (1.0, 4.0)]
    assert [(entry.lr, entry.loss.temperature) for entry in found] == expected


def test_a_trial_is_its_student_but_for_what_is_swept_seeds_and_baselines():
    student = STUDENT.model_copy(update={"baselines": True, "seeds": [0, 1, 2], "order_seed": 4})
    found = made({"width": [8, 16], "loss.beta": [5.0]}, student, seeds=[7, 8])
    for entry, width in zip(found, (8, 16), strict=True):
        said, was = entry.model_dump(), student.model_dump()
        assert (said.pop("seeds"), said.pop("baselines"), said.pop("width")) == ([7, 8], False, width)
        assert (said["loss"].pop("beta"), was["loss"].pop("beta")) == (5.0, 3.0)
        for key in ("seeds", "baselines", "width", "name"):
            was.pop(key)
        said.pop("name")
        assert said == was
    assert student.loss.options == {"beta": 3.0}, "the student itself is left as it was"


def test_a_grid_takes_lists_names_and_tables_as_values():
    alphas = ["soft", 0.5, {"kind": "scheduled", "start": 0.0, "end": 1.0}]
    found = made({"loss.alpha": alphas, "loss.features": [[], [{"kind": "srd"}]]})
    assert [entry.loss.alpha for entry in found] == [alpha for alpha in alphas for _ in range(2)]
    assert [len(entry.loss.features) for entry in found] == [0, 1] * 3
    own = STUDENT.model_copy(update={"loss": LossEntry(alpha=alphas[2])})
    assert [entry.loss.alpha["end"] for entry in made({"loss.alpha.end": [0.2, 0.4]}, own)] == [0.2, 0.4]


# -- random draws -----------------------------------------------------------------------------------------------------


def test_draws_lie_within_their_ranges_and_are_of_their_kind():
    over = {
        "lr": {"low": 1e-4, "high": 1e-1, "log": True},
        "weight_decay": {"low": 0.0, "high": 0.5},
        "width": {"low": 4, "high": 6, "whole": True},
        "decay": ["cosine", "constant"],
    }
    found = drawn(over)
    assert all(1e-4 <= each["lr"] <= 1e-1 and 0 <= each["weight_decay"] <= 0.5 for each in found)
    assert {each["width"] for each in found} == {4, 5, 6}
    assert all(type(each["width"]) is int for each in found)
    assert {each["decay"] for each in found} == {"cosine", "constant"}
    assert all(each["lr"] == float(f"{each['lr']:.4g}") for each in found)


def test_a_log_range_spreads_over_magnitudes_and_a_plain_one_over_numbers():
    logs = sorted(each["lr"] for each in drawn({"lr": {"low": 1e-4, "high": 1.0, "log": True}}, 2000))
    plain = sorted(each["lr"] for each in drawn({"lr": {"low": 1e-4, "high": 1.0}}, 2000))
    for share in (0.25, 0.5, 0.75):
        assert math.log10(logs[int(2000 * share)]) == pytest.approx(-4 + 4 * share, abs=0.25)
        assert plain[int(2000 * share)] == pytest.approx(share, abs=0.05)


def test_draws_follow_the_sweeps_seed_and_more_trials_begin_with_the_same():
    over = {"lr": {"low": 1e-4, "high": 1e-1, "log": True}, "width": [4, 8, 16]}
    assert drawn(over, 20) == drawn(over, 20) == drawn(over, 50)[:20]
    assert drawn(over, 20) != drawn(over, 20, seed=1)
    assert len({each["lr"] for each in drawn(over, 50)}) == 50


def test_a_random_search_has_as_many_trials_as_it_asks_for():
    found = made({"lr": [0.1, 0.2]}, search="random", trials=5)
    assert [entry.name for entry in found] == [f"tiny.lrs.{number}" for number in range(5)]
    assert len(made({"lr": [0.1, 0.2]}, search="random")) == 16


# -- what is refused --------------------------------------------------------------------------------------------------

ROOM = list(range(1, 102))
FAULTS = {
    "a range in a grid": (
        {"lr": {"low": 0.1, "high": 1.0}},
        {},
        r"lrs\.over\.lr: found \{'low'.*expected a list of val",
    ),
    "one value": (
        {"lr": 0.1},
        {},
        r"over\.lr: found 0.1; expected a list of values for a grid; .* search = \"random\"",
    ),
    "no value": ({"lr": []}, {}, r"over\.lr: found \[\]; expected a list of values"),
    "a long grid": (
        {"epochs": [float(x) for x in ROOM], "width": ROOM},
        {},
        r"lrs: found 10,201 trials; expected 10,000",
    ),
    "long draws": (
        {"lr": [0.1]},
        {"search": "random", "trials": MOST + 1},
        r"lrs: found 10,001 trials; .*set trials low",
    ),
    "no draws of": ({"lr": []}, {"search": "random"}, r"over\.lr: found \[\]; expected a list, or a range such as"),
    "a word": ({"lr": "high"}, {"search": "random"}, r"over\.lr: found 'high'; expected a list, or a range such as"),
    "half a range": (
        {"lr": {"low": 1.0}},
        {"search": "random"},
        r"over\.lr: found \{'low': 1.0\}; expected a list, or",
    ),
    "a key too many": (
        {"lr": {"low": 0.1, "high": 1.0, "lgo": True}},
        {"search": "random"},
        r"expected a list, or a rang",
    ),
    "upside down": (
        {"lr": {"low": 1.0, "high": 0.1}},
        {"search": "random"},
        r"found low 1.0 and high 0.1; expected num",
    ),
    "log of nothing": (
        {"lr": {"low": 0, "high": 1, "log": True}},
        {"search": "random"},
        r"found low 0 and high 1; expe",
    ),
    "no number": ({"lr": {"low": "a", "high": 1}}, {"search": "random"}, r"found low 'a' and high 1; expected numbers"),
    "too wide": ({"lr": {"low": -1e308, "high": 1e308}}, {"search": "random"}, r"found low -1e\+308 and high 1e\+308"),
    "an unknown table": ({"los.temperature": [1.0]}, {}, r"unknown key 'los.temperature'; .*'loss.temperature'"),
    "a key of a word": ({"model.width": [1]}, {}, r"lrs\.over: unknown key 'model.width'; expected a key of a student"),
    "its name": ({"name": ["a"]}, {}, r"unknown key 'name'; expected a key of a student"),
    "its seeds": ({"seeds": [[1]]}, {}, r"unknown key 'seeds'"),
    "a negative rate": ({"lr": [0.1, -0.1]}, {}, r"sweep\.lrs\.over: lr: found -0.1; expected: .*greater than 0"),
    "no temperature": (
        {"loss.temperature": ["warm"]},
        {},
        r"over: loss\.temperature: found 'warm'; expected: .*number",
    ),
}


@pytest.mark.parametrize("what", FAULTS)
def test_what_can_not_be_swept_is_told(what):
    over, options, told = FAULTS[what]
    with pytest.raises(StillroomError, match=told):
        made(over, **options)


# -- in a recipe ------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    """A home in which both teachers have answered."""
    home = tmp_path_factory.mktemp("sweeps")
    settle(home)
    (home / "sweeps.toml").write_text(recipe(home, "tree"))
    logits.run(workspace(home))
    return home


def workspace(home, sweep=""):
    path = home / "with_sweep.toml"
    path.write_text((home / "sweeps.toml").read_text() + sweep)
    return Workspace(load_recipe(str(path)), home / "data", Console(quiet=True))


def test_one_trial_that_diverges_is_named_and_the_others_are_sealed(home, tmp_path):
    home = Path(shutil.copytree(home, tmp_path / "home"))
    sweep = '[[sweep]]\nname = "lrs"\nstudent = "tree"\nseeds = [0, 1]\nover = { lr = [0.01, 1e38, 0.02] }\n'
    ws = workspace(home, sweep)
    with pytest.raises(StillroomError) as raised:
        distill.run(ws)
    told = sorted(str(raised.value).splitlines())
    assert [line.split(": ")[:2] for line in told] == [
        ["tree.lrs.1-s0", "student.tree.lrs.1"],
        ["tree.lrs.1-s1", "student.tree.lrs.1"],
    ]
    assert all("at step 4; expected a finite number; lower lr (now 1e+38) or set clip" in line for line in told)
    jobs = [job for entry in ws.recipe.students for job in runs.runs(ws, entry)]
    sealed = [job.name for job in jobs if ws.is_finished(runs.folder_of(ws, job))]
    assert sealed == ["tree-s0", "tree.lrs.0-s0", "tree.lrs.0-s1", "tree.lrs.2-s0", "tree.lrs.2-s1"]

    again = workspace(home, sweep)  # tries the failed ones alone
    with pytest.raises(StillroomError, match=r"tree\.lrs\.1"):
        distill.run(again)
    assert again.done == []


def test_a_sweep_is_asked_for_by_its_students_and_its_own_name(home):
    sweeps = "".join(
        f'[[sweep]]\nname = "{name}"\nstudent = "tree"\nover = {{ {key} = {values} }}\n'
        for name, key, values in (("a", "lr", [0.1, 0.2]), ("b", '"loss.alpha"', [0.5]))
    )
    ws = workspace(home, sweeps)
    asked = {name: [entry.name for entry in distill.chosen(ws, name)] for name in (None, "tree", "tree.a", "tree.b.0")}
    assert asked == {
        None: ["tree", "tree.a.0", "tree.a.1", "tree.b.0"],
        "tree": ["tree", "tree.a.0", "tree.a.1", "tree.b.0"],
        "tree.a": ["tree.a.0", "tree.a.1"],
        "tree.b.0": ["tree.b.0"],
    }
    with pytest.raises(StillroomError, match=r"no student 'tree.c'"):
        distill.chosen(ws, "tree.c")


def test_a_trial_like_its_student_is_the_same_work_and_an_unswept_one_not(home):
    """Names are no part of what a student is made from, but of where it lies."""
    ws = workspace(home, '[[sweep]]\nname = "a"\nstudent = "tree"\nover = { lr = [0.01, 0.03] }\n')
    own, same, other = (next(iter(runs.runs(ws, entry))) for entry in ws.recipe.students)
    assert runs.config_of(ws, own) == runs.config_of(ws, same) != runs.config_of(ws, other)
    assert len({runs.folder_of(ws, job) for job in (own, same, other)}) == 3


@pytest.mark.parametrize(
    ("sweep", "told"),
    [
        ('student = "tere"\nover = { lr = [0.1] }', r"no student 'tere'; expected one it has; did you mean 'tree'"),
        ('student = "tree"\nover = {}', r"sweep\.lrs\.over: found \{\}; expected: .*at least 1 item"),
        ('student = "tree"\nsearch = "gird"\nover = { lr = [0.1] }', r"sweep\.lrs\.search: found 'gird'; expected: "),
        (
            'student = "tree"\nover = { "loss.kind" = ["kl", "kll"] }',
            r"student\.tree\.lrs\.1\.loss\.kind: unknown loss 'kll'",
        ),
        (
            'student = "tree"\nover = { "loss.temperature" = [2.0] }',
            r"student\.tree\.lrs\.0\.loss\.temperature: found 2; exp",
        ),
        (
            'student = "tree"\nover = { fusion = ["mean", "maen"] }',
            r"student\.tree\.lrs\.1\.fusion: unknown fusion 'maen'",
        ),
        ('student = "tree"\nover = { lr = 0.1 }', r"sweep\.lrs\.over\.lr: found 0.1; expected a list of values"),
    ],
)
def test_faults_of_a_recipes_sweeps_are_told_when_it_is_read(home, sweep, told):
    with pytest.raises(StillroomError, match=told):
        workspace(home, f'[[sweep]]\nname = "lrs"\n{sweep}\n')
