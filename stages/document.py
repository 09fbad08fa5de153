"""A recipe's text as tables: whoever wrote it, it is read in a second, and all in it can be written down as JSON."""

import math
import tomllib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from pipeline.errors import StillroomError

MAX_BYTES = 256 << 10  # ours have 5 KB; tomllib takes half a second for so many
MAX_DOTS = 100  # in a line: the time for a key of many parts grows with their square
MAX_DEPTH = 32
MAX_SHOWN = 200  # characters of a value that an error shows


def read_document(path: Path) -> dict[str, Any]:
    """Return the tables of a TOML file. Raises StillroomError when it holds none, or is no size for a recipe."""
    try:
        with path.open("rb") as file:
            content = file.read(MAX_BYTES + 1)
        if len(content) > MAX_BYTES:
            raise ValueError(f"more than {MAX_BYTES:,} bytes")
        return parse(content.decode())
    except (OSError, ValueError, RecursionError) as error:
        raise StillroomError(f"{path}: found no TOML; expected a recipe; {error}") from error


def parse(text: str) -> dict[str, Any]:
    """Return the tables of TOML. Raises ValueError or RecursionError when it is none."""
    text = text.replace("\r\n", "\n")
    if max(line.count(".") for line in text.split("\n")) > MAX_DOTS:
        raise ValueError(f"a line with more than {MAX_DOTS} dots")
    return tomllib.loads(text)


def value_faults(value: Any, place: str = "", depth: int = 0) -> Iterator[str]:
    """Yield what no fingerprint can be taken of: NaN, dates, numbers beyond 64 bits, tables in tables without end."""
    if depth > MAX_DEPTH:
        yield f"{place[:MAX_SHOWN]}: found more than {MAX_DEPTH} tables in one another; expected a few; take some out"
    elif isinstance(value, Mapping):
        for key, each in value.items():
            yield from value_faults(each, f"{place}.{key}".lstrip("."), depth + 1)
    elif isinstance(value, list):
        for number, each in enumerate(value):
            name = each.get("name") if isinstance(each, Mapping) else None
            part = f".{name}" if isinstance(name, str) else f"[{number}]"
            yield from value_faults(each, f"{place}{part}", depth + 1)
    elif isinstance(value, float) and not math.isfinite(value):
        yield f"{place}: found {value!r}; expected a finite number; correct it"
    elif isinstance(value, int) and value.bit_length() > 63:
        yield f"{place}: found a number of {value.bit_length()} bits; expected at most 63; correct it"
    elif not isinstance(value, str | int | float):
        yield f"{place}: found a {type(value).__name__}; expected text, a number, a list or a table; put it in quotes"


def shown(value: Any) -> str:
    """Return a value as an error shows it: all of it where it is short."""
    text = repr(value)
    return text if len(text) <= MAX_SHOWN else f"{text[:MAX_SHOWN]}..."
