"""predict: new pictures to a student, from its export or its own folder; needs neither recipe nor data set.

Pictures are decoded, scaled and cropped by the functions that data sets are read with.
"""

import json
import os
import sys
from collections.abc import Iterator, Sequence
from itertools import batched
from pathlib import Path
from typing import Any, NamedTuple

import torch
from PIL import Image
from rich.box import SIMPLE
from rich.console import Console
from rich.table import Table
from rich.text import Text
from torch import Tensor

from pipeline.datasets.pictures import decode, fit
from pipeline.errors import StillroomError, printable, unknown_name
from pipeline.export import Deployed, Model, answers
from pipeline.lineage import MAX_MANIFEST_BYTES, Manifest, file_digest, read_file, read_manifest, require_manifest
from stages.export import FILES, LABELS, load
from stages.networks import load_student

BATCH = 64
WIDTH = 200


class Answer(NamedTuple):
    """A picture's likeliest classes with their probabilities, best first."""

    path: Path
    top: list[tuple[str, float]]


class Student(NamedTuple):
    """A model that can be asked: its classes in order, and the (C, H, W) it takes."""

    model: Model
    classes: Sequence[str]
    shape: tuple[int, int, int]


def run(
    path: Path,
    images: Sequence[Path],
    *,
    top: int = 1,
    as_json: bool = False,
    format_name: str | None = None,
    console: Console | None = None,
) -> int:
    """Print the `top` classes of each picture, as a table or JSON lines; return 1 when any could not be read, else 0.

    `path` is the folder of an export or of a student, `format_name` one of the export's formats (None: its first).
    """
    if top < 1:
        raise StillroomError(f"--top: found {top}; expected 1 or more; leave it out for the likeliest class")
    student = open_student(path, format_name)
    faults: list[str] = []
    found = _ask(student, _readable(student, images, faults), top)
    if as_json:
        for answer in found:
            likeliest = [{"class": name, "probability": probability} for name, probability in answer.top]
            print(json.dumps({"path": str(answer.path), "top": likeliest}))
    else:
        answered = list(found)
        console = console or Console()
        if answered:
            (console if console.is_terminal else Console(width=WIDTH)).print(_table(answered))
    sys.stdout.flush()  # else the errors of a piped run come first
    for fault in faults:
        print(f"error: {printable(fault)}", file=sys.stderr)
    return int(bool(faults))


# -- the student ------------------------------------------------------------------------------------------------------


def open_student(folder: Path, format_name: str | None = None) -> Student:
    """Return the student of an export's folder or of its own. Raises: StillroomError when it is neither, or damaged."""
    manifest = read_manifest(folder) if folder.is_dir() else None
    if manifest is None or manifest.kind not in ("export", "student"):
        found = "no folder" if not folder.is_dir() else "no finished artefact"
        raise StillroomError(
            f"{folder}: found {found if manifest is None else f'a {manifest.kind}'}; expected a folder of data/exports "
            "or data/students; run 'stillroom export' and name what it prints"
        )
    return _from_export(folder, manifest, format_name) if manifest.kind == "export" else _from_student(folder, manifest)


def _from_export(folder: Path, manifest: Manifest, format_name: str | None) -> Student:
    there = [name for name, file in FILES.items() if file in manifest.digests]
    if format_name is not None and format_name not in there:
        raise unknown_name(str(folder), "format", format_name, there)
    name = format_name or next(iter(there), None)
    if name is None:
        raise StillroomError(f"{folder}: found no model; expected one of {', '.join(FILES)}; export it again")
    for file in (LABELS, FILES[name]):
        if not (folder / file).is_file() or file_digest(folder / file) != manifest.digests.get(file):
            raise StillroomError(
                f"{folder / file}: missing or other bytes than its manifest says; expected the file that was exported; "
                "copy the folder again, or run 'stillroom export' again"
            )
    about = _read_labels(folder / LABELS)
    shape = (about["channels"], about["height"], about["width"])
    return Student(load(folder, name), about["classes"], shape)


