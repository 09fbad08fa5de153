"""Options of losses and of rules for alpha, as recipes write them: what each may be, and the error when it isn't."""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from pipeline.errors import StillroomError, near_names


@dataclass(frozen=True)
class Option:
    """What one option may be, in words and as a test."""

    expected: str
    fits: Callable[[object], bool]


def number(low: float, high: float = math.inf, *, is_open: bool = False) -> Option:
    """Return a finite number between two others; `is_open` leaves the ends out."""

    def fits(value: object) -> bool:
        if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
            return False
        return low < value < high if is_open else low <= value <= high

    ends = "()" if is_open else "[]"
    if high == math.inf:
        return Option(f"a finite number {'above' if is_open else 'from'} {low:g}", fits)
    return Option(f"a number in {ends[0]}{low:g}, {high:g}{ends[1]}", fits)


def whole(low: int) -> Option:
    """Return a whole number from a least one."""
    return Option(f"a whole number from {low}", lambda value: type(value) is int and value >= low)


def one_of(*names: str) -> Option:
    """Return a choice among names."""
    return Option(f"one of {list(names)}", lambda value: isinstance(value, str) and value in names)


def check_options(where: str, options: Mapping[str, object], known: Mapping[str, Option]) -> None:
    """Raise StillroomError for an option that isn't known, or is of the wrong type or range."""
    for name, value in options.items():
        if name not in known:
            raise StillroomError(
                f"{where}: unknown option {name!r}; expected one of {len(known)}; {near_names(str(name), known)}"
            )
        if not known[name].fits(value):
            raise StillroomError(f"{where}: {name} is {value!r}; expected {known[name].expected}; change {name}")
