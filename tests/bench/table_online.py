"""make table-online: a student from the store beside the same one with its teachers in the loop, by five seeds.

Both take the same steps, loss, seeds and first weights; the store shows its views again and again, the loop shows each
view once, so it is what a store stands in for. Of recipes of pictures. Resumable: whatever is finished is found.
"""

import argparse
import math
from functools import partial
from pathlib import Path

from rich.console import Console

from pipeline.datasets import ImageDataset
from pipeline.errors import StillroomError
from stages import fuse
from stages.command import guarded
from stages.estimators import is_estimator
from stages.load import load_recipe
from stages.memory import keep_freed_memory
from stages.runs import Run, fusion_of
from stages.workspace import Workspace
from tests.bench.online import Online, live_loader
from tests.bench.training import beside, steps_of, stored_loader, trained


def compare(asked: argparse.Namespace) -> None:
    """Train both, print the table. Raises: StillroomError for a recipe or student that can't be compared."""
    if asked.seeds < 2 or not 0 < asked.epochs < math.inf:
        raise StillroomError(
            f"table-online: found --seeds {asked.seeds} and --epochs {asked.epochs:g}; expected 2 seeds or more, for "
            f"the interval, and epochs above 0; correct them"
        )
    ws = Workspace(load_recipe(asked.recipe, asked.set), Path("data"), Console())
    entry = ws.recipe.find("student", asked.student)
    fusion = fusion_of(ws, entry)
    if fusion is None or not ws.is_stored(fusion) or is_estimator(entry) or not isinstance(ws.dataset, ImageDataset):
        raise StillroomError(
            f"table-online: found student {entry.name!r} of recipe {ws.recipe.name!r}; expected a network that learns "
            f"pictures from a stored fusion; name another by --student or --recipe"
        )
    fuse.ensure_teacher_stores(ws)
    fuse.ensure(ws, fusion)
    together = entry.model_copy(update={"epochs": asked.epochs, "order_seed": 0})  # teachers answer all seeds at once
    jobs = [Run(together, "student", seed, fusion) for seed in range(asked.seeds)]
    answered = Online(ws, fusion, temperature=entry.loss.temperature)
    views, (steps, _) = math.ceil(asked.epochs), steps_of(ws, jobs[0])
    ws.say("distill", f"stored targets are KL {answered.kl_of_stored():.1e} nats from what the teachers answer live")
    stored = trained(ws, jobs, partial(stored_loader, ws, jobs, ws.replayer), views=ws.plan.count)
    live = trained(ws, jobs, partial(live_loader, ws, jobs, answered, views), online=views)
    columns = (f"{entry.name}, {steps:,} steps", "accuracy, %", "NLL", "minus the loop, points", "p", "NLL", "p")
    print(f"\n| {' | '.join(columns)} |\n{'|---' * len(columns)}|")
    print(f"| from {ws.plan.count} stored views | {' | '.join(beside(stored, live))} |")
    print(f"| teachers in the loop | {' | '.join(beside(live, live))} |")


def main() -> None:
    """Read what is asked and compare."""
    parser = argparse.ArgumentParser(prog="make table-online")
    parser.add_argument("--recipe", default="fashion-full")
    parser.add_argument("--student", default="wide")
    parser.add_argument("--epochs", type=float, default=16.0, help="of the student, in which teachers answer every row")
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--set", action="append", default=[], metavar="PATH=VALUE", help="override the recipe")
    asked = parser.parse_args()
    keep_freed_memory()
    guarded(partial(compare, asked), debug=False)


if __name__ == "__main__":
    main()
