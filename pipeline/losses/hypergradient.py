"""Alpha by its own gradient: it goes where a step on the last layer lowers the cross-entropy of held-out rows.

Trade: asks calibration rows what they gain, so neither a schedule nor a grid over alpha is needed; it costs a forward
pass of such rows every few steps, and these rows then teach, a little: measure on others.
"""

from typing import ClassVar

import torch
from torch import Tensor

from pipeline.losses.alphas import Alpha, Seen, shared
from pipeline.losses.options import number

SMALLEST = 1e-30  # of a gradient's size


class Hypergradient(Alpha):
    """alpha = sigmoid(a), one for all rows; a descends by Adam's rule at `lr`, both averages with decay `memory`.

    The gradient has the size of two gradients multiplied, which says nothing of how far to go: so a moves by at most
    about `lr` at a time, and stays within [-4, 4], from where it can come back. Source: SCIENCE 4, A9.
    """

    BOUND = 4.0
    options: ClassVar = {"start": number(0, 1, is_open=True), "lr": number(0, is_open=True), "memory": number(0, 0.999)}
    follows_training = True
    logit: Tensor
    averages: Tensor
    observed: Tensor

    def __init__(self, start: float = 0.5, lr: float = 0.05, memory: float = 0.9):
        super().__init__()
        self.lr, self.memory = lr, memory
        self.register_buffer("logit", torch.tensor(start, dtype=torch.float64).logit().clamp(-self.BOUND, self.BOUND))
        self.register_buffer("averages", torch.zeros(2, dtype=torch.float64))  # of the gradient and of its square
        self.register_buffer("observed", torch.zeros((), dtype=torch.int64))

    def forward(self, seen: Seen) -> tuple[Tensor, Tensor]:
        alpha, rest = shared(self.logit.sigmoid().to(seen.ce.dtype), seen)
        return alpha, rest

    @torch.no_grad()
    def observe(self, h_train: Tensor, error_ce: Tensor, error_kd: Tensor, h_val: Tensor, error_val: Tensor) -> Tensor:
        """Move alpha by what held-out rows would have gained, and return the derivative used, a scalar.

        `h` are what the last layer reads, [B, D] and [V, D], with a column of ones where it has an offset; the errors
        [B, C] and [V, C] are each case's derivative by its logits: of the cross-entropy (softmax(z) - onehot), of the
        soft loss, of the held-out cross-entropy. Train rows are labelled ones: alpha says nothing about others.
        """
        gradient = last_layer_hypergradient(h_train, error_ce - error_kd, h_val, error_val).double()
        gradient = gradient * self.logit.sigmoid() * (1 - self.logit.sigmoid())
        self.averages.lerp_(torch.stack([gradient, gradient.square()]), 1 - self.memory)
        self.observed += 1
        mean, square = self.averages / (1 - self.memory**self.observed)
        self.logit -= self.lr * mean / (square.sqrt() + SMALLEST)
        self.logit.clamp_(-self.BOUND, self.BOUND)
        return gradient


def last_layer_hypergradient(h_train: Tensor, errors: Tensor, h_val: Tensor, error_val: Tensor) -> Tensor:
    """Return d(mean held-out loss after a step) / d alpha per unit of step length, for the last layer: a scalar.

    -<gradient held out, gradient of CE - KD>, `errors` the difference of the two losses' derivatives by the logits: a
    layer's gradient is error hᵀ, and two such multiply to (h_i . h_v) (error_i . error_v), averaged over all i and v.
    Source: Ren 2018 (1803.09050), on the last layer alone.
    """
    return -((h_train @ h_val.T) * (errors @ error_val.T)).mean()
