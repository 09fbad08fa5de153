"""Networks for series: the future is not seen, a picture is its columns, and the laws of the zoo hold."""

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from pipeline.errors import StillroomError
from pipeline.models import SERIES_MODELS, FeatureTap, Members, build_model, feature_widths

STEPS, WIDTH = 20, 5
SMALL = {"gru": {"width": 6, "depth": 2}, "temporal_cnn": {"width": 6, "depth": 3}}
STAGE = {"gru": "recurrent", "temporal_cnn": "blocks"}
each_model = pytest.mark.parametrize("name", SERIES_MODELS)


def small_model(name: str, in_shape: tuple[int, ...] = (STEPS, WIDTH), **options) -> nn.Module:
    torch.manual_seed(0)
    return build_model(name, num_classes=4, in_shape=in_shape, **{**SMALL[name], **options}).eval()


def series(num_rows: int = 5) -> Tensor:
    return torch.randn(num_rows, STEPS, WIDTH, generator=torch.Generator().manual_seed(1))


def steps_of(model: nn.Module, name: str, x: Tensor) -> Tensor:
    """What a model's stage says of each step, before they are pooled: [B, L, width]."""
    return getattr(model, STAGE[name])(model.steps(x))


@each_model
def test_a_later_step_does_not_change_what_is_said_of_earlier_ones(name):
    model, x = small_model(name), series()
    for step in (1, 7, STEPS - 1):
        other = x.clone()
        other[:, step:] += torch.randn(5, STEPS - step, WIDTH)
        before, after = steps_of(model, name, x), steps_of(model, name, other)
        torch.testing.assert_close(after[:, :step], before[:, :step])
        assert (after[:, step] - before[:, step]).abs().max() > 1e-4


def test_a_temporal_cnn_sees_as_far_back_as_it_says():
    x = series(1).requires_grad_()
    reach = 2 * (2 - 1) * (2**3 - 1)
    torch.manual_seed(0)
    model = build_model("temporal_cnn", num_classes=4, in_shape=(STEPS, WIDTH), width=32, depth=3, kernel=2)
    steps_of(model, "temporal_cnn", x)[0, -1].sum().backward()
    seen = x.grad[0].abs().sum(1) > 0
    assert seen.tolist() == [False] * (STEPS - 1 - reach) + [True] * (reach + 1)


@each_model
def test_a_spectrogram_is_the_series_of_its_columns(name):
    model, picture = small_model(name), small_model(name, (1, WIDTH, STEPS))
    picture.load_state_dict(model.state_dict())
    x = series()
    torch.testing.assert_close(picture(x.transpose(1, 2).unsqueeze(1)), model(x))


@each_model
def test_the_answer_is_the_classifier_on_the_mean_step(name):
    model, x = small_model(name), series()
    layers = [STAGE[name], "pool", "penultimate"]
    with FeatureTap(model, layers) as tap:
        logits, features = tap(x)
    torch.testing.assert_close(features["penultimate"], steps_of(model, name, x).mean(1))
    torch.testing.assert_close(features[STAGE[name]], features["penultimate"])
    torch.testing.assert_close(model.classifier(features["penultimate"]), logits)
    assert feature_widths(model, layers, (STEPS, WIDTH)) == dict.fromkeys(layers, 6)


@each_model
def test_a_row_has_its_answer_whoever_is_read_with_it(name):
    model, x = small_model(name), series()
    torch.testing.assert_close(torch.cat([model(row[None]) for row in x]), model(x))


@each_model
def test_gradients_reach_every_parameter(name):
    model = small_model(name, width=32).train()
    functional.cross_entropy(model(series(8)), torch.arange(8) % 4).backward()
    assert [key for key, p in model.named_parameters() if p.grad is None or not p.grad.abs().sum() > 0] == []


@each_model
def test_a_few_steps_tell_rising_from_falling_series(name):
    model = small_model(name, width=16).train()
    labels = torch.arange(16) % 2
    slope = (2.0 * labels - 1)[:, None, None] * torch.linspace(-1, 1, STEPS)[:, None]
    x = slope + 0.1 * series(16)
    optimizer = torch.optim.Adam(model.parameters(), lr=0.02)
    for _ in range(50):
        optimizer.zero_grad()
        loss = functional.cross_entropy(model(x), labels)
        loss.backward()
        optimizer.step()
    assert loss.item() < 0.3


@pytest.mark.filterwarnings("ignore:The tensor attributes")  # a GRU gathers its weights anew while it is traced
@each_model
def test_it_exports_for_any_number_of_series(name):
    model, batch = small_model(name), torch.export.Dim("batch", min=1)
    x = series(7)[:, :4]  # a GRU is traced step by step
    program = torch.export.export(model, (x[:2],), dynamic_shapes=({0: batch},))
    torch.testing.assert_close(program.module()(x), model(x))


@pytest.mark.parametrize("kind", ["hydra", "batch_ensemble", "ensemble"])
@each_model
def test_ensembles_are_made_of_it(name, kind):
    torch.manual_seed(0)
    options = {"heads": 3, "trunk": name} if kind == "hydra" else {"members": 3, "base": name}
    model = build_model(kind, num_classes=4, in_shape=(STEPS, WIDTH), **options, **SMALL[name])
    assert isinstance(model, Members)
    assert model.train()(series()).shape == (5, 3, 4)
    model.eval()
    x = series()
    torch.testing.assert_close(model(x), model.member_logits(x).softmax(-1).mean(1).log())
    torch.testing.assert_close(torch.cat([model.member_logits(row[None]) for row in x]), model.member_logits(x))


@pytest.mark.parametrize("name", ["gru", "temporal_cnn"])
@pytest.mark.parametrize("option", ["width", "depth"])
def test_impossible_sizes_are_refused(name, option):
    with pytest.raises(ValueError, match=f"{option} = 0; expected 1 or more"):
        SERIES_MODELS[name](num_classes=2, in_shape=(STEPS, WIDTH), **{option: 0})


@each_model
def test_the_last_step_alone_may_be_asked(name):
    model, x = small_model(name, pool="last"), series()
    torch.testing.assert_close(model(x), model.classifier(steps_of(model, name, x)[:, -1]))


@each_model
def test_there_is_no_other_pool(name):
    with pytest.raises(StillroomError, match="pool is 'max'; expected one of \\['last', 'mean'\\]"):
        small_model(name, pool="max")
