"""Fitted scikit-learn estimators as bytes: skops files, for no pickle is ever read.

Trade: a type that is neither scikit-learn's nor of the package that the recipe names is refused, so an estimator that
holds another package's objects cannot be kept. Of this package, OWN are trusted whatever is named.
"""

import io
import json
from pathlib import Path
from typing import Any
from zipfile import ZIP_DEFLATED, BadZipFile, ZipFile, ZipInfo

from pipeline.errors import StillroomError

SCHEMA = "schema.json"  # in a skops file
OWN = (  # what the zoo's estimators are made of
    "pipeline.models.rules.Vader",
    "pipeline.models.tfidf.Tfidf",
    "pipeline.models.speech_estimators.band_statistics",
    "pipeline.models.regressors.AsRead",
    "pipeline.models.regressors.PerOutput",
)


def dump_sklearn(estimator: Any) -> bytes:
    """Return the estimator as a skops file: the same estimator, the same bytes."""
    import skops.io  # here, for its import is slow

    return renumbered(skops.io.dumps(estimator))


def load_sklearn(path: Path, *, package: str) -> Any:
    """Return the estimator of a skops file. Raises: StillroomError as `read_sklearn` does."""
    try:
        content = path.read_bytes()
    except OSError as error:
        raise StillroomError(f"{path}: found no usable estimator ({error}); expected a skops file; retrain") from error
    return read_sklearn(content, package=package, where=str(path))


def read_sklearn(content: bytes, *, package: str, where: str) -> Any:
    """Return the estimator, trusting the types of the package that the recipe names, the zoo's own and no other.

    Raises: StillroomError when the bytes are no skops file, or hold objects of another package.
    """
    import skops.io

    try:
        unknown = skops.io.get_untrusted_types(data=content)
        foreign = [name for name in unknown if name.split(".")[0] not in (package, "sklearn") and name not in OWN]
        if foreign:
            raise StillroomError(f"{where}: holds objects of types {foreign}; expected only {package}'s; retrain it")
        return skops.io.loads(content, trusted=unknown)
    except (OSError, BadZipFile, ValueError, KeyError, TypeError) as error:
        raise StillroomError(f"{where}: found no usable estimator ({error}); expected a skops file; retrain") from error


def renumbered(content: bytes) -> bytes:
    """Return a skops file with its objects numbered from 1 instead of by memory address, and no dates.

    The same estimator then has the same bytes, so that a teacher trained again is known to be the same one.
    """
    source, numbers = ZipFile(io.BytesIO(content)), dict[int, int]()

    def number(address: int) -> int:
        return numbers.setdefault(address, len(numbers) + 1)

    def file_name(name: str) -> str:
        stem, dot, suffix = name.partition(".")
        return f"{number(int(stem))}{dot}{suffix}" if stem.isdigit() else name

    def renumber(node: Any) -> None:
        if isinstance(node, dict):
            if "__id__" in node:
                node["__id__"] = number(node["__id__"])
            if isinstance(node.get("file"), str):
                node["file"] = file_name(node["file"])
        for child in node.values() if isinstance(node, dict) else node if isinstance(node, list) else ():
            renumber(child)

    schema = json.loads(source.read(SCHEMA))
    renumber(schema)
    written = io.BytesIO()
    with ZipFile(written, "w", ZIP_DEFLATED) as target:
        for name in source.namelist():
            numbered = json.dumps(schema).encode() if name == SCHEMA else source.read(name)
            target.writestr(ZipInfo(file_name(name)), numbered, ZIP_DEFLATED)
    return written.getvalue()
