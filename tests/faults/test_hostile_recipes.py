"""A recipe may come from a stranger: one that makes no sense is refused with its place.

With a StillroomError, in a second, before memory or disk is spent, and nothing outside of its folder is read or run.
"""

import os

import pytest
from hostile import SOUND, thrifty

from pipeline.errors import StillroomError
from stages.load import load_recipe


def test_the_recipe_that_is_spoilt_below_is_sound(load):
    assert load(SOUND).find("teacher", "a").lr == 1e-3


STRANGE: dict[str, tuple[str, str]] = {
    "nan": ("lr = 1e-3", "lr = nan"),
    "nan for a model": ("var_smoothing = 1e-8", "var_smoothing = nan"),
    "infinite": ("alpha = 0.5 }\n[logits]", "alpha = inf }\n[logits]"),
    "a date for a model": ("var_smoothing = 1e-8", "var_smoothing = 2020-01-01"),
    "text for a number": ("seed = 3", 'seed = "3"'),
    "true for a number": ("count = 3", "count = true"),
    "too many views": ("count = 3", "count = 1_000_000_000_000"),
    "a number of 4,000 digits": ("seed = 3", f"seed = {'9' * 4000}"),
    "a number of 5,000 digits": ("seed = 3", f"seed = {'9' * 5000}"),
    "a long hexadecimal number": ("seed = 3", f"seed = 0x{'f' * 50_000}"),
    "a huge k": ("k = 4", "k = 1_000_000_000_000"),
    "a negative k": ("k = 4", "k = -1"),
    "another option": ("k = 4", "q = 4"),
    "a codec of a list": ('kind = "topk"', 'kind = ["topk"]'),
    "a codec of nothing": ('{ kind = "topk", k = 4, temperatures = [1.0, 4.0] }', "{}"),
    "a codec that is a number": ('codec = "companded8"', "codec = 8"),
    "huge dims": ("dims = 8", "dims = 1_000_000_000"),
    "no budget": ("max_gb = 2.5", "max_gb = 0"),
    "a negative budget": ("max_gb = 2.5", "max_gb = -1"),
    "a budget of text": ("max_gb = 2.5", 'max_gb = "all"'),
    "an infinite budget": ("max_gb = 2.5", "max_gb = inf"),
    "a transform of a list": ('kind = "shift"', 'kind = ["shift"]'),
    "no kind": ('kind = "shift", ', ""),
    "pixels without end": ("pixels = 2", f"pixels = {10**18}0"),
    "no torchvision class": ('"RandomAffine"', '"os"'),
    "a dunder": ('"RandomAffine"', '"__class__"'),
    "a function": ('"RandomAffine"', '"functional"'),
    "a list for a name": ('"RandomAffine"', '["RandomAffine"]'),
    "options it hasn't": ("degrees = 5", "fill_in = 5"),
    "options of a wrong type": ("degrees = 5", 'degrees = "x"'),
    "options named like its own": ("degrees = 5", "cls = 5"),
    "an empty import path": ('"RandomAffine"', '":"'),
    "a relative import path": ('"RandomAffine"', '"..os:system"'),
    "no such import path": ('"RandomAffine"', '"no.such:thing"'),
    "mixed views of text": ("views = 1", 'views = "1"'),
    "alpha of text": ("alpha = 0.5 }\n[logits]", 'alpha = "x" }\n[logits]'),
    "a teacher's name that leads out": ('name = "a"', 'name = "../../a"'),
    "a recipe's name that leads out": ('name = "own"', 'name = "../own"'),
    "an absolute name": ('name = "s"', 'name = "/etc/passwd"'),
    "a name with a line in it": ('name = "s"', 'name = "s\\n"'),
    "an empty name": ('name = "s"', 'name = ""'),
    "a long name": ('name = "s"', f'name = "{"s" * 100_000}"'),
    "a data set that leads out": ('name = "mnist-5k"', 'name = "../../../etc"'),
    "a table that is a list": ("[views]", "[[views]]"),
    "a list that is a table": ("[[student]]", "[student]"),
    "tables without end": ("seed = 3", "x = " + "{a = " * 20_000 + "1" + "}" * 20_000),
    "lists without end": ("seed = 3", "x = " + "[" * 100_000 + "]" * 100_000),
    "a key without end": ("seed = 3", ".".join(["a"] * 100_000) + " = 1"),
    "a section without end": ("seed = 3", "[" + ".".join(["a"] * 100_000) + "]"),
    "many keys with many parts": ("seed = 3", "\n".join(f"k{n}{'.a' * 90} = 1" for n in range(400))),
    "a model that is code": ('model = "vgg_small"', 'model = "os:system"'),
    "a model without a name": ('model = "vgg_small"', 'model = ":"'),
    "a model's width without end": ("width = 4", "width = 1e400"),
    "an option set by the run": ("width = 4", "num_classes = 4"),
}


@pytest.mark.parametrize("what", STRANGE)
def test_a_recipe_that_makes_no_sense_is_refused_with_its_place(load, what):
    old, new = STRANGE[what]
    assert old in SOUND
    with pytest.raises(StillroomError) as caught:
        load(SOUND.replace(old, new, 1))
    assert "own.toml" in str(caught.value)
    assert len(str(caught.value)) < 10_000


@pytest.mark.parametrize("size", [300_000, 200 << 20])
def test_a_recipe_of_no_recipes_size_is_refused_unread(tmp_path, size):
    (tmp_path / "own.toml").write_text(SOUND)
    os.truncate(tmp_path / "own.toml", size)
    with (
        thrifty(),
        pytest.raises(StillroomError, match=r"found no TOML; .* more than 262,144 bytes"),
    ):
        load_recipe(str(tmp_path / "own.toml"))


@pytest.mark.parametrize(
    "name", ["", "\0", "x" * 5000, "../../etc/passwd", "/etc/passwd", "/dev/zero", "own.toml\0", "/"]
)
def test_a_name_that_is_no_recipe_is_told(name):
    for given in (name, f"{name}.toml"):
        with pytest.raises(StillroomError, match="found no"):
            load_recipe(given)


OVERRIDES = ["seed.x.y=1", "name.a.b.c=1", "teacher.0.width=1", "=", ".=1", "a..b=1", "seed=nan", "seed=[", "student=5"]
LONG = ["views.count=0x" + "f" * 20_000, "seed=" + "[" * 100_000, "student.s.width=" + "9" * 5000, "." * 5000 + "=1"]


@pytest.mark.parametrize(
    "override", [*OVERRIDES, *LONG, "x=1", "\0=1", "teacher.a=1"], ids=lambda text: ascii(text)[:20]
)
def test_an_override_that_makes_no_sense_is_told(load, override):
    with pytest.raises(StillroomError):
        load(SOUND, [override])


def test_a_fusion_for_students_that_are_none_is_told(load):
    for students in ("student = 5", "student = [5]", "student = [[]]", "[student]\nname = 5"):
        text = SOUND.partition("[[student]]")[0]
        with pytest.raises(StillroomError):
            load(f"{students}\n{text}" if "[student]" not in students else text + students, fusion="mean")
