"""How a store's numbers lie on disk: what was asked for, with everything chosen or fitted on a sample of rows first.

`auto` takes the codec with the fewest bytes whose mean KL stays under a limit; projections and channel ranges of
features are fitted once. Both are written into the store before its first block, and a resumed dump reads them there.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pipeline.answers import Answers, Teacher, is_writer
from pipeline.errors import StillroomError
from pipeline.lineage import fingerprint
from pipeline.store.attributes import read_attributes
from pipeline.store.codecs import (
    ALL_CODECS,
    REAL_CODECS,
    Codec,
    auto_candidates,
    codec_json,
    errors_together,
    measure_error,
    packed_bytes,
    parse_codec,
)
from pipeline.store.codecs.features import Fitted, feature_codec_json, parse_feature_codec, restore
from pipeline.store.describe import read_constant
from pipeline.store.fields import Output, Sentences, encode_field, outputs_json, read_outputs, read_sentences
from pipeline.store.layout import ArraySpec, Block
from pipeline.store.told import FORMAT
from pipeline.tasks import Shapes, Task, Tokens, joined, parts_of
from pipeline.views import OUT_OF_FOLD, Replayer, RowKeys

AUTO = "auto"
BESIDE_CLASSES = "real16"  # how numbers lie that a task asks for beside classes
SAMPLE_ROWS = 4096
SAMPLE_BYTES = 64 << 20  # of logits, where there are very many classes


@dataclass(frozen=True)
class Measured:
    """A codec on real logits: its bytes a row on disk, and what it does to the distribution."""

    codec: Codec
    bytes_per_row: float
    error: Mapping[str, float]

    @property
    def kl(self) -> float:
        """The larger of the mean KLs at T=1 and T=4, in nats."""
        return max(self.error["kl_t1_mean"], self.error["kl_t4_mean"])


@dataclass(frozen=True)
class Encoding:
    """How one teacher's outputs and each of its layers' features lie on disk."""

    outputs: tuple[Output, ...]
    features: Mapping[str, Fitted]
    sentences: Sentences | None = None

    @property
    def shapes(self) -> Shapes:
        """The outputs of a row."""
        return {each.name: each.shape for each in self.outputs}

    @property
    def codec(self) -> Codec:
        """That of the first output."""
        return self.outputs[0].codec

    @property
    def num_values(self) -> int:
        """The numbers of a row's outputs."""
        return sum(math.prod(each.shape) for each in self.outputs)

    def specs(self, splits: tuple[str, ...]) -> dict[str, ArraySpec]:
        """Return the arrays of the outputs."""
        own = {} if self.sentences is None else self.sentences.specs("teacher store")
        return {name: spec for each in self.outputs for name, spec in each.specs(each.name, splits).items()} | own

    def encode(self, block: Block, answers: Answers, rows: RowKeys, where: str) -> dict[str, Tensor]:
        """Return a block's arrays by name, on the device of the answers.

        Raises: StillroomError when a feature isn't finite, or beyond fp16 where it is stored so.
        """
        parts, arrays = parts_of(self.shapes, answers.logits), dict[str, Tensor]()
        for each in self.outputs:
            arrays |= encode_field(each.name, each.codec_in(block.split), parts[each.name], rows)
        for layer, fitted in self.features.items() if block.split != OUT_OF_FOLD else ():
            arrays[f"features/{layer}"] = fitted.encode(answers.features[layer], where=f"{where}: {layer}")
        return arrays

    def decode(self, split: str, stored: Mapping[str, Mapping[str, Tensor]]) -> Tensor:
        """Return rows of a model's outputs from what is stored of each, by part: up to a constant a row of logits."""
        decoded = {each.name: each.codec_in(split).decode(stored[each.name], each.num_classes) for each in self.outputs}
        return joined(self.shapes, decoded)

    def error(self, split: str, outputs: Tensor, rows: RowKeys) -> dict[str, float]:
        """Return what the codecs do to a model's outputs on some rows; of several outputs as "classes/kl_t1_mean"."""
        parts = parts_of(self.shapes, outputs)
        errors = {each.name: measure_error(each.codec_in(split), parts[each.name], rows) for each in self.outputs}
        return errors_together(errors)

    @property
    def attributes(self) -> dict[str, Any]:
        """What the store says of it."""
        features = {
            layer: {"codec": feature_codec_json(fitted.codec), "width": fitted.width, "arrays": sorted(fitted.arrays)}
            for layer, fitted in self.features.items()
        }
        codec = {"codec": codec_json(self.codec)} if self.outputs else {}
        sentences = {} if self.sentences is None else self.sentences.json
        return {**codec, "features": features, **outputs_json(self.outputs), **sentences}

    @property
    def constants(self) -> dict[str, np.ndarray]:
        """What was fitted, by where it lies in the store."""
        return {
            f"fitted/features/{layer}/{name}": values
            for layer, fitted in self.features.items()
            for name, values in fitted.arrays.items()
        }


def asked_codec(spec: str | Mapping[str, Any], where: str, *, is_real: bool = False) -> Any:
    """Return a recipe's codec as JSON, "auto" as it is. Raises StillroomError when there is no such codec.

    `is_real` asks for one of real numbers, of which "auto" chooses none.
    """
    if is_real:
        return codec_json(parse_codec(spec, where, REAL_CODECS))
    return AUTO if spec == AUTO else codec_json(parse_codec(spec, where))


