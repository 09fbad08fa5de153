"""Boxes as cells of a grid, and back: what a detector answers with, and what it is taught.

A cell has a class, the last one being background, and the distances from its centre to the four edges of its box, each
as a distribution over BINS steps, so that a detector is as unsure of an edge as it has reason to be. Trade: an object
needs a cell of its own, so of several that share the same few cells some are lost.
"""

from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from torch import Tensor

BINS = 17  # steps of a distance, 0 to 16; Source: Li 2020, section 3 (n = 16)
# Strides from a box's centre within which cells are its own. FCOS takes 1.5, and lowers the scores of cells off the
# centre; without that, what is told from farther off is worse and as likely: 1.0 gains 1 to 3 points of AP on canvases.
RADIUS = 1.0

Boxes = Tensor | np.ndarray


@dataclass(frozen=True)
class Grid:
    """The cells of a picture, G of them, row by row; a last cell may reach beyond the picture's edge.

    height, width, stride in pixels; bin_pixels: pixels a bin, so that edges up to 16 of them away are told.
    """

    height: int
    width: int
    stride: int = 8
    bin_pixels: float = 4.0

    @property
    def num_cells(self) -> int:
        """G."""
        return -(-self.height // self.stride) * -(-self.width // self.stride)

    @cached_property
    def centres(self) -> Tensor:
        """The cells' centres x, y in pixels: float32 [G, 2]."""
        y, x = ((torch.arange(0, side, self.stride) + self.stride / 2).float() for side in (self.height, self.width))
        return torch.stack(torch.meshgrid(x, y, indexing="xy"), dim=-1).reshape(-1, 2)

    def encode(self, boxes: Boxes, labels: Boxes, num_classes: int) -> Tensor:
        """Return what is true of each cell: boxes [n, 4] (x0, y0, x1, y1 in pixels), labels [n] -> float32 [G, 5].

        Column 0 is the class, `num_classes` for background; columns 1-4 are the distances left, top, right and bottom
        in bins, within 0 and BINS - 1, NaN on background. See `owners` for whose a cell is.
        Raises: ValueError for boxes that are not finite or have no area, and for labels that are no class.
        """
        boxes, labels = as_objects(boxes, labels, num_classes)
        truth = np.full((self.num_cells, 5), np.nan, np.float32)
        truth[:, 0] = num_classes
        owner = self.owners(boxes)
        cells = np.flatnonzero(owner >= 0)
        own, centres = boxes[owner[cells]], self.centres.numpy()[cells]
        distances = np.concatenate([centres - own[:, :2], own[:, 2:] - centres], axis=1) / self.bin_pixels
        truth[cells, 0], truth[cells, 1:] = labels[owner[cells]], distances.clip(0, BINS - 1)
        return torch.from_numpy(truth)

    def owners(self, boxes: np.ndarray) -> np.ndarray:
        """Return the number of the box that each cell belongs to, -1 for none: float32 [n, 4] -> int64 [G].

        A cell is a box's where its centre lies in the box and within RADIUS strides of the box's centre along x and y;
        the smallest such box has it. A box left with none takes the nearest cell within that reach that nobody needs:
        a free one, or one of several of another box. Boxes that find none are lost.
        Source: Tian 2019, section 3.2, "centre sampling" of its later version.
        """
        if not len(boxes):
            return np.full(self.num_cells, -1)
        reach, halves = RADIUS * self.stride, (boxes[:, 2:] - boxes[:, :2]) / 2
        offsets = np.abs(self.centres.numpy()[:, None] - boxes[:, :2] - halves)
        is_own, areas = (offsets < np.minimum(halves, reach)).all(-1), halves.prod(-1)
        owner = np.where(is_own.any(-1), np.where(is_own, areas, np.inf).argmin(-1), -1)
        if len(np.unique(owner[owner >= 0])) < len(boxes):
            for box in areas.argsort(kind="stable"):
                if not (owner == box).any():
                    give_cell(owner, box, (offsets[:, box] < reach).all(-1), np.square(offsets[:, box]).sum(-1))
        return owner

    def boxes(self, distances: Tensor) -> Tensor:
        """Return the boxes that cells tell, cut at the picture's edges: bins [..., G, 4] -> pixels [..., G, 4]."""
        centres, reach = self.centres.to(distances.device), distances * self.bin_pixels
        corners = torch.cat([centres - reach[..., :2], centres + reach[..., 2:]], dim=-1)
        far = corners.new_tensor([self.width, self.height, self.width, self.height])
        return corners.clamp(min=0).minimum(far)


def give_cell(owner: np.ndarray, box: int, is_near: np.ndarray, squares: np.ndarray) -> None:
    """Give a box the nearest cell that nobody needs, if there is one: changes `owner` int64 [G] in place.

    is_near bool [G]: which may be its own; squares [G]: how far they are from its centre.
    """
    counts = np.bincount(owner + 1, minlength=2)[1:]
    is_spare = is_near & ((owner < 0) | (counts[owner.clip(min=0)] > 1))
    if is_spare.any():
        owner[np.where(is_spare, squares, np.inf).argmin()] = box


def as_objects(boxes: Boxes, labels: Boxes, num_classes: int) -> tuple[np.ndarray, np.ndarray]:
    """Return boxes float32 [n, 4] and labels int64 [n].

    Raises: ValueError unless boxes are finite and have an area, and labels are of 0 to num_classes - 1.
    """
    boxes, labels = np.asarray(boxes, np.float32).reshape(-1, 4), np.asarray(labels).astype(np.int64).reshape(-1)
    if len(boxes) != len(labels):
        raise ValueError(f"{len(boxes)} boxes and {len(labels)} labels; expected as many")
    if not (np.isfinite(boxes).all() and (boxes[:, 2:] > boxes[:, :2]).all()):
        raise ValueError("a box is not finite or has no area; expected x0 < x1 and y0 < y1")
    if len(labels) and not 0 <= labels.min() <= labels.max() < num_classes:
        raise ValueError(f"labels {labels.min()}..{labels.max()}; expected 0..{num_classes - 1}")
    return boxes, labels


def split_truth(truth: Tensor) -> tuple[Tensor, Tensor]:
    """Return the classes, -1 where unknown, and the distances: [..., G, 5] -> int64 [..., G], [..., G, 4]."""
    return truth[..., 0].nan_to_num(nan=-1).long(), truth[..., 1:]


def width_of(num_classes: int) -> int:
    """Return W, how many numbers a detector of K classes tells of a cell: K + 1 logits, 4 BINS logits, 4 distances."""
    return num_classes + 1 + 4 * BINS + 4


def split_outputs(outputs: Tensor, num_classes: int) -> tuple[Tensor, Tensor, Tensor]:
    """Return views of class logits, edge logits and distances in bins.

    `[..., W] -> [..., K + 1], [..., 4, BINS], [..., 4]`. Raises: ValueError for another width.
    """
    if outputs.shape[-1] != width_of(num_classes):
        raise ValueError(
            f"{outputs.shape[-1]} numbers a cell; expected {width_of(num_classes)}, those of {num_classes}"
        )
    class_logits, edge_logits, distances = outputs.split([num_classes + 1, 4 * BINS, 4], dim=-1)
    return class_logits, edge_logits.unflatten(-1, (4, BINS)), distances


def expected_distances(edge_logits: Tensor) -> Tensor:
    """Return the mean of each edge's distribution, in bins: [..., 4, BINS] -> [..., 4]. Source: Li 2020, equation 5."""
    return edge_logits.softmax(-1) @ torch.arange(BINS, device=edge_logits.device, dtype=edge_logits.dtype)
