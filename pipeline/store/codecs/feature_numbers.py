"""What feature codecs do with numbers: project them, put them on a grid of a byte, round their bits.

Bits are the same for blocks of any size, on any number of threads and on any device.
"""

import math
from typing import Literal

import numpy as np
import torch
from torch import Tensor

Arrays = dict[str, np.ndarray]
Dtype = Literal["float16", "uint8"]

FP16_BITS = 10  # of a half's significand, that are stored
LEVELS = 255  # steps of a byte
MARGIN = 0.25  # of the sample's range, on either side: steps 1.25 times as large cost less than tails that are clipped
FRACTION_BITS = 22  # of a projection's entries, which float32 holds exactly up to 4
FEW_ROWS = 1024  # projected at once: what they need in float64 stays in the cache, 2-4 times faster than 16,384 rows


def exact_product(rows: Tensor, components: np.ndarray) -> Tensor:
    """Return rows @ components.T, each row's bits the same in any company: [B, D], [k, D] -> float64 [B, k].

    A matrix product adds up in an order that depends on the number of rows, on threads and on the device, and its
    last bits with it: rounded to fp16, some numbers would differ from block size to block size. Here every order gives
    the same sum, because every sum is exact: the components are multiples of 2^-22, each row is rounded to multiples
    of its own unit, and the unit is such that no sum of products needs more than the 53 bits of float64. At D = 512 it
    is 2^-25 of the row's largest value or less; float32 would keep that value to 2^-24.
    """
    _, exponent = math.frexp(np.abs(components).sum(1, dtype=np.float64).max())  # exact: multiples of 2^-22 again
    bits = 53 - FRACTION_BITS - exponent
    rows = rows.double()
    largest = rows.abs().amax(-1, keepdim=True).clamp(min=2.0**-200)
    mantissa, _ = torch.frexp(largest)
    unit = largest / mantissa * 2.0**-bits  # largest / mantissa is a power of two, exactly
    return (rows / unit).round() @ beside(rows, components).T * unit


def project(features: Tensor, arrays: Arrays) -> Tensor:
    """Return features along the components, less the mean where there is one: [B, D] -> float64 [B, k]."""
    return torch.cat([_project_few(few, arrays) for few in features.split(FEW_ROWS)])


def _project_few(features: Tensor, arrays: Arrays) -> Tensor:
    rows = features.double()
    if "mean" in arrays:
        rows = rows - beside(rows, arrays["mean"])
    return exact_product(rows, arrays["components"])


def principal_components(sample: Tensor, dims: int) -> Arrays:
    """Return the mean and the first components, the largest entry of each positive: float64 [n, D] -> [D], [k, D]."""
    mean = sample.mean(0)
    centred = sample - mean
    _, vectors = torch.linalg.eigh(centred.T @ centred / len(sample))  # from the smallest variance to the largest
    components = vectors.flip(1)[:, :dims].T
    largest = components.gather(1, components.abs().argmax(1, keepdim=True))
    return {"mean": mean.float().numpy(), "components": _multiples((components * largest.sign()).numpy())}


def random_directions(width: int, dims: int, seed: int) -> Arrays:
    """Return k orthonormal directions drawn evenly from all of them, times sqrt(D / k): components [k, D]."""
    normal = np.random.default_rng(seed).standard_normal((width, min(dims, width)))
    basis, triangle = np.linalg.qr(normal)
    basis *= np.where(np.diag(triangle) < 0, -1, 1)  # LAPACK's choice of signs isn't part of the draw
    return {"components": _multiples(basis.T * math.sqrt(width / basis.shape[1]))}


def _multiples(components: np.ndarray) -> np.ndarray:
    return (np.round(components * 2**FRACTION_BITS) / 2**FRACTION_BITS).astype(np.float32)


def fit_grid(numbers: Tensor) -> Arrays:
    """Return where each channel's grid begins and its step, wide enough for the sample and a margin: [n, k] -> [k]."""
    low, high = numbers.amin(0), numbers.amax(0)
    margin = MARGIN * (high - low)
    low = torch.where(low < 0, low - margin, (low - margin).clamp(min=0))  # what is never negative keeps an exact 0
    high = torch.where(high > 0, high + margin, (high + margin).clamp(max=0))
    return {"low": low.float().numpy(), "step": ((high - low) / LEVELS).float().numpy()}


def to_grid(numbers: Tensor, arrays: Arrays) -> Tensor:
    """Return each number's step on its channel's grid, those beyond it at its ends: [B, k] -> uint8 [B, k]."""
    low, step = beside(numbers, arrays["low"]), beside(numbers, arrays["step"])
    steps = (numbers - low) / step.where(step > 0, math.inf)  # a constant channel has the one level 0
    return steps.round_().clamp_(0, LEVELS).to(torch.uint8)


def from_grid(stored: Tensor, arrays: Arrays) -> Tensor:
    """Return the numbers that steps stand for: uint8 [B, k] -> float32 [B, k]."""
    codes = stored.float()
    return codes * beside(codes, arrays["step"]) + beside(codes, arrays["low"])


def round_bits(halves: Tensor, keep: int) -> Tensor:
    """Return halves with `keep` bits of their significand, rounded to nearest, ties to even."""
    dropped = FP16_BITS - keep
    if dropped == 0:
        return halves
    bits = halves.view(torch.int16)
    nearest_even = ((bits >> dropped) & 1) + ((1 << (dropped - 1)) - 1)
    return ((bits + nearest_even) & -(1 << dropped)).view(torch.float16)


def grid_shapes(width: int, dtype: Dtype) -> dict[str, tuple[int, ...]]:
    """Return the arrays that a grid of so many channels leaves, none where numbers are halves."""
    return {"low": (width,), "step": (width,)} if dtype == "uint8" else {}


def beside(like: Tensor, array: np.ndarray) -> Tensor:
    """Return an array as a tensor of the type and on the device of another."""
    return torch.from_numpy(array).to(like.device, like.dtype)
