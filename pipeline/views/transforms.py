"""Batched transforms and mixing: pure functions of (images, parameters), parameters of random words.

A transform is a frozen dataclass: its fields are its recipe keys, `num_words` says how many random 32-bit words a
row needs, `parameters` turns words into realised float64 numbers (they go into the row's digest), `apply` does the
work on `[B, C, H, W]`. Change what `apply` or `parameters` computes and raise `version`: old stores are then refused.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar, Protocol

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from pipeline.views.draws import uniform


class Transform(Protocol):
    """What the view plan asks of a transform."""

    version: ClassVar[int]
    moves: ClassVar[bool]  # what a picture shows to other places
    num_words: ClassVar[int]

    def parameters(self, words: np.ndarray) -> np.ndarray:
        """Return the realised parameters: uint32 [B, num_words] -> float64 [B, P]."""
        ...

    def apply(self, images: Tensor, parameters: Tensor) -> Tensor:
        """Return the transformed images: uint8 or float [B, C, H, W], float64 [B, P] -> [B, C, H, W]."""
        ...


def as_float(images: Tensor) -> Tensor:
    """Return images as float32 in [0, 1]; floats pass unchanged."""
    return images.float().div_(255) if images.dtype == torch.uint8 else images


def _per_row(values: Tensor, images: Tensor) -> Tensor:
    return values.to(images.device, torch.float32)[:, None, None, None]


@dataclass(frozen=True)
class Shift:
    """Move the picture by up to `pixels` in each direction, zeros coming in: a crop of the padded picture."""

    pixels: int = 2
    version: ClassVar[int] = 1
    moves: ClassVar[bool] = True
    num_words: ClassVar[int] = 2

    def parameters(self, words: np.ndarray) -> np.ndarray:
        return np.floor(uniform(words) * (2 * self.pixels + 1))

    def apply(self, images: Tensor, parameters: Tensor) -> Tensor:
        height, width = images.shape[-2:]
        reach = min(self.pixels, max(height, width))  # farther away only zeros come in, at a price of their square
        windows = F.pad(images, (reach,) * 4).unfold(2, height, 1).unfold(3, width, 1)
        moved = (parameters.to(images.device) - self.pixels).clamp(-reach, reach) + reach
        top, left = moved.long().unbind(1)
        return windows[torch.arange(len(images), device=images.device), :, top, left]


@dataclass(frozen=True)
class Flip:
    """Mirror left to right with the given probability."""

    probability: float = 0.5
    version: ClassVar[int] = 1
    moves: ClassVar[bool] = True
    num_words: ClassVar[int] = 1

    def parameters(self, words: np.ndarray) -> np.ndarray:
        return (uniform(words) < self.probability).astype(np.float64)

    def apply(self, images: Tensor, parameters: Tensor) -> Tensor:
        mirrored = parameters[:, 0].to(images.device).bool()
        return torch.where(mirrored[:, None, None, None], images.flip(-1), images)


def _resample(images: Tensor, matrices: Tensor) -> Tensor:
    """Return images sampled bilinearly at affine positions, zeros outside: [B, C, H, W], [B, 2, 3] -> [B, C, H, W]."""
    pixels = as_float(images)
    matrices = matrices.to(images.device, torch.float32)
    grid = F.affine_grid(matrices, list(pixels.shape), align_corners=False)
    return F.grid_sample(pixels, grid, align_corners=False, padding_mode="zeros")


@dataclass(frozen=True)
class Rotate:
    """Turn by up to `degrees` either way about the centre."""

    degrees: float = 15.0
    version: ClassVar[int] = 1
    moves: ClassVar[bool] = True
    num_words: ClassVar[int] = 1

    def parameters(self, words: np.ndarray) -> np.ndarray:
        return (uniform(words) * 2 - 1) * self.degrees

    def apply(self, images: Tensor, parameters: Tensor) -> Tensor:
        radians = torch.deg2rad(parameters[:, 0])
        aspect = images.shape[-2] / images.shape[-1]
        cos, sin, zero = radians.cos(), radians.sin(), torch.zeros_like(radians)
        rows = [torch.stack([cos, -sin * aspect, zero], 1), torch.stack([sin / aspect, cos, zero], 1)]
        return _resample(images, torch.stack(rows, 1))


@dataclass(frozen=True)
class Crop:
    """Cut out a box of between `min_scale` and 1 of each side, anywhere inside, and enlarge it to full size."""

    min_scale: float = 0.7
    version: ClassVar[int] = 1
    moves: ClassVar[bool] = True
    num_words: ClassVar[int] = 3

    def parameters(self, words: np.ndarray) -> np.ndarray:
        draws = uniform(words)
        scale = self.min_scale + (1 - self.min_scale) * draws[:, :1]
        return np.concatenate([scale, (draws[:, 1:] * 2 - 1) * (1 - scale)], axis=1)

    def apply(self, images: Tensor, parameters: Tensor) -> Tensor:
        scale, x, y = parameters.unbind(1)
        zero = torch.zeros_like(scale)
        return _resample(images, torch.stack([torch.stack([scale, zero, x], 1), torch.stack([zero, scale, y], 1)], 1))


@dataclass(frozen=True)
class Erase:
    """Blacken a box of up to `max_share` of each side, with the given probability. Source: Zhong 2020, simplified."""

    probability: float = 0.5
    max_share: float = 0.4
    version: ClassVar[int] = 1
    moves: ClassVar[bool] = False
    num_words: ClassVar[int] = 5

    def parameters(self, words: np.ndarray) -> np.ndarray:
        draws = uniform(words)
        sides = draws[:, 1:3] * self.max_share * (draws[:, :1] < self.probability)
        return np.concatenate([draws[:, 3:5] * (1 - sides), sides], axis=1)

    def apply(self, images: Tensor, parameters: Tensor) -> Tensor:
        inside = _boxes(parameters, images)
        return images.masked_fill(inside, 0)


def _boxes(parameters: Tensor, images: Tensor) -> Tensor:
    """Return masks of boxes given as shares (top, left, height, width) of the picture: [B, 4] -> bool [B, 1, H, W]."""
    height, width = images.shape[-2:]
    sizes = torch.tensor([height, width], device=images.device)
    corners = parameters.to(images.device)
    start = (corners[:, :2] * sizes).round()
    stop = ((corners[:, :2] + corners[:, 2:]) * sizes).round()
    y, x = torch.arange(height, device=images.device), torch.arange(width, device=images.device)
    rows = (y >= start[:, :1]) & (y < stop[:, :1])
    columns = (x >= start[:, 1:]) & (x < stop[:, 1:])
    return (rows[:, :, None] & columns[:, None, :])[:, None]


def _exact_mean(pixels: Tensor) -> Tensor:
    """Return each picture's mean, summed in whole numbers: floats are added in an order that batch and threads change.

    float32 [B, C, H, W] in [0, 1] -> float32 [B, 1, 1, 1].
    """
    total = (pixels.double() * 2**30).long().sum(dim=(1, 2, 3), keepdim=True)
    return (total.double() / (2**30 * pixels[0].numel())).float()


@dataclass(frozen=True)
class Brightness:
    """Multiply by a factor of 1 ± `amount`, clamped to [0, 1]."""

    amount: float = 0.2
    version: ClassVar[int] = 1
    moves: ClassVar[bool] = False
    num_words: ClassVar[int] = 1

    def parameters(self, words: np.ndarray) -> np.ndarray:
        return 1 + (uniform(words) * 2 - 1) * self.amount

    def apply(self, images: Tensor, parameters: Tensor) -> Tensor:
        return (as_float(images) * _per_row(parameters[:, 0], images)).clamp(0, 1)


@dataclass(frozen=True)
class Contrast:
    """Scale the distance from the picture's mean by a factor of 1 ± `amount`, clamped to [0, 1]."""

    amount: float = 0.2
    version: ClassVar[int] = 1
    moves: ClassVar[bool] = False
    num_words: ClassVar[int] = 1

    def parameters(self, words: np.ndarray) -> np.ndarray:
        return 1 + (uniform(words) * 2 - 1) * self.amount

    def apply(self, images: Tensor, parameters: Tensor) -> Tensor:
        pixels = as_float(images)
        mean = _exact_mean(pixels)
        return (mean + (pixels - mean) * _per_row(parameters[:, 0], images)).clamp(0, 1)


