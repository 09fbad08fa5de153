"""Students of every kind from one recipe: sealed, rebuilt from their folder, and the same whoever shared their pass."""

import io
import shutil
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from kinds import STUDENTS, recipe, settle, workspace
from rich.console import Console
from safetensors.torch import load_file

from pipeline.errors import StillroomError
from pipeline.lineage import read_manifest
from pipeline.metrics import classification_metrics
from pipeline.models import JoinedMembers, SoftTree, build_model
from pipeline.report import student_answers
from pipeline.selection import greedy
from pipeline.train import fit, label_loss, predict, seeded
from pipeline.views import ViewLoader
from stages import distill, logits, passes, runs
from stages.networks import load_student
from stages.show import quick_scores

ENSEMBLES = ("trio", "pair")


@pytest.fixture(scope="module")
def dumped(tmp_path_factory):
    """A home in which both teachers have answered, and are gone."""
    home = tmp_path_factory.mktemp("kinds")
    settle(home)
    logits.run(workspace(home))
    shutil.rmtree(home / "data" / "teachers")
    return home


@pytest.fixture(scope="module")
def made(dumped):
    """Its workspace once all students are trained, and what was said meanwhile."""
    said = io.StringIO()
    ws = workspace(dumped, console=Console(file=said, width=200))
    distill.run(ws)
    return ws, said.getvalue()


@pytest.fixture
def home(dumped, tmp_path):
    """The teachers' stores alone, to work in."""
    keep = shutil.ignore_patterns("students", "targets")
    return Path(shutil.copytree(dumped, tmp_path / "home", ignore=keep))


def job_of(ws, name):
    (job,) = runs.runs(ws, ws.recipe.find("student", name))
    return job


def folder_of(ws, name):
    return runs.folder_of(ws, job_of(ws, name))


def rebuilt(ws, folder):
    return load_student(folder, read_manifest(folder), ws.dataset.shape)


def answers(ws, folder, split="test"):
    """What the network in a folder says of held-out rows."""
    return predict(rebuilt(ws, folder), iter(ws.held_out(split)))


# -- sealed and rebuilt -----------------------------------------------------------------------------------------------


def test_all_are_sealed_and_no_teacher_ran(made):
    ws, _ = made
    assert ws.teacher_forwards == 0
    for name in STUDENTS:
        manifest = read_manifest(folder_of(ws, name))
        assert manifest.details["teacher_forwards"] == 0, name
        assert not (folder_of(ws, name) / "checkpoint.pt").exists()
        assert (manifest.details["history"] == []) == (name in ENSEMBLES)


@pytest.mark.parametrize("name", STUDENTS)
def test_a_student_rebuilt_from_its_folder_gives_the_sealed_answers(made, name):
    ws, _ = made
    folder = folder_of(ws, name)
    for split in ("calibration", "test"):
        torch.testing.assert_close(answers(ws, folder, split), student_answers(folder, split), atol=4e-3, rtol=4e-3)
    metrics = read_manifest(folder).metrics["test"]
    labels = torch.from_numpy(ws.plan.splits["test"].labels)
    found = classification_metrics(answers(ws, folder), labels)
    assert {key: metrics[key] for key in ("accuracy", "nll")} == pytest.approx(
        {key: found[key] for key in ("accuracy", "nll")}, abs=5e-3
    )


@pytest.mark.parametrize("name", [name for name in STUDENTS if name not in ENSEMBLES])
def test_the_weights_kept_are_those_of_the_best_evaluation(made, name):
    ws, _ = made
    manifest = read_manifest(folder_of(ws, name))
    by = "kl" if name == "ranked" else "nll"
    best = min(manifest.details["history"], key=lambda figures: figures[by])
    assert manifest.details["best_step"] == best["step"]
    truth = ws.task.truth(ws.plan.splits["calibration"])
    found = quick_scores(rebuilt(ws, folder_of(ws, name)), ws.held_out("calibration"), truth, ws.task, "fp32")
    assert found["nll"] == pytest.approx(best["nll"], rel=1e-4)


def test_parts_of_each_loss_are_in_its_history(made):
    ws, _ = made
    expected = {
        "srd": {"ce", "dkd", "srd"},
        "sim": {"ce", "kl", "simkd"},
        "heads": {"ce", "kl"},
        "tree": {"ce", "kl", "penalty"},
        "contrast": {"ce", "dist", "crd"},
        "labels": {"ce"},
    }
    for name, parts in expected.items():
        figures = read_manifest(folder_of(ws, name)).details["history"][0]
        assert {key for key in figures if key.startswith("train_")} == {f"train_{part}" for part in parts | {"loss"}}


