"""make table-curves: what a student's accuracy depends on, as curves over five seeds with equal steps throughout.

Cached views against teachers that answer while it trains (what a store stands in for and can only come near to), the
codec of the targets, the temperature, the rows it learns from. Trains what is missing (resumable: whatever is finished
is found), prints a table a curve, and draws .github/curves.png. `--smoke` does all of it in tiny sizes, under data/.

The curves over views and rows are trained here and not by a recipe: a plan of fewer views or rows would be another
plan, with teachers of its own, and those would differ, too.
"""

import argparse
import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
import torch
from matplotlib.figure import Figure, SubFigure
from rich.console import Console
from torch import Tensor

from pipeline.lineage import require_manifest, write_durably
from pipeline.loader import SharedLoader
from pipeline.metrics import mean_interval
from pipeline.report.figures import DPI, MUTED, SHARES, STYLE, WIDTH
from pipeline.store import open_targets
from pipeline.views import Batch
from stages import distill, fuse
from stages.load import load_recipe
from stages.memory import keep_freed_memory
from stages.recipe import LABELS
from stages.runs import Run, folder_of, runs
from stages.workspace import Workspace
from tests.bench.online import FRESH, Online, live_loader, rows_of
from tests.bench.training import (
    METRICS,
    Figures,
    Seen,
    beside,
    folder,
    picked,
    reading,
    steps_of,
    stored_loader,
    trained,
    values,
)

STUDENT, POOL = "tiny", "pool"
FEW_ROWS_MANY_VIEWS = ["data.max_train=15000", "data.calibration=0.2", "views.count=32"]  # 12,000 rows: views repeat
TINY = [
    *("data.max_train=1600", "data.max_test=1000", "data.labelled=100", "teacher.forest.n_estimators=10"),
    *("teacher.resnet.epochs=1", "teacher.vgg.epochs=1", "student.tiny.epochs=2", "student.tiny.seeds=[0, 1]"),
    *("sweep.codec.seeds=[0, 1]", "sweep.temperature.seeds=[0, 1]", "views.count=2"),
]
CACHED, ONLINE = "from the store", "teachers in the loop"
SOFT, TRUE = "soft targets", "true labels of all"
TITLES = {
    "views": "Cached views of 12,000 rows",
    "codec": "Codec of the targets, bytes a row",
    "temperature": "Temperature of the loss",
    "rows": "Rows to learn from, 3,000 with label",
}
CODEC_TITLES = {
    "topk": "top {k}",
    "sampled": "{draws} draws",
    "companded8": "8 bits",
}  # an axis has little room
Curve = dict[str, dict[str, list[Figures]]]  # line -> point -> a student a seed


def views_curve(ws: Workspace, steps: int) -> Curve:
    """Return a student's figures by the views that it may see of each row, the first ones of one store."""
    fuse.ensure_teacher_stores(ws)
    pool, entry = ws.recipe.find("fusion", POOL), ws.recipe.find("student", STUDENT)
    fuse.ensure(ws, pool)
    epochs = steps / steps_of(ws, Run(entry, "student", 0, pool))[1]
    answered, found = Online(ws, pool), Curve({CACHED: {}, ONLINE: {}})
    ws.say("distill", f"stored targets are KL {answered.kl_of_stored():.1e} nats from what the teachers answer live")
    for seed in entry.seeds:
        job = Run(entry.model_copy(update={"epochs": epochs}), "student", seed, pool)
        for count in (2**k for k in range(ws.plan.count.bit_length())):
            figures = trained(ws, [job], partial(stored_loader, ws, [job], rows_of(ws, count)), views=count)
            found[CACHED].setdefault(str(count), []).extend(figures)
    together = entry.model_copy(update={"epochs": epochs, "order_seed": 0})  # the teachers answer all seeds at once
    jobs = [Run(together, "student", seed, pool) for seed in entry.seeds]
    found[ONLINE]["fresh"] = trained(ws, jobs, partial(live_loader, ws, jobs, answered), online=FRESH)
    return found


