"""Faults of a recipe, as they are told: one line each, from a check that yields them or raises."""

from collections.abc import Callable, Iterator, Mapping
from typing import Any

from pipeline.errors import StillroomError, near_names


def unknown(where: str, kind: str, found: str, known: Mapping[str, Any] | Any) -> Iterator[str]:
    """Yield the fault of a name that is not known."""
    if found not in known:
        yield f"{where}: unknown {kind} {found!r}; expected a known one; {near_names(found, known)}"


def raised(check: Callable[[], Any]) -> Iterator[str]:
    """Yield the fault that a check raises."""
    try:
        check()
    except StillroomError as error:
        yield str(error)
