"""The zoo: small models by name, and what each of them reads of a sample.

MODELS map pictures [B, C, H, W] to logits [B, num_classes] (the perceptron any numbers [B, ...]), WORD_MODELS hashed
words [B, L], SERIES_MODELS series [B, L, D], CODE_MODELS codes [B, L]; GENERATORS
map noise and a class [B, D] to pictures [B, num_classes]; DETECTORS map pictures to cells [B, G, W], TRANSLATORS pairs
[B, 2, L] to pieces [B, L, num_classes]. A builder takes `num_classes`, `in_shape`, the
shape of one sample's input, and its own options, all by keyword. Its last nn.Linear is the classifier, so that the
features a student can be taught are that layer's input. KINDS are built alike, but answer in other ways: ensembles in
one module (`pipeline.models.ensembles.Members`), and a soft decision tree. ESTIMATORS build scikit-learn's classifiers,
REGRESSORS its regressors.
"""

from collections.abc import Callable
from typing import Any

from torch import nn

from pipeline.errors import StillroomError
from pipeline.models.conv import mobile_small, resnet_small, vgg_small
from pipeline.models.detectors import plain_detector, residual_detector
from pipeline.models.ensembles import batch_ensemble, ensemble, hydra
from pipeline.models.generators import flow, generator
from pipeline.models.mlp import mlp
from pipeline.models.recommending import factorisation, two_tower
from pipeline.models.recurrent import gru, temporal_cnn
from pipeline.models.speech_estimators import band_logistic
from pipeline.models.table_estimators import (
    as_read,
    boosted_numbers,
    boosting,
    forest,
    forest_numbers,
    logistic,
    prior,
    ridge,
)
from pipeline.models.text_estimators import tfidf_bayes, tfidf_logistic, tfidf_svm, vader
from pipeline.models.translator import translator
from pipeline.models.tree import soft_tree
from pipeline.models.vit import vit_small
from pipeline.models.words import embedding_bag, word_cnn, word_transformer
from pipeline.translation.apertium import Apertium

MODELS: dict[str, Callable[..., nn.Module]] = {
    "mlp": mlp,
    "vgg_small": vgg_small,
    "resnet_small": resnet_small,
    "mobile_small": mobile_small,
    "vit_small": vit_small,
}
WORD_MODELS: dict[str, Callable[..., nn.Module]] = {
    "embedding_bag": embedding_bag,
    "word_cnn": word_cnn,
    "word_transformer": word_transformer,
}
SERIES_MODELS: dict[str, Callable[..., nn.Module]] = {"gru": gru, "temporal_cnn": temporal_cnn}
CODE_MODELS: dict[str, Callable[..., nn.Module]] = {"factorisation": factorisation, "two_tower": two_tower}
DETECTORS: dict[str, Callable[..., nn.Module]] = {
    "plain_detector": plain_detector,
    "residual_detector": residual_detector,
}
TRANSLATORS: dict[str, Callable[..., nn.Module]] = {"translator": translator}
GENERATORS: dict[str, Callable[..., nn.Module]] = {"flow": flow, "generator": generator}
NETWORKS = MODELS | WORD_MODELS | SERIES_MODELS | CODE_MODELS  # what an ensemble can be made of
KINDS: dict[str, Callable[..., nn.Module]] = {
    "hydra": hydra,
    "batch_ensemble": batch_ensemble,
    "ensemble": ensemble,
    "soft_tree": soft_tree,
}
ESTIMATORS: dict[str, Callable[..., Any]] = {
    "tfidf_logistic": tfidf_logistic,
    "tfidf_svm": tfidf_svm,
    "tfidf_bayes": tfidf_bayes,
    "vader": vader,
    "prior": prior,
    "forest": forest,
    "boosting": boosting,
    "logistic": logistic,
    "band_logistic": band_logistic,
}
REGRESSORS: dict[str, Callable[..., Any]] = {  # estimators of real numbers
    "ridge": ridge,
    "forest_numbers": forest_numbers,
    "boosted_numbers": boosted_numbers,
    "as_read": as_read,
}
WRITERS: dict[str, Callable[..., Any]] = {"apertium": Apertium}  # rules that write whole sentences
ZOO: dict[str, Callable[..., Any]] = (
    NETWORKS | DETECTORS | TRANSLATORS | GENERATORS | KINDS | ESTIMATORS | REGRESSORS | WRITERS
)

READS = {  # ensembles read what their network does, and the prior whatever there is
    **dict.fromkeys(("mlp", "soft_tree", "forest", "boosting", "logistic", *REGRESSORS), "numbers"),
    **dict.fromkeys(("vgg_small", "resnet_small", "mobile_small", "vit_small", "band_logistic"), "pictures"),
    **dict.fromkeys(WORD_MODELS, "words"),
    **dict.fromkeys(SERIES_MODELS, "series"),
    **dict.fromkeys(CODE_MODELS, "codes"),
    **dict.fromkeys(GENERATORS, "noise"),
    **dict.fromkeys(DETECTORS, "pictures"),
    **dict.fromkeys(TRANSLATORS, "pairs"),
    **dict.fromkeys(("tfidf_logistic", "tfidf_svm", "tfidf_bayes", "vader"), "text"),
}
SHAPES = {  # how each is told, and how many axes a sample of it has
    "numbers": ("numbers [D], or of more axes", (1, 2, 3)),
    "pictures": ("pictures [C, H, W]", (3,)),
    "words": ("words [L]", (1,)),
    "codes": ("codes [L]", (1,)),
    "noise": ("noise and a class [D]", (1,)),
    "pairs": ("pairs of texts [2, L]", (2,)),
    "series": ("series [L, D], or pictures [C, H, W] whose width is time", (2, 3)),
    "text": ("texts ()", (0,)),
}


def check_reads(name: str, in_shape: tuple[int, ...], where: str) -> None:
    """Raise StillroomError when a zoo model can't read inputs of this shape: the number of axes tells them apart.

    Words [L], codes [L] and vectors [D] look alike here.
    """
    if name not in READS:
        return
    wanted, axes = SHAPES[READS[name]]
    if len(in_shape) not in axes:
        raise StillroomError(
            f"{where}: {name} reads {wanted}; found {tuple(in_shape)}; choose another model, or have it read another "
            "input"
        )


def count_parameters(model: nn.Module) -> int:
    """Return the number of trainable and frozen parameters, shared ones once; buffers do not count."""
    return sum(parameter.numel() for parameter in model.parameters())
