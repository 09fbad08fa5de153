"""What a store says of itself, held against what lies in it before anybody computes with it: it may be a stranger's."""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from pipeline.errors import CorruptBlockError, StillroomError
from pipeline.lineage import read_file
from pipeline.store.codecs.features import parse_feature_codec
from pipeline.store.describe import MAX_METADATA_BYTES
from pipeline.store.fields import (
    MEAN,
    VARIANCE,
    Output,
    fold_specs,
    prefix_of,
    read_outputs,
    read_sentences,
    read_truth,
    splits_with_features,
)
from pipeline.store.layout import ROW_ARRAYS, ArraySpec, Layout
from pipeline.store.told import FORMAT, ROOT, attributes_seal
from pipeline.views import OUT_OF_FOLD, UNLABELLED, ViewPlan, out_of_fold


def read_attributes(folder: Path) -> Mapping[str, Any]:
    """Return what the store's root `zarr.json` says of it. Raises StillroomError when it says nothing."""
    path = folder / ROOT
    try:
        document = json.loads(read_file(path, MAX_METADATA_BYTES), parse_constant=_refuse)
        attributes = document["attributes"]["stillroom"]
        if not isinstance(attributes, dict):
            raise ValueError("they are no table")
        if attributes.get("format") == FORMAT and attributes.get("seal") != attributes_seal(attributes):
            raise ValueError("their seal does not fit them")
        return attributes
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise CorruptBlockError(
            f"{path}: found no attributes of a store ({error}); expected those that were sealed; rebuild the store"
        ) from error


def _refuse(constant: str) -> None:
    raise ValueError(f"{constant} is no number that a store has")


def check_attributes(folder: Path, kind: str, attributes: Mapping[str, Any], layout: Layout) -> None:
    """Raise StillroomError unless the attributes describe a store of this kind whose arrays are those of the layout."""
    try:
        wanted = _row_specs(layout) | _kind_specs(kind, attributes, layout)
        differing = sorted(name for name, spec in wanted.items() if not _fits(layout.arrays.get(name), spec))
        if differing:
            raise ValueError(f"they speak of another {', '.join(differing)}")
    except (KeyError, TypeError, ValueError, AttributeError, OverflowError) as error:
        raise StillroomError(
            f"{folder}: found attributes that describe no {kind} ({error!r}); expected those that Stillroom writes; "
            f"don't use it, or run the stage that made it to rebuild it"
        ) from error


def _row_specs(layout: Layout) -> dict[str, ArraySpec]:
    if not {"train", "calibration", "test"} <= layout.splits.keys():
        raise ValueError(f"splits {sorted(layout.splits)}")
    return dict(ROW_ARRAYS)


def _kind_specs(kind: str, attributes: Mapping[str, Any], layout: Layout) -> dict[str, ArraySpec]:
    classes, splits = _texts(attributes["classes"]), tuple(layout.splits)
    outputs = read_outputs(attributes, "attributes")
    truth = read_truth(attributes, outputs)
    truths, sentences = {} if truth is None else truth.specs, read_sentences(attributes)
    truths |= {} if sentences is None else sentences.specs(kind)
    if "outputs" not in attributes and any(each.codec.is_real for each in outputs.values()):
        _check_scale(attributes["scale"], len(classes))
    specs: dict[str, ArraySpec] = {}
    if kind == "teacher store":
        for name, each in outputs.items():
            specs |= each.specs(name, splits)
        return specs | truths | _feature_specs(attributes.get("features", {}), layout) | fold_specs(splits)
    for name, each in outputs.items():
        specs |= _fused_specs(prefix_of(outputs, name), each, attributes, splits)
    if not outputs:
        if sentences is None:
            raise ValueError("it keeps nothing")
        specs = {"weights": ArraySpec((len(_texts(attributes["teachers"])),), "float16")}
        specs["disagreement"] = ArraySpec((), "float32")
    return specs | truths


