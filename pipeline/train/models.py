"""What a model needs before and after its training: a device, weights from a seed, answers."""

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn

from pipeline.losses import cross_entropy, mixed_cross_entropy, squared_error
from pipeline.losses.members import for_member_targets, for_members, mean_of_members, of_rows
from pipeline.views import Batch
from pipeline.views.draws import stream_seed


def prepare(model: nn.Module, device: torch.device) -> nn.Module:
    """Return the model on its device, with channels last where it convolves: several times faster on a CPU.

    Not on a CPU when a 1x1 convolution has a stride: its backward pass there writes out of bounds for some batch
    sizes (torch 2.15, oneDNN; 12 -> 24 channels, 28x28, batch 125 crashes).
    """
    model = model.to(device)
    convolutions = [layer for layer in model.modules() if isinstance(layer, nn.Conv2d)]
    unsafe = any(layer.kernel_size == (1, 1) and max(layer.stride) > 1 for layer in convolutions)
    if convolutions and not (unsafe and device.type == "cpu"):
        model = model.to(memory_format=torch.channels_last)
    return model


def seeded(build: Callable[[], Any], seed: int) -> Any:
    """Return what `build` makes with torch's generator seeded, leaving the generator as it was."""
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(stream_seed(seed, "init"))
        return build()


def label_loss(logits: Tensor, batch: Batch, *, smoothing: float = 0.0) -> tuple[Tensor, dict[str, Tensor]]:
    """Return the cross-entropy with the batch's labels, mixed where rows are: [B, ..., C] -> [B], mean of members."""
    labels = for_members(logits, batch.labels)
    if batch.mix is None or batch.partner_labels is None:
        ce = cross_entropy(logits, labels, smoothing=smoothing)
    else:
        partners, mix = for_members(logits, batch.partner_labels), for_members(logits, batch.mix)
        ce = mixed_cross_entropy(logits, labels, partners, mix, smoothing=smoothing)
    ce = of_rows(mean_of_members(ce, batch.labels), batch.labels)
    return ce, {"ce": ce}


def squared_loss(outputs: Tensor, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
    """Return the mean squared error of what the batch's targets show: [B, P] -> [B], mean of members."""
    assert batch.targets is not None
    squares = mean_of_members(squared_error(outputs, for_member_targets(outputs, batch.targets)), batch.labels)
    return squares, {"se": squares}


def log_probabilities(outputs: Tensor, batch: Batch) -> Tensor:
    """Return logits as log-probabilities: [..., C]."""
    return outputs.log_softmax(-1)


@torch.no_grad()
def predict(
    model: nn.Module,
    batches: Iterator[Batch],
    *,
    precision: str = "fp32",
    answers: Callable[[Tensor, Batch], Tensor] = log_probabilities,
) -> Tensor:
    """Return the model's answers over batches, in evaluation mode: float32 [N, C] on the CPU.

    `answers` makes them of a batch's outputs: log-probabilities unless another is given.
    """
    was_training = model.training
    model.eval()
    device = next(model.parameters()).device
    with torch.autocast(device.type, torch.bfloat16, enabled=precision == "bf16"):
        rows = [answers(model(batch.inputs).float(), batch).cpu() for batch in batches]
    model.train(was_training)
    return torch.cat(rows)
