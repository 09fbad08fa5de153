"""Fields and their arrays: which arrays a field has under a codec, in which splits.

A sparse codec is for what students stream. Held-out splits are small, and everything judged there (temperatures,
fusion weights, NLL) needs every class, so they stay dense whatever the codec.

Most tasks have one output, a class or some numbers a row. A store says what its outputs are where a row has several
cases of one (the words of a sentence), or there are several outputs (classes and boxes).
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from torch import Tensor

from pipeline.store.codecs import ALL_CODECS, CODECS, Codec, codec_json, parse_codec
from pipeline.store.layout import ArraySpec
from pipeline.views import OUT_OF_FOLD, RowKeys

FOLD = "fold"  # of rows out of fold: which fold model answered
TARGETS = "targets"  # of rows of real numbers: what is true of them, in standard units, NaN where unknown or hidden
LOGITS, VALUES, MEAN, VARIANCE = (
    "logits",
    "values",
    "mean",
    "variance",
)  # what teachers say, what a fusion of reals does


HYPOTHESES, SCORES = "hypotheses", "hypothesis_scores"  # whole sentences that a teacher wrote, and how likely each is
SENTENCE = "sentence"  # the one that a fusion chose
CODED = ("log_probs", MEAN, VARIANCE)  # what a target store keeps of an output under its codec
MOST_VALUES = 1 << 28  # numbers of an output of one row: more is no row's


@dataclass(frozen=True)
class Output:
    """One output of every row: `shape` (..., C), classes or numbers last, and the codec that it lies under."""

    name: str
    shape: tuple[int, ...]
    codec: Codec

    @property
    def num_classes(self) -> int:
        """C, or P of numbers."""
        return self.shape[-1]

    @property
    def leading(self) -> tuple[int, ...]:
        """The axes before the classes, () where a row is one case."""
        return self.shape[:-1]

    @property
    def is_plain(self) -> bool:
        """Whether a store need not say it: its classes and its codec do."""
        return len(self.shape) == 1 and self.name == answer_field(self.codec)

    def codec_in(self, split: str) -> Codec:
        """Return the codec of a split: what a held-out split is judged by is never sparse."""
        return self.codec if split == "train" else held_out_codec(self.codec)

    def specs(self, field: str, splits: tuple[str, ...]) -> dict[str, ArraySpec]:
        """Return the arrays of a field that lies as this output does."""
        return field_specs(field, self.codec, self.shape, splits)


def outputs_json(outputs: Sequence[Output]) -> dict[str, Any]:
    """Return what a store says of its outputs, {} of a single plain one."""
    if len(outputs) == 1 and outputs[0].is_plain:
        return {}
    return {"outputs": {each.name: {"shape": list(each.shape), "codec": codec_json(each.codec)} for each in outputs}}


def read_outputs(attributes: Mapping[str, Any], where: str) -> dict[str, Output]:
    """Return the outputs of a store by name, as its attributes say them, the one that they imply where they don't.

    Raises: KeyError, TypeError, ValueError, StillroomError for attributes that say nothing of the kind.
    """
    if "outputs" not in attributes:
        codec = parse_codec(attributes["codec"], where, ALL_CODECS)
        plain = Output(answer_field(codec), (len(attributes["classes"]),), codec)
        return {plain.name: plain}
    return {name: _output(name, said, where) for name, said in attributes["outputs"].items()}


def _output(name: str, said: Mapping[str, Any], where: str) -> Output:
    shape = tuple(said["shape"])
    if not name.isidentifier() or name in CODED:
        raise ValueError(f"an output of the name {name!r}")
    if not shape or not all(type(n) is int and n > 0 for n in shape) or np.prod(shape, dtype=np.float64) > MOST_VALUES:
        raise ValueError(f"an output of the shape {shape}")
    return Output(name, shape, parse_codec(said["codec"], where, ALL_CODECS))


def prefix_of(outputs: Mapping[str, Output], name: str) -> str:
    """Return what the fields of an output begin with in a target store: nothing where there is one output."""
    return f"{name}/" if len(outputs) > 1 else ""


def output_of(outputs: Mapping[str, Output], field: str) -> Output | None:
    """Return the output whose codec a field lies under, None of a field that no codec was applied to."""
    head, *rest = field.split("/")
    if len(outputs) == 1:
        (only,) = outputs.values()
        return only if head in CODED or field == only.name else None
    if head not in outputs:
        return None
    return outputs[head] if not rest or rest[0] in CODED else None


def field_array(field: str, part: str) -> str:
    """Return the array's name of a field's part: "logits", "logits_range"."""
    return f"{field}_{part}" if part else field


def held_out_codec(codec: Codec) -> Codec:
    """Return the codec of held-out splits."""
    return CODECS["fp16"]() if codec.is_sparse else codec


def field_specs(field: str, codec: Codec, shape: tuple[int, ...], splits: tuple[str, ...]) -> dict[str, ArraySpec]:
    """Return the arrays of a field of `shape` (..., C) a row."""
    *leading, num_classes = shape

    def specs(codec: Codec, only: tuple[str, ...] | None) -> dict[str, ArraySpec]:
        return {
            field_array(field, name): ArraySpec((*leading, *part.tail), part.dtype, True, part.shuffle, only)
            for name, part in codec.parts(num_classes).items()
        }

    if not codec.is_sparse:
        return specs(codec, None)
    held_out = tuple(split for split in splits if split != "train")
    return {**specs(codec, ("train",)), **specs(held_out_codec(codec), held_out)}


def splits_with_features(splits: tuple[str, ...]) -> tuple[str, ...] | None:
    """Return the splits that a teacher's features are kept in, None for all: fold models have features of their own."""
    return tuple(split for split in splits if split != OUT_OF_FOLD) if OUT_OF_FOLD in splits else None


