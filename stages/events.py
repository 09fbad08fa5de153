"""TensorBoard's events, for whoever watches trainings there; an option, for the report shows the same curves."""

from pathlib import Path

from pipeline.errors import StillroomError


class Events:
    """Writes the figures of each training under a folder: `tensorboard --logdir FOLDER` shows them."""

    def __init__(self, folder: Path):
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError:
            raise StillroomError(
                "--tensorboard: found no tensorboard; expected the package; run pip install 'stillroom[tensorboard]'"
            ) from None
        self._folder, self._open = folder, SummaryWriter

    def record(self, training: str, figures: dict[str, float]) -> None:
        """Write one evaluation's figures at its step."""
        with self._open(str(self._folder / training)) as writer:
            for name, value in figures.items():
                if name != "step":
                    writer.add_scalar(name, value, int(figures["step"]))
