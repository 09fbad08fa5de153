"""Teachers count by how likely they are right in this region: a gate per teacher, fitted on where it was right.

Trade: each teacher's gate is fitted alone, so it is cheap, sees what the teacher itself sees, and suits teachers that
were trained on different data; it does not learn which teachers complement each other.
"""

from dataclasses import dataclass
from typing import Self

import numpy as np
import torch
from torch import Tensor

from pipeline.errors import StillroomError, unknown_name
from pipeline.fusion.base import FusedTargets, Fusion, Outputs, check_positive
from pipeline.fusion.distributions import Softened, mixture, soften, softmax_teachers, sum_classes
from pipeline.fusion.scorer import check_features, margins

WHERE = "fusion 'gated'"
BY = ("features", "confidence")
DIMS = 32  # principal components of a layer that a gate sees


@dataclass(frozen=True)
class Gated(Fusion):
    """The mixture with w_k(x) = softmax_k(logit P(teacher k is right on x) / tau).

    P is a logistic regression on the teacher's own entropy and margin at T = 1 and, with `by = "features"`, on the
    principal components of `layer` (at most 32), for teachers that have it. It is linear in the layer, so what is kept
    is one direction per teacher. A small `tau` picks the teacher likeliest to be right. Source: Jacobs 1991 (mixture
    of experts), with gates fitted one by one as in dynamic classifier selection, Woods 1997.
    """

    by: str = "features"
    layer: str = "penultimate"
    tau: float = 1.0

    def __post_init__(self) -> None:
        if self.by not in BY:
            raise unknown_name(WHERE, "by", str(self.by), BY)
        check_positive(WHERE, "tau", self.tau)

    @property
    def layers(self) -> tuple[str, ...]:
        """The layer that the gates see, unless they go by confidence."""
        return (self.layer,) if self.by == "features" else ()

    def fit(self, outputs: Outputs) -> Self:
        """Return a copy with a gate per teacher. Raises: StillroomError without a label, or for features not finite."""
        logits, labels = outputs.labelled(WHERE)
        features = self._features(outputs)
        check_features(WHERE, {self.layer: features})
        rows = (outputs.labels.reshape(len(outputs), -1) >= 0).nonzero()[:, 0]  # of each labelled case
        is_right = logits.argmax(dim=-1) == labels
        confidence = confidences(soften(logits))
        gates = [
            fit_gate(own[rows].double(), sure, right)
            for own, sure, right in zip(features, confidence, is_right, strict=True)
        ]
        found = {
            "intercept": torch.stack([intercept for _, _, intercept in gates]),
            "confidence": torch.stack([slopes for _, slopes, _ in gates]),
        }
        return self.with_state(**found, **{_name(k): gate[0] for k, gate in enumerate(gates) if len(gate[0])})

    def fuse(self, outputs: Outputs, *, temperature: float) -> FusedTargets:
        """Return the gated mixture. Raises: StillroomError before `fit`, or for other teachers or features."""
        soft = soften(outputs.logits, temperature=temperature)
        intercept = self.fitted_state("intercept", soft.num_teachers)
        slopes = self.fitted_state("confidence", soft.num_teachers)
        seen = confidences(soft if temperature == 1 else soften(outputs.logits))
        features = self._features(outputs)
        check_features(WHERE, {self.layer: features})
        scores = []
        for k, (entropy, margin) in enumerate(seen.unbind(dim=-1) for seen in seen):
            score = intercept[k] + slopes[k, 0] * entropy + slopes[k, 1] * margin
            scores.append(score + self._seen_in_features(k, features[k]).reshape(-1, *[1] * (score.ndim - 1)))
        return mixture(soft, softmax_teachers(torch.stack(scores) / self.tau).float())

    def _features(self, outputs: Outputs) -> tuple[Tensor, ...]:
        none = (torch.empty(len(outputs), 0),) * outputs.num_teachers
        return outputs.features.get(self.layer, none) if self.by == "features" else none

    def _seen_in_features(self, k: int, features: Tensor) -> Tensor:
        """The part of a teacher's logit that comes from its features: float64 [B], zeros without."""
        name = _name(k)
        width = len(self.state[name]) if name in self.state else 0
        if features.shape[1] != width:
            raise StillroomError(
                f"{WHERE}: teacher {k} has {features.shape[1]} features of layer {self.layer!r}; expected the {width} "
                f"its gate was fitted on; fit again with these teachers"
            )
        if not width:
            return torch.zeros(len(features), dtype=torch.float64)
        return sum_classes(features.double() * self.state[name])


def _name(teacher: int) -> str:
    return f"direction_{teacher}"


def confidences(soft: Softened) -> Tensor:
    """Return each teacher's entropy and margin in nats: float64 [T, ..., 2]."""
    return torch.stack([soft.entropies.double(), margins(soft)], dim=-1)


def fit_gate(features: Tensor, confidence: Tensor, is_right: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return direction [D], slopes [2] and intercept [] of logit P(right), all float64: [N, D], [N, 2], [N] -> ...

    They apply to raw values: the scales and components that the regression saw are multiplied in. All 0 but the
    intercept, the log-odds by Laplace's rule, for a teacher that is always right or always wrong.
    """
    right, count = int(is_right.sum()), len(is_right)
    width = features.shape[1]
    if right in (0, count):
        slopes = np.zeros(width + 2)
        intercept = np.log((right + 1) / (count - right + 1))
    else:
        slopes, intercept = _regression(torch.cat([features, confidence], dim=1).numpy(), is_right.numpy())
    whole = torch.from_numpy(slopes)
    return whole[:width].clone(), whole[width:].clone(), torch.tensor(intercept, dtype=torch.float64)


def _regression(seen: np.ndarray, is_right: np.ndarray) -> tuple[np.ndarray, float]:
    """Slopes [D + 2] and intercept on raw values; all columns but the last two go in by their components."""
    from sklearn.linear_model import LogisticRegression  # here, for its import is slow

    mean, scale = seen.mean(axis=0), seen.std(axis=0)
    scale = np.where(scale > 1e-6, scale, 1.0)
    standard = (seen - mean) / scale
    axes = _principal_axes(standard[:, :-2])
    inputs = np.concatenate([standard[:, :-2] @ axes.T, standard[:, -2:]], axis=1)
    fitted = LogisticRegression(max_iter=1000).fit(inputs, is_right)
    (coefficients,) = fitted.coef_
    slopes = np.concatenate([coefficients[:-2] @ axes, coefficients[-2:]]) / scale
    return slopes, float(fitted.intercept_[0] - slopes @ mean)


def _principal_axes(standard: np.ndarray) -> np.ndarray:
    """The directions [d, D] that a gate sees of centred columns [N, D]: the columns themselves where they are few."""
    rows, width = standard.shape
    if width <= DIMS:
        return np.eye(width)
    from sklearn.decomposition import PCA

    axes: np.ndarray = PCA(min(DIMS, rows), random_state=0).fit(standard).components_
    return axes