# -- what each kind is ------------------------------------------------------------------------------------------------


def test_simkd_answers_through_the_teachers_own_classifier(made):
    from pipeline.store import open_teacher

    ws, _ = made
    weight, bias = open_teacher(ws.store_folder("sound")).head
    model = rebuilt(ws, folder_of(ws, "sim"))
    state = model.state_dict()
    assert any(value.shape == weight.shape and torch.equal(value, weight.float()) for value in state.values())
    assert any(value.shape == bias.shape and torch.equal(value, bias.float()) for value in state.values())
    assert all(torch.equal(value, weight) is False for value in dict(model.named_parameters()).values())
    assert any(value.shape == (5, 8) for value in state.values())  # its hidden units


def test_each_head_learned_its_own_teacher(made):
    """The second teacher never saw the class "two"; only the second head says little of it."""
    ws, _ = made
    two = ws.classes.index("two")
    rows = ws.held_out("test")[0]
    model = rebuilt(ws, folder_of(ws, "heads"))
    with torch.no_grad():
        of_two = model.member_logits(rows.inputs[rows.labels == two]).softmax(-1)[..., two].mean(0)
    assert of_two[0] > 0.5 > 0.3 > of_two[1]
    assert job_of(ws, "heads").is_each


def test_a_tree_is_one(made):
    ws, _ = made
    assert isinstance(rebuilt(ws, folder_of(ws, "tree")), SoftTree)


def test_labels_alone_are_smoothed_and_only_labelled_rows_are_seen(made):
    """By hand: the same network, order and schedule, and cross-entropy with smoothed labels."""
    ws, _ = made
    entry, job = ws.recipe.find("student", "labels"), job_of(ws, "labels")
    assert job.loss(ws.task) == {"kind": "labels", "smoothing": 0.2}
    steps, epoch = ws.steps(entry, len(ws.plan.splits["train"]))
    build = partial(build_model, "mlp", num_classes=3, in_shape=ws.dataset.shape, width=8, depth=1)

    truth = ws.task.truth(ws.plan.splits["calibration"])

    def trained(smoothing):
        model = seeded(build, 0)
        rows = ws.plan.splits["train"].labelled
        fit(
            model,
            ViewLoader(ws.replayer, "train", batch_size=9, seed=0, positions=rows),
            partial(label_loss, smoothing=smoothing),
            evaluate=lambda model: quick_scores(model, ws.held_out("calibration"), truth, ws.task, "fp32"),
            schedule=ws.schedule(entry, steps, epoch),
            seed=0,
            where="by hand",
        )
        return model.state_dict()

    found, by_hand, plain = load_file(folder_of(ws, "labels") / "weights.safetensors"), trained(0.2), trained(0.0)
    assert all(torch.equal(found[name], value) for name, value in by_hand.items())
    assert not all(torch.equal(found[name], value) for name, value in plain.items())


# -- ensembles --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ENSEMBLES)
def test_an_ensemble_answers_with_the_weighted_mixture_of_its_members(made, name):
    ws, _ = made
    job, folder = job_of(ws, name), folder_of(ws, name)
    parts = runs.members(job)
    details = read_manifest(folder).details
    counts = [details["counts"][part.name] for part in parts]
    calibration = torch.stack([student_answers(runs.folder_of(ws, part), "calibration") for part in parts])
    labels = torch.from_numpy(ws.plan.splits["calibration"].labels)
    assert counts == greedy(calibration, labels).counts
    assert sum(counts) == len(details["calibration_nll"])
    assert details["calibration_nll"] == sorted(details["calibration_nll"], reverse=True)
    said = torch.stack([answers(ws, runs.folder_of(ws, part)).exp() for part in parts])
    shares = torch.tensor(counts) / sum(counts)
    mixture = (shares[:, None, None] * said).sum(0)
    torch.testing.assert_close(student_answers(folder).exp(), mixture, atol=2e-3, rtol=0)
    torch.testing.assert_close(answers(ws, folder).exp(), mixture, atol=2e-3, rtol=0)
    model = rebuilt(ws, folder)
    assert isinstance(model, JoinedMembers)
    assert model.num_members == sum(count > 0 for count in counts)


