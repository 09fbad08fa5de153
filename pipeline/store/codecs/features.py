"""How a teacher's features lie on disk: fewer bytes a row, for an error that is measured on the features themselves.

A feature codec is a frozen dataclass whose fields are its JSON. `fit` looks once at a sample and returns the codec with
what it found there, small float32 arrays to be stored beside the rows: from the JSON and these, `restore` encodes and
decodes the same bits at any time. Each row is encoded by itself: blocks of any size give the same bits.

Some codecs project first (pca, random), all then keep the numbers as fp16 or as one byte on a grid per channel. Of
features of D channels, each says by `part(D)` what lies on disk and by `shapes(D)` what arrays a fit leaves, both
before any fit; `fit(sample)` takes float [n, D] and raises StillroomError when it isn't finite.
"""

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any, ClassVar, Literal

import numpy as np
import torch
from torch import Tensor

from pipeline.errors import StillroomError, unknown_name
from pipeline.store.codecs.base import Part

Arrays = dict[str, np.ndarray]
Dtype = Literal["float16", "uint8"]

FP16_LARGEST, FP16_BITS = 65504, 10  # the last finite number; bits of the significand that are stored
LEVELS = 255  # steps of a byte
MARGIN = 0.25  # of the sample's range, on either side: steps 1.25 times as large cost less than tails that are clipped
FRACTION_BITS = 22  # of a projection's entries, which float32 holds exactly up to 4
FEW_ROWS = 1024  # projected at once: what they need in float64 stays in the cache, 2-4 times faster than 16,384 rows
PAIRED_ROWS = 512  # rows whose distances to one another are measured: 131,000 pairs


@dataclass(frozen=True)
class Half:
    """fp16, plain: 2 bytes a channel, off by 2^-11 of the number at most, 2^-25 where it is tiny; nothing to fit."""

    kind: ClassVar[str] = "fp16"

    def part(self, width: int) -> Part:
        return Part((width,), "float16")

    def shapes(self, width: int) -> dict[str, tuple[int, ...]]:
        return {}

    def fit(self, sample: Tensor, *, where: str = "features") -> "Fitted":
        return Fitted(self, _checked(sample, where).shape[1], {})


@dataclass(frozen=True)
class BitRound:
    """fp16 with `keep` of its 10 bits, the rest zero so that they compress: off by 2^-(keep + 1) of the number at most.

    Numbers below 2^-14, where fp16 has fewer bits, are off by no more than 2^-14 would be.
    Source: Klöwer 2021; the rounding of numcodecs.BitRound.
    """

    kind: ClassVar[str] = "bitround"
    keep: int = 7

    def part(self, width: int) -> Part:
        return Part((width,), "float16", "bitshuffle")

    def shapes(self, width: int) -> dict[str, tuple[int, ...]]:
        return {}

    def fit(self, sample: Tensor, *, where: str = "features") -> "Fitted":
        return Fitted(self, _checked(sample, where).shape[1], {})


@dataclass(frozen=True)
class Byte:
    """One byte a channel: 256 levels over the sample's range and a margin, each channel its own.

    Off by half a step at most within them; what lies outside is clipped to them. A channel that is constant in the
    sample decodes to that constant; one that is never negative has no level below zero, and zero exactly. Compressed
    without a shuffle: of features behind a ReLU that saves 13 % where 1 % of them are zero and 73 % where 86 % are;
    a shuffle of bits 9 % and 66 %.
    """

    kind: ClassVar[str] = "uint8"

    def part(self, width: int) -> Part:
        return Part((width,), "uint8", "noshuffle")

    def shapes(self, width: int) -> dict[str, tuple[int, ...]]:
        return _grid_shapes(width, "uint8")

    def fit(self, sample: Tensor, *, where: str = "features") -> "Fitted":
        sample = _checked(sample, where)
        return Fitted(self, sample.shape[1], _fit_grid(sample))


@dataclass(frozen=True)
class PCA:
    """Scores on the sample's first `dims` principal components, of all D where D is smaller.

    What decodes are the scores; `Fitted.reconstruct` goes back to D channels. Components beyond the sample's rank
    (fewer rows than dims, constant channels) complete an orthonormal basis. Fitting costs D³: seconds at D = 2048.
    """

    kind: ClassVar[str] = "pca"
    dims: int = 64
    dtype: Dtype = "float16"

    def part(self, width: int) -> Part:
        return Part((min(self.dims, width),), self.dtype)

    def shapes(self, width: int) -> dict[str, tuple[int, ...]]:
        dims = min(self.dims, width)
        return {"mean": (width,), "components": (dims, width), **_grid_shapes(dims, self.dtype)}

    def fit(self, sample: Tensor, *, where: str = "features") -> "Fitted":
        sample = _checked(sample, where)
        projection = _principal_components(sample, self.dims)
        grid = _fit_grid(_project(sample, projection)) if self.dtype == "uint8" else {}
        return Fitted(self, sample.shape[1], projection | grid)


