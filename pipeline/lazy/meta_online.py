"""A small network weighs the teachers so that what the student learns next helps on its hardest labelled rows.

Trade: the only lazy strategy that asks labels whether a teacher is worth following; it costs a look ahead every few
steps and needs labelled rows, and the hardest rows are where wrong labels gather.
"""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional

from pipeline.errors import StillroomError
from pipeline.fusion.base import check_positive
from pipeline.lazy.base import Lazy, Rows, Start, Weigher, check_count, dense
from pipeline.losses import cross_entropy

HIDDEN = 64
LOOK_AHEAD = 0.1  # length of the step looked ahead; Adam divides the size of its gradient out again
LOWEST = -10.0  # log-probability the network sees: below it, classes are alike
NOBODY = -1


@dataclass(frozen=True)
class MetaOnline(Lazy):
    """MMKD's logit part: w(x) = softmax(MLP([z_1..z_T, z_student])), a network of one hidden layer that starts uniform.

    Every `every` steps the student's last layer takes one gradient step of its own loss on the batch, by autograd on
    that layer alone, kept as a function of w; the network follows the gradient of the cross-entropy that this moved
    layer has on the `buffer` hardest labelled rows seen so far (Adam at `lr`, weight decay 1e-4). z are
    log-probabilities at the temperature of the loss, for stores keep logits up to a constant a row.

    Hard rows are kept as positions and penultimate features, not as inputs: the look-ahead moves the last layer only,
    so nothing has to run through the student again. Features are as old as the row's last showing, an epoch at most.
    Labels are those of train rows: a teacher that has learned them by heart looks better than it is (SCIENCE 0.4).
    Source: Zhang 2023 (2306.06634).
    """

    every: int = 5
    buffer: int = 256
    lr: float = 1e-3
    reads_features: ClassVar[bool] = True

    def __post_init__(self) -> None:
        check_count("fusion 'meta_online'", "every", self.every)
        check_count("fusion 'meta_online'", "buffer", self.buffer)
        check_positive("fusion 'meta_online'", "lr", self.lr)

    def begin(self, start: Start) -> Weigher:
        """Return what weighs the teachers. Raises: StillroomError where no train row shows its label unmixed."""
        if not start.labelled:
            raise StillroomError(
                "fusion 'meta_online': found no train row that shows its label on a view that is not mixed; expected "
                "at least one to judge the teachers by; raise data.labelled or views.count, or use 'amtml'"
            )
        return _MetaWeights(start, self)


class _MetaWeights(Weigher):
    weight_decay = 1e-4

    def __init__(self, start: Start, options: MetaOnline):
        super().__init__()
        assert start.width is not None
        self.lr, self._every, draws = options.lr, options.every, start.generator()
        last = dense(HIDDEN, start.num_teachers, draws)
        nn.init.zeros_(last.weight)  # uniform weights at first
        inputs = (start.num_teachers + 1) * start.num_classes
        self.network = nn.Sequential(dense(inputs, HIDDEN, draws), nn.ReLU(), last)
        self.hard = HardRows(options.buffer, start.width)

    def forward(self, rows: Rows) -> Tensor:
        assert rows.features is not None
        self.hard.show(rows)
        log_weights = self._log_weights(rows)
        if rows.step % self._every == 0 and len(self.hard):
            self._learn(rows, log_weights)
        return log_weights.detach()

    def _log_weights(self, rows: Rows) -> Tensor:
        heard = torch.cat([rows.log_probs, rows.student_log_probs.detach().unsqueeze(0)])
        return self.network(heard.clamp(min=LOWEST).movedim(0, 1).flatten(1)).log_softmax(-1)

    def _learn(self, rows: Rows, log_weights: Tensor) -> None:
        """Leave the gradient of the moved last layer's loss on hard rows on the network."""
        assert rows.features is not None
        assert rows.classifier is not None
        moved = look_ahead(rows, log_weights, rows.classifier, rows.features.detach())
        features, labels = self.hard.kept()
        loss = cross_entropy(functional.linear(features, *moved), labels).mean()
        parameters = list(self.network.parameters())
        for parameter, gradient in zip(parameters, torch.autograd.grad(loss, parameters), strict=True):
            parameter.grad = gradient


def look_ahead(rows: Rows, log_weights: Tensor, classifier: nn.Linear, features: Tensor) -> tuple[Tensor, ...]:
    """Return the last layer after one step on the batch's loss, a function of the weights: [C, D], and [C] if any."""
    own = [
        parameter.detach().requires_grad_()
        for parameter in (classifier.weight, classifier.bias)
        if parameter is not None
    ]
    loss = rows.distil(functional.linear(features, *own), log_weights).mean()
    gradients = torch.autograd.grad(loss, own, create_graph=True)
    return tuple(values - LOOK_AHEAD * gradient for values, gradient in zip(own, gradients, strict=True))


class HardRows(nn.Module):
    """The labelled rows of highest cross-entropy when last shown, up to a number; places in use come first."""

    features: Tensor
    labels: Tensor
    losses: Tensor
    positions: Tensor

    def __init__(self, size: int, width: int):
        super().__init__()
        self.register_buffer("features", torch.zeros(size, width))
        self.register_buffer("labels", torch.zeros(size, dtype=torch.int64))
        self.register_buffer("losses", torch.zeros(size))
        self.register_buffer("positions", torch.full((size,), NOBODY))

    def __len__(self) -> int:
        return int((self.positions != NOBODY).sum())

    def kept(self) -> tuple[Tensor, Tensor]:
        """Return features [n, D] and labels [n]."""
        count = len(self)
        return self.features[:count], self.labels[:count]

    @torch.no_grad()
    def show(self, rows: Rows) -> None:
        """Take in a batch: its rows replace what was kept of the same samples, and the hardest of all stay."""
        batch = rows.batch
        is_plain = batch.labels >= 0 if batch.mix is None else (batch.labels >= 0) & (batch.mix == 1)
        assert rows.features is not None
        positions = torch.from_numpy(batch.positions).to(is_plain.device)[is_plain]
        others = (self.positions != NOBODY) & ~torch.isin(self.positions, positions)
        new = {
            "positions": positions,
            "features": rows.features[is_plain],
            "labels": batch.labels[is_plain],
            "losses": cross_entropy(rows.student_logits[is_plain], batch.labels[is_plain]),
        }
        joined = {name: torch.cat([getattr(self, name)[others], values]) for name, values in new.items()}
        order = joined["positions"].argsort()  # among equally hard rows the first: no other order is a batch's own
        order = order[joined["losses"][order].argsort(descending=True, stable=True)][: len(self.positions)]
        self.positions.fill_(NOBODY)
        for name, values in joined.items():
            getattr(self, name)[: len(order)] = values[order]
