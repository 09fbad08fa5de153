"""The dump: one teacher answers on every row of the plan, once, into its store.

With folds, its labelled train rows are answered on once more, each by a model that was not trained on it: what is
fitted on those answers does not take memory for knowledge.
"""

import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pipeline.answers import Answers, Teacher, check_finite, check_shape, finite_rows
from pipeline.encoding import Encoding, asked_codec
from pipeline.errors import StillroomError
from pipeline.store import HEAD, ArraySpec, Block, Computed, Filled, Layout, StoreWriter, fill
from pipeline.store.codecs.features import feature_codec_json, parse_feature_codec
from pipeline.store.fields import (
    FOLD,
    HYPOTHESES,
    SCORES,
    TARGETS,
    Sentences,
    field_array,
    fold_specs,
    splits_with_features,
)
from pipeline.store.fill import Run
from pipeline.store.layout import ROW_ARRAYS
from pipeline.tasks import Classes, Task, Tokens, out_shape, task_of
from pipeline.transfer import HostCopies, Stopwatch, prefetched
from pipeline.views import OUT_OF_FOLD, Inputs, Replayer, RowKeys, ViewPlan

VERSION = 3  # of what the dump writes for the same teacher and plan
REPLAYED_BYTES = 8 << 20  # of inputs replayed together
FINITE = "finite"  # beside the arrays: which rows have finite logits, looked at on the host so that no GPU waits
MEASURED_VALUES = 1 << 17  # logits of a block that the codec's error is measured on: nothing to the forward pass
SEARCH_VERSION = 1  # raise it when the same teacher would write other sentences
LEAST_MEASURED = 32  # rows, however many numbers each has


@dataclass(frozen=True)
class FoldModels:
    """A teacher trained once for each fold without it: `fold_of` uint8 [N] of the rows out of fold, `teacher(fold)`."""

    fold_of: np.ndarray
    teacher: Callable[[int], Teacher]

    def asked(self, positions: np.ndarray) -> Iterator[tuple[Teacher, np.ndarray]]:
        """Yield each fold's model with those of the rows that it was not trained on."""
        for fold in np.unique(self.fold_of[positions]):
            yield self.teacher(int(fold)), positions[self.fold_of[positions] == fold]


def split_shapes(plan: ViewPlan) -> dict[str, tuple[int, int]]:
    """Return (V, N) of each split."""
    return {name: (plan.views(name), len(split)) for name, split in plan.splits.items()}


def row_arrays(replayer: Replayer, block: Block, folds: FoldModels | None = None) -> dict[str, np.ndarray]:
    """Return what every store says about a block's rows: digests, labels, sample ids, targets where they are numbers.

    Out of fold, also who answered.
    """
    split = replayer.plan.splits[block.split]
    arrays = {
        "row_digest": replayer.digests(block.split, block.view, block.positions),
        "labels": split.labels[block.start : block.stop].astype(np.int32),
        "sample_ids": split.ids[block.start : block.stop],
    }
    if split.targets is not None:
        arrays[TARGETS] = split.targets[block.start : block.stop]
    return arrays if folds is None else {**arrays, FOLD: folds.fold_of[block.start : block.stop]}


def row_keys(plan: ViewPlan, block: Block) -> RowKeys:
    """Return what makes each row's random draws its own."""
    return RowKeys(plan.seed, block.view, plan.splits[block.split].ids[block.start : block.stop])


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


def open_writer(
    folder: Path,
    name: str,
    config: Mapping[str, Any],
    plan: ViewPlan,
    encoding: Encoding,
    *,
    weights: Mapping[str, str] | None = None,
    head: tuple[np.ndarray, np.ndarray] | None = None,
    task: Task | None = None,
) -> StoreWriter:
    """Return the writer of a teacher store; `weights` are the sha256 of the teacher's files by name.

    `head` is its classifier, weights [C, D] and offsets [C], for students that answer through it; `task` what it was
    asked, the config's classes unless it is given.
    """
    asked: Task = task or Classes(tuple(config["classes"]))
    attributes = {
        "plan": plan.config,
        "classes": config["classes"],
        "fields": {name: "real" if name in asked.numbers else "categorical" for name in encoding.shapes},
        "weights": dict(weights or {}),
        **encoding.attributes,
        **asked.attributes,
        **({} if asked.is_plain or asked.truth_kept is None else asked.truth_kept.json),
        **({} if head is None else {"head": True}),
    }
    return StoreWriter(
        folder,
        teacher_layout(plan, encoding, asked),
        kind="teacher store",
        name=name,
        config=config,
        attributes=attributes,
        constants=encoding.constants | ({} if head is None else dict(zip(HEAD, head, strict=True))),
    )


