"""Pictures that models made, side by side."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True, eq=False)
class Grid:
    """Pictures uint8 [rows, columns, H, W]: a row a class, a column a model."""

    rows: Sequence[str]
    columns: Sequence[str]
    pictures: np.ndarray


def drawn(grid: Grid) -> bytes:
    """Return the grid as PNG, its rows and columns named."""
    import matplotlib

    from pipeline.report.figures import STYLE, as_png, new_figure, shortened

    height, width = grid.pictures.shape[2:]
    sheet = grid.pictures.transpose(0, 2, 1, 3).reshape(len(grid.rows) * height, len(grid.columns) * width)
    with matplotlib.rc_context(STYLE):
        figure = new_figure(0.9 + 0.62 * len(grid.rows))
        axes = figure.subplots()
        axes.imshow(sheet, cmap="gray", vmin=0, vmax=255, interpolation="nearest")
        names = [shortened(name, 18) for name in grid.columns]
        axes.set_xticks((np.arange(len(names)) + 0.5) * width - 0.5, names, rotation=30, ha="left")
        axes.set_yticks((np.arange(len(grid.rows)) + 0.5) * height - 0.5, grid.rows)
        axes.xaxis.tick_top()
        axes.tick_params(length=0)
        axes.spines[:].set_visible(False)
        return as_png(figure)
