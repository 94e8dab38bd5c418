"""Train on small photos first: most of what a network learns early can be seen in few pixels (progressive resizing;
Howard 2018, fast.ai for DAWNBench; Tan & Le 2021, EfficientNetV2)."""

import torch
from torch.nn import functional

from foldface.files import InputError
from foldface.nn.optim import Budget
from foldface.settings import TrainConfig

GROWING = 0.8  # share of the training in which the size grows
STEP = 32  # pixels: the stride of most networks, and few sizes to compile for


def side_at(first: int, full: int, done: float) -> int:
    """Pixels a side at the share `done` (0..1) of a training that begins with `first`; first 0 = `full` all through."""
    if not first or done >= GROWING:
        return full
    grown = first + (full - first) * done / GROWING
    return min(full, max(first, STEP * round(grown / STEP)))


def grown(inputs: torch.Tensor, config: TrainConfig, epoch: int, budget: Budget | None) -> torch.Tensor:
    """(b, 3, s, s) -> (b, 3, side, side), averaged over the pixels that become one: the side that is due.

    epoch: of config.epochs; a budget's progress decides where there is one.
    """
    done = budget.progress if budget else epoch / config.epochs
    side = side_at(config.first_size, inputs.shape[-1], done)
    if inputs.shape[-1] == side:
        return inputs
    small = functional.interpolate(inputs, (side, side), mode="bilinear", antialias=True)
    return small.contiguous(memory_format=torch.channels_last)


def refuse_first_size(net: torch.nn.Module, first: int, full: int, backbone: str) -> None:
    """Raise InputError where train.first_size is more than data.image_size, or is a size that a network can't take."""
    if first > full:
        raise InputError(f"train.first_size {first}: is more than data.image_size {full}: photos only grow")
    if not first:
        return
    some, training = next(net.parameters()), net.training
    try:
        with torch.inference_mode():
            net.eval()(torch.zeros(1, 3, first, first, device=some.device))
    except (RuntimeError, AssertionError, ValueError) as error:
        line = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise InputError(f"train.first_size {first}: {backbone} takes no photos of that size ({line}): 0") from None
    finally:
        net.train(training)
