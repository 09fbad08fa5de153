"""Several processes that train each student together, as torchrun starts them.

`torchrun --nproc-per-node=2 -m stages distill fashion`: the first process makes the stores, evaluates and writes; the
others wait for it, then each takes its share of every batch.
"""

import os
from collections.abc import Iterator
from contextlib import contextmanager

import torch
import torch.distributed as dist

from pipeline.train import Ranks
from stages.workspace import Workspace


@contextmanager
def together(ws: Workspace) -> Iterator[None]:
    """Have the workspace train with all processes of this run: NCCL between GPUs, gloo on CPUs; alone without torchrun.

    Each process of a machine takes a GPU of its own where there are as many.
    """
    count = int(os.environ.get("WORLD_SIZE", "1"))
    if count == 1:
        yield
        return
    local, gpus = int(os.environ.get("LOCAL_RANK", "0")), torch.cuda.device_count()
    if gpus:
        torch.cuda.set_device(local % gpus)
    own_gpus = gpus >= int(os.environ.get("LOCAL_WORLD_SIZE", count))
    dist.init_process_group("nccl" if own_gpus else "gloo")
    ws.ranks = Ranks(dist.get_rank(), count)
    ws.console.quiet = not ws.ranks.is_first
    try:
        yield
    finally:
        dist.destroy_process_group()
