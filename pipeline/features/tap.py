"""A student's features while it trains, kept by hooks: the loss is only given its logits."""

from collections.abc import Sequence
from typing import Any

from torch import Tensor, nn

from pipeline.errors import StillroomError
from pipeline.models.taps import PENULTIMATE, find_layer, tapped


class StudentTap:
    """Keeps what the named layers of a model give in training: float32 [B, D] with the gradient, pooled.

    Names are those of FeatureTap. Only whole forward passes of a model in training mode are kept, so that evaluations
    in between, a copy of the model with averaged weights, or a layer that is called by itself leave nothing behind.
    Raises: StillroomError for an unknown layer.
    """

    def __init__(self, model: nn.Module, layers: Sequence[str], where: str = "features") -> None:
        found = {name: find_layer(model, name, where) for name in layers}
        self._where, self._names = where, tuple(layers)
        self._features: dict[str, Tensor] = {}
        self._is_recording = False
        self._hooks: list[Any] = [
            # functions, not methods: a copy of the model would copy the tap behind a method, and what it holds
            model.register_forward_pre_hook(lambda model, _: self._begin(model.training)),
            model.register_forward_hook(lambda *_: self._end(), always_call=True),
        ]
        self._hooks += [self._attach(layer, name) for name, layer in found.items()]

    def take(self) -> dict[str, Tensor]:
        """Return {name: [B, D]} of the last forward pass in training, in the order of the names, and let go of them.

        Raises: StillroomError for a layer that did not run.
        """
        features, self._features = self._features, {}
        for name in self._names:
            if name not in features:
                raise StillroomError(
                    f"{self._where}: layer {name!r} gave no features; expected one that runs in every forward pass of "
                    "the student (and a tap that is not closed); name another layer"
                )
        return {name: features[name] for name in self._names}

    def close(self) -> None:
        """Take the hooks off the model; a second time does nothing."""
        while self._hooks:
            self._hooks.pop().remove()

    def _attach(self, layer: nn.Module, name: str) -> Any:
        if name == PENULTIMATE:
            return layer.register_forward_pre_hook(lambda _, inputs: self._keep(name, inputs[0]))
        return layer.register_forward_hook(lambda _, inputs, output: self._keep(name, output))

    def _begin(self, is_training: bool) -> None:
        self._is_recording = is_training  # of the very model that runs, which may be a copy with the same hooks
        if is_training:
            self._features = {}

    def _end(self) -> None:
        self._is_recording = False

    def _keep(self, name: str, features: Any) -> None:
        if self._is_recording:
            self._features[name] = tapped(features, name, self._where).float()
