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
from pipeline.store.fields import MEAN, VARIANCE, Output, encode_field


def specs(prefix: str, output: Output, splits: tuple[str, ...]) -> dict[str, ArraySpec]:
    """Return the arrays of the targets at an output."""
    return {name: spec for each in (MEAN, VARIANCE) for name, spec in output.specs(prefix + each, splits).items()}


def encoded(target: RealTarget, outputs: Outputs, codec: Codec) -> tuple[dict[str, Tensor], Tensor]:
    """Return what a store keeps of a few rows' targets, and what its codec's error is measured on: [n, ..., P]."""
    assert outputs.keys is not None
    leading = outputs.logits.shape[1:-1]
    fused = target.fuse(as_cases(outputs))
    mean, variance = (each.reshape(*leading, -1) for each in (fused.mean, fused.variance))
    tensors = encode_field(MEAN, codec, mean, outputs.keys)
    tensors |= encode_field(VARIANCE, codec, variance, outputs.keys)
    tensors["weights"] = fused.weights.half().reshape(*leading, -1)
    return {**tensors, "disagreement": fused.disagreement.reshape(leading)}, mean


def as_cases(outputs: Outputs) -> Outputs:
    """Return rows of several cases, such as the cells of a picture, with a row for each case: [T, B * ..., P]."""
    if outputs.logits.ndim == 3:
        return outputs
    assert outputs.targets is not None
    count = outputs.logits[0, ..., 0].numel()
    return Outputs(
        outputs.logits.flatten(1, -2), torch.zeros(count, dtype=torch.int64), targets=outputs.targets.flatten(0, -2)
    )


def score(target: RealTarget, rows: Iterable[Rows], teachers: Sequence[str]) -> dict[str, Any]:
    """Return the figures of a fitted target on blocks of rows, those that it is judged by.

    Also how it treats each teacher: its mean weight, and its `distance`, the root of the mean squared difference in
    standard units.
    """
    means, truths, sums = list[Tensor](), list[Tensor](), torch.zeros(2, len(teachers), dtype=torch.float64)
    disagreement, count = 0.0, 0
    for block in rows:
        for outputs in map(as_cases, in_slices(block)):
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
        **target.metrics(torch.cat(means), torch.cat(truths)),
        "distance": {name: square**0.5 for name, square in zip(teachers, squares, strict=True)},
        "disagreement": disagreement / count,
        "mean_weights": dict(zip(teachers, weights, strict=True)),
    }
