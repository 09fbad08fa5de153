"""A student as it is given away: pictures as they are in files go in, log-probabilities come out.

What turns pixels into the student's inputs is part of the module, so that nobody can standardise wrongly. The trade:
scaling and cropping to the student's size stay outside, for they depend on how pictures are decoded.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import torch
from torch import Tensor, nn

from pipeline.errors import StillroomError

TOLERANCE = 1e-4  # nats: float32 sums in another order differ by a tenth of it, a wrong layer by far more

Model = Callable[[Tensor], Tensor]  # pictures [B, C, H, W] -> log-probabilities [B, num_classes]


class Deployed(nn.Module):
    """A student behind its standardisation, in evaluation mode. `mean` and `std` are per channel, of pixels in [0, 1].

    A student whose answers are log-probabilities already (an ensemble's) gives them back unchanged.
    """

    def __init__(self, student: nn.Module, *, mean: Sequence[float], std: Sequence[float]) -> None:
        super().__init__()
        if len(mean) != len(std):
            raise ValueError(f"{len(mean)} means and {len(std)} standard deviations; expected one of each a channel")
        self.student = student
        self.mean: Tensor
        self.std: Tensor
        self.register_buffer("mean", torch.tensor(mean, dtype=torch.float32).view(-1, 1, 1))
        self.register_buffer("std", torch.tensor(std, dtype=torch.float32).view(-1, 1, 1))
        self.eval()

    def forward(self, pictures: Tensor) -> Tensor:
        """[B, C, H, W], uint8 or float, in 0..255 -> log-probabilities float32 [B, num_classes]."""
        inputs = (pictures.float() / 255 - self.mean) / self.std  # in this order, as students saw them in training
        return self.student(inputs).float().log_softmax(-1)


@torch.inference_mode()
def answers(model: Model, pictures: Tensor, *, batch_size: int = 256) -> Tensor:
    """Return a model's log-probabilities float32 [N, num_classes] on pictures [N, C, H, W]."""
    return torch.cat([model(batch).float().cpu() for batch in pictures.split(batch_size)])


def check_close(where: Path | str, found: Tensor, expected: Tensor, *, tolerance: float = TOLERANCE) -> float:
    """Return the largest absolute difference of two [N, num_classes]; nan and unequal infinities count as infinite.

    Raises: StillroomError naming the row when it isn't below the tolerance.
    """
    if found.shape != expected.shape:
        raise StillroomError(
            f"{where}: answers with {tuple(found.shape)}; expected {tuple(expected.shape)}, as the student does; "
            "choose another format"
        )
    difference = torch.where(found == expected, 0.0, (found.double() - expected.double()).abs())
    by_row = difference.nan_to_num(nan=torch.inf, posinf=torch.inf).amax(-1)
    worst, row = by_row.max(0)
    if not worst < tolerance:
        raise StillroomError(
            f"{where}: its log-probabilities differ by {worst:.3g} at row {int(row)}; expected below {tolerance:g}; "
            "choose another format, or another student"
        )
    return worst.item()


@contextmanager
def removed_on_failure(path: Path) -> Iterator[None]:
    """Make the folder of a file that is about to be written, and leave no file behind that turns out wrong."""
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        yield
    except BaseException:
        path.unlink(missing_ok=True)
        raise


def check_answers(path: Path, exported: Model, module: nn.Module, pictures: Tensor, tolerance: float) -> float:
    """Return the largest difference of a file's answers from its module's, over one picture and over all of them.

    Raises: StillroomError as `check_close`, and when the file fails on either.
    """
    try:
        found = [answers(exported, rows, batch_size=len(rows)) for rows in (pictures[:1], pictures)]
    except Exception as error:  # a runtime's own errors share no root
        raise StillroomError(
            f"{path}: fails on pictures of shape {tuple(pictures.shape)} ({first_line(error)}); expected any number of "
            "them to work; choose another format"
        ) from error
    wanted = [answers(module, rows, batch_size=len(rows)) for rows in (pictures[:1], pictures)]
    return max(check_close(path, *pair, tolerance=tolerance) for pair in zip(found, wanted, strict=True))


def first_line(error: BaseException) -> str:
    """Return the type of an error and the first line of what it says."""
    said = next(iter(str(error).strip().splitlines()), "")
    return f"{type(error).__name__}: {said}" if said else type(error).__name__