TRANSFORMS: dict[str, Callable[..., Transform]] = {
    "shift": Shift,
    "crop": Crop,
    "flip": Flip,
    "rotate": Rotate,
    "erase": Erase,
    "brightness": Brightness,
    "contrast": Contrast,
}


@dataclass(frozen=True)
class Mix:
    """Mix each row of the last `views` views with a partner that the plan draws; the share is Beta(alpha, alpha).

    `mixup` blends pixels (Zhang 2018); `cutmix` pastes a box of the partner (Yun 2019), its share exact in pixels.
    """

    kind: str = "mixup"
    views: int = 1
    alpha: float = 1.0
    version: ClassVar[int] = 1
    num_words: ClassVar[int] = 4

    def parameters(self, words: np.ndarray) -> np.ndarray:
        """Return (partner draw in [0, 1), share kept, box centre y, x) of each row: uint32 [B, 4] -> float64 [B, 4]."""
        from scipy.special import betaincinv

        draws = uniform(words)
        draws[:, 1] = betaincinv(self.alpha, self.alpha, draws[:, 1])
        return draws

    def apply(self, images: Tensor, partners: Tensor, parameters: Tensor) -> tuple[Tensor, Tensor]:
        """Return mixed images and the share each row kept: float [B, C, H, W] twice -> [B, C, H, W], float32 [B]."""
        share = parameters[:, 1].to(images.device, torch.float32)
        if self.kind == "mixup":
            kept = share[:, None, None, None]
            return kept * images + (1 - kept) * partners, share
        side = (1 - parameters[:, 1:2]).sqrt().expand(-1, 2)
        inside = _boxes(torch.cat([parameters[:, 2:] * (1 - side), side], 1), images)
        return torch.where(inside, partners, images), 1 - inside.float().mean(dim=(1, 2, 3))
