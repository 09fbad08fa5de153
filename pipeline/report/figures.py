"""The report's pictures, as PNG bytes: values in, pixels out.

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
from matplotlib.colors import LinearSegmentedColormap
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.ticker import MaxNLocator

from pipeline.report.numbers import MINUS, number
from pipeline.report.parts import Member
from pipeline.report.summary import BASELINES, BreakEven, Difference, Entry

WIDTH, DPI = 9.2, 192
MOST_CLASSES = 20  # columns of a matrix that can still be read
MOST_SHARES, MOST_WEIGHTS = 6, 14  # teachers that one bar holds, or half a line of a matrix
INK, MUTED, RULE = "#1d2329", "#6a737d", "#d9dee3"
COLOURS = {"teacher": "#7d8791", "fusion": "#3b6fb6", "baseline": "#c27a12", "student": "#00776c"}
ROLES = {"student": "#00776c", "hard_labels": "#c27a12", "best_single": "#8a5fb0", "uniform_mean": "#3b6fb6"}
LINES = {"student": ("student", 2.4, "-"), **{role: (title, 1.3, "--") for role, title in BASELINES.items()}}
SHARES = ("#3b6fb6", "#c27a12", "#00776c", "#8a5fb0", "#b5473c", "#7d8791", "#5fa8d3", "#d9b23d", "#4d8f5b", "#a3728f")
HEAT = LinearSegmentedColormap.from_list("heat", ["#f4f7f9", "#9cc5c9", "#00776c", "#00423c"])
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


def _png(figure: Figure) -> bytes:
    file = io.BytesIO()
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph")  # a class in a script that the font lacks shows as a box
        figure.savefig(file, format="png", dpi=DPI, facecolor="white", metadata={"Software": None})
    return file.getvalue()


def _figure(height: float) -> Figure:
    return Figure(figsize=(WIDTH, height), layout=ConstrainedLayoutEngine(w_pad=0.08, h_pad=0.08))


def comparison(entries: Sequence[Entry], differences: Sequence[Difference]) -> bytes:
    """Return accuracy of every entry, and each student minus its baselines: dots are seeds, bars 95 % intervals."""
    with matplotlib.rc_context(STYLE):
        figure = _figure(0.9 + 0.27 * max(len(entries), len(differences)))
        many = len({entry.student for entry in entries if entry.student}) > 1
        panels = figure.subplots(
            1, 2 if differences else 1, squeeze=False, width_ratios=[3, 2] if differences else [1]
        )[0]
        labels = [
            f"{entry.student}: {entry.title}" if many and entry.kind == "baseline" else entry.title for entry in entries
        ]
        _dots(panels[0], labels, [entry.values("accuracy") for entry in entries], [COLOURS[e.kind] for e in entries])
        for place, entry in enumerate(entries):
            interval = entry.interval("accuracy")
            if interval:
                _bar(panels[0], place, interval.mean, interval.low, interval.high, COLOURS[entry.kind])
        panels[0].set_title("Test accuracy, %")
        kinds = list(dict.fromkeys(entry.kind for entry in entries))
        handles = [panels[0].plot([], [], "o", color=COLOURS[kind], markersize=5)[0] for kind in kinds]
        figure.legend(handles, kinds, loc="outside lower left", ncols=len(kinds), handletextpad=0.1)
        if differences:
            names = [f"{d.student} {MINUS} {d.title}" for d in differences]
            _dots(panels[1], names, [[] for _ in differences], [COLOURS["student"] for _ in differences])
            panels[1].set_ylim(panels[0].get_ylim())  # so that lines are as far apart as on the left
            for place, difference in enumerate(differences):
                accuracy = difference.intervals["accuracy"]
                _bar(panels[1], place, accuracy.mean, accuracy.low, accuracy.high, COLOURS["student"])
            panels[1].axvline(0, color=INK, linewidth=0.8)
            panels[1].set_title("Difference, points")
        return _png(figure)


def _dots(axes: Axes, labels: Sequence[str], values: Sequence[Sequence[float]], colours: Sequence[str]) -> None:
    for place, (seeds, colour) in enumerate(zip(values, colours, strict=True)):
        if len(seeds) > 1:
            axes.plot(np.multiply(seeds, 100), [place] * len(seeds), "o", color=colour, alpha=0.3, markersize=4, mew=0)
    axes.set_yticks(range(len(labels)), [_short(label, 34) for label in labels])
    axes.set_ylim(len(labels) - 0.4, -0.6)
    axes.tick_params(axis="y", length=0)
    axes.spines["left"].set_visible(False)
    axes.grid(axis="x")


def _bar(axes: Axes, place: int, mean: float, low: float, high: float, colour: str) -> None:
    if np.isfinite(low):
        axes.plot([low * 100, high * 100], [place, place], color=colour, linewidth=1.8, solid_capstyle="butt")
    axes.plot(mean * 100, place, "o", color=colour, markersize=6, markeredgecolor="white", markeredgewidth=0.8)


def learning_curves(histories: Mapping[str, Sequence[Sequence[Mapping[str, float]]]]) -> bytes:
    """Return NLL and accuracy on calibration rows by step: role -> a history a seed; line mean, band all seeds."""
    with matplotlib.rc_context(STYLE):
        figure = _figure(3.1)
        panels = figure.subplots(1, 2)
        for axes, metric, scale in zip(panels, ("nll", "accuracy"), (1, 100), strict=True):
            for role in (role for role in ROLES if role in histories):
                seeds = histories[role]
                steps, mean, low, high = _band(seeds, metric)
                axes.fill_between(steps, low * scale, high * scale, color=ROLES[role], alpha=0.16, linewidth=0)
                label, width, dashes = LINES[role]
                line = axes.plot(steps, mean * scale, dashes, color=ROLES[role], linewidth=width, label=label)[0]
                line.set_marker("o" if len(steps) == 1 else "")
            axes.grid(axis="y")
            axes.set_xlabel("steps")
        panels[0].set_title("NLL on calibration rows, nats")
        panels[1].set_title("Accuracy on calibration rows, %")
        handles, labels = panels[0].get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside lower left", ncols=4)
        return _png(figure)


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


def agreement_matrix(members: Sequence[Member]) -> bytes:
    """Return the share of test rows on which each two members choose the same class, in %."""
    shares = [[np.mean(a.predictions == b.predictions) * 100 for b in members] for a in members]
    labels = [member.label for member in members]
    with matplotlib.rc_context(STYLE):
        figure = _figure(1.5 + 0.34 * len(members))
        axes = figure.subplots()
        _heat(axes, np.array(shares), labels, labels)
        axes.set_title("Same first choice, % of test rows")
        return _png(figure)


def class_recall(members: Sequence[Member], labels: np.ndarray, classes: Sequence[str]) -> bytes:
    """Return each member's share of right answers by true class, in %; of many classes those that members differ on."""
    present = np.unique(labels[labels >= 0])
    rates = np.array([[np.mean(m.predictions[labels == c] == c) * 100 for c in present] for m in members])
    telling = np.sort(np.argsort(-np.std(rates, axis=0), kind="stable")[:MOST_CLASSES])
    where = (
        f" ({MOST_CLASSES} classes of {len(present)} on which they differ most)" if len(present) > MOST_CLASSES else ""
    )
    with matplotlib.rc_context(STYLE):
        figure = _figure(1.5 + 0.34 * len(members))
        axes = figure.subplots()
        _heat(axes, rates[:, telling], [m.label for m in members], [classes[c] for c in present[telling]])
        axes.set_title(f"Right answers by true class, %{where}")
        return _png(figure)


