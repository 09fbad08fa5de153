"""From the device to the host without making either wait: pinned buffers, a stream of their own, threads beside.

On a GPU the copy of one block runs while the next is computed; on a CPU there is nothing to copy and nothing to wait
for, and the same calls cost nothing.
"""

import queue
import threading
import time
from collections.abc import Callable, Iterator, Mapping

import numpy as np
import torch
from torch import Tensor

Arrays = dict[str, np.ndarray]


class HostCopies:
    """Copies of blocks of tensors on their way to the host, at most `depth` of them at once.

    `send` waits while all buffers are taken: what is computed cannot run ahead of what is written.
    """

    def __init__(self, device: torch.device, depth: int = 4):
        self._device, self._free = device, threading.BoundedSemaphore(depth)
        self._stream = torch.cuda.Stream(device) if device.type == "cuda" else None

    def send(self, tensors: Mapping[str, Tensor]) -> Callable[[], Arrays]:
        """Start copying; the function returned waits for the copy and gives it, once, as NumPy arrays."""
        self._free.acquire()
        if self._stream is None:
            return lambda: self._give({name: values.cpu() for name, values in tensors.items()})
        self._stream.wait_stream(torch.cuda.current_stream(self._device))
        with torch.cuda.stream(self._stream):
            # pinned memory comes from torch's cache, so that a buffer is pinned once and not once a block
            pinned = {n: torch.empty(v.shape, dtype=v.dtype, pin_memory=True) for n, v in tensors.items()}
            for name, values in tensors.items():
                pinned[name].copy_(values, non_blocking=True)
                values.record_stream(self._stream)
            arrived = torch.cuda.Event()
            arrived.record(self._stream)

        def wait() -> Arrays:
            arrived.synchronize()
            return self._give(pinned)

        return wait

    def _give(self, tensors: Mapping[str, Tensor]) -> Arrays:
        self._free.release()
        return {name: values.numpy() for name, values in tensors.items()}


class Stopwatch:
    """Seconds of work on a device: on a GPU by its own events, so that nobody waits to know the time."""

    def __init__(self, device: torch.device):
        self._on_gpu, self._total, self._begun = device.type == "cuda", 0.0, 0.0
        self._events: list[tuple[torch.cuda.Event, torch.cuda.Event]] = []

    def __enter__(self) -> "Stopwatch":
        if self._on_gpu:
            begun, ended = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            self._events.append((begun, ended))
            begun.record()
        else:
            self._begun = time.perf_counter()
        return self

    def __exit__(self, *exception: object) -> None:
        if self._on_gpu:
            self._events[-1][1].record()
        else:
            self._total += time.perf_counter() - self._begun

    @property
    def seconds(self) -> float:
        """All of it so far; on a GPU, waits until it is done."""
        if self._events:
            self._events[-1][1].synchronize()
        return self._total + sum(begun.elapsed_time(ended) for begun, ended in self._events) / 1000


def prefetched[T](items: Iterator[T], device: torch.device) -> Iterator[T]:
    """Yield the items, made one ahead by a thread where the device is a GPU: a CPU's cores have work already."""
    return in_background(items) if device.type == "cuda" else items


def in_background[T](items: Iterator[T]) -> Iterator[T]:
    """Yield the items, each made by a thread while the one before is used; raises what making them raised."""
    ready = queue.Queue[tuple[T | None, BaseException | None]](1)
    stopped = threading.Event()

    def put(item: T | None, error: BaseException | None) -> bool:
        while not stopped.is_set():
            try:
                ready.put((item, error), timeout=0.1)
                return True
            except queue.Full:
                continue
        return False

    def make() -> None:
        try:
            for item in items:
                if not put(item, None):
                    return
            put(None, StopIteration())
        except BaseException as error:
            put(None, error)

    thread = threading.Thread(target=make, name="stillroom-replay", daemon=True)
    thread.start()
    try:
        while True:
            item, error = ready.get()
            if isinstance(error, StopIteration):
                return
            if error is not None:
                raise error
            yield item  # type: ignore[misc]
    finally:
        stopped.set()
        thread.join()
