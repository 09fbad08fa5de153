"""Dense codecs: every class keeps a number of its own, 1 to 4 bytes of it.

A law holds for all: a class strictly below the row's maximum never becomes equal to it by rounding, however close it
is, so the first choice survives in any of them; true ties stay ties. A row with a NaN decodes to NaN.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from pipeline.store.codecs.base import Part, centred
from pipeline.views import RowKeys

FP16_BITS = 10  # stored bits of the significand
OCTAVE = 4  # ranges of companded8 in a factor of two: 9 % too wide on average


@dataclass(frozen=True)
class Centred16:
    """fp16 of z - max(z): 2 bytes a class, the choice up to about 100 classes."""

    kind: ClassVar[str] = "fp16"
    is_sparse: ClassVar[bool] = False
    is_real: ClassVar[bool] = False

    def parts(self, num_classes: int) -> dict[str, Part]:
        return {"": Part((num_classes,), "float16")}

    def encode(self, logits: Tensor, rows: RowKeys | None = None) -> dict[str, Tensor]:
        return {"": to_half(centred(logits))}

    def decode(self, stored: Mapping[str, Tensor], num_classes: int) -> Tensor:
        return stored[""].float()


@dataclass(frozen=True)
class Centred32:
    """fp32 of z - max(z): 4 bytes a class, for checks that need the teacher's own bits."""

    kind: ClassVar[str] = "fp32"
    is_sparse: ClassVar[bool] = False
    is_real: ClassVar[bool] = False

    def parts(self, num_classes: int) -> dict[str, Part]:
        return {"": Part((num_classes,), "float32")}

    def encode(self, logits: Tensor, rows: RowKeys | None = None) -> dict[str, Tensor]:
        return {"": centred(logits)}

    def decode(self, stored: Mapping[str, Tensor], num_classes: int) -> Tensor:
        return stored[""].float()


@dataclass(frozen=True)
class BitRound:
    """fp16 of z - max(z) with `keep` of its 10 bits, the rest zero so that they compress; any Zarr reader reads it.

    Source: Klöwer 2021, the rounding of numcodecs.BitRound (to nearest, ties to even).
    """

    keep: int = 6
    kind: ClassVar[str] = "bitround"
    is_sparse: ClassVar[bool] = False
    is_real: ClassVar[bool] = False

    def parts(self, num_classes: int) -> dict[str, Part]:
        return {"": Part((num_classes,), "float16", "bitshuffle")}

    def encode(self, logits: Tensor, rows: RowKeys | None = None) -> dict[str, Tensor]:
        dropped = FP16_BITS - self.keep
        lowest = -(2.0**15) * (2 - 2.0**-self.keep)  # with one bit FLOOR would round to -inf
        rounded = _round_bits(to_half(centred(logits).clamp_(min=lowest)), dropped)
        return {"": _apart(rounded, 1 << dropped)}

    def decode(self, stored: Mapping[str, Tensor], num_classes: int) -> Tensor:
        return stored[""].float()


@dataclass(frozen=True)
class Companded8:
    """One byte a class on a square-root scale: q = levels * sqrt((max - z) / range), 0 for the maximum alone.

    Steps widen with the distance from the maximum, as a class's weight in the divergence shrinks. The range is the
    least of 2^(e/4) nats that holds the row; e is one more byte a row, of which less than half is left on disk. Half
    the levels save an eighth to a fifth of the bytes for four times the divergence.
    """

    levels: int = 255
    kind: ClassVar[str] = "companded8"
    is_sparse: ClassVar[bool] = False
    is_real: ClassVar[bool] = False

    def parts(self, num_classes: int) -> dict[str, Part]:
        return {"": Part((num_classes,), "uint8", "noshuffle"), "range": Part((), "uint8", "noshuffle")}

    def encode(self, logits: Tensor, rows: RowKeys | None = None) -> dict[str, Tensor]:
        gaps = centred(logits).neg_()
        ranges = _ranges(gaps.device)
        exponents = torch.searchsorted(ranges[:-1], gaps.amax(-1))
        scale = self.levels / ranges[exponents].sqrt().unsqueeze(-1)
        codes = (gaps.sqrt() * scale).round_().maximum(gaps.sign_())  # 1 at least, however small the gap
        return {"": codes.int().to(torch.uint8), "range": exponents.to(torch.uint8)}  # by way of int: twice as fast

    def decode(self, stored: Mapping[str, Tensor], num_classes: int) -> Tensor:
        ranges = _ranges(stored[""].device)[stored["range"].int()]
        return stored[""].float().square_().mul_(ranges.unsqueeze(-1) / -(self.levels**2))


def _ranges(device: torch.device) -> Tensor:
    """Return every range of companded8, ascending: float32 [256]; the last is NaN, where rows with a NaN end up."""
    return torch.tensor([*(2 ** (e / OCTAVE) for e in range(255)), torch.nan], device=device)


def to_half(z: Tensor) -> Tensor:
    """Return centred logits as fp16, tiny gaps to the maximum as the least that fp16 has: float32 -> float16."""
    return _apart((z + 0.0).half(), 1)  # a true tie of 0.0 and -0.0 stays one: -0.0 + 0.0 is 0.0


def _apart(halves: Tensor, step: int) -> Tensor:
    """Put what rounding raised to the maximum `step` units of 2^-24 below it, in place.

    It is -0.0 by now, while the maximum is 0.0: as int16, the smallest of all against 0.
    """
    halves.view(torch.int16).clamp_(min=step - (1 << 15))
    return halves


def _round_bits(halves: Tensor, dropped: int) -> Tensor:
    """Return fp16 rounded to the nearest with `dropped` zero bits, ties to even."""
    if dropped == 0:
        return halves
    bits = halves.view(torch.int16)
    nearest = ((bits >> dropped) & 1).add_(bits).add_((1 << (dropped - 1)) - 1)
    return nearest.bitwise_and_(-(1 << dropped)).view(torch.float16)
