"""Models that learn in another way than they answer: what they learn from is a loss of their own.

Such a module has a method `training_loss(inputs, targets)`, float [B, ...], [B, P] -> [B], 0 of rows whose targets are
NaN; it is asked in training mode as the module trains, and in evaluation mode, where it must draw nothing, for the
figure that the training is steered by.
"""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from pipeline.train.run import Loss
from pipeline.views import Batch

OWN = "mse"  # the figure, as those of squared errors are called


def own_loss(model: nn.Module) -> Loss | None:
    """Return the loss of a module that has one of its own, else None."""
    loss: Callable[[Tensor, Tensor], Tensor] | None = getattr(model, "training_loss", None)
    if loss is None:
        return None

    def of_batch(outputs: Tensor, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        assert batch.targets is not None
        assert isinstance(batch.inputs, Tensor)
        own = loss(batch.inputs, batch.targets)
        return own, {"own": own}

    return of_batch


@torch.no_grad()
def own_figure(model: nn.Module, batches: Sequence[Batch], precision: str = "fp32") -> dict[str, float]:
    """Return the mean of a module's own loss over held-out batches, in evaluation mode."""
    loss, was_training = own_loss(model), model.training
    assert loss is not None
    model.eval()
    device = next(model.parameters()).device
    with torch.autocast(device.type, torch.bfloat16, enabled=precision == "bf16"):
        sums = [loss(torch.empty(0), batch)[0].double().sum().item() for batch in batches]
    model.train(was_training)
    return {OWN: sum(sums) / sum(map(len, batches))}
