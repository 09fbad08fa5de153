"""Small students and batches of teachers' logits that the tests of lazy strategies share."""

from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from pipeline.lazy import LAZY, LazyLoss
from pipeline.models import build_model
from pipeline.objective import Objective
from pipeline.train import seeded
from pipeline.views import Batch

CLASSES = 5
SHAPE = (1, 4, 4)
OPTIONS: dict[str, list[dict[str, Any]]] = {
    "aekd": [{"cap": 1.0}],
    "amtml": [{"dims": 8}],
    "adversarial": [{}, {"identity": True, "weight": 0.5}],
    "meta_online": [{"every": 2, "buffer": 12}],
    "curriculum": [{}, {"tau": 0.2, "easy_first": False}],
}
VARIANTS = [(name, options) for name in LAZY for options in OPTIONS.get(name, [{}])]


def student(seed: int = 0, **options: Any) -> nn.Module:
    """A network whose first answers already differ from row to row."""
    build = {"num_classes": CLASSES, "in_shape": SHAPE, "width": 6, "depth": 1, **options}
    model = seeded(lambda: build_model("mlp", **build), seed)
    with torch.no_grad():
        model.classifier.weight.mul_(60)
    return model


def batch_of(
    logits: Tensor, labels: Tensor | None = None, *, first: int = 0, seed: int = 7, mix: Tensor | None = None
) -> Batch:
    """Noise in, teachers' logits [T, B, C] beside it; no labels unless given."""
    count = logits.shape[1]
    inputs = torch.randn(count, *SHAPE, generator=torch.Generator().manual_seed(seed))
    labels = torch.full((count,), -1) if labels is None else labels
    partners = None if mix is None else labels.flip(0)
    return Batch(inputs, labels, partners, mix, first + np.arange(count), 0, teacher_logits=logits)


def teachers(*shape: int, seed: int = 1) -> Tensor:
    """Random logits [T, B, C]; later teachers are sharper."""
    logits = torch.randn(*shape, generator=torch.Generator().manual_seed(seed))
    return logits * torch.linspace(1, 4, shape[0]).reshape(-1, 1, 1)


def begun(
    name: str, options: dict[str, Any], model: nn.Module, num_teachers: int, *, steps: int = 10, **others: Any
) -> LazyLoss:
    """The loss of a strategy on this student."""
    said = {
        "temperature": 2.0,
        "alpha": 0.0,
        **{k: others.pop(k) for k in ("temperature", "alpha", "kind") if k in others},
    }
    settings = {"labelled": 3, "seed": 4, **others}
    objective = Objective(model, steps=steps, **said)
    return LazyLoss(
        LAZY[name](**options), model, objective, num_teachers=num_teachers, num_classes=CLASSES, steps=steps, **settings
    )


def trained(loss: LazyLoss, model: nn.Module, batches: list[Batch]) -> list[Tensor]:
    """A step on each batch; the losses on the way."""
    optimizer, losses = torch.optim.SGD(model.parameters(), 0.1), []
    model.train()
    for batch in batches:
        cases, _ = loss(model(batch.inputs), batch)
        optimizer.zero_grad()
        cases.mean().backward()
        optimizer.step()
        loss.step(1e-3)
        losses.append(cases.detach())
    return losses
