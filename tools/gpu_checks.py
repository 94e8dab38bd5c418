"""The checks of tools.gpu_check. Each takes a Bench and an Accelerator and says in a line what it found.

A check raises Failed where something is wrong, and NotHere where the device has not what it needs. Those that mean
something on a CPU are tested there.
"""

import copy
import time
import types
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import torch
from accelerate import Accelerator

import loss as loss_module
import model
from foldface.data import loader
from foldface.nn import averaging, batchnorm, memory, onnx, optim, resume
from foldface.nn.heads import Heads
from foldface.nn.learner import Learner
from foldface.settings import Config, put

STEPS = 20  # steps of a round that is timed
ROUNDS = 3
TOLERANCE = 0.05  # of numbers in 16 bits beside float32, as a share of the largest
NONE = types.MappingProxyType({})  # no changes of settings
DROPOUT = types.MappingProxyType({"model.dropout": 0.2})  # so that random states count
SLOW = 0.8  # share of the bare step's photos/s below which something is wrong


class Failed(Exception):
    """What was found is wrong."""


class NotHere(Exception):
    """The device has not what a check needs."""


class Bench(NamedTuple):
    """What checks train on: settings, rows of drawn photos, a folder for files."""

    config: Config
    rows: pd.DataFrame
    folder: Path


# ------------------------------------------------------------------------------------------------------ to train


def learner_of(bench: Bench, accelerator: Accelerator, changes: dict[str, Any] = NONE) -> Learner:
    """A Learner of fold 0 on these rows; changes: {dotted name of a setting: value}."""
    config = copy.deepcopy(bench.config)
    for key, value in changes.items():
        put(config, key, value)
    heads = Heads(config.predicted, config.model.heads)
    net = model.make(config, heads.size, 0, accelerator)
    criterion, targets = loss_module.make(heads, bench.rows, config.loss)
    parameters = optim.parameter_groups(net, config.train)
    optimizer = optim.make_optimizer(parameters, config.train, fused=accelerator.scaler is None)
    scheduler = optim.make_course(optimizer, config.train, 10 * STEPS, 0)
    average, mixup = averaging.make_average(net, config.train), loss_module.make_mixup(config.train)
    folder, belongs = bench.folder / "fold0", resume.belongs(config, 0, bench.rows)
    mine = Learner(
        net, criterion, targets, optimizer, scheduler, config, accelerator, average, mixup, folder, None, belongs
    )
    mine.set_train_mode()
    return mine


