"""Two networks for series: gated recurrent units, and dilated causal convolutions.

They read float32 [B, L, D], L steps of D numbers, or pictures [B, C, H, W] whose width is time, as that of a log-mel
spectrogram [B, 1, mel, time] is. Both end in the mean over steps, for the last one alone has forgotten how a long
series began; where what comes next is asked, `pool = "last"` takes that one. Trade: the recurrent one remembers as far
back as it learns to, the other as far as its receptive field, but that one computes all steps at once.
"""

from collections import OrderedDict

from torch import Tensor, nn
from torch.nn import functional

from pipeline.models.layers import initialise, require_positive


def gru(
    *,
    num_classes: int,
    in_shape: tuple[int, ...],
    width: int = 64,
    depth: int = 1,
    dropout: float = 0.0,
    pool: str = "mean",
) -> nn.Sequential:
    """Return [B, L, D] or [B, C, H, W] -> logits [B, num_classes] through `depth` layers of gated recurrent units.

    Raises ValueError for a size below one or another pool than "mean" and "last". Source: Cho 2014 (1406.1078).
    """
    require_positive(width=width, depth=depth, num_classes=num_classes)
    stage = Recurrent(series_width(in_shape), width, depth)
    return with_classifier("recurrent", stage, width, num_classes, dropout, pool)


def temporal_cnn(
    *,
    num_classes: int,
    in_shape: tuple[int, ...],
    width: int = 64,
    depth: int = 4,
    kernel: int = 3,
    dropout: float = 0.0,
    pool: str = "mean",
) -> nn.Sequential:
    """Return [B, L, D] or [B, C, H, W] -> logits [B, num_classes] through `depth` residual blocks, dilated 1, 2, 4...

    A step sees itself and the 2 (kernel - 1)(2^depth - 1) steps before it, 60 with the defaults, and none after.
    Raises ValueError for a size below one or another pool than "mean" and "last". Source: Bai 2018 (1803.01271),
    without weight normalisation.
    """
    require_positive(width=width, depth=depth, kernel=kernel, num_classes=num_classes)
    widths = [series_width(in_shape)] + [width] * depth
    blocks = [CausalBlock(widths[i], width, kernel, dilation=2**i, dropout=dropout) for i in range(depth)]
    return with_classifier("blocks", CausalBlocks(*blocks), width, num_classes, dropout, pool)


def series_width(in_shape: tuple[int, ...]) -> int:
    """Return the numbers a step: D of (L, D), C H of a picture (C, H, W)."""
    return in_shape[1] if len(in_shape) == 2 else in_shape[0] * in_shape[1]


def with_classifier(
    name: str, stage: nn.Module, width: int, num_classes: int, dropout: float, pool: str
) -> nn.Sequential:
    """Return a stage [B, L, D] -> [B, L, width], the pool over steps and a linear classifier, weights drawn."""
    if pool not in POOLS:
        raise ValueError(f"pool is {pool!r}; expected one of {sorted(POOLS)}")
    layers: OrderedDict[str, nn.Module] = OrderedDict(steps=Steps())
    layers[name] = stage
    layers |= {"pool": POOLS[pool](), "dropout": nn.Dropout(dropout)}
    layers["classifier"] = classifier = nn.Linear(width, num_classes)
    model = nn.Sequential(layers)
    initialise(model, classifier=classifier)
    return model


class Steps(nn.Module):
    """A series as it is, and a picture as the series of its columns."""

    def forward(self, x: Tensor) -> Tensor:
        """[B, L, D] -> the same, [B, C, H, W] -> [B, W, C H]."""
        return x if x.ndim == 3 else x.flatten(1, 2).transpose(1, 2)


class MeanOverSteps(nn.Module):
    """The mean over the steps of a series."""

    def forward(self, steps: Tensor) -> Tensor:
        """[B, L, D] -> [B, D]."""
        return steps.mean(1)


class LastStep(nn.Module):
    """The last step of a series."""

    def forward(self, steps: Tensor) -> Tensor:
        """[B, L, D] -> [B, D]."""
        return steps[:, -1]


POOLS: dict[str, type[nn.Module]] = {"mean": MeanOverSteps, "last": LastStep}


class Recurrent(nn.Module):
    """Layers of gated recurrent units that answer with the last layer's states alone, so that they can be tapped."""

    def __init__(self, in_width: int, width: int, depth: int) -> None:
        super().__init__()
        self.layers = nn.GRU(in_width, width, num_layers=depth, batch_first=True)

    def forward(self, steps: Tensor) -> Tensor:
        """[B, L, D] -> [B, L, width]."""
        states, _ = self.layers(steps)
        return states


class CausalBlocks(nn.Sequential):
    """Blocks over [B, D, L], within a network whose steps are [B, L, D]."""

    def forward(self, steps: Tensor) -> Tensor:
        """[B, L, D] -> [B, L, width]."""
        return super().forward(steps.transpose(1, 2)).transpose(1, 2)


class CausalBlock(nn.Module):
    """ReLU(shortcut + two dilated convolutions), each of which sees no later step."""

    def __init__(self, in_width: int, width: int, kernel: int, *, dilation: int, dropout: float) -> None:
        super().__init__()
        self.first = nn.Conv1d(in_width, width, kernel, dilation=dilation)
        self.second = nn.Conv1d(width, width, kernel, dilation=dilation)
        self.shortcut = nn.Identity() if in_width == width else nn.Conv1d(in_width, width, 1)
        self.dropout = nn.Dropout(dropout)
        self.reach = dilation * (kernel - 1)

    def forward(self, x: Tensor) -> Tensor:
        """[B, in_width, L] -> [B, width, L]."""
        inner = self.dropout(self.first(functional.pad(x, (self.reach, 0))).relu())
        inner = self.dropout(self.second(functional.pad(inner, (self.reach, 0))).relu())
        return (self.shortcut(x) + inner).relu()