def rows_curve(ws: Workspace) -> Curve:
    """Return figures by how many rows a student learns from: soft targets of them, or the true label of each.

    The fewest rows are those with a label, where true labels are what an ordinary run has. Teachers are the same.
    """
    entry, pool, train = ws.recipe.find("student", STUDENT), ws.recipe.find("fusion", POOL), ws.plan.splits["train"]
    hidden = np.setdiff1d(np.arange(len(train)), train.labelled)
    labels = torch.from_numpy(ws.dataset.labels[train.ids])
    sizes = [size for size in (len(train.labelled) << k for k in range(4)) if size < len(train)]
    found = Curve({SOFT: {}, TRUE: {}})
    for seed in entry.seeds:
        job = Run(entry, "student", seed, pool)
        jobs = [job, Run(entry.model_copy(update={"fusion": LABELS}), "student", seed, None)]
        for size in [*sizes, len(train)]:
            chosen = np.sort(np.concatenate([train.labelled, hidden[: size - len(train.labelled)]]))
            pair = trained(ws, jobs, partial(some_loader, ws, job, chosen, labels), rows=size)
            for line, figures in zip(found, pair, strict=True):
                found[line].setdefault(str(size), []).append(figures)
    return found


def some_loader(ws: Workspace, job: Run, positions: np.ndarray, labels: Tensor) -> Seen:
    """Return what shows some of the rows, to one student with their targets, to another with their labels [N] alone."""
    size, seed = job.entry.batch_size, job.order_seed
    loader = SharedLoader([reading(ws, job)], ws.replayer, batch_size=size, seed=seed, positions=positions)

    def see(shown: Any) -> Sequence[Batch]:
        batch = shown[0]
        return [batch, replace(batch, labels=labels[batch.positions].to(batch.labels), target_log_probs=None)]

    return Seen(loader, see)


def swept_curves(ws: Workspace) -> dict[str, Curve]:
    """Return the curves over the recipe's own students: by codec, most bytes first, and by temperature."""
    by_codec, by_temperature = dict[tuple[float, str], list[Figures]](), dict[str, list[Figures]]()
    for entry in ws.recipe.students:
        folders = [folder_of(ws, job) for job in runs(ws, entry)]
        manifests = [require_manifest(each, "student", make_with="make table-curves") for each in folders]
        figures = [picked(manifest.metrics["test"]) for manifest in manifests]
        if ".temperature." not in entry.name:
            by_codec[codec_of(ws, entry.fusion)] = figures
        if ".codec." not in entry.name:
            by_temperature[f"{entry.loss.temperature:g}"] = figures
    ordered = {f"{name}\n{size:.1f} B": by_codec[size, name] for size, name in sorted(by_codec, reverse=True)}
    return {"codec": {SOFT: ordered}, "temperature": {SOFT: by_temperature}}


def codec_of(ws: Workspace, fusion: str) -> tuple[float, str]:
    """Return what a row's target takes on disk, compressed as it is, and the codec's name."""
    store = open_targets(ws.target_folder(ws.recipe.find("fusion", fusion)))
    field, train = store.field_at(1.0), next(block for block in store.layout.blocks if block.split == "train")
    parts = [name for name in store.layout.arrays_of(train) if name == field or name.startswith(f"{field}_")]
    kind, sizes = store.attributes["codec"]["kind"], store.manifest.metrics["bytes_per_row"]
    return sum(sizes[part] for part in parts), CODEC_TITLES.get(kind, kind).format(**store.attributes["codec"])


def reference_of(name: str, curve: Curve) -> tuple[str, list[Figures]]:
    """Return what the points of a curve are compared with."""
    if name == "views":
        return ONLINE, curve[ONLINE]["fresh"]
    if name == "rows":
        return "labels alone", next(iter(curve[TRUE].values()))
    wanted = "fp16" if name == "codec" else "1"
    return wanted, next(figures for point, figures in curve[SOFT].items() if point.split("\n")[0] == wanted)


