"""Pixels of one picture: decoded with Pillow, to one or three channels, scaled and cropped to a frame."""

from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageOps
from torchvision.transforms.v2 import functional as transforms

from pipeline.errors import StillroomError


def is_grey(picture: torch.Tensor) -> bool:
    """Tell whether all channels of [3, H, W] are equal: the one test that fits grey, palette and RGB files."""
    return bool((picture == picture[:1]).all())


def decode(path: Path, channels: int) -> torch.Tensor:
    """Return the picture uint8 [channels, H, W], turned as its EXIF says. Raises StillroomError naming the file."""
    try:
        with Image.open(path) as image:
            picture = torch.from_numpy(eight_bits(ImageOps.exif_transpose(image)))
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise StillroomError(f"{path}: cannot be decoded ({reason}); expected a picture; mend or remove it") from error
    return with_channels(picture.movedim(-1, 0), channels)


def eight_bits(image: Image.Image) -> np.ndarray:
    """Return pixels uint8 [H, W, 1 or 3]; of 16 bits the upper eight, which Pillow itself would clip."""
    if image.mode.startswith("I"):
        return (np.asarray(image).astype(np.uint32) >> 8).clip(0, 255).astype(np.uint8)[..., None]
    return np.array(image.convert("L" if image.mode in ("1", "L", "LA") else "RGB")).reshape(*image.size[::-1], -1)


def with_channels(picture: torch.Tensor, channels: int) -> torch.Tensor:
    """Return the picture uint8 [C, H, W] with 1 or 3 channels; one that is grey already keeps its values."""
    if picture.shape[0] == channels:
        return picture
    if channels == 3:
        return picture.expand(3, -1, -1)
    return picture[:1] if is_grey(picture) else transforms.rgb_to_grayscale(picture)


def fit(picture: torch.Tensor, height: int, width: int) -> torch.Tensor:
    """Return the picture [C, height, width]: scaled, antialiased, to cover the frame, then centre-cropped."""
    found_height, found_width = picture.shape[1:]
    if (found_height, found_width) == (height, width):
        return picture
    scale = max(height / found_height, width / found_width)
    scaled = [max(height, round(found_height * scale)), max(width, round(found_width * scale))]
    return transforms.center_crop(transforms.resize(picture, scaled, antialias=True), [height, width])
