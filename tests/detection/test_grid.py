"""Boxes as cells: whose a cell is, what is told of it, and that boxes come back."""

import numpy as np
import pytest
import torch
from torch import Tensor

from pipeline.detection import BINS, Grid, expected_distances, split_outputs, split_truth, width_of
from pipeline.detection.grid import RADIUS

K = 3
GRIDS = [Grid(96, 96), Grid(64, 104), Grid(50, 61, bin_pixels=3.0), Grid(8, 8), Grid(64, 64, stride=16, bin_pixels=8.0)]


def some_boxes(grid: Grid, count: int, seed: int, *, least: float = 8.0, most: float = 60.0) -> tuple[Tensor, Tensor]:
    """Boxes of all sizes within a picture, and their labels."""
    draws = torch.Generator().manual_seed(seed)
    size = torch.tensor([grid.width, grid.height]).float()
    extents = (least + (most - least) * torch.rand(count, 2, generator=draws)).minimum(size)
    corners = torch.rand(count, 2, generator=draws) * (size - extents)
    return torch.cat([corners, corners + extents], dim=1), torch.randint(0, K, (count,), generator=draws)


def slow_owners(grid: Grid, boxes: list[list[float]]) -> list[int]:
    """Whose each cell is before those that were left with none get one."""
    owners = []
    for x, y in grid.centres.tolist():
        reach = RADIUS * grid.stride
        own = [
            ((x1 - x0) * (y1 - y0), number)
            for number, (x0, y0, x1, y1) in enumerate(boxes)
            if x0 < x < x1 and y0 < y < y1 and abs(x - (x0 + x1) / 2) < reach and abs(y - (y0 + y1) / 2) < reach
        ]
        owners.append(min(own)[1] if own else -1)
    return owners


