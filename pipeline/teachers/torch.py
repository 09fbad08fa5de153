"""Torch modules as teachers: trained on labelled rows, weights in safetensors."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from pipeline.answers import Answers
from pipeline.errors import StillroomError
from pipeline.models.taps import PENULTIMATE, FeatureTap, feature_widths, last_linear
from pipeline.models.weights import save_weights
from pipeline.teachers.writers import written_by
from pipeline.train import Evaluate, Fitted, Loss, Schedule, fit, label_loss
from pipeline.views import ViewLoader

WEIGHTS = "weights.safetensors"


class TorchTeacher:
    """A module that answers in evaluation mode, with the features of the layers asked for."""

    rows_at_once: int | None = None

    def __init__(self, model: nn.Module, layers: Sequence[str], in_shape: tuple[int, ...], *, precision: str):
        self.model = model.eval()
        self.feature_widths: Mapping[str, int] = feature_widths(model, layers, in_shape) if layers else {}
        self._tap = FeatureTap(model, layers)
        self._precision = precision
        self._layers = tuple(layers)

    @property
    def head(self) -> tuple[np.ndarray, np.ndarray] | None:
        """Its last layer, weights [C, D] and offsets [C], where the features that it reads are asked for."""
        if PENULTIMATE not in self._layers:
            return None
        layer = last_linear(self.model, "features")
        bias = torch.zeros(layer.out_features) if layer.bias is None else layer.bias
        return layer.weight.detach().float().cpu().numpy(), bias.detach().float().cpu().numpy()

    @torch.inference_mode()
    def predict(self, inputs: Tensor) -> Answers:
        """Return logits and pooled features of inputs [B, ...]: Answers, float32."""
        with torch.autocast(inputs.device.type, torch.bfloat16, enabled=self._precision == "bf16"):
            logits, features = self._tap(inputs)
        return Answers(logits.float(), {name: values.float() for name, values in features.items()})

    def write(self, inputs: Tensor, count: int) -> tuple[Tensor, Tensor]:
        """Return sentences of a module that writes some: as `Writer.write` does. Raises StillroomError for another."""
        if not hasattr(self.model, "step"):
            raise StillroomError(
                f"a {type(self.model).__name__} writes no sentences; expected a translator, with start and step; leave "
                f"logits.hypotheses out, or use one"
            )
        return written_by(self.model, inputs, count)

    def save(self, folder: Path) -> list[str]:
        """Write `weights.safetensors`."""
        folder.mkdir(parents=True, exist_ok=True)
        save_weights(self.model, folder / WEIGHTS)
        return [WEIGHTS]


def fit_torch(
    model: nn.Module,
    loader: ViewLoader,
    *,
    evaluate: Evaluate,
    schedule: Schedule,
    seed: int,
    where: str,
    precision: str,
    checkpoint: Path,
    on_step: Callable[[int], None],
    loss: Loss = label_loss,
) -> Fitted:
    """Train a module on the labelled rows of a loader; resumes from the checkpoint."""
    return fit(
        model,
        loader,
        loss,
        evaluate=evaluate,
        schedule=schedule,
        seed=seed,
        where=where,
        precision=precision,
        checkpoint=checkpoint,
        on_step=on_step,
    )
