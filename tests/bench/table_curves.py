"""make table-curves: what a student's accuracy depends on, as curves over five seeds with equal steps throughout.

Cached views against teachers that answer while it trains (what a store stands in for and can only come near to), the
codec of the targets, the temperature, the rows it learns from. Trains what is missing (resumable: whatever is finished
is found), prints a table a curve, and draws .github/curves.png. `--smoke` does all of it in tiny sizes, under data/.

The curves over views and rows are trained here and not by a recipe: a plan of fewer views or rows would be another
plan, with teachers of its own, and those would differ, too.
"""

import argparse
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
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

from pipeline import fuse as fusing
from pipeline.fusion import Outputs
from pipeline.fusion.target import fuse_rows
from pipeline.lineage import fingerprint, require_manifest, write_durably
from pipeline.loader import Reading, SharedLoader
from pipeline.losses import kl_divergence
from pipeline.metrics import classification_metrics, mean_interval, paired_interval
from pipeline.report.figures import DPI, MUTED, SHARES, STYLE, WIDTH
from pipeline.store import open_targets, open_teacher
from pipeline.train import ALONE, fit_together, predict
from pipeline.views import Batch, Replayer, ViewLoader
from stages import distill, fuse, students, teachers
from stages.load import load_recipe
from stages.memory import keep_freed_memory
from stages.recipe import LABELS
from stages.runs import Run, config_of, folder_of, runs
from stages.show import progress
from stages.workspace import Workspace

STUDENT, POOL = "tiny", "pool"
FEW_ROWS_MANY_VIEWS = ["data.max_train=15000", "data.calibration=0.2", "views.count=32"]  # 12,000 rows: views repeat
FRESH = 100_000  # views, so that an epoch shows one which no other epoch did
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
METRICS = {"accuracy": ("test accuracy, %", 100, 2), "nll": ("test NLL, nats", 1, 4)}  # title, scale, digits

Figures = dict[str, float]  # accuracy and NLL on test rows
Curve = dict[str, dict[str, list[Figures]]]  # line -> point -> a student a seed


class Seen:
    """A loader of whose batches each of several students sees what `see` returns: a batch for each of them."""

    def __init__(self, loader: Any, see: Callable[[Any], Sequence[Batch]]):
        self._loader, self._see = loader, see
        self.state_dict, self.load_state_dict = loader.state_dict, loader.load_state_dict

    def __iter__(self) -> Iterator[Sequence[Batch]]:
        return map(self._see, self._loader)


def trained(ws: Workspace, jobs: Sequence[Run], open_loader: Callable[[], Seen], **shown: Any) -> list[Figures]:
    """Return the test figures of runs that share a pass, trained on what the loader shows; found where that was done.

    `shown` says what the rows are beyond what the runs' own configs say.
    """
    config = {"version": 1, "runs": [config_of(ws, job) for job in jobs], "shown": shown}
    where = "-".join(f"{key}{value}" for key, value in shown.items())
    path = folder(ws) / "runs" / f"{where}-s{jobs[0].seed}-{fingerprint(config)[:12]}.json"
    if not path.exists():
        with progress(ws.console, f"distill {path.stem}", steps_of(ws, jobs[0])[0]) as bar:
            begun = [students.begin(ws, job, reading(ws, job), ranks=ALONE, on_step=bar.to) for job in jobs]
            for _, fitted in fit_together([replace(each.trainee, checkpoint=None) for each in begun], open_loader()):
                if isinstance(fitted, Exception):
                    raise fitted
        labels = torch.from_numpy(ws.plan.splits["test"].labels)
        answers = [predict(each.model, iter(ws.held_out("test"))) for each in begun]
        found = [picked(classification_metrics(log_probs, labels)) for log_probs in answers]
        write_durably(path, json.dumps(found).encode())
        ws.say("distill", f"{path.stem}: test accuracy {', '.join(f'{each["accuracy"]:.4f}' for each in found)}")
    return json.loads(path.read_text())


def folder(ws: Workspace) -> Path:
    """Return where the figures of a workspace go."""
    return ws.root / "reports" / ws.recipe.name


def reading(ws: Workspace, job: Run) -> Reading:
    """Return what a run reads of its target store, nothing on labels alone."""
    return Reading() if job.fusion is None else students.reading_of(ws, job)


def steps_of(ws: Workspace, job: Run) -> tuple[int, int]:
    """Return the steps of a run and of an epoch over all rows; fewer rows are shown as many times more."""
    return ws.steps(job.entry, len(ws.plan.splits["train"]))


def picked(metrics: Mapping[str, float]) -> Figures:
    """Return the figures that curves are made of."""
    return {metric: metrics[metric] for metric in METRICS}


