"""Fingerprints and manifests: what an artefact was made from, and the proof that it is finished.

An artefact is a folder `<name>-<first 12 of its fingerprint>` whose `manifest.json` is written last and atomically.
Same fingerprint means reuse. The manifest holds only what follows from the inputs, so that a run that was killed and
resumed leaves the same bytes as one that was not; what depends on the machine (seconds) lies in `cost.json` beside it.
"""

import contextlib
import errno
import fcntl
import hashlib
import json
import os
import platform
import secrets
import stat
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field
from importlib import metadata
from pathlib import Path
from typing import Any

from pipeline.errors import StaleStoreError, StillroomError

MANIFEST, COST = "manifest.json", "cost.json"
FORMAT = 1
MAX_MANIFEST_BYTES = 64 << 20  # ours have a few KB; names of a million classes would take 20 MB


def canonical_json(value: Any) -> str:
    """Return JSON with sorted keys, no spaces and no NaN: one text for one value."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False)


def fingerprint(config: Mapping[str, Any]) -> str:
    """Return the sha256 of the canonical JSON of what something is made from."""
    return hashlib.sha256(canonical_json(config).encode()).hexdigest()


def file_digest(path: Path) -> str:
    """Return the sha256 of a file's bytes."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def read_file(path: Path, limit: int) -> bytes:
    """Return the bytes of a small file of an artefact, which may come from a stranger.

    Raises: ValueError for a link (it would show what isn't the artefact's own), for a pipe, a device or a folder, and
    beyond `limit` bytes, before any is read; OSError.
    """
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)  # a pipe must not make anybody wait
    except OSError as error:
        if error.errno == errno.ELOOP:
            raise ValueError("it is a link, no file") from error
        raise
    try:
        status = os.fstat(descriptor)
        if not stat.S_ISREG(status.st_mode):
            raise ValueError("it is no file")
        if status.st_size > limit:
            raise ValueError(f"it has {status.st_size:,} bytes, more than {limit:,}")
        with open(descriptor, "rb", closefd=False) as file:
            return file.read(limit)
    finally:
        os.close(descriptor)


def write_durably(path: Path, content: bytes) -> None:
    """Write a file so that after a crash it is whole or not there: temp, fsync, rename, fsync of the folder."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(partial_name(path.name))
    try:
        with named(path):
            with partial.open("wb") as file:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
            partial.replace(path)
    except BaseException:
        with contextlib.suppress(OSError):
            partial.unlink()
        raise
    sync_folder(path.parent)


@contextlib.contextmanager
def named(path: Path) -> Iterator[None]:
    """Have an OSError name this file: writing and syncing name none, and a half-written file's own name says little."""
    try:
        yield
    except OSError as error:
        error.filename, error.filename2 = str(path), None
        raise


def partial_name(name: str) -> str:
    """Return a name to write a file under before it has its own: no two writers on any machine choose the same."""
    return f".{name}.{os.getpid()}.{secrets.token_hex(4)}.partial"


def sync_folder(folder: Path) -> None:
    """Make renames in a folder survive a power cut."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        with named(folder):
            os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextlib.contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Hold an artefact's lock; a process that dies lets go of it."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        with contextlib.suppress(OSError):  # no locks on this file system: digests still tell a mixture
            fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        with contextlib.suppress(OSError):  # by name: closing would leave it with a child forked meanwhile
            fcntl.flock(descriptor, fcntl.LOCK_UN)
        os.close(descriptor)


@dataclass(frozen=True)
class Manifest:
    """What `manifest.json` says. `digests` are sha256 of the artefact's files by relative path."""

    kind: str
    name: str
    config: Mapping[str, Any]
    digests: Mapping[str, str] = field(default_factory=dict)
    metrics: Mapping[str, Any] = field(default_factory=dict)
    details: Mapping[str, Any] = field(default_factory=dict)
    format: int = FORMAT

    @property
    def fingerprint(self) -> str:
        """The sha256 of the config."""
        return fingerprint(self.config)

    def write(self, folder: Path) -> None:
        """Seal the artefact: from now on it is finished."""
        body = {**asdict(self), "fingerprint": self.fingerprint}
        body["seal"] = fingerprint(body)
        write_durably(folder / MANIFEST, _as_written(body))


def _as_written(body: Mapping[str, Any]) -> bytes:
    return (json.dumps(body, indent=1, sort_keys=True, allow_nan=False) + "\n").encode()


def artefact_folder(root: Path, name: str, config: Mapping[str, Any]) -> Path:
    """Return where the artefact with this config lies: `<root>/<name>-<12 hex digits>`.

    One that is there under another name is the same artefact: a name is not what it is made from.
    """
    mark = fingerprint(config)[:12]
    folder = root / f"{name}-{mark}"
    return folder if folder.exists() else next(iter(sorted(root.glob(f"*-{mark}"))), folder)


