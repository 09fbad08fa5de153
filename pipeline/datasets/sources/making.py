"""Files of several sources that are made of a data set's own, once, into a folder of their own."""

import json
from collections.abc import Callable
from pathlib import Path

from pipeline.datasets.catalog import fetch, find_entry
from pipeline.datasets.sources.hospital import write_hospital
from pipeline.errors import unknown_name
from pipeline.lineage import file_digest, write_durably

VERSION = 1  # raise it when the same data set gives other files
MADE = "made.json"  # says what the files were made from, and what they hash to

MAKERS: dict[str, Callable[[Path, Path], tuple[str, ...]]] = {  # by format: data set's folder, sources' -> file names
    "hospital": write_hospital,
}


def made_sources(name: str, raw: Path) -> Path:
    """Return the folder `raw/name` with the files of a catalogue entry's sources, made unless they are there and sound.

    Raises: StillroomError for a name that is no such entry, and as `fetch` does.
    """
    entry = find_entry(name)
    if entry.format not in MAKERS:
        raise unknown_name("data.name", "format of sources", entry.format, MAKERS)
    folder, made_from = Path(raw) / name, {"version": VERSION, "files": [file.sha256 for file in entry.files]}
    if not _is_sound(folder, made_from):
        folder.mkdir(parents=True, exist_ok=True)
        names = MAKERS[entry.format](fetch(name, Path(raw)), folder)
        files = {each: file_digest(folder / each) for each in names}
        write_durably(folder / MADE, json.dumps({"made_from": made_from, "files": files}, indent=1).encode())
    return folder


def _is_sound(folder: Path, made_from: object) -> bool:
    """Whether the files are there, made from just that, and have the bytes that they were made with."""
    try:
        said = json.loads((folder / MADE).read_text("utf-8"))
        files = dict(said["files"])
        return bool(said["made_from"] == made_from and files) and all(
            file_digest(folder / name) == wanted for name, wanted in files.items()
        )
    except (OSError, ValueError, KeyError, TypeError):  # never made, or half
        return False
