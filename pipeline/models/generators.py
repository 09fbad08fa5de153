"""Networks that make pictures of noise and a class: a flow that takes many steps, and a generator that takes one.

Both read [B, P + C]: P normal numbers and the class as one of C, and answer with the P pixels of a square picture, in
the units in which they learned them. Trade: each step of a flow is a whole pass of its network, in return it learns
from pictures alone; a generator needs one pass, and somebody to tell it which picture goes with which noise.
"""

import math

import torch
from torch import Tensor, nn
from torch.nn import functional

from pipeline.models.layers import require_positive

TIMES = 32  # numbers that a time is told by, half of them sines
SLOWEST, FASTEST = 1.0, 100.0  # turns of these, in radians a unit of time
GOLDEN = (math.sqrt(5) - 1) / 2  # multiples of it fill [0, 1) evenly, however many there are
GROUPS = 4  # of a group norm, so that a picture's figures don't depend on its batch


def flow(
    *, num_classes: int, in_shape: tuple[int, ...], width: int = 24, steps: int = 16, method: str = "euler"
) -> nn.Module:
    """Return a flow from noise to pictures [B, P + C] -> [B, P], which answers in `steps` steps of "euler" or "heun".

    `num_classes` is P, the number of pixels. Heun's steps cost two passes each, the last one aside.
    Raises ValueError for sizes that don't fit. Source: Lipman 2023 (2210.02747); Liu 2023 (2209.03003).
    """
    require_positive(width=width, steps=steps)
    if method not in ("euler", "heun"):
        raise ValueError(f"method = {method!r}; expected 'euler' or 'heun'")
    return Flow(Velocity(width, *sizes(num_classes, in_shape)), steps, is_heun=method == "heun")


def generator(*, num_classes: int, in_shape: tuple[int, ...], width: int = 24) -> nn.Module:
    """Return a one-step generator [B, P + C] -> [B, P]; `num_classes` is P. Raises ValueError for what doesn't fit."""
    require_positive(width=width)
    return Generator(width, *sizes(num_classes, in_shape))


def sizes(pixels: int, in_shape: tuple[int, ...]) -> tuple[int, int]:
    """Return the side of the pictures and the number of classes. Raises ValueError where there are none such."""
    side, classes = math.isqrt(pixels), math.prod(in_shape) - pixels
    if side * side != pixels or side % 4:
        raise ValueError(f"{pixels} pixels; expected a square whose side is a multiple of 4")
    if classes < 1:
        raise ValueError(f"inputs of {math.prod(in_shape)} numbers; expected {pixels} of noise and a class behind them")
    return side, classes


class Flow(nn.Module):
    """A velocity that carries noise (time 0) to pictures (time 1).

    In training mode it answers with the noise as it is: what it then learns from is `training_loss`.
    """

    def __init__(self, velocity: "Velocity", steps: int, *, is_heun: bool) -> None:
        super().__init__()
        self.velocity, self.steps, self.is_heun = velocity, steps, is_heun

    def forward(self, inputs: Tensor) -> Tensor:
        """[B, P + C] -> [B, P]."""
        noise, classes = inputs[:, : self.velocity.pixels], inputs[:, self.velocity.pixels :]
        return noise if self.training else self.sampled(noise, classes)

    def sampled(self, noise: Tensor, classes: Tensor) -> Tensor:
        """Return the pictures at the end of the way from noise [B, P] for classes [B, C]: [B, P]."""
        picture, step = noise, 1 / self.steps
        for number in range(self.steps):
            here = self.velocity(picture, noise.new_full((len(noise),), number * step), classes)
            if self.is_heun and number + 1 < self.steps:
                there = noise.new_full((len(noise),), (number + 1) * step)
                here = (here + self.velocity(picture + step * here, there, classes)) / 2
            picture = picture + step * here
        return picture

    def training_loss(self, inputs: Tensor, pictures: Tensor) -> Tensor:
        """Return the mean squared error of the velocity from noise to pictures: [B, P + C], [B, P] -> [B].

        In training mode noise and times are drawn anew from torch's generator, for rows whose noise never changed
        would be learned by heart; in evaluation mode they are the row's own noise and a time by its place, so that a
        figure is the same each time. Rows without a picture cost 0.
        """
        noise, classes = inputs[:, : self.velocity.pixels], inputs[:, self.velocity.pixels :]
        is_known, pictures = pictures.isfinite().all(dim=1), pictures.nan_to_num()
        if self.training:
            noise, times = torch.randn_like(noise), torch.rand(len(noise), device=noise.device)
        else:
            times = (torch.arange(len(noise), device=noise.device) + 0.5) * GOLDEN % 1
        on_the_way = noise + times.unsqueeze(1) * (pictures - noise)
        found = self.velocity(on_the_way, times, classes)
        squares = (found.float() - (pictures - noise)).square().mean(dim=1)
        return torch.where(is_known, squares, 0.0)