def batch_of(bench: Bench, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    """A batch of noise: indices into the rows (b,), photos (b, s, s, 3) uint8."""
    size, side = bench.config.train.batch_size, bench.config.data.image_size
    drawn = torch.Generator().manual_seed(seed)
    photos = torch.randint(0, 255, (size, side, side, 3), dtype=torch.uint8, generator=drawn)
    return torch.arange(size) % len(bench.rows), photos


def step(mine: Learner, bench: Bench, seed: int = 0) -> torch.Tensor:
    """One step on a batch of noise: its mean loss."""
    indices, photos = batch_of(bench, seed)
    return mine.train_step(indices, photos, len(indices)) / len(indices)


def overflow(mine: Learner, bench: Bench) -> None:
    """One step in which a gradient is infinite."""
    bias = mine.module.get_classifier().bias
    hook = bias.register_hook(lambda gradient: gradient * float("inf"))
    step(mine, bench)
    hook.remove()


def weights_of(mine: Learner) -> dict[str, torch.Tensor]:
    """A copy of the weights."""
    return {name: value.detach().clone() for name, value in mine.module.state_dict().items()}


def same(one: dict, other: dict) -> bool:
    """Are all weights equal, to the last bit?"""
    return all(torch.equal(one[name], other[name]) for name in one)


def finite(weights: dict) -> bool:
    """Is no weight NaN or infinite?"""
    return all(value.isfinite().all() for value in weights.values())


def rate(run: Callable[[], object], photos: int, device: torch.device) -> float:
    """Photos/s of STEPS calls of `run`, which takes so many photos: the median of ROUNDS."""
    found = []
    for _ in range(ROUNDS):
        settle(device)
        begun = time.perf_counter()
        for _ in range(STEPS):
            run()
        settle(device)
        found.append(STEPS * photos / (time.perf_counter() - begun))
    return float(np.median(found))


def settle(device: torch.device) -> None:
    """Wait until the device has computed all that was asked for."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


# ----------------------------------------------------------------------------------------------------- the checks


def first_step_overflows(bench: Bench, accelerator: Accelerator) -> str:
    """fp16: a first step whose gradients overflow leaves no trace, and the next ones train."""
    mine = learner_of(bench, accelerator)
    before, scale = weights_of(mine), accelerator.scaler.get_scale()
    overflow(mine, bench)
    if not mine.optimizer.step_was_skipped or not same(weights_of(mine), before) or mine.steps:
        raise Failed("a step that overflowed changed weights or was counted")
    for k in range(10):
        step(mine, bench, k)
    after = weights_of(mine)
    if not mine.steps or same(after, before) or not finite(after):
        raise Failed(f"{mine.steps} of 10 steps after it were taken; finite weights: {finite(after)}")
    return f"skipped whole; {mine.steps} of 10 steps after it taken, loss scale {scale:g} to " \
           f"{accelerator.scaler.get_scale():g}"  # fmt: skip


def own_scale(bench: Bench, accelerator: Accelerator) -> str:
    """fp16: a second fold begins at the scale that the first one began at."""
    first = learner_of(bench, accelerator)
    begun = accelerator.scaler.get_scale()
    for _ in range(3):
        overflow(first, bench)
    moved = accelerator.scaler.get_scale()
    learner_of(bench, accelerator)
    if accelerator.scaler.get_scale() != begun or moved == begun:
        raise Failed(f"began at {begun:g}, left at {moved:g}, the next fold at {accelerator.scaler.get_scale():g}")
    return f"the first fold left at {moved:g}, the second began at {begun:g}"


def half_precision(bench: Bench, accelerator: Accelerator) -> str:
    """bf16: outputs are float32's within its rounding, and steps stay finite."""
    mine = learner_of(bench, accelerator)
    _, photos = batch_of(bench)
    inputs = loader.normalize(photos.to(mine.device), *mine.scale)
    net = copy.deepcopy(mine.module).eval()
    with torch.no_grad():
        plain = net(inputs)
        with torch.autocast(mine.device.type, torch.bfloat16):
            short = net(inputs).float()
    off = ((plain - short).abs().max() / plain.abs().max()).item()
    losses = [step(mine, bench, k).item() for k in range(5)]
    if off > TOLERANCE or not np.isfinite(losses).all():
        raise Failed(f"outputs differ by {off:.3f} of the largest; losses {losses}")
    return f"outputs within {off:.4f} of the largest; five steps, loss {losses[0]:.2f} to {losses[-1]:.2f}"


def memory_format(bench: Bench, accelerator: Accelerator) -> str:
    """channels_last: the weights lie so, and the answers are those of the other order."""
    mine = learner_of(bench, accelerator)
    kernels = [value for value in mine.module.parameters() if value.dim() == 4 and min(value.shape[1:]) > 1]
    if not all(value.is_contiguous(memory_format=torch.channels_last) for value in kernels):
        raise Failed("convolutions' weights are not in channels_last order")
    rates, outputs = {}, {}
    for name, order in (("channels_last", torch.channels_last), ("contiguous", torch.contiguous_format)):
        rates[name], outputs[name] = bare_step(mine, bench, order)
    off = ((outputs["channels_last"] - outputs["contiguous"]).abs().max() / outputs["contiguous"].abs().max()).item()
    if off > TOLERANCE:
        raise Failed(f"outputs of the two orders differ by {off:.3f} of the largest")
    return (
        f"{rates['channels_last'] / rates['contiguous']:.2f} times the photos/s of contiguous; outputs within {off:.4f}"
    )


def bare_step(mine: Learner, bench: Bench, order: torch.memory_format) -> tuple[float, torch.Tensor]:
    """(photos/s of the network, a plain cross entropy and the optimizer alone, the outputs before them)."""
    net = copy.deepcopy(mine.module).to(memory_format=order)
    train = mine.config
    optimizer = optim.make_optimizer(optim.parameter_groups(net, train), train, fused=mine.accelerator.scaler is None)
    _, photos = batch_of(bench)
    inputs = loader.normalize(photos.to(mine.device), *mine.scale).contiguous(memory_format=order)
    target = torch.arange(len(inputs), device=mine.device) % 2
    scaler = copy.deepcopy(mine.accelerator.scaler)
    with torch.no_grad(), mine.accelerator.autocast():
        outputs = copy.deepcopy(net).eval()(inputs).float()
    net.train()
    if mine.freeze_bn:
        batchnorm.freeze_batch_norm(net)

    def run():
        with mine.accelerator.autocast():
            value = torch.nn.functional.cross_entropy(net(inputs), target)
        if scaler is None:
            value.backward()
            optimizer.step()
        else:
            scaler.scale(value).backward()
            scaler.step(optimizer)
            scaler.update()
        optimizer.zero_grad()

    run()
    run()
    return rate(run, len(inputs), mine.device), outputs


def compiled(bench: Bench, accelerator: Accelerator) -> str:
    """train.compile: the same losses, and what it costs and brings."""
    plain, faster = learner_of(bench, accelerator), learner_of(bench, accelerator, {"train.compile": True})
    expected = step(plain, bench).item()
    begun = time.perf_counter()
    found = step(faster, bench).item()
    took = time.perf_counter() - begun
    if not np.isclose(found, expected, rtol=TOLERANCE):
        raise Failed(f"the first loss is {found:.4f} compiled and {expected:.4f} without")
    step(faster, bench)
    size = bench.config.train.batch_size
    rates = [rate(lambda mine=mine: step(mine, bench), size, mine.device) for mine in (faster, plain)]
    return f"{took:.0f} s to compile, then {rates[0] / rates[1]:.2f} times the photos/s ({rates[0]:.0f})"


def resumed(bench: Bench, accelerator: Accelerator) -> str:
    """A training that is stopped goes on to the same bits, with deterministic cuDNN."""
    before = torch.backends.cudnn.deterministic, torch.backends.cudnn.benchmark
    torch.backends.cudnn.deterministic, torch.backends.cudnn.benchmark = True, False
    try:
        whole = learner_of(bench, accelerator, DROPOUT)
        for k in range(4):
            step(whole, bench, k)
        if not same(weights_of(whole), weights_of(stopped(bench, accelerator))):
            raise Failed("four steps, and two, a stop and two, end in different weights")
    finally:
        torch.backends.cudnn.deterministic, torch.backends.cudnn.benchmark = before
    return f"four steps, and two, a stop and two: {len(weights_of(whole))} tensors equal to the last bit"


def stopped(bench, accelerator):
    """A Learner that took two steps, was saved, and after a new start two more."""
    first = learner_of(bench, accelerator, DROPOUT)
    for k in range(2):
        step(first, bench, k)
    first.save()
    second = learner_of(bench, accelerator, DROPOUT)
    second.resume()
    for k in (2, 3):
        step(second, bench, k)
    second.state_path.unlink()
    return second


def out_of_memory(bench: Bench, accelerator: Accelerator) -> str:
    """A batch that does not fit is computed in parts, to the same step."""
    whole = learner_of(bench, accelerator, {"train.optimizer": "sgd"})
    held = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    step(whole, bench)
    expected, peak = weights_of(whole), torch.cuda.max_memory_allocated()
    del whole
    accelerator.free_memory()
    torch.cuda.empty_cache()
    small = learner_of(bench, accelerator, {"train.optimizer": "sgd"})
    total = torch.cuda.get_device_properties(accelerator.device).total_memory
    torch.cuda.empty_cache()
    limit = held + 0.7 * (peak - held)
    torch.cuda.set_per_process_memory_fraction(limit / total)
    try:
        step(small, bench)
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)
    if small.micro_batches == bench.config.train.accumulate:
        raise Failed(f"a batch of {peak / 1e9:.2f} GB was computed whole in {limit / 1e9:.2f} GB")
    off = max((expected[name].float() - value.float()).abs().max().item() for name, value in weights_of(small).items())
    if bench.config.model.freeze_bn and off > 1e-2:
        raise Failed(f"the step differs by {off:.4f} from the one that was computed whole")
    return f"{peak / 1e9:.2f} GB in {limit / 1e9:.2f}: {small.micro_batches} micro-batches, weights within {off:.1e}"