@dataclass(frozen=True)
class RandomProjection:
    """`dims` random directions, orthonormal and scaled by sqrt(D / dims): inner products stay, in expectation.

    For losses on distances between rows; there's no way back to D channels. Dims above D are clipped to it, and all D
    of them keep every distance. The sample only gives D, and the range of the bytes when `dtype` is uint8.
    Source: Johnson and Lindenstrauss 1984; orthonormal rows vary less than Gaussian ones (Choromanski 2017).
    """

    kind: ClassVar[str] = "random"
    dims: int = 64
    seed: int = 0
    dtype: Dtype = "float16"

    def part(self, width: int) -> Part:
        return Part((min(self.dims, width),), self.dtype)

    def shapes(self, width: int) -> dict[str, tuple[int, ...]]:
        dims = min(self.dims, width)
        return {"components": (dims, width), **_grid_shapes(dims, self.dtype)}

    def fit(self, sample: Tensor, *, where: str = "features") -> "Fitted":
        sample = _checked(sample, where)
        projection = _random_directions(sample.shape[1], self.dims, self.seed)
        grid = _fit_grid(_project(sample, projection)) if self.dtype == "uint8" else {}
        return Fitted(self, sample.shape[1], projection | grid)


FeatureCodec = Half | BitRound | Byte | PCA | RandomProjection

FEATURE_CODECS: dict[str, type[FeatureCodec]] = {
    codec.kind: codec for codec in (Half, BitRound, Byte, PCA, RandomProjection)
}
ALLOWED: dict[str, range | tuple[str, ...]] = {
    "keep": range(1, FP16_BITS + 1),
    "dims": range(1, 1 << 16),
    "seed": range(1 << 32),
    "dtype": ("float16", "uint8"),
}


@dataclass(frozen=True, eq=False)
class Fitted:
    """A codec for features of `width` channels (D) with what it found in its sample: `arrays`, float32, to be stored.

    k is D, or the dims of a projection.
    """

    codec: FeatureCodec
    width: int
    arrays: Arrays

    def part(self, width: int) -> Part:
        """Return what lies on disk of features of `width` channels; the codec can say so before it is fitted."""
        return self.codec.part(width)

    def encode(self, features: Tensor, *, where: str = "features") -> Tensor:
        """Return what is written: float [B, D] -> [B, k] of part's dtype, on the same device.

        Raises: StillroomError when a feature isn't finite, or a number to be stored is more than fp16 holds.
        """
        if features.shape[-1] != self.width:
            raise ValueError(f"features of {features.shape[-1]} channels; fitted on {self.width}")
        _refuse_non_finite(features, where)
        numbers = _project(features, self.arrays) if "components" in self.arrays else features.float()
        if "step" in self.arrays:
            return _to_grid(numbers, self.arrays)
        halves = numbers.float().half()  # by way of fp32 on every device: rounded twice, alike
        if isinstance(self.codec, BitRound):
            halves = _round_bits(halves, self.codec.keep)
        _refuse_overflow(halves, numbers, where)
        return halves

    def decode(self, stored: Tensor) -> Tensor:
        """Return the numbers that were stored: [B, k] -> float32 [B, k], on the same device."""
        return _from_grid(stored, self.arrays) if "step" in self.arrays else stored.float()

    def reconstruct(self, decoded: Tensor) -> Tensor | None:
        """Return features of D channels again, or None where there's no way back: float32 [B, k] -> float32 [B, D]."""
        if "components" not in self.arrays:
            return decoded
        if "mean" not in self.arrays:
            return None
        return (exact_product(decoded, self.arrays["components"].T) + _on(decoded, self.arrays["mean"])).float()


def restore(
    codec_json: Mapping[str, Any], arrays: Mapping[str, np.ndarray], width: int, where: str = "features"
) -> Fitted:
    """Return the fitted codec that was stored: its JSON, its arrays, and D, the channels of the features.

    Raises: StillroomError for an unknown codec, or when an array is missing or has another shape than its codec says.
    """
    codec = parse_feature_codec(codec_json, where)
    shapes = codec.shapes(width)
    found = {name: tuple(array.shape) for name, array in arrays.items()}
    if found != shapes:
        raise StillroomError(
            f"{where}: arrays of shapes {found} for codec {codec.kind!r}; expected {shapes} at {width} channels; "
            f"run 'stillroom logits' to build the store again"
        )
    return Fitted(codec, width, {name: np.array(arrays[name], np.float32) for name in shapes})


