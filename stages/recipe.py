"""Recipes: one TOML file describes a whole run. Read, overridden, and checked whole: every fault is told at once."""

import json
import tomllib
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, StringConstraints, ValidationError

from pipeline.errors import StillroomError, near_names

SHIPPED = Path(__file__).parent / "recipes"
Name = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.]*$", max_length=60)]
RecipeName = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]*$", max_length=60)]
Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]
Count = Annotated[int, Field(ge=1)]
Precision = Literal["auto", "fp32", "bf16"]


class Section(BaseModel):
    """A table whose keys are all known."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)


class Data(Section):
    """What to learn from: a catalogue name or a folder of pictures."""

    name: str | None = None
    folder: str | None = None
    calibration: Annotated[float, Field(gt=0, lt=1)] = 0.1
    test: Annotated[float, Field(gt=0, lt=1)] = 0.2
    labelled: Count | None = None
    max_train: Count | None = None
    max_test: Count | None = None
    size: Count | None = None
    channels: Literal[1, 3] | None = None
    memory_gb: Positive = 4.0


class Views(Section):
    """Which versions of each train sample there are."""

    count: Count = 8
    transforms: list[dict[str, Any]] = []
    mix: dict[str, Any] | None = None


class Named(BaseModel):
    """An entry with a name, whose unknown keys are options of what it names."""

    model_config = ConfigDict(extra="allow", strict=True, frozen=True)
    name: Name

    @property
    def options(self) -> dict[str, Any]:
        """The keys that belong to the model or strategy it names."""
        return dict(self.model_extra or {})


class Training(Named):
    """How a model is trained; teachers and students share it."""

    model: str
    epochs: Positive = 20
    batch_size: Count = 128
    lr: Positive = 2e-3
    weight_decay: Annotated[float, Field(ge=0)] = 0.05
    warmup: Annotated[float, Field(ge=0, lt=1)] = 0.1
    clip: Positive | None = None
    patience: Count | None = None
    precision: Precision = "auto"


class TeacherEntry(Training):
    """A model that learns from labels once and answers on every row. `fit_views`: views a scikit-learn model sees."""

    seed: Annotated[int, Field(ge=0)] = 0
    fit_views: Count = 4


class Logits(Section):
    """What is kept of each teacher."""

    features: list[str] = ["penultimate"]
    codec: str = "fp16"
    batch_size: Count = 256  # larger buffers would pass glibc's 32 MB and be unmapped every time


class FusionEntry(Named):
    """How teachers become one target."""

    strategy: str = "mean"
    teachers: list[str] | None = None
    temperatures: list[Positive] = [1.0]
    calibrate: bool = True
    codec: str = "fp16"


class LossEntry(Section):
    """What a student minimises: alpha * cross-entropy + (1 - alpha) * soft loss."""

    kind: str = "kl"
    temperature: Positive = 1.0
    alpha: Annotated[float, Field(ge=0, le=1)] | str = "conditional"


class StudentEntry(Training):
    """A model that learns from a target store."""

    fusion: str = "mean"
    seeds: Annotated[list[int], Field(min_length=1)] = [0, 1, 2, 3, 4]
    loss: LossEntry = LossEntry()
    baselines: bool = True


class Recipe(Section):
    """A whole run."""

    name: RecipeName
    seed: Annotated[int, Field(ge=0)] = 0
    data: Data
    views: Views = Views()
    teacher: Annotated[list[TeacherEntry], Field(min_length=1)]
    logits: Logits = Logits()
    fusion: Annotated[list[FusionEntry], Field(min_length=1)]
    student: list[StudentEntry] = []

    def find(self, kind: Literal["teacher", "fusion", "student"], name: str) -> Any:
        """Return an entry by name. Raises StillroomError with near names."""
        entries = {entry.name: entry for entry in getattr(self, kind)}
        if name not in entries:
            raise StillroomError(f"{self.name}: no {kind} {name!r}; expected one it has; {near_names(name, entries)}")
        return entries[name]


SECTIONS: dict[str, type[BaseModel]] = {
    "data": Data,
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
    if not path.is_file():
        known = near_names(name_or_path, recipe_names())
        raise StillroomError(f"recipe: found no {name_or_path!r}; expected a shipped recipe or a .toml file; {known}")
    try:
        document = tomllib.loads(path.read_text())
    except (tomllib.TOMLDecodeError, UnicodeDecodeError, RecursionError) as error:
        raise StillroomError(f"{path}: found no TOML; expected a recipe; {error}") from error
    for override in overrides:
        _override(document, override)
    for student in document.get("student", []) if fusion else []:
        student["fusion"] = fusion
    try:
        recipe = Recipe.model_validate(document)
    except ValidationError as error:
        raise _faults(path, [_told(document, fault) for fault in error.errors()]) from None
    from stages.check import cross_faults

    if faults := cross_faults(recipe):
        raise _faults(path, faults)
    return recipe


def _faults(path: Path, faults: Iterable[str]) -> StillroomError:
    return StillroomError("\n".join(f"{path.name}: {fault}" for fault in faults))


def _told(document: Mapping[str, Any], fault: Mapping[str, Any]) -> str:
    """Return one pydantic fault as place: found; expected; what to do."""
    place = _place(document, fault["loc"])
    if fault["type"] == "extra_forbidden":
        section = next((SECTIONS[str(part)] for part in reversed(fault["loc"][:-1]) if part in SECTIONS), Recipe)
        key = str(fault["loc"][-1])
        return f"{place}: unknown key {key!r}; expected a key of its section; {near_names(key, section.model_fields)}"
    if fault["type"] == "missing":
        return f"{place}: missing; expected a value; add it"
    return f"{place}: found {fault['input']!r}; expected: {fault['msg']}; correct it"


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
        elif not (isinstance(part, str) and (part in ("str",) or "[" in part or part == "constrained-float")):
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
            named = {entry.get("name"): entry for entry in here if isinstance(entry, dict)}
            if part not in named:
                where = ".".join(parents[:depth])
                raise StillroomError(
                    f"--set {override!r}: {where} has no {part!r}; expected a name it has; "
                    f"{near_names(part, map(str, named))}"
                )
            here = named[part]
        else:
            here = here.setdefault(part, {})
    if not isinstance(here, dict):
        raise StillroomError(
            f"--set {override!r}: {'.'.join(parents)} is no table; expected section.name.key; name one"
        )
    here[key] = _value(text.strip())


def _value(text: str) -> Any:
    """Return a TOML value; a bare word is a string."""
    try:
        return tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        return text


def training_config(entry: Training) -> dict[str, Any]:
    """Return the keys of an entry that the trained weights depend on, as JSON."""
    dumped = entry.model_dump(exclude={"name", "seeds", "fusion", "loss", "baselines", "seed"})
    return json.loads(json.dumps(dumped))