def fold_specs(splits: tuple[str, ...]) -> dict[str, ArraySpec]:
    """Return the array that says which fold model answered, where rows out of fold are kept."""
    return {FOLD: ArraySpec((), "uint8", per_view=False, splits=(OUT_OF_FOLD,))} if OUT_OF_FOLD in splits else {}


def answer_field(codec: Codec) -> str:
    """Return what the answers are called in a teacher store of this codec."""
    return VALUES if codec.is_real else LOGITS


@dataclass(frozen=True)
class Sentences:
    """What a store keeps of sentences of `length` pieces: `count` of each sample in a teacher's, one in a target store.

    A teacher's hypotheses, best first, have a score each, -inf where there are fewer.
    """

    length: int
    count: int
    num_pieces: int

    def specs(self, kind: str) -> dict[str, ArraySpec]:
        """Return the arrays that they lie in, by the kind of store."""
        dtype = "uint16" if self.num_pieces <= np.iinfo(np.uint16).max + 1 else "uint32"
        if kind == "target store":
            return {SENTENCE: ArraySpec((self.length,), dtype)}
        return {
            HYPOTHESES: ArraySpec((self.count, self.length), dtype, per_view=False),
            SCORES: ArraySpec((self.count,), "float32", per_view=False),
        }

    @property
    def json(self) -> dict[str, Any]:
        """What a store says of them."""
        return {"sentences": {"length": self.length, "count": self.count}}


def read_sentences(attributes: Mapping[str, Any]) -> Sentences | None:
    """Return what a store keeps of sentences, None where it has none.

    Raises: KeyError, TypeError, ValueError for attributes that say nothing of the kind.
    """
    if "sentences" not in attributes:
        return None
    length, count = attributes["sentences"]["length"], attributes["sentences"]["count"]
    if not all(type(n) is int and 0 < n < 1 << 20 for n in (length, count)):
        raise ValueError(f"{count} sentences of {length} pieces")
    return Sentences(length, count, len(attributes["classes"]))


@dataclass(frozen=True)
class Truth:
    """What a store keeps of what is true of its rows where a label does not say it: of each, `shape` numbers."""

    shape: tuple[int, ...]
    dtype: str  # float32, NaN where unknown, or int32, -1 where unknown

    @property
    def specs(self) -> dict[str, ArraySpec]:
        """The array that it lies in."""
        return {TARGETS: ArraySpec(self.shape, self.dtype, per_view=False)}

    @property
    def json(self) -> dict[str, Any]:
        """What a store says of it."""
        return {"targets": {"shape": list(self.shape), "dtype": self.dtype}}


def read_truth(attributes: Mapping[str, Any], outputs: Mapping[str, Output]) -> Truth | None:
    """Return what a store keeps of the truth of its rows, None where labels say it all.

    Raises: KeyError, TypeError, ValueError for attributes that say nothing of the kind.
    """
    if "targets" not in attributes:
        plain = next((each for each in outputs.values() if each.codec.is_real), None)
        return None if plain is None else Truth(plain.shape, "float32")
    shape, dtype = tuple(attributes["targets"]["shape"]), attributes["targets"]["dtype"]
    if dtype not in ("float32", "int32") or not all(type(n) is int and 0 < n < MOST_VALUES for n in shape):
        raise ValueError(f"targets {shape} of {dtype!r}")
    return Truth(shape, dtype)


def encode_field(field: str, codec: Codec, logits: Tensor, rows: RowKeys) -> dict[str, Tensor]:
    """Return a field's arrays by name: float [n, ..., C] -> as stored, on the logits' device."""
    return {field_array(field, part): values for part, values in codec.encode(logits, rows).items()}
