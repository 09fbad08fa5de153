"""A recipe of a few hundred real pictures with a teacher of each kind, and a folder to run it in."""

from pathlib import Path

from rich.console import Console

from stages.load import load_recipe
from stages.workspace import Workspace

ROOT = Path(__file__).parents[2]
RECIPE = """
name = "few"
[data]
name = "fashion-mnist"
max_train = 500
max_test = 200
calibration = 0.2
labelled = 120
[views]
count = 2
transforms = [{ kind = "shift", pixels = 2 }]
[[teacher]]
name = "conv"
model = "vgg_small"
width = 4
epochs = 2
batch_size = 32
[[teacher]]
name = "bayes"
model = "sklearn.naive_bayes:GaussianNB"
fit_views = 1
[[teacher]]
name = "own"
model = "own_teacher:build"
epochs = 2
[[fusion]]
name = "weighted"
strategy = "weighted"
[[fusion]]
name = "mean"
strategy = "mean"
temperatures = [1.0, 2.0]
[[student]]
name = "tiny"
model = "mlp"
width = 8
depth = 1
fusion = "weighted"
epochs = 2
seeds = [0, 1]
[[student]]
name = "other"
model = "mlp"
width = 12
depth = 1
fusion = "mean"
epochs = 1
seeds = [0]
baselines = false
loss = { temperature = 2.0, alpha = 0.3 }
"""
OWN_TEACHER = """
from torch import nn

def build(num_classes, in_shape):
    return nn.Sequential(nn.Flatten(), nn.Linear(in_shape[1] * in_shape[2], num_classes))
"""


def workspace(home: Path, *overrides: str) -> Workspace:
    return Workspace(load_recipe(str(home / "few.toml"), overrides), home / "data", Console(quiet=True))


def contents(folder: Path) -> dict[str, bytes]:
    """Every file of an artefact but what it cost, which depends on the machine."""
    files = [path for path in folder.rglob("*") if path.is_file() and path.name != "cost.json"]
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in files}


def settle(home: Path) -> None:
    """Lay down the recipe, its own teacher and the data in a folder."""
    (home / "few.toml").write_text(RECIPE)
    (home / "own_teacher.py").write_text(OWN_TEACHER)
    (home / "data").mkdir()
    (ROOT / "data" / "raw").mkdir(exist_ok=True)
    (home / "data" / "raw").symlink_to(ROOT / "data" / "raw")
