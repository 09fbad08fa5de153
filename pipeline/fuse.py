"""Fusing stores: several teacher stores become one target store, block by block, without a teacher.

The mixture is taken at each temperature a loss will use: softening it afterwards would be another distribution. Each
teacher's logits are first divided by the temperature fitted on its calibration rows. Memory does not grow with N.
"""

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pipeline.encoding import AUTO, asked_codec, cheapest, measure_codecs
from pipeline.errors import StaleStoreError, StillroomError
from pipeline.fusion import Fusion
from pipeline.metrics import agreement, classification_metrics
from pipeline.store import (
    ArraySpec,
    Block,
    Computed,
    Filled,
    Layout,
    StoreWriter,
    TeacherStore,
    fill,
    temperature_array,
)
from pipeline.store.codecs import Codec, codec_json, measure_error, parse_codec
from pipeline.store.codecs.base import RowKeys
from pipeline.store.fields import encode_field, field_specs, held_out_codec
from pipeline.store.fill import Run
from pipeline.store.layout import ROW_ARRAYS
from pipeline.store.records import RECORDS
from pipeline.store.writer import ROOT

MEASURED_ROWS = 256  # of each block: enough for the codec's error
VERSION = 2  # of what fusing writes for the same stores and strategy


def target_store_config(
    parents: Mapping[str, str],
    plan: str,
    *,
    strategy: str,
    options: Mapping[str, Any],
    temperatures: Sequence[float],
    calibrate: bool,
    codec: Any,
    max_kl: float = 1e-4,
) -> dict[str, Any]:
    """Return what a target store is made from: `parents` maps each teacher to its store's fingerprint."""
    asked = asked_codec(codec, "fusion codec")
    return {
        "stage": "fuse",
        "version": VERSION,
        "teachers": [{"name": name, "store": store} for name, store in parents.items()],
        "plan": plan,
        "strategy": strategy,
        "options": dict(options),
        "temperatures": [float(t) for t in temperatures],
        "calibrate": calibrate,
        "codec": asked,
        "max_kl": max_kl if asked == AUTO else None,
    }


def choose_codec(
    teachers: Sequence[TeacherStore], fusion: Fusion, config: Mapping[str, Any], labels: Tensor, where: str
) -> Codec:
    """Return the codec a target store is made with: `auto` is measured on the fused calibration rows."""
    if config["codec"] != AUTO:
        return parse_codec(config["codec"], where)
    logits = calibration_outputs(teachers, "calibration", config["calibrate"])
    fused = fusion.fit(logits, labels).fuse(logits, temperature=1.0).log_probs
    keys = RowKeys(0, 0, teachers[0].read("calibration", "sample_ids"))
    return cheapest(measure_codecs(fused, keys), config["max_kl"], where).codec


def open_writer(
    folder: Path, name: str, config: Mapping[str, Any], teachers: Sequence[TeacherStore], codec: Codec | None = None
) -> StoreWriter:
    """Return the writer of a target store; `codec` is the one chosen where the config says auto.

    Raises: StillroomError when the teacher stores don't go together.
    """
    check_together(teachers)
    first = teachers[0]
    codec = codec or parse_codec(config["codec"], name)
    splits = tuple(first.layout.splits)
    arrays: dict[str, ArraySpec] = {}
    for temperature in config["temperatures"]:
        arrays |= field_specs(temperature_array(temperature), codec, (first.num_classes,), splits)
    arrays |= {"weights": ArraySpec((len(teachers),), "float16"), "disagreement": ArraySpec((), "float32")}
    attributes = {
        "plan": first.attributes["plan"],
        "classes": list(first.classes),
        "codec": codec_json(codec),
        "fields": {"log_probs": "categorical"},
        "temperatures": config["temperatures"],
        "teachers": [teacher["name"] for teacher in config["teachers"]],
        "parents": parents_of(teachers),
    }
    layout = Layout(first.layout.splits, {**arrays, **ROW_ARRAYS})
    return StoreWriter(folder, layout, kind="target store", name=name, config=config, attributes=attributes)


def parents_of(teachers: Sequence[TeacherStore]) -> dict[str, dict[str, str]]:
    """Return what a target store says of the stores it came from: their fingerprints, and digests of every byte."""
    return {
        store.name: {"fingerprint": store.fingerprint, "records": store.manifest.digests[RECORDS]} for store in teachers
    }


def check_together(teachers: Sequence[TeacherStore]) -> None:
    """Raise StillroomError unless all stores answer the same question on the same rows."""
    first = teachers[0]
    for other in teachers[1:]:
        if other.classes != first.classes:
            raise StillroomError(
                f"{other.folder}: {len(other.classes)} classes {list(other.classes)[:4]}...; expected the "
                f"{len(first.classes)} of {first.name!r} in the same order; dump the teachers on one data set"
            )
        if other.attributes["plan"] != first.attributes["plan"]:
            raise StaleStoreError(
                f"{other.folder}: made from another view plan than {first.folder}; expected one plan for all; "
                f"run 'stillroom logits' again"
            )


