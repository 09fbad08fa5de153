"""Fitting teacher stores into so many bytes: what to give up, in the order of how little it costs a student.

Chunks are counted whole and before compression, so what is promised is an upper bound. First logits take fewer bits
(the KL stays under the limit that was set), then features do, then they are projected, then dropped; views go last,
halved: each view is another epoch's worth of fresh inputs.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from pipeline.errors import StillroomError
from pipeline.store.codecs import parse_codec
from pipeline.store.codecs.features import parse_feature_codec
from pipeline.store.fields import field_specs, fold_specs, splits_with_features
from pipeline.store.layout import ROW_ARRAYS, ArraySpec, Layout

GIGABYTE = 10**9
SMALL_LOGITS = {"kind": "companded8"}  # a byte a class, mean KL under 1e-4 on every network's logits tried
FEWEST_CLASSES = {"kind": "topk", "k": 16}
SMALL_FEATURES: tuple[Any, ...] = ("uint8", {"kind": "pca", "dims": 64})


@dataclass(frozen=True)
class Kept:
    """What is kept of every teacher: codecs as a recipe writes them, layers, and views of a train sample."""

    codec: Any
    feature_codec: Any
    features: tuple[str, ...]
    views: int


@dataclass(frozen=True)
class Size:
    """What the stores' size follows from: rows by split with one view, classes, and D of each teacher's layers."""

    samples: Mapping[str, int]
    num_classes: int
    widths: Sequence[Mapping[str, int]]

    def num_bytes(self, kept: Kept) -> int:
        """Return the most bytes that the chunks of all teacher stores take together."""
        return sum(self.layout(kept, widths).num_bytes for widths in self.widths)

    def layout(self, kept: Kept, widths: Mapping[str, int]) -> Layout:
        """Return the layout of a teacher's store with layers of these widths."""
        codec = parse_codec("fp16" if kept.codec == "auto" else kept.codec, "logits.codec")
        names = tuple(self.samples)
        parts = {n: parse_feature_codec(kept.feature_codec, "").part(widths[n]) for n in kept.features if n in widths}
        splits = splits_with_features(names)
        features = {f"features/{n}": ArraySpec(part.tail, part.dtype, splits=splits) for n, part in parts.items()}
        specs = field_specs("logits", codec, (self.num_classes,), names)
        rows = {split: (kept.views if split == "train" else 1, count) for split, count in self.samples.items()}
        return Layout(rows, {**specs, **features, **ROW_ARRAYS, **fold_specs(names)})


def fit_budget(size: Size, asked: Kept, max_gb: float) -> Kept:
    """Return the most that fits. Raises StillroomError, naming the least there can be, when nothing does."""
    least = size.num_bytes(asked)
    for kept in rungs(asked):
        num_bytes = size.num_bytes(kept)
        if num_bytes <= max_gb * GIGABYTE:
            return kept
        least = min(least, num_bytes)
    raise StillroomError(
        f"logits.max_gb: {max_gb:g}; expected at least {least / GIGABYTE:.3g}, which one view without features in the "
        f"smallest codec takes; raise it, or use fewer samples (data.max_train)"
    )


def rungs(asked: Kept) -> Iterator[Kept]:
    """Yield what could be kept, from all that was asked for down to one view in the smallest codec."""
    kept = asked
    yield kept
    if kept.codec in ("fp16", "fp32", "auto"):
        kept = replace(kept, codec=SMALL_LOGITS)
        yield kept
    if kept.features:
        for codec in SMALL_FEATURES:
            kept = replace(kept, feature_codec=codec)
            yield kept
        kept = replace(kept, features=(), feature_codec="fp16")
        yield kept
    while kept.views > 1:
        kept = replace(kept, views=-(-kept.views // 2))
        yield kept
    yield replace(kept, codec=FEWEST_CLASSES)  # last: at temperatures above 1 the tail it lumps together counts


def given_up(asked: Kept, kept: Kept) -> list[str]:
    """Return what was given up, one line each, as `asked -> kept`."""
    lines = {
        "logits.codec": (asked.codec, kept.codec),
        "logits.features": (list(asked.features), list(kept.features)),
        "views.count": (asked.views, kept.views),
    }
    if kept.features:
        lines["logits.feature_codec"] = (asked.feature_codec, kept.feature_codec)
    return [f"{key}: {_words(before)} -> {_words(after)}" for key, (before, after) in lines.items() if before != after]


def _words(value: Any) -> str:
    """Return a recipe's value as people read it: companded8, pca dims=64, penultimate, none, 8."""
    if isinstance(value, Mapping):
        return " ".join([str(value["kind"]), *(f"{key}={v}" for key, v in value.items() if key != "kind")])
    return (", ".join(map(str, value)) or "none") if isinstance(value, list) else str(value)
