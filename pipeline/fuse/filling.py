"""Filling a target store, block by block, from teacher stores and what was fitted on them."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pipeline.fuse import classes, reals, sentences
from pipeline.fuse.beginning import FITTED, Begun, layers_of, prefix_in
from pipeline.fuse.config import honesty
from pipeline.fusion.real import RealTarget
from pipeline.fusion.sentences import SentenceTarget
from pipeline.fusion.sentences.strategies import without_references
from pipeline.fusion.target import hidden, in_slices
from pipeline.joined import CALIBRATION, TRAIN, check_together, held_out_rows, same_rows, stored_rows
from pipeline.store import ArraySpec, Block, Computed, Filled, Layout, StoreWriter, TeacherStore, fill
from pipeline.store.codecs import codec_json, errors_together, measure_error
from pipeline.store.fields import MEAN, SENTENCE, TARGETS, VARIANCE, Output, outputs_json
from pipeline.store.fill import Run
from pipeline.store.layout import ROW_ARRAYS
from pipeline.store.records import RECORDS
from pipeline.tasks import task_of
from pipeline.views import OUT_OF_FOLD, ViewPlan

MEASURED_ROWS = 256  # of each block: enough for the codec's error
HELD_OUT = ("calibration", "test")


def open_writer(
    folder: Path, name: str, config: Mapping[str, Any], teachers: Sequence[TeacherStore], begun: Begun
) -> StoreWriter:
    """Return the writer of a target store. Raises: StillroomError when the teacher stores don't go together."""
    check_together(teachers)
    first, state = teachers[0], begun.state
    splits = {split: shape for split, shape in first.layout.splits.items() if split != OUT_OF_FOLD}
    arrays, fields, task = dict[str, ArraySpec](), dict[str, str](), task_of(first.attributes)
    for each in begun.outputs:
        prefix = prefix_in(begun.targets, each.name)
        if each.codec.is_real:
            arrays |= reals.specs(prefix, each, tuple(splits))
            fields |= {prefix + MEAN: "real", prefix + VARIANCE: "real"}
        else:
            arrays |= classes.specs(prefix, each, tuple(splits), config["temperatures"])
            fields[f"{prefix}log_probs"] = "categorical"
        arrays[f"{prefix}weights"] = ArraySpec((*each.leading, len(teachers)), "float16")
        arrays[f"{prefix}disagreement"] = ArraySpec(each.leading, "float32")
    if not begun.outputs:
        arrays, fields = sentences.specs(teachers), {SENTENCE: "sentence"}
    truth = task.truth_kept
    attributes = {
        "plan": first.attributes["plan"],
        "classes": list(first.classes),
        **({"codec": codec_json(begun.codec)} if begun.outputs else sentences.kept_of(teachers).json),
        "fields": fields,
        "temperatures": config["temperatures"],
        "teachers": [teacher["name"] for teacher in config["teachers"]],
        "parents": parents_of(teachers),
        "fitted": sorted(state),
        **outputs_json(begun.outputs),
        **task.attributes,
        **({} if task.is_plain or truth is None else truth.json),
        **honesty(config),
    }
    return StoreWriter(
        folder,
        Layout(splits, {**arrays, **({} if truth is None else truth.specs), **ROW_ARRAYS}),
        kind="target store",
        name=name,
        config=config,
        attributes=attributes,
        constants={f"{FITTED}/{key}": values for key, values in state.items()},
    )


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
    config, plan = writer.config, teachers[0].plan()
    row_arrays = [*ROW_ARRAYS, *([TARGETS] if TARGETS in writer.layout.arrays else [])]

    def compute(block: Block) -> Computed:
        arrays, errors = dict[str, np.ndarray](), dict[str, dict[str, float]]()
        for output in begun.outputs:
            found, errors[output.name] = _fused_block(teachers, begun, output, plan, block, config)
            prefix = prefix_in(begun.targets, output.name)
            arrays |= {prefix + name: values for name, values in found.items()}
        if isinstance(begun.target, SentenceTarget):
            rows = sentences.proposals(teachers, plan, block)
            shown = rows if block.split == TRAIN else without_references(rows)
            arrays |= sentences.encoded(begun.target.fuse(shown), sentences.kept_of(teachers))
        arrays |= {name: same_rows(teachers, block, name) for name in row_arrays}
        return Computed(arrays, errors_together(errors) if errors else None)

    def details() -> dict[str, Any]:
        fitted = {name: target.fitted() for name, target in begun.targets.items()}
        (first, *others) = begun.targets
        return {
            "fitted": fitted if others else fitted[first],
            "scores": {split: _scores(teachers, begun, split, config["calibrate"]) for split in HELD_OUT},
            **honesty(config),
        }

    return fill(writer, compute, run=run, on_block=on_block, details=details)


def _fused_block(
    teachers: Sequence[TeacherStore],
    begun: Begun,
    output: Output,
    plan: ViewPlan,
    block: Block,
    config: Mapping[str, Any],
) -> tuple[dict[str, np.ndarray], dict[str, float]]:
    """Return what is kept of a block at one output, and what its codec does to some of the rows."""
    target, is_train = begun.targets[output.name], block.split == "train"
    assert not isinstance(target, SentenceTarget)
    looked_at = [store.at(output.name) for store in teachers]
    rows = stored_rows(looked_at, plan, block, config["calibrate"], layers_of(target))
    codec = output.codec_in(block.split)
    encoded, measured, done = list[dict[str, Tensor]](), list[Tensor](), 0
    for outputs in in_slices(rows):
        outputs = outputs if is_train else hidden(outputs)
        if isinstance(target, RealTarget):
            tensors, shown = reals.encoded(target, outputs, codec)
        else:
            tensors, shown = classes.encoded(target, outputs, codec, config["temperatures"])
        encoded.append(tensors)
        if done < MEASURED_ROWS:
            measured.append(shown)
        done += len(outputs)
    arrays = {name: np.concatenate([part[name].numpy() for part in encoded]) for name in encoded[0]}
    keys = replace(rows.keys, ids=rows.keys.ids[:MEASURED_ROWS])
    return arrays, measure_error(codec, torch.cat(measured)[:MEASURED_ROWS], keys)


def _scores(teachers: Sequence[TeacherStore], begun: Begun, split: str, calibrate: bool) -> dict[str, Any]:
    """Return the figures of a split: those of the first output, and under "outputs" those of the others."""
    if isinstance(begun.target, SentenceTarget):
        return sentences.score(begun.target, teachers, split)
    names, found = [store.name for store in teachers], dict[str, dict[str, Any]]()
    for output, target in begun.targets.items():
        assert not isinstance(target, SentenceTarget)
        rows = held_out_rows([store.at(output) for store in teachers], split, calibrate, layers_of(target))
        score = (
            reals.score(target, rows, names) if isinstance(target, RealTarget) else classes.score(target, rows, names)
        )
        found[output] = score | (dict(target.judged) if split == CALIBRATION else {})
    first, *others = found
    return {**found[first], **({"outputs": {name: found[name] for name in others}} if others else {})}
