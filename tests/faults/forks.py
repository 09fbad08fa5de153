"""Processes to crowd and to kill, forked from the warm test process: each costs milliseconds, and none outlives a test.

A child never waits for a thread of its parent: torch has one thread here, Zarr isn't asked for anything in a child.
"""

import mmap
import os
import signal
import time
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

PATIENCE = 60  # seconds, after which a child that hangs is killed by its alarm and its test fails


@dataclass(frozen=True)
class Ended:
    """How a child ended: by a signal, or with what it returned or raised, in words."""

    signal: int | None
    said: str

    @property
    def was_killed(self) -> bool:
        """Whether SIGKILL reached it before its end."""
        return self.signal == signal.SIGKILL


@dataclass
class Child:
    """A process that was forked to do one thing."""

    pid: int
    _pipe: int
    _ended: Ended | None = field(default=None)

    def kill(self) -> None:
        """Send SIGKILL, wherever it is."""
        os.kill(self.pid, signal.SIGKILL)

    def kill_after(self, seconds: float) -> Ended:
        """Let it run so long, then kill it; it may have ended by then."""
        time.sleep(seconds)
        self.kill()
        return self.wait()

    def wait(self) -> Ended:
        """Wait for its end."""
        if self._ended is None:
            with os.fdopen(self._pipe, "rb") as pipe:
                said = pipe.read().decode()
            code = os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1])
            self._ended = Ended(-code if code < 0 else None, said)
        return self._ended


def fork(do: Callable[[], object]) -> Child:
    """Do something in a process of its own; what it returns or raises comes back as text."""
    reading, writing = os.pipe()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # Python's of threads in a process that forks
        pid = os.fork()
    if pid:
        os.close(writing)
        return Child(pid, reading)
    try:
        signal.signal(signal.SIGALRM, signal.SIG_DFL)
        signal.alarm(PATIENCE)
        said = str(do())
    except BaseException as error:
        said = f"{type(error).__name__}: {error}"
    os.write(writing, said.encode()[:60_000])  # less than a pipe holds: it never waits for the parent
    os._exit(0)


class Flags:
    """Bytes that all processes see: one raises a flag, the others wait for it."""

    def __init__(self, count: int = 8):
        self._bytes = mmap.mmap(-1, count)

    def __getitem__(self, number: int) -> bool:
        return bool(self._bytes[number])

    def up(self, number: int) -> None:
        """Raise a flag."""
        self._bytes[number] = 1

    def wait(self, *numbers: int) -> None:
        """Return once all these flags are up."""
        deadline = time.monotonic() + PATIENCE
        while not all(self._bytes[number] for number in numbers):
            assert time.monotonic() < deadline, f"flags {numbers} never went up"
            time.sleep(0.0005)


def together(works: Sequence[Callable[[], object]]) -> list[Child]:
    """Fork one process for each piece of work; all begin when the last of them is ready."""
    ready, go = Flags(len(works)), Flags(1)

    def start(number: int) -> Child:
        def at_once() -> object:
            ready.up(number)
            go.wait(0)
            return works[number]()

        return fork(at_once)

    children = [start(number) for number in range(len(works))]
    ready.wait(*range(len(works)))
    go.up(0)
    return children
