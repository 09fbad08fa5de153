"""Between recipe tables or stored plans and transforms: parse, describe, and prove that a description still holds."""

import inspect
import json
import math
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from typing import Any

import numpy as np

from pipeline.errors import StaleStoreError, StillroomError, near_names, unknown_name
from pipeline.views.torchvision_pipeline import TorchvisionPipeline
from pipeline.views.transforms import TRANSFORMS, Mix, Transform


def spec_of(transform: Any) -> dict[str, Any]:
    """Return what a transform is, as JSON: its class, options and code version."""
    options = json.loads(json.dumps(asdict(transform)))  # tuples become lists, as they do on disk
    return {**options, "transform": type(transform).__name__.lower(), "version": transform.version}


def transform_from_spec(spec: Mapping[str, Any]) -> Any:
    """Return the transform (or Mix) that `spec_of` described.

    Raises: StaleStoreError when this release makes it differently (another version), StillroomError when unknown.
    """
    try:
        made = _made(spec)
        is_same = spec_of(made) == spec
    except (KeyError, TypeError, ValueError, AttributeError, ArithmeticError) as error:
        raise StillroomError(
            f"views: found a transform that is none ({error!r}); expected one as Stillroom writes it; dump them again"
        ) from error
    if not is_same:
        raise StaleStoreError(
            f"views: rows were made by {dict(spec)}; this release makes {spec_of(made)}; dump them again"
        )
    return made


def _made(spec: Mapping[str, Any]) -> Any:
    kind = spec["transform"]
    options = {key: value for key, value in spec.items() if key not in ("transform", "version")}
    if kind == "torchvisionpipeline":
        name, own = options["name"], dict(options["options"])
        make = TorchvisionPipeline.described if ":" in name else TorchvisionPipeline.from_options
        return make(name, **own)
    if kind == "mix":
        return parse_mix(options, options["views"], "views")
    if kind not in TRANSFORMS or "kind" in options:
        raise unknown_name("views", "transform", str(kind), TRANSFORMS)
    return _parse_one({"kind": kind, **options}, "views")


def imported_code(transforms: Sequence[Any]) -> list[str]:
    """Return the import paths that transforms are code of: only who wrote the recipe may have them imported."""
    return [each.name for each in transforms if isinstance(each, TorchvisionPipeline) and each.is_imported]


def parse_transforms(entries: Sequence[Mapping[str, Any]], where: str = "views.transforms") -> tuple[Transform, ...]:
    """Return the transforms that tables such as `{kind = "shift", pixels = 2}` name.

    Raises: StillroomError for an unknown kind or option (with near names) or an option out of range.
    """
    return tuple(_parse_one(dict(entry), f"{where}[{number}]") for number, entry in enumerate(entries))


def _parse_one(entry: dict[str, Any], where: str) -> Transform:
    kinds = {**TRANSFORMS, "torchvision": TorchvisionPipeline.from_options}
    kind = entry.pop("kind", None)
    if not isinstance(kind, str) or kind not in kinds:
        raise unknown_name(where, "transform", str(kind), kinds)
    if kind != "torchvision":
        _check_options(kind, entry, TRANSFORMS[kind], where)
    try:
        transform = kinds[kind](**entry)
        transform.parameters(np.zeros((1, transform.num_words), np.uint32))
    except (TypeError, ValueError, ArithmeticError) as error:
        raise StillroomError(f"{where}: {kind} found {entry}; expected options it accepts; {error}") from error
    return transform


def _check_options(kind: str, options: Mapping[str, Any], build: Callable[..., Any], where: str) -> None:
    known = inspect.signature(build).parameters
    for key, value in options.items():
        if key not in known:
            raise StillroomError(
                f"{where}: {kind} found option {key!r}; expected only its own; {near_names(key, known)}"
            )
        if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value < math.inf:
            raise StillroomError(f"{where}.{key}: found {value!r}; expected a number of 0 or more; correct the recipe")
        if key.startswith(("probability", "max_share", "min_scale", "amount")) and value > 1:
            raise StillroomError(f"{where}.{key}: found {value!r}; expected at most 1; correct the recipe")
        if known[key].annotation is int and not isinstance(value, int):
            raise StillroomError(f"{where}.{key}: found {value!r}; expected a whole number; correct the recipe")


def parse_mix(options: Mapping[str, Any], count: int, where: str = "views.mix") -> Mix:
    """Return the mixing that `{kind = "mixup", views = 4, alpha = 1.0}` names, for a plan of `count` views."""
    known = inspect.signature(Mix).parameters
    for key in options:
        if key not in known:
            raise StillroomError(
                f"{where}: found option {key!r}; expected kind, views, alpha; {near_names(key, known)}"
            )
    mix = Mix(**options)
    if mix.kind not in ("mixup", "cutmix"):
        raise unknown_name(where, "mix", str(mix.kind), ("mixup", "cutmix"))
    if type(mix.views) is not int or not 0 < mix.views <= count:
        raise StillroomError(
            f"{where}.views: found {mix.views!r}; expected 1 to {count}, the views of the plan; lower it"
        )
    if type(mix.alpha) not in (int, float) or not 0 < mix.alpha <= sys.float_info.max:
        raise StillroomError(f"{where}.alpha: found {mix.alpha!r}; expected a number above 0; correct it")
    return mix
