"""A tap returns the model's own answer and the named layers' pooled outputs, and leaves no trace."""

import pytest
import torch
from torch import Tensor, nn

from pipeline.errors import StillroomError
from pipeline.models import MODELS, FeatureTap, build_model, feature_widths

IN_SHAPE = (1, 16, 16)


def model_of(name: str) -> nn.Module:
    return build_model(name, num_classes=3, in_shape=IN_SHAPE, width=8)


def pictures(num_rows: int = 4) -> Tensor:
    return torch.randn(num_rows, *IN_SHAPE)


def num_hooks(model: nn.Module) -> int:
    return sum(len(module._forward_hooks) + len(module._forward_pre_hooks) for module in model.modules())


class Unused(nn.Module):
    """Two layers, of which a forward pass runs one; and one that returns a tuple."""

    def __init__(self) -> None:
        super().__init__()
        self.used = nn.Linear(4, 4)
        self.recurrent = nn.GRU(4, 4, batch_first=True)
        self.unused = nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.recurrent(self.used(x)[:, None])[0][:, 0]


@pytest.mark.parametrize("name", MODELS)
def test_a_tap_does_not_change_the_answer_and_leaves_no_hook(name):
    model, x = model_of(name).eval(), pictures()
    plain = model(x)
    with FeatureTap(model, ["penultimate"]) as tap:
        tapped, features = tap(x)
        assert features["penultimate"].shape == (4, model.classifier.in_features)
    torch.testing.assert_close(tapped, plain, rtol=0, atol=0)
    assert num_hooks(model) == 0


@pytest.mark.parametrize("name", MODELS)
def test_widths_are_those_of_the_features_for_every_layer(name):
    model = model_of(name)
    names = [layer for layer, _ in model.named_children() if layer != "embed"] + ["penultimate"]
    widths = feature_widths(model, names, IN_SHAPE)
    with FeatureTap(model, names) as tap:
        _, features = tap(pictures())
    assert list(features) == names
    assert {layer: tuple(feature.shape) for layer, feature in features.items() if layer != "flatten"} == {
        layer: (4, width) for layer, width in widths.items() if layer != "flatten"
    }


def test_pictures_are_averaged_over_positions_and_sequences_over_tokens():
    conv, norm = nn.Conv2d(1, 6, 3), nn.LayerNorm(6)
    model = nn.Sequential(conv, nn.Flatten(2), nn.Unflatten(2, (1, -1)), nn.Flatten(2))
    x = pictures()
    with FeatureTap(model, ["0"]) as tap:
        torch.testing.assert_close(tap(x)[1]["0"], conv(x).flatten(2).mean(2))
    tokens = torch.randn(4, 5, 6)
    with FeatureTap(nn.Sequential(norm), ["0"]) as tap:
        torch.testing.assert_close(tap(tokens)[1]["0"], norm(tokens).mean(1))


def test_attention_is_where_the_squares_are_and_has_length_one():
    conv, x = nn.Conv2d(1, 6, 3), pictures()
    with FeatureTap(nn.Sequential(conv), ["0", "attention:0"]) as tap:
        features = tap(x)[1]
    energy = conv(x).square().sum(1).flatten(1)
    assert features["0"].shape == (4, 6)
    torch.testing.assert_close(features["attention:0"], energy / energy.norm(dim=1, keepdim=True))
    assert feature_widths(model_of("vgg_small"), ["attention:stage1"], IN_SHAPE) == {"attention:stage1": 16 * 16}


def test_attention_stays_finite_for_large_and_for_silent_layers():
    x = torch.stack([torch.zeros(1, 4, 4), torch.full((1, 4, 4), 300.0)]).half().requires_grad_()  # 300² is inf in fp16
    with FeatureTap(nn.Sequential(nn.Identity()), ["attention:0"]) as tap:
        found = tap(x)[1]["attention:0"]
    torch.testing.assert_close(found, torch.stack([torch.zeros(16), torch.full((16,), 0.25)]))
    found.sum().backward()
    assert x.grad is not None
    assert x.grad.isfinite().all()


