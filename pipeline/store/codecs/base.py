"""What a codec is: how a field's logits lie on disk, as one array or as a few, and back.

A codec is a frozen dataclass whose fields are its JSON. It sees tensors on any device, so that a GPU encodes where it
answered and only the small result travels; each row is encoded by itself, so that rows in any block size give the
same numbers. Logits are stored as z - max(z): the same distribution at every temperature, an exact top-1, and for
the same bits 3.5 times less error near the top than raw z.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, Literal, Protocol

from torch import Tensor

from pipeline.views import RowKeys

FLOOR = -60000.0  # fp16 ends at -65504; exp(-60000) is zero anyway, and -inf would make NaN of a zero-weight class

Shuffle = Literal["noshuffle", "shuffle", "bitshuffle"]


@dataclass(frozen=True)
class Part:
    """One array that a codec keeps of a field: `[V, N, ..., *tail]` where the field's logits are `[V, N, ..., C]`.

    With a `shuffle` its chunks are compressed (Blosc, zstd, that shuffle), without one they are plain.
    """

    tail: tuple[int, ...]
    dtype: str
    shuffle: Shuffle | None = None


class Codec(Protocol):
    """Encodes `[..., C]` logits and back. `is_sparse`: classes are left out, so a loss should ask for `sparse`.

    `is_real`: it is of real numbers, of which none is the highest.
    """

    kind: ClassVar[str]
    is_sparse: ClassVar[bool]
    is_real: ClassVar[bool]

    def parts(self, num_classes: int) -> dict[str, Part]:
        """Return the arrays by part name; "" is the field's own name, another is `<field>_<part>`."""
        ...

    def encode(self, logits: Tensor, rows: RowKeys | None = None) -> dict[str, Tensor]:
        """Return what is written, by part: float [B, ..., C] -> [B, ..., *tail] on the same device."""
        ...

    def decode(self, stored: Mapping[str, Tensor], num_classes: int) -> Tensor:
        """Return logits up to a constant a row: float32 [B, ..., C], on the device of what was stored."""
        ...


def centred(logits: Tensor) -> Tensor:
    """Return z - max(z) in float32, not below FLOOR: `[..., C] -> [..., C]`."""
    logits = logits.float()
    return (logits - logits.amax(-1, keepdim=True)).clamp_(min=FLOOR)
