"""Teachers count by what a student gains that learns from them: weights learned through a student's own steps.

Trade: asks the question that matters, what a target does for a student on rows it has not seen, where `network` asks
how well the target itself predicts; the student is a linear proxy, and a fit takes several times as long.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Self

import torch
from torch import Tensor

from pipeline.errors import unknown_name
from pipeline.fusion.base import FusedTargets, Fusion, Outputs
from pipeline.fusion.distributions import mixture, soften
from pipeline.fusion.scorer import (
    FEW_EPOCHS,
    Parameters,
    check_features,
    check_training,
    described,
    fitted_weights,
    initial,
    learned,
    log_weights,
    split_rows,
    standardised,
)

WHERE = "fusion 'meta'"
BY = ("features", "logits")
PROXY_DIMS = 64
PROXY_STEPS = 20  # of the student that a scorer is judged by


@dataclass(frozen=True)
class Meta(Fusion):
    """The mixture sum_k w_k(x) p_k, weights from a scorer that lowers the loss a proxy student has after a step.

    The proxy is softmax regression on what `layer` of the teachers says of a row (their principal components, at most
    64), with `by = "logits"` on the teachers' mean logits; so too where no teacher has the layer or rows hold many
    cases. Half the rows take a step on the mixture, the labels of the other half tell what it was worth, and in turn;
    meanwhile the student learns on. Kept is the scorer from which a fresh student did best on every fifth row, the
    plain mean included. Source: Ren 2018 (1803.09050), section 3; Zhang 2023 (2306.06634), section 3.3.
    """

    by: str = "features"
    layer: str = "penultimate"
    hidden: int = 32
    epochs: int = 200
    patience: int = 20
    weight_decay: float = 1e-3

    def __post_init__(self) -> None:
        if self.by not in BY:
            raise unknown_name(WHERE, "by", str(self.by), BY)
        check_training(
            WHERE, hidden=self.hidden, epochs=self.epochs, patience=self.patience, weight_decay=self.weight_decay
        )

    @property
    def layers(self) -> tuple[str, ...]:
        """The proxy's layer, until it is fitted: the weights themselves come from the logits."""
        return (self.layer,) if self.by == "features" and not self.state else ()

    def fit(self, outputs: Outputs) -> Self:
        """Return a copy fitted on these rows. Raises: StillroomError without a label, or for a loss not finite."""
        rows, held_out, is_apart = split_rows(outputs, WHERE)
        check_features(WHERE, {layer: rows.features[layer] for layer in self.layers if layer in rows.features})
        soft, described_rows, labels = described(rows, WHERE)
        start = initial(described_rows, hidden=self.hidden)
        standard, probs = standardised(start, described_rows), soft.probs.double()
        inputs, judged_inputs = proxy_inputs(self._seen(rows), self._seen(held_out))
        judged_labels = held_out.labelled(WHERE)[1]
        proxy = Proxy(inputs, labels, probs.shape[-1])

        def loss(parameters: Parameters) -> Tensor:
            return proxy.advance(mixed(log_weights(parameters, standard), probs))

        def judge(parameters: Parameters) -> Tensor:
            weight = proxy.trained(mixed(log_weights(parameters, standard), probs))
            return cross_entropy(weight, judged_inputs, judged_labels)

        best = learned(
            start,
            loss,
            judge,
            epochs=self.epochs if is_apart else min(self.epochs, FEW_EPOCHS),
            patience=self.patience,
            weight_decay=self.weight_decay,
            where=WHERE,
        )
        return self.with_state(**best)

    def _seen(self, outputs: Outputs) -> Tensor:
        """What the proxy sees of the labelled cases: float64 [N, D], features side by side, or the mean logits."""
        if self.by == "features" and outputs.labels.ndim == 1:
            features = [each.double() for each in outputs.features.get(self.layer, ()) if each.shape[1]]
            if features:
                return torch.cat(features, dim=1)[outputs.labels >= 0]
        logits, _ = outputs.labelled(WHERE)
        log_probs = soften(logits).log_probs.double().clamp(min=-20).mean(dim=0)
        return log_probs - log_probs.mean(dim=1, keepdim=True)

    def fuse(self, outputs: Outputs, *, temperature: float) -> FusedTargets:
        """Return the mixture at the temperature. Raises: StillroomError before `fit`, or for other teachers."""
        soft = soften(outputs.logits, temperature=temperature)
        at_one = soft if temperature == 1 else soften(outputs.logits)
        return mixture(soft, fitted_weights(self, at_one))


