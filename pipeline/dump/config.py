"""What a teacher store is made from, as it stands in its manifest, and how it is laid out."""

from collections.abc import Sequence
from typing import Any

from pipeline.encoding import Encoding, asked_codec
from pipeline.store import ArraySpec, Layout
from pipeline.store.codecs.features import feature_codec_json, parse_feature_codec
from pipeline.store.fields import (
    fold_specs,
    splits_with_features,
)
from pipeline.store.layout import ROW_ARRAYS
from pipeline.tasks import Task
from pipeline.views import ViewPlan

VERSION = 3  # of what the dump writes for the same teacher and plan
SEARCH_VERSION = 1  # raise it when the same teacher would write other sentences


def split_shapes(plan: ViewPlan) -> dict[str, tuple[int, int]]:
    """Return (V, N) of each split."""
    return {name: (plan.views(name), len(split)) for name, split in plan.splits.items()}


def teacher_layout(plan: ViewPlan, encoding: Encoding, task: Task) -> Layout:
    """Return the layout of a teacher store; rows out of fold are kept where the plan has them."""
    splits = split_shapes(plan)
    names = tuple(splits)
    arrays = encoding.specs(names)
    arrays |= {} if task.truth_kept is None else task.truth_kept.specs
    for layer, fitted in encoding.features.items():
        part, kept = fitted.part(fitted.width), splits_with_features(names)
        arrays[f"features/{layer}"] = ArraySpec(part.tail, part.dtype, shuffle=part.shuffle, splits=kept)
    return Layout(splits, {**arrays, **ROW_ARRAYS, **fold_specs(names)})


def teacher_store_config(
    teacher: str,
    plan: ViewPlan,
    *,
    classes: Sequence[str],
    features: Sequence[str],
    codec: Any,
    precision: str,
    max_kl: float = 1e-4,
    feature_codec: Any = "fp16",
    folds: int | None = None,
    is_real: bool = False,
    task: str | None = None,
    hypotheses: int | None = None,
) -> dict[str, Any]:
    """Return what a teacher store is made from: `teacher` is the teacher's fingerprint.

    `task` stands for the task where its classes don't say it all; `hypotheses` is how many sentences it writes a row.
    """
    asked = asked_codec(codec, "logits.codec", is_real=is_real)
    config = {
        "stage": "logits",
        "version": VERSION,
        "teacher": teacher,
        "plan": plan.fingerprint,
        "classes": list(classes),
        "features": list(features),
        "feature_codec": feature_codec_json(parse_feature_codec(feature_codec, "logits.feature_codec")),
        "codec": asked,
        "max_kl": max_kl if asked == "auto" else None,
        "precision": precision,
    }
    config |= {} if task is None else {"task": task}
    config |= {} if hypotheses is None else {"hypotheses": hypotheses, "search": SEARCH_VERSION}
    return config if folds is None else {**config, "folds": folds}
