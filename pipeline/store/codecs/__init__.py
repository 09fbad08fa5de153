"""How a field's logits lie on disk: a dict of codecs, each a frozen dataclass, its error measured, not promised."""

import sys
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any

from pipeline.errors import StillroomError, unknown_name
from pipeline.store.codecs.base import Codec, Part
from pipeline.store.codecs.dense import BitRound, Centred16, Centred32, Companded8
from pipeline.store.codecs.measure import LEVEL, combine_errors, errors_together, measure_error, packed_bytes
from pipeline.store.codecs.real import Real16, Real32
from pipeline.store.codecs.sparse import Sampled, TopK

__all__ = [
    "ALL_CODECS",
    "CODECS",
    "LEVEL",
    "REAL_CODECS",
    "Codec",
    "Part",
    "auto_candidates",
    "codec_json",
    "combine_errors",
    "errors_together",
    "measure_error",
    "packed_bytes",
    "parse_codec",
]

CODECS: dict[str, type[Codec]] = {
    codec.kind: codec for codec in (Centred16, Centred32, BitRound, Companded8, TopK, Sampled)
}
REAL_CODECS: dict[str, type[Codec]] = {codec.kind: codec for codec in (Real32, Real16)}  # the first is the default
ALL_CODECS = CODECS | REAL_CODECS  # what a store may be written with


@dataclass(frozen=True)
class Option:
    """What a codec's option may be, in words, and how a recipe's value becomes it: None when it may not."""

    expected: str
    read: Callable[[Any], Any]


def _whole(lowest: int, highest: int) -> Option:
    allowed = range(lowest, highest + 1)
    return Option(
        f"a whole number from {lowest} to {highest}",
        lambda value: value if type(value) is int and value in allowed else None,
    )


def _number(value: Any) -> float | None:
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    return float(value) if is_number and 0 < value <= sys.float_info.max else None


def _numbers(value: Any) -> tuple[float, ...] | None:
    found = tuple(_number(each) for each in value) if isinstance(value, list | tuple) else ()
    return found if found and None not in found and len(set(found)) == len(found) else None  # type: ignore[return-value]


OPTIONS: dict[str, Option] = {
    "keep": _whole(1, 10),
    "levels": _whole(1, 255),
    "k": _whole(1, 1 << 20),
    "temperatures": Option("a list of numbers above 0, each once", _numbers),
    "draws": _whole(1, 255),
    "seed": _whole(0, (1 << 63) - 1),
}


def parse_codec(spec: str | Mapping[str, Any], where: str, among: Mapping[str, type[Codec]] | None = None) -> Codec:
    """Return the codec that a name, or a table such as `{kind = "topk", k = 64}`, stands for.

    It is one of CODECS, or `among` others.
    Raises: StillroomError for an unknown kind or option (with near names) or a value that is not allowed.
    """
    codecs = CODECS if among is None else among
    options = dict(spec) if isinstance(spec, Mapping) else {"kind": spec}
    kind = options.pop("kind", None)
    if not isinstance(kind, str) or kind not in codecs:
        raise unknown_name(where, "codec", str(kind), codecs)
    known = [field.name for field in fields(codecs[kind])]  # type: ignore[arg-type]
    for name in options:
        if name not in known:
            raise unknown_name(where, f"option of codec {kind!r}", name, known)
    return codecs[kind](**{name: _read(name, value, where) for name, value in options.items()})


def _read(name: str, value: Any, where: str) -> Any:
    found = OPTIONS[name].read(value)
    if found is None:
        raise StillroomError(
            f"{where}.{name}: found {value!r}; expected {OPTIONS[name].expected}; correct it, or leave it out"
        )
    return found


def codec_json(codec: Codec) -> dict[str, Any]:
    """Return what a codec is, as JSON: its kind and every option."""
    options = asdict(codec)  # type: ignore[call-overload]
    return {"kind": codec.kind, **{k: list(v) if isinstance(v, tuple) else v for k, v in options.items()}}


def auto_candidates(num_classes: int) -> list[Codec]:
    """Return the codecs that `auto` measures, the smallest first, finer steps where few classes make it cheap.

    Dense ones only: a sparse one serves no temperature but those it was made for, which is for a person to choose.
    """
    levels = (60, 120, 200, 255) if num_classes >= 100 else (40, 60, 80, 100, 120, 160, 200, 255)
    return [*(Companded8(each) for each in levels), BitRound(7), BitRound(8), Centred16()]