def calibrated(store: TeacherStore, logits: Tensor, calibrate: bool) -> Tensor:
    """Return logits divided by the teacher's fitted temperature."""
    return logits / store.manifest.details["temperature"] if calibrate else logits


def calibration_outputs(teachers: Sequence[TeacherStore], split: str, calibrate: bool) -> Tensor:
    """Return all teachers' logits on a held-out split: float32 [T, N, ..., C]."""
    return torch.stack([calibrated(store, store.logits(split), calibrate) for store in teachers])


def fuse_stores(
    teachers: Sequence[TeacherStore],
    fusion: Fusion,
    writer: StoreWriter,
    *,
    run: Run = map,
    on_block: Callable[[Block], None] = lambda block: None,
) -> Filled:
    """Fit the fusion on calibration rows, fill a target store with it, and score it as a classifier.

    Raises: StillroomError when the stores don't go together.
    """
    config = writer.config
    calibrate, temperatures = config["calibrate"], config["temperatures"]
    codec = writer_codec(writer)
    plan = teachers[0].plan()
    labels = {name: torch.from_numpy(split.labels) for name, split in plan.splits.items()}
    fitted = fusion.fit(calibration_outputs(teachers, "calibration", calibrate), labels["calibration"])

    def compute(block: Block) -> Computed:
        keys = RowKeys(plan.seed, block.view, plan.splits[block.split].ids[block.start : block.stop])
        used = codec if block.split == "train" else held_out_codec(codec)
        logits = torch.stack([calibrated(store, _logits_at(store, block), calibrate) for store in teachers])
        fused = [fitted.fuse(logits, temperature=temperature) for temperature in temperatures]
        tensors: dict[str, Tensor] = {}
        for temperature, each in zip(temperatures, fused, strict=True):
            tensors |= encode_field(temperature_array(temperature), used, each.log_probs, keys)
        arrays = {name: values.numpy() for name, values in tensors.items()}
        arrays["weights"] = fused[0].weights.half().numpy()
        arrays["disagreement"] = fused[0].disagreement.float().numpy()
        arrays |= {name: _same_rows(teachers, block, writer.layout, name) for name in ROW_ARRAYS}
        some = fused[0].log_probs[:MEASURED_ROWS]
        return Computed(arrays, measure_error(used, some, RowKeys(keys.seed, keys.view, keys.ids[:MEASURED_ROWS])))

    def details() -> dict[str, Any]:
        scored = {name: _scores(teachers, fitted, name, labels[name], calibrate) for name in ("calibration", "test")}
        return {"fitted": fitted.fitted(), "scores": scored}

    return fill(writer, compute, run=run, on_block=on_block, details=details)


def writer_codec(writer: StoreWriter) -> Codec:
    """Return the codec that a target store is being written with."""
    attributes = json.loads(writer.metadata[ROOT])["attributes"]["stillroom"]
    return parse_codec(attributes["codec"], writer.name)


def _logits_at(store: TeacherStore, block: Block) -> Tensor:
    """Return a store's logits on the rows of another store's block: blocks of two stores need not coincide."""
    return _at(store, block, store.logits_block, torch.cat)


def _rows(store: TeacherStore, block: Block, name: str) -> np.ndarray:
    return _at(store, block, lambda own: store.read_block(own, name), np.concatenate)


def _at[A: (Tensor, np.ndarray)](
    store: TeacherStore, block: Block, read: Callable[[Block], A], join: Callable[[list[A]], A]
) -> A:
    size = store.layout.block_rows
    indices = range(block.start // size, -(-block.stop // size))
    parts = [read(store.block(block.split, block.view, index)) for index in indices]
    start = block.start - indices[0] * size
    return join(parts)[start : start + len(block)]


def _same_rows(teachers: Sequence[TeacherStore], block: Block, layout: Layout, name: str) -> np.ndarray:
    """Return what all teacher stores say of a block's rows. Raises StaleStoreError when they differ."""
    first, *others = (_rows(store, block, name) for store in teachers)
    for store, values in zip(teachers[1:], others, strict=True):
        if not np.array_equal(first, values):
            raise StaleStoreError(
                f"{store.folder}: {name} of {block.split} view {block.view} rows {block.start}-{block.stop} differ "
                f"from those of {teachers[0].name!r}; expected the same rows; run 'stillroom logits' again"
            )
    return first


def _scores(
    teachers: Sequence[TeacherStore], fitted: Fusion, split: str, labels: Tensor, calibrate: bool
) -> dict[str, Any]:
    """Return the fused target's figures as a classifier at T = 1, and each teacher's agreement with it."""
    logits = calibration_outputs(teachers, split, calibrate)
    fused = fitted.fuse(logits, temperature=1.0)
    agreements = {store.name: agreement(fused.log_probs, own) for store, own in zip(teachers, logits, strict=True)}
    return {
        **classification_metrics(fused.log_probs, labels),
        "agreement": agreements,
        "disagreement": fused.disagreement.mean().item(),
        "mean_weights": dict(zip(agreements, fused.weights.flatten(0, -2).mean(0).tolist(), strict=True)),
    }