def synchronising(bench: Bench, accelerator: Accelerator) -> str:
    """Calls in a step that make the processor wait for the GPU: none, but one a step of loss scaling."""
    mine = learner_of(bench, accelerator)
    indices, photos = batch_of(bench)
    photos = photos.pin_memory()
    for _ in range(3):
        mine.train_step(indices, photos, len(indices))
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("warn")
    try:
        with warnings.catch_warnings(record=True) as met:
            warnings.simplefilter("always")
            for _ in range(STEPS):
                mine.train_step(indices, photos, len(indices))
    finally:
        torch.cuda.set_sync_debug_mode("default")
    met = [one for one in met if "synchronizing CUDA operation" in str(one.message)]
    places = sorted({f"{Path(one.filename).name}:{one.lineno}" for one in met})
    allowed = accelerator.scaler is not None
    if len(met) > allowed * STEPS:
        raise Failed(f"{len(met) / STEPS:.1f} a step, {int(allowed)} expected: {', '.join(places)}")
    return f"{len(met) / STEPS:.1f} a step" + (f": {', '.join(places)}" if places else "")


def waiting(bench: Bench, accelerator: Accelerator) -> str:
    """The share of an epoch that waits for photos, which are decoded each time."""
    config, data = bench.config, bench.config.data
    rows = pd.concat([bench.rows] * -(-STEPS * config.train.batch_size // len(bench.rows)), ignore_index=True)
    mine = learner_of(bench._replace(rows=rows), accelerator)
    photos = loader.PhotoDataset(rows, data.augment, data.image_size, True, fit=data.resize_mode)
    batches = loader.SeededBatchSampler(len(rows), config.train.batch_size, shuffle=True)
    feed = loader.make(photos, batches, data.workers)
    for _ in range(2):  # the first epoch starts the workers
        speed = mine.train_epoch(feed, "waiting").speed
        mine.next_epoch()
    return (
        f"{speed['waited']:.0%} of the time, {speed['photos_per_second']:.0f} photos/s with {feed.num_workers} workers"
    )


def against_bare(bench: Bench, accelerator: Accelerator) -> str:
    """photos/s of our step on photos in memory beside the bare step."""
    mine = learner_of(bench, accelerator)
    step(mine, bench)
    indices, photos = batch_of(bench)
    photos = photos.pin_memory() if mine.device.type == "cuda" else photos
    ours = rate(lambda: mine.train_step(indices, photos, len(indices)), len(indices), mine.device)
    bare, _ = bare_step(mine, bench, torch.channels_last)
    said = f"{ours:.0f} beside {bare:.0f} photos/s: {ours / bare:.2f}; {memory.peak_memory():.2f} GB"
    if ours < SLOW * bare:
        raise Failed(said)
    return said


def onnx_answers(bench: Bench, accelerator: Accelerator) -> str:
    """onnxruntime's outputs are torch's, on its CUDA provider."""
    mine = learner_of(bench, accelerator)
    net = copy.deepcopy(mine.module).cpu().eval().float()
    batchnorm.fold_batch_norm(net)
    _, photos = batch_of(bench)
    inputs = loader.normalize(photos, *mine.scale)
    with torch.no_grad():
        expected = net(inputs)
    path = bench.folder / "check.onnx"
    onnx.export(net, bench.config.data.image_size, path)
    answering = onnx.OnnxNet(path)
    off = ((answering(inputs) - expected).abs().max() / expected.abs().max()).item()
    if off > TOLERANCE:
        raise Failed(f"outputs differ by {off:.3f} of the largest")
    provider = answering.session.get_providers()[0]
    if mine.device.type == "cuda" and provider != "CUDAExecutionProvider":
        raise NotHere(f"onnxruntime-gpu is not installed; on its {provider} outputs are within {off:.1e}")
    return f"{provider}: outputs within {off:.1e} of the largest"


class Check(NamedTuple):
    """A check: its title in the table, the precision that it trains in ("" = train.amp), its function, and whether it
    means something on CUDA alone."""

    title: str
    amp: str
    run: Callable[[Bench, Accelerator], str]
    only_cuda: bool = False


CHECKS = {
    "fp16": Check("fp16, the first step overflows", "fp16", first_step_overflows),
    "scale": Check("fp16, two folds share no loss scale", "fp16", own_scale),
    "bf16": Check("bf16", "bf16", half_precision),
    "channels_last": Check("channels_last", "", memory_format),
    "compile": Check("torch.compile", "", compiled),
    "resume": Check("stopped and resumed, bit for bit", "", resumed),
    "memory": Check("out of memory: in micro-batches", "off", out_of_memory, only_cuda=True),
    "waits": Check("calls that wait for the GPU", "", synchronising, only_cuda=True),
    "loader": Check("waiting for photos", "", waiting),
    "bare": Check("a step beside the bare step", "", against_bare),
    "onnx": Check("onnxruntime", "off", onnx_answers),
}