class Velocity(nn.Module):
    """Where a picture on its way goes: pictures [B, P], times [B], classes [B, C] -> [B, P].

    Two levels of a U, at a half and a quarter of the picture's side, and between them a layer that sees all of it.
    Four pixels are one place of four channels from the start: full resolution is what costs most. Source: Ronneberger
    2015, with the times as in Ho 2020.
    """

    def __init__(self, width: int, side: int, classes: int) -> None:
        super().__init__()
        if width % GROUPS:
            raise ValueError(f"width = {width!r}; expected a multiple of {GROUPS}")
        told, below = 2 * width, 2 * width * (side // 4) ** 2
        self.side, self.pixels = side, side * side
        self.told = nn.Sequential(nn.Linear(TIMES + classes, told), nn.SiLU())
        self.enter = nn.Conv2d(4, width, 3, padding=1)
        self.high = ToldBlock(width, width, told)
        self.down = nn.Conv2d(width, 2 * width, 2, stride=2)
        self.low = ToldBlock(2 * width, 2 * width, told)
        self.all = nn.Sequential(nn.Linear(below, 4 * width), nn.SiLU(), nn.Linear(4 * width, below))
        self.up = nn.ConvTranspose2d(2 * width, width, 2, stride=2)
        self.joined = ToldBlock(2 * width, width, told)
        self.leave = nn.Conv2d(width, 4, 3, padding=1)
        nn.init.zeros_(self.leave.weight)  # at first it goes nowhere

    def forward(self, pictures: Tensor, times: Tensor, classes: Tensor) -> Tensor:
        told = self.told(torch.cat([turns(times), classes], dim=1))
        places = functional.pixel_unshuffle(pictures.reshape(-1, 1, self.side, self.side), 2)
        high = self.high(self.enter(places.contiguous(memory_format=torch.channels_last)), told)
        low = self.low(self.down(high), told)
        low = low + self.all(low.flatten(1)).reshape(low.shape)
        joined = self.joined(torch.cat([high, self.up(low)], dim=1), told)
        return functional.pixel_shuffle(self.leave(joined), 2).flatten(1)


class ToldBlock(nn.Module):
    """shortcut(x) + two 3x3 convolutions, told of time and class: [B, in, H, W], [B, D] -> [B, out, H, W]."""

    def __init__(self, in_channels: int, out_channels: int, told: int) -> None:
        super().__init__()
        self.first = nn.Sequential(
            nn.Conv2d(in_channels, out_channels, 3, padding=1), nn.GroupNorm(GROUPS, out_channels)
        )
        self.second = nn.Sequential(
            nn.Conv2d(out_channels, out_channels, 3, padding=1), nn.GroupNorm(GROUPS, out_channels), nn.SiLU()
        )
        self.told = nn.Linear(told, out_channels)
        same = in_channels == out_channels
        self.shortcut = nn.Identity() if same else nn.Conv2d(in_channels, out_channels, 1)

    def forward(self, x: Tensor, told: Tensor) -> Tensor:
        inner = functional.silu(self.first(x)) + self.told(told)[:, :, None, None]
        return torch.add(self.shortcut(x), self.second(inner))


class Generator(nn.Module):
    """A straight map, and what a layer that sees all adds in two doublings of the side: [B, P + C] -> [B, P].

    What a flow makes of noise is near to straight in it: without that map, few rows are learned by heart instead.
    """

    def __init__(self, width: int, side: int, classes: int) -> None:
        super().__init__()
        self.side, self.pixels, quarter = side, side * side, side // 4
        self.straight = nn.Linear(side * side + classes, side * side)
        self.seen = nn.Sequential(
            nn.Linear(side * side + classes, 8 * width), nn.LayerNorm(8 * width), nn.ReLU(inplace=True)
        )
        self.drawn = nn.Sequential(nn.Linear(8 * width, 2 * width * quarter**2), nn.ReLU(inplace=True))
        self.low = nn.Sequential(
            nn.Unflatten(1, (2 * width, quarter, quarter)),
            nn.Conv2d(2 * width, 4 * width, 3, padding=1),
            nn.PixelShuffle(2),
            nn.ReLU(inplace=True),
        )
        self.high = nn.Sequential(nn.Conv2d(width, width, 3, padding=1), nn.ReLU(inplace=True))
        self.leave = nn.Sequential(nn.Conv2d(width, 4, 3, padding=1), nn.PixelShuffle(2), nn.Flatten())

    def forward(self, inputs: Tensor) -> Tensor:
        low = self.low(self.drawn(self.seen(inputs)))
        return torch.add(self.straight(inputs), self.leave(low + self.high(low)))


def turns(times: Tensor) -> Tensor:
    """Return times as sines and cosines of turns from slow to fast: [B] -> [B, TIMES]."""
    steps = torch.arange(TIMES // 2, device=times.device) / (TIMES // 2 - 1)
    angles = times.unsqueeze(1) * SLOWEST * (FASTEST / SLOWEST) ** steps
    return torch.cat([angles.sin(), angles.cos()], dim=1)
