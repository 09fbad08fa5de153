"""The report's figures as PNG bytes, values in, pixels out: how they all look, and those of the league.

Each is 9.2 inches wide with type of 9 points at twice the screen's pixels, so that it is read at 100 %. They keep their
own white ground: a figure whose text follows the page's colours would be lost when it is copied elsewhere.
"""

import io
import warnings
from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.ticker import MaxNLocator

from pipeline.metrics import Interval
from pipeline.report.columns import CLASSES, Column, Steered
from pipeline.report.numbers import MINUS, number
from pipeline.report.summary import BASELINES, BreakEven, Difference, Entry

WIDTH, DPI = 9.2, 192
INK, MUTED, RULE = "#1d2329", "#6a737d", "#d9dee3"
COLOURS = {"teacher": "#7d8791", "fusion": "#3b6fb6", "baseline": "#c27a12", "student": "#00776c"}
ROLES = {"student": "#00776c", "hard_labels": "#c27a12", "best_single": "#8a5fb0", "uniform_mean": "#3b6fb6"}
LINES = {"student": ("student", 2.4, "-"), **{role: (title, 1.3, "--") for role, title in BASELINES.items()}}
SHARES = ("#3b6fb6", "#c27a12", "#00776c", "#8a5fb0", "#b5473c", "#7d8791", "#5fa8d3", "#d9b23d", "#4d8f5b", "#a3728f")
STYLE: Any = {
    "font.size": 9,
    "axes.titlesize": 9.5,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.edgecolor": MUTED,
    "axes.labelcolor": MUTED,
    "axes.linewidth": 0.7,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.axisbelow": True,
    "xtick.color": MUTED,
    "ytick.color": MUTED,
    "xtick.labelcolor": INK,
    "ytick.labelcolor": INK,
    "text.color": INK,
    "grid.color": RULE,
    "grid.linewidth": 0.6,
    "legend.frameon": False,
    "text.parse_math": False,  # a class may be called $x
}


def as_png(figure: Figure) -> bytes:
    """Return a drawn figure as PNG: the same figure gives the same bytes."""
    file = io.BytesIO()
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph")  # a class in a script that the font lacks shows as a box
        figure.savefig(file, format="png", dpi=DPI, facecolor="white", metadata={"Software": None})
    return file.getvalue()


def new_figure(height: float) -> Figure:
    """Return an empty figure as wide as the page, `height` in inches, that makes room for its own labels."""
    return Figure(figsize=(WIDTH, height), layout=ConstrainedLayoutEngine(w_pad=0.08, h_pad=0.08))


def comparison(entries: Sequence[Entry], differences: Sequence[Difference], main: Column = CLASSES.main) -> bytes:
    """Return the main figure of every entry, each student minus its baselines: dots are seeds, bars 95 % intervals."""
    with matplotlib.rc_context(STYLE):
        figure = new_figure(0.9 + 0.27 * max(len(entries), len(differences)))
        many = len({entry.student for entry in entries if entry.student}) > 1
        panels = figure.subplots(
            1, 2 if differences else 1, squeeze=False, width_ratios=[3, 2] if differences else [1]
        )[0]
        labels = [
            f"{entry.student}: {entry.title}" if many and entry.kind == "baseline" else entry.title for entry in entries
        ]
        values = [np.multiply(entry.values(main.name), main.scale) for entry in entries]
        _dots(panels[0], labels, values, [COLOURS[e.kind] for e in entries])
        for place, entry in enumerate(entries):
            interval = entry.interval(main.name)
            if interval:
                _bar(panels[0], place, interval, COLOURS[entry.kind], main.scale)
        panels[0].set_title(f"Test {main.title}")
        kinds = list(dict.fromkeys(entry.kind for entry in entries))
        handles = [panels[0].plot([], [], "o", color=COLOURS[kind], markersize=5)[0] for kind in kinds]
        figure.legend(handles, kinds, loc="outside lower left", ncols=len(kinds), handletextpad=0.1)
        if differences:
            names = [f"{d.student} {MINUS} {d.title}" for d in differences]
            _dots(panels[1], names, [[] for _ in differences], [COLOURS["student"] for _ in differences])
            panels[1].set_ylim(panels[0].get_ylim())  # so that lines are as far apart as on the left
            for place, difference in enumerate(differences):
                _bar(panels[1], place, difference.intervals[main.name], COLOURS["student"], main.scale)
            panels[1].axvline(0, color=INK, linewidth=0.8)
            panels[1].set_title(f"Difference, {main.points}")
        return as_png(figure)


def _dots(axes: Axes, labels: Sequence[str], values: Sequence[Any], colours: Sequence[str]) -> None:
    for place, (seeds, colour) in enumerate(zip(values, colours, strict=True)):
        if len(seeds) > 1:
            axes.plot(seeds, [place] * len(seeds), "o", color=colour, alpha=0.3, markersize=4, mew=0)
    axes.set_yticks(range(len(labels)), [shortened(label, 34) for label in labels])
    axes.set_ylim(len(labels) - 0.4, -0.6)
    axes.tick_params(axis="y", length=0)
    axes.spines["left"].set_visible(False)
    axes.grid(axis="x")


