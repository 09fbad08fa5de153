"""Laws that every model of the zoo obeys, and the few that hold for one family."""

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pipeline.models import MODELS, FeatureTap, build_model, count_parameters

SMALL = {  # the smallest options that still exercise every path of a family
    "mlp": {"width": 16},
    "vgg_small": {"width": 4},
    "resnet_small": {"width": 4, "blocks": 2},
    "mobile_small": {"width": 4},
    "vit_small": {"width": 16, "depth": 2},
}
GREY, COLOUR = (1, 28, 28), (3, 32, 32)


def small_model(name: str, *, num_classes: int = 10, in_shape: tuple[int, int, int] = GREY) -> nn.Module:
    torch.manual_seed(0)
    return build_model(name, num_classes=num_classes, in_shape=in_shape, **SMALL[name])


def pictures(num_rows: int, in_shape: tuple[int, int, int] = GREY) -> Tensor:
    return torch.randn(num_rows, *in_shape, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("num_classes", [2, 10])
@pytest.mark.parametrize("in_shape", [GREY, COLOUR, (1, 16, 20)])
@pytest.mark.parametrize("name", MODELS)
def test_logits_have_a_row_a_picture_and_a_column_a_class(name, in_shape, num_classes):
    logits = small_model(name, num_classes=num_classes, in_shape=in_shape)(pictures(3, in_shape))
    assert logits.shape == (3, num_classes)
    assert logits.isfinite().all()


@pytest.mark.parametrize("name", MODELS)
def test_gradients_reach_every_parameter(name):
    model = small_model(name)
    F.cross_entropy(model(pictures(8)), torch.arange(8)).backward()
    untouched = [key for key, p in model.named_parameters() if p.grad is None or not p.grad.abs().sum() > 0]
    assert untouched == []


@pytest.mark.parametrize("name", MODELS)
def test_an_answer_in_eval_mode_is_deterministic_and_does_not_depend_on_its_batch(name):
    model, x = small_model(name), pictures(9)
    model(x)  # running statistics other than their first values
    model.eval()
    with torch.no_grad():
        together = model(x)
        torch.testing.assert_close(model(x), together, rtol=0, atol=0)
        torch.testing.assert_close(torch.cat([model(x[:1]), model(x[1:3]), model(x[3:])]), together)


@pytest.mark.parametrize("name", MODELS)
def test_memory_format_does_not_change_the_answer(name):
    model, x = small_model(name, in_shape=COLOUR).eval(), pictures(4, COLOUR)
    with torch.no_grad():
        plain = model(x)
        channels_last = model.to(memory_format=torch.channels_last)(x.to(memory_format=torch.channels_last))
    torch.testing.assert_close(channels_last, plain, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", MODELS)
def test_the_classifier_on_penultimate_features_gives_the_logits(name):
    model = small_model(name).eval()
    with FeatureTap(model, ["penultimate"]) as tap:
        logits, features = tap(pictures(4))
    torch.testing.assert_close(model.classifier(features["penultimate"]), logits)


@pytest.mark.parametrize("name", MODELS)
def test_the_seed_decides_the_first_weights(name):
    first, second = small_model(name).state_dict(), small_model(name).state_dict()
    assert all(torch.equal(first[key], second[key]) for key in first)


@pytest.mark.parametrize("name", MODELS)
def test_a_new_model_holds_every_class_for_nearly_as_likely(name):
    model = small_model(name)
    probs = model(pictures(16)).softmax(-1)
    assert ((probs - 0.1).abs() < 0.05).all()


@pytest.mark.parametrize("name", MODELS)
def test_a_few_steps_memorise_a_batch(name):
    in_shape = (1, 16, 16)
    model, x, labels = small_model(name, in_shape=in_shape), pictures(16, in_shape), torch.arange(16) % 10
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    first = F.cross_entropy(model(x), labels).item()
    for _ in range(15):
        optimizer.zero_grad()
        loss = F.cross_entropy(model(x), labels)
        loss.backward()
        optimizer.step()
    assert loss.item() < 0.8 * first


@pytest.mark.filterwarnings("ignore:There is a performance drop")  # vmap runs CPU attention a model at a time
@pytest.mark.parametrize("name", MODELS)
def test_stacked_models_answer_as_each_alone(name):
    models = [small_model(name).eval() for _ in range(2)]
    nn.init.normal_(models[1].classifier.weight)
    weights, buffers = torch.func.stack_module_state(models)
    x = pictures(3)

    def answer(weights: dict[str, Tensor], buffers: dict[str, Tensor]) -> Tensor:
        return torch.func.functional_call(models[0], (weights, buffers), (x,))

    stacked = torch.vmap(answer)(weights, buffers)
    torch.testing.assert_close(stacked, torch.stack([model(x) for model in models]), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(("name", "expected"), [("mlp", (200e3, 300e3)), ("resnet_small", (70e3, 85e3))])
def test_default_sizes_stay_student_sized(name, expected):
    model = build_model(name, num_classes=10, in_shape=GREY)
    assert expected[0] < count_parameters(model) < expected[1]


def test_count_parameters_counts_weights_not_buffers_and_shared_ones_once():
    shared = nn.Linear(3, 3, bias=False)
    assert count_parameters(nn.Sequential(shared, nn.BatchNorm1d(3), shared)) == 9 + 6


def test_an_mlp_without_hidden_layers_is_linear():
    model = build_model("mlp", num_classes=2, in_shape=GREY, depth=0)
    assert count_parameters(model) == 28 * 28 * 2 + 2


def test_a_last_batch_of_one_row_trains():
    for name in MODELS:
        assert small_model(name).train()(pictures(1)).isfinite().all()


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("mlp", {"width": 0}, "width = 0; expected 1 or more"),
        ("mlp", {"depth": -1}, "depth = -1; expected 0 or more"),
        ("vgg_small", {"blocks": 0}, "blocks = 0; expected 1 or more"),
        ("vit_small", {"heads": 3}, "heads = 3 does not divide width = 64"),
        ("vit_small", {"patch": 5}, "patch = 5 does not divide pictures of 28 x 28"),
    ],
)
def test_impossible_sizes_are_refused(name, options, message):
    with pytest.raises(ValueError, match=message):
        MODELS[name](num_classes=10, in_shape=GREY, **options)