def _heat(axes: Axes, values: np.ndarray, rows: Sequence[str], columns: Sequence[str]) -> None:
    axes.imshow(values, cmap=HEAT, vmin=0, vmax=100, aspect="auto")
    axes.set_yticks(range(len(rows)), [_short(text, 30) for text in rows])
    axes.set_xticks(
        range(len(columns)), [_short(text, 18) for text in columns], rotation=35, ha="right", rotation_mode="anchor"
    )
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)
    for (row, column), value in np.ndenumerate(values):
        axes.text(
            column, row, f"{value:.0f}", ha="center", va="center", fontsize=8.5, color="white" if value > 55 else INK
        )
    for edge in range(1, len(columns)):
        axes.axvline(edge - 0.5, color="white", linewidth=1.5)
    for edge in range(1, len(rows)):
        axes.axhline(edge - 0.5, color="white", linewidth=1.5)


def reliability_diagrams(members: Sequence[Member], eces: Sequence[float]) -> bytes:
    """Return a panel a member: accuracy against confidence in bins of equal mass."""
    columns = min(4, len(members))
    lines = -(-len(members) // columns)
    with matplotlib.rc_context(STYLE):
        figure = _figure(0.4 + 2.35 * lines)
        panels = figure.subplots(lines, 4, sharex=True, sharey=True, squeeze=False).flat
        for axes, member, ece in zip(panels, members, eces, strict=False):
            confidence, accuracy, _ = member.curve
            axes.plot([0, 100], [0, 100], color=MUTED, linewidth=0.8, linestyle=(0, (4, 3)))
            axes.fill_between(
                confidence * 100, confidence * 100, accuracy * 100, color=COLOURS[member.kind], alpha=0.18, lw=0
            )
            axes.plot(confidence * 100, accuracy * 100, "o-", color=COLOURS[member.kind], markersize=3.5, linewidth=1.4)
            axes.set_title(_short(member.label, 28), fontsize=9)
            axes.text(4, 90, f"ECE {ece * 100:.1f} %", fontsize=8.5, color=MUTED)
            axes.set(xlim=(0, 100), ylim=(0, 100), xticks=[0, 50, 100], yticks=[0, 50, 100], aspect="equal")
            axes.grid()
        for axes in list(panels)[len(members) :]:
            axes.set_visible(False)
        figure.supxlabel("confidence, %", color=MUTED, fontsize=9)
        figure.supylabel("accuracy, %", color=MUTED, fontsize=9)
        return _png(figure)


def teaching(weights: Mapping[str, Mapping[str, float]], disagreement: Mapping[str, np.ndarray]) -> bytes:
    """Return each fusion's mean weights of its teachers, and how far teachers part: share of rows by divergence."""
    with matplotlib.rc_context(STYLE):
        figure = _figure(max(2.7, 1.7 + 0.42 * len(weights)))
        left, right = figure.subplots(1, 2)
        _weights(left, weights)
        bins = np.linspace(0, max((float(np.max(v)) for v in disagreement.values()), default=1.0) or 1.0, 31)
        for colour, (name, values) in zip(SHARES, disagreement.items(), strict=False):
            shares = np.histogram(values, bins)[0] / len(values) * 100
            right.stairs(shares, bins, color=colour, fill=True, alpha=0.15)
            right.stairs(shares, bins, color=colour, linewidth=1.4, label=_short(name, 24))
        right.set_title("Disagreement, % of train rows")
        right.set_xlabel("generalised Jensen-Shannon divergence, nats")
        right.grid(axis="y")
        if len(disagreement) > 1:
            right.legend()
        return _png(figure)


def _weights(axes: Axes, weights: Mapping[str, Mapping[str, float]]) -> None:
    teachers = list(dict.fromkeys(name for shares in weights.values() for name in shares))
    if len(teachers) > MOST_SHARES:
        mean = [np.mean([own.get(name, 0) for own in weights.values()]) for name in teachers]
        chosen = np.sort(np.argsort(np.negative(mean), kind="stable")[:MOST_WEIGHTS])
        table = np.array([[own.get(teachers[place], 0) * 100 for place in chosen] for own in weights.values()])
        _heat(axes, table, list(weights), [teachers[place] for place in chosen])
        axes.set_title("Mean weight of each teacher, %")
        return
    left = np.zeros(len(weights))
    for place, teacher in enumerate(teachers):
        shares = np.array([own.get(teacher, 0) * 100 for own in weights.values()])
        axes.barh(range(len(weights)), shares, left=left, height=0.6, color=SHARES[place % len(SHARES)], label=teacher)
        for row, (start, share) in enumerate(zip(left, shares, strict=True)):
            if share >= 5:  # narrower ones have no room for a number
                axes.text(start + share / 2, row, f"{share:.0f}", ha="center", va="center", color="white", fontsize=8.5)
        left += shares
    axes.set_yticks(range(len(weights)), [_short(name, 24) for name in weights])
    axes.set(ylim=(len(weights) - 0.5, -0.5), xlim=(0, 100))
    axes.tick_params(axis="y", length=0)
    axes.spines["left"].set_visible(False)
    axes.set_title("Mean weight of each teacher, %")
    axes.legend(
        loc="upper left",
        bbox_to_anchor=(-0.02, -0.14),
        ncols=3 if max(map(len, teachers)) < 12 else 2,
        handlelength=1,
        borderaxespad=0,
    )


def pay_back(even: BreakEven) -> bytes:
    """Return the teachers' seconds by number of students: in the loop, and cached."""
    last = max(4, min(2 * (even.students or 4), 10**6))
    students = np.array([0, last])
    with matplotlib.rc_context(STYLE):
        figure = _figure(2.5)
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
        return _png(figure)


def picture(pixels: np.ndarray) -> bytes:
    """Return a sample as PNG: uint8 [C, H, W] of 1 or 3 channels."""
    from matplotlib.image import imsave

    file = io.BytesIO()
    image = np.repeat(pixels, 3, axis=0) if pixels.shape[0] == 1 else pixels[:3]
    imsave(file, np.ascontiguousarray(image.transpose(1, 2, 0)), format="png")
    return file.getvalue()


def _short(text: str, length: int) -> str:
    """Return a text without its middle: names of a kind differ at their ends."""
    half = length // 2
    return text if len(text) <= length else f"{text[:half]}\N{HORIZONTAL ELLIPSIS}{text[1 + half - length :]}"