def _bar(axes: Axes, place: int, interval: Interval, colour: str, scale: float) -> None:
    if np.isfinite(interval.low):
        ends = [interval.low * scale, interval.high * scale]
        axes.plot(ends, [place, place], color=colour, linewidth=1.8, solid_capstyle="butt")
    axes.plot(interval.mean * scale, place, "o", color=colour, markersize=6, markeredgecolor="white", mew=0.8)


Seeds = Sequence[Sequence[Mapping[str, float]]]  # a history each


def learning_curves(histories: Mapping[str, Seeds], shown: Steered = CLASSES.steered) -> bytes:
    """Return two figures on calibration rows by step: role -> a history a seed; line mean, band all seeds."""
    with matplotlib.rc_context(STYLE):
        figure = new_figure(3.1)
        panels = figure.subplots(1, 2)
        for axes, (metric, (title, scale)) in zip(panels, shown.items(), strict=True):
            for role in (role for role in ROLES if role in histories):
                seeds = histories[role]
                steps, mean, low, high = _band(seeds, metric)
                axes.fill_between(steps, low * scale, high * scale, color=ROLES[role], alpha=0.16, linewidth=0)
                label, width, dashes = LINES[role]
                line = axes.plot(steps, mean * scale, dashes, color=ROLES[role], linewidth=width, label=label)[0]
                line.set_marker("o" if len(steps) == 1 else "")
            axes.grid(axis="y")
            axes.set_xlabel("steps")
            axes.set_title(title)
        handles, labels = panels[0].get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside lower left", ncols=4)
        return as_png(figure)


def _band(seeds: Sequence[Sequence[Mapping[str, float]]], metric: str) -> tuple[np.ndarray, ...]:
    """Return steps, mean, lowest and highest over seeds; a seed that stopped early counts while it ran."""
    by_step: dict[float, list[float]] = {}
    for history in seeds:
        for point in history:
            by_step.setdefault(point["step"], []).append(point[metric])
    steps = sorted(by_step)
    rows = [(np.mean(by_step[s]), np.min(by_step[s]), np.max(by_step[s])) for s in steps]
    mean, low, high = (np.array(column) for column in zip(*rows, strict=True)) if rows else (np.empty(0),) * 3
    return np.array(steps), mean, low, high


def by_output(errors: Mapping[str, tuple[str, Sequence[float]]], names: Sequence[str], unit: str) -> bytes:
    """Return the rmse of each number that is asked for, a line a model: model -> its kind, rmse [P]."""
    with matplotlib.rc_context(STYLE):
        figure = new_figure(3.3)
        axes = figure.subplots()
        for place, (name, (kind, values)) in enumerate(errors.items()):
            dashes = ("-", "--", ":", "-.")[place % 4] if kind in ("teacher", "baseline") else "-"
            width = 2.2 if kind == "student" else 1.3
            axes.plot(range(len(names)), values, dashes, color=COLOURS[kind], linewidth=width, label=name)
        step = max(1, len(names) // 12)
        axes.set_xticks(range(0, len(names), step), [shortened(name, 16) for name in names[::step]])
        axes.set_title(f"RMSE on test rows{', ' + unit if unit else ''}")
        axes.grid(axis="y")
        figure.legend(loc="outside lower left", ncols=4)
        return as_png(figure)


def pay_back(even: BreakEven) -> bytes:
    """Return the teachers' seconds by number of students: in the loop, and cached."""
    last = max(4, min(2 * (even.students or 4), 10**6))
    students = np.array([0, last])
    with matplotlib.rc_context(STYLE):
        figure = new_figure(2.5)
        axes = figure.subplots()
        axes.plot(students, students * even.online_seconds, color=COLOURS["baseline"], linewidth=1.8)
        axes.plot(students, [even.cache_seconds] * 2, color=COLOURS["student"], linewidth=1.8)
        if even.ratio <= last:
            axes.plot(even.ratio, even.cache_seconds, "o", color=INK, markersize=6)
        axes.text(
            last * 1.01, even.online_seconds * last, "teachers in the loop", va="center", color=COLOURS["baseline"]
        )
        axes.text(last * 1.01, even.cache_seconds, "cached once", va="center", color=COLOURS["student"])
        axes.set(xlim=(0, last), ylim=(0, None), xlabel="students trained")
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        even_at = f"; even at {number(even.ratio, 2)} students" if even.students else ""
        axes.set_title(f"What the teachers cost, seconds{even_at}")
        axes.grid(axis="y")
        return as_png(figure)


def picture(pixels: np.ndarray) -> bytes:
    """Return a sample as PNG: uint8 [C, H, W] of 1 or 3 channels."""
    from matplotlib.image import imsave

    file = io.BytesIO()
    image = np.repeat(pixels, 3, axis=0) if pixels.shape[0] == 1 else pixels[:3]
    imsave(file, np.ascontiguousarray(image.transpose(1, 2, 0)), format="png")
    return file.getvalue()


def shortened(text: str, length: int) -> str:
    """Return a text without its middle: names of a kind differ at their ends."""
    half = length // 2
    return text if len(text) <= length else f"{text[:half]}\N{HORIZONTAL ELLIPSIS}{text[1 + half - length :]}"
