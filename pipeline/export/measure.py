"""What a model costs to run: milliseconds a call, and multiply-adds a picture."""

import time
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from pipeline.export.deployed import Model
from pipeline.models.trial import in_eval_mode

WARM_UP = 3  # calls before the first that counts: the first one allocates and picks kernels


class Latency(NamedTuple):
    """Median and interquartile range of a call, in milliseconds."""

    median: float
    iqr: float


@torch.inference_mode()
def latency(model: Model, example: Tensor, *, repeats: int) -> Latency:
    """Return how long a call on `example` takes, over `repeats` calls."""
    if repeats < 1:
        raise ValueError(f"repeats = {repeats}; expected 1 or more")
    milliseconds = []
    for _ in range(WARM_UP + repeats):
        _wait_for(example)
        started = time.perf_counter()
        model(example)
        _wait_for(example)
        milliseconds.append(1000 * (time.perf_counter() - started))
    timed = torch.tensor(milliseconds[WARM_UP:], dtype=torch.float64)
    low, median, high = timed.quantile(timed.new_tensor([0.25, 0.5, 0.75]))
    return Latency(median.item(), (high - low).item())


def _wait_for(example: Tensor) -> None:
    """Wait for a GPU, whose calls return before they are done."""
    if example.device.type == "cuda":
        torch.cuda.synchronize(example.device)


@torch.no_grad()
def multiply_adds(module: nn.Module, example: Tensor) -> int:
    """Return the multiply-adds of one picture in convolutions, matrix products and attention; example: [B, C, H, W]."""
    with in_eval_mode(module), FlopCounterMode(display=False) as counter:
        module(example[:1])
    return counter.get_total_flops() // 2  # torch counts a multiply-add as two operations
