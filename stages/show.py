"""What a stage shows while it works: a progress bar on a terminal, nothing elsewhere."""

from collections.abc import Callable, Iterator, Mapping, Sequence, Sized
from contextlib import contextmanager
from dataclasses import dataclass

from rich.console import Console
from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn, TimeRemainingColumn
from torch import Tensor, nn

from pipeline.tasks import Task
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


def quick_scores(
    model: nn.Module, batches: Sequence[Batch], truth: Tensor, task: Task, precision: str
) -> dict[str, float]:
    """Return what training is steered by, on held-out batches: NLL and accuracy, or errors of real numbers."""
    return task.steering(predict(model, iter(batches), precision=precision, answers=answers_of(task)), truth)


def answers_of(task: Task) -> Callable[[Tensor, Batch], Tensor]:
    """Return what is kept of a model's outputs on a batch."""
    return lambda outputs, batch: task.answers(outputs, task.truth_in(batch))


def in_words(scores: Mapping[str, float], digits: int = 3) -> str:
    """Return a model's figures as a stage says them: accuracy and NLL, or errors of real numbers."""
    if "energy" in scores:
        return f"energy distance {scores['energy']:.4g}, RMSE {scores['rmse']:.4g}"
    if "chrf" in scores:
        nll = f", NLL of a piece {scores['nll']:.{digits}f}" if "nll" in scores else ""
        return f"chrF {scores['chrf'] * 100:.2f}, BLEU {scores['bleu'] * 100:.2f}{nll}"
    if "loss" in scores:
        return f"loss {scores['loss']:.4g}, {scores['accuracy'] * 100:.1f} % of objects' cells right"
    if "mae" in scores:
        return f"MAE {scores['mae']:.4g}, RMSE {scores['rmse']:.4g}"
    return f"accuracy {scores['accuracy']:.{digits}f}, NLL {scores['nll']:.{digits}f}"
