"""Fusing stores: several teacher stores become one target store, block by block, without a teacher.

The mixture is taken at each temperature a loss will use: softening it afterwards would be another distribution. Each
teacher's logits are first divided by the temperature fitted on its calibration rows. Memory does not grow with N. What
is kept of classes and of real numbers lies beside this.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pipeline.encoding import AUTO, asked_codec, cheapest, measure_codecs, own_attributes
from pipeline.errors import StillroomError, unknown_name
from pipeline.fuse import classes, reals
from pipeline.fuse.classes import score as score_targets
from pipeline.fusion import Target
from pipeline.fusion.real import RealTarget
from pipeline.fusion.target import fuse_rows, hidden, in_slices
from pipeline.joined import (
    CALIBRATION,
    FIT_ON,
    TRAIN,
    check_together,
    fitting_rows,
    held_out_rows,
    same_rows,
    stored_rows,
)
from pipeline.store import (
    ArraySpec,
    Block,
    Computed,
    Filled,
    Layout,
    StoreWriter,
    TeacherStore,
    fill,
)
from pipeline.store.codecs import ALL_CODECS, Codec, codec_json, measure_error, parse_codec
from pipeline.store.describe import read_constant
from pipeline.store.fields import TARGETS, held_out_codec
from pipeline.store.fill import Run
from pipeline.store.layout import ROW_ARRAYS
from pipeline.store.records import RECORDS
from pipeline.tasks import task_of
from pipeline.views import OUT_OF_FOLD

MEASURED_ROWS = 256  # of each block: enough for the codec's error
CODEC_ROWS = 4096  # that a codec is chosen on
FITTED = "fitted/fusion"  # where a store keeps what was fitted
VERSION = 3  # of what fusing writes for the same stores and strategy


def target_store_config(
    parents: Mapping[str, str],
    plan: str,
    *,
    strategy: str,
    options: Mapping[str, Any],
    temperatures: Sequence[float],
    calibrate: bool,
    calibrate_pool: bool,
    correction: str,
    codec: Any,
    max_kl: float = 1e-4,
    fit_on: str = CALIBRATION,
    honest: bool = True,
) -> dict[str, Any]:
    """Return what a target store is made from: `parents` maps each teacher to its store's fingerprint.

    What it is fitted on is in there where it is not calibration rows; `honest` counts for train rows alone.
    """
    asked = asked_codec(codec, "fusion codec")
    config = {
        "stage": "fuse",
        "version": VERSION,
        "teachers": [{"name": name, "store": store} for name, store in parents.items()],
        "plan": plan,
        "strategy": strategy,
        "options": dict(options),
        "temperatures": [float(t) for t in temperatures],
        "calibrate": calibrate,
        "calibrate_pool": calibrate_pool,
        "correction": correction,
        "codec": asked,
        "max_kl": max_kl if asked == AUTO else None,
    }
    if fit_on != CALIBRATION:
        config["fit_on"] = fit_on
    if fit_on == TRAIN and not honest:
        config["honest"] = False
    return config


def real_store_config(
    parents: Mapping[str, str],
    plan: str,
    *,
    strategy: str,
    options: Mapping[str, Any],
    codec: Any,
    fit_on: str = CALIBRATION,
    honest: bool = True,
) -> dict[str, Any]:
    """Return what a target store of real numbers is made from: no temperature, nothing that labels correct."""
    config = {
        "stage": "fuse",
        "version": VERSION,
        "teachers": [{"name": name, "store": store} for name, store in parents.items()],
        "plan": plan,
        "strategy": strategy,
        "options": dict(options),
        "temperatures": [],
        "calibrate": False,
        "codec": asked_codec(codec, "fusion codec", is_real=True),
    }
    if fit_on != CALIBRATION:
        config["fit_on"] = fit_on
    if fit_on == TRAIN and not honest:
        config["honest"] = False
    return config


def check_fit_on(fit_on: str, honest: bool, layers: Sequence[str], where: str) -> None:
    """Raise StillroomError unless a strategy that reads these layers may be fitted on these rows."""
    if fit_on not in FIT_ON:
        raise unknown_name(f"{where}.fit_on", "rows", fit_on, FIT_ON)
    if fit_on == TRAIN and honest:
        raise StillroomError(
            f"{where}.fit_on: found {TRAIN!r}, the rows that the teachers were trained on; expected {CALIBRATION!r} or "
            f"{OUT_OF_FOLD!r}, for their confidence on train rows is memory and the weight goes to the teacher that "
            f"over-fitted most; fit on others, or set honest = false to study just that"
        )
    if fit_on == OUT_OF_FOLD and layers:
        raise StillroomError(
            f"{where}.fit_on: found {OUT_OF_FOLD!r} with a strategy that reads features {list(layers)}; expected "
            f"{CALIBRATION!r}, for rows out of fold have none: each fold model has features of its own; change it"
        )


AnyTarget = Target | RealTarget


def layers_of(target: AnyTarget) -> tuple[str, ...]:
    """Return the layers whose features a target's strategy reads; strategies of real numbers read none."""
    return target.fusion.layers if isinstance(target, Target) else ()


