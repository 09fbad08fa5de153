"""Several processes that train one model: each takes its share of every batch, and their gradients are added up.

Whatever their number, the batches are the same and each case counts once, so the gradient is that of one process up to
rounding. What is a matter of the batch (batch norm's means, losses between rows) is taken over each one's share.

Trade: one sum of all gradients after the backward pass, and not DistributedDataParallel's buckets beside it: a student
is small, several of them share a pass and what learns beside them has gradients too, all in one message.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn


@dataclass(frozen=True)
class Ranks:
    """This process among those that train together; alone by default."""

    rank: int = 0
    count: int = 1

    @property
    def is_first(self) -> bool:
        """Whether this is the one that evaluates and writes."""
        return self.rank == 0

    @property
    def share(self) -> tuple[int, int]:
        """(rank, ranks): the part of each batch that is this process's."""
        return self.rank, self.count

    def wait(self) -> None:
        """Wait until all processes are here."""
        if self.count > 1:
            dist.barrier()

    def add_gradients(self, parameters: Iterable[nn.Parameter]) -> None:
        """Make every gradient the sum of all processes': each has averaged over the whole batch's number of cases."""
        if self.count == 1:
            return
        learning = [parameter for parameter in parameters if parameter.requires_grad]
        for parameter in learning:
            if parameter.grad is None:
                parameter.grad = torch.zeros_like(parameter)
        if learning:
            gradients = [parameter.grad for parameter in learning if parameter.grad is not None]
            flat = torch.cat([gradient.reshape(-1).float() for gradient in gradients])
            dist.all_reduce(flat)
            parts = flat.split([gradient.numel() for gradient in gradients])
            for gradient, part in zip(gradients, parts, strict=True):
                gradient.copy_(part.view_as(gradient))

    def average_buffers(self, model: nn.Module) -> None:
        """Make running means the average of all processes'."""
        if self.count > 1:
            for buffer in model.buffers():
                if buffer.is_floating_point():
                    dist.all_reduce(buffer)
                    buffer /= self.count

    def sums(self, values: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return the sum of each value over all processes."""
        if self.count > 1:
            for value in values.values():
                dist.all_reduce(value)
        return dict(values)

    def from_first(self, value: Any) -> Any:
        """Return what the first process has: decisions are taken once."""
        if self.count == 1:
            return value
        box = [value]
        dist.broadcast_object_list(box, src=0)
        return box[0]


ALONE = Ranks()
