"""Recipes of real numbers whose faults are told before anything runs."""

import pytest
from prices import Home

from pipeline.errors import StillroomError
from stages import distill
from stages.asks import is_real
from stages.load import load_recipe

FAULTS = {
    "a strategy of classes": (
        ["fusion.plain.strategy=linear_pool"],
        "fusion.plain.strategy: unknown strategy for real",
    ),
    "a lazy strategy": (
        ["fusion.plain.strategy=aekd"],
        "fusion.plain.strategy: unknown strategy for real numbers 'aekd'",
    ),
    "auto": (["fusion.plain.strategy=auto"], "fusion.plain.strategy: unknown strategy for real numbers 'auto'"),
    "no such teacher": (
        ["fusion.plain.strategy=single:lime"],
        "fusion.plain.strategy: unknown teacher 'lime'; .*'line'",
    ),
    "no such teachers": (['fusion.plain.teachers=["lime"]'], "fusion.plain.teachers: unknown teacher 'lime'"),
    "an option": (["fusion.stack.sharde=true"], "fusion.stack: unknown key 'sharde'; expected a key of 'stacking'"),
    "an option's type": (["fusion.stack.shared=3"], "fusion.stack: real fusion 'stacking': shared is 3; expected true"),
    "temperatures": (
        ["fusion.plain.temperatures=[1.0]"],
        "fusion.plain.temperatures: found .*; expected none, for it is",
    ),
    "calibrate": (["fusion.plain.calibrate=false"], "fusion.plain.calibrate: found False; expected none, for it is of"),
    "correction": (
        ["fusion.plain.correction=soft"],
        "fusion.plain.correction: found 'soft'; expected none, for it is of",
    ),
    "target": (["fusion.plain.target=lazy"], "fusion.plain.target: found 'lazy'; expected none, for it is of classes"),
    "a codec": (["logits.codec=fp16"], "logits.codec: unknown codec 'fp16'; expected"),
    "auto codec": (["fusion.plain.codec=auto"], "fusion.plain.codec: unknown codec 'auto'; expected"),
    "a budget": (
        ["logits.max_gb=1.0"],
        "logits.max_gb: found 1; expected none, for codecs of numbers are few; remove it",
    ),
    "fitted on train": (
        ["fusion.stack.fit_on=train"],
        "fusion.stack.fit_on: found 'train', the rows that the teachers",
    ),
    "fitted nowhere": (["fusion.stack.fit_on=nowhere"], "fusion.stack.fit_on: unknown rows 'nowhere'; expected"),
    "no folds": (
        ["fusion.stack.fit_on=out_of_fold"],
        "fusion.stack.fit_on: found 'out_of_fold' without folds; expected",
    ),
    "wrong labels": (
        ["teacher.line.wrong_labels=0.2"],
        "teacher.line.wrong_labels: found 0.2; expected none, for it is",
    ),
    "no classes": (['teacher.line.without_classes=["price"]'], "teacher.line.without_classes: found .* expected none"),
    "a teacher of classes": (
        ["teacher.network.model=soft_tree"],
        "teacher.network.model: found 'soft_tree', which answers",
    ),
    "a file": (
        ["teacher.line.model=predictions"],
        "teacher.line.model: found 'predictions'; expected a model to train",
    ),
    "a loss of classes": (["student.tiny.loss.kind=kl"], "student.tiny.loss.kind: unknown loss of real numbers 'kl'"),
    "a rule for alpha": (
        ["student.tiny.loss.alpha=annealed"],
        "student.tiny.loss.alpha: found 'annealed'; expected a num",
    ),
    "a loss' option": (["student.tiny.loss.beta=2.0"], "student.tiny.loss: unknown option 'beta'; expected one of 0"),
    "a temperature": (["student.tiny.loss.temperature=4.0"], "student.tiny.loss.temperature: found 4.0; expected none"),
    "smoothing": (
        ["student.tiny.loss.smoothing=0.1"],
        "student.tiny.loss.smoothing: found 0.1; expected none, for numbers",
    ),
    "features": (
        ['student.tiny.loss.features=[{ kind = "srd" }]'],
        "student.tiny.loss.features: found .*; expected none",
    ),
    "an ensemble": (
        ["student.tiny.ensemble=2"],
        "student.tiny.ensemble: found 2; expected none, for it goes by likelih",
    ),
    "generations": (["student.tiny.generations=2"], "student.tiny.generations: found 2; expected none, for it goes by"),
    "a monitor": (
        ["student.tiny.monitor=kl"],
        "student.tiny.monitor: found 'kl'; expected none, for it goes by likelihoods",
    ),
    "heads": (
        ["student.tiny.model=hydra", "student.tiny.heads=2"],
        "student.tiny.model: found 'hydra', which answers with",
    ),
    "each teacher": (
        ["student.tiny.fusion=each"],
        "student.tiny.fusion: found 'each'; expected a fusion or labels, for",
    ),
    "a column twice": (
        ['data.numbers=["area", "area"]'],
        r"data.numbers: found \['area', 'area'\]; expected each column",
    ),
    "a label beside": (
        ["data.label=town"],
        r"data.numbers: found \['price', 'area'\] beside label; expected one of both",
    ),
}


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    return Home(tmp_path_factory.mktemp("houses"))


@pytest.mark.parametrize("what", FAULTS)
def test_a_recipes_faults_are_told_before_anything_runs(home, what):
    overrides, message = FAULTS[what]
    with pytest.raises(StillroomError, match=message) as error:
        home.workspace(*overrides)
    assert all(line.startswith("houses.toml: ") for line in str(error.value).split("\n"))


def test_all_faults_are_told_at_once(home):
    with pytest.raises(StillroomError) as error:
        home.workspace("fusion.plain.strategy=vote", "student.tiny.loss.kind=dkd", "logits.codec=fp16")
    assert len(str(error.value).split("\n")) == 3


def test_a_sweep_goes_by_likelihoods(home):
    text = home.recipe.read_text() + '[[sweep]]\nname = "rates"\nstudent = "tiny"\nover = { lr = [1e-3, 1e-2] }\n'
    with pytest.raises(
        StillroomError, match=r"sweep.rates: found a sweep; expected none, for trials are compared by like"
    ):
        home.workspace(recipe=text)


def test_a_column_of_words_is_no_number(home):
    other = home.workspace('data.numbers=["town"]')
    with pytest.raises(StillroomError, match="town: found words; expected numbers to answer with; mend the column"):
        distill.run(other)


def test_a_recipe_of_classes_is_none_of_numbers(home):
    assert is_real(home.workspace().recipe)
    assert is_real(load_recipe("traffic"))
    assert not is_real(load_recipe("fashion"))
