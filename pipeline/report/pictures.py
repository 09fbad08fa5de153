"""Pictures that models made, side by side."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True, eq=False)
class Grid:
    """Pictures uint8 [rows, columns, H, W] or, in colour, [rows, columns, 3, H, W]: a column a model."""

    rows: Sequence[str]
    columns: Sequence[str]
    pictures: np.ndarray
    title: str
    note: str


def drawn(grid: Grid) -> bytes:
    """Return the grid as PNG, its rows and columns named."""
    import matplotlib

    from pipeline.report.figures import STYLE, as_png, new_figure, shortened

    pictures = grid.pictures if grid.pictures.ndim == 5 else grid.pictures[:, :, None]
    *_, depth, height, width = pictures.shape
    sheet = pictures.transpose(0, 3, 1, 4, 2).reshape(len(grid.rows) * height, len(grid.columns) * width, depth)
    with matplotlib.rc_context(STYLE):
        figure = new_figure(0.9 + 6.2 * len(grid.rows) / max(10, len(grid.columns)))
        axes = figure.subplots()
        axes.imshow(sheet, cmap="gray", vmin=0, vmax=255, interpolation="nearest" if depth == 1 else "antialiased")
        names = [shortened(name, 18) for name in grid.columns]
        axes.set_xticks((np.arange(len(names)) + 0.5) * width - 0.5, names, rotation=30, ha="left")
        axes.set_yticks((np.arange(len(grid.rows)) + 0.5) * height - 0.5, grid.rows)
        axes.xaxis.tick_top()
        axes.tick_params(length=0)
        axes.spines[:].set_visible(False)
        return as_png(figure)
