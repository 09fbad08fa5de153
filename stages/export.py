"""export: finished students as files that run without Stillroom, checked against the student and measured on test rows.

An export holds its student with the standardisation inside (pictures in 0..255 go in, log-probabilities come out), and
`labels.json`, which says what a program needs to know to call it.
"""

import json
import math
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.box import SIMPLE
from rich.console import Console
from rich.markup import escape
from rich.table import Table
from torch import Tensor

from pipeline.datasets import ImageDataset
from pipeline.errors import StillroomError, unknown_name
from pipeline.export import (
    TOLERANCE,
    Deployed,
    Model,
    answers,
    check_close,
    export_onnx,
    export_program,
    latency,
    load_onnx,
    load_program,
    multiply_adds,
    quantise,
)
from pipeline.lineage import (
    Manifest,
    artefact_folder,
    file_digest,
    read_cost,
    require_manifest,
    write_cost,
    write_durably,
)
from pipeline.metrics import agreement, classification_metrics
from pipeline.models import count_parameters
from pipeline.report.numbers import size as as_size
from stages.asks import refuse_others
from stages.finished import finished
from stages.networks import load_student
from stages.runs import Run, folder_of
from stages.show import progress
from stages.students import WEIGHTS
from stages.workspace import Workspace

FILES = {"pt2": "student.pt2", "onnx": "student.onnx", "int8": "student.int8.onnx"}
TORCH, LABELS = "torch", "labels.json"
COMPARED = 256  # real test pictures that a file is checked on as it is written; all are compared after
FITTED_ON = 512  # calibration pictures that int8 ranges are fixed on
REPEATS = {1: 50, 256: 7}  # timed calls, by pictures a call
WIDTH = 140


def run(
    ws: Workspace, *, student: str | None = None, seed: int | None = None, formats: Sequence[str] | None = None
) -> None:
    """Export each finished student of the recipe, or the one named: the seed named, else of lowest calibration NLL.

    Trials of a sweep are exported by name only.
    """
    refuse_others(ws.recipe, "export")
    asked = _asked(formats)
    for job in finished(ws, student, seed):
        folder = ensure(ws, job, asked)
        console = ws.console if ws.console.is_terminal else Console(width=WIDTH, quiet=ws.console.quiet)
        console.print(table(folder))
        ws.say("export", f"{job.name}: {folder}")


def _asked(formats: Sequence[str] | None) -> list[str]:
    """Return the formats to write, in one order; int8 is made of onnx. Raises: StillroomError for an unknown one."""
    asked = set(formats or FILES)
    for name in sorted(asked - FILES.keys()):
        raise unknown_name("export", "format", name, FILES)
    return [name for name in FILES if name in asked or (name == "onnx" and "int8" in asked)]


def ensure(ws: Workspace, job: Run, formats: Sequence[str]) -> Path:
    """Return the folder of a finished student's export, making it if need be."""
    source, pictures = folder_of(ws, job), _pictures(ws)
    student = require_manifest(source, "student", make_with="stillroom distill")
    config = {
        "stage": "export",
        "version": 1,
        "student": student.fingerprint,
        "weights": student.digests.get(WEIGHTS),
        "formats": list(formats),
    }
    folder = artefact_folder(ws.root / "exports", job.name, config)
    if not ws.is_finished(folder):
        started = time.perf_counter()
        model = Deployed(load_student(source, student, pictures.shape), mean=ws.plan.mean, std=ws.plan.std)
        with progress(ws.console, f"export {job.name}", None):
            _write(ws, model, formats, folder)
            models: dict[str, Model] = {TORCH: model, **{name: load(folder, name) for name in formats}}
            metrics = _scores(ws, models, folder)
            timings = _timings(ws, models)
        _seal(ws, job, config, model, metrics, folder)
        write_cost(folder, {"milliseconds": timings, "threads": torch.get_num_threads()})
        ws.made(folder, seconds=time.perf_counter() - started)
    return folder


def load(folder: Path, name: str) -> Model:
    """Return the model of one of an export's formats. Raises: StillroomError as its loader does."""
    return (load_program if name == "pt2" else load_onnx)(folder / FILES[name])


def _pictures(ws: Workspace) -> ImageDataset:
    """Return the data set of a recipe. Raises: StillroomError for one of records."""
    if not isinstance(ws.dataset, ImageDataset):
        raise StillroomError(
            f"export: recipe {ws.recipe.name!r} is of records; expected pictures, for what makes an input of a record "
            f"is no part of a network; use weights.safetensors in the student's folder"
        )
    return ws.dataset


