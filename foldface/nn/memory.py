"""Memory that runs out is no end: the same batch in smaller parts. How much memory a process has held."""

import gc
import sys
from collections.abc import Callable

import torch
from accelerate.utils.memory import should_reduce_batch_size

from foldface.files import InputError

try:
    import resource
except ImportError:  # Windows
    resource = None


def fitting(
    compute: Callable[[int], object],
    micro_batches: int,
    photos: int,
    net: torch.nn.Module,
    optimizer: torch.optim.Optimizer,
    processes: int,
) -> tuple[object, int]:
    """(compute(micro_batches), the micro_batches that fitted): twice as many each time that memory ran out. The step
    stays the same step, but for batch norm that learns its statistics, which then sees micro-batches: that is printed.

    compute: a function of an int; photos: of the batch; net, optimizer: whose gradients are then set to zero. Raises
    InputError where that can't help: a photo or two at a time is too much, or several processes would have to do it at
    once.
    """
    while True:
        try:
            return compute(micro_batches), micro_batches
        except (RuntimeError, MemoryError) as error:
            if not should_reduce_batch_size(error):
                raise
            if processes > 1 or 4 * micro_batches > photos:
                raise InputError(
                    f"out of memory with {photos} photos in {micro_batches} micro-batches: start again with "
                    f"--train.accumulate {2 * micro_batches}, or with a smaller --data.image_size"
                ) from None
        optimizer.zero_grad()
        micro_batches *= 2
        gc.collect()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
        norms = [part for part in net.modules() if isinstance(part, torch.nn.modules.batchnorm._BatchNorm)]
        learning = torch.is_grad_enabled() and any(part.training for part in norms)
        print(
            f"out of memory: a batch is now computed in {micro_batches} micro-batches; "
            + (
                "batch norm takes its statistics from each micro-batch alone from now on, which changes the steps: "
                "--model.freeze_bn true, or a smaller --data.image_size, would leave them as they are"
                if learning
                else "steps stay as they are"
            ),
            flush=True,
        )


def peak_memory() -> float:
    """The most memory that this process has held, in GB: of the GPU where there is one, else of the machine."""
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated() / 1e9
    if resource is None:
        return float("nan")
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (1e9 if sys.platform == "darwin" else 1e6)
