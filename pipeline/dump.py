"""The dump: one teacher answers on every row of the plan, once, into its store."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pipeline.answers import Answers, Teacher, check_finite, check_width, finite_rows
from pipeline.calibration import fit_temperature
from pipeline.encoding import Encoding, asked_codec
from pipeline.metrics import classification_metrics
from pipeline.store import ArraySpec, Block, Computed, Filled, Layout, StoreWriter, fill
from pipeline.store.codecs import measure_error
from pipeline.store.codecs.features import feature_codec_json, parse_feature_codec
from pipeline.store.fields import field_array, field_specs
from pipeline.store.fill import Run
from pipeline.store.layout import ROW_ARRAYS
from pipeline.transfer import HostCopies, Stopwatch, prefetched
from pipeline.views import Replayer, RowKeys, ViewPlan

VERSION = 2  # of what the dump writes for the same teacher and plan
REPLAYED_BYTES = 8 << 20  # of inputs replayed together
FINITE = "finite"  # beside the arrays: which rows have finite logits, looked at on the host so that no GPU waits
MEASURED_VALUES = 1 << 17  # logits of a block that the codec's error is measured on: nothing to the forward pass


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


def row_keys(plan: ViewPlan, block: Block) -> RowKeys:
    """Return what makes each row's random draws its own."""
    return RowKeys(plan.seed, block.view, plan.splits[block.split].ids[block.start : block.stop])


def teacher_layout(plan: ViewPlan, encoding: Encoding) -> Layout:
    """Return the layout of a teacher store."""
    splits = split_shapes(plan)
    arrays = field_specs("logits", encoding.codec, (encoding.num_classes,), tuple(splits))
    for layer, fitted in encoding.features.items():
        part = fitted.part(fitted.width)
        arrays[f"features/{layer}"] = ArraySpec(part.tail, part.dtype, shuffle=part.shuffle)
    return Layout(splits, {**arrays, **ROW_ARRAYS})


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
) -> dict[str, Any]:
    """Return what a teacher store is made from: `teacher` is the teacher's fingerprint."""
    asked = asked_codec(codec, "logits.codec")
    return {
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


def open_writer(
    folder: Path,
    name: str,
    config: Mapping[str, Any],
    plan: ViewPlan,
    encoding: Encoding,
    *,
    weights: Mapping[str, str] | None = None,
) -> StoreWriter:
    """Return the writer of a teacher store; `weights` are the sha256 of the teacher's files by name."""
    attributes = {
        "plan": plan.config,
        "classes": config["classes"],
        "fields": {"logits": "categorical"},
        "weights": dict(weights or {}),
        **encoding.attributes,
    }
    return StoreWriter(
        folder,
        teacher_layout(plan, encoding),
        kind="teacher store",
        name=name,
        config=config,
        attributes=attributes,
        constants=encoding.constants,
    )


def dump(
    teacher: Teacher,
    replayer: Replayer,
    writer: StoreWriter,
    encoding: Encoding,
    *,
    batch_size: int = 256,
    details: Mapping[str, Any],
    run: Run = map,
    on_block: Callable[[Block], None] = lambda block: None,
) -> Filled:
    """Fill a teacher store; `details` go into its manifest beside the teacher's figures on held-out rows.

    On a GPU, replaying goes on a batch ahead in one thread and writing a block behind in another; a failure in either
    stops the dump.

    Raises: StillroomError when an answer isn't finite or has another number of classes.
    """
    on_gpu = replayer.device.type == "cuda"
    copies = HostCopies(replayer.device)

    def compute(block: Block) -> Callable[[], Computed]:
        where = f"teacher.{writer.name}"
        return answer(teacher, replayer, block, encoding, batch_size=batch_size, copies=copies, where=where)

    def figures() -> dict[str, Any]:
        return {**details, **held_out_figures(writer, encoding, replayer.plan)}

    behind = 2 if on_gpu else 0  # on a CPU torch owns every core, and one thread more only waits for one
    return fill(writer, compute, run=run, write_behind=behind, on_block=on_block, details=figures)


def answer(
    teacher: Teacher,
    replayer: Replayer,
    block: Block,
    encoding: Encoding,
    *,
    batch_size: int,
    copies: HostCopies | None = None,
    where: str = "teacher",
) -> Callable[[], Computed]:
    """Let a teacher answer on a block and encode it where it answered; return what is left to do on the host.

    That gives the block, with the codec's error and the seconds of the forward passes.
    """
    watch, parts = Stopwatch(replayer.device), list[Answers]()
    for inputs in prefetched(replayed(replayer, block, teacher.rows_at_once or batch_size), replayer.device):
        with watch:
            parts.append(teacher.predict(inputs))
    where = f"{where} on {block.split} view {block.view} rows {block.start}-{block.stop}"
    answers, keys, codec = _join(parts), row_keys(replayer.plan, block), encoding.codec_in(block.split)
    check_width(answers, encoding.num_classes, where)
    encoded = encoding.encode(block, answers, keys, where)
    tensors = {**encoded, FINITE: finite_rows(answers.logits)}
    count = max(32, MEASURED_VALUES // encoding.num_classes)
    tensors["measured"] = answers.logits[:count]
    arrived = (copies or HostCopies(replayer.device)).send(tensors)

    def on_host() -> Computed:
        arrays = arrived()
        check_finite({"logits": arrays.pop(FINITE)}, where)
        some = torch.from_numpy(arrays.pop("measured"))
        error = measure_error(codec, some, RowKeys(keys.seed, keys.view, keys.ids[: len(some)]))
        return Computed({**arrays, **row_arrays(replayer, block)}, error, {"forward_seconds": watch.seconds})

    return on_host


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


def held_out_figures(writer: StoreWriter, encoding: Encoding, plan: ViewPlan) -> dict[str, Any]:
    """Return the teacher's temperature, fitted on calibration rows, and its figures there and on test rows."""
    logits = {name: _committed_logits(writer, encoding, name) for name in ("calibration", "test")}
    labels = {name: torch.from_numpy(plan.splits[name].labels) for name in logits}
    temperature = fit_temperature(logits["calibration"], labels["calibration"])
    return {
        "temperature": temperature,
        "scores": {name: scores(values, labels[name], temperature) for name, values in logits.items()},
    }


def _committed_logits(writer: StoreWriter, encoding: Encoding, split: str) -> Tensor:
    codec = encoding.codec_in(split)
    parts = codec.parts(encoding.num_classes)
    stored = {part: torch.from_numpy(writer.read(split, field_array("logits", part))) for part in parts}
    return codec.decode(stored, encoding.num_classes)


def scores(logits: Tensor, labels: Tensor, temperature: float) -> dict[str, Any]:
    """Return a classifier's metrics as it is, and its NLL and ECE after its fitted temperature."""
    calibrated = classification_metrics((logits / temperature).log_softmax(-1), labels)
    return {
        **classification_metrics(logits.log_softmax(-1), labels),
        "calibrated_nll": calibrated["nll"],
        "calibrated_ece": calibrated["ece"],
    }
