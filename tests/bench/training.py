"""Students trained on whatever a loader shows, beyond what a recipe's stages would show them; resumable by the run."""

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from pipeline.lineage import fingerprint, write_durably
from pipeline.loader import Reading, SharedLoader
from pipeline.metrics import classification_metrics, mean_interval, paired_interval
from pipeline.train import ALONE, fit_together, predict
from pipeline.views import Batch, Replayer
from stages import students
from stages.runs import Run, config_of
from stages.show import progress
from stages.workspace import Workspace

METRICS = {"accuracy": ("test accuracy, %", 100, 2), "nll": ("test NLL, nats", 1, 4)}  # title, scale, digits

Figures = dict[str, float]  # accuracy and NLL on test rows


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


def stored_loader(ws: Workspace, jobs: Sequence[Run], replayer: Replayer) -> Seen:
    """Return what shows all runs, of one fusion and order, the views of a replayer with the store's targets."""
    size, seed = jobs[0].entry.batch_size, jobs[0].order_seed
    loader = SharedLoader([reading(ws, jobs[0])], replayer, batch_size=size, seed=seed)
    return Seen(loader, lambda shown: [shown[0]] * len(jobs))


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


def values(figures: Sequence[Figures], metric: str) -> list[float]:
    """Return a figure by seed: accuracy in %, NLL in nats."""
    return [METRICS[metric][1] * each[metric] for each in figures]


def beside(figures: Sequence[Figures], reference: Sequence[Figures]) -> list[str]:
    """Return a table's cells: the mean of each metric and its half-width, then each paired difference and its p."""
    means, differences = list[str](), list[str]()
    for metric, (_, _, digits) in METRICS.items():
        own, mean = values(figures, metric), mean_interval(values(figures, metric))
        means.append(f"{mean.mean:.{digits}f} ± {mean.mean - mean.low:.{digits}f}")
        apart = paired_interval(own, values(reference, metric))
        limits = f"{apart.mean:+.{digits}f} [{apart.low:+.{digits}f}, {apart.high:+.{digits}f}]"
        differences += ["", ""] if figures is reference else [limits, f"{apart.p_value:.3f}"]
    return [*means, *differences]
