"""Ensembles that are one module: heads on a shared trunk, rank-1 members of one network, or whole copies.

All keep one contract (`Members`): while they train they answer with every member's logits, so that each member can have
a target of its own; in evaluation mode they answer as one classifier, with the log of the members' mean probability.
Trade: heads cost next to nothing and differ least, copies cost M times and differ most, rank-1 members lie between.
"""

import inspect
import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from pipeline.errors import unknown_name
from pipeline.models.layers import require_positive
from pipeline.models.taps import last_linear

# The option that names the network which an ensemble is made of; what it has no option for is that network's.
NETWORK_OPTIONS = {"hydra": "trunk", "batch_ensemble": "base", "ensemble": "base"}


class Members(nn.Module):
    """M classifiers in one module: `member_logits(x)` is [B, M, C] in either mode.

    `forward` gives [B, M, C] in training mode. In evaluation mode it gives the log of the members' mean probability,
    [B, C]: normalised log-probabilities, which serve as logits.
    """

    num_members: int

    def member_logits(self, x: Tensor) -> Tensor:
        """[B, ...] -> every member's logits [B, M, C]."""
        raise NotImplementedError

    def mixture(self, logits: Tensor) -> Tensor:
        """Return the log of the members' mean probability: [B, M, C] -> [B, C]."""
        return log_softmax(logits).logsumexp(1) - math.log(self.num_members)

    def forward(self, x: Tensor) -> Tensor:
        """[B, ...] -> [B, M, C] in training mode, log-probabilities [B, C] in evaluation mode."""
        logits = self.member_logits(x)
        return logits if self.training else self.mixture(logits)


def log_softmax(logits: Tensor) -> Tensor:
    """Return log-probabilities over the last axis, in float32 at least: [..., C] -> [..., C]."""
    return logits.to(torch.promote_types(logits.dtype, torch.float32)).log_softmax(-1)


# -- heads on a shared trunk -------------------------------------------------------------------------------------------


def hydra(
    *,
    num_classes: int,
    in_shape: tuple[int, ...],
    heads: int,
    trunk: str = "vgg_small",
    head_width: int = 0,
    **options: Any,
) -> "Hydra":
    """Return a zoo model with `heads` classifiers in place of its one; other options are the trunk's.

    A head is one linear layer; with a `head_width`, a hidden layer of that width and ReLU come before it.
    Raises StillroomError for an unknown trunk or option, ValueError for a size below one.
    Source: Tran 2020 (2001.04694).
    """
    require_positive(heads=heads)
    if head_width < 0:
        raise ValueError(f"head_width = {head_width!r}; expected 0, for linear heads, or more")
    network = build_network(trunk, options, num_classes=num_classes, in_shape=in_shape, where="hydra")
    classifier = last_linear(network, "hydra")
    name = next(name for name, layer in network.named_modules() if layer is classifier)
    network.set_submodule(name, nn.Identity())
    features = classifier.in_features
    return Hydra(network, [make_head(features, head_width, num_classes) for _ in range(heads)])


class Hydra(Members):
    """A trunk, [B, ...] -> [B, D], and M heads, [B, D] -> [B, C]."""

    def __init__(self, trunk: nn.Module, heads: Sequence[nn.Module]) -> None:
        super().__init__()
        self.num_members = len(heads)
        self.trunk = trunk
        self.heads = nn.ModuleList(heads)

    def member_logits(self, x: Tensor) -> Tensor:
        """[B, ...] -> [B, M, C]; the trunk runs once."""
        features = self.trunk(x)
        return torch.stack([head(features) for head in self.heads], 1)


def make_head(in_width: int, width: int, num_classes: int) -> nn.Module:
    """Return [B, in_width] -> logits [B, C], weights drawn as a zoo model's; `width` 0 is one linear layer."""
    classifier = nn.Linear(width or in_width, num_classes)
    nn.init.normal_(classifier.weight, std=0.01)
    nn.init.zeros_(classifier.bias)
    if not width:
        return classifier
    hidden = nn.Linear(in_width, width)
    nn.init.kaiming_normal_(hidden.weight, nonlinearity="relu")
    nn.init.zeros_(hidden.bias)
    return nn.Sequential(hidden, nn.ReLU(inplace=True), classifier)


# -- rank-1 members of one network -------------------------------------------------------------------------------------


def batch_ensemble(
    *, num_classes: int, in_shape: tuple[int, ...], members: int = 4, base: str = "mlp", **options: Any
) -> "BatchEnsemble":
    """Return M members of one zoo model that share its weights W: member m has W ∘ s_m r_mᵀ and a bias of its own.

    Other options are the network's. Norms, and what else is no linear or convolution layer, are shared; batch norm in
    training takes its statistics over all members' rows. r and s start as random signs from torch's generator.
    Raises StillroomError for an unknown base or option, ValueError for a size below one.
    Source: Wen 2020 (2002.06715), eq. 5.
    """
    require_positive(members=members)
    network = build_network(base, options, num_classes=num_classes, in_shape=in_shape, where="batch_ensemble")
    for name, layer in list(network.named_modules()):
        if isinstance(layer, nn.Linear | nn.Conv1d | nn.Conv2d):
            network.set_submodule(name, RankOne(layer, members))
    return BatchEnsemble(network, members)


class BatchEnsemble(Members):
    """A network of `RankOne` layers, run once on M copies of the batch."""

    def __init__(self, network: nn.Module, members: int) -> None:
        super().__init__()
        self.num_members = members
        self.network = network

    def member_logits(self, x: Tensor) -> Tensor:
        """[B, ...] -> [B, M, C] through one pass of M B rows, member by member."""
        repeated = x.repeat(self.num_members, *[1] * (x.ndim - 1))
        return self.network(repeated).unflatten(0, (self.num_members, -1)).transpose(0, 1)