def views_curve(ws: Workspace, steps: int) -> Curve:
    """Return a student's figures by the views that it may see of each row, the first ones of one store."""
    fuse.ensure_teacher_stores(ws)
    pool, entry = ws.recipe.find("fusion", POOL), ws.recipe.find("student", STUDENT)
    fuse.ensure(ws, pool)
    epochs = steps / steps_of(ws, Run(entry, "student", 0, pool))[1]
    answered, found = Online(ws), Curve({CACHED: {}, ONLINE: {}})
    ws.say("distill", f"stored targets are KL {answered.kl_of_stored():.1e} nats from what the teachers answer live")
    for seed in entry.seeds:
        job = Run(entry.model_copy(update={"epochs": epochs}), "student", seed, pool)
        for count in (2**k for k in range(ws.plan.count.bit_length())):
            figures = trained(ws, [job], partial(stored_loader, ws, job, rows_of(ws, count)), views=count)
            found[CACHED].setdefault(str(count), []).extend(figures)
    together = entry.model_copy(update={"epochs": epochs, "order_seed": 0})  # the teachers answer all seeds at once
    jobs = [Run(together, "student", seed, pool) for seed in entry.seeds]
    found[ONLINE]["fresh"] = trained(ws, jobs, partial(live_loader, ws, jobs, answered), online=FRESH)
    return found


def rows_of(ws: Workspace, count: int) -> Replayer:
    """Return what makes rows of so many views: a view's pixels don't depend on how many others there are."""
    return Replayer(replace(ws.plan, count=count), ws.dataset, device=ws.device)


def stored_loader(ws: Workspace, job: Run, replayer: Replayer) -> Seen:
    """Return what shows the views of a replayer with their targets from the store."""
    loader = SharedLoader([reading(ws, job)], replayer, batch_size=job.entry.batch_size, seed=job.order_seed)
    return Seen(loader, lambda shown: [shown[0]])


def live_loader(ws: Workspace, jobs: Sequence[Run], answered: "Online") -> Seen:
    """Return what shows all runs the same fresh views, with what the teachers say of them there and then."""
    size, seed = jobs[0].entry.batch_size, jobs[0].order_seed
    loader = ViewLoader(rows_of(ws, FRESH), "train", batch_size=size, seed=seed)
    return Seen(loader, lambda batch: [answered(batch)] * len(jobs))


class Online:
    """The teachers of a target store, answering on a batch as it is trained on; weights and temperatures are its own.

    What a store spares, here to compare with: nowhere else does a teacher run beside a student.
    """

    def __init__(self, ws: Workspace):
        self._ws, entry = ws, ws.recipe.find("fusion", POOL)
        self._store = open_targets(ws.target_folder(entry))
        begun = fusing.begun(self._store.folder, fuse.target_of(ws, entry), ws.target_config(entry))
        assert begun is not None
        self._target, named = begun.target, ws.recipe.teacher
        self._teachers = [teachers.load(ws, each, layers=[]) for each in named]
        stores = [open_teacher(ws.teacher_store_folder(each)) for each in named]
        self._temperatures = [store.manifest.details["temperature"] for store in stores]

    def __call__(self, batch: Batch) -> Batch:
        """Return the batch with what the teachers say of it, fused."""
        both = zip(self._teachers, self._temperatures, strict=True)
        logits = torch.stack([teacher.predict(batch.inputs).logits / temperature for teacher, temperature in both])
        outputs = Outputs(logits, torch.full_like(batch.labels, -1))
        return replace(batch, target_log_probs=fuse_rows(self._target, outputs, 1.0).log_probs)

    def kl_of_stored(self, count: int = 256) -> float:
        """Return KL(stored ‖ live) over rows of the first view: the codec and the batch are all that differs."""
        positions = np.arange(min(count, len(self._ws.plan.splits["train"])))
        live = self(self._ws.replayer.batch("train", 0, positions)).target_log_probs
        stored = self._store.log_probs("train", 0)[: len(positions)].log_softmax(-1)
        assert isinstance(live, Tensor)
        return kl_divergence(live, stored, temperature=1.0).mean().item()


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


def values(figures: Sequence[Figures], metric: str) -> list[float]:
    """Return a figure by seed: accuracy in %, NLL in nats."""
    return [METRICS[metric][1] * each[metric] for each in figures]


def show(name: str, curve: Curve) -> None:
    """Print one curve's table as Markdown."""
    called, reference = reference_of(name, curve)
    columns = ("", "", "accuracy, %", "NLL", f"minus {called}, points", "p", "NLL", "p")
    print(f"\n### {TITLES[name]}\n\n| {' | '.join(columns)} |\n{'|---' * len(columns)}|")
    for line, points in curve.items():
        for point, figures in points.items():
            means, differences = list[str](), list[str]()
            for metric, (_, _, digits) in METRICS.items():
                own, mean = values(figures, metric), mean_interval(values(figures, metric))
                means.append(f"{mean.mean:.{digits}f} ± {mean.mean - mean.low:.{digits}f}")
                apart = paired_interval(own, values(reference, metric))
                limits = f"{apart.mean:+.{digits}f} [{apart.low:+.{digits}f}, {apart.high:+.{digits}f}]"
                differences += ["", ""] if figures is reference else [limits, f"{apart.p_value:.3f}"]
            print(f"| {' | '.join([line, point.replace('\n', ', '), *means, *differences])} |")


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