def feature_codec_json(codec: FeatureCodec) -> dict[str, Any]:
    """Return what a codec is, as JSON: its kind and every option."""
    return {"kind": codec.kind, **asdict(codec)}


def parse_feature_codec(spec: str | Mapping[str, Any], where: str) -> FeatureCodec:
    """Return the codec that a name, or a table such as `{kind = "pca", dims = 32}`, stands for.

    Raises: StillroomError for an unknown kind or option (with near names) or a value that is not allowed.
    """
    options = {"kind": spec} if isinstance(spec, str) else dict(spec)
    kind = options.pop("kind", None)
    if not isinstance(kind, str) or kind not in FEATURE_CODECS:
        raise unknown_name(where, "feature codec", str(kind), FEATURE_CODECS)
    known = {field.name: field.default for field in fields(FEATURE_CODECS[kind])}
    for name, value in options.items():
        if name not in known:
            raise unknown_name(where, f"option of feature codec {kind!r}", name, known)
        if type(value) is not type(known[name]) or value not in ALLOWED[name]:
            raise StillroomError(
                f"{where}.{name}: found {value!r}; expected {_in_words(ALLOWED[name])}; "
                f"correct it, or leave it out for {known[name]!r}"
            )
    return FEATURE_CODECS[kind](**options)


def _in_words(allowed: range | tuple[str, ...]) -> str:
    if isinstance(allowed, range):
        return f"a whole number from {allowed.start} to {allowed.stop - 1}"
    return " or ".join(map(repr, allowed))


def measure_feature_error(fitted: Fitted, features: Tensor) -> dict[str, float]:
    """Return what the codec does to these features: float [B, D] -> rows, row_bytes (raw), and three errors.

    relative_error: the size of the error over the size of the features less their mean (over their own size where
    all rows are the same). cosine: the mean over rows that are not all zero. Both need D channels again, so that a
    random projection has neither. distance_error: the mean over pairs of rows of |d' - d| / d, with the Euclidean
    distances of what decodes.
    """
    decoded = fitted.decode(fitted.encode(features))
    rebuilt, before = fitted.reconstruct(decoded), features.double()
    part = fitted.part(fitted.width)
    error: dict[str, float] = {
        "rows": len(features),
        "row_bytes": math.prod(part.tail) * np.dtype(part.dtype).itemsize,
        "distance_error": _distance_error(before[:PAIRED_ROWS], decoded[:PAIRED_ROWS].double()),
    }
    if rebuilt is not None:
        error["relative_error"] = _relative_error(before, rebuilt.double())
        error["cosine"] = _cosine(before, rebuilt.double())
    return error


def _relative_error(before: Tensor, after: Tensor) -> float:
    size = (before - before.mean(0)).norm().item() or before.norm().item()
    return (after - before).norm().item() / (size or 1.0)


def _cosine(before: Tensor, after: Tensor) -> float:
    sizes = before.norm(dim=-1) * after.norm(dim=-1)
    cosines = (before * after).sum(-1) / sizes.where(sizes > 0, 1.0)
    directed = (before != 0).any(-1)
    return cosines[directed].mean().item() if directed.any() else 1.0


def _distance_error(before: Tensor, after: Tensor) -> float:
    old, new = torch.nn.functional.pdist(before), torch.nn.functional.pdist(after)
    apart = old > 0
    return ((new - old).abs()[apart] / old[apart]).mean().item() if apart.any() else 0.0


def exact_product(rows: Tensor, components: np.ndarray) -> Tensor:
    """Return rows @ components.T, each row's bits the same in any company: [B, D], [k, D] -> float64 [B, k].

    A matrix product adds up in an order that depends on the number of rows, on threads and on the device, and its
    last bits with it: rounded to fp16, some numbers would differ from block size to block size. Here every order gives
    the same sum, because every sum is exact: the components are multiples of 2^-22, each row is rounded to multiples
    of its own unit, and the unit is such that no sum of products needs more than the 53 bits of float64. At D = 512 it
    is 2^-25 of the row's largest value or less; float32 would keep that value to 2^-24.
    """
    _, exponent = math.frexp(np.abs(components).sum(1, dtype=np.float64).max())  # exact: multiples of 2^-22 again
    bits = 53 - FRACTION_BITS - exponent
    rows = rows.double()
    largest = rows.abs().amax(-1, keepdim=True).clamp(min=2.0**-200)
    mantissa, _ = torch.frexp(largest)
    unit = largest / mantissa * 2.0**-bits  # largest / mantissa is a power of two, exactly
    return (rows / unit).round() @ _on(rows, components).T * unit