@pytest.mark.parametrize("grid", GRIDS)
def test_cells_lie_row_by_row_and_cover_the_picture(grid):
    centres = grid.centres
    columns = -(-grid.width // grid.stride)
    assert centres.shape == (grid.num_cells, 2)
    assert centres.dtype == torch.float32
    assert torch.equal(centres[:columns, 0], torch.arange(columns) * grid.stride + grid.stride / 2)
    assert (centres[:columns, 1] == grid.stride / 2).all()
    assert (centres.amax(0) + grid.stride / 2 >= torch.tensor([grid.width, grid.height])).all()
    assert (centres.amax(0) - grid.stride / 2 < torch.tensor([grid.width, grid.height])).all()


@pytest.mark.parametrize("grid", GRIDS)
@pytest.mark.parametrize("seed", range(4))
def test_boxes_come_back_from_every_cell_of_theirs(grid, seed):
    boxes, labels = some_boxes(grid, 1 + seed, seed, least=grid.stride, most=(BINS - 1) * grid.bin_pixels)
    classes, distances = split_truth(grid.encode(boxes, labels, K))
    is_object = classes < K
    told = grid.boxes(distances)[is_object]
    gaps = (told[:, None] - boxes).abs().amax(-1)
    assert is_object.any()
    assert ((gaps < 1e-3) & (labels == classes[is_object, None])).any(1).all()  # in pixels: only rounding is lost


@pytest.mark.parametrize("grid", GRIDS)
@pytest.mark.parametrize("seed", range(4))
def test_whose_a_cell_is_agrees_with_a_loop_where_no_box_went_empty(grid, seed):
    boxes, _ = some_boxes(grid, 4, seed)
    found, slow = grid.owners(boxes.numpy()), np.array(slow_owners(grid, boxes.tolist()))
    missing = set(range(len(boxes))) - set(slow.tolist())
    assert (found != slow).sum() <= len(missing)
    assert all(number in missing for number in found[found != slow].tolist())


@pytest.mark.parametrize("seed", range(6))
def test_every_box_has_a_cell_while_there_are_enough(seed):
    grid = Grid(96, 96)
    boxes, labels = some_boxes(grid, 12, seed, least=2.0, most=90.0)
    owners = grid.owners(boxes.numpy())
    assert set(range(12)) <= set(owners.tolist())
    order = torch.randperm(12, generator=torch.Generator().manual_seed(seed))
    moved = grid.encode(boxes[order], labels[order], K)
    assert torch.equal(moved.nan_to_num(-1), grid.encode(boxes, labels, K).nan_to_num(-1)), "the order decides nothing"


def test_boxes_about_one_point_share_its_cells_and_the_rest_are_lost():
    grid = Grid(96, 96)
    boxes = torch.stack([torch.tensor([49 - s, 49 - s, 49 + s, 49 + s]) for s in (7, 8, 30, 31)]).float()
    assert set(grid.owners(boxes.numpy()).tolist()) == {-1, 0, 1, 2, 3}
    alike = torch.tensor([[45.5, 45.5, 52.5, 52.5]]).repeat(20, 1)  # more than there are cells within reach
    owners = grid.owners(alike.numpy())
    assert (owners >= 0).sum() == len(set(owners.tolist()) - {-1}) == 4


def test_a_box_smaller_than_a_cell_has_the_nearest_and_edges_there_are_none_nearer():
    grid = Grid(32, 32)
    truth = grid.encode(torch.tensor([[7.0, 7.0, 9.0, 9.5]]), torch.tensor([1]), K)
    (cell,) = (truth[:, 0] == 1).nonzero().flatten().tolist()
    assert grid.centres[cell].tolist() == [4.0, 12.0]
    assert truth[cell, 1:].tolist() == [0.0, 1.25, 1.25, 0.0]  # left of the box, and below it: within 0 and 16 bins


def test_distances_are_cut_at_the_last_bin():
    grid = Grid(256, 256)
    _, distances = split_truth(grid.encode(torch.tensor([[0.0, 0.0, 256.0, 250.0]]), torch.tensor([0]), K))
    assert distances.nan_to_num().max() == BINS - 1
    assert grid.boxes(distances).nan_to_num().max() <= 256


def test_a_picture_without_objects_is_background_and_one_that_is_hidden_unknown():
    grid = Grid(40, 40)
    empty = grid.encode(np.zeros((0, 4), np.float32), np.zeros(0, np.int64), K)
    assert empty.shape == (25, 5)
    assert empty.dtype == torch.float32
    classes, distances = split_truth(torch.stack([empty, torch.full((25, 5), torch.nan)]))
    assert (classes[0] == K).all()
    assert (classes[1] == -1).all()
    assert distances.isnan().all()


def test_boxes_are_cut_at_the_edges_of_the_picture():
    grid = Grid(24, 40)
    told = grid.boxes(torch.full((2, 15, 4), 16.0))
    assert torch.equal(told, torch.tensor([0.0, 0.0, 40.0, 24.0]).expand(2, 15, 4))


@pytest.mark.parametrize(
    ("boxes", "labels", "message"),
    [
        ([[0, 0, 5, 5]], [K], "labels 3..3; expected 0..2"),
        ([[0, 0, 5, 5]], [-1], r"labels -1..-1; expected 0..2"),
        ([[5, 0, 5, 5]], [0], "no area"),
        ([[0, 0, float("nan"), 5]], [0], "not finite"),
        ([[0, 0, 5, 5]], [0, 1], "1 boxes and 2 labels"),
    ],
)
def test_what_is_no_object_is_refused(boxes, labels, message):
    with pytest.raises(ValueError, match=message):
        Grid(32, 32).encode(torch.tensor(boxes), torch.tensor(labels), K)


def test_outputs_come_apart_where_they_were_joined():
    outputs = torch.randn(2, 6, width_of(K), generator=torch.Generator().manual_seed(0))
    class_logits, edge_logits, distances = split_outputs(outputs, K)
    assert class_logits.shape == (2, 6, K + 1)
    assert edge_logits.shape == (2, 6, 4, BINS)
    assert distances.shape == (2, 6, 4)
    assert torch.equal(torch.cat([class_logits, edge_logits.flatten(-2), distances], -1), outputs)
    with pytest.raises(ValueError, match=rf"numbers a cell; expected {width_of(2)}, those of 2"):
        split_outputs(outputs, 2)


def test_a_sure_edge_is_where_it_is_and_an_unsure_one_in_the_middle():
    logits = torch.zeros(4, BINS)
    logits[torch.arange(3), torch.tensor([0, 5, 16])] = 100.0
    assert expected_distances(logits).tolist() == pytest.approx([0, 5, 16, 8])
