"""The dump: one teacher answers on every row of the plan, once, into its store."""

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pipeline.answers import Answers, Teacher, check_answers
from pipeline.calibration import fit_temperature
from pipeline.lineage import fingerprint
from pipeline.metrics import classification_metrics
from pipeline.store import CODECS, ArraySpec, Block, Computed, Filled, Layout, StoreWriter, fill, measure_error
from pipeline.store.codecs import Codec
from pipeline.store.fill import Run
from pipeline.store.layout import ROW_ARRAYS
from pipeline.views import Replayer, ViewPlan

VERSION = 1  # of what the dump writes for the same teacher and plan
REPLAYED_BYTES = 8 << 20  # of inputs replayed together
MEASURED_ROWS = 1024  # of each block: enough for the codec's error, nothing against the forward pass


def split_shapes(plan: ViewPlan) -> dict[str, tuple[int, int]]:
    """Return (V, N) of each split."""
    return {name: (plan.views(name), len(split)) for name, split in plan.splits.items()}


def row_arrays(replayer: Replayer, block: Block) -> dict[str, np.ndarray]:
    """Return what every store says about a block's rows: digests, labels, sample ids."""
    split = replayer.plan.splits[block.split]
    return {
        "row_digest": replayer.digests(block.split, block.view, block.positions),
        "labels": split.labels[block.start : block.stop].astype(np.int32),
        "sample_ids": split.ids[block.start : block.stop],
    }


def teacher_layout(plan: ViewPlan, num_classes: int, feature_widths: Mapping[str, int], codec: str) -> Layout:
    """Return the layout of a teacher store."""
    features = {f"features/{layer}": ArraySpec((width,), "float16") for layer, width in feature_widths.items()}
    logits = ArraySpec((num_classes,), CODECS[codec].dtype)
    return Layout(split_shapes(plan), {"logits": logits, **features, **ROW_ARRAYS})


def teacher_store_config(
    teacher: str, plan: ViewPlan, *, classes: Sequence[str], features: Sequence[str], codec: str, precision: str
) -> dict[str, Any]:
    """Return what a teacher store is made from: `teacher` is the teacher's fingerprint."""
    return {
        "stage": "logits",
        "version": VERSION,
        "teacher": teacher,
        "plan": plan.fingerprint,
        "classes": list(classes),
        "features": list(features),
        "codec": codec,
        "precision": precision,
    }


def open_writer(folder: Path, name: str, config: Mapping[str, Any], plan: ViewPlan, layout: Layout) -> StoreWriter:
    """Return the writer of a teacher store."""
    attributes = {
        "format": 1,
        "kind": "teacher store",
        "fingerprint": fingerprint(config),
        "plan": plan.config,
        "classes": config["classes"],
        "codec": config["codec"],
        "fields": {"logits": "categorical"},
    }
    return StoreWriter(folder, layout, kind="teacher store", name=name, config=config, attributes=attributes)


def dump(
    teacher: Teacher,
    replayer: Replayer,
    writer: StoreWriter,
    *,
    batch_size: int = 256,
    details: Mapping[str, Any],
    run: Run = map,
    on_block: Callable[[Block], None] = lambda block: None,
) -> Filled:
    """Fill a teacher store; `details` go into its manifest beside the teacher's figures on held-out rows.

    Raises: StillroomError when an answer isn't finite or has another number of classes.
    """
    codec = CODECS[writer.config["codec"]]

    def compute(block: Block) -> Computed:
        where = f"teacher.{writer.name}"
        return answer(teacher, replayer, block, codec=codec, batch_size=batch_size, layout=writer.layout, where=where)

    def figures() -> dict[str, Any]:
        return {**details, **held_out_figures(writer, codec, replayer.plan)}

    return fill(writer, compute, run=run, on_block=on_block, details=figures)


def answer(
    teacher: Teacher,
    replayer: Replayer,
    block: Block,
    *,
    codec: Codec,
    batch_size: int,
    layout: Layout,
    where: str = "teacher",
) -> Computed:
    """Return a teacher's answers on a block, encoded, with the codec's error and the seconds of the forward passes."""
    parts: list[Answers] = []
    forward, size = 0.0, teacher.rows_at_once or batch_size
    for inputs in replayed(replayer, block, size):
        begun = time.perf_counter()
        parts.append(teacher.predict(inputs))
        forward += time.perf_counter() - begun
    num_classes = layout.arrays["logits"].tail[-1]
    joined = _join(parts)
    features = {layer: values.half() for layer, values in joined.features.items()}  # checked so: fp16 ends at 65504
    check_answers(
        Answers(joined.logits, features),
        num_classes,
        f"{where} on {block.split} view {block.view} rows {block.start}-{block.stop}",
    )
    arrays = {"logits": codec.encode(joined.logits), **row_arrays(replayer, block)}
    arrays |= {f"features/{layer}": values.cpu().numpy() for layer, values in features.items()}
    error = measure_error(codec, joined.logits[:MEASURED_ROWS])
    return Computed(arrays, error, {"forward_seconds": forward})


def replayed(replayer: Replayer, block: Block, size: int) -> Iterator[Tensor]:
    """Yield a block's inputs, `size` rows at a time, replayed in larger pieces: drawing costs the same for few rows."""
    channels, height, width = replayer.samples.shape
    together = max(1, REPLAYED_BYTES // (4 * channels * height * width * size)) * size
    for start in range(block.start, block.stop, together):
        rows = np.arange(start, min(start + together, block.stop))
        yield from replayer.batch(block.split, block.view, rows).inputs.split(size)


def _join(parts: Sequence[Answers]) -> Answers:
    return Answers(
        torch.cat([part.logits for part in parts]),
        {layer: torch.cat([part.features[layer] for part in parts]) for layer in parts[0].features},
    )


def held_out_figures(writer: StoreWriter, codec: Codec, plan: ViewPlan) -> dict[str, Any]:
    """Return the teacher's temperature, fitted on calibration rows, and its figures there and on test rows."""
    logits = {name: codec.decode(writer.read(name, "logits")) for name in ("calibration", "test")}
    labels = {name: torch.from_numpy(plan.splits[name].labels) for name in logits}
    temperature = fit_temperature(logits["calibration"], labels["calibration"])
    return {
        "temperature": temperature,
        "scores": {name: scores(values, labels[name], temperature) for name, values in logits.items()},
    }


def scores(logits: Tensor, labels: Tensor, temperature: float) -> dict[str, Any]:
    """Return a classifier's metrics as it is, and its NLL and ECE after its fitted temperature."""
    calibrated = classification_metrics((logits / temperature).log_softmax(-1), labels)
    return {
        **classification_metrics(logits.log_softmax(-1), labels),
        "calibrated_nll": calibrated["nll"],
        "calibrated_ece": calibrated["ece"],
    }