def _spread(ws: Workspace, split: str, count: int) -> Tensor:
    """Return pictures spread evenly over a split, a small split's again and again: uint8 [count, C, H, W]."""
    ids = ws.plan.splits[split].ids
    return _pictures(ws).read(np.resize(ids[:: max(1, len(ids) // count)], count))


def _write(ws: Workspace, model: Deployed, formats: Sequence[str], folder: Path) -> None:
    """Write the files of all formats, each compared with the student on real pictures."""
    pictures = _spread(ws, "test", COMPARED)
    if "pt2" in formats:
        export_program(model, pictures, folder / FILES["pt2"])
    if "onnx" in formats:
        export_onnx(model, pictures, folder / FILES["onnx"])
    if "int8" in formats:
        quantise(folder / FILES["onnx"], folder / FILES["int8"], _spread(ws, "calibration", FITTED_ON))
    about = labels(ws.classes, _pictures(ws).shape, ws.plan.mean, ws.plan.std, formats)
    write_durably(folder / LABELS, (json.dumps(about, indent=1) + "\n").encode())


def labels(
    classes: Sequence[str],
    shape: tuple[int, int, int],
    mean: Sequence[float],
    std: Sequence[float],
    formats: Sequence[str],
) -> dict[str, Any]:
    """Return what a program needs to know to call an export, as JSON."""
    channels, height, width = shape
    feed = f"pictures: uint8 [B, {channels}, {height}, {width}] in 0..255"
    calls = {
        "pt2": f"torch.export.load('{FILES['pt2']}').module()(pictures)  # {feed}",
        **{
            name: f"onnxruntime.InferenceSession('{FILES[name]}').run(None, {{'pictures': pictures}})[0]  # {feed}"
            for name in ("onnx", "int8")
        },
    }
    return {
        "classes": list(classes),
        "channels": channels,
        "height": height,
        "width": width,
        "mean": list(mean),
        "std": list(std),
        "input": f"{feed}; scaled to cover {height} x {width}, its centre cropped; the file itself standardises",
        "output": f"log_probs: float32 [B, {len(classes)}], natural logarithms; exp() gives probabilities",
        "how_to_call": {name: calls[name] for name in formats},
    }


def _scores(ws: Workspace, models: Mapping[str, Model], folder: Path) -> dict[str, dict[str, float]]:
    """Return each format's figures on all test rows, and how far it is from the student itself.

    Raises: StillroomError when a format that should be the student's equal is not.
    """
    test = ws.plan.splits["test"]
    blocks = [test.ids[start : start + COMPARED] for start in range(0, len(test), COMPARED)]
    said: dict[str, list[Tensor]] = {name: [] for name in models}
    for ids in blocks:
        pictures = _pictures(ws).read(ids)
        for name, model in models.items():
            said[name].append(answers(model, pictures))
    log_probs = {name: torch.cat(rows) for name, rows in said.items()}
    own, scores = log_probs[TORCH], dict[str, dict[str, float]]()
    for name, rows in log_probs.items():
        scores[name] = {
            **classification_metrics(rows, torch.from_numpy(test.labels)),
            "agreement": agreement(rows, own),
            "max_difference": check_close(
                folder / FILES.get(name, ""), rows, own, tolerance=math.inf if name == "int8" else TOLERANCE
            ),
        }
    return scores


def _timings(ws: Workspace, models: Mapping[str, Model]) -> dict[str, dict[str, list[float]]]:
    """Return each format's [median, interquartile range] in milliseconds a call, by pictures a call."""
    pictures = _spread(ws, "test", max(REPEATS))
    return {
        name: {str(count): list(latency(model, pictures[:count], repeats=n)) for count, n in REPEATS.items()}
        for name, model in models.items()
    }


def _seal(
    ws: Workspace,
    job: Run,
    config: Mapping[str, Any],
    model: Deployed,
    metrics: Mapping[str, Any],
    folder: Path,
) -> None:
    files = {name: folder / FILES[name] for name in config["formats"]}
    Manifest(
        kind="export",
        name=job.name,
        config=config,
        digests={path.name: file_digest(path) for path in (*files.values(), folder / LABELS)},
        metrics={"test": metrics},
        details={
            "bytes": {
                TORCH: (folder_of(ws, job) / WEIGHTS).stat().st_size,
                **{name: path.stat().st_size for name, path in files.items()},
            },
            "parameters": count_parameters(model),
            "multiply_adds": multiply_adds(model, _spread(ws, "test", 1)),
        },
    ).write(folder)


def table(folder: Path) -> Table:
    """Return an export's formats beside the student in torch: size, exactness, quality on test rows, speed."""
    manifest = require_manifest(folder, "export", make_with="stillroom export")
    cost, details = read_cost(folder), manifest.details
    pictures = " and ".join(map(str, REPEATS))
    title = (
        f"{escape(manifest.name)}: {details['parameters']:,} parameters, {details['multiply_adds']:,} multiply-adds a "
        f"picture\nas torch: rows of the same first choice; milliseconds a call of {pictures} pictures "
        f"(interquartile range), CPU threads: {cost.get('threads', '?')}"
    )
    out = Table("format", title=title, title_justify="left", box=SIMPLE)
    for column in ("size", "max diff", "accuracy", "NLL", "as torch", *(f"ms, {count}" for count in REPEATS)):
        out.add_column(column, justify="right", no_wrap=True)
    out.add_column("times as fast", justify="right", no_wrap=True)
    timings: dict[str, Any] = cost.get("milliseconds", {})
    measured = manifest.metrics["test"]
    for name, scores in ((name, measured[name]) for name in (TORCH, *FILES) if name in measured):
        figures = [f"{scores['max_difference']:.1e}", f"{scores['accuracy']:.4f}", f"{scores['nll']:.4f}"]
        figures.append(f"{scores['agreement']:.4f}")
        out.add_row(name, as_size(details["bytes"][name]), *figures, *_as_timed(timings, name))
    return out


def _as_timed(timings: Mapping[str, Mapping[str, Sequence[float]]], name: str) -> list[str]:
    """Return milliseconds by pictures a call, and how many times as fast as torch; dashes if nobody timed it."""
    if name not in timings or TORCH not in timings:
        return ["-"] * (len(REPEATS) + 1)
    own, torch_s = timings[name], timings[TORCH]
    ratios = ", ".join(f"{torch_s[count][0] / max(own[count][0], 1e-9):.2f}x" for count in own)
    return [*(f"{median:.3f} ({spread:.3f})" for median, spread in own.values()), ratios]
