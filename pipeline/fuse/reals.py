"""What a target store keeps of real numbers: their mean and variance, and how they are judged."""

from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor

from pipeline.fusion import Outputs
from pipeline.fusion.real import RealTarget
from pipeline.fusion.target import Rows, in_slices
from pipeline.store import ArraySpec
from pipeline.store.codecs import Codec
from pipeline.store.fields import MEAN, VARIANCE, encode_field, field_specs, target_specs
from pipeline.tasks import Task

FIELDS = {MEAN: "real", VARIANCE: "real"}


def specs(codec: Codec, num_outputs: int, splits: tuple[str, ...]) -> dict[str, ArraySpec]:
    """Return the arrays of the targets, and of what is true of the rows."""
    found = {name: spec for each in FIELDS for name, spec in field_specs(each, codec, (num_outputs,), splits).items()}
    return found | target_specs(codec, num_outputs)


def encoded(target: RealTarget, outputs: Outputs, codec: Codec) -> tuple[dict[str, Tensor], Tensor]:
    """Return what a store keeps of a few rows' targets, and what its codec's error is measured on: [n, P]."""
    assert outputs.keys is not None
    fused = target.fuse(outputs)
    tensors = encode_field(MEAN, codec, fused.mean, outputs.keys)
    tensors |= encode_field(VARIANCE, codec, fused.variance, outputs.keys)
    return {**tensors, "weights": fused.weights.half(), "disagreement": fused.disagreement}, fused.mean


def score(target: RealTarget, task: Task, rows: Iterable[Rows], teachers: Sequence[str]) -> dict[str, Any]:
    """Return the figures of a fitted target on blocks of rows, in the unit of what is asked for.

    Also how it treats each teacher: its mean weight, and its `distance`, the root of the mean squared difference in
    standard units.
    """
    means, truths, sums = list[Tensor](), list[Tensor](), torch.zeros(2, len(teachers), dtype=torch.float64)
    disagreement, count = 0.0, 0
    for block in rows:
        for outputs in in_slices(block):
            fused = target.fuse(outputs)
            assert outputs.targets is not None
            means.append(fused.mean)
            truths.append(outputs.targets)
            sums[0] += fused.weights.double().sum(0)
            sums[1] += (outputs.logits.double() - fused.mean).square().mean(-1).sum(1)
            disagreement += fused.disagreement.double().sum().item()
            count += len(outputs)
    weights, squares = (sums / count).tolist()
    return {
        **task.metrics(torch.cat(means), torch.cat(truths)),
        "distance": {name: square**0.5 for name, square in zip(teachers, squares, strict=True)},
        "disagreement": disagreement / count,
        "mean_weights": dict(zip(teachers, weights, strict=True)),
    }