@dataclass(frozen=True)
class Begun:
    """How a target store is made: a fitted target, and the codec its rows lie in."""

    target: AnyTarget
    codec: Codec


def begin(teachers: Sequence[TeacherStore], target: AnyTarget, config: Mapping[str, Any], where: str) -> Begun:
    """Fit a target on the rows that the config says; choose its codec there too where it says auto.

    Raises: StillroomError when the stores don't go together, or what is fitted cannot be.
    """
    fit_on, layers = config.get("fit_on", CALIBRATION), layers_of(target)
    check_fit_on(fit_on, is_honest(config), layers, where)
    check_together(teachers)
    rows = fitting_rows(teachers, config["calibrate"], layers, fit_on)
    fitted = target.fit(rows)
    if config["codec"] != AUTO:
        return Begun(fitted, parse_codec(config["codec"], where, ALL_CODECS))
    some = hidden(rows[:: -(-len(rows) // CODEC_ROWS)])
    assert some.keys is not None
    assert isinstance(fitted, Target)  # nothing chooses among the codecs of real numbers
    fused = fuse_rows(fitted, some, 1.0).log_probs
    return Begun(fitted, cheapest(measure_codecs(fused, some.keys), config["max_kl"], where).codec)


def begun(folder: Path, target: AnyTarget, config: Mapping[str, Any]) -> Begun | None:
    """Return what an unfinished or damaged store of this config was begun with, None when it can't be told."""
    attributes = own_attributes(folder, config)
    if attributes is None:
        return None
    try:
        state = {name: read_constant(folder, f"{FITTED}/{name}") for name in attributes["fitted"]}
        return Begun(target.restored(state), parse_codec(attributes["codec"], str(folder), ALL_CODECS))
    except (KeyError, IndexError, TypeError, ValueError, StillroomError):
        return None  # killed before it was whole: it is fitted again


def open_writer(
    folder: Path, name: str, config: Mapping[str, Any], teachers: Sequence[TeacherStore], begun: Begun
) -> StoreWriter:
    """Return the writer of a target store. Raises: StillroomError when the teacher stores don't go together."""
    check_together(teachers)
    first, state = teachers[0], begun.target.state
    splits = {name: shape for name, shape in first.layout.splits.items() if name != OUT_OF_FOLD}
    if begun.codec.is_real:
        arrays, fields = reals.specs(begun.codec, first.num_classes, tuple(splits)), reals.FIELDS
    else:
        arrays = classes.specs(begun.codec, first.num_classes, tuple(splits), config["temperatures"])
        fields = classes.FIELDS
    arrays |= {"weights": ArraySpec((len(teachers),), "float16"), "disagreement": ArraySpec((), "float32")}
    attributes = {
        "plan": first.attributes["plan"],
        "classes": list(first.classes),
        "codec": codec_json(begun.codec),
        "fields": fields,
        "temperatures": config["temperatures"],
        "teachers": [teacher["name"] for teacher in config["teachers"]],
        "parents": parents_of(teachers),
        "fitted": sorted(state),
        **task_of(first.attributes).attributes,
        **_honesty(config),
    }
    return StoreWriter(
        folder,
        Layout(splits, {**arrays, **ROW_ARRAYS}),
        kind="target store",
        name=name,
        config=config,
        attributes=attributes,
        constants={f"{FITTED}/{key}": values for key, values in state.items()},
    )


def is_honest(config: Mapping[str, Any]) -> bool:
    """Whether a target store of this config was fitted on rows that no teacher's answers are memory of."""
    return bool(config.get("honest", True))


def _honesty(config: Mapping[str, Any]) -> dict[str, bool]:
    """Return what a store says of itself when it is not honest."""
    return {} if is_honest(config) else {"honest": False}


def parents_of(teachers: Sequence[TeacherStore]) -> dict[str, dict[str, str]]:
    """Return what a target store says of the stores it came from: their fingerprints, and digests of every byte."""
    return {
        store.name: {"fingerprint": store.fingerprint, "records": store.manifest.digests[RECORDS]} for store in teachers
    }


def fuse_stores(
    teachers: Sequence[TeacherStore],
    begun: Begun,
    writer: StoreWriter,
    *,
    run: Run = map,
    on_block: Callable[[Block], None] = lambda block: None,
) -> Filled:
    """Fill a target store and score it as a classifier.

    Train rows show their labels to strategies and corrections that ask for them; held-out rows never do, since what
    is judged there must not have seen them. Raises: StillroomError when the stores don't go together.
    """
    config, target = writer.config, begun.target
    calibrate, temperatures = config["calibrate"], config["temperatures"]
    plan, layers = teachers[0].plan(), layers_of(target)
    row_arrays = (*ROW_ARRAYS, TARGETS) if teachers[0].is_real else tuple(ROW_ARRAYS)

    def compute(block: Block) -> Computed:
        rows = stored_rows(teachers, plan, block, calibrate, layers)
        is_train = block.split == "train"
        codec = begun.codec if is_train else held_out_codec(begun.codec)
        encoded, measured, done = list[dict[str, Tensor]](), list[Tensor](), 0
        for outputs in in_slices(rows):
            outputs = outputs if is_train else hidden(outputs)
            if isinstance(target, RealTarget):
                tensors, shown = reals.encoded(target, outputs, codec)
            else:
                tensors, shown = classes.encoded(target, outputs, codec, temperatures)
            encoded.append(tensors)
            if done < MEASURED_ROWS:
                measured.append(shown)
            done += len(outputs)
        arrays = {name: np.concatenate([part[name].numpy() for part in encoded]) for name in encoded[0]}
        arrays |= {name: same_rows(teachers, block, name) for name in row_arrays}
        keys = replace(rows.keys, ids=rows.keys.ids[:MEASURED_ROWS])
        return Computed(arrays, measure_error(codec, torch.cat(measured)[:MEASURED_ROWS], keys))

    def details() -> dict[str, Any]:
        names = [store.name for store in teachers]
        scored = {}
        for split in ("calibration", "test"):
            rows = held_out_rows(teachers, split, calibrate, layers)
            if isinstance(target, RealTarget):
                scored[split] = reals.score(target, task_of(teachers[0].attributes), rows, names)
            else:
                scored[split] = score_targets(target, rows, names)
        scored["calibration"] |= target.judged
        return {"fitted": target.fitted(), "scores": scored, **_honesty(config)}

    return fill(writer, compute, run=run, on_block=on_block, details=details)
