"""Faster training of two kinds of convolutions on a CPU: the same sums in another order. Tensors are channels_last.

oneDNN computes torch's convolutions on a CPU (seen in 3.7; ONEDNN_VERBOSE=1 prints the kernel of each call):
- 1 x 1 over few places: it reorders the weights at each call, which takes as long as the sums. A matrix product uses
  them as they are.
- depthwise, 5 x 5 or wider: its kernel for the weights' gradient handles at most three columns. For wider ones it
  computes each channel as if it were sixteen.

Figures: docs/log.md. It replaces the `forward` of layers, so it is off for a torch that it was not tested with.
"""

import contextlib
import functools
from collections.abc import Iterator

import torch
from accelerate import Accelerator
from torch.autograd.function import FunctionCtx
from torch.nn import functional
from torch.nn.grad import conv2d_weight

TESTED_TORCH = ("2.10",)  # major.minor
MAX_PLACES = 512  # n * h * w of a batch: with more places a matrix product is not faster
MAX_PAIRED_SIDE = 4  # pixels: a larger map has too many pairs of places
PAIRED_PHOTOS = 8  # photos whose pairs are in memory at the same time


def helps(device: torch.device, precision: str) -> bool:
    """True where `faster_convolutions` was tested and is faster: on a CPU with oneDNN, in float32.

    precision: accelerate's mixed_precision.
    """
    tested = ".".join(torch.__version__.split(".")[:2]) in TESTED_TORCH
    return tested and device.type == "cpu" and precision == "no" and torch.backends.mkldnn.is_available()


def where_it_helps(
    model: torch.nn.Module, compiled: bool, accelerator: Accelerator
) -> contextlib.AbstractContextManager:
    """`faster_convolutions` of a model where it helps. compiled: by torch.compile, which finds its own way."""
    if compiled or not helps(accelerator.device, accelerator.mixed_precision):
        return contextlib.nullcontext()
    return faster_convolutions(model)


@contextlib.contextmanager
def faster_convolutions(model: torch.nn.Module) -> Iterator[int]:
    """While the block runs, compute these convolutions of a model the faster way; yields their number.

    Parameters and their names stay. A copy made within the block keeps the faster way.
    """
    found = {}
    for layer in model.modules():
        if type(layer) is not torch.nn.Conv2d or "forward" in vars(layer):  # a subclass may do more with its weights
            continue
        side, steps = layer.kernel_size[0], (layer.stride, layer.dilation, layer.padding_mode)
        same = layer.kernel_size == (side, side) and side % 2 == 1 and layer.padding == (side // 2, side // 2)
        if not same or steps != ((1, 1), (1, 1), "zeros"):
            continue
        if side == 1 and layer.groups == 1:
            found[layer] = functools.partial(as_product, layer, layer.forward)
        if side > 3 and layer.groups == layer.in_channels == layer.out_channels:
            found[layer] = functools.partial(as_depthwise, layer, layer.forward)
    for layer, forward in found.items():
        layer.forward = forward
    try:
        yield len(found)
    finally:
        for layer in found:
            del layer.forward


def as_product(layer, usual, inputs):
    """A 1 x 1 convolution as a matrix product. inputs: (n, c, h, w); usual: the layer's own forward."""
    if inputs.numel() > MAX_PLACES * layer.in_channels:
        return usual(inputs)
    return functional.linear(inputs.permute(0, 2, 3, 1), layer.weight.flatten(1), layer.bias).permute(0, 3, 1, 2)


def as_depthwise(layer, usual, inputs):
    """A depthwise convolution with padding to the same size. inputs: (n, c, h, w); usual: the layer's own forward."""
    low, high = min(inputs.shape[2:]), max(inputs.shape[2:])
    if layer.weight.requires_grad and (high <= MAX_PAIRED_SIDE or low >= layer.kernel_size[0]):
        return Depthwise.apply(inputs, layer.weight, layer.bias)
    return usual(inputs)


class Depthwise(torch.autograd.Function):
    """Depthwise convolution: inputs (n, c, h, w), weight (c, 1, k, k), bias (c,) or None -> (n, c, h, w)."""

    @staticmethod
    def forward(
        ctx: FunctionCtx, inputs: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None
    ) -> torch.Tensor:
        ctx.save_for_backward(inputs, weight)
        return functional.conv2d(inputs, weight, bias, padding=weight.shape[-1] // 2, groups=len(weight))

    @staticmethod
    def backward(ctx: FunctionCtx, grad: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        inputs, weight = ctx.saved_tensors
        found = [None, None, None]
        if ctx.needs_input_grad[0]:  # a convolution with the flipped kernel
            found[0] = functional.conv2d(grad, weight.flip(2, 3), padding=weight.shape[-1] // 2, groups=len(weight))
        if ctx.needs_input_grad[1]:
            by = by_pairs if max(inputs.shape[2:]) <= MAX_PAIRED_SIDE else by_columns
            found[1] = by(inputs, grad, weight.shape)
        if ctx.needs_input_grad[2]:
            found[2] = grad.sum((0, 2, 3))
        return tuple(found)


def by_columns(inputs, grad, shape):
    """The weights' gradient (c, 1, k, k): three columns at once, the others one by one."""
    side = shape[-1]
    pad, first = side // 2, side // 2 - 1
    found = grad.new_empty(shape)

    def columns(count, grad, padding):
        return conv2d_weight(inputs, (*shape[:3], count), grad, padding=(pad, padding), groups=shape[0])

    found[..., first : first + 3] = columns(3, grad, 1)
    for column in (*range(first), *range(first + 3, side)):
        moved = functional.pad(grad, (column - pad, pad - column))  # instead of a copy of the inputs
        found[..., column : column + 1] = columns(1, moved, 0)
    return found


def by_pairs(inputs, grad, shape):
    """The weights' gradient (c, 1, k, k) from the products of all pairs of places."""
    count, channels, height, width = grad.shape
    slopes = grad.permute(0, 2, 3, 1).reshape(count, height * width, 1, channels)
    pixels = inputs.permute(0, 2, 3, 1).reshape(count, 1, height * width, channels)
    some = zip(slopes.split(PAIRED_PHOTOS), pixels.split(PAIRED_PHOTOS), strict=True)
    sums = sum((slope * pixel).sum(0) for slope, pixel in some).flatten(0, 1)
    taps = grad.new_zeros(shape[-1] ** 2 + 1, channels).index_add_(0, taps_of(height, width, shape[-1]), sums)
    return taps[:-1].t().reshape(shape)


@functools.cache
def taps_of(height, width, side):
    """The index of the kernel's weight between two places, side * side for none: (height * width) ** 2 int64.

    For each place of the outputs, each place of the inputs.
    """
    rows, columns = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    y, x = (place.flatten()[None] - place.flatten()[:, None] + side // 2 for place in (rows, columns))
    inside = (y >= 0) & (y < side) & (x >= 0) & (x < side)
    return torch.where(inside, y * side + x, side * side).flatten()
