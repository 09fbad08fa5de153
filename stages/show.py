"""What a stage shows while it works: a progress bar on a terminal, nothing elsewhere."""

from collections.abc import Callable, Iterator, Sequence, Sized
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from rich.console import Console
from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn, TimeRemainingColumn
from torch import nn

from pipeline.train import predict
from pipeline.views import Batch


@dataclass(frozen=True)
class Bar:
    """A progress bar: `to` a step, or on `by` the rows of a block."""

    to: Callable[[int], None]
    by: Callable[[Sized], None]


@contextmanager
def progress(console: Console, text: str, total: int | None) -> Iterator[Bar]:
    """Show a bar for `total` steps or rows (None: a spinner), gone when done; nothing where there is no terminal."""
    columns = (
        SpinnerColumn(),
        TextColumn("{task.description}"),
        BarColumn(),
        TextColumn("{task.completed:,}"),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as bar:
        task = bar.add_task(text, total=total)
        yield Bar(lambda step: bar.update(task, completed=step), lambda block: bar.update(task, advance=len(block)))


def quick_scores(model: nn.Module, batches: Sequence[Batch], precision: str) -> dict[str, float]:
    """Return NLL and accuracy of a model on held-out batches: what training is steered by."""
    log_probs = predict(model, iter(batches), precision=precision)
    labels = torch.cat([batch.labels for batch in batches]).cpu()
    nll = -log_probs.gather(1, labels[:, None]).mean().item()
    return {"nll": nll, "accuracy": (log_probs.argmax(1) == labels).double().mean().item()}
