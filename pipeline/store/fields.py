"""Fields and their arrays: which arrays a field has under a codec, in which splits.

A sparse codec is for what students stream. Held-out splits are small, and everything judged there (temperatures,
fusion weights, NLL) needs every class, so they stay dense whatever the codec.
"""

from torch import Tensor

from pipeline.store.codecs import CODECS, Codec
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


def target_specs(codec: Codec, num_outputs: int) -> dict[str, ArraySpec]:
    """Return the array of what is true of the rows, none of classes: their labels say it."""
    return {TARGETS: ArraySpec((num_outputs,), "float32", per_view=False)} if codec.is_real else {}


def encode_field(field: str, codec: Codec, logits: Tensor, rows: RowKeys) -> dict[str, Tensor]:
    """Return a field's arrays by name: float [n, ..., C] -> as stored, on the logits' device."""
    return {field_array(field, part): values for part, values in codec.encode(logits, rows).items()}