def _read_labels(path: Path) -> dict[str, Any]:
    try:
        about = json.loads(read_file(path, MAX_MANIFEST_BYTES))
        sizes = [about[key] for key in ("channels", "height", "width")]
        if not all(type(size) is int and size > 0 for size in sizes) or not all(
            isinstance(name, str) for name in about["classes"]
        ):
            raise ValueError("its sizes or classes have other types")
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise StillroomError(f"{path}: found {error}; expected classes and sizes as JSON; export it again") from error
    return about


def _from_student(folder: Path, manifest: Manifest) -> Student:
    """Return a student with the standardisation of its view plan, whose manifest lies beside the students."""
    plans, mark = folder.resolve().parent.parent / "plans", manifest.config["plan"]
    found = next(iter(sorted(plans.glob(f"*-{mark[:12]}"))), plans / f"*-{mark[:12]}")
    plan = require_manifest(found, "view plan", make_with="stillroom data")
    if "shape" not in plan.details:
        raise StillroomError(
            f"{folder}: found a student of records; expected one of pictures, for what makes an input of a record is "
            f"no part of a network; name another"
        )
    channels, height, width = plan.details["shape"]
    network = load_student(folder, manifest, (channels, height, width))
    model = Deployed(network, mean=plan.config["mean"], std=plan.config["std"])
    return Student(model, manifest.config["classes"], (channels, height, width))


# -- the pictures -----------------------------------------------------------------------------------------------------


def pictures_in(folder: Path) -> list[Path]:
    """Return the files below a folder that Pillow has a reader for by their suffix, sorted; hidden ones left out."""
    suffixes = {suffix for suffix, kind in Image.registered_extensions().items() if kind in Image.OPEN}
    found = (Path(at, name) for at, _, names in os.walk(folder) for name in names)
    return sorted(path for path in found if path.suffix.lower() in suffixes and not path.name.startswith("."))


def _readable(student: Student, images: Sequence[Path], faults: list[str]) -> Iterator[tuple[Path, Tensor]]:
    """Yield each picture that can be read, uint8 [C, H, W] of the student's shape, and add a line for each other."""
    channels, height, width = student.shape
    for image in images:
        paths = pictures_in(image) if image.is_dir() else [image]
        if not paths:
            faults.append(f"{image}: found no picture; expected files that Pillow reads; name another folder")
        for path in paths:
            try:
                yield path, fit(_decoded(path, channels), height, width)
            except StillroomError as error:
                faults.append(str(error))


def _decoded(path: Path, channels: int) -> Tensor:
    if not path.exists():
        raise StillroomError(f"{path}: found no such file; expected a picture; check the path")
    try:
        return decode(path, channels)
    except StillroomError:
        raise
    except Exception as error:  # a damaged file may fail anywhere in its decoder
        raise StillroomError(
            f"{path}: cannot be decoded ({type(error).__name__}: {error}); expected a picture; mend or remove it"
        ) from error


def _ask(student: Student, pictures: Iterator[tuple[Path, Tensor]], top: int) -> Iterator[Answer]:
    """Yield the likeliest classes of each picture, a batch at a time."""
    for batch in batched(pictures, BATCH):
        probs = answers(student.model, torch.stack([pixels for _, pixels in batch])).exp()
        best = probs.topk(min(top, probs.shape[1]), dim=1)
        for (path, _), values, indices in zip(batch, best.values.tolist(), best.indices.tolist(), strict=True):
            yield Answer(path, [(student.classes[i], value) for i, value in zip(indices, values, strict=True)])


def _table(answered: Sequence[Answer]) -> Table:
    """Return a row for each picture and class; names are shown as they are, whatever they hold."""
    out = Table("picture", "class", box=SIMPLE)
    out.add_column("probability", justify="right", no_wrap=True)
    for path, top in answered:
        for place, (name, probability) in enumerate(top):
            out.add_row(Text("" if place else printable(str(path))), Text(printable(name)), f"{probability:.4f}")
    return out
