"""Detectors: what they answer with, where a cell looks, how they start, and that they learn to find."""

import pytest
import torch
from torch import Tensor, nn

from pipeline.detection import (
    BINS,
    Grid,
    average_precision,
    box_loss,
    class_loss,
    decode,
    edge_loss,
    expected_distances,
    split_outputs,
    split_truth,
    width_of,
)
from pipeline.models.detectors import OBJECTS_AT_FIRST, plain_detector, residual_detector
from pipeline.train.models import prepare

DETECTORS = {"plain_detector": plain_detector, "residual_detector": residual_detector}
K = 2

each_detector = pytest.mark.parametrize("name", DETECTORS)


def built(name: str, *, in_shape: tuple[int, int, int] = (1, 48, 48), seed: int = 0, **options: int) -> nn.Module:
    torch.manual_seed(seed)
    return DETECTORS[name](num_classes=K, in_shape=in_shape, **{"width": 8, **options})


def pictures(count: int, *shape: int, seed: int = 0) -> Tensor:
    return torch.randn(count, *shape, generator=torch.Generator().manual_seed(seed))


@each_detector
@pytest.mark.parametrize("in_shape", [(1, 48, 48), (3, 32, 64), (1, 50, 61), (3, 16, 16), (1, 9, 8)])
def test_every_cell_of_the_grid_is_answered(name, in_shape):
    model = built(name, in_shape=in_shape).eval()
    with torch.no_grad():
        found = model(pictures(2, *in_shape))
    assert found.shape == (2, Grid(*in_shape[1:]).num_cells, width_of(K))
    class_logits, edge_logits, distances = split_outputs(found, K)
    assert class_logits.shape[-1] == K + 1
    torch.testing.assert_close(distances, expected_distances(edge_logits))
    assert ((distances >= 0) & (distances <= BINS - 1)).all()


@each_detector
@pytest.mark.parametrize(("down", "right"), [(0, 2), (2, 0), (2, -2)])
def test_cells_lie_where_the_grid_says(name, down, right):
    """What is shown at a cell is told about it, and whatever moves by a cell is told a cell on."""
    grid = Grid(192, 256)
    model = built(name, in_shape=(1, grid.height, grid.width)).eval()
    assert isinstance(model[-1].classifier, nn.Linear)
    nn.init.normal_(model[-1].classifier.weight)  # at first all that it says is near zero
    shown = torch.zeros(1, 1, grid.height, grid.width)
    shown[..., 88:104, 128:144] = pictures(1, 1, 16, 16)
    with torch.no_grad():
        plain, here, there = (
            model(each).reshape(24, 32, -1)
            for each in (0 * shown, shown, shown.roll((8 * down, 8 * right), dims=(2, 3)))
        )
    torch.testing.assert_close(there[4:-4, 4:-4], here.roll((down, right), dims=(0, 1))[4:-4, 4:-4])
    weights = (here - plain).square().sum(-1).flatten()
    middle = (weights.unsqueeze(1) * grid.centres).sum(0) / weights.sum()
    assert (middle - torch.tensor([136.0, 96.0])).abs().max() < 8


@each_detector
def test_at_first_nearly_everything_is_background(name):
    model = built(name).train()
    class_logits, _, distances = split_outputs(model(pictures(8, 1, 48, 48)), K)
    likely = 1 - class_logits.softmax(-1)[..., K]
    assert likely.mean().item() == pytest.approx(OBJECTS_AT_FIRST, rel=0.3)
    assert distances.mean().item() == pytest.approx((BINS - 1) / 2, rel=0.1)


@each_detector
def test_a_row_is_answered_alike_whoever_shares_its_batch_and_every_weight_is_used(name):
    model, shown = built(name).eval(), pictures(5, 1, 48, 48)
    with torch.no_grad():
        torch.testing.assert_close(torch.cat([model(shown[:2]), model(shown[2:])]), model(shown), atol=1e-5, rtol=1e-5)
    model.train()
    model(shown).square().sum().backward()
    assert all(each.grad is not None and each.grad.abs().sum() > 0 for each in model.parameters())


@each_detector
def test_channels_last_changes_nothing_and_is_allowed(name):
    model, shown = built(name).eval(), pictures(3, 1, 48, 48)
    with torch.no_grad():
        plain = model(shown)
        prepared = prepare(model, torch.device("cpu"))
        assert any(
            each.is_contiguous(memory_format=torch.channels_last) for each in prepared.parameters() if each.ndim == 4
        )
        torch.testing.assert_close(
            prepared(shown.contiguous(memory_format=torch.channels_last)), plain, atol=1e-4, rtol=1e-4
        )
    strided = [each for each in model.modules() if isinstance(each, nn.Conv2d) and max(each.stride) > 1]
    assert all(each.kernel_size != (1, 1) for each in strided), "its backward pass crashes on a CPU"


@each_detector
@pytest.mark.parametrize("option", ["width", "blocks"])
def test_options_count(name, option):
    def size(**options: int) -> int:
        return sum(each.numel() for each in built(name, **options).parameters())

    assert size(**{option: 4}) < size(**{option: 9})
    with pytest.raises(ValueError, match=f"{option} = 0; expected 1 or more"):
        built(name, **{option: 0})


def test_the_same_seed_makes_the_same_detector():
    one, other, third = built("residual_detector"), built("residual_detector"), built("residual_detector", seed=1)
    assert all(torch.equal(a, b) for a, b in zip(one.parameters(), other.parameters(), strict=True))
    assert not all(torch.equal(a, b) for a, b in zip(one.parameters(), third.parameters(), strict=True))


def scenes(count: int) -> tuple[Tensor, list[tuple[Tensor, Tensor]]]:
    """Noise with a full square on the left and a striped one on the right: pictures [N, 1, 48, 48] and objects."""
    draws = torch.Generator().manual_seed(0)
    shown, objects = 0.3 * torch.randn(count, 1, 48, 48, generator=draws), []
    for picture in shown:
        sides = torch.randint(10, 20, (2, 1), generator=draws)
        room = torch.tensor([24, 48]) - sides
        corners = (torch.rand(2, 2, generator=draws) * room).long() + torch.tensor([[0, 0], [24, 0]])
        boxes = torch.cat([corners, corners + sides], dim=1)
        for label, (x0, y0, x1, y1) in enumerate(boxes.tolist()):
            picture[0, y0 : y1 : 1 + label, x0:x1] = 2.0
        objects.append((boxes.float(), torch.arange(2)))
    return shown, objects


@each_detector
def test_a_detector_learns_to_find_and_name_what_it_is_shown(name):
    shown, objects = scenes(32)
    grid, model = Grid(48, 48), built(name).train()
    classes, distances = split_truth(torch.stack([grid.encode(*each, K) for each in objects]))
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    for _ in range(30):
        for rows in torch.arange(32).split(8):
            class_logits, edge_logits, told = split_outputs(model(shown[rows]), K)
            loss = class_loss(class_logits, classes[rows]) + box_loss(told, distances[rows])
            loss = loss + 0.25 * edge_loss(edge_logits, distances[rows])
            optimizer.zero_grad()
            loss.mean().backward()
            optimizer.step()
    model.eval()
    with torch.no_grad():
        class_logits, _, told = split_outputs(model(shown), K)
    found = average_precision(decode(class_logits.log_softmax(-1), told, grid), objects, K)
    assert found["ap50"] > 0.9
