"""Layers of several models in one go: each takes its own weights, and the answers are the bits it would give alone.

A model is stackable when it is an nn.Sequential of the layers below, however nested: a perceptron is. Trade: products,
which are many and small, become one batched product; what is not exact value by value, and products that would have
other bits in a batch, as very small ones have, are done by each model in turn.
Not torch.func.vmap: it joins products that share their inputs and takes layer norm apart, which gives other bits (torch
2.15), and is slower than the models in turn from a width of 128 on.
"""

from collections.abc import Callable, Sequence
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

Stacked = Callable[[Sequence[Any], Tensor], Tensor]  # the same layer of K models, [K, B, ...] -> [K, B, ...]

ALIGNMENT = 64  # bytes: where torch begins a tensor on a CPU
ENOUGH = 2_000  # sums of a model that have the same bits in two orders, if the orders are one


class _Products(torch.autograd.Function):
    """x w^T + b of each model: [K, B, D], [K, W, D], [K, W] -> [K, B, W].

    Written out for its backward pass: bmm's own takes the gradient of w^T, whose products are summed in another order.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        ctx.save_for_backward(x, weight)
        ctx.has_bias = bias is not None
        return _product(x, weight.mT, bias)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, Tensor, Tensor | None]:
        x, weight = ctx.saved_tensors
        of_inputs = _product(gradient, weight) if ctx.needs_input_grad[0] else None
        of_bias = torch.stack([own.sum(0) for own in gradient]) if ctx.has_bias else None
        return of_inputs, _product(gradient.mT, x), of_bias


def _product(a: Tensor, b: Tensor, bias: Tensor | None = None) -> Tensor:
    """Return a b + bias of each model, the bits of each alone: [K, B, D], [K, D, W], [K, W] -> [K, B, W]."""
    layout = (a.shape, a.stride(), b.shape, b.stride())
    is_exact = a.device.type != "cpu" or _same_bits(*layout, bias is not None, torch.get_num_threads())
    return (_batched if is_exact else _each)(a, b, bias)


def _batched(a: Tensor, b: Tensor, bias: Tensor | None) -> Tensor:
    return torch.bmm(a, b) if bias is None else torch.baddbmm(bias.unsqueeze(1), a, b)


def _each(a: Tensor, b: Tensor, bias: Tensor | None) -> Tensor:
    mine = (map(_aligned, each) for each in ((a, b) if bias is None else (bias, a, b)))
    return torch.stack([(torch.mm if bias is None else torch.addmm)(*own) for own in zip(*mine, strict=True)])


def _aligned(values: Tensor) -> Tensor:
    """Return values where memory begins as that of a tensor of its own does: sums of others have other bits."""
    return values if values.data_ptr() % ALIGNMENT == 0 else values.clone()


@cache
def _same_bits(
    a_shape: Sequence[int],
    a_strides: Sequence[int],
    b_shape: Sequence[int],
    b_strides: Sequence[int],
    has_bias: bool,
    threads: int,
) -> bool:
    """Return whether products of a layout have the bits in a batch that they have alone, with so many threads.

    The order of a sum is a matter of the layout, but one of few numbers may round to the same in two orders: hence as
    many trials as give enough of them.
    """
    generator = torch.Generator().manual_seed(0)
    outputs = a_shape[1] * b_shape[2]
    for _ in range(1 + ENOUGH // outputs):
        a, b = _drawn(a_shape, a_strides, generator), _drawn(b_shape, b_strides, generator)
        bias = torch.randn(a_shape[0], b_shape[2], generator=generator) if has_bias else None
        if not torch.equal(_batched(a, b, bias), _each(a, b, bias)):
            return False
    return True


def _drawn(shape: Sequence[int], strides: Sequence[int], generator: torch.Generator) -> Tensor:
    numbers = 1 + sum((size - 1) * step for size, step in zip(shape, strides, strict=True))
    return torch.randn(numbers, generator=generator).as_strided(shape, strides)


def _linear(layers: Sequence[nn.Linear], x: Tensor) -> Tensor:
    weight = torch.stack([layer.weight for layer in layers])
    bias = None if layers[0].bias is None else torch.stack([layer.bias for layer in layers])
    return _Products.apply(x, weight, bias)


def _flatten(layers: Sequence[nn.Flatten], x: Tensor) -> Tensor:
    start, end = (axis if axis < 0 else axis + 1 for axis in (layers[0].start_dim, layers[0].end_dim))
    return x.flatten(start, end)


def _relu(layers: Sequence[nn.Module], x: Tensor) -> Tensor:
    return x.relu()  # not in place, whatever the layers say: x may be the batch that all models share


def _unchanged(layers: Sequence[nn.Module], x: Tensor) -> Tensor:
    return x


def _in_turn(layers: Sequence[nn.Module], x: Tensor) -> Tensor:
    return torch.stack([layer(own) for layer, own in zip(layers, x.unbind(), strict=True)])


def _in_sequence(models: Sequence[nn.Sequential], x: Tensor) -> Tensor:
    for layers in zip(*models, strict=True):
        x = forward(layers, x)
    return x


# The exponentials in turn: the last few values of a tensor take another path on a CPU, and where it ends they differ.
LAYERS: dict[type[nn.Module], Stacked] = {
    nn.Sequential: _in_sequence,
    nn.Linear: _linear,
    nn.Flatten: _flatten,
    nn.ReLU: _relu,
    nn.Identity: _unchanged,
    nn.Dropout: _unchanged,
    nn.LayerNorm: _in_turn,
    nn.GELU: _in_turn,
    nn.SiLU: _in_turn,
    nn.Tanh: _in_turn,
    nn.Sigmoid: _in_turn,
}


def is_stackable(model: nn.Module) -> bool:
    """Return whether `forward` knows every layer: none that draws, keeps a state or is listened to by a hook."""
    return all(_is_known(layer) for layer in model.modules()) and not any(True for _ in model.buffers())


def _is_known(layer: nn.Module) -> bool:
    # the type itself: what inherits from a layer may do anything
    hooks = (layer._forward_hooks, layer._forward_pre_hooks, layer._backward_hooks, layer._backward_pre_hooks)
    draws = isinstance(layer, nn.Dropout) and layer.p > 0
    return type(layer) in LAYERS and not draws and not any(hooks)


def forward(models: Sequence[nn.Module], x: Tensor) -> Tensor:
    """Return the answers of stackable models of one architecture: [K, B, ...] -> [K, B, C]."""
    return LAYERS[type(models[0])](models, x)
