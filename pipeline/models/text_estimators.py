"""scikit-learn estimators that read texts, list[str]: linear models over tf-idf, and a rule.

Words of two letters and more, in lower case, and runs of up to `ngrams` of them; those of fewer than `min_df` texts
are left out, and of the others the `max_features` most frequent stay. Trade: nothing is known of words but how often
they come together, yet it takes seconds, and with few labels it is hard to beat.
"""

from typing import Any

from pipeline.errors import StillroomError
from pipeline.models.layers import require_positive

MAX_FEATURES = 50_000


def tfidf_logistic(
    *,
    num_classes: int,
    in_shape: tuple[int, ...],
    ngrams: int = 2,
    min_df: int = 1,
    max_features: int = MAX_FEATURES,
    sublinear: bool = True,
    C: float = 10.0,
) -> Any:
    """Return logistic regression over tf-idf; `C` is the inverse strength of its penalty.

    Rows of tf-idf have length one, so it wants a weaker penalty than the usual 1. Raises ValueError for a size below 1.
    """
    from sklearn.linear_model import LogisticRegression  # here, for importing scikit-learn takes a second

    classifier = LogisticRegression(C=C, max_iter=1000)
    return over_tfidf(classifier, ngrams=ngrams, min_df=min_df, max_features=max_features, sublinear=sublinear)


def tfidf_svm(
    *,
    num_classes: int,
    in_shape: tuple[int, ...],
    ngrams: int = 2,
    min_df: int = 1,
    max_features: int = MAX_FEATURES,
    sublinear: bool = True,
    C: float = 0.5,
    folds: int = 5,
) -> Any:
    """Return a linear support vector machine over tf-idf, its margins made probabilities by a sigmoid.

    The sigmoid is fitted to margins of rows out of `folds` folds, so each class needs that many labelled rows.
    Raises ValueError for a size below one. Source: Platt 1999.
    """
    from sklearn.calibration import CalibratedClassifierCV
    from sklearn.svm import LinearSVC

    classifier = CalibratedClassifierCV(LinearSVC(C=C), cv=folds, ensemble=False)  # one machine, fitted to all rows
    return over_tfidf(classifier, ngrams=ngrams, min_df=min_df, max_features=max_features, sublinear=sublinear)


def tfidf_bayes(
    *,
    num_classes: int,
    in_shape: tuple[int, ...],
    ngrams: int = 2,
    min_df: int = 1,
    max_features: int = MAX_FEATURES,
    sublinear: bool = True,
    alpha: float = 0.5,
) -> Any:
    """Return complement naive Bayes over tf-idf; `alpha` is what is added to each term's count.

    It holds when some classes are rare. Raises ValueError for a size below one. Source: Rennie 2003.
    """
    from sklearn.naive_bayes import ComplementNB

    classifier = ComplementNB(alpha=alpha)
    return over_tfidf(classifier, ngrams=ngrams, min_df=min_df, max_features=max_features, sublinear=sublinear)


def over_tfidf(classifier: Any, *, ngrams: int, min_df: int, max_features: int, sublinear: bool) -> Any:
    """Return a pipeline: texts to tf-idf, float64 sparse [N, max_features at most], to the classifier."""
    from sklearn.pipeline import Pipeline

    from pipeline.models.tfidf import Tfidf

    require_positive(ngrams=ngrams, min_df=min_df, max_features=max_features)
    vectorizer = Tfidf(ngram_range=(1, ngrams), min_df=min_df, max_features=max_features, sublinear_tf=sublinear)
    return Pipeline([("tfidf", vectorizer), ("classifier", classifier)])


def vader(*, num_classes: int, in_shape: tuple[int, ...], slope: float = 2.0) -> Any:
    """Return VADER's rule for the sentiment of English texts: class 0 is negative, class 1 positive.

    Raises StillroomError for another number of classes, and without the package of the extra `text`.
    """
    from pipeline.models.rules import Vader, analyzer

    if num_classes != 2:
        raise StillroomError(
            f"vader: found {num_classes} classes; expected two, negative and positive; choose another model"
        )
    if not slope > 0:
        raise ValueError(f"slope = {slope!r}; expected a number above 0")
    analyzer()  # what is missing is told before anything is trained
    return Vader(slope)
