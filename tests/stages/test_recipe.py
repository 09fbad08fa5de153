# ruff: noqa: E501
"""Recipes: what ships is sound, every fault is told at once with its place, overrides land where they say."""

import tomllib
from pathlib import Path

import pytest

from pipeline.errors import StillroomError
from stages.check import check_imported_teachers
from stages.load import SHIPPED, load_recipe, recipe_names

SOUND = """
name = "own"
[data]
name = "mnist-5k"
[[teacher]]
name = "a"
model = "mlp"
width = 8
[[fusion]]
name = "mean"
[[student]]
name = "s"
model = "mlp"
"""


@pytest.fixture
def write(tmp_path):
    def write(text: str) -> str:
        path = tmp_path / "own.toml"
        path.write_text(text)
        return str(path)

    return write


@pytest.mark.parametrize("name", recipe_names())
def test_every_shipped_recipe_is_sound_and_named_after_its_file(name):
    assert load_recipe(name).name == name


def test_commented_recipe_shows_every_key():
    text = (SHIPPED / "commented.toml").read_text()
    document = tomllib.loads(text)
    from stages.load import SECTIONS
    from stages.recipe import Recipe

    def shown(model, table):
        return {key for key in model.model_fields if key in table or f"# {key} = " in text or f"# [[{key}]]" in text}

    assert shown(Recipe, document) == set(Recipe.model_fields)
    for section in ("data", "views", "logits"):
        assert shown(SECTIONS[section], document[section]) == set(SECTIONS[section].model_fields), section
    lines = text[text.index("# [[input]]") :].split("\n\n")[0].splitlines()
    commented = tomllib.loads("\n".join(line.removeprefix("# ") for line in lines))
    assert shown(SECTIONS["input"], commented["input"][0]) == set(SECTIONS["input"].model_fields)
    lines = text[text.index("# [[source]]") :].split("\n\n")[0].splitlines()
    (source,) = tomllib.loads("\n".join(line.removeprefix("# ") for line in lines))["source"]
    assert set(source) == set(SECTIONS["source"].model_fields)
    SECTIONS["source"].model_validate(source)
    for section in ("teacher", "fusion", "student"):
        table = {key for entry in document[section] for key in entry}
        assert shown(SECTIONS[section], table) == set(SECTIONS[section].model_fields), section
    assert shown(SECTIONS["loss"], document["student"][0]["loss"]) == set(SECTIONS["loss"].model_fields)


@pytest.mark.parametrize(
    ("old", "new", "told"),
    [
        ('name = "mnist-5k"', 'name = "mnist"', r"data\.name: unknown data set 'mnist'.*'mnist-5k'"),
        ('name = "mnist-5k"', 'nam = "mnist-5k"', r"data\.nam: unknown key 'nam'.*did you mean 'name'"),
        ('name = "mnist-5k"', 'name = "mnist-5k"\nfolder = "x"', r"data: found name and folder; expected exactly one"),
        ('model = "mlp"\nwidth', 'model = "mpl"\nwidth', r"teacher\.a: unknown model 'mpl'.*'mlp'"),
        ("width = 8", "widht = 8", r"teacher\.a \(mlp\): unknown option 'widht'.*'width'"),
        ("width = 8", "epocs = 8", r"teacher\.a: unknown key 'epocs'; expected 'epochs'"),
        ("width = 8", "epochs = 0", r"teacher\.a\.epochs: found 0; expected: Input should be greater than 0"),
        ('name = "mean"', 'name = "mean"\nstrategy = "maen"', r"fusion\.mean\.strategy: unknown strategy 'maen'.*'mean'"),
        ('name = "mean"', 'name = "mean"\noff = "x"', r"fusion\.mean: unknown key 'off'"),
        ('name = "mean"', 'name = "mean"\nstrategy = "mean"\nof = "probs"', r"fusion\.mean: .*'probs'"),
        ('name = "mean"', 'name = "mean"\nteachers = ["b"]', r"fusion\.mean\.teachers: unknown teacher 'b'"),
        ('name = "mean"', 'name = "mean"\ncodec = "fp17"', r"fusion\.mean\.codec: unknown codec 'fp17'.*'fp16'"),
        ('name = "s"', 'name = "s"\nfusion = "men"', r"student\.s\.fusion: unknown fusion 'men'.*'mean'"),
        ('name = "s"', 'name = "s"\nloss = { kind = "lk" }', r"student\.s\.loss\.kind: unknown loss 'lk'"),
        ('name = "s"', 'name = "s"\nloss = { alpha = "condtional" }', r"loss\.alpha: unknown rule.*'conditional'"),
        ('name = "s"', 'name = "s"\nloss = { temperature = 4.0 }', r"temperature: found 4; expected one of fusion 'mean'"),
        ('name = "s"', 'name = "s"\nloss = { tempature = 4.0 }', r"student\.s\.loss\.tempature: unknown key.*'temperature'"),
        ('name = "s"', 'name = "s"\nseeds = [1, 1]', r"student\.s\.seeds: found \[1, 1\]"),
        ('name = "s"', 'name = "a/../b"', r"student\.a/../b\.name: found 'a/../b'"),
        ("[data]", "[views]\ntransforms = [{ kind = 'shfit' }]\n[data]", r"views\.transforms\[0\]: unknown transform 'shfit'"),
        ("[data]", "[views]\ntransforms = [{ kind = 'shift', pixel = 1 }]\n[data]", r"found option 'pixel'.*'pixels'"),
        ("[data]", "[views]\nmix = { kind = 'mixap' }\n[data]", r"views\.mix: unknown mix 'mixap'.*'mixup'"),
        ("[data]", "[views]\ncount = 2\nmix = { views = 3 }\n[data]", r"views\.mix\.views: found 3; expected 1 to 2"),
        ("[[teacher]]", "[[teacher]]\nmixed = false", r"\.mixed: found false without views\.mix"),
        ("[[teacher]]", "[views]\ncount = 1\nmix = {}\n[[teacher]]\nmixed = false", r"\.mixed: found false where every view is"),
        ("[data]", "[dta]\n[data]", r"dta: unknown key 'dta'.*'data'"),
        ("[[teacher]]", "[[teacher]]\nname = 'a'\nmodel = 'mlp'\n[[teacher]]", r"teacher\.a: found 2 of that name"),
    ],
)  # fmt: skip
def test_a_fault_is_told_with_its_place_and_the_near_name(write, old, new, told):
    with pytest.raises(StillroomError, match=told):
        load_recipe(write(SOUND.replace(old, new, 1)))


