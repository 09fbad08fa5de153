"""Figures of models side by side: whom they agree with, where they are right, how sure, which teacher weighs what."""

from collections.abc import Mapping, Sequence

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import LinearSegmentedColormap

from pipeline.report.figures import COLOURS, INK, MUTED, SHARES, STYLE, as_png, new_figure, shortened
from pipeline.report.parts import Member

MOST_CLASSES = 20  # columns of a matrix that can still be read
MOST_SHARES, MOST_WEIGHTS = 6, 14  # teachers that one bar holds, or half a line of a matrix
HEAT = LinearSegmentedColormap.from_list("heat", ["#f4f7f9", "#9cc5c9", "#00776c", "#00423c"])


def agreement_matrix(members: Sequence[Member]) -> bytes:
    """Return the share of test rows on which each two members choose the same class, in %."""
    shares = [[np.mean(a.predictions == b.predictions) * 100 for b in members] for a in members]
    labels, names = [member.label for member in members], [member.name for member in members]
    with matplotlib.rc_context(STYLE):
        figure = new_figure(1.5 + 0.34 * len(members))
        axes = figure.subplots()
        _heat(axes, np.array(shares), labels, names)
        axes.set_title("Same first choice, % of test rows")
        return as_png(figure)


def class_recall(members: Sequence[Member], labels: np.ndarray, classes: Sequence[str]) -> bytes:
    """Return each member's share of right answers by true class, in %; of many classes those that members differ on."""
    present = np.unique(labels[labels >= 0])
    rates = np.array([[np.mean(m.predictions[labels == c] == c) * 100 for c in present] for m in members])
    telling = np.sort(np.argsort(-np.std(rates, axis=0), kind="stable")[:MOST_CLASSES])
    where = (
        f" ({MOST_CLASSES} classes of {len(present)} on which they differ most)" if len(present) > MOST_CLASSES else ""
    )
    with matplotlib.rc_context(STYLE):
        figure = new_figure(1.5 + 0.34 * len(members))
        axes = figure.subplots()
        _heat(axes, rates[:, telling], [m.label for m in members], [classes[c] for c in present[telling]])
        axes.set_title(f"Right answers by true class, %{where}")
        return as_png(figure)


def _heat(axes: Axes, values: np.ndarray, rows: Sequence[str], columns: Sequence[str]) -> None:
    axes.imshow(values, cmap=HEAT, vmin=0, vmax=100, aspect="auto")
    axes.set_yticks(range(len(rows)), [shortened(text, 30) for text in rows])
    axes.set_xticks(
        range(len(columns)), [shortened(text, 18) for text in columns], rotation=35, ha="right", rotation_mode="anchor"
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
        figure = new_figure(0.4 + 2.35 * lines)
        panels = figure.subplots(lines, 4, sharex=True, sharey=True, squeeze=False).flat
        for axes, member, ece in zip(panels, members, eces, strict=False):
            confidence, accuracy, _ = member.curve
            axes.plot([0, 100], [0, 100], color=MUTED, linewidth=0.8, linestyle=(0, (4, 3)))
            axes.fill_between(
                confidence * 100, confidence * 100, accuracy * 100, color=COLOURS[member.kind], alpha=0.18, lw=0
            )
            axes.plot(confidence * 100, accuracy * 100, "o-", color=COLOURS[member.kind], markersize=3.5, linewidth=1.4)
            axes.set_title(shortened(member.label, 28), fontsize=9)
            axes.text(4, 90, f"ECE {ece * 100:.1f} %", fontsize=8.5, color=MUTED)
            axes.set(xlim=(0, 100), ylim=(0, 100), xticks=[0, 50, 100], yticks=[0, 50, 100], aspect="equal")
            axes.grid()
        for axes in list(panels)[len(members) :]:
            axes.set_visible(False)
        figure.supxlabel("confidence, %", color=MUTED, fontsize=9)
        figure.supylabel("accuracy, %", color=MUTED, fontsize=9)
        return as_png(figure)


def teaching(weights: Mapping[str, Mapping[str, float]], disagreement: Mapping[str, np.ndarray]) -> bytes:
    """Return each fusion's mean weights of its teachers, and how far teachers part: share of rows by divergence."""
    with matplotlib.rc_context(STYLE):
        figure = new_figure(max(2.7, 1.7 + 0.42 * len(weights)))
        left, right = figure.subplots(1, 2)
        _weights(left, weights)
        bins = np.linspace(0, max((float(np.max(v)) for v in disagreement.values()), default=1.0) or 1.0, 31)
        for colour, (name, values) in zip(SHARES, disagreement.items(), strict=False):
            shares = np.histogram(values, bins)[0] / len(values) * 100
            right.stairs(shares, bins, color=colour, fill=True, alpha=0.15)
            right.stairs(shares, bins, color=colour, linewidth=1.4, label=shortened(name, 24))
        right.set_title("Disagreement, % of train rows")
        right.set_xlabel("generalised Jensen-Shannon divergence, nats")
        right.grid(axis="y")
        if len(disagreement) > 1:
            right.legend()
        return as_png(figure)


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
    axes.set_yticks(range(len(weights)), [shortened(name, 24) for name in weights])
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