def _fused_specs(
    prefix: str, output: Output, attributes: Mapping[str, Any], splits: tuple[str, ...]
) -> dict[str, ArraySpec]:
    """Return the arrays of one output in a target store."""
    weights = (*output.leading, len(_texts(attributes["teachers"])))
    specs = {f"{prefix}weights": ArraySpec(weights, "float16")}
    is_real = output.codec.is_real
    for field in (MEAN, VARIANCE) if is_real else _log_probs(attributes["temperatures"]):
        specs |= output.specs(prefix + field, splits)
    specs[f"{prefix}disagreement"] = ArraySpec(output.leading, "float32")
    has_corrected = "fitted" in attributes and not is_real  # older ones have none
    return specs | ({f"{prefix}corrected": ArraySpec(output.leading, "float16")} if has_corrected else {})


def _feature_specs(features: Mapping[str, Any], layout: Layout) -> dict[str, ArraySpec]:
    specs, kept = {}, splits_with_features(tuple(layout.splits))
    for layer, said in features.items():
        codec, width = parse_feature_codec(said["codec"], layer), said["width"]
        if type(width) is not int or not 0 < width < 2**31 or said["arrays"] != sorted(codec.shapes(width)):
            raise ValueError(f"features of {layer!r}")
        part = codec.part(width)
        specs[f"features/{layer}"] = ArraySpec(part.tail, part.dtype, shuffle=part.shuffle, splits=kept)
    return specs


def _check_scale(scale: Any, num_outputs: int) -> None:
    for name, least in (("mean", -math.inf), ("std", 0.0)):
        numbers = scale[name]
        if not isinstance(numbers, list) or len(numbers) != num_outputs:
            raise ValueError(f"a scale without {num_outputs} numbers of {name!r}")
        if not all(type(each) in (int, float) and least < each < math.inf for each in numbers):
            raise ValueError(f"a scale whose {name!r} are no numbers that can be")
    if not isinstance(scale["unit"], str):
        raise ValueError("a scale without a unit")


def _texts(values: Any) -> Sequence[str]:
    if not isinstance(values, list) or not values or not all(isinstance(value, str) for value in values):
        raise ValueError(f"found {str(values)[:40]!r} where names are expected")
    if len(set(values)) < len(values):
        raise ValueError("a name is there twice")
    return values


def _log_probs(temperatures: Any) -> list[str]:
    return [f"log_probs/t{temperature:.12g}" for temperature in _temperatures(temperatures)]


def _temperatures(values: Any) -> list[float]:
    numbers = values if isinstance(values, list) else []
    if not numbers or not all(type(t) in (int, float) and 0 < t < math.inf for t in numbers):
        raise ValueError(f"found {str(values)[:40]!r} where temperatures are expected")
    return numbers


def _fits(found: ArraySpec | None, wanted: ArraySpec) -> bool:
    if found is None or set(found.splits or ()) != set(wanted.splits or ()):
        return False
    return replace(found, splits=wanted.splits) == wanted


def check_plan(plan: ViewPlan, layout: Layout, num_classes: int) -> None:
    """Raise ValueError unless a view plan is one, and of a store with this layout and so many classes."""
    numbers = (*plan.mean, *plan.std)
    if not isinstance(plan.dataset, str) or type(plan.seed) is not int or type(plan.count) is not int:
        raise ValueError("a value of another type")
    if len(plan.mean) != len(plan.std) or not all(type(n) in (int, float) and abs(n) < math.inf for n in numbers):
        raise ValueError("its mean or std are no numbers")
    if plan.mix is not None and plan.mix.views > plan.count:
        raise ValueError(f"{plan.mix.views} mixed views of {plan.count}")
    for name, split in plan.splits.items():
        if layout.splits[name][0] != plan.views(name):
            raise ValueError(f"{plan.views(name)} views of {name} where the store has {layout.splits[name][0]}")
        if split.ids.min() < 0 or split.labels.min() < UNLABELLED or split.labels.max() >= num_classes:
            raise ValueError(f"ids or labels of {name} that cannot be")
    if OUT_OF_FOLD in plan.splits:
        found, wanted = plan.splits[OUT_OF_FOLD], out_of_fold(plan.splits["train"])
        if not np.array_equal(found.ids, wanted.ids) or not np.array_equal(found.labels, wanted.labels):
            raise ValueError("rows out of fold that are not its labelled train rows")
