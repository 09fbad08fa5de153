"""A recipe with a student of many kinds on sixty made-up pictures, and a folder in which its teachers have answered."""

from pathlib import Path

import numpy as np
from PIL import Image
from rich.console import Console

from stages.load import load_recipe
from stages.workspace import Workspace

COMMON = """
epochs = {epochs}
batch_size = 9
lr = 0.01
seeds = [0]
order_seed = 0
baselines = false
"""
STUDENTS = {
    "srd": """
model = "mlp"
width = 8
depth = 1
loss = { kind = "dkd", beta = 4.0, alpha = "uncertainty", features = [{ kind = "srd" }] }
""",
    "sim": """
model = "mlp"
width = 8
depth = 1
loss = { alpha = 0.0, features = [{ kind = "simkd", teachers = ["sound"], hidden = 5 }] }
""",
    "heads": """
model = "hydra"
trunk = "mlp"
heads = 2
width = 16
depth = 1
fusion = "each"
loss = { alpha = 0.0 }
""",
    "ranked": """
model = "batch_ensemble"
members = 2
width = 8
depth = 1
ema = 0.9
monitor = "kl"
""",
    "tree": """
model = "soft_tree"
depth = 2
decay = "one_cycle"
""",
    "contrast": """
model = "mlp"
width = 8
depth = 1
loss = { kind = "dist", alpha = "hypergradient", features = [{ kind = "crd", negatives = 11, width = 4 }] }
""",
    "labels": """
model = "mlp"
width = 8
depth = 1
fusion = "labels"
loss = { smoothing = 0.2 }
""",
    "trio": """
model = "mlp"
width = 8
depth = 1
ensemble = 3
""",
    "pair": """
model = "mlp"
width = 8
depth = 1
ensemble = 2
loss = { alpha = 0.0, features = [{ kind = "simkd", teachers = ["sound"] }] }
""",
}
RECIPE = """
name = "kinds"
[data]
folder = "{folder}"
test = 0.3
calibration = 0.3
labelled = 24
[views]
count = 2
transforms = [{{ kind = "shift", pixels = 1 }}]
[[teacher]]
name = "sound"
model = "mlp"
width = 10
epochs = 8
batch_size = 8
[[teacher]]
name = "blind"
model = "mlp"
width = 6
epochs = 8
batch_size = 8
without_classes = ["two"]
[[fusion]]
name = "mean"
strategy = "mean"
"""


def settle(home: Path) -> None:
    """Lay down pictures of three classes, a bright bar each, and the recipe."""
    draws = np.random.default_rng(0)
    for number, name in enumerate(("one", "two", "three")):
        (home / "pictures" / name).mkdir(parents=True)
        for index in range(20):
            pixels = draws.integers(0, 60, (8, 8))
            pixels[2 * number : 2 * number + 3] += 120
            Image.fromarray(pixels.astype(np.uint8)).save(home / "pictures" / name / f"{index}.png")
    (home / "kinds.toml").write_text(recipe(home, *STUDENTS))


def recipe(home: Path, *names: str) -> str:
    """Return a recipe of some of the students."""
    entries = [(name, COMMON.format(epochs=20 if name == "heads" else 4), STUDENTS[name]) for name in names]
    text = "".join(f'[[student]]\nname = "{name}"\n{common}{words}' for name, common, words in entries)
    return RECIPE.format(folder=home / "pictures") + text


def workspace(home: Path, *overrides: str, console: Console | None = None) -> Workspace:
    """The workspace of the recipe that lies there."""
    return Workspace(load_recipe(str(home / "kinds.toml"), overrides), home / "data", console or Console(quiet=True))