def mixed(log_weights: Tensor, probs: Tensor) -> Tensor:
    """Return sum_k w_k p_k: [T, N], [T, N, C] -> [N, C]."""
    return (log_weights.exp().unsqueeze(-1) * probs).sum(dim=0)


# -- the proxy student -------------------------------------------------------------------------------------------------


def proxy_inputs(seen: Tensor, judged: Tensor) -> tuple[Tensor, Tensor]:
    """Return both [N, D] as at most 64 principal components of the first and a constant 1: [N, d + 1].

    Components rather than a random projection: the teachers' order then only turns the space, which a student that
    starts at 0 does not notice.
    """
    from sklearn.decomposition import PCA  # here, for its import is slow

    mean, scale = seen.mean(dim=0), seen.std(dim=0, correction=0)
    scale = torch.where(scale > 1e-6, scale, 1.0)
    parts = [(each - mean) / scale for each in (seen, judged)]
    if seen.shape[1] > PROXY_DIMS and len(seen) > 1:
        pca = PCA(min(PROXY_DIMS, len(seen)), random_state=0).fit(parts[0].numpy())
        parts = [torch.from_numpy(pca.transform(part.numpy())) for part in parts]
    ones = [torch.ones(len(part), 1, dtype=torch.float64) for part in parts]
    return torch.cat([parts[0], ones[0]], dim=1), torch.cat([parts[1], ones[1]], dim=1)


class Proxy:
    """A softmax regression that learns from targets by gradient descent: inputs [N, D], labels [N].

    Its step is 1/L, L a bound on the loss's curvature (Böhning 1992: half the inputs' largest), so no step overshoots.
    """

    def __init__(self, inputs: Tensor, labels: Tensor, num_classes: int):
        self.inputs, self.labels = inputs, labels
        self.halves = halves(len(inputs))
        largest = torch.linalg.eigvalsh(inputs.T @ inputs / len(inputs))[-1].item()
        self.step_size = 2 / largest
        self.weight = torch.zeros(inputs.shape[1], num_classes, dtype=torch.float64)

    def advance(self, targets: Tensor) -> Tensor:
        """Return what either half's labels say after a step on the other's targets [N, C]; then take both steps."""
        moved = [self._step(self.weight, targets, rows) for rows in self.halves]
        gains = [
            cross_entropy(weight, self.inputs[rows], self.labels[rows])
            for weight, rows in zip(moved, reversed(self.halves), strict=True)
        ]
        self.weight = ((moved[0] + moved[1]) / 2).detach()
        return (gains[0] + gains[1]) / 2

    def trained(self, targets: Tensor) -> Tensor:
        """Return the weights of a fresh student after 20 steps on all targets [N, C]: [D, C]."""
        weight = torch.zeros_like(self.weight)
        for _ in range(PROXY_STEPS):
            weight = self._step(weight, targets, slice(None))
        return weight

    def _step(self, weight: Tensor, targets: Tensor, rows: slice) -> Tensor:
        return look_ahead(weight, self.inputs[rows], targets[rows], step_size=self.step_size)


def halves(count: int) -> Sequence[slice]:
    """Return every other row, and the rest; twice the same where there is one row alone."""
    return [slice(None), slice(None)] if count < 2 else [slice(0, None, 2), slice(1, None, 2)]


def look_ahead(weight: Tensor, inputs: Tensor, targets: Tensor, *, step_size: float) -> Tensor:
    """Return W - step_size * d/dW mean KL(targets ‖ softmax(inputs W)), through which targets get their gradients.

    `[D, C], [N, D], [N, C] -> [D, C]`: of a softmax regression the gradient is inputs' (q - targets) / N.
    """
    answers = (inputs @ weight).softmax(dim=1)
    return weight - step_size * inputs.T @ (answers - targets) / len(inputs)


def cross_entropy(weight: Tensor, inputs: Tensor, labels: Tensor) -> Tensor:
    """Return the mean NLL of softmax(inputs W) in nats: [D, C], [N, D], [N] -> []."""
    return torch.nn.functional.cross_entropy(inputs @ weight, labels)
