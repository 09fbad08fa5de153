"""Which of some classes a sample is of: answers are log-probabilities."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from pipeline.calibration import fit_temperature
from pipeline.metrics import classification_metrics
from pipeline.store.fields import LOGITS, Truth
from pipeline.tasks.contract import Shapes
from pipeline.train import label_loss
from pipeline.views import Batch, Split


@dataclass(frozen=True)
class Classes:
    """One of the classes `names`."""

    names: tuple[str, ...]
    steered_by: ClassVar[str] = "nll"
    ranked_by: ClassVar[str] = "calibrated_nll"
    is_real: ClassVar[bool] = False
    is_plain: ClassVar[bool] = True
    numbers: ClassVar[frozenset[str]] = frozenset()
    truth_kept: ClassVar[Truth | None] = None

    @property
    def attributes(self) -> dict[str, Any]:
        """Nothing: classes have no scale."""
        return {}

    @property
    def shapes(self) -> Shapes:
        """One output: a logit a class."""
        return {LOGITS: (len(self.names),)}

    def truth_at(self, output: str, labels: Tensor, targets: Tensor | None) -> Tensor:
        """Return the labels."""
        return labels

    def answers(self, outputs: Tensor, truth: Tensor) -> Tensor:
        """Return logits as log-probabilities: [..., C]."""
        return outputs.float().log_softmax(-1)

    def loss(self, outputs: Tensor, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        """Return the cross-entropy with the batch's labels: [B, C] -> [B]."""
        return label_loss(outputs, batch)

    def truth(self, split: Split) -> Tensor:
        """Return the labels: int64 [N], -1 where a row has none."""
        return torch.from_numpy(split.labels)

    def truth_in(self, batch: Batch) -> Tensor:
        """Return the labels: int64 [B]."""
        return batch.labels

    def steering(self, answers: Tensor, truth: Tensor) -> dict[str, float]:
        """Return NLL and accuracy: [N, C], [N]."""
        nll = -answers.gather(1, truth[:, None]).mean().item()
        return {"nll": nll, "accuracy": (answers.argmax(1) == truth).double().mean().item()}

    def metrics(self, answers: Tensor, truth: Tensor) -> dict[str, float]:
        """Return what `classification_metrics` does."""
        return classification_metrics(answers, truth)

    def teacher_figures(self, outputs: Mapping[str, Tensor], truths: Mapping[str, Tensor]) -> dict[str, Any]:
        """Return the temperature fitted on calibration rows, and the scores of each split, also at that temperature."""
        temperature = fit_temperature(outputs["calibration"], truths["calibration"])
        scores = {name: self._scores(logits, truths[name], temperature) for name, logits in outputs.items()}
        return {"temperature": temperature, "scores": scores}

    def _scores(self, logits: Tensor, labels: Tensor, temperature: float) -> dict[str, float]:
        calibrated = classification_metrics((logits / temperature).log_softmax(-1), labels)
        return {
            **classification_metrics(logits.log_softmax(-1), labels),
            "calibrated_nll": calibrated["nll"],
            "calibrated_ece": calibrated["ece"],
        }
