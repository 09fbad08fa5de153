"""Pieces that the families of the zoo share: size checks, first weights, the convolution unit."""

import torch
from torch import Tensor, nn


def require_positive(**sizes: int) -> None:
    """Raise ValueError that names the first size below one."""
    for name, size in sizes.items():
        if size < 1:
            raise ValueError(f"{name} = {size!r}; expected 1 or more")


def initialise(model: nn.Module, *, classifier: nn.Linear) -> None:
    """Draw the model's first weights in place: He for layers before a ReLU, near zero for the classifier.

    Draws from torch's generator, so seed that before building. A near-zero classifier starts every class
    near probability 1/C. Source: He 2015, eq. 10.
    """
    for module in model.modules():
        if isinstance(module, nn.Linear):
            nn.init.kaiming_normal_(module.weight, nonlinearity="relu")
        if isinstance(module, nn.Conv1d | nn.Conv2d):
            # torch's fan_out ignores groups, and would make depthwise filters vanish
            nn.init.kaiming_normal_(module.weight, mode="fan_in", nonlinearity="relu")
        if isinstance(module, nn.Linear | nn.Conv1d | nn.Conv2d) and module.bias is not None:
            nn.init.zeros_(module.bias)
    nn.init.normal_(classifier.weight, std=0.01)


def initialise_transformer(model: nn.Module, *, positions: nn.Parameter, classifier: nn.Linear) -> None:
    """Draw a transformer's first weights in place: Glorot for linear layers, LeCun for patches, small positions.

    The classifier is near zero, as in `initialise`. Embeddings of words stay as they are. Source: Dosovitskiy 2021.
    """
    for module in model.modules():
        if isinstance(module, nn.Linear):
            nn.init.xavier_uniform_(module.weight)
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, nonlinearity="linear")
        if isinstance(module, nn.Linear | nn.Conv2d) and module.bias is not None:
            nn.init.zeros_(module.bias)
    nn.init.trunc_normal_(positions, std=0.02)
    nn.init.normal_(classifier.weight, std=0.01)


def conv_bn(in_channels: int, out_channels: int, *, kernel: int = 3, stride: int = 1, groups: int = 1) -> nn.Sequential:
    """Return convolution, batch norm: [B, in, H, W] -> [B, out, ceil(H / stride), ceil(W / stride)]."""
    conv = nn.Conv2d(in_channels, out_channels, kernel, stride, padding=kernel // 2, groups=groups, bias=False)
    return nn.Sequential(conv, nn.BatchNorm2d(out_channels))


def conv_bn_relu(
    in_channels: int, out_channels: int, *, kernel: int = 3, stride: int = 1, groups: int = 1
) -> nn.Sequential:
    """Return convolution, batch norm, ReLU: [B, in, H, W] -> [B, out, ceil(H / stride), ceil(W / stride)]."""
    return conv_bn(in_channels, out_channels, kernel=kernel, stride=stride, groups=groups).append(nn.ReLU(inplace=True))


class Residual(nn.Module):
    """shortcut(x) + branch(x)."""

    def __init__(self, branch: nn.Module, shortcut: nn.Module | None = None) -> None:
        super().__init__()
        self.branch = branch
        self.shortcut = shortcut or nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        """[B, ...] -> [B, ...]; shortcut and branch agree on the shape."""
        return torch.add(self.shortcut(x), self.branch(x))
