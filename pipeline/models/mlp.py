"""A multilayer perceptron, for vectors and pictures: the fastest student on a CPU, and blind to where a pixel is."""

import math
from collections import OrderedDict

from torch import nn

from pipeline.models.layers import initialise, require_positive


def mlp(
    *, num_classes: int, in_shape: tuple[int, ...], width: int = 256, depth: int = 2, dropout: float = 0.0
) -> nn.Sequential:
    """Return [B, ...] -> logits [B, num_classes] through `depth` hidden layers; depth 0 is a linear model.

    Raises ValueError for a width below one or a negative depth.
    """
    require_positive(width=width, num_classes=num_classes)
    if depth < 0:
        raise ValueError(f"depth = {depth!r}; expected 0 or more")
    widths = [math.prod(in_shape)] + [width] * depth
    layers: OrderedDict[str, nn.Module] = OrderedDict(flatten=nn.Flatten())
    for i in range(depth):
        layers[f"hidden{i + 1}"] = hidden_layer(widths[i], widths[i + 1], dropout=dropout)
    layers["classifier"] = classifier = nn.Linear(widths[-1], num_classes)
    model = nn.Sequential(layers)
    initialise(model, classifier=classifier)
    return model


def hidden_layer(in_width: int, out_width: int, *, dropout: float) -> nn.Sequential:
    """Return [B, in_width] -> [B, out_width], not negative.

    Layer norm, not batch norm: a last batch of one row must train too.
    """
    return nn.Sequential(
        nn.Linear(in_width, out_width, bias=False), nn.LayerNorm(out_width), nn.ReLU(inplace=True), nn.Dropout(dropout)
    )