def test_members_differ_in_first_weights_and_say_so(made):
    ws, _ = made
    parts = runs.members(job_of(ws, "trio"))
    assert [part.name for part in parts] == ["trio-s0.m0", "trio-s0.m1", "trio-s0.m2"]
    assert len({part.draws_seed for part in parts} | {0}) == 4
    first = [load_file(runs.folder_of(ws, part) / "weights.safetensors")["classifier.weight"] for part in parts]
    assert not any(torch.equal(first[k], first[k - 1]) for k in range(3))
    details = read_manifest(folder_of(ws, "trio")).details
    alone = [read_manifest(runs.folder_of(ws, part)).metrics["test"]["accuracy"] for part in parts]
    assert details["members_accuracy"] == pytest.approx(alone)
    assert details["rows"] == sum(read_manifest(runs.folder_of(ws, part)).details["rows"] for part in parts)


# -- in company as alone ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["srd", "tree", "contrast"])
def test_alone_a_student_has_the_bytes_it_had_in_company(made, home, name):
    shared, said = made
    assert "students in one pass" in said
    ws = workspace(home)
    grouped = list(passes.passes(shared, [job_of(shared, each) for each in STUDENTS if each not in ENSEMBLES]))
    assert name in {job.entry.name for job in max(grouped, key=len)}
    distill.run(ws, student=name)
    assert [Path(path).parent.name for path in ws.done] == ["targets", "students"]
    one, other = (folder_of(each, name) / "weights.safetensors" for each in (shared, ws))
    assert one != other
    assert one.read_bytes() == other.read_bytes()


def test_all_that_can_share_a_pass_do(made):
    ws, _ = made
    jobs = [job_of(ws, name) for name in STUDENTS if name not in ENSEMBLES]
    names = [{job.entry.name for job in together} for together in passes.passes(ws, jobs)]
    assert names == [{"srd", "sim", "heads", "ranked", "tree", "contrast"}, {"labels"}]


def test_one_that_can_not_be_begun_is_told_and_the_others_are_trained(home):
    (home / "kinds.toml").write_text(recipe(home, "srd", "sim", "tree", "pair"))
    bad = "student.tree.loss.alpha=hypergradient"  # a tree has no last layer
    many = 'student.sim.loss={alpha = 0.0, features = [{kind = "simkd"}]}'  # of which of the two teachers?
    ws = workspace(home, bad, many)
    with pytest.raises(StillroomError) as raised:
        distill.run(ws)
    told = str(raised.value).splitlines()
    assert len(told) == 2
    assert told[0].startswith("sim-s0: features 'simkd': teachers [0, 1] of 2 have layer 'penultimate'; expected one")
    assert told[1].startswith("tree-s0: student.tree: SoftTree has no nn.Linear")
    assert {entry.name for entry in ws.recipe.student if ws.is_finished(folder_of(ws, entry.name))} == {"srd", "pair"}


def test_of_an_ensemble_those_that_finished_are_joined(home, monkeypatch):
    """One of three diverges: it is told, and the other two are sealed."""
    from stages import students

    (home / "kinds.toml").write_text(recipe(home, "trio"))
    loss = students.objective_of

    def broken(ws, job, *rest):
        found, *others = loss(ws, job, *rest)
        return (found, *others) if job.member != 1 else (lambda logits, batch: (logits.sum(1) * np.nan, {}), None, None)

    monkeypatch.setattr(students, "objective_of", broken)
    ws = workspace(home)
    with pytest.raises(StillroomError, match=r"^trio-s0.m1: student.trio: loss is nan at step 4; [^\n]*$"):
        distill.run(ws)
    assert read_manifest(folder_of(ws, "trio")).details["counts"].keys() == {"trio-s0.m0", "trio-s0.m2"}