def stored_encoding(folder: Path, config: Mapping[str, Any]) -> Encoding | None:
    """Return the encoding an unfinished teacher store of this config was begun with, None when there is none."""
    attributes = own_attributes(folder, config)
    if attributes is None:
        return None
    try:
        features = {
            layer: restore(
                said["codec"],
                {name: read_constant(folder, f"fitted/features/{layer}/{name}") for name in said["arrays"]},
                said["width"],
            )
            for layer, said in attributes["features"].items()
        }
        outputs = tuple(read_outputs(attributes, str(folder)).values())
        return Encoding(outputs, features, read_sentences(attributes))
    except (KeyError, TypeError, ValueError, AttributeError, StillroomError):
        return None  # killed before it was whole: it is chosen again


def own_attributes(folder: Path, config: Mapping[str, Any]) -> Mapping[str, Any] | None:
    """Return what an unfinished or finished store says of itself, None unless this config made it."""
    try:
        attributes = read_attributes(folder)
        is_own = attributes["format"] == FORMAT and attributes["fingerprint"] == fingerprint(config)
        return attributes if is_own else None
    except (KeyError, TypeError, StillroomError):
        return None


def choose_encoding(
    teacher: Teacher,
    replayer: Replayer,
    *,
    task: Task,
    codec: Any,
    max_kl: float,
    feature_codec: Any,
    where: str,
    batch_size: int = 256,
    hypotheses: int | None = None,
) -> Encoding:
    """Return how this teacher's answers will lie on disk, from its answers on a sample of rows where need be.

    Beside classes, numbers of a task that has both lie in half precision. `hypotheses` is how many sentences it writes
    of each row; a rule that does nothing else has no other output.
    """
    sentences = None if hypotheses is None else sentences_of(task, hypotheses)
    if is_writer(teacher):
        if sentences is None:
            raise StillroomError(
                f"{where}: found a rule that writes sentences, and no logits.hypotheses; expected how many of them to "
                f"keep; set logits.hypotheses, e.g. to 4"
            )
        return Encoding((), {}, sentences)
    widths, how = teacher.feature_widths, parse_feature_codec(feature_codec, f"{where} features")
    is_fitted = any(how.shapes(width) for width in widths.values())  # what nothing is fitted to needs no sample
    sample = sample_answers(teacher, replayer, task.shapes, batch_size) if codec == AUTO or is_fitted else None
    features = {}
    for layer, width in widths.items():
        rows = torch.zeros(1, width) if sample is None else sample[0].features[layer]
        features[layer] = how.fit(rows, where=f"{where}: {layer}")
    said = {} if sample is None else parts_of(task.shapes, sample[0].logits)
    outputs = []
    for name, shape in task.shapes.items():
        if name in task.numbers and not task.is_real:
            chosen = parse_codec(BESIDE_CLASSES, where, REAL_CODECS)
        elif codec == AUTO:
            assert sample is not None
            chosen = cheapest(measure_codecs(said[name], sample[1]), max_kl, where).codec
        else:
            chosen = parse_codec(codec, where, ALL_CODECS)
        outputs.append(Output(name, shape, chosen))
    return Encoding(tuple(outputs), features, sentences)


def sentences_of(task: Task, count: int) -> Sentences:
    """Return what is kept of so many sentences a row. Raises StillroomError for a task that is of none."""
    if not isinstance(task, Tokens):
        raise StillroomError(
            f"logits.hypotheses: found {count}; expected none, for the data asks for no sentences; remove it"
        )
    return Sentences(task.length, count, len(task.names))


def sample_answers(teacher: Teacher, replayer: Replayer, shapes: Shapes, batch_size: int) -> tuple[Answers, RowKeys]:
    """Return a teacher's answers on evenly spaced train rows of the first view, on the CPU, and the rows' keys."""
    plan = replayer.plan
    size = len(plan.splits["train"])
    numbers = sum(map(math.prod, shapes.values()))
    count = max(256, min(SAMPLE_ROWS, SAMPLE_BYTES // (4 * numbers)))
    rows = np.arange(0, size, max(1, -(-size // count)))
    batches = np.array_split(rows, -(-len(rows) // (teacher.rows_at_once or batch_size)))
    parts = [teacher.predict(replayer.batch("train", 0, chosen).inputs) for chosen in batches]
    logits = torch.cat([part.logits.float().cpu() for part in parts])
    features = {layer: torch.cat([p.features[layer].float().cpu() for p in parts]) for layer in parts[0].features}
    return Answers(logits, features), RowKeys(plan.seed, 0, plan.splits["train"].ids[rows])


def measure_codecs(logits: Tensor, rows: RowKeys, codecs: Sequence[Codec] | None = None) -> list[Measured]:
    """Return what each codec would make of these logits [n, ..., C]: those `auto` tries by default."""
    candidates = auto_candidates(logits.shape[-1]) if codecs is None else codecs
    return [Measured(c, packed_bytes(c, logits, rows), measure_error(c, logits, rows)) for c in candidates]


def cheapest(measured: Sequence[Measured], max_kl: float, where: str) -> Measured:
    """Return the codec with the fewest bytes among those within the limit. Raises StillroomError when there is none."""
    within = [each for each in measured if each.kl <= max_kl]
    if not within:
        best = min(measured, key=lambda each: each.kl)
        raise StillroomError(
            f"{where}: the best codec has a mean KL of {best.kl:.1e}; expected at most max_kl = {max_kl:g}; raise "
            f"max_kl or name a codec"
        )
    return min(within, key=lambda each: each.bytes_per_row)
