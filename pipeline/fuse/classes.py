"""What a target store keeps of classes: log-probabilities at each temperature, and how they are judged."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from pipeline.fusion import FusedTargets, Outputs, Target
from pipeline.fusion.target import Rows, hidden, in_slices, join_targets
from pipeline.metrics import RowScores, join_scores, score_rows
from pipeline.store import ArraySpec, temperature_array
from pipeline.store.codecs import Codec
from pipeline.store.fields import Output, encode_field


def specs(prefix: str, output: Output, splits: tuple[str, ...], temperatures: Sequence[float]) -> dict[str, ArraySpec]:
    """Return the arrays of the targets at an output, and of how far labels corrected them."""
    arrays: dict[str, ArraySpec] = {}
    for temperature in temperatures:
        arrays |= output.specs(prefix + temperature_array(temperature), splits)
    return {**arrays, f"{prefix}corrected": ArraySpec(output.leading, "float16")}


def encoded(
    target: Target, outputs: Outputs, codec: Codec, temperatures: Sequence[float]
) -> tuple[dict[str, Tensor], Tensor]:
    """Return what a store keeps of a few rows' targets, and what its codec's error is measured on: [n, C]."""
    assert outputs.keys is not None
    fused: Mapping[float, FusedTargets] = {each: target.fuse(outputs, temperature=each) for each in temperatures}
    tensors: dict[str, Tensor] = {}
    for temperature, each in fused.items():
        tensors |= encode_field(temperature_array(temperature), codec, each.log_probs, outputs.keys)
    first = next(iter(fused.values()))
    assert first.corrected is not None
    tensors |= {
        "weights": first.weights.half(),
        "disagreement": first.disagreement,
        "corrected": first.corrected.half(),
    }
    return tensors, first.log_probs


def score(target: Target, rows: Iterable[Rows], teachers: Sequence[str]) -> dict[str, Any]:
    """Return the figures of a fitted target as a classifier at T = 1 on blocks of rows, and how it treats each teacher.

    The rows' labels are for judging alone: the target does not see them.
    """
    scores: list[RowScores] = []
    sums = {name: torch.zeros(len(teachers), dtype=torch.float64) for name in ("agreement", "weights")}
    disagreement, weight_entropy, count = 0.0, 0.0, 0
    for block in rows:
        slices = []
        for outputs in in_slices(block):
            slices.append(target.fuse(hidden(outputs), temperature=1.0))
            choices = outputs.logits.argmax(-1) == slices[-1].log_probs.argmax(-1)
            sums["agreement"] += choices[:, outputs.labels >= 0].sum(1)
        fused, is_case = join_targets(slices), block.labels >= 0  # behind the end of a sentence nothing is asked
        scores.append(score_rows(fused.log_probs, block.labels))
        weights = fused.weights[is_case].double()
        sums["weights"] += weights.sum(0)
        weight_entropy += torch.special.entr(weights).sum().item()
        disagreement += fused.disagreement[is_case].double().sum().item()
        count += int(is_case.sum())
    return {
        **join_scores(scores).metrics(),
        "agreement": dict(zip(teachers, (sums["agreement"] / count).tolist(), strict=True)),
        "disagreement": disagreement / count,
        "weight_entropy": weight_entropy / count,
        "mean_weights": dict(zip(teachers, (sums["weights"] / count).tolist(), strict=True)),
    }
