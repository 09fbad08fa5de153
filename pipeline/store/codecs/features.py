"""How a teacher's features lie on disk: fewer bytes a row, for an error that is measured on the features themselves.

A feature codec is a frozen dataclass whose fields are its JSON. `fit` looks once at a sample and returns the codec with
what it found there, small float32 arrays to be stored beside the rows: from the JSON and these, `restore` encodes and
decodes the same bits at any time. Each row is encoded by itself: blocks of any size give the same bits.

Some codecs project first (pca, random), all then keep the numbers as fp16 or as one byte on a grid per channel. Of
features of D channels, each says by `part(D)` what lies on disk and by `shapes(D)` what arrays a fit leaves, both
before any fit; `fit(sample)` takes float [n, D] and raises StillroomError when it isn't finite.
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any, ClassVar

import numpy as np
from torch import Tensor

from pipeline.errors import StillroomError, unknown_name
from pipeline.store.codecs.base import Part
from pipeline.store.codecs.feature_numbers import (
    FP16_BITS,
    Arrays,
    Dtype,
    beside,
    exact_product,
    fit_grid,
    from_grid,
    grid_shapes,
    principal_components,
    project,
    random_directions,
    round_bits,
    to_grid,
)

FP16_LARGEST = 65504  # the last finite number


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
        return grid_shapes(width, "uint8")

    def fit(self, sample: Tensor, *, where: str = "features") -> "Fitted":
        sample = _checked(sample, where)
        return Fitted(self, sample.shape[1], fit_grid(sample))


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
        return {"mean": (width,), "components": (dims, width), **grid_shapes(dims, self.dtype)}

    def fit(self, sample: Tensor, *, where: str = "features") -> "Fitted":
        sample = _checked(sample, where)
        projection = principal_components(sample, self.dims)
        grid = fit_grid(project(sample, projection)) if self.dtype == "uint8" else {}
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
        return {"components": (dims, width), **grid_shapes(dims, self.dtype)}

    def fit(self, sample: Tensor, *, where: str = "features") -> "Fitted":
        sample = _checked(sample, where)
        projection = random_directions(sample.shape[1], self.dims, self.seed)
        grid = fit_grid(project(sample, projection)) if self.dtype == "uint8" else {}
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
        numbers = project(features, self.arrays) if "components" in self.arrays else features.float()
        if "step" in self.arrays:
            return to_grid(numbers, self.arrays)
        halves = numbers.float().half()  # by way of fp32 on every device: rounded twice, alike
        if isinstance(self.codec, BitRound):
            halves = round_bits(halves, self.codec.keep)
        _refuse_overflow(halves, numbers, where)
        return halves

    def decode(self, stored: Tensor) -> Tensor:
        """Return the numbers that were stored: [B, k] -> float32 [B, k], on the same device."""
        return from_grid(stored, self.arrays) if "step" in self.arrays else stored.float()

    def reconstruct(self, decoded: Tensor) -> Tensor | None:
        """Return features of D channels again, or None where there's no way back: float32 [B, k] -> float32 [B, D]."""
        if "components" not in self.arrays:
            return decoded
        if "mean" not in self.arrays:
            return None
        return (exact_product(decoded, self.arrays["components"].T) + beside(decoded, self.arrays["mean"])).float()


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