def test_attention_of_an_in_place_layer_still_has_its_gradient():
    conv, x = nn.Conv2d(1, 3, 3), pictures()
    with FeatureTap(nn.Sequential(conv, nn.ReLU(inplace=True)), ["attention:0"]) as tap:
        tap(x)[1]["attention:0"].max().backward()
    assert conv.weight.grad is not None


def test_attention_of_a_layer_without_a_map_is_told():
    message = r"features: layer 'hidden1' gives \(4, 8\); expected a map \[B, D, H, W\] for 'attention:hidden1'"
    with FeatureTap(model_of("mlp"), ["attention:hidden1"]) as tap, pytest.raises(StillroomError, match=message):
        tap(pictures())
    with pytest.raises(StillroomError, match="features: unknown layer 'stage7'"):
        FeatureTap(model_of("vgg_small"), ["attention:stage7"])


def test_what_was_tapped_survives_an_in_place_layer_behind_it():
    linear = nn.Linear(4, 4)
    x = torch.randn(8, 4)
    with FeatureTap(nn.Sequential(linear, nn.ReLU(inplace=True)), ["0"]) as tap:
        torch.testing.assert_close(tap(x)[1]["0"], linear(x))


def test_gradients_flow_through_the_features():
    model = model_of("resnet_small")
    with FeatureTap(model, ["stage2"]) as tap:
        tap(pictures())[1]["stage2"].square().sum().backward()
    reached = {name.split(".")[0] for name, parameter in model.named_parameters() if parameter.grad is not None}
    assert reached == {"stage1", "stage2"}


def test_closing_twice_is_fine_and_two_taps_do_not_disturb_each_other():
    model = model_of("mlp")
    first, second = FeatureTap(model, ["hidden1"]), FeatureTap(model, ["hidden2"])
    second.close()
    second.close()
    assert list(first(pictures())[1]) == ["hidden1"]
    first.close()
    assert num_hooks(model) == 0


def test_widths_leave_every_training_flag_as_it_was():
    model = model_of("vgg_small").train()
    model.stage1.eval()
    flags, state = [m.training for m in model.modules()], {k: v.clone() for k, v in model.state_dict().items()}
    assert feature_widths(model, ["stage1", "penultimate"], IN_SHAPE) == {"stage1": 8, "penultimate": 32}
    assert [m.training for m in model.modules()] == flags
    assert all(torch.equal(state[key], value) for key, value in model.state_dict().items())


def test_an_unknown_layer_is_told_with_the_near_names_and_hooks_nothing():
    model = model_of("vgg_small")
    message = r"students\.tiny: unknown layer 'stage9'; expected one of \d+; did you mean 'stage"
    with pytest.raises(StillroomError, match=message):
        FeatureTap(model, ["penultimate", "stage9"], where="students.tiny")
    assert num_hooks(model) == 0


def test_a_model_without_a_linear_layer_has_no_penultimate_features():
    with pytest.raises(StillroomError, match=r"features: Sequential has no nn\.Linear; 'penultimate' is expected"):
        FeatureTap(nn.Sequential(nn.ReLU()), ["penultimate"])


@pytest.mark.parametrize("name", ["unused", "penultimate"])
def test_a_layer_that_does_not_run_is_told(name):
    with (
        FeatureTap(Unused(), [name]) as tap,
        pytest.raises(StillroomError, match=f"features: layer '{name}' gave no features; expected one that runs"),
    ):
        tap(torch.randn(2, 4))


def test_a_layer_that_gives_no_tensor_is_told():
    with (
        FeatureTap(Unused(), ["recurrent"]) as tap,
        pytest.raises(StillroomError, match="features: layer 'recurrent' gives tuple; expected a tensor"),
    ):
        tap(torch.randn(2, 4))
