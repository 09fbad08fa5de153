"""Codecs of real numbers in standard units: as they are, or in half precision, which keeps 0.05 % of each."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from pipeline.store.codecs.base import Part
from pipeline.views import RowKeys

HIGHEST = 65504.0  # that fp16 has


@dataclass(frozen=True)
class Real32:
    """fp32: 4 bytes a number."""

    kind: ClassVar[str] = "real32"
    is_sparse: ClassVar[bool] = False
    is_real: ClassVar[bool] = True

    def parts(self, num_classes: int) -> dict[str, Part]:
        return {"": Part((num_classes,), "float32")}

    def encode(self, logits: Tensor, rows: RowKeys | None = None) -> dict[str, Tensor]:
        return {"": logits.float()}

    def decode(self, stored: Mapping[str, Tensor], num_classes: int) -> Tensor:
        return stored[""].float()


@dataclass(frozen=True)
class Real16:
    """fp16: 2 bytes a number, those beyond 65,504 standard deviations at that end."""

    kind: ClassVar[str] = "real16"
    is_sparse: ClassVar[bool] = False
    is_real: ClassVar[bool] = True

    def parts(self, num_classes: int) -> dict[str, Part]:
        return {"": Part((num_classes,), "float16")}

    def encode(self, logits: Tensor, rows: RowKeys | None = None) -> dict[str, Tensor]:
        return {"": logits.float().clamp(-HIGHEST, HIGHEST).half()}

    def decode(self, stored: Mapping[str, Tensor], num_classes: int) -> Tensor:
        return stored[""].float()