def show(name: str, curve: Curve) -> None:
    """Print one curve's table as Markdown."""
    called, reference = reference_of(name, curve)
    columns = ("", "", "accuracy, %", "NLL", f"minus {called}, points", "p", "NLL", "p")
    print(f"\n### {TITLES[name]}\n\n| {' | '.join(columns)} |\n{'|---' * len(columns)}|")
    for line, points in curve.items():
        for point, figures in points.items():
            print(f"| {' | '.join([line, point.replace('\n', ', '), *beside(figures, reference)])} |")


def draw(curves: Mapping[str, Curve], path: Path) -> None:
    """Write the picture: a panel a curve, accuracy above NLL; bars and bands are 95 % intervals over seeds."""
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(WIDTH, 8.2), layout="constrained")
        panels = figure.subfigures(2, 2, wspace=0.03, hspace=0.03)
        for panel, (name, curve) in zip(panels.flat, curves.items(), strict=True):
            _panel(panel, name, curve)
        path.parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(path, dpi=DPI, facecolor="white", metadata={"Software": None})


def _panel(panel: SubFigure, name: str, curve: Curve) -> None:
    rows = panel.subplots(2, 1, sharex=True)
    rows[0].set_title(TITLES[name])
    called, reference = reference_of(name, curve)
    is_codec, has_level = name == "codec", name in ("views", "rows")
    for axes, metric in zip(rows, METRICS, strict=True):
        level = mean_interval(values(reference, metric))
        if has_level:
            axes.axhspan(level.low, level.high, color=MUTED, alpha=0.18, linewidth=0)
            axes.axhline(level.mean, color=MUTED, linewidth=1, linestyle="--", label=called)
        lines = {line: points for line, points in curve.items() if line != ONLINE}
        for (line, points), colour in zip(lines.items(), (SHARES[2], SHARES[1]), strict=False):
            means = [mean_interval(values(figures, metric)) for figures in points.values()]
            at = range(len(points)) if is_codec else [float(point) for point in points]
            heights, halves = [each.mean for each in means], [each.mean - each.low for each in means]
            marks = "o" if is_codec else "o-"
            axes.errorbar(at, heights, halves, fmt=marks, color=colour, capsize=2, markersize=4, label=line)
        axes.set_ylabel(METRICS[metric][0])
        axes.grid(axis="y")
    points = next(iter(curve.values()))
    if is_codec:
        rows[1].set_xticks(range(len(points)), list(points), fontsize=7.5)
    else:
        rows[1].set_xscale("log")
        rows[1].set_xticks([float(point) for point in points], [point.replace("000", "k") for point in points])
        rows[1].minorticks_off()
    if has_level:
        rows[0].legend(loc="lower right", fontsize=8)


def main() -> None:
    """Make every curve, print it and draw it."""
    parser = argparse.ArgumentParser(prog="make table-curves")
    parser.add_argument("--smoke", action="store_true", help="tiny sizes, to see that all of it works")
    is_smoke = parser.parse_args().smoke
    keep_freed_memory()
    name, sizes = ("curves-smoke", TINY) if is_smoke else ("curves", [])
    ws = Workspace(load_recipe("curves", [f'name="{name}"', *sizes]), Path("data"), Console())
    recipe = load_recipe("curves", [f'name="{name}"', *FEW_ROWS_MANY_VIEWS, *sizes])
    networks = [entry for entry in recipe.teacher if ":" not in entry.model]  # those that answer a batch in no time
    few = Workspace(recipe.model_copy(update={"teacher": networks}), ws.root, ws.console)
    entry = ws.recipe.find("student", STUDENT)
    views = views_curve(few, steps_of(ws, Run(entry, "student", 0, None))[0])
    distill.run(ws)
    curves = {"views": views, **swept_curves(ws), "rows": rows_curve(ws)}
    write_durably(folder(ws) / "curves.json", (json.dumps(curves, indent=1) + "\n").encode())
    for title, curve in curves.items():
        show(title, curve)
    draw(curves, folder(ws) / "curves.png" if is_smoke else Path(".github/curves.png"))


if __name__ == "__main__":
    main()
