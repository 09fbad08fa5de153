"""One teacher, or one of each fold, asked about a block of rows: logits, features, whole sentences."""

import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from pipeline.answers import Answers, Teacher, check_finite, check_shape, finite_rows
from pipeline.encoding import Encoding
from pipeline.errors import StillroomError
from pipeline.store import Block, Computed
from pipeline.store.fields import FOLD, HYPOTHESES, SCORES, TARGETS, Sentences
from pipeline.tasks import out_shape
from pipeline.transfer import HostCopies, Stopwatch, prefetched
from pipeline.views import Inputs, Replayer, RowKeys, ViewPlan

REPLAYED_BYTES = 8 << 20  # of inputs replayed together
FINITE = "finite"  # beside the arrays: which rows have finite logits, looked at on the host so that no GPU waits
MEASURED_VALUES = 1 << 17  # logits of a block that the codec's error is measured on: nothing to the forward pass
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
