"""Two one-stage detectors: what each cell of 8 x 8 pixels shows, and where the edges of its box are.

Both answer pictures [B, C, H, W] with [B, G, W], G cells row by row and W numbers each (`pipeline.detection.grid`):
class logits, edge logits and, last, the distances that the edge logits expect. The modules `stage1` to `stage3`, at
strides of 2, 4 and 8, and `head` are in each of them. Trade: one level of cells tells objects of all sizes, so large
ones are known by their middle, unless what a cell sees is as wide as the residual one's.
"""

import math
from collections import OrderedDict

import torch
from torch import Tensor, nn
from torch.nn import functional

from pipeline.detection.grid import BINS, expected_distances
from pipeline.models.conv import plain_stage, residual_stage
from pipeline.models.layers import conv_bn, conv_bn_relu, initialise, require_positive

OBJECTS_AT_FIRST = 0.05  # the share of cells that a new detector takes for some object; Lin 2017 has 0.01 an anchor


def plain_detector(*, num_classes: int, in_shape: tuple[int, ...], width: int = 16, blocks: int = 2) -> nn.Sequential:
    """Return a detector of K = `num_classes` classes, [B, C, H, W] -> [B, G, W]: `blocks` plain convolutions a stage.

    Raises ValueError for a size below one. Source: Simonyan 2015 with batch norm; Tian 2019, with one shared head.
    """
    require_positive(width=width, blocks=blocks, num_classes=num_classes)
    stage1 = plain_stage(width, width, blocks=blocks).insert(0, conv_bn_relu(in_shape[0], width, stride=2))
    stage2 = plain_stage(width, 2 * width, blocks=blocks).insert(0, nn.MaxPool2d(2, ceil_mode=True))
    stage3 = plain_stage(2 * width, 4 * width, blocks=blocks).insert(0, nn.MaxPool2d(2, ceil_mode=True))
    return with_head(OrderedDict(stage1=stage1, stage2=stage2, stage3=stage3), 4 * width, num_classes)


def residual_detector(
    *, num_classes: int, in_shape: tuple[int, ...], width: int = 16, blocks: int = 1
) -> nn.Sequential:
    """Return a detector of K = `num_classes` classes, [B, C, H, W] -> [B, G, W]: `blocks` residual blocks a stage.

    A fourth stage, at a stride of 16, is joined to the third: it sees objects whole, and what is about them.
    Raises ValueError for a size below one. Source: He 2016; Lin 2017 (1612.03144), of whose levels one is kept.
    """
    require_positive(width=width, blocks=blocks, num_classes=num_classes)
    stage1 = residual_stage(width, width, blocks=blocks, stride=1).insert(0, conv_bn_relu(in_shape[0], width, stride=2))
    stage2 = residual_stage(width, 2 * width, blocks=blocks, stride=2)
    stage3 = residual_stage(2 * width, 4 * width, blocks=blocks, stride=2)
    joined = Joined(4 * width, residual_stage(4 * width, 4 * width, blocks=blocks, stride=2))
    return with_head(OrderedDict(stage1=stage1, stage2=stage2, stage3=stage3, joined=joined), 4 * width, num_classes)


def with_head(stages: "OrderedDict[str, nn.Module]", channels: int, num_classes: int) -> nn.Sequential:
    """Return the stages and a head, weights drawn; at first nearly every cell is taken for background.

    Without that start, the many background cells' gradients are all that is learned from for a while. Source: Lin 2017
    (1708.02002), section 3.3.
    """
    head = DetectionHead(channels, num_classes)
    model = nn.Sequential(stages | OrderedDict(head=head))
    initialise(model, classifier=head.classifier)
    with torch.no_grad():
        head.classifier.bias[num_classes] = math.log(num_classes * (1 - OBJECTS_AT_FIRST) / OBJECTS_AT_FIRST)
    return model


class DetectionHead(nn.Module):
    """One convolution, then what each cell tells: features [B, D, h, w] -> [B, h w, W]."""

    def __init__(self, channels: int, num_classes: int) -> None:
        super().__init__()
        self.body = conv_bn_relu(channels, channels)
        self.classifier = nn.Linear(channels, num_classes + 1 + 4 * BINS)

    def forward(self, x: Tensor) -> Tensor:
        """[B, D, h, w] -> [B, h w, W]; the last four numbers follow from those before them."""
        logits = self.classifier(self.body(x).flatten(2).transpose(1, 2))
        edges = logits[..., -4 * BINS :].unflatten(-1, (4, BINS))
        return torch.cat([logits, expected_distances(edges)], dim=-1)


class Joined(nn.Module):
    """What is seen here and, from a level below at half the resolution, about it: [B, D, h, w] -> [B, D, h, w]."""

    def __init__(self, channels: int, below: nn.Module) -> None:
        super().__init__()
        self.below = below
        self.here = conv_bn(channels, channels, kernel=1)
        self.both = conv_bn_relu(channels, channels)

    def forward(self, x: Tensor) -> Tensor:
        about = functional.interpolate(self.below(x), size=x.shape[-2:], mode="nearest")
        return self.both(torch.add(self.here(x), about))
