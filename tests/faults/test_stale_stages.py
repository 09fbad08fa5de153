"""Stages that are asked again find what they made, refuse what is stale, and make anything else elsewhere."""

import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from instants import steps_in
from PIL import Image
from rich.console import Console
from safetensors.torch import load_file, save_file
from stale import check_refused, over_states, traces, unfinish
from toys import make_pixels

from pipeline.lineage import file_digest, read_manifest
from pipeline.store.records import RECORDS
from pipeline.teachers.torch import WEIGHTS
from stages import fuse as fuse_stage
from stages import logits
from stages.load import load_recipe
from stages.workspace import Workspace

pytestmark = pytest.mark.usefixtures("small_and_quick")
RECIPE = """
name = "small"
[data]
folder = "{home}/pictures"
size = 12
channels = 1
[views]
count = 2
transforms = [{{ kind = "shift", pixels = 1 }}]
[[teacher]]
name = "one"
model = "mlp"
width = 8
depth = 1
epochs = 1
[[teacher]]
name = "two"
model = "mlp"
width = 6
depth = 1
epochs = 1
[[fusion]]
name = "mean"
"""


@pytest.fixture(scope="module")
def made(tmp_path_factory) -> Path:
    """A folder in which two teachers, their stores and a target store have been made."""
    home = tmp_path_factory.mktemp("home")
    for number, pixels in enumerate(make_pixels(60)):
        folder = home / "pictures" / str(number % 3)
        folder.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels[0]).save(folder / f"{number:02}.png")
    ws = workspace(home)
    logits.run(ws)
    fuse_stage.ensure(ws, ws.recipe.fusion[0])
    return home


@pytest.fixture
def home(made, tmp_path) -> Path:
    """A copy of it, to spoil."""
    return Path(shutil.copytree(made, tmp_path / "home"))


def workspace(home: Path, *overrides: str) -> Workspace:
    (home / "small.toml").write_text(RECIPE.format(home=home))
    return Workspace(load_recipe(str(home / "small.toml"), overrides), home / "data", Console(quiet=True))


def replace_weights(ws: Workspace) -> None:
    """Put other weights where the first teacher's lie, sealed as its own: it answers otherwise from now on."""
    folder = ws.teacher_folder(ws.recipe.teacher[0])
    path, manifest = folder / WEIGHTS, read_manifest(folder)
    assert manifest is not None
    save_file({name: -values for name, values in load_file(path).items()}, path)
    replace(manifest, digests={WEIGHTS: file_digest(path)}).write(folder)


def ask_again(ws: Workspace) -> None:
    """Ask both stages by name for what they made."""
    for entry in ws.recipe.teacher:
        logits.ensure(ws, entry, check=True)
    fuse_stage.ensure(ws, ws.recipe.fusion[0], check=True)


def test_stages_asked_again_find_everything_ask_no_teacher_and_write_nothing(home):
    ws, kinds = workspace(home), ("teachers", "logits", "targets")
    before = [traces(home / "data" / kind) for kind in kinds]
    ws.plan  # noqa: B018  opening the pictures notes down their digests
    with steps_in(home / "data") as steps:
        ask_again(ws)
    assert not steps.taken
    assert (ws.teacher_forwards, ws.done) == (0, [])
    assert [traces(home / "data" / kind) for kind in kinds] == before


@over_states
def test_a_store_of_other_weights_than_those_on_disk_is_refused(home, state):
    ws = workspace(home)
    entry = ws.recipe.teacher[0]
    folder = ws.teacher_store_folder(entry)
    if state == "unfinished":
        unfinish(folder)
    replace_weights(ws)
    check_refused(lambda: logits.ensure(ws, entry, check=True), folder, r"weights\.weights\.safetensors")
    assert ws.teacher_forwards == 0


def test_a_damaged_store_of_other_weights_is_refused_as_it_lies(home):
    ws = workspace(home)
    entry = ws.recipe.teacher[0]
    folder = ws.teacher_store_folder(entry)
    (folder / RECORDS / "train-0-0.json").write_bytes(b"rotten")
    replace_weights(ws)
    check_refused(lambda: logits.ensure(ws, entry, check=True), folder, r"weights\.weights\.safetensors")


@over_states
def test_a_target_store_of_a_teacher_that_was_dumped_again_is_refused(home, state):
    ws = workspace(home)
    teacher, fusion = ws.recipe.teacher[0], ws.recipe.fusion[0]
    folder = ws.target_folder(fusion)
    if state == "unfinished":
        unfinish(folder)
    shutil.rmtree(ws.teacher_store_folder(teacher))
    replace_weights(ws)
    logits.ensure(ws, teacher)
    check_refused(lambda: fuse_stage.ensure(ws, fusion, check=True), folder, r"parents\.one\.records")


def another_picture(home: Path) -> tuple[str, ...]:
    pixels = np.array(Image.open(home / "pictures/0/03.png"))
    pixels[5, 5] ^= 1
    Image.fromarray(pixels).save(home / "pictures/0/03.png")
    return ()


def a_picture_of_another_class(home: Path) -> tuple[str, ...]:
    (home / "pictures/0/03.png").rename(home / "pictures/1/03.png")
    return ()


RUNS: dict[str, Callable[[Path], tuple[str, ...]]] = {
    "one pixel": another_picture,
    "one label": a_picture_of_another_class,
    "the views": lambda home: ("views.count=3",),
    "the seed": lambda home: ("seed=1",),
    "the codec": lambda home: ("logits.codec=fp32",),
    "the teacher's seed": lambda home: ("teacher.one.seed=1",),
}


@pytest.mark.parametrize("what", ["one pixel", *(pytest.param(run, marks=pytest.mark.faults) for run in RUNS)])
def test_a_run_of_anything_else_lies_elsewhere_and_leaves_what_was_made(home, what):
    before, old = traces(home / "data/logits"), workspace(home)
    folder = old.teacher_store_folder(old.recipe.teacher[0])
    ws = workspace(home, *RUNS[what](home))
    assert ws.teacher_store_folder(ws.recipe.teacher[0]) != folder
    assert ws.target_folder(ws.recipe.fusion[0]) != old.target_folder(old.recipe.fusion[0])
    assert traces(home / "data/logits") == before