TABLE = 'table = "rows.csv"'
OF_DATA = {
    "nothing told": (TABLE, r"data\.label: missing; expected the table's column of classes"),
    "a label and numbers": (f'{TABLE}\nlabel = "a"\nnumbers = ["b"]', r"data\.numbers: found \['b'\] beside label"),
    "a label and a translation": (f'{TABLE}\nlabel = "a"\ntranslation = "b"', r"data\.translation: found 'b' beside label"),
    "nothing to translate": (f'{TABLE}\ntranslation = "b"', r"data\.text: found \[\] with data\.translation"),
    "two to translate": (f'{TABLE}\ntranslation = "b"\ntext = ["a", "c"]', r"data\.text: found \['a', 'c'\] with"),
    "pictures' boxes of a table": (f'{TABLE}\nlabel = "a"\nboxes = "b"', r"data\.boxes: found 'b'; expected it only of pictures"),
    "a translation of pictures": ('folder = "x"\ntranslation = "b"', r"data\.translation: found 'b'; .* only with data\.table;"),
    "boxes of a name": ('name = "mnist-5k"\nboxes = "b"', r"data\.boxes: found 'b'; expected it only with data\.folder"),
    "the test's boxes alone": ('folder = "x"\ntest_boxes = "b"', r"data\.test_boxes: found 'b' without data\.boxes"),
}  # fmt: skip


@pytest.mark.parametrize("what", OF_DATA)
def test_what_a_recipe_asks_of_its_data_must_fit(write, what):
    said, told = OF_DATA[what]
    with pytest.raises(StillroomError, match=told):
        load_recipe(write(SOUND.replace('name = "mnist-5k"', said, 1)))


def test_sources_have_no_translation_and_no_boxes(write):
    text = SOUND.replace('name = "mnist-5k"', 'key = "id"\nlabel = "a.x"\ntranslation = "a.y"\nboxes = "b"', 1)
    with pytest.raises(StillroomError) as caught:
        load_recipe(write(f'{text}\n[[source]]\nname = "a"\nfile = "a.csv"\n'))
    assert "data.translation: found 'a.y'; expected it only with data.table" in str(caught.value)
    assert "data.boxes: found 'b'; expected it only of pictures" in str(caught.value)


def test_all_faults_are_told_at_once(write):
    text = SOUND.replace("mnist-5k", "mnist").replace('model = "mlp"', 'model = "mpl"')
    with pytest.raises(StillroomError) as caught:
        load_recipe(write(text))
    assert len(str(caught.value).splitlines()) == 3


@pytest.mark.parametrize("text", ["name = ", "\x00", "[" * 5000, "name = 'x'"])
def test_what_is_no_recipe_is_an_error_not_a_traceback(write, text):
    with pytest.raises(StillroomError):
        load_recipe(write(text))


def test_unknown_recipe_names_the_near_one():
    with pytest.raises(StillroomError, match="did you mean 'fashion'"):
        load_recipe("fashon")


def test_overrides_reach_tables_entries_and_nested_tables(write):
    path = write(SOUND)
    recipe = load_recipe(path, ["seed=7", "views.count=3", "student.s.width=32", "student.s.loss.alpha=0.5", "name=b"])
    student = recipe.find("student", "s")
    assert (recipe.seed, recipe.views.count, student.options, student.loss.alpha) == (7, 3, {"width": 32}, 0.5)
    assert recipe.name == "b"


@pytest.mark.parametrize(
    ("override", "told"),
    [
        ("student.t.width=3", "student has no 't'"),
        ("seed", "found no section.key=value"),
        ("data.name.y=1", "is no table"),
    ],
)
def test_an_override_that_lands_nowhere_is_told(write, override, told):
    with pytest.raises(StillroomError, match=told):
        load_recipe(write(SOUND), [override])


def test_a_teacher_by_import_path_is_checked_when_it_is_needed_not_before(write):
    recipe = load_recipe(write(SOUND.replace('model = "mlp"\nwidth = 8', 'model = "sklearn.ensembel:Forest"', 1)))
    with pytest.raises(StillroomError, match=r"teacher\.a: unknown module of sklearn 'ensembel'.*'ensemble'"):
        check_imported_teachers(recipe)


def test_shipped_recipes_lie_where_the_package_is():
    assert Path(SHIPPED).is_dir()
