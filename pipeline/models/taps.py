"""Features of a model's inner layers beside its logits, for any nn.Module and by the layers' names.

Hooks, so that models need no second forward method; a hook sees only eager modules, so tap before torch.compile.
"""

from collections.abc import Sequence
from typing import Any, Self

import torch
from torch import Tensor, nn
from torch.nn import functional

from pipeline.errors import StillroomError, unknown_name
from pipeline.models.trial import in_eval_mode, zeros_for

PENULTIMATE = "penultimate"  # what the classifier reads
ATTENTION = "attention:"  # before a layer's name: where it is active instead of what it says


class FeatureTap:
    """`logits, features = tap(x)`: the model's answer, and the pooled features [B, D] of each named layer.

    "penultimate" is the input of the last nn.Linear in registration order; any other name is the output of that
    submodule. The spatial axes of [B, D, H, W] and the tokens of [B, L, D] are averaged; "attention:LAYER" averages the
    squares over D instead and gives a map [B, H * W] of length one. Gradients flow through the features. Only calls of
    the tap are recorded, from one thread at a time; `close`, or the end of `with`, takes the hooks off. Raises
    StillroomError for an unknown layer.
    """

    def __init__(self, model: nn.Module, names: Sequence[str], *, where: str = "features") -> None:
        layers = {name: find_layer(model, name, where) for name in names}
        self._model = model
        self._where = where
        self._names = tuple(names)
        self._features: dict[str, Tensor] | None = None  # a dict only while the tap is being called
        self._hooks = [self._attach(layer, name) for name, layer in layers.items()]

    def __call__(self, x: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """Return the model's answer to x and the features, {name: [B, D]}, in the order of the names."""
        self._features = {}
        try:
            logits, found = self._model(x), self._features
        finally:
            self._features = None
        for name in self._names:
            if name not in found:
                raise StillroomError(
                    f"{self._where}: layer {name!r} gave no features; expected one that runs in every forward pass of "
                    "the model (and a tap that is not closed); name another layer"
                )
        return logits, {name: found[name] for name in self._names}

    def close(self) -> None:
        """Take the hooks off the model; a second time does nothing."""
        while self._hooks:
            self._hooks.pop().remove()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _attach(self, layer: nn.Module, name: str) -> Any:
        if name == PENULTIMATE:
            return layer.register_forward_pre_hook(lambda _, inputs: self._keep(name, inputs[0]))
        return layer.register_forward_hook(lambda _, inputs, output: self._keep(name, output))

    def _keep(self, name: str, features: Any) -> None:
        if self._features is not None:
            self._features[name] = tapped(features, name, self._where)


def feature_widths(
    model: nn.Module, names: Sequence[str], in_shape: tuple[int, ...], *, where: str = "features"
) -> dict[str, int]:
    """Return {name: D} from one forward pass of zeros [1, ...] in eval mode; training flags stay as they were."""
    with in_eval_mode(model), FeatureTap(model, names, where=where) as tap, torch.no_grad():
        _, features = tap(zeros_for(model, 1, in_shape))
    return {name: feature.shape[1] for name, feature in features.items()}


def find_layer(model: nn.Module, name: str, where: str) -> nn.Module:
    """Return the submodule of a name, for "penultimate" the classifier. Raises StillroomError where there is none."""
    layers = {layer: module for layer, module in model.named_modules() if layer}
    if name == PENULTIMATE:
        return last_linear(model, where)
    layer = name.removeprefix(ATTENTION)
    if layer not in layers:
        raise unknown_name(where, "layer", layer, [PENULTIMATE, *layers])
    return layers[layer]


def last_linear(model: nn.Module, where: str) -> nn.Linear:
    """Return the last nn.Linear in registration order. Raises StillroomError when the model has none."""
    linear = [module for module in model.modules() if isinstance(module, nn.Linear)]
    if not linear:
        raise StillroomError(
            f"{where}: {type(model).__name__} has no nn.Linear; {PENULTIMATE!r} is expected to be the input of its "
            "last one; name a layer of the model instead"
        )
    return linear[-1]


def tapped(features: Any, name: str, where: str) -> Tensor:
    """Return what a tap keeps of a layer's output or input under that name. Raises StillroomError where it can't."""
    return attention_maps(features, name, where) if name.startswith(ATTENTION) else pool(features, name, where)


def attention_maps(features: Any, name: str, where: str) -> Tensor:
    """Return the mean of squares over channels, of length one, 0 for a silent layer: [B, D, H, W] -> [B, H * W].

    In float32, which squares need. Source: Zagoruyko & Komodakis 2017 (1612.03928), section 3.1.
    """
    if not isinstance(features, Tensor) or features.ndim != 4:
        found = tuple(features.shape) if isinstance(features, Tensor) else type(features).__name__
        raise StillroomError(
            f"{where}: layer {name.removeprefix(ATTENTION)!r} gives {found}; expected a map [B, D, H, W] for {name!r}; "
            "name a convolutional layer"
        )
    own = features.to(torch.float32, copy=True)  # an in-place ReLU behind the layer would take away what backward needs
    return functional.normalize(own.square().mean(1).flatten(1), dim=1)


def pool(features: Any, name: str, where: str) -> Tensor:
    """Return [B, D] of its own memory: the mean over positions of [B, D, H, W], over tokens of [B, L, D]."""
    if not isinstance(features, Tensor) or features.ndim not in (2, 3, 4):
        found = tuple(features.shape) if isinstance(features, Tensor) else type(features).__name__
        raise StillroomError(
            f"{where}: layer {name!r} gives {found}; expected a tensor [B, D], [B, L, D] or [B, D, H, W]; "
            "name another layer"
        )
    if features.ndim == 2:
        return features.clone()  # an in-place ReLU behind the layer would change what was tapped
    return features.mean(1) if features.ndim == 3 else features.mean((2, 3))
