"""Every step by which a process changes a folder, so that a test can say at which one it dies or the disk refuses.

A process that is dead changes nothing any more, not even in what cleans up: after its step every later one dies too.
That is SIGKILL without a process, a thousand times as cheap. Writes go straight to the file, half by half, so that a
file can be torn as well as empty.
"""

import errno
import io
import os
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import pytest


class Dead(BaseException):
    """The process is no more."""


@dataclass(frozen=True)
class Step:
    """What is about to be done, and to which path; what is written, and what it's renamed to."""

    verb: str
    path: str
    content: bytes = b""
    target: str = ""


class Fate(Protocol):
    """What happens at a step, given its number from 0: nothing, or it raises."""

    def __call__(self, number: int, step: Step) -> None: ...


def dies_at(last: int) -> Fate:
    """Return the fate of a process that is killed just before its step of this number."""

    def fate(number: int, step: Step) -> None:
        if number >= last:
            raise Dead(f"before {step.verb} {step.path}")

    return fate


@dataclass
class Refusing:
    """A disk that refuses the n-th step of some verbs, once or from then on; `refused` says which, None if none."""

    verbs: tuple[str, ...]
    place: int
    error: int
    for_good: bool = False
    under: str = ""
    refused: Step | None = None
    _seen: int = 0

    def __call__(self, number: int, step: Step) -> None:
        is_there = step.verb == "mkdir" and os.path.isdir(step.path)  # then nothing is refused
        if step.verb not in self.verbs or self.under not in step.path or is_there:
            return
        self._seen += 1
        if self._seen - 1 == self.place or (self.for_good and self._seen - 1 > self.place):
            self.refused = self.refused or step
            if step.verb in ("open", "mkdir", "rename", "unlink"):
                raise OSError(self.error, os.strerror(self.error), step.path)
            raise OSError(self.error, os.strerror(self.error))  # write and fsync know no name


@dataclass
class Steps:
    """The steps taken so far."""

    taken: list[Step] = field(default_factory=list)

    def __len__(self) -> int:
        return len(self.taken)


@contextmanager
def steps_in(folder: Path, fate: Fate = lambda number, step: None) -> Iterator[Steps]:
    """Count every step below a folder, and ask `fate` before each."""
    steps, lock = Steps(), threading.Lock()

    def before(verb: str, path: Any, content: bytes = b"", target: Any = "") -> bool:
        text = os.fspath(path)
        inside = isinstance(text, str) and text.startswith(str(folder))
        if inside:
            with lock:
                step = Step(verb, text, content, os.fspath(target))
                steps.taken.append(step)
                number = len(steps.taken) - 1
            fate(number, step)
        return inside

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(io, "open", _opener(io.open, before))
        patch.setattr(os, "fsync", lambda descriptor: before("fsync", os.readlink(f"/proc/self/fd/{descriptor}")))
        for name, verb in {"replace": "rename", "rename": "rename", "unlink": "unlink", "remove": "unlink"}.items():
            patch.setattr(os, name, _preceded(getattr(os, name), verb, before))
        patch.setattr(os, "mkdir", _preceded(os.mkdir, "mkdir", before))
        yield steps


Before = Callable[..., bool]


def _preceded(do: Callable[..., Any], verb: str, before: Before) -> Callable[..., Any]:
    def step(path: Any, *args: Any, **options: Any) -> Any:
        before(verb, path, target=args[0] if verb == "rename" else "")
        return do(path, *args, **options)

    return step


def _opener(opens: Callable[..., Any], before: Before) -> Callable[..., Any]:
    def opened(path: Any, mode: str = "r", *args: Any, **options: Any) -> Any:
        if "r" in mode and "+" not in mode:
            return opens(path, mode, *args, **options)
        if isinstance(path, int) or not before("open", path):
            return opens(path, mode, *args, **options)
        return _File(path, mode, before)

    return opened


class _File:
    """A file being written, unbuffered: each write is two steps, with half the bytes on disk between them."""

    def __init__(self, path: Any, mode: str, before: Before):
        self._path, self._before, self._raw = os.fspath(path), before, io.FileIO(path, mode.replace("b", ""))
        self.fileno, self.close = self._raw.fileno, self._raw.close

    def write(self, content: Any) -> int:
        view = memoryview(content).cast("B")
        half = len(view) // 2
        for part in (view[:half], view[half:]):
            self._before("write", self._path, bytes(part))
            self._raw.write(part)
        return len(view)

    def flush(self) -> None:
        pass

    def __enter__(self) -> "_File":
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()


NO_SPACE, BROKEN = errno.ENOSPC, errno.EIO
