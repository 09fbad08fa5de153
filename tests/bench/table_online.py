"""make table-online: a student from the store beside the same one with its teachers in the loop, by five seeds.

Both take the same steps, loss, seeds and first weights; the store shows its views again and again, the loop shows each
view once, so it is what a store stands in for. Resumable: whatever is finished is found.
"""

import argparse
import math
from collections.abc import Sequence
from functools import partial
from pathlib import Path

from rich.console import Console

from pipeline.errors import StillroomError
from pipeline.loader import SharedLoader
from stages import fuse
from stages.load import load_recipe
from stages.memory import keep_freed_memory
from stages.runs import Run, fusion_of
from stages.workspace import Workspace
from tests.bench.online import Online, live_loader
from tests.bench.training import Seen, beside, reading, steps_of, trained


def stored_loader(ws: Workspace, jobs: Sequence[Run]) -> Seen:
    """Return what shows all runs the store's views with its targets."""
    size, seed = jobs[0].entry.batch_size, jobs[0].order_seed
    loader = SharedLoader([reading(ws, jobs[0])], ws.replayer, batch_size=size, seed=seed)
    return Seen(loader, lambda shown: [shown[0]] * len(jobs))


def main() -> None:
    """Train both, print the table."""
    parser = argparse.ArgumentParser(prog="make table-online")
    parser.add_argument("--recipe", default="fashion-full")
    parser.add_argument("--student", default="wide")
    parser.add_argument("--epochs", type=float, default=16.0, help="of the student, in which teachers answer every row")
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--set", action="append", default=[], metavar="PATH=VALUE", help="override the recipe")
    asked = parser.parse_args()
    keep_freed_memory()
    ws = Workspace(load_recipe(asked.recipe, asked.set), Path("data"), Console())
    entry = ws.recipe.find("student", asked.student)
    fuse.ensure_teacher_stores(ws)
    fusion = fusion_of(ws, entry)
    if fusion is None or not ws.is_stored(fusion):
        raise SystemExit(f"error: student.{entry.name}: found {entry.fusion!r}; expected a stored fusion; name another")
    fuse.ensure(ws, fusion)
    together = entry.model_copy(update={"epochs": asked.epochs, "order_seed": 0})  # teachers answer all seeds at once
    jobs = [Run(together, "student", seed, fusion) for seed in range(asked.seeds)]
    answered = Online(ws, fusion, temperature=entry.loss.temperature)
    views, (steps, _) = math.ceil(asked.epochs), steps_of(ws, jobs[0])
    ws.say("distill", f"stored targets are KL {answered.kl_of_stored():.1e} nats from what the teachers answer live")
    try:
        stored = trained(ws, jobs, partial(stored_loader, ws, jobs), views=ws.plan.count)
        live = trained(ws, jobs, partial(live_loader, ws, jobs, answered, views), online=views)
    except StillroomError as error:
        raise SystemExit(f"error: {error}") from None
    columns = (f"{entry.name}, {steps:,} steps", "accuracy, %", "NLL", "minus the loop, points", "p", "NLL", "p")
    print(f"\n| {' | '.join(columns)} |\n{'|---' * len(columns)}|")
    print(f"| from {ws.plan.count} stored views | {' | '.join(beside(stored, live))} |")
    print(f"| teachers in the loop | {' | '.join(beside(live, live))} |")


if __name__ == "__main__":
    main()