class RankOne(nn.Module):
    """A layer whose rows [M B, ...] belong to M members in turn, each with factors, and a bias where the layer has one.

    `inputs` [M in] and `outputs` [M out] are r and s, `biases` [M out], all of one axis: the trainer's weight decay
    takes matrices, and factors drawn to zero would take the layer with them.
    """

    def __init__(self, layer: nn.Linear | nn.Conv1d | nn.Conv2d, members: int) -> None:
        super().__init__()
        out_width, in_width = layer.weight.shape[:2]
        in_width *= 1 if isinstance(layer, nn.Linear) else layer.groups
        self.num_members = members
        self.axis = -1 if isinstance(layer, nn.Linear) else 2  # of the channels, behind members and rows
        self.inputs = nn.Parameter(random_signs(members * in_width))
        self.outputs = nn.Parameter(random_signs(members * out_width))
        self.biases = None if layer.bias is None else nn.Parameter(layer.bias.detach().repeat(members))
        self.layer = layer
        self.layer.bias = None

    def forward(self, x: Tensor) -> Tensor:
        """[M B, in, ...] -> [M B, out, ...], for tokens [M B, L, in] -> [M B, L, out]."""
        rows = x.unflatten(0, (self.num_members, -1))
        answers = self.layer((rows * self.along(self.inputs, rows)).flatten(0, 1))
        groups = answers.unflatten(0, (self.num_members, -1))
        groups = groups * self.along(self.outputs, groups)
        if self.biases is not None:
            groups = groups + self.along(self.biases, groups)
        return groups.flatten(0, 1)

    def along(self, values: Tensor, rows: Tensor) -> Tensor:
        """Return values [M D] shaped to multiply rows [M, B, ...], D along their channels."""
        shape = [1] * rows.ndim
        shape[0], shape[self.axis] = self.num_members, rows.shape[self.axis]
        return values.view(shape)


def random_signs(count: int) -> Tensor:
    """Return -1 and 1 at even odds from torch's generator: [count]."""
    return 2.0 * torch.randint(2, (count,)) - 1.0


# -- whole copies ------------------------------------------------------------------------------------------------------


def ensemble(
    *, num_classes: int, in_shape: tuple[int, ...], members: int = 4, base: str = "mlp", **options: Any
) -> "JoinedMembers":
    """Return `members` zoo models that share nothing, each with weights of its own; other options are the network's.

    Raises StillroomError for an unknown base or option, ValueError for a size below one.
    """
    require_positive(members=members)
    shapes: dict[str, Any] = {"num_classes": num_classes, "in_shape": in_shape}
    models = [build_network(base, options, **shapes, where="ensemble") for _ in range(members)]
    return JoinedMembers(models, [1.0] * members)


class JoinedMembers(Members):
    """Models that answer [B, ...] with logits [B, C], as one module whose mixture weighs them.

    Weights are counts or shares, in proportion; models of weight zero are left out, for they would only cost time, and
    one model given twice runs once. Raises ValueError for another number of weights, a negative one, or none above 0.
    """

    log_weights: Tensor

    def __init__(self, models: Sequence[nn.Module], weights: Sequence[float]) -> None:
        super().__init__()
        if len(models) != len(weights) or min(weights, default=0) < 0 or not sum(weights) > 0:
            raise ValueError(f"weights = {list(weights)!r} for {len(models)} models; expected one each, 0 or more")
        kept: dict[nn.Module, float] = {}
        for model, weight in zip(models, weights, strict=True):
            if weight > 0:
                kept[model] = kept.get(model, 0.0) + weight
        self.num_members = len(kept)
        self.members = nn.ModuleList(kept)
        self.register_buffer("log_weights", (torch.tensor(list(kept.values())).double() / sum(weights)).log().float())

    def member_logits(self, x: Tensor) -> Tensor:
        """[B, ...] -> [B, M, C]."""
        return torch.stack([member(x) for member in self.members], 1)

    def mixture(self, logits: Tensor) -> Tensor:
        """Return the log of the members' weighted mean probability: [B, M, C] -> [B, C]."""
        return (log_softmax(logits) + self.log_weights[:, None]).logsumexp(1)


# -- the network that an ensemble is made of ---------------------------------------------------------------------------


def build_network(
    name: str, options: Mapping[str, Any], *, num_classes: int, in_shape: tuple[int, ...], where: str
) -> nn.Module:
    """Return a zoo model. Raises StillroomError for an unknown one, an option that it has not, inputs it can't read."""
    from pipeline.models.zoo import NETWORKS, check_reads  # here, for the zoo lists the builders of this module too

    known = network_parameters(name, where)
    for option in options:
        if option not in known:
            raise unknown_name(f"{where} ({name})", "option", option, known)
    check_reads(name, in_shape, where)
    return NETWORKS[name](num_classes=num_classes, in_shape=in_shape, **options)


def network_parameters(name: str, where: str) -> dict[str, inspect.Parameter]:
    """Return the options of a zoo model by name. Raises StillroomError for an unknown one."""
    from pipeline.models.zoo import NETWORKS

    if name not in NETWORKS:
        raise unknown_name(where, "network", name, NETWORKS)
    parameters = inspect.signature(NETWORKS[name]).parameters
    return {key: each for key, each in parameters.items() if key not in ("num_classes", "in_shape")}