def read_manifest(folder: Path) -> Manifest | None:
    """Return the manifest of a finished artefact, None when it isn't finished.

    Raises: StillroomError when the manifest is there but is no manifest, was edited by hand or has another format.
    """
    path = folder / MANIFEST
    try:
        content = read_file(path, MAX_MANIFEST_BYTES)
        body = json.loads(content)
    except FileNotFoundError:
        return None
    except (OSError, ValueError, RecursionError) as error:
        raise StillroomError(f"{path}: found no JSON ({error}); expected a manifest; delete the folder") from error
    found = body.get("format", FORMAT) if isinstance(body, dict) else FORMAT
    if type(found) is not int or found != FORMAT:
        raise StillroomError(f"{path}: format {found!r}; expected {FORMAT}; rebuild it with this release")
    if not isinstance(body, dict) or not {"format", "seal", "config", "kind", "name"} <= body.keys():
        raise StillroomError(f"{path}: found other keys; expected a manifest of Stillroom; delete the folder")
    seal, stated = body["seal"], body.get("fingerprint")
    try:
        is_whole = content == _as_written(body)  # 1E-5 for 1e-5 is damage too, though it says the same
        body.pop("seal")
        is_whole = is_whole and seal == fingerprint(body) and stated == fingerprint(body["config"])
    except (ValueError, RecursionError):  # NaN or infinity, or too deep: no manifest was written with it
        is_whole = False
    if not is_whole:
        raise StillroomError(f"{path}: its seal does not fit its content; it was edited or damaged; delete the folder")
    body.pop("fingerprint")
    if not _is_typed(body):
        raise StillroomError(f"{path}: found other types; expected a manifest of Stillroom; delete the folder")
    return Manifest(**body)


_SAID = {"kind": str, "name": str, "config": dict, "digests": dict, "metrics": dict, "details": dict}


def _is_typed(body: Mapping[str, Any]) -> bool:
    if body.keys() != {*_SAID, "format"} or not all(isinstance(body[key], kind) for key, kind in _SAID.items()):
        return False
    return all(isinstance(digest, str) for digest in body["digests"].values())


def require_manifest(folder: Path, kind: str, *, make_with: str) -> Manifest:
    """Return the manifest of a finished artefact of one kind. Raises StillroomError when there is none."""
    manifest = read_manifest(folder)
    if manifest is None:
        what = "an unfinished artefact" if folder.exists() else "nothing"
        raise StillroomError(f"{folder}: found {what}; expected a finished {kind}; run '{make_with}'")
    if manifest.kind != kind:
        raise StillroomError(f"{folder}: found a {manifest.kind}; expected a {kind}; name another folder")
    return manifest


def check_fresh(manifest: Manifest, wanted: Mapping[str, Any], where: Path) -> None:
    """Raise StaleStoreError, naming the fields that differ, unless the artefact was made from exactly `wanted`."""
    differing = differences(manifest.config, wanted)
    if differing:
        raise StaleStoreError(f"{where}: made from another {', '.join(differing)}; rebuild it from what is wanted now")


class _Nothing:
    """What a missing key holds, as opposed to None."""

    def __repr__(self) -> str:
        return "nothing"


_NOTHING = _Nothing()


def differences(found: Any, wanted: Any, path: str = "") -> list[str]:
    """Return the dotted names of the fields in which two JSON values differ, each with both values."""
    if isinstance(found, Mapping) and isinstance(wanted, Mapping):
        keys = sorted(found.keys() | wanted.keys())
        return [
            line
            for key in keys
            for line in differences(found.get(key, _NOTHING), wanted.get(key, _NOTHING), f"{path}.{key}".lstrip("."))
        ]
    if isinstance(found, list) and isinstance(wanted, list) and len(found) == len(wanted) and _are_tables(found):
        pairs = enumerate(zip(found, wanted, strict=True))
        return [line for place, (one, other) in pairs for line in differences(one, other, f"{path}.{place}")]
    if _NOTHING not in (found, wanted) and canonical_json(found) == canonical_json(wanted):
        return []  # by their JSON, as fingerprints see them: to Python 1 is 1.0 is True
    return [f"{path} (found {_short(found)}; expected {_short(wanted)})"]


def _are_tables(values: list[Any]) -> bool:
    return all(isinstance(value, Mapping) for value in values)


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 40 else text[:37] + "..."


def versions() -> dict[str, str]:
    """Return the releases that an artefact's bits may depend on."""
    packages = ("stillroom", "torch", "torchvision", "zarr", "numpy", "scikit-learn")
    return {"python": platform.python_version(), **{name: metadata.version(name) for name in packages}}


def write_cost(folder: Path, cost: Mapping[str, Any]) -> None:
    """Add what a run cost (seconds, rows, bytes) to the artefact's `cost.json`: numbers add up over resumed runs."""
    folder.mkdir(parents=True, exist_ok=True)
    with locked(folder):
        total = read_cost(folder)
        for key, value in cost.items():
            before = total.get(key, 0)
            is_sum = isinstance(value, int | float) and isinstance(before, int | float)
            total[key] = before + value if is_sum else value
        write_durably(folder / COST, (json.dumps(total, indent=1, sort_keys=True) + "\n").encode())


def read_cost(folder: Path) -> dict[str, Any]:
    """Return what the artefact has cost so far, {} when nobody wrote it down."""
    try:
        cost = json.loads(read_file(folder / COST, MAX_MANIFEST_BYTES))
    except (OSError, ValueError, RecursionError):
        return {}
    return cost if isinstance(cost, dict) else {}
