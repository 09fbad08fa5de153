"""Specs become models; what is wrong with one is told with the near names, before anything is built."""

import re
import sys
from textwrap import dedent

import pytest
import torch
from sklearn.ensemble import RandomForestClassifier
from torch import nn

from pipeline.errors import StillroomError
from pipeline.models import (
    DETECTORS,
    ESTIMATORS,
    GENERATORS,
    MODELS,
    NETWORKS,
    READS,
    REGRESSORS,
    SERIES_MODELS,
    TRANSLATORS,
    FeatureTap,
    build_model,
    check_model,
    is_estimator,
)

SHAPES = {"num_classes": 4, "in_shape": (1, 28, 28)}
USERS_MODULE = """
    import sklearn.svm
    import torch

    LAYER = torch.nn.Linear(1, 1)
    SIZE = 3

    def by_name(*, in_shape, num_classes, width=8):
        return torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(in_shape[1] * in_shape[2], num_classes))

    def by_kwargs(model_name, **kwargs):
        assert kwargs == {"num_classes": 4}, kwargs
        return torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(784, 4))

    def nine_classes(): return torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(784, 9))
    def a_map(): return torch.nn.Conv2d(1, 4, 3)
    def wrong_size(): return torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(9, 4))
    def nothing(): return {"not": "a model"}
    def decides(): return sklearn.svm.LinearSVC()
    def fails(width: int = 1): raise RuntimeError("no luck")
"""


@pytest.fixture
def users_module(tmp_path, monkeypatch):
    """A module of the user's, importable as `users_models`, and a broken one, `users_broken`."""
    (tmp_path / "users_models.py").write_text(dedent(USERS_MODULE))
    (tmp_path / "users_broken.py").write_text("import a_package_that_is_not_installed")
    monkeypatch.syspath_prepend(tmp_path)
    yield "users_models"
    sys.modules.pop("users_models", None)


@pytest.mark.parametrize("name", MODELS)
def test_every_model_of_the_zoo_passes_its_check_and_builds(name):
    assert check_model(name, {"width": 16}, "student.a") == []
    assert isinstance(build_model(name, **SHAPES, width=16), nn.Module)


@pytest.mark.parametrize("name", MODELS)
def test_every_fault_of_the_options_is_told_at_once(name):
    faults = check_model(name, {"widht": 16, "width": "wide", "num_classes": 3}, "student.a")
    assert len(faults) == 3
    assert faults[0].startswith(f"student.a ({name}): unknown option 'widht'; expected one of ")
    assert faults[0].endswith("did you mean 'width'?")
    assert faults[1] == f"student.a ({name}): width = 'wide'; expected int; change it"
    assert "option 'num_classes' is given; expected only the model's own" in faults[2]


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("vgg_smal", r"here: unknown model 'vgg_smal'; expected one of \d+; did you mean 'vgg_small'"),
        (
            "torchvision:resnet81",
            "here: unknown torchvision model 'resnet81'; expected one of .*; did you mean 'resnet",
        ),
        ("sklearn.ensamble:A", "here: unknown module of sklearn 'ensamble'; expected .* did you mean 'ensemble'"),
        ("sklaern:A", "here: unknown module 'sklaern'; expected one that Python can import; did you mean 'sklearn'"),
        (
            "qqqqq.x:A",
            "here: unknown module 'qqqqq'; expected one that Python can import; install it, or set PYTHONPATH",
        ),
        ("math.x:A", "here: unknown module of math 'x'; expected one of 0"),
        (":A", "here: importing '' failed: ValueError"),
        ("sklearn.ensemble:RandomForestClasifier", "attribute of sklearn.ensemble .* did you mean 'RandomForestClass"),
        ("sklearn.ensemble:", "here: unknown attribute of sklearn.ensemble ''; expected"),
    ],
)
def test_an_unknown_name_is_told_with_the_near_ones(spec, message):
    (fault,) = check_model(spec, {}, "here")
    assert re.search(message, fault)
    with pytest.raises(StillroomError, match=message):
        build_model(spec, where="here", **SHAPES)


def test_torchvisions_models_take_grey_pictures_and_give_features():
    model = build_model("torchvision:resnet18", **SHAPES).eval()
    grey = torch.randn(2, 1, 28, 28)
    with FeatureTap(model, ["penultimate", "network.layer2"]) as tap, torch.no_grad():
        logits, features = tap(grey)
        torch.testing.assert_close(model(grey.repeat(1, 3, 1, 1)), logits)
    assert logits.shape == (2, 4)
    assert {name: feature.shape[1] for name, feature in features.items()} == {"penultimate": 512, "network.layer2": 128}


def test_torchvisions_options_are_known_from_the_network_it_builds():
    (fault,) = check_model("torchvision:resnet18", {"zero_init_residul": True, "groups": 1}, "here")
    assert "unknown option 'zero_init_residul'" in fault
    assert fault.endswith("did you mean 'zero_init_residual'?")
    with pytest.raises(StillroomError, match="pictures of 2 channels, where torchvision's models take 1 or 3"):
        build_model("torchvision:resnet18", num_classes=4, in_shape=(2, 28, 28))


VECTOR, WORDS, SERIES, PICTURE, TEXT = (48,), (12,), (9, 6), (1, 16, 16), ()


