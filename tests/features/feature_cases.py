"""Starts and batches of features that the tests of feature losses share."""

from typing import Any

import torch
from torch import Tensor

from pipeline.features import FEATURE_LOSSES, FeatureRows, FeatureStart, FeatureTerm

CLASSES = 3
OPTIONS: dict[str, list[dict[str, Any]]] = {
    "rkd": [{}, {"angle_rows": 4}, {"angle": 0.0}],
    "crd": [{"negatives": 6, "width": 5}],
    "simkd": [{}, {"hidden": 4}],
}
VARIANTS = [(kind, options) for kind in FEATURE_LOSSES for options in OPTIONS.get(kind, [{}])]


def draws(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float32) -> Tensor:
    """Normal numbers."""
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def start_of(kind: str, widths: tuple[int, ...] = (9, 0, 16), **changes: Any) -> FeatureStart:
    """A start that suits a kind: simkd follows the last teacher alone, and its projector has that one's width."""
    widths = (*[0] * (len(widths) - 1), widths[-1]) if kind == "simkd" else widths
    heads = tuple((draws(CLASSES, width), draws(CLASSES)) if width else None for width in widths)
    statistics = tuple((draws(width, seed=3), draws(width, seed=4).abs()) if width else None for width in widths)
    student_width = widths[-1] if kind == "simkd" else 4
    layer = "attention:stage1" if kind == "attention" else "penultimate"
    given = {"layer": layer, "student_width": student_width, "widths": widths, "statistics": statistics}
    return FeatureStart(**{**given, "heads": heads, "num_classes": CLASSES, "seed": 5, **changes})


def features_of(start: FeatureStart, count: int, seed: int = 1) -> tuple[Tensor, tuple[Tensor, ...]]:
    """A student's features, which want a gradient, and each teacher's; attention maps are not negative."""
    student = draws(count, start.student_width, seed=seed)
    teachers = tuple(draws(count, width, seed=seed + 10 + t) for t, width in enumerate(start.widths))
    if start.layer.startswith("attention:"):
        return student.abs().requires_grad_(), tuple(each.abs() for each in teachers)
    return student.requires_grad_(), teachers


def negatives_of(start: FeatureStart, count: int = 6) -> FeatureRows:
    """Features of other rows."""
    return FeatureRows(tuple(draws(count, width, seed=30 + t) for t, width in enumerate(start.widths)))


def begun(kind: str, options: dict[str, Any] | None = None, start: FeatureStart | None = None) -> FeatureTerm:
    """The term of a loss."""
    return FEATURE_LOSSES[kind](**(options or {})).begin(start_of(kind) if start is None else start)
