"""Pictures with boxes: large enough to read, coloured by class, left alone where nothing was found."""

import pytest
import torch

from pipeline.detection import Detections, as_detections, drawn
from pipeline.detection.drawing import COLOURS, LEAST_SIDE

NAMES = ("shirt", "shoe")
NOTHING = as_detections(torch.zeros(0, 5))


@pytest.mark.parametrize("shape", [(1, 96, 96), (3, 128, 128), (3, 40, 60), (1, 300, 400)])
def test_pictures_come_in_colour_scaled_by_a_whole_number(shape):
    pictures = torch.randint(0, 255, (2, *shape), dtype=torch.uint8)
    found = drawn(pictures, [NOTHING, NOTHING], NAMES)
    scale = found.shape[-1] // shape[-1]
    assert found.shape == (2, 3, scale * shape[1], scale * shape[2])
    assert found.dtype == torch.uint8
    assert min(found.shape[-2:]) >= LEAST_SIDE > (scale - 1) * min(shape[1:])
    assert torch.equal(found[..., ::scale, ::scale], pictures.expand(-1, 3, -1, -1))


def test_a_box_is_drawn_where_it_lies_in_the_colour_of_its_class():
    pictures = torch.zeros(2, 1, 96, 96, dtype=torch.uint8)
    objects = torch.tensor([[1.0, 20, 30, 60, 80]])
    one, other = drawn(pictures, [as_detections(objects), NOTHING], NAMES)
    colour = torch.tensor([int(COLOURS[1][i : i + 2], 16) for i in (1, 3, 5)], dtype=torch.uint8)
    assert torch.equal(one[:, 240, 120], colour)  # halfway along the bottom edge, three times as large
    assert not one[:, 150, 120].any()  # inside
    assert not one[:, 280, 280].any()  # beyond
    assert not other.any()


def test_what_is_hardly_likely_is_not_drawn():
    pictures = torch.zeros(1, 1, 96, 96, dtype=torch.uint8)
    found = Detections(torch.tensor([[20.0, 30, 60, 80]]), torch.tensor([0.2]), torch.tensor([0]))
    assert not drawn(pictures, [found], NAMES).any()
    assert drawn(pictures, [found], NAMES, least_score=0.1).any()
