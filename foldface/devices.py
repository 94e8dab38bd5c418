"""Which device computes, and in which precision: one answer for training, inference, the demo, the GAN and explain."""

import atexit
import contextlib
import datetime
import functools

import torch
from accelerate import Accelerator, PartialState

from foldface.files import InputError
from foldface.ranks import ALONE, Ranks, lost_processes, several
from foldface.settings import Config

PRECISIONS = {"no": "float32", "fp16": "float16", "bf16": "bfloat16"}  # {accelerate's name: torch's dtype}


def choose_device(config: Config, weights: dict | None = None) -> tuple[torch.device, torch.dtype]:
    """(torch.device, torch.dtype) in which a network computes: one that is trained now, or, with `weights` (what their
    file says of itself, {} of others), one that answers. Raises InputError where the device is not there, and for
    training in fp16 on a CPU.
    """
    device, amp = named_device(config), config.train.amp
    if weights is None:
        precision = training_precision(device, amp)
    else:
        precision = answering_precision(device, amp, weights.get("precision"))
    return device, getattr(torch, PRECISIONS[precision])


def make_accelerator(config: Config) -> Accelerator:
    """Hugging Face's Accelerator: device, precision with loss scaling. fp16 is refused on a CPU."""
    device, dtype = choose_device(config)
    accelerator = Accelerator(
        mixed_precision=precision_of(dtype),
        cpu=device.type == "cpu",  # of several processes without GPUs accelerate takes each for a single one otherwise
    )
    leave_at_exit()
    return accelerator


PATIENCE = datetime.timedelta(days=7)  # that a process waits for the others: their shares may take hours


def join_ranks(config: Config) -> Ranks:
    """Join the other processes of this command, if it has several; on GPUs each then computes on its own one."""
    if not several():
        return ALONE
    with lost_processes():
        # gloo, on GPUs too: it moves objects without the GPU, and notices a lost process at once
        state = PartialState(cpu=named_device(config).type == "cpu", backend="gloo", timeout=PATIENCE)
    leave_at_exit()
    return Ranks(state.process_index, state.num_processes, torch.distributed)


@functools.cache
def leave_at_exit() -> None:
    """Leave the group of processes, if there is one, before Python ends.

    Its threads would still let go of tensors while the interpreter goes away, and abort the process with signal 6: of
    120 commands of two processes that ended at once 27 did.
    """
    atexit.register(PartialState().destroy_process_group)


def precision_of(dtype):
    """accelerate's name of a dtype: "no", "fp16" or "bf16"."""
    return next(name for name, torch_name in PRECISIONS.items() if str(dtype) == f"torch.{torch_name}")


def named_device(config: Config) -> torch.device:
    """The torch.device that the setting `device` names: auto = a GPU if there is one. Raises InputError without it.

    On a CUDA GPU float32 products may be computed in TF32 from then on, wherever they are asked for.
    """
    mps = torch.backends.mps.is_available() and not several()  # processes can't share one MPS device
    there = {"cuda": torch.cuda.is_available(), "mps": mps, "cpu": True}
    name = next(one for one in there if there[one]) if config.device == "auto" else config.device
    if not there[name]:
        needed = "a torch that fits its driver" if name == "cuda" else "torch on a Mac with an Apple GPU, one process"
        raise InputError(f"device is {name}, but torch sees no GPU of that kind: it takes {needed}; or --device auto")
    if name == "cuda":
        torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = True
    return torch.device(name)


def has(device: torch.device, precision: str) -> bool:
    """Does a device compute in this precision by itself, not by way of another?"""
    if precision == "bf16" and device.type == "cuda":  # a V100 (compute capability 7.0) does in software only
        return torch.cuda.get_device_capability()[0] >= 8
    return precision != "fp16" or device.type != "cpu"


def resolved(device, amp):
    """What train.amp comes to on a device: "no", "fp16" or "bf16"."""
    if amp == "auto":
        return "no" if device.type != "cuda" else "bf16" if has(device, "bf16") else "fp16"
    return {"off": "no"}.get(amp, amp)


def training_precision(device, amp):
    """In what a model is trained: "no" (float32), "fp16" (with loss scaling) or "bf16". fp16 on a CPU is refused."""
    if amp == "fp16" and not has(device, amp):
        raise InputError("train.amp fp16 needs a GPU: use off or bf16 on a CPU")
    return resolved(device, amp)


def answering_precision(device, amp, trained):
    """In what a model answers: as it was trained, or in float32 ("no") where the device has no such precision by
    itself, on a CPU that train.amp does not name it for, and with train.amp off.

    trained: what its weights file says, None where it says nothing: those of earlier versions.
    """
    if amp == "off" or (amp == "auto" and device.type == "cpu"):
        return "no"
    trained = trained or resolved(device, amp)
    return trained if has(device, trained) else "no"


def autocast(device: torch.device, dtype: torch.dtype) -> contextlib.AbstractContextManager:
    """A context in which a network computes in this dtype on a device."""
    return contextlib.nullcontext() if dtype == torch.float32 else torch.autocast(device.type, dtype)


@functools.cache
def constant(values: tuple[float, ...], device: torch.device) -> torch.Tensor:
    """A tuple of numbers as a float32 tensor on a device, copied there once: a copy in each step would make a GPU
    wait."""
    with torch.inference_mode(False):  # else training could not use what was first asked for in inference
        return torch.tensor(values, dtype=torch.float32, device=device)
