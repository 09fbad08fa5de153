"""scikit-learn estimators for spectrograms [C, H, W], their width time: what each band does on average.

Trade: a sound's mean spectrum tells much of who speaks and nothing of what is said, but it takes no time to learn.
"""

from typing import Any

import numpy as np


def band_logistic(*, num_classes: int, in_shape: tuple[int, ...], C: float = 1.0, max_iter: int = 1000) -> Any:
    """Return logistic regression over mean and standard deviation of each band in time, standardised.

    `C` is the inverse strength of its penalty. Raises ValueError for samples that are no pictures.
    """
    from sklearn.linear_model import LogisticRegression  # here, for importing scikit-learn takes a second
    from sklearn.pipeline import Pipeline
    from sklearn.preprocessing import FunctionTransformer, StandardScaler

    if len(in_shape) != 3:
        raise ValueError(f"samples of shape {in_shape}, where (channels, bands, frames) are read")
    pool = FunctionTransformer(band_statistics, validate=True, kw_args={"frames": in_shape[-1]})
    return Pipeline(
        [("pool", pool), ("scale", StandardScaler()), ("classifier", LogisticRegression(C=C, max_iter=max_iter))]
    )


def band_statistics(rows: np.ndarray, *, frames: int) -> np.ndarray:
    """Return mean and standard deviation in time of each band: [N, bands * frames] -> [N, 2 bands]."""
    bands = np.asarray(rows).reshape(len(rows), -1, frames)
    return np.concatenate([bands.mean(2), bands.std(2)], axis=1)
