"""What data sets of pictures with boxes give: pixels, the objects on them, and which pictures stay together."""

from typing import NamedTuple

import numpy as np


class ObjectPictures(NamedTuple):
    """Pictures with the boxes of what they show, those of the train half first.

    pixels: uint8 [N, C, H, W]; objects: for each picture float32 [n, 5], class and box (x0, y0, x1, y1) in pixels,
    where x1 and y1 are the first beyond the object; is_test: bool [N]; units: int64 [N], pictures of one value share
    pixels and belong in one split.
    """

    pixels: np.ndarray
    objects: list[np.ndarray]
    is_test: np.ndarray
    units: np.ndarray
