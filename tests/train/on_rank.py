"""Trainings that several processes share: `python on_rank.py RANK COUNT FOLDER` runs them all as one of the ranks."""

import sys
from collections.abc import Callable
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
from company import Charged, Many, guided, made, make_rows, mlp, network
from torch import distributed
from toys import Killed

from pipeline.losses import cross_entropy
from pipeline.train import Fitted, Ranks, Run, Trainee, fit_together, predict


@dataclass(frozen=True)
class Case:
    """A run, its loader's options, and the step at which all processes are killed once, None for never."""

    make: Callable[[], Run]
    options: dict[str, Any]
    kill: int | None = None


CASES = {
    "even": Case(lambda: made(mlp()), {"batch_size": 20}),
    "uneven": Case(lambda: made(mlp(seed=1), clip=0.5, ema=0.9), {"batch_size": 7}),
    "one row": Case(lambda: made(mlp()), {"batch_size": 2, "positions": torch.arange(5).numpy()}),
    "guided": Case(lambda: guided(mlp(seed=4)), {"batch_size": 7}),
    "charged": Case(lambda: made(Charged()), {"batch_size": 7}),
    "members": Case(lambda: made(network("hydra", trunk="mlp", width=8, depth=1, heads=2)), {"batch_size": 7}),
    "killed": Case(lambda: guided(mlp(seed=5), ema=0.9), {"batch_size": 7}, kill=5),
}


def trained(name: str, ranks: Ranks, folder: Path) -> dict[str, Any]:
    """What a training leaves: first gradients, weights at the end, what learned beside, history, rows."""
    case, rows = CASES[name], make_rows()
    held_out = rows.batch("calibration", 0, torch.arange(8).numpy())

    def evaluate(model: torch.nn.Module) -> dict[str, float]:
        return {"nll": cross_entropy(predict(model, iter([held_out])), held_out.labels).mean().item()}

    def going(kill: int | None) -> dict[str, Any]:
        run, grads = case.make(), {}
        run.ranks = ranks

        def on_step(step: int) -> None:
            if step == 1:
                grads.update({k: p.grad.clone() for k, p in run.model.named_parameters()})
            if step == kill:
                raise Killed

        trainee = Trainee(run, evaluate, folder / f"{name}.pt", on_step)
        loader = Many(rows, 1, share=ranks.share, **case.options)
        ((_, fitted),) = fit_together([trainee], loader, checkpoint_seconds=0.0)
        assert isinstance(fitted, Fitted), fitted
        beside = {} if run.companion is None else run.companion.state_dict()
        return {
            "grads": grads,
            "weights": run.model.state_dict(),
            "beside": {k: v for k, v in beside.items() if isinstance(v, torch.Tensor)},
            "history": fitted.history,
            "rows": fitted.rows,
        }

    if case.kill is not None:
        try:
            going(case.kill)
        except Killed:
            ranks.from_first(None)  # new processes would start after the last checkpoint is written, too
            torch.rand(3)
    return going(None)


if __name__ == "__main__":
    rank, count, folder = int(sys.argv[1]), int(sys.argv[2]), Path(sys.argv[3])
    torch.set_num_threads(1)
    store = f"file://{folder}/meeting"
    distributed.init_process_group("gloo", store, rank=rank, world_size=count, timeout=timedelta(seconds=120))
    found = {name: trained(name, Ranks(rank, count), folder) for name in CASES}
    torch.save(found, folder / f"rank{rank}.pt")
    distributed.destroy_process_group()