@pytest.mark.parametrize(
    ("spec", "options", "in_shape", "message"),
    [
        ("vgg_small", {}, VECTOR, r"here: vgg_small reads pictures \[C, H, W\]; found \(48,\); choose another model"),
        ("vit_small", {}, SERIES, r"here: vit_small reads pictures \[C, H, W\]; found \(9, 6\)"),
        ("torchvision:resnet18", {}, VECTOR, r"here: resnet18 reads pictures \[C, H, W\]; found \(48,\)"),
        ("hydra", {"heads": 2}, VECTOR, r"here: hydra: vgg_small reads pictures \[C, H, W\]; found \(48,\)"),
        ("ensemble", {"base": "gru"}, VECTOR, r"here: ensemble: gru reads series \[L, D\], .*; found \(48,\)"),
        ("embedding_bag", {}, PICTURE, r"here: embedding_bag reads words \[L\]; found \(1, 16, 16\)"),
        ("word_cnn", {}, TEXT, r"here: word_cnn reads words \[L\]; found \(\)"),
        ("mlp", {}, TEXT, r"here: mlp reads numbers \[D\], or of more axes; found \(\)"),
        ("forest", {}, TEXT, r"here: forest reads numbers .*; found \(\)"),
        ("tfidf_bayes", {}, VECTOR, r"here: tfidf_bayes reads texts \(\); found \(48,\)"),
        ("vader", {}, WORDS, r"here: vader reads texts \(\); found \(12,\)"),
        ("torch.nn:Identity", {}, TEXT, r"here: a Identity reads numbers; found texts; choose a model that reads text"),
    ],
)
def test_a_model_is_refused_an_input_of_another_kind(spec, options, in_shape, message):
    with pytest.raises(StillroomError, match=message):
        build_model(spec, where="here", num_classes=4, in_shape=in_shape, **options)


@pytest.mark.parametrize("in_shape", [VECTOR, SERIES, PICTURE])
@pytest.mark.parametrize(
    ("spec", "options"), [("mlp", {}), ("soft_tree", {}), ("batch_ensemble", {}), ("ensemble", {}), ("hydra", None)]
)
def test_what_reads_any_numbers_takes_vectors_too(spec, options, in_shape):
    options = {"heads": 2, "trunk": "mlp"} if options is None else options
    model = build_model(spec, num_classes=4, in_shape=in_shape, **options).eval()
    logits = model(torch.randn(5, *in_shape))
    assert logits.shape == (5, 4)
    assert logits.isfinite().all()


def test_a_tree_over_vectors_shows_its_filters_as_vectors():
    tree = build_model("soft_tree", num_classes=4, in_shape=VECTOR, depth=3)
    assert tree.filters().shape == (7, 48)


@pytest.mark.parametrize("in_shape", [SERIES, PICTURE])
@pytest.mark.parametrize("name", SERIES_MODELS)
def test_series_may_be_the_columns_of_a_picture(name, in_shape):
    assert build_model(name, num_classes=4, in_shape=in_shape)(torch.randn(3, *in_shape)).shape == (3, 4)


def test_what_each_model_of_the_zoo_reads_is_known():
    assert set(READS) == {*NETWORKS, *DETECTORS, *TRANSLATORS, *GENERATORS, "soft_tree", *ESTIMATORS, *REGRESSORS} - {
        "prior"
    }
    assert READS["embedding_bag"] == "words"


def test_a_scikit_learn_estimator_is_built_with_its_own_options_alone():
    forest = build_model("sklearn.ensemble:RandomForestClassifier", n_estimators=3, **SHAPES)
    assert isinstance(forest, RandomForestClassifier)
    assert forest.n_estimators == 3
    assert is_estimator(forest)
    assert not is_estimator(RandomForestClassifier)
    assert not is_estimator(nn.Linear(1, 1))
    (fault,) = check_model("sklearn.ensemble:RandomForestClassifier", {"n_estimator": 3}, "here")
    assert fault.endswith("did you mean 'n_estimators'?")


def test_a_users_builder_gets_the_shapes_it_accepts(users_module):
    assert build_model(f"{users_module}:by_name", width=2, **SHAPES)[1].weight.shape == (4, 784)
    assert build_model(f"{users_module}:by_kwargs", model_name="a", **SHAPES)[1].out_features == 4


@pytest.mark.parametrize(
    ("attribute", "message"),
    [
        ("by_kwargs", r"here \(users_models:by_kwargs\): option 'model_name' is missing; expected a value; add it"),
        ("LAYER", "here: users_models:LAYER is a Linear; expected a class, or a function that returns a model"),
        ("SIZE", "here: users_models:SIZE is a int; expected a class, or a function that returns a model"),
        ("nothing", "here: users_models:nothing returned a dict; expected a torch.nn.Module, or a scikit-learn"),
        ("decides", "here: users_models:decides returned a LinearSVC; .* with fit and predict_proba"),
        ("fails", "here: users_models:fails with options {} failed: RuntimeError: no luck; expected a model"),
        ("nine_classes", "here: answers with 9 classes; expected 4, those of the data; have the builder take num_cl"),
        ("a_map", r"here: answers with \(2, 4, 26, 26\); expected logits \(B, 4\)"),
        ("wrong_size", r"here: fails on pictures of shape \(1, 28, 28\) \(RuntimeError: .*; expected logits"),
        ("nothin", "here: unknown attribute of users_models 'nothin'; .* did you mean 'nothing'"),
    ],
)
def test_a_users_builder_that_cannot_be_used_is_told_without_a_traceback(users_module, attribute, message):
    with pytest.raises(StillroomError, match=message):
        build_model(f"{users_module}:{attribute}", where="here", **SHAPES)


def test_a_module_that_misses_its_own_import_is_not_called_mistyped(users_module):
    (fault,) = check_model("users_broken:build", {}, "here")
    assert "importing 'users_broken' failed: ModuleNotFoundError: No module named 'a_package_that_is_not" in fault
