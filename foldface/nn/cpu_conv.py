"""Convolutions that a CPU is slow to train, while they train: the same sums in another order. Maps are channels_last.

Of oneDNN, which computes torch's convolutions on a CPU (seen in 3.7; ONEDNN_VERBOSE=1 names the kernel that it takes):
- 1 x 1 over few places: it lays the weights out anew at each call, which takes as long as the sums. A product of
  matrices takes them as they lie.
- depthwise, 5 x 5 or wider: its kernel for the weights' gradient has at most three columns. For more it computes each
  channel as if it were sixteen.
"""

import contextlib
import functools

import torch
from torch.nn import functional
from torch.nn.grad import conv2d_weight

FEW_PLACES = 512  # of a batch, n * h * w: with more of them a product is no faster
SMALL_MAP = 4  # pixels a side: of larger maps all pairs of places are too many
AT_ONCE = 8  # photos whose pairs are in memory together


def helps(device, precision):
    """Is `quick` quicker on a torch.device, in accelerate's precision? It was measured with oneDNN, in float32."""
    return device.type == "cpu" and precision == "no" and torch.backends.mkldnn.is_available()


@contextlib.contextmanager
def quick(model):
    """While the block runs, these convolutions of a model are computed the faster way (a copy made meanwhile keeps it).
    Parameters and their names stay. Yields how many there are."""
    found = {}
    for layer in model.modules():
        if type(layer) is not torch.nn.Conv2d or "forward" in vars(layer):  # may do more with its weights
            continue
        side, moves = layer.kernel_size[0], (layer.stride, layer.dilation, layer.padding_mode)
        same = layer.kernel_size == (side, side) and side % 2 == 1 and layer.padding == (side // 2, side // 2)
        if not same or moves != ((1, 1), (1, 1), "zeros"):
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
    """A 1 x 1 convolution. inputs (n, c, h, w)."""
    if inputs.numel() > FEW_PLACES * layer.in_channels:
        return usual(inputs)
    return functional.linear(inputs.permute(0, 2, 3, 1), layer.weight.flatten(1), layer.bias).permute(0, 3, 1, 2)


def as_depthwise(layer, usual, inputs):
    """A depthwise convolution that keeps the map's size. inputs (n, c, h, w)."""
    low, high = min(inputs.shape[2:]), max(inputs.shape[2:])
    if layer.weight.requires_grad and (high <= SMALL_MAP or low >= layer.kernel_size[0]):
        return Depthwise.apply(inputs, layer.weight, layer.bias)
    return usual(inputs)


class Depthwise(torch.autograd.Function):
    """inputs (n, c, h, w), weight (c, 1, k, k), bias (c,) or None -> (n, c, h, w)."""

    @staticmethod
    def forward(ctx, inputs, weight, bias):
        ctx.save_for_backward(inputs, weight)
        return functional.conv2d(inputs, weight, bias, padding=weight.shape[-1] // 2, groups=len(weight))

    @staticmethod
    def backward(ctx, grad):
        inputs, weight = ctx.saved_tensors
        found = [None, None, None]
        if ctx.needs_input_grad[0]:  # the convolution with the kernel turned round
            found[0] = functional.conv2d(grad, weight.flip(2, 3), padding=weight.shape[-1] // 2, groups=len(weight))
        if ctx.needs_input_grad[1]:
            by = by_pairs if max(inputs.shape[2:]) <= SMALL_MAP else by_columns
            found[1] = by(inputs, grad, weight.shape)
        if ctx.needs_input_grad[2]:
            found[2] = grad.sum((0, 2, 3))
        return tuple(found)


def by_columns(inputs, grad, shape):
    """The weights' gradient (c, 1, k, k) from parts: three columns at once, the others one by one."""
    side = shape[-1]
    pad, first = side // 2, side // 2 - 1
    found = grad.new_empty(shape)

    def columns(count, grad, padding):
        return conv2d_weight(inputs, (*shape[:3], count), grad, padding=(pad, padding), groups=shape[0])

    found[..., first : first + 3] = columns(3, grad, 1)
    for column in (*range(first), *range(first + 3, side)):
        moved = functional.pad(grad, (column - pad, pad - column))  # so that the inputs can stay where they are
        found[..., column : column + 1] = columns(1, moved, 0)
    return found


def by_pairs(inputs, grad, shape):
    """The weights' gradient (c, 1, k, k) from the products of all places with all places."""
    count, channels, height, width = grad.shape
    slopes = grad.permute(0, 2, 3, 1).reshape(count, height * width, 1, channels)
    pixels = inputs.permute(0, 2, 3, 1).reshape(count, 1, height * width, channels)
    some = zip(slopes.split(AT_ONCE), pixels.split(AT_ONCE), strict=True)
    sums = sum((slope * pixel).sum(0) for slope, pixel in some).flatten(0, 1)
    taps = grad.new_zeros(shape[-1] ** 2 + 1, channels).index_add_(0, taps_of(height, width, shape[-1]), sums)
    return taps[:-1].t().reshape(shape)


@functools.cache
def taps_of(height, width, side):
    """Which of a kernel's side * side weights lies between two places, side * side where none does: for each place of
    the outputs each of the inputs, (height * width) ** 2 int64."""
    rows, columns = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    y, x = (place.flatten()[None] - place.flatten()[:, None] + side // 2 for place in (rows, columns))
    inside = (y >= 0) & (y < side) & (x >= 0) & (x < side)
    return torch.where(inside, y * side + x, side * side).flatten()
