"""Average precision: of all, of none, of one class, against a count by hand, and what is refused."""

import math
import sys

import pytest
import torch
from torch import Tensor

from pipeline.detection import Detections, as_detections, average_precision
from pipeline.errors import StillroomError

Objects = list[tuple[Tensor, Tensor]]


def scene(pictures: int = 6, seed: int = 0) -> list[Tensor]:
    """Objects [n, 5] of some pictures, one of them empty."""
    draws = torch.Generator().manual_seed(seed)
    corners = torch.rand(pictures, 3, 2, generator=draws) * 60
    extents = 20 + 10 * torch.rand(pictures, 3, 2, generator=draws)
    labels = torch.randint(0, 3, (pictures, 3, 1), generator=draws).float()
    found = list(torch.cat([labels, corners, corners + extents], dim=-1))
    return [*found[:-1], torch.zeros(0, 5)]


def as_objects(scenes: list[Tensor]) -> Objects:
    return [(each[:, 1:], each[:, 0]) for each in scenes]


def nothing() -> Detections:
    return as_detections(torch.zeros(0, 5))


def test_perfect_detections_have_one_and_none_has_nothing():
    scenes = scene()
    perfect = average_precision([as_detections(each) for each in scenes], as_objects(scenes), 3)
    assert perfect == {"ap": pytest.approx(1), "ap50": pytest.approx(1), "ap75": pytest.approx(1)}
    assert average_precision([nothing() for _ in scenes], as_objects(scenes), 3) == {"ap": 0, "ap50": 0, "ap75": 0}


def test_where_there_is_nothing_to_find_there_is_no_figure():
    found = average_precision([as_detections(scene()[0]), nothing()], as_objects([torch.zeros(0, 5)] * 2), 3)
    assert found.keys() == {"ap", "ap50", "ap75"}
    assert all(math.isnan(value) for value in found.values())


def test_boxes_somewhat_off_count_at_low_overlaps_alone():
    scenes = [torch.tensor([[0.0, 10, 10, 30, 30]])]
    moved = [torch.tensor([[0.0, 14, 10, 34, 30]])]  # overlap 16 / 24
    found = average_precision([as_detections(each) for each in moved], as_objects(scenes), 1)
    assert found["ap50"] == pytest.approx(1)
    assert found["ap75"] == 0
    assert found["ap"] == pytest.approx(0.4)  # at 0.5, 0.55, 0.6 and 0.65 of ten


def test_a_false_alarm_costs_by_how_sure_it_is():
    scenes = [torch.tensor([[0.0, 10, 10, 30, 30], [0.0, 50, 50, 80, 80]])]
    found = as_detections(torch.cat([scenes[0], torch.tensor([[0.0, 60, 10, 80, 30]])]))
    figures = []
    for false_alarm in (0.9, 0.5, 0.1):
        scores = torch.tensor([0.8, 0.4, false_alarm])
        figures.append(average_precision([found._replace(scores=scores)], as_objects(scenes), 1)["ap50"])
    # precision at recalls up to a half and beyond: 2/3 and 2/3; 1 and 2/3; 1 and 1; over 101 recalls
    assert figures == pytest.approx([2 / 3, (51 + 50 * 2 / 3) / 101, 1])


def test_the_figure_is_the_mean_of_classes_that_have_objects():
    scenes = [torch.tensor([[0.0, 10, 10, 30, 30], [2.0, 50, 50, 80, 80]])]
    found = average_precision([as_detections(scenes[0][:1])], as_objects(scenes), 3)
    assert found["ap"] == pytest.approx(0.5)


def test_what_does_not_fit_is_refused():
    with pytest.raises(ValueError, match="detections of 1 pictures, objects of 2; expected as many"):
        average_precision([nothing()], as_objects(scene()[:2]), 3)
    with pytest.raises(ValueError, match="labels"):
        average_precision([nothing()], [(torch.tensor([[0.0, 0, 5, 5]]), torch.tensor([3]))], 3)


@pytest.mark.parametrize("missing", ["torchmetrics.detection", "faster_coco_eval"])
def test_a_missing_package_is_told(missing, monkeypatch):
    monkeypatch.setitem(sys.modules, missing, None)
    with pytest.raises(StillroomError, match=r"average precision: found no .*pip install 'stillroom\[detection\]'"):
        average_precision([nothing()], as_objects(scene()[:1]), 3)
