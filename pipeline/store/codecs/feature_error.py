"""What a feature codec costs, measured on the features themselves."""

import math

import numpy as np
import torch
from torch import Tensor

from pipeline.store.codecs.features import Fitted

PAIRED_ROWS = 512  # rows whose distances to one another are measured: 131,000 pairs


def measure_feature_error(fitted: Fitted, features: Tensor) -> dict[str, float]:
    """Return what the codec does to these features: float [B, D] -> rows, row_bytes (raw), and three errors.

    relative_error: the size of the error over the size of the features less their mean (over their own size where
    all rows are the same). cosine: the mean over rows that are not all zero. Both need D channels again, so that a
    random projection has neither. distance_error: the mean over pairs of rows of |d' - d| / d, with the Euclidean
    distances of what decodes.
    """
    decoded = fitted.decode(fitted.encode(features))
    rebuilt, before = fitted.reconstruct(decoded), features.double()
    part = fitted.part(fitted.width)
    error: dict[str, float] = {
        "rows": len(features),
        "row_bytes": math.prod(part.tail) * np.dtype(part.dtype).itemsize,
        "distance_error": _distance_error(before[:PAIRED_ROWS], decoded[:PAIRED_ROWS].double()),
    }
    if rebuilt is not None:
        error["relative_error"] = _relative_error(before, rebuilt.double())
        error["cosine"] = _cosine(before, rebuilt.double())
    return error


def _relative_error(before: Tensor, after: Tensor) -> float:
    size = (before - before.mean(0)).norm().item() or before.norm().item()
    return (after - before).norm().item() / (size or 1.0)


def _cosine(before: Tensor, after: Tensor) -> float:
    sizes = before.norm(dim=-1) * after.norm(dim=-1)
    cosines = (before * after).sum(-1) / sizes.where(sizes > 0, 1.0)
    directed = (before != 0).any(-1)
    return cosines[directed].mean().item() if directed.any() else 1.0


def _distance_error(before: Tensor, after: Tensor) -> float:
    old, new = torch.nn.functional.pdist(before), torch.nn.functional.pdist(after)
    apart = old > 0
    return ((new - old).abs()[apart] / old[apart]).mean().item() if apart.any() else 0.0
