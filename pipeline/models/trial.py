"""A trial pass of zeros: what a module answers with is known before any work is put into it."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from pipeline.errors import StillroomError


@contextmanager
def in_eval_mode(model: nn.Module) -> Iterator[None]:
    """Put a module in evaluation mode for a while; every training flag comes back as it was."""
    training = [module for module in model.modules() if module.training]
    model.eval()
    try:
        yield
    finally:
        for module in training:  # one by one: a frozen batch norm inside a training model stays in eval mode
            module.training = True


def zeros_for(model: nn.Module, rows: int, in_shape: tuple[int, ...]) -> Tensor:
    """Return an input of zeros [rows, ...] of the model's device and type; to a model of words it is padding."""
    some = next(model.parameters(), torch.empty(0))
    return torch.zeros(rows, *in_shape, device=some.device, dtype=some.dtype)


def check_outputs(model: nn.Module, *, shape: tuple[int, ...], in_shape: tuple[int, ...], where: str) -> None:
    """Raise StillroomError unless the model answers inputs of this shape with outputs of `shape`: (C,) of classes."""
    if not in_shape:
        raise StillroomError(
            f"{where}: a {type(model).__name__} reads numbers; found texts; choose a model that reads text, or have it "
            "read another input"
        )
    inputs = "pictures" if len(in_shape) == 3 else "inputs"
    try:
        with in_eval_mode(model), torch.no_grad():
            logits = model(zeros_for(model, 2, in_shape))
    except Exception as error:  # the module may be anybody's code
        raise StillroomError(
            f"{where}: fails on {inputs} of shape {in_shape} ({type(error).__name__}: {str(error).splitlines()[0]}); "
            "expected logits; choose another model, or data.size"
        ) from error
    if not isinstance(logits, Tensor) or logits.ndim != 1 + len(shape):
        found = tuple(logits.shape) if isinstance(logits, Tensor) else type(logits).__name__
        wanted = ", ".join(map(str, ("B", *shape)))
        raise StillroomError(f"{where}: answers with {found}; expected logits ({wanted}); return these alone")
    if logits.shape[1:] != shape:
        raise StillroomError(
            f"{where}: answers with {logits.shape[-1]} classes; expected {shape[-1]}, those of the data; "
            "have the builder take num_classes"
            if len(shape) == 1
            else f"{where}: answers with {tuple(logits.shape[1:])} a row; expected {shape}; name a model for such data"
        )