# -- what a recipe may not say ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("overrides", "told"),
    [
        (["srd.loss.kind=kll"], r"student\.srd\.loss\.kind: unknown loss 'kll'; .*'kl'"),
        (["srd.loss.betta=2.0"], r"student\.srd\.loss\.betta: unknown key 'betta'; .*did you mean 'beta'"),
        (["srd.loss.beta=-1.0"], r"student\.srd\.loss: kind 'dkd': beta is -1.0; expected a finite number from 0"),
        (["tree.loss.beta=2.0"], r"student\.tree\.loss\.beta: unknown key 'beta'; expected one of its loss"),
        (
            ["srd.loss.alpha=uncertain"],
            r"student\.srd\.loss\.alpha: unknown rule for alpha 'uncertain'; .*'uncertainty'",
        ),
        (['srd.loss.alpha={kind = "scheduled", start = 0.1}'], r"student\.srd\.loss: alpha 'scheduled' has no end"),
        (['srd.loss.alpha={kind = "uncertainty", lr = 0.0}'], r"alpha 'uncertainty': lr is 0.0; expected a finite"),
        (['srd.loss.features=[{kind = "sdr"}]'], r"student\.srd\.loss\.features\[0\]: unknown feature loss 'sdr'"),
        (
            ['srd.loss.features=[{kind = "srd", powr = 2.0}]'],
            r"features\[0\]: unknown key of feature loss 'srd' 'powr'",
        ),
        (['srd.loss.features=[{kind = "srd"}, {kind = "hint", weight = 0.0}]'], r"features\[1\]\.weight: found 0.0"),
        (
            ['labels.loss.features=[{kind = "srd"}]'],
            r"student\.labels\.loss\.features: found some with fusion 'labels'",
        ),
        (["labels.baselines=true"], r"student\.labels\.baselines: found true with fusion 'labels'; expected false"),
        (["labels.monitor=kl"], r"student\.labels\.monitor: found 'kl' with fusion 'labels'; expected a stored one"),
        (["heads.monitor=kl"], r"student\.heads\.monitor: found 'kl' with fusion 'each'; expected a stored one"),
        (["heads.heads=3"], r"student\.heads\.fusion: found 'each' with 'hydra' .*expected an ensemble of +2 members"),
        (["srd.fusion=each"], r"student\.srd\.fusion: found 'each' with 'mlp' and options .*; set heads or members"),
        (["srd.fusion=mena"], r"student\.srd\.fusion: unknown fusion 'mena'; .*'mean'"),
        (["heads.generations=2"], r"student\.heads\.generations: found 2 with fusion 'each'; expected a stored one"),
        (["srd.generations=2"], r"student\.srd\.generations: found 2 with loss.features; expected one of both"),
        (["trio.ensemble=1"], r"student\.trio\.ensemble: found 1; expected: .*greater than or equal to 2"),
        (["tree.decay=cosin"], r"student\.tree\.decay: found 'cosin'; expected: .*'cosine'"),
        (["ranked.ema=1.0"], r"student\.ranked\.ema: found 1.0; expected: .*less than 1"),
        (["ranked.seeds=[1, 1]"], r"student\.ranked\.seeds: found \[1, 1\]; expected each seed once"),
    ],
)
def test_what_a_student_may_not_say_is_told(dumped, overrides, told):
    with pytest.raises(StillroomError, match=told):
        workspace(dumped, *(f"student.{override}" for override in overrides))


def test_every_fault_of_a_loss_is_told_at_once(dumped):
    overrides = ["srd.loss.kind=kll", "labels.monitor=kl", "heads.heads=3"]
    with pytest.raises(StillroomError) as raised:
        workspace(dumped, *(f"student.{override}" for override in overrides))
    assert len(str(raised.value).splitlines()) == 3


@pytest.mark.parametrize(
    ("asked", "roles"),
    [
        ("true", ["student", "uniform_mean", "best_single", "hard_labels"]),
        ('["hard_labels","best_single"]', ["student", "best_single", "hard_labels"]),
        ('["hard_labels"]', ["student", "hard_labels"]),
        ("[]", ["student"]),
        ("false", ["student"]),
    ],
)
def test_a_recipe_says_which_baselines_are_trained(dumped, asked, roles):
    ws = workspace(dumped, f"student.srd.baselines={asked}")
    assert list(dict.fromkeys(job.role for job in runs.runs(ws, ws.recipe.find("student", "srd")))) == roles


def test_an_unknown_baseline_is_told(dumped):
    with pytest.raises(StillroomError, match=r"student\.srd\.baselines.*hard_labels"):
        workspace(dumped, 'student.srd.baselines=["hard_lables"]')


def test_a_baseline_is_neither_featured_nor_smoothed(dumped):
    ws = workspace(dumped, "student.srd.baselines=true", "student.srd.loss.smoothing=0.1")
    jobs = {job.role: job for job in runs.runs(ws, ws.recipe.find("student", "srd"))}
    assert jobs.keys() == {"student", "uniform_mean", "best_single", "hard_labels"}
    assert jobs["hard_labels"].loss(ws.task) == {"kind": "labels"}
    from stages.students import feature_entries, reading_of

    assert {role: len(feature_entries(job)) for role, job in jobs.items()} == {
        "student": 1,
        "uniform_mean": 0,
        "best_single": 0,
        "hard_labels": 0,
    }
    assert reading_of(ws, jobs["hard_labels"]).fields() == []
    assert np.unique([job.order_seed for job in jobs.values()]).tolist() == [0]
