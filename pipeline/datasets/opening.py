"""Open a data set by catalogue name, or pictures from a folder of classes."""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pipeline.datasets.boxed import BOXED, open_boxed
from pipeline.datasets.catalog import Entry, data_sets, fetch, find_entry
from pipeline.datasets.coco import open_coco
from pipeline.datasets.frames import FRAMES
from pipeline.datasets.images import ImageDataset, open_folder, open_pictures
from pipeline.datasets.inputs import InputSpecs
from pipeline.datasets.recordings import RECORDINGS, open_recordings
from pipeline.datasets.records import RecordDataset
from pipeline.datasets.sources.making import MAKERS
from pipeline.errors import StillroomError


def open_dataset(
    name_or_folder: str,
    raw: Path,
    *,
    size: int | None = None,
    channels: int | None = None,
    memory_budget: int = 4 << 30,
    inputs: InputSpecs | None = None,
    boxes: Path | None = None,
    test_boxes: Path | None = None,
) -> ImageDataset | RecordDataset:
    """Return the data set of a catalogue name (fetched into raw if need be) or of a folder.

    A folder holds `<class>/*.png` or `train/<class>/` and `test/<class>/`; pictures in `_unlabelled` have
    label -1. Pictures are resized and centre-cropped to size x size, and turned to 1 or 3 channels. With `boxes`, and
    `test_boxes` of its test, a folder is read as `open_coco` says. Records are read through the inputs of their entry
    and through `inputs`, which add to those or replace one of the same name.
    Raises StillroomError for an unknown name, a folder that is no data set, a picture that cannot be decoded, or
    options that do not fit the data set.
    """
    _check_pictures(name_or_folder, size, channels)
    catalog = data_sets()
    if name_or_folder not in catalog and (
        "/" in name_or_folder or os.sep in name_or_folder or Path(name_or_folder).is_dir()
    ):
        _check_no_inputs(name_or_folder, inputs)
        if boxes is not None:
            shape: dict[str, int | None] = {"size": size, "channels": channels}
            boxed = open_coco(Path(name_or_folder), Path(raw), boxes, test_boxes=test_boxes, **shape)
            return boxed.hold_in_memory(memory_budget)
        return open_folder(Path(name_or_folder), Path(raw), size, channels).hold_in_memory(memory_budget)
    entry = find_entry(name_or_folder, catalog)
    if entry.format in MAKERS:
        raise StillroomError(
            f"{name_or_folder}: found no [[source]]; expected one for each of its files, to say how it is prepared; "
            f"copy them from the recipe multisource"
        )
    if entry.format in FRAMES:
        _check_no_pictures(name_or_folder, size=size, channels=channels)
        return open_records(name_or_folder, entry, Path(raw), memory_budget, inputs or {})
    _check_no_inputs(name_or_folder, inputs)
    if entry.format in BOXED:
        _check_no_pictures(name_or_folder, size=size, channels=channels)  # boxes are in pixels as they are
        pictures = open_boxed(name_or_folder, entry, Path(raw), catalog)
    elif entry.format == RECORDINGS:
        pictures = open_recordings(name_or_folder, entry, Path(raw), size, channels)
    else:
        pictures = open_pictures(name_or_folder, entry, Path(raw), catalog, size, channels)
    return pictures.hold_in_memory(memory_budget)


def open_records(name: str, entry: Entry, raw: Path, memory_budget: int, inputs: InputSpecs) -> RecordDataset:
    """Return the records of a catalogue entry, fetched into raw if need be."""
    records = FRAMES[entry.format](fetch(name, raw, catalog={name: entry}), entry)
    return RecordDataset(
        name=name,
        frame=records.frame,
        classes=records.names or entry.classes,
        labels=records.labels,
        official_test=records.official_test,
        targets=records.targets,
        reference=records.reference,
        unit=entry.unit,
        draws=entry.asks == "draws",
        asks_sentences=entry.asks == "sentences",
        units=records.units,
        inputs={**declared_inputs(entry), **inputs},
        raw=raw,
        groups=entry.groups,
        ranks=entry.ranks,
        unread=(entry.groups,) if entry.groups in entry.drop else (),
        memory_budget=memory_budget,
    )


def declared_inputs(entry: Entry) -> dict[str, Mapping[str, Any]]:
    """Return the inputs that a catalogue entry declares, by name; the first is the default."""
    return {str(each["name"]): {key: value for key, value in each.items() if key != "name"} for each in entry.inputs}


def _check_pictures(where: str, size: int | None, channels: int | None) -> None:
    if channels not in (None, 1, 3):
        raise StillroomError(f"{where}: channels = {channels!r}; expected 1 or 3; leave it out to have it found")
    if size is not None and size < 1:
        raise StillroomError(f"{where}: size = {size!r}; expected at least 1 pixel; leave it out to keep sizes")


def _check_no_pictures(where: str, **options: int | None) -> None:
    for key, value in options.items():
        if value is not None:
            raise StillroomError(
                f"{where}: {key} = {value!r}; expected none, for its samples are as they are; leave it out"
            )


def _check_no_inputs(where: str, inputs: InputSpecs | None) -> None:
    if inputs:
        raise StillroomError(
            f"{where}: found inputs {sorted(inputs)}; expected none, for pictures have one; leave [[input]] out"
        )
