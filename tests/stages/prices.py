"""A recipe of a table of one's own, two of whose columns are to be told as numbers, and a folder to run it in."""

from pathlib import Path

import numpy as np
import pandas as pd
from rich.console import Console

from stages.load import load_recipe
from stages.workspace import Workspace

RECIPE = """
name = "houses"
[data]
table = "{table}"
numbers = ["price", "area"]
calibration = 0.2
test = 0.2
labelled = 120
[[teacher]]
name = "line"
model = "ridge"
[[teacher]]
name = "trees"
model = "forest_numbers"
n_estimators = 10
[[teacher]]
name = "network"
model = "mlp"
width = 16
depth = 1
epochs = 30
batch_size = 16
lr = 1e-2
[[teacher]]
name = "near"
model = "sklearn.neighbors:KNeighborsRegressor"
n_neighbors = 4
[logits]
features = []
[[fusion]]
name = "plain"
strategy = "mean"
[[fusion]]
name = "stack"
strategy = "stacking"
[[fusion]]
name = "precision"
strategy = "inverse_variance"
[[student]]
name = "tiny"
model = "mlp"
width = 8
depth = 1
fusion = "stack"
epochs = 30
batch_size = 32
lr = 1e-2
seeds = [0, 1]
order_seed = 0
[[student]]
name = "plainer"
model = "sklearn.linear_model:LinearRegression"
fusion = "plain"
seeds = [0]
loss = {{ alpha = 0.25 }}
"""


def houses(count: int = 400) -> pd.DataFrame:
    """Return made-up houses, some of whose prices and areas nobody knows."""
    draws = np.random.default_rng(0)
    rooms, age = draws.integers(1, 9, count), draws.integers(0, 80, count)
    price = 100 + 60 * rooms - age + draws.normal(0, 15, count)
    area = 15 + 18 * rooms + draws.normal(0, 4, count)
    price[::7], area[3::5], area[7], price[3:20:4] = np.nan, np.nan, np.nan, np.nan
    town = draws.choice(["north", "south", "east"], count)
    known = {"rooms": rooms, "age": age.astype(float), "town": town}
    return pd.DataFrame({**known, "price": price.round(2), "area": area.round(2)})


class Home:
    """A folder with the recipe and its table."""

    def __init__(self, folder: Path):
        self.folder, self.recipe = folder, folder / "houses.toml"
        self.table = houses()
        self.table.to_csv(folder / "houses.csv", index=False)
        self.recipe.write_text(RECIPE.format(table=folder / "houses.csv"))

    def workspace(self, *overrides: str, recipe: str | None = None) -> Workspace:
        if recipe is not None:
            self.recipe.with_name("other.toml").write_text(recipe)
        path = self.recipe if recipe is None else self.recipe.with_name("other.toml")
        return Workspace(load_recipe(str(path), overrides), self.folder / "data", Console(quiet=True))
