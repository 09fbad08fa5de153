"""Ratios of two things run in turn: the only figures of time that mean anything on a machine that others share."""

import shutil
import statistics
import time
from collections.abc import Callable, Sequence
from pathlib import Path

REPEATS = 7


def seconds(work: Callable[[], object]) -> float:
    """Return how long one call took."""
    started = time.perf_counter()
    work()
    return time.perf_counter() - started


def seconds_in(folder: Path, work: Callable[[Path], object]) -> float:
    """Return how long `work(folder)` took; the folder is made before and deleted after, outside the clock."""
    folder.mkdir(parents=True)
    try:
        return seconds(lambda: work(folder))
    finally:
        shutil.rmtree(folder)


def alternate(a: Callable[[], float], b: Callable[[], float], repeats: int = REPEATS) -> list[float]:
    """Return a ÷ b of neighbouring runs; both return what they measured, and both run once beforehand."""
    a(), b()
    return [a() / b() for _ in range(repeats)]


def show(name: str, ratios: Sequence[float], note: str = "") -> None:
    """Print the median of ratios, the smallest and the largest."""
    spread = f"{statistics.median(ratios):6.2f}  ({min(ratios):.2f} to {max(ratios):.2f})"
    print(f"{name:<70} {spread}{'  ' + note if note else ''}", flush=True)


def compare(name: str, a: Callable[[], object], b: Callable[[], object], note: str = "") -> None:
    """Print a ÷ b, run in turn."""
    show(name, alternate(lambda: seconds(a), lambda: seconds(b)), note)
