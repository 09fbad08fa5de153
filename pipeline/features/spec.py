"""From a recipe's words to a feature loss and the layers it is taken between."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any

from pipeline.errors import StillroomError, unknown_name
from pipeline.features.attention import Attention
from pipeline.features.base import FeatureLoss
from pipeline.features.crd import Crd
from pipeline.features.hint import Hint
from pipeline.features.rkd import Rkd
from pipeline.features.simkd import PROJECTED, Simkd
from pipeline.features.srd import Srd
from pipeline.models.taps import PENULTIMATE

FEATURE_LOSSES: dict[str, type[FeatureLoss]] = {
    "srd": Srd,
    "hint": Hint,
    "rkd": Rkd,
    "crd": Crd,
    "attention": Attention,
    "simkd": Simkd,
}

OWN_WORDS = ("kind", "layer", "student_layer", "weight", "teachers")


@dataclass(frozen=True)
class FeatureEntry:
    """A feature loss, the teachers' `layer`, the student's, its `weight` in the student's loss, and whom it follows.

    `teachers` are names; None for all that have the layer.
    """

    loss: FeatureLoss
    layer: str
    student_layer: str
    weight: float
    teachers: tuple[str, ...] | None


def parse_feature_loss(spec: Mapping[str, Any], where: str) -> FeatureEntry:
    """Return what a table such as `{kind = "srd", layer = "penultimate", weight = 2.0}` stands for.

    Without more words: the teachers' penultimate layer, the same one of the student, the source's weight, every
    teacher. Raises: StillroomError for an unknown kind or key (with near names) or a value that is not allowed.
    """
    kind = spec.get("kind")
    if not isinstance(kind, str) or kind not in FEATURE_LOSSES:
        raise unknown_name(where, "feature loss", str(kind), FEATURE_LOSSES)
    options = {key: value for key, value in spec.items() if key not in OWN_WORDS}
    known = [field.name for field in fields(FEATURE_LOSSES[kind])]
    for key in options:
        if key not in known:
            raise unknown_name(where, f"key of feature loss {kind!r}", str(key), [*known, *OWN_WORDS])
    layer = _name(spec, "layer", PENULTIMATE, where)
    student_layer = _name(spec, "student_layer", PROJECTED if kind == "simkd" else layer, where)
    try:
        loss = FEATURE_LOSSES[kind](**options)
        loss.check_layers(layer, student_layer)
    except StillroomError as error:
        raise StillroomError(f"{where}: {error}") from error
    weight = _weight(spec.get("weight", loss.weight), where)
    return FeatureEntry(loss, layer, student_layer, weight, _teachers(spec.get("teachers"), where))


def _name(spec: Mapping[str, Any], key: str, default: str, where: str) -> str:
    found = spec.get(key, default)
    if not isinstance(found, str) or not found:
        raise StillroomError(f"{where}.{key}: found {found!r}; expected a layer's name; correct it, or leave it out")
    return found


def _weight(found: Any, where: str) -> float:
    if isinstance(found, bool) or not isinstance(found, int | float) or not 0 < found < float("inf"):
        raise StillroomError(
            f"{where}.weight: found {found!r}; expected a finite number above 0; correct it, or leave it out"
        )
    return float(found)


def _teachers(found: Any, where: str) -> tuple[str, ...] | None:
    if found is None:
        return None
    is_list = isinstance(found, Sequence) and not isinstance(found, str)
    if not is_list or not found or not all(isinstance(name, str) for name in found) or len(set(found)) < len(found):
        raise StillroomError(
            f"{where}.teachers: found {found!r}; expected a list of teachers' names, each once; correct it, or "
            "leave it out for all that have the layer"
        )
    return tuple(found)
