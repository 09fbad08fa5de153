"""Recipes: one TOML file describes a whole run. Read, overridden, and checked whole: every fault is told at once."""

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ValidationError

from pipeline.errors import StillroomError, near_names
from stages.check import cross_faults
from stages.data_entry import Data, InputEntry, Views
from stages.document import parse, read_document, shown, value_faults
from stages.recipe import FusionEntry, Logits, LossEntry, Recipe, StudentEntry, TeacherEntry
from stages.source_entry import ConvertEntry, ExtractEntry, PivotEntry, SourceEntry

SHIPPED = Path(__file__).parent / "recipes"
MAX_FAULTS, MAX_FAULT = 40, 1000  # that are told at once, and characters of each
SECTIONS: dict[str, type[BaseModel]] = {
    "data": Data,
    "source": SourceEntry,
    "extract": ExtractEntry,
    "convert": ConvertEntry,
    "pivot": PivotEntry,
    "input": InputEntry,
    "views": Views,
    "teacher": TeacherEntry,
    "logits": Logits,
    "fusion": FusionEntry,
    "student": StudentEntry,
    "loss": LossEntry,
}


def recipe_names() -> list[str]:
    """Return the recipes that ship."""
    return sorted(path.stem for path in SHIPPED.glob("*.toml"))


def load_recipe(name_or_path: str, overrides: Sequence[str] = (), *, fusion: str | None = None) -> Recipe:
    """Return a shipped recipe by name, or one of your own by path, with `section.key=value` overrides applied.

    `fusion` makes every student learn from that one.

    Raises: StillroomError that lists every fault with its place.
    """
    path = Path(name_or_path)
    if path.suffix != ".toml":
        path = SHIPPED / f"{name_or_path}.toml"
    if not _is_file(path):
        known = near_names(name_or_path, recipe_names())
        raise StillroomError(f"recipe: found no {name_or_path!r}; expected a shipped recipe or a .toml file; {known}")
    document = read_document(path)
    for override in overrides:
        _override(document, override)
    if fusion:
        _learn_from(document, fusion)
    if faults := list(value_faults(document)):
        raise _faults(path, faults)
    try:
        recipe = Recipe.model_validate(document)
    except ValidationError as error:
        raise _faults(path, [_told(document, fault) for fault in error.errors()]) from None
    if faults := cross_faults(recipe):
        raise _faults(path, faults)
    return without_missing(recipe)


def without_missing(recipe: Recipe) -> Recipe:
    """Return a recipe without the optional teachers whose program is not installed, also in its fusions."""
    from pipeline.models import WRITERS

    optional = [entry for entry in recipe.teacher if entry.optional]
    missing = {entry.name for entry in optional if not WRITERS[entry.model](**entry.options).is_installed}
    if not missing:
        return recipe
    teachers = [entry for entry in recipe.teacher if entry.name not in missing]
    fusions = [_without(entry, missing) for entry in recipe.fusion]
    return recipe.model_copy(update={"teacher": teachers, "fusion": fusions})


def _without(fusion: FusionEntry, missing: set[str]) -> FusionEntry:
    if fusion.teachers is None:
        return fusion
    return fusion.model_copy(update={"teachers": [name for name in fusion.teachers if name not in missing]})


def _is_file(path: Path) -> bool:
    try:
        return path.is_file()
    except OSError:  # a name longer than any file's
        return False


def _learn_from(document: Mapping[str, Any], fusion: str) -> None:
    students = document.get("student")
    for student in students if isinstance(students, list) else []:
        if isinstance(student, dict):
            student["fusion"] = fusion


def _faults(path: Path, faults: Iterable[str]) -> StillroomError:
    told = [
        fault if len(fault) <= MAX_FAULT else f"{fault[: MAX_FAULT // 2]} ... {fault[-MAX_FAULT // 2 :]}"
        for fault in faults
    ]
    more = [f"{len(told) - MAX_FAULTS} faults more"] if len(told) > MAX_FAULTS else []
    return StillroomError("\n".join(f"{path.name}: {fault}" for fault in [*told[:MAX_FAULTS], *more]))


def _told(document: Mapping[str, Any], fault: Mapping[str, Any]) -> str:
    """Return one pydantic fault as place: found; expected; what to do."""
    place = _place(document, fault["loc"])
    if fault["type"] == "extra_forbidden":
        section = next((SECTIONS[str(part)] for part in reversed(fault["loc"][:-1]) if part in SECTIONS), Recipe)
        key = str(fault["loc"][-1])
        return f"{place}: unknown key {key!r}; expected a key of its section; {near_names(key, section.model_fields)}"
    if fault["type"] == "missing":
        return f"{place}: missing; expected a value; add it"
    return f"{place}: found {shown(fault['input'])}; expected: {fault['msg']}; correct it"


def _place(document: Mapping[str, Any], loc: Sequence[Any]) -> str:
    """Return a dotted place that uses names where the document has them: student.tiny.loss.temperature."""
    words, here = list[str](), document
    for part in loc:
        try:
            here = here[part]
        except (KeyError, IndexError, TypeError):
            here = {}
        if isinstance(part, int):
            name = here.get("name") if isinstance(here, Mapping) else None
            words.append(str(name or f"[{part}]"))
        elif not (isinstance(part, str) and (part in ("str", "float") or "[" in part or part == "constrained-float")):
            words.append(str(part))
    return ".".join(words)


def _override(document: dict[str, Any], override: str) -> None:
    """Set one value: `seed=1`, `views.count=4`, `student.tiny.width=32`, `student.tiny.loss.temperature=4`."""
    path, equals, text = override.partition("=")
    *parents, key = path.strip().split(".")
    if not equals or not key:
        raise StillroomError(
            f"--set {override!r}: found no section.key=value; expected e.g. student.tiny.width=32; mend it"
        )
    here: Any = document
    for depth, part in enumerate(parents):
        if isinstance(here, list):
            entries = [entry for entry in here if isinstance(entry, dict)]
            named = {entry["name"]: entry for entry in entries if isinstance(entry.get("name"), str)}
            if part not in named:
                where = ".".join(parents[:depth])
                raise StillroomError(
                    f"--set {override!r}: {where} has no {part!r}; expected a name it has; {near_names(part, named)}"
                )
            here = named[part]
        else:
            here = here.setdefault(part, {}) if isinstance(here, dict) else None
    if not isinstance(here, dict):
        raise StillroomError(
            f"--set {override!r}: {'.'.join(parents)} is no table; expected section.name.key; name one"
        )
    here[key] = _value(text.strip())


def _value(text: str) -> Any:
    """Return a TOML value; a bare word is a string."""
    try:
        return parse(f"value = {text}")["value"]
    except (ValueError, RecursionError):
        return text
