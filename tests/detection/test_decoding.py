"""From cells to boxes: what is sure comes back, what overlaps goes, and nothing else."""

import pytest
import torch
from torch import Tensor

from pipeline.detection import Detections, Grid, as_detections, decode, split_truth

K = 3
GRID = Grid(96, 96)
OBJECTS = torch.tensor([[0, 4, 5, 30, 40], [2, 50, 8, 80, 30], [1, 20, 60, 90, 90]]).float()


def told(objects: Tensor, sure: float = 0.9) -> tuple[Tensor, Tensor]:
    """What a detector says that is right: log-probabilities [1, G, K + 1] and distances [1, G, 4]."""
    classes, distances = split_truth(GRID.encode(objects[:, 1:], objects[:, 0], K))
    probs = torch.full((GRID.num_cells, K + 1), (1 - sure) / K)
    probs.scatter_(1, classes.unsqueeze(1), sure)
    return probs.log().unsqueeze(0), distances.nan_to_num(1.0).unsqueeze(0)


def test_objects_come_back_once_each_likeliest_first():
    (found,) = decode(*told(OBJECTS), GRID)
    assert sorted(found.labels.tolist()) == [0, 1, 2]
    order = found.labels.argsort()
    torch.testing.assert_close(found.boxes[order], OBJECTS[OBJECTS[:, 0].argsort(), 1:], atol=0.01, rtol=0)
    assert found.scores.tolist() == pytest.approx([0.9] * 3)
    assert found.labels.dtype == torch.int64


def test_no_background_is_found():
    log_probs = torch.full((2, GRID.num_cells, K + 1), -20.0)
    log_probs[..., K] = 0.0
    for found in decode(log_probs, torch.ones(2, GRID.num_cells, 4), GRID):
        assert [len(each) for each in found] == [0, 0, 0]
        assert found.boxes.shape == (0, 4)


def test_pictures_are_decoded_apart():
    log_probs, distances = told(OBJECTS)
    empty = log_probs.roll(1, dims=-1)[..., :] * 0 + torch.tensor([-20.0, -20.0, -20.0, 0.0])
    both = decode(torch.cat([log_probs, empty]), distances.expand(2, -1, -1), GRID)
    (alone,) = decode(log_probs, distances, GRID)
    assert all(torch.equal(a, b) for a, b in zip(both[0], alone, strict=True))
    assert not len(both[1].boxes)


def slow_decode(probs: Tensor, boxes: Tensor, least: float, overlap: float, most: int) -> list[tuple[float, int, int]]:
    """(score, label, cell) of what is kept, by a loop."""
    cells = [(probs[c, k].item(), k, c) for c in range(len(probs)) for k in range(K) if probs[c, k] >= least]
    kept: list[tuple[float, int, int]] = []
    for score, label, cell in sorted(cells, key=lambda each: -each[0]):
        if all(other != label or iou(boxes[cell], boxes[c]) <= overlap for _, other, c in kept):
            kept.append((score, label, cell))
    return kept[:most]


def iou(box: Tensor, other: Tensor) -> float:
    width = max(0.0, min(box[2], other[2]).item() - max(box[0], other[0]).item())
    height = max(0.0, min(box[3], other[3]).item() - max(box[1], other[1]).item())
    areas = [((each[2] - each[0]) * (each[3] - each[1])).item() for each in (box, other)]
    return width * height / (sum(areas) - width * height)


@pytest.mark.parametrize("options", [(0.05, 0.5, 100), (0.3, 0.2, 100), (0.05, 0.9, 7)])
def test_what_is_kept_agrees_with_a_loop(options):
    draws = torch.Generator().manual_seed(3)
    grid = Grid(40, 48)
    log_probs = (2 * torch.randn(1, grid.num_cells, K + 1, generator=draws)).log_softmax(-1)
    distances = 1 + 4 * torch.rand(1, grid.num_cells, 4, generator=draws)
    least, overlap, most = options
    (found,) = decode(log_probs, distances, grid, least_score=least, overlap=overlap, most=most)
    slow = slow_decode(log_probs[0].exp(), grid.boxes(distances)[0], *options)
    assert found.scores.tolist() == pytest.approx([score for score, _, _ in slow])
    assert found.labels.tolist() == [label for _, label, _ in slow]
    torch.testing.assert_close(found.boxes, grid.boxes(distances)[0, [cell for _, _, cell in slow]])


def test_objects_are_detections_of_score_one():
    found = as_detections(OBJECTS)
    assert isinstance(found, Detections)
    assert torch.equal(found.boxes, OBJECTS[:, 1:])
    assert found.labels.tolist() == [0, 2, 1]
    assert found.scores.tolist() == [1, 1, 1]
    assert as_detections(torch.zeros(0, 5)).boxes.shape == (0, 4)
