"""The zoo: small models for pictures, by name. Each maps [B, C, H, W] to logits [B, num_classes].

A builder takes `num_classes`, `in_shape` (C, H, W) and its own options, all by keyword. Its last nn.Linear is the
classifier, so that the features a student can be taught are that layer's input. KINDS are built alike, but answer in
other ways: ensembles in one module (`pipeline.models.ensembles.Members`), and a soft decision tree.
"""

from collections.abc import Callable

from torch import nn

from pipeline.models.conv import mobile_small, resnet_small, vgg_small
from pipeline.models.ensembles import batch_ensemble, ensemble, hydra
from pipeline.models.mlp import mlp
from pipeline.models.tree import soft_tree
from pipeline.models.vit import vit_small

MODELS: dict[str, Callable[..., nn.Module]] = {
    "mlp": mlp,
    "vgg_small": vgg_small,
    "resnet_small": resnet_small,
    "mobile_small": mobile_small,
    "vit_small": vit_small,
}
KINDS: dict[str, Callable[..., nn.Module]] = {
    "hydra": hydra,
    "batch_ensemble": batch_ensemble,
    "ensemble": ensemble,
    "soft_tree": soft_tree,
}


def count_parameters(model: nn.Module) -> int:
    """Return the number of trainable and frozen parameters, shared ones once; buffers do not count."""
    return sum(parameter.numel() for parameter in model.parameters())
