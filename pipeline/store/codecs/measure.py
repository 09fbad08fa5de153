"""What a codec does to given logits: its error as a divergence, and its bytes on disk. Both are measured, not promised.

Worked in float64 on the device of the logits, a few rows at a time.
"""

from collections.abc import Iterator, Mapping, Sequence

import numpy as np
import torch
from numcodecs import Blosc
from torch import Tensor

from pipeline.store.codecs.base import Codec, Part, Shuffle
from pipeline.views import RowKeys

LEVEL = 1  # of zstd: on a byte a class, 3 takes more bytes (it finds matches that don't pay) at a tenth of the speed
SHUFFLES: dict[Shuffle, int] = {"noshuffle": Blosc.NOSHUFFLE, "shuffle": Blosc.SHUFFLE, "bitshuffle": Blosc.BITSHUFFLE}

ELEMENTS = 1 << 20  # compared at once: a few arrays of 8 MB
TAILS = ("_p999", "_worst")  # ends of the names of figures whose largest counts, of others the mean
OF_CLASSES = {"agreement", *(f"kl_t{t}_{figure}" for t in (1, 4) for figure in ("mean", "p999", "worst"))}
ERRORS = ({*OF_CLASSES}, {"rmse", "abs_worst"})  # the names of the figures, of classes and of reals


def measure_error(codec: Codec, logits: Tensor, rows: RowKeys | None = None) -> dict[str, float]:
    """Return what the codec does to these logits: KL(before ‖ after) in nats at T=1 and T=4, and top-1 agreement.

    float [B, ..., C] -> kl_t1_mean, kl_t1_p999, kl_t1_worst, the same for t4, agreement, rows. A class that random
    draws missed makes its KL a large number, finite all the same. Of real numbers: rmse, abs_worst, rows.
    """
    stored = codec.encode(logits, rows)
    if codec.is_real:
        return _real_error(logits, codec.decode(stored, logits.shape[-1]))
    found = [_compare(logits[part], _decode(codec, stored, part, logits)) for part in _slices(logits)]
    agreement, *divergences = (torch.cat(column).cpu().numpy() for column in zip(*found, strict=True))
    error: dict[str, float] = {"rows": len(agreement), "agreement": float(agreement.mean())}
    for temperature, kl in zip((1, 4), divergences, strict=True):
        error[f"kl_t{temperature}_mean"] = float(kl.mean())
        error[f"kl_t{temperature}_p999"] = float(np.quantile(kl, 0.999))
        error[f"kl_t{temperature}_worst"] = float(kl.max())
    return error


def _real_error(before: Tensor, after: Tensor) -> dict[str, float]:
    errors = (after.double() - before.double()).abs()
    return {"rows": len(before), "rmse": errors.square().mean().sqrt().item(), "abs_worst": errors.max().item()}


def _slices(logits: Tensor) -> Iterator[slice]:
    step = max(1, ELEMENTS // max(1, logits[0].numel()))
    return (slice(start, start + step) for start in range(0, len(logits), step))


def _decode(codec: Codec, stored: dict[str, Tensor], part: slice, logits: Tensor) -> Tensor:
    return codec.decode({name: values[part] for name, values in stored.items()}, logits.shape[-1])


def _compare(before: Tensor, after: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return whether the first choice is the same, and KL at T=1 and at T=4: [b, ..., C] twice -> three [rows]."""
    before, after = before.double().flatten(0, -2), after.double().flatten(0, -2)
    same = (before.argmax(-1) == after.argmax(-1)).double()
    return same, _divergence(before, after), _divergence(before / 4, after / 4)


def _divergence(before: Tensor, after: Tensor) -> Tensor:
    p, q = before.log_softmax(-1), after.log_softmax(-1)
    terms = torch.where(p > -800, p.exp() * (p - q), 0.0)  # below, p is 0 in float64, and 0 * -inf would be NaN
    return terms.sum(-1).clamp(min=0)


def errors_together(errors: Mapping[str, dict[str, float]]) -> dict[str, float]:
    """Return the errors of several outputs of the same rows as one, their figures called "output/figure"."""
    if len(errors) == 1:
        return next(iter(errors.values()))
    rows = max(error["rows"] for error in errors.values())
    figures = {
        f"{name}/{key}": value for name, error in errors.items() for key, value in error.items() if key != "rows"
    }
    return {**figures, "rows": rows}


def is_error(figures: Mapping[str, float]) -> bool:
    """Whether these are a codec's figures, or those of several outputs'."""
    named: dict[str, set[str]] = {}
    for name in figures:
        output, _, figure = name.rpartition("/")
        named.setdefault(output, set()).add(figure)
    counted = named.get("", set())
    if "rows" not in counted:
        return False
    counted.discard("rows")
    return all(names in ERRORS for output, names in named.items() if output or names) and len(figures) > 1


def combine_errors(errors: Sequence[dict[str, float]]) -> dict[str, float]:
    """Return one error for many blocks: means weighted by rows, the largest of the tails, the sum of the rows.

    The mean of `rmse` is the root of that of its squares.
    """
    rows = sum(error["rows"] for error in errors)
    names = sorted(name for name in errors[0] if name != "rows")

    def mean(key: str) -> float:
        power = 2 if key.endswith("rmse") else 1
        return (sum(error[key] ** power * error["rows"] for error in errors) / rows) ** (1 / power)

    means = {key: mean(key) for key in names if not key.endswith(TAILS)}
    return {**means, **{key: max(error[key] for error in errors) for key in names if key.endswith(TAILS)}, "rows": rows}


def packed_bytes(codec: Codec, logits: Tensor, rows: RowKeys | None = None) -> float:
    """Return the bytes a row on disk if these rows make one chunk, without checksums: float [B, ..., C] -> bytes."""
    parts, stored = codec.parts(logits.shape[-1]), codec.encode(logits, rows)
    return sum(_chunk_bytes(parts[name], values.cpu().numpy()) for name, values in stored.items()) / len(logits)


def _chunk_bytes(part: Part, values: np.ndarray) -> int:
    if part.shuffle is None:
        return values.nbytes
    content = np.ascontiguousarray(values).reshape(-1).view(np.uint8)
    return len(blosc(part.dtype, part.shuffle).encode(content))


def blosc(dtype: str, shuffle: Shuffle) -> Blosc:
    """Return the compressor of a part's chunks, for their bytes: what Zarr's BloscCodec makes of the same options."""
    return Blosc("zstd", LEVEL, SHUFFLES[shuffle], typesize=np.dtype(dtype).itemsize)
