"""What a model may read of a record: one file a kind. A kind is a frozen dataclass whose fields are its recipe keys.

Change what `read` gives and raise `version`: models that read the former are then other models.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, fields
from typing import Any

from pydantic import TypeAdapter, ValidationError

from pipeline.datasets.catalog import encoders
from pipeline.datasets.inputs.codes import Codes
from pipeline.datasets.inputs.contract import Fitted, Input
from pipeline.datasets.inputs.embedding import Embedding, encoder_sha256
from pipeline.datasets.inputs.noise import Noise
from pipeline.datasets.inputs.of_source import HAS_SOURCE, SOURCE, OfSource
from pipeline.datasets.inputs.pair import FittedPair, Pair
from pipeline.datasets.inputs.series import Series
from pipeline.datasets.inputs.table import Table
from pipeline.datasets.inputs.text import Text
from pipeline.datasets.inputs.words import Words
from pipeline.errors import StillroomError, near_names, unknown_name

InputSpecs = Mapping[str, Mapping[str, Any]]  # by name: {"kind": ..., and the kind's options}

__all__ = [
    "INPUTS",
    "Fitted",
    "FittedPair",
    "Input",
    "InputSpecs",
    "OfSource",
    "config_of",
    "parse_input",
    "parse_of_source",
]

INPUTS: dict[str, type] = {
    "text": Text,
    "words": Words,
    "table": Table,
    "embedding": Embedding,
    "series": Series,
    "codes": Codes,
    "noise": Noise,
    "pair": Pair,
}


def parse_input(name: str, spec: Mapping[str, Any], columns: Sequence[str]) -> Input:
    """Return the input that a table such as `{kind = "words", length = 48}` names, of records with these columns.

    Raises StillroomError for an unknown kind, option or column (with near names) or an option out of range.
    """
    where, kind = f"input.{name}", spec.get("kind")
    if not isinstance(kind, str) or kind not in INPUTS:
        raise unknown_name(f"{where}.kind", "kind of input", str(kind), INPUTS)
    options = {key: value for key, value in spec.items() if key != "kind"}
    known = [each.name for each in fields(INPUTS[kind])]
    for key in options:
        if key not in known:
            raise StillroomError(
                f"{where}: {kind} found option {key!r}; expected only its own; {near_names(str(key), known)}"
            )
    try:
        made: Any = TypeAdapter(INPUTS[kind]).validate_python(options)
    except ValidationError as error:
        raise StillroomError("\n".join(_fault(where, each) for each in error.errors())) from error
    _check_columns(where, made, columns)
    if isinstance(made, Embedding) and made.encoder not in encoders():
        raise unknown_name(f"{where}.encoder", "encoder", made.encoder, encoders())
    return made


def parse_of_source(
    name: str, spec: Mapping[str, Any], columns: Sequence[str], sources: Sequence[str]
) -> Input | OfSource:
    """Return the input that a table names, of one source's columns where it says `source`.

    These are all of them, unless the table says which. Raises StillroomError for an unknown source, a kind that can't
    say whether a record has it, and as `parse_input` does.
    """
    if SOURCE not in spec:
        return parse_input(name, spec, columns)
    where, kind, source = f"input.{name}.{SOURCE}", spec.get("kind"), str(spec[SOURCE])
    if not sources:
        raise StillroomError(f"{where}: found {source!r}; expected none, for the data is one table; remove it")
    if source not in sources:
        raise unknown_name(where, "source", source, sources)
    own = tuple(column for column in columns if column.startswith(f"{source}."))
    asked = {key: value for key, value in spec.items() if key != SOURCE}
    usual = {each.name: each.default for each in fields(INPUTS[kind])} if kind in INPUTS else {}
    if usual.get("columns", "all") != "all":
        asked.setdefault("columns", own)
    made = parse_input(name, asked, own)
    if made.gives not in HAS_SOURCE:
        raise StillroomError(
            f"{where}: found {source!r} with kind {kind!r}, which gives {made.gives}; expected one that gives "
            f"{', '.join(HAS_SOURCE)}, which tell whether a record has it; read it without a source"
        )
    return OfSource(made, source, own)


def _fault(where: str, error: Any) -> str:
    expected = error["msg"].replace("Input should be", "expected", 1)
    return f"{where}.{error['loc'][0]}: found {error['input']!r}; {expected}; correct it"


def _check_columns(where: str, made: Input, columns: Sequence[str]) -> None:
    for option in made.naming:
        named = getattr(made, option)
        if option == "columns" and not named:
            raise StillroomError(f"{where}.columns: found none; expected at least one; {near_names('', columns)}")
        for column in _named(named):
            if column not in columns:
                raise StillroomError(
                    f"{where}.{option}: found {column!r}; expected one of {len(columns)} columns; "
                    f"{near_names(column, columns)}"
                )


def _named(option: str | Sequence[str]) -> Sequence[str]:
    """Return the columns that an option names: one, some, or none where it says "all"."""
    if isinstance(option, str):
        return () if option == "all" else (option,)
    return option


def config_of(made: Input | OfSource) -> dict[str, Any]:
    """Return what an input is made from, as JSON: its kind, version, every option, and the weights of an encoder."""
    if isinstance(made, OfSource):
        return {**config_of(made.made), SOURCE: made.source}
    kind = next(name for name, each in INPUTS.items() if type(made) is each)
    weights = {"encoder_sha256": encoder_sha256(made.encoder)} if isinstance(made, Embedding) else {}
    options = json.loads(json.dumps(asdict(made)))  # type: ignore[call-overload]  # tuples become lists, as on disk
    return {"kind": kind, "version": made.version, **options, **weights}
