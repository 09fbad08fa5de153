"""scikit-learn estimators for the columns of tables, float32 [N, D], with defaults that suit some thousand rows.

Options are those of scikit-learn's class, and stand in for the defaults here. The same classes by import path,
`sklearn.ensemble:ExtraTreesClassifier`, keep scikit-learn's own.
"""

from importlib import import_module
from typing import Any

CLASSES = {  # whose options a name takes
    "prior": "sklearn.dummy:DummyClassifier",
    "forest": "sklearn.ensemble:ExtraTreesClassifier",
    "boosting": "sklearn.ensemble:HistGradientBoostingClassifier",
    "logistic": "sklearn.linear_model:LogisticRegression",
    "ridge": "sklearn.linear_model:Ridge",
    "forest_numbers": "sklearn.ensemble:ExtraTreesRegressor",
    "boosted_numbers": "sklearn.ensemble:HistGradientBoostingRegressor",
}


def prior(*, num_classes: int, in_shape: tuple[int, ...], **options: Any) -> Any:
    """Return the classes' frequencies as the answer to every row, whatever is read: the floor under all teachers."""
    return class_of("prior")(**{"strategy": "prior", **options})


def forest(*, num_classes: int, in_shape: tuple[int, ...], **options: Any) -> Any:
    """Return extremely randomised trees.

    Half of the columns are tried at a split, for most that come of categories say little, and a leaf holds two rows or
    more, for the shares of a single row are 0 and 1.

    Source: Geurts 2006.
    """
    return class_of("forest")(**{"n_estimators": 300, "max_features": 0.5, "min_samples_leaf": 2, **options})


def boosting(*, num_classes: int, in_shape: tuple[int, ...], **options: Any) -> Any:
    """Return boosted trees over histograms: small ones, in small steps, which keeps its probabilities moderate.

    Source: Friedman 2001; Ke 2017.
    """
    usual = {"learning_rate": 0.05, "max_iter": 100, "max_leaf_nodes": 8, "l2_regularization": 1.0}
    return class_of("boosting")(**{**usual, **options})


def logistic(*, num_classes: int, in_shape: tuple[int, ...], **options: Any) -> Any:
    """Return logistic regression over standardised columns."""
    from sklearn.pipeline import Pipeline
    from sklearn.preprocessing import StandardScaler

    classifier = class_of("logistic")(**{"max_iter": 1000, **options})
    return Pipeline([("scale", StandardScaler()), ("classifier", classifier)])


def ridge(*, num_classes: int, in_shape: tuple[int, ...], **options: Any) -> Any:
    """Return a linear regression for each number, its weights kept small. Source: Hoerl & Kennard 1970."""
    return per_output(class_of("ridge")(**options))


def forest_numbers(*, num_classes: int, in_shape: tuple[int, ...], **options: Any) -> Any:
    """Return extremely randomised trees for each number. Source: Geurts 2006."""
    return per_output(class_of("forest_numbers")(**{"n_estimators": 100, "min_samples_leaf": 3, **options}))


def boosted_numbers(*, num_classes: int, in_shape: tuple[int, ...], **options: Any) -> Any:
    """Return boosted trees over histograms for each number. Source: Friedman 2001; Ke 2017."""
    usual = {"learning_rate": 0.1, "max_iter": 100, "max_leaf_nodes": 15, "l2_regularization": 1.0}
    return per_output(class_of("boosted_numbers")(**{**usual, **options}))


def as_read(*, num_classes: int, in_shape: tuple[int, ...]) -> Any:
    """Return a rule that answers with the numbers it reads: a forecast that was made before, such as last week's."""
    from pipeline.models.regressors import AsRead

    return AsRead()


def per_output(regressor: Any) -> Any:
    """Return a regressor for each number that is asked for."""
    from pipeline.models.regressors import PerOutput

    return PerOutput(regressor)


def class_of(name: str) -> Any:
    """Return scikit-learn's class behind a name; imported here, for importing scikit-learn takes a second."""
    module, _, attribute = CLASSES[name].partition(":")
    return getattr(import_module(module), attribute)
