"""Flows and generators: shapes, what a flow learns from, and that many steps are the way they say."""

import pytest
import torch
from torch import Tensor, nn

from pipeline.errors import StillroomError
from pipeline.models import GENERATORS, build_model
from pipeline.models.generators import Flow, sizes
from pipeline.models.trial import in_eval_mode
from pipeline.train import own_figure, own_loss
from pipeline.views import Batch

SIDE, CLASSES = 8, 3
PIXELS, SHAPE = SIDE * SIDE, (SIDE * SIDE + CLASSES,)

each_model = pytest.mark.parametrize("name", GENERATORS)


def built(name: str, seed: int = 0, **options: object) -> nn.Module:
    torch.manual_seed(seed)
    return build_model(name, num_classes=PIXELS, in_shape=SHAPE, width=8, **options)


def inputs(rows: int, seed: int = 0) -> Tensor:
    draws = torch.Generator().manual_seed(seed)
    classes = nn.functional.one_hot(torch.arange(rows) % CLASSES, CLASSES).float()
    return torch.cat([torch.randn(rows, PIXELS, generator=draws), classes], dim=1)


def pictures(rows: int) -> Tensor:
    """A picture of each class: its own third of the pixels is bright."""
    return torch.where(torch.arange(PIXELS) % CLASSES == (torch.arange(rows) % CLASSES).unsqueeze(1), 1.5, -0.75)


def batch(read: Tensor, targets: Tensor) -> Batch:
    import numpy as np

    labels = torch.zeros(len(read), dtype=torch.int64)
    return Batch(read, labels, None, None, np.arange(len(read)), 0, targets=targets)


@each_model
def test_a_row_is_answered_alike_whoever_shares_its_batch(name):
    model, read = built(name).eval(), inputs(9)
    with torch.no_grad():
        whole = model(read)
        parts = torch.cat([model(read[:4]), model(read[4:])])
    assert whole.shape == (9, PIXELS)
    torch.testing.assert_close(parts, whole, atol=1e-5, rtol=1e-5)


@each_model
def test_the_class_matters_and_every_weight_is_used(name):
    model, read = built(name).train(), inputs(6)
    if isinstance(model, Flow):
        nn.init.normal_(model.velocity.leave.weight)  # at first it goes nowhere
        model.training_loss(read, pictures(6)).sum().backward()
    else:
        model(read).square().sum().backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in model.parameters())
    other = torch.cat([read[:, :PIXELS], read[:, PIXELS:].roll(1, dims=1)], dim=1)
    with in_eval_mode(model), torch.no_grad():
        assert not torch.allclose(model(read), model(other))


class Turning(nn.Module):
    """A velocity known in closed form: dx/dt = 2 t x, so that x(1) = e x(0)."""

    pixels = PIXELS

    def forward(self, pictures: Tensor, times: Tensor, classes: Tensor) -> Tensor:
        return 2 * times.unsqueeze(1) * pictures


@pytest.mark.parametrize("is_heun", [False, True])
def test_more_steps_come_nearer_to_the_end_of_the_way(is_heun):
    noise, classes = inputs(4)[:, :PIXELS], inputs(4)[:, PIXELS:]
    errors = []
    for steps in (20, 40):
        flow = Flow(Turning(), steps, is_heun=is_heun)  # type: ignore[arg-type]
        errors.append((flow.sampled(noise.double(), classes.double()) - torch.e * noise.double()).abs().max().item())
    assert errors[1] < 0.6 * errors[0]
    euler = Flow(Turning(), 40, is_heun=False)  # type: ignore[arg-type]
    if is_heun:
        plain = (euler.sampled(noise.double(), classes.double()) - torch.e * noise.double()).abs().max().item()
        assert errors[1] < plain / 3


def test_a_flow_in_training_draws_noise_anew_and_in_evaluation_nothing():
    model, read, truth = built("flow"), inputs(12), pictures(12)
    nn.init.normal_(model.velocity.leave.weight)
    model.train()
    torch.manual_seed(1)
    one, other = model.training_loss(read, truth), model.training_loss(read, truth)
    torch.manual_seed(1)
    assert torch.equal(model.training_loss(read, truth), one)
    assert not torch.equal(one, other)
    assert torch.equal(model(read), read[:, :PIXELS])
    model.eval()
    before = torch.random.get_rng_state()
    assert torch.equal(model.training_loss(read, truth), model.training_loss(read, truth))
    assert torch.equal(torch.random.get_rng_state(), before)


def test_a_flow_that_goes_nowhere_is_off_by_noise_and_picture():
    model, read, truth = built("flow").eval(), inputs(5), pictures(5)
    truth[3] = torch.nan
    assert isinstance(model, Flow)
    nn.init.zeros_(model.velocity.leave.bias)
    wanted = (truth - read[:, :PIXELS]).square().mean(1).nan_to_num()
    torch.testing.assert_close(model.training_loss(read, truth), wanted)
    assert torch.equal(model(read), read[:, :PIXELS])
    loss = own_loss(model)
    assert loss is not None
    torch.testing.assert_close(loss(torch.empty(0), batch(read, truth))[0], wanted)
    assert own_loss(built("generator")) is None
    figures = own_figure(model, [batch(read[:2], truth[:2]), batch(read[2:], truth[2:])])
    assert figures == {"mse": pytest.approx(wanted.sum().item() / 5, rel=0.5)}


def test_a_flow_learns_to_make_the_pictures_of_each_class():
    model, truth = built("flow", steps=8), pictures(48)
    optimizer = torch.optim.AdamW(model.parameters(), lr=5e-3)
    read = inputs(48)
    model.train()
    for _ in range(250):
        optimizer.zero_grad()
        model.training_loss(read, truth).mean().backward()
        optimizer.step()
    model.eval()
    with torch.no_grad():
        made = model(inputs(30, seed=5))
    assert (made - pictures(30)).square().mean() < 0.5  # 1.125 is what grey would cost
    nearest = torch.cdist(made, pictures(CLASSES)).argmin(1)
    assert (nearest == torch.arange(30) % CLASSES).double().mean() > 0.9


@pytest.mark.parametrize(
    ("pixels", "shape", "message"),
    [
        (60, (70,), "60 pixels; expected a square whose side is a multiple of 4"),
        (36, (40,), "36 pixels; expected a square"),
        (64, (64,), "inputs of 64 numbers; expected 64 of noise and a class behind them"),
    ],
)
def test_sizes_that_do_not_fit_are_told(pixels, shape, message):
    with pytest.raises(ValueError, match=message):
        sizes(pixels, shape)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"width": 6}, "width = 6; expected a multiple of 4"),
        ({"steps": 0}, "steps = 0; expected 1 or more"),
        ({"method": "rk4"}, "method = 'rk4'; expected 'euler' or 'heun'"),
    ],
)
def test_options_that_do_not_fit_are_told(options, message):
    with pytest.raises(StillroomError, match=message):
        build_model("flow", num_classes=PIXELS, in_shape=SHAPE, **options)
