"""A soft decision tree drawn: its top levels with their filters, and the path of one picture. Lengths are inches."""

from collections.abc import Sequence

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import LinearSegmentedColormap
from matplotlib.figure import Figure

from pipeline.report.figures import COLOURS, INK, MUTED, RULE, STYLE, WIDTH, as_png, shortened
from pipeline.report.numbers import share as percent
from pipeline.report.tree import Tree

LEFT, RIGHT, ON_PATH = "#b5473c", "#3b6fb6", COLOURS["student"]
WEIGHTS = LinearSegmentedColormap.from_list("weights", [LEFT, "#f7f7f7", RIGHT])
SIDE, ROW = 0.8, 1.25  # of a picture; from one level to the next
CELLS, LINE = 10, 1.4  # of a path: steps in a line, and its height
CELL = WIDTH / CELLS
LIKELIEST = 3  # classes of a leaf that are named


def tree_figure(tree: Tree, classes: Sequence[str]) -> bytes:
    """Return the top of a tree: filters with the share of test rows that reach them, and what lies below as classes."""
    levels, path = tree.levels, tree.path
    height = levels * ROW + 1.15
    with matplotlib.rc_context(STYLE):
        figure, axes = _canvas(height)
        _legend(axes, height - 0.1)
        tops = [height - 0.3 - level * ROW for level in range(levels + 1)]
        for node in range(1, len(tree.shares)):
            (x, level), (above, _) = _place(node), _place((node - 1) // 2)
            is_on_path = node in path
            axes.plot(
                [above, x],
                [tops[level - 1] - SIDE, tops[level]],
                color=ON_PATH if is_on_path else MUTED,
                linewidth=2.4 if is_on_path else 0.8,
                zorder=1,
            )
        for node, values in enumerate(tree.filters):
            x, level = _place(node)
            _filter(axes, values, x, tops[level], is_on_path=node in path)
            axes.text(x + SIDE / 2 + 0.06, tops[level] - SIDE / 2, percent(tree.shares[node]), va="center")
        for place, answer in enumerate(tree.answers):
            node = len(tree.filters) + place
            x, level = _place(node)
            said = [f"{percent(tree.shares[node])} of rows", *_likeliest(answer, classes, 13)]
            own = ON_PATH if node in path else INK
            for line, (text, colour) in enumerate(zip(said, [MUTED] + [own] * LIKELIEST, strict=False)):
                axes.text(x, tops[level] - 0.04 - 0.17 * line, text, ha="center", va="top", fontsize=8, color=colour)
        return as_png(figure)


def path_figure(tree: Tree, pixels: np.ndarray, classes: Sequence[str], truth: str) -> bytes:
    """Return the example's most probable path: uint8 [C, H, W], the filter of each node on its way, and the leaf."""
    lines = -(-(len(tree.steps) + 2) // CELLS)
    height = lines * LINE
    with matplotlib.rc_context(STYLE):
        figure, axes = _canvas(height)
        places = [
            (CELL * (cell % CELLS + 0.5), height - 0.1 - LINE * (cell // CELLS)) for cell in range(len(tree.steps) + 2)
        ]
        image = np.repeat(pixels, 3, axis=0) if len(pixels) == 1 else pixels[:3]
        _picture(axes, image.transpose(1, 2, 0), *places[0])
        _caption(axes, places[0], "truth", shortened(truth, 13))
        for step, place in zip(tree.steps, places[1:], strict=False):
            _filter(axes, step.filter, *place, is_on_path=False)
            way, colour = ("right", RIGHT) if step.goes_right else ("left", LEFT)
            _caption(axes, place, way, percent(step.probability), colour=colour)
        x, top = places[-1]
        for line, text in enumerate(["leaf", *_likeliest(tree.leaf, classes, 11)]):
            colour = MUTED if not line else ON_PATH if line == 1 else INK
            axes.text(x, top - 0.1 - 0.19 * line, text, ha="center", va="top", fontsize=8, color=colour)
        return as_png(figure)


def _canvas(height: float) -> tuple[Figure, Axes]:
    """Return a figure that is one axes, in inches from its lower left corner."""
    figure = Figure(figsize=(WIDTH, height))
    axes = figure.add_axes((0, 0, 1, 1))
    axes.set(xlim=(0, WIDTH), ylim=(0, height))
    axes.set_axis_off()
    axes.set_autoscale_on(False)
    return figure, axes


def _place(node: int) -> tuple[float, int]:
    """Return where a node stands: its middle from the left, and its level."""
    level = (node + 1).bit_length() - 1
    return (node + 1 - 2**level + 0.5) / 2**level * WIDTH, level


def _filter(axes: Axes, values: np.ndarray, x: float, top: float, *, is_on_path: bool) -> None:
    """Draw a filter with white for zero, its largest weight at full colour."""
    scale = float(np.abs(values).max()) or 1.0
    _picture(axes, WEIGHTS((values / scale + 1) / 2), x, top, edge=ON_PATH if is_on_path else RULE)


def _picture(axes: Axes, image: np.ndarray, x: float, top: float, *, edge: str = RULE) -> None:
    """Draw [H, W, 3 or 4] as large as it fits a square of SIDE below `top`."""
    height, width = image.shape[0], image.shape[1]
    scale = SIDE / max(height, width)
    left, right = x - width * scale / 2, x + width * scale / 2
    upper, lower = top - (SIDE - height * scale) / 2, top - (SIDE + height * scale) / 2
    axes.imshow(image, extent=(left, right, lower, upper), aspect="auto", interpolation="nearest", zorder=2)
    corners = [left, right, right, left, left], [lower, lower, upper, upper, lower]
    axes.plot(*corners, color=edge, linewidth=2.0 if edge == ON_PATH else 0.8, zorder=3)


def _caption(axes: Axes, place: tuple[float, float], first: str, second: str, *, colour: str = INK) -> None:
    x, top = place
    for line, (text, own) in enumerate(((first, MUTED), (second, colour))):
        axes.text(x, top - SIDE - 0.06 - 0.17 * line, text, ha="center", va="top", fontsize=8, color=own)


def _legend(axes: Axes, top: float) -> None:
    texts = ((LEFT, "bright here: to the left"), (RIGHT, "bright here: to the right"))
    for line, (colour, text) in enumerate(texts):
        axes.plot(0.16, top - 0.13 - 0.2 * line, "s", color=colour, markersize=7)
        axes.text(0.28, top - 0.13 - 0.2 * line, text, va="center", color=MUTED)


def _likeliest(answer: np.ndarray, classes: Sequence[str], length: int) -> list[str]:
    """Return the likeliest classes and their probabilities, best first."""
    order = np.argsort(-answer, kind="stable")[:LIKELIEST]
    return [f"{shortened(classes[place], length)} {percent(answer[place])}" for place in order]
