"""A rule as a classifier: it knows the language, and learns nothing from labels."""

import functools
from collections.abc import Sequence
from typing import Any, Self

import numpy as np
from scipy.special import expit
from sklearn.base import BaseEstimator, ClassifierMixin

from pipeline.errors import StillroomError


class Vader(ClassifierMixin, BaseEstimator):
    """Sentiment of English texts by a lexicon and a few rules: class 0 is negative, class 1 positive.

    The probability of "positive" is sigmoid(slope * compound); the compound score, in [-1, 1], is 0 for a text without
    a word of the lexicon. A slope of 2 gives 0.88 at the most; a temperature may be fitted to it as to any teacher.
    Source: Hutto & Gilbert 2014.
    """

    def __init__(self, slope: float = 2.0) -> None:
        self.slope = slope

    def fit(self, texts: Sequence[str], labels: Any) -> Self:
        """Name the classes, [0, 1], and return itself. Raises StillroomError for labels other than these."""
        if strange := sorted(set(np.unique(labels).tolist()) - {0, 1}):
            raise StillroomError(
                f"vader: found labels {strange}; expected only 0, negative, and 1, positive; choose another model"
            )
        self.classes_ = np.array([0, 1])
        return self

    def predict_proba(self, texts: Sequence[str]) -> np.ndarray:
        """Return the probabilities of negative and positive: float64 [B, 2]."""
        score = analyzer().polarity_scores
        positive = expit(self.slope * np.array([score(text)["compound"] for text in texts], np.float64))
        return np.stack([1 - positive, positive], axis=1)

    def predict(self, texts: Sequence[str]) -> np.ndarray:
        """Return the likelier class of each text, positive where both are as likely: int64 [B]."""
        return (self.predict_proba(texts)[:, 1] >= 0.5).astype(np.int64)

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.input_tags.string, tags.input_tags.two_d_array = True, False
        tags.requires_fit = False
        return tags


@functools.cache
def analyzer() -> Any:
    """Return VADER with its lexicon, read once. Raises StillroomError where the package is missing."""
    try:
        from vaderSentiment.vaderSentiment import SentimentIntensityAnalyzer
    except ModuleNotFoundError as error:
        raise StillroomError(
            "vader: found no vaderSentiment; expected the package; run pip install 'stillroom[text]'"
        ) from error
    return SentimentIntensityAnalyzer()