def _project(features: Tensor, arrays: Arrays) -> Tensor:
    return torch.cat([_project_few(few, arrays) for few in features.split(FEW_ROWS)])


def _project_few(features: Tensor, arrays: Arrays) -> Tensor:
    rows = features.double()
    if "mean" in arrays:
        rows = rows - _on(rows, arrays["mean"])
    return exact_product(rows, arrays["components"])


def _principal_components(sample: Tensor, dims: int) -> Arrays:
    """Return the mean and the first components, the largest entry of each positive: float64 [n, D] -> [D], [k, D]."""
    mean = sample.mean(0)
    centred = sample - mean
    _, vectors = torch.linalg.eigh(centred.T @ centred / len(sample))  # from the smallest variance to the largest
    components = vectors.flip(1)[:, :dims].T
    largest = components.gather(1, components.abs().argmax(1, keepdim=True))
    return {"mean": mean.float().numpy(), "components": _multiples((components * largest.sign()).numpy())}


def _random_directions(width: int, dims: int, seed: int) -> Arrays:
    """Return k orthonormal directions drawn evenly from all of them, times sqrt(D / k): components [k, D]."""
    normal = np.random.default_rng(seed).standard_normal((width, min(dims, width)))
    basis, triangle = np.linalg.qr(normal)
    basis *= np.where(np.diag(triangle) < 0, -1, 1)  # LAPACK's choice of signs isn't part of the draw
    return {"components": _multiples(basis.T * math.sqrt(width / basis.shape[1]))}


def _multiples(components: np.ndarray) -> np.ndarray:
    return (np.round(components * 2**FRACTION_BITS) / 2**FRACTION_BITS).astype(np.float32)


def _fit_grid(numbers: Tensor) -> Arrays:
    low, high = numbers.amin(0), numbers.amax(0)
    margin = MARGIN * (high - low)
    low = torch.where(low < 0, low - margin, (low - margin).clamp(min=0))  # what is never negative keeps an exact 0
    high = torch.where(high > 0, high + margin, (high + margin).clamp(max=0))
    return {"low": low.float().numpy(), "step": ((high - low) / LEVELS).float().numpy()}


def _to_grid(numbers: Tensor, arrays: Arrays) -> Tensor:
    low, step = _on(numbers, arrays["low"]), _on(numbers, arrays["step"])
    steps = (numbers - low) / step.where(step > 0, math.inf)  # a constant channel has the one level 0
    return steps.round_().clamp_(0, LEVELS).to(torch.uint8)


def _from_grid(stored: Tensor, arrays: Arrays) -> Tensor:
    codes = stored.float()
    return codes * _on(codes, arrays["step"]) + _on(codes, arrays["low"])


def _round_bits(halves: Tensor, keep: int) -> Tensor:
    dropped = FP16_BITS - keep
    if dropped == 0:
        return halves
    bits = halves.view(torch.int16)
    nearest_even = ((bits >> dropped) & 1) + ((1 << (dropped - 1)) - 1)
    return ((bits + nearest_even) & -(1 << dropped)).view(torch.float16)


def _grid_shapes(width: int, dtype: Dtype) -> dict[str, tuple[int, ...]]:
    return {"low": (width,), "step": (width,)} if dtype == "uint8" else {}


def _on(like: Tensor, array: np.ndarray) -> Tensor:
    return torch.from_numpy(array).to(like.device, like.dtype)


def _checked(sample: Tensor, where: str) -> Tensor:
    """Return the sample to fit on: finite, [n, D], in float64, on the CPU whatever the teacher ran on."""
    if sample.ndim != 2 or not sample.numel():
        raise ValueError(f"a sample of shape {tuple(sample.shape)}; expected [n, D] with a row and a channel at least")
    _refuse_non_finite(sample, where)
    return sample.detach().cpu().double()


def _refuse_non_finite(features: Tensor, where: str) -> None:
    finite = features.isfinite()
    if not finite.all():
        row, channel = (~finite).nonzero()[0].tolist()
        raise StillroomError(
            f"{where}: channel {channel} is {features[row, channel].item()} in row {row}; expected finite numbers; "
            f"check the teacher's weights and inputs"
        )


def _refuse_overflow(halves: Tensor, numbers: Tensor, where: str) -> None:
    finite = halves.isfinite()
    if not finite.all():
        row, channel = (~finite).nonzero()[0].tolist()
        raise StillroomError(
            f"{where}: channel {channel} is {numbers[row, channel].item():.6g} in row {row}; expected at most "
            f"{FP16_LARGEST}, where fp16 ends; store one byte a channel: codec 'uint8', or dtype = 'uint8'"
        )