def dump(
    teacher: Teacher,
    replayer: Replayer,
    writer: StoreWriter,
    encoding: Encoding,
    *,
    batch_size: int = 256,
    details: Mapping[str, Any],
    folds: FoldModels | None = None,
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
        where, own = f"teacher.{writer.name}", folds if block.split == OUT_OF_FOLD else None
        return answer(teacher, replayer, block, encoding, batch_size=batch_size, folds=own, copies=copies, where=where)

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
    folds: FoldModels | None = None,
    copies: HostCopies | None = None,
    where: str = "teacher",
) -> Callable[[], Computed]:
    """Let a teacher, or its fold models, answer on a block and encode it there; return what is left to do on the host.

    That gives the block, with the codec's error and the seconds of the forward passes.
    """
    if encoding.sentences is not None and block.view == 0:
        written = write_sentences(teacher, replayer, block, encoding.sentences, batch_size, where)
    else:
        written = Written({}, 0.0)
    if not encoding.outputs:
        arrays = {**written.arrays, **row_arrays(replayer, block)}
        return lambda: Computed(arrays, None, {"forward_seconds": 0.0, "writing_seconds": written.seconds})
    watch = Stopwatch(replayer.device)
    asked = [(teacher, block.positions)] if folds is None else list(folds.asked(block.positions))
    answers = _answers(asked, replayer, block, batch_size, watch)
    where = f"{where} on {block.split} view {block.view} rows {block.start}-{block.stop}"
    keys = row_keys(replayer.plan, block)
    check_shape(answers, out_shape(encoding.shapes), where)
    encoded = encoding.encode(block, answers, keys, where)
    tensors = {**encoded, FINITE: finite_rows(answers.logits)}
    count = max(LEAST_MEASURED, MEASURED_VALUES // encoding.num_values)
    tensors["measured"] = answers.logits[:count]
    arrived = (copies or HostCopies(replayer.device)).send(tensors)

    def on_host() -> Computed:
        arrays = arrived()
        check_finite({"logits": arrays.pop(FINITE)}, where)
        some = torch.from_numpy(arrays.pop("measured"))
        error = encoding.error(block.split, some, RowKeys(keys.seed, keys.view, keys.ids[: len(some)]))
        seconds = {"forward_seconds": watch.seconds} | ({"writing_seconds": written.seconds} if written.arrays else {})
        return Computed({**arrays, **written.arrays, **row_arrays(replayer, block, folds)}, error, seconds)

    return on_host


@dataclass(frozen=True)
class Written:
    """Sentences of a block as they are stored, by array, and the seconds that it took to write them."""

    arrays: Mapping[str, np.ndarray]
    seconds: float


def write_sentences(
    teacher: Teacher, replayer: Replayer, block: Block, sentences: Sentences, batch_size: int, where: str
) -> Written:
    """Let a teacher write sentences of a block's samples. Raises: StillroomError for one that can't."""
    if not hasattr(teacher, "write"):
        raise StillroomError(
            f"{where}: found a model that writes no sentences; expected one, for logits.hypotheses asks for them; use "
            f"a translator, or leave it out"
        )
    started = time.perf_counter()
    parts = [
        teacher.write(inputs, sentences.count)
        for inputs in replayed(replayer, block, block.positions, teacher.rows_at_once or batch_size)
    ]
    tokens, scores = (torch.cat([part[place].cpu() for part in parts]).numpy() for place in (0, 1))
    dtypes = {name: spec.dtype for name, spec in sentences.specs("teacher store").items()}
    arrays = {HYPOTHESES: tokens.astype(dtypes[HYPOTHESES]), SCORES: scores.astype(dtypes[SCORES])}
    return Written(arrays, time.perf_counter() - started)


def _answers(
    asked: Sequence[tuple[Teacher, np.ndarray]], replayer: Replayer, block: Block, batch_size: int, watch: Stopwatch
) -> Answers:
    """Return the answers on a block's rows, in their order, of whoever is asked on which of them."""
    parts = list[Answers]()
    for teacher, positions in asked:
        size = teacher.rows_at_once or batch_size
        for inputs in prefetched(replayed(replayer, block, positions, size), replayer.device):
            with watch:
                parts.append(teacher.predict(inputs))
    answers = _join(parts)
    if len(asked) == 1:
        return answers
    order = np.argsort(np.concatenate([positions for _, positions in asked]))
    return Answers(answers.logits[torch.from_numpy(order).to(answers.logits.device)])


def replayed(replayer: Replayer, block: Block, positions: np.ndarray, size: int) -> Iterator[Inputs]:
    """Yield inputs of rows, `size` at a time, replayed in larger pieces: drawing costs the same for few rows."""
    numbers = max(1, math.prod(replayer.samples.shape))
    together = max(1, REPLAYED_BYTES // (4 * numbers * size)) * size
    for start in range(0, len(positions), together):
        rows = positions[start : start + together]
        inputs = replayer.batch(block.split, block.view, rows).inputs
        yield from (inputs[at : at + size] for at in range(0, len(inputs), size))


def _join(parts: Sequence[Answers]) -> Answers:
    return Answers(
        torch.cat([part.logits for part in parts]),
        {layer: torch.cat([part.features[layer] for part in parts]) for layer in parts[0].features},
    )


def held_out_figures(writer: StoreWriter, encoding: Encoding, plan: ViewPlan) -> dict[str, Any]:
    """Return the teacher's figures on calibration rows, test rows and out of fold, and what is fitted on the first.

    Those out of fold are its fold models', at its own temperature.
    """
    splits = [name for name in ("calibration", "test", OUT_OF_FOLD) if name in plan.splits]
    task = task_of(writer.attributes)
    truths = {name: task.truth(plan.splits[name]) for name in splits}
    figures: dict[str, Any] = {"scores": {name: {} for name in splits}}
    if encoding.outputs:
        figures = task.teacher_figures({name: _committed(writer, encoding, name) for name in splits}, truths)
    if encoding.sentences is not None:
        assert isinstance(task, Tokens)
        for name in splits:
            first = torch.from_numpy(writer.read(name, HYPOTHESES)[:, 0].astype(np.int64))
            figures["scores"][name] |= task.sentence_figures(first, truths[name])
    return figures


def _committed(writer: StoreWriter, encoding: Encoding, split: str) -> Tensor:
    """Return a split's outputs as they were committed."""
    stored = {
        each.name: {
            part: torch.from_numpy(writer.read(split, field_array(each.name, part)))
            for part in each.codec_in(split).parts(each.num_classes)
        }
        for each in encoding.outputs
    }
    return encoding.decode(split, stored)
