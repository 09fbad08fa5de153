"""Weights on disk: safetensors, which hold numbers and nothing that runs."""

from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import nn

from pipeline.errors import StillroomError


def save_weights(model: nn.Module, path: Path) -> None:
    """Write a module's state as safetensors, making the folder."""
    path.parent.mkdir(parents=True, exist_ok=True)
    save_file({name: value.detach().cpu().contiguous() for name, value in model.state_dict().items()}, path)


def load_weights(model: nn.Module, path: Path) -> nn.Module:
    """Return the module with the state of a safetensors file. Raises StillroomError when it doesn't fit."""
    try:
        model.load_state_dict(load_file(path))
    except (RuntimeError, OSError, ValueError, SafetensorError) as error:
        raise StillroomError(
            f"{path}: found weights that don't fit ({error}); expected this model's; retrain"
        ) from error
    return model
