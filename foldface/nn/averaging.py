"""Averaged weights beside a model that learns, and their batch norm."""

from collections.abc import Sequence

import torch
from accelerate import Accelerator
from timm.utils import ModelEmaV3
from torch.optim.swa_utils import AveragedModel

from foldface.data.loader import PhotoLoader, normalize
from foldface.nn import batchnorm
from foldface.settings import TrainConfig


def make_average(net: torch.nn.Module, config: TrainConfig) -> torch.nn.Module | None:
    """A model of averaged weights beside `net`, or None: SWA (Izmailov et al. 2018) or timm's moving average.

    config: config.train, a TrainConfig."""
    if config.weight_averaging == "swa":
        return AveragedModel(net)
    if config.weight_averaging == "ema":
        return ModelEmaV3(net, config.ema_decay, use_warmup=True)
    return None


def refresh(
    average: torch.nn.Module,
    loader: PhotoLoader,
    scale: Sequence[tuple[float, float, float]],
    accelerator: Accelerator,
    freeze_layers: int,
) -> None:
    """Refresh the batch norm of SWA's averaged model with the training photos, but for its lowest `freeze_layers`.
    (EMA averages the statistics at every step, so that they are never far behind its weights.)

    loader: a PhotoLoader; scale: (mean, std) of loader.pixel_scale. All processes call it."""
    photos = (photos.to(accelerator.device, non_blocking=True) for _, photos, _ in loader)
    with accelerator.autocast():
        kept = batchnorm.lowest_layers(average, freeze_layers)
        batchnorm.refresh_batch_norm(average, (normalize(part, *scale) for part in photos), kept)
    for name, value in average.named_buffers():
        if name.endswith(("running_mean", "running_var")) and accelerator.num_processes > 1:
            value.copy_(accelerator.reduce(value, "mean"))


def mean_of(nets: list) -> torch.nn.Module:
    """The first model with the mean of all models' floating-point weights, in place."""
    tables = [net.state_dict() for net in nets]
    for name, value in tables[0].items():
        if value.is_floating_point():
            value.copy_(torch.stack([table[name].float() for table in tables]).mean(0))
    return nets[0]
