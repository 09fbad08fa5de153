"""Any torchvision v2 transform as a view: general and slow, one row at a time in a forked, freshly seeded generator.

The batched transforms beside this file are the fast path; this one is for whatever they don't offer.
"""

import importlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from pipeline.errors import StillroomError, unknown_name

Pipeline = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class TorchvisionPipeline:
    """A v2 transform by class name with its options, or a whole pipeline by import path `package.module:attribute`.

    The digest of a row holds its seed, the options and torchvision's release, since a release may draw differently.
    """

    name: str
    options: tuple[tuple[str, Any], ...] = ()
    release: str = ""
    version: ClassVar[int] = 1
    moves: ClassVar[bool] = True  # for all we know
    num_words: ClassVar[int] = 2

    @classmethod
    def from_options(cls, name: str, **options: Any) -> "TorchvisionPipeline":
        """Return the transform, built once to prove that it can be. Raises StillroomError with near names."""
        transform = cls.described(name, **options)
        transform.build()
        return transform

    @classmethod
    def described(cls, name: str, **options: Any) -> "TorchvisionPipeline":
        """Return the transform unbuilt: an import path that a store names is not imported by reading the store."""
        import torchvision

        release = ".".join(torchvision.__version__.split(".")[:2])
        frozen = tuple(sorted((key, tuple(v) if isinstance(v, list) else v) for key, v in options.items()))
        return cls(name, frozen, release)

    @property
    def is_imported(self) -> bool:
        """Whether it is code at an import path, as opposed to one of torchvision's own."""
        return ":" in self.name

    def build(self) -> Pipeline:
        """Return the torchvision callable: uint8 [C, H, W] -> [C, H, W]."""
        if self.is_imported:
            return _imported(self.name)
        from torchvision.transforms import v2

        known = (
            [name for name in v2.__all__ if isinstance(getattr(v2, name, None), type)]
            if hasattr(v2, "__all__")
            else (
                [
                    name
                    for name, value in vars(v2).items()
                    if isinstance(value, type) and issubclass(value, v2.Transform)
                ]
            )
        )
        if self.name not in known:
            raise unknown_name("views.transforms", "torchvision.transforms.v2 class", self.name, known)
        try:
            return getattr(v2, self.name)(**dict(self.options))
        except Exception as error:  # whatever torchvision's code makes of a recipe's options
            raise StillroomError(
                f"views.transforms: {self.name} found {dict(self.options)}; expected options it accepts; {error}"
            ) from error

    def parameters(self, words: np.ndarray) -> np.ndarray:
        """Return one seed of 53 bits a row, exact in a float64: uint32 [B, 2] -> float64 [B, 1]."""
        high, low = words[:, :1].astype(np.uint64), words[:, 1:].astype(np.uint64)
        return ((high << np.uint64(21)) ^ low).astype(np.float64)

    def apply(self, images: Tensor, parameters: Tensor) -> Tensor:
        """Return each image sent through the pipeline under its own seed; the global generator is left alone."""
        pipeline, rows = self.build(), []
        with torch.random.fork_rng(devices=[]):
            for image, seed in zip(images.cpu(), parameters[:, 0].long().tolist(), strict=True):
                torch.default_generator.manual_seed(seed)  # not torch.manual_seed: that would reseed a GPU too
                rows.append(pipeline(image))
        stacked = torch.stack(rows).to(images.device)
        if stacked.shape != images.shape:
            raise StillroomError(
                f"views.transforms: {self.name} gave pictures of shape {tuple(stacked.shape[1:])}; "
                f"expected {tuple(images.shape[1:])}; add a resize to the pipeline"
            )
        return stacked


def _imported(path: str) -> Pipeline:
    module, _, attribute = path.partition(":")
    try:
        pipeline = getattr(importlib.import_module(module), attribute)
    except Exception as error:  # the module may be anybody's code
        raise StillroomError(
            f"views.transforms: found {path!r}; expected module:attribute of a v2 pipeline; {error}"
        ) from error
    if not callable(pipeline):
        raise StillroomError(f"views.transforms: {path!r} is a {type(pipeline).__name__}; expected a callable; name it")
    return pipeline
