"""Three small convolutional families: plain (VGG), residual (ResNet) and depthwise-separable (MobileNet).

All have three stages of `width`, 2 `width` and 4 `width` channels, each at half the resolution of the one before,
and end in the mean over positions and one linear layer, so any H and W from 16 up will do. The modules `stage1`,
`stage2`, `stage3` and `classifier` are in each of them: hint losses may name them whatever the family.
"""

from collections import OrderedDict

from torch import nn

from pipeline.models.layers import Residual, conv_bn, conv_bn_relu, initialise, require_positive

EXPANSION = 4  # of an inverted residual; MobileNetV2 takes 6, and cost grows with it in proportion


def vgg_small(
    *, num_classes: int, in_shape: tuple[int, ...], width: int = 16, blocks: int = 2, dropout: float = 0.0
) -> nn.Sequential:
    """Return [B, C, H, W] -> logits [B, num_classes]: `blocks` plain 3x3 convolutions a stage, max pooling between.

    Raises ValueError for a size below one. Source: Simonyan 2015, with batch norm and global pooling.
    """
    require_positive(width=width, blocks=blocks, num_classes=num_classes)
    stage1 = plain_stage(in_shape[0], width, blocks=blocks)
    stage2 = nn.Sequential(nn.MaxPool2d(2), *plain_stage(width, 2 * width, blocks=blocks))
    stage3 = nn.Sequential(nn.MaxPool2d(2), *plain_stage(2 * width, 4 * width, blocks=blocks))
    return with_classifier([stage1, stage2, stage3], channels=4 * width, num_classes=num_classes, dropout=dropout)


def resnet_small(
    *, num_classes: int, in_shape: tuple[int, ...], width: int = 16, blocks: int = 1, dropout: float = 0.0
) -> nn.Sequential:
    """Return [B, C, H, W] -> logits [B, num_classes]: `blocks` residual blocks a stage.

    Raises ValueError for a size below one. Source: He 2016, §4.2 (the CIFAR networks).
    """
    require_positive(width=width, blocks=blocks, num_classes=num_classes)
    stage1 = residual_stage(width, width, blocks=blocks, stride=1).insert(0, conv_bn_relu(in_shape[0], width))
    stage2 = residual_stage(width, 2 * width, blocks=blocks, stride=2)
    stage3 = residual_stage(2 * width, 4 * width, blocks=blocks, stride=2)
    return with_classifier([stage1, stage2, stage3], channels=4 * width, num_classes=num_classes, dropout=dropout)


def mobile_small(
    *, num_classes: int, in_shape: tuple[int, ...], width: int = 16, blocks: int = 2, dropout: float = 0.0
) -> nn.Sequential:
    """Return [B, C, H, W] -> logits [B, num_classes]: depthwise-separable, `blocks` units in stages two and three.

    Nothing is widened at full resolution, where a depthwise network on a CPU is bound by memory.
    Raises ValueError for a size below one. Source: Sandler 2018, table 1.
    """
    require_positive(width=width, blocks=blocks, num_classes=num_classes)
    stage1 = nn.Sequential(conv_bn_relu(in_shape[0], width))
    stage2 = inverted_stage(width, 2 * width, blocks=blocks, expansion=1)
    stage3 = inverted_stage(2 * width, 4 * width, blocks=blocks, expansion=EXPANSION)
    return with_classifier([stage1, stage2, stage3], channels=4 * width, num_classes=num_classes, dropout=dropout)


def plain_stage(in_channels: int, out_channels: int, *, blocks: int) -> nn.Sequential:
    """Return `blocks` convolutions: [B, in, H, W] -> [B, out, H, W]."""
    first = conv_bn_relu(in_channels, out_channels)
    return nn.Sequential(first, *(conv_bn_relu(out_channels, out_channels) for _ in range(blocks - 1)))


def residual_stage(in_channels: int, out_channels: int, *, blocks: int, stride: int) -> nn.Sequential:
    """Return `blocks` residual blocks, the first with the stride: [B, in, H, W] -> [B, out, H', W']."""
    first = residual_block(in_channels, out_channels, stride=stride)
    return nn.Sequential(first, *(residual_block(out_channels, out_channels, stride=1) for _ in range(blocks - 1)))


def residual_block(in_channels: int, out_channels: int, *, stride: int) -> nn.Sequential:
    """Return ReLU(shortcut + two 3x3 convolutions); the shortcut is the identity where shapes allow.

    Where it halves, it averages before its 1x1: no pixel is thrown away (He 2019, ResNet-D), and a strided 1x1 is
    what crashes channels-last training on a CPU (`pipeline.train.prepare`).
    """
    branch = nn.Sequential(conv_bn_relu(in_channels, out_channels, stride=stride), conv_bn(out_channels, out_channels))
    same = stride == 1 and in_channels == out_channels
    project = conv_bn(in_channels, out_channels, kernel=1)
    shortcut = None if same else nn.Sequential(nn.AvgPool2d(stride, ceil_mode=True), project)
    return nn.Sequential(Residual(branch, shortcut), nn.ReLU(inplace=True))


def inverted_stage(in_channels: int, out_channels: int, *, blocks: int, expansion: int) -> nn.Sequential:
    """Return `blocks` units, the first halving, the others residual: [B, in, H, W] -> [B, out, H / 2, W / 2]."""
    first = separable(in_channels, out_channels, stride=2, expansion=expansion)
    others = (separable(out_channels, out_channels, stride=1, expansion=EXPANSION) for _ in range(blocks - 1))
    return nn.Sequential(first, *(Residual(unit) for unit in others))


def separable(in_channels: int, out_channels: int, *, stride: int, expansion: int) -> nn.Sequential:
    """Return widen (1x1; not where expansion is 1), filter each channel (3x3), mix down (1x1, linear)."""
    inner = expansion * in_channels
    widen = [] if expansion == 1 else [conv_bn_relu(in_channels, inner, kernel=1)]
    filters = conv_bn_relu(inner, inner, stride=stride, groups=inner)
    return nn.Sequential(*widen, filters, conv_bn(inner, out_channels, kernel=1))


def with_classifier(stages: list[nn.Sequential], *, channels: int, num_classes: int, dropout: float) -> nn.Sequential:
    """Return the stages, the mean over positions and a linear classifier, weights drawn."""
    layers: OrderedDict[str, nn.Module] = OrderedDict((f"stage{i + 1}", stage) for i, stage in enumerate(stages))
    layers |= {"pool": nn.AdaptiveAvgPool2d(1), "flatten": nn.Flatten(), "dropout": nn.Dropout(dropout)}
    layers["classifier"] = classifier = nn.Linear(channels, num_classes)
    model = nn.Sequential(layers)
    initialise(model, classifier=classifier)
    return model
