"""What moves a model: optimizers and their groups of parameters, and the learning rate's course.

config is config.train everywhere, a TrainConfig.
"""

import collections
import dataclasses
import difflib
import math
import time

import torch
from timm.optim import create_optimizer_v2, list_optimizers, param_groups_layer_decay, param_groups_weight_decay
from torch.optim import lr_scheduler

from foldface.files import InputError
from foldface.nn.side_by_side import Classifiers
from foldface.settings import TrainConfig

FROZEN_FEATURES_RATE = (
    3.0  # of a classifier whose features do not learn, times train.lr: it has far to go (docs/log.md)
)


def parameter_groups(net: torch.nn.Module, config: TrainConfig) -> list[dict]:
    """The parameters that learn, in groups with their rates: [{"params", "weight_decay", "lr"}].

    As in timm's optimizer factory, biases, norm weights and what the model itself names (no_weight_decay) do not decay.
    The backbone may have a learning rate of its own, and each layer less than the one above (layer_decay). The
    classifier of the frozen networks of model.beside has FROZEN_FEATURES_RATE times that of the other one.
    """
    options = {"weight_decay": config.weight_decay}
    if hasattr(net, "no_weight_decay"):
        options["no_weight_decay_list"] = net.no_weight_decay()
    if config.layer_decay < 1:
        found = param_groups_layer_decay(net, **options, layer_decay=config.layer_decay)
    else:
        found = param_groups_weight_decay(net, **options)
    classifier, backbone_lr, groups = net.get_classifier(), config.backbone_lr or config.lr, []
    place = {id(value): "head" for value in classifier.parameters()}
    if isinstance(classifier, Classifiers):
        place |= {id(value): "of frozen features" for value in classifier.each[-1].parameters()}
    rates = {None: backbone_lr, "head": config.lr, "of frozen features": FROZEN_FEATURES_RATE * config.lr}
    for group in found:
        for where, rate in rates.items():
            params = [value for value in group["params"] if place.get(id(value)) == where]
            lr = rate if where else rate * group.get("lr_scale", 1.0)
            if params:
                groups.append({"params": params, "weight_decay": group["weight_decay"], "lr": lr})
    return groups


def make_optimizer(parameters: list[dict], config: TrainConfig, fused: bool = True) -> torch.optim.Optimizer:
    """Adam (Kingma & Ba 2015), AdamW (Loshchilov & Hutter 2019), SGD with momentum, or another of timm's by its name.

    Adam's weight decay is L2, added to the gradient; AdamW's is taken off the weights. Raises InputError for a name
    that timm doesn't know, and for an optimizer that this machine or this training loop can't run.

    fused: all parameters in one pass, which asks no device how far it is. Not with loss scaling: a fused optimizer is
    called for a step that is to be skipped too, which nothing then can tell, and SGD's momentum, made in its first
    step, would never be filled.
    """
    options = {"weight_decay": config.weight_decay, "fused": fused}
    if config.optimizer == "sgd":
        momentum = {"momentum": config.momentum, "nesterov": config.nesterov}
        return torch.optim.SGD(parameters, config.lr, **momentum, **options)
    if config.optimizer in ("adam", "adamw"):
        kind = torch.optim.Adam if config.optimizer == "adam" else torch.optim.AdamW
        return kind(parameters, config.lr, **options)
    if config.optimizer not in list_optimizers() or config.optimizer in SECOND_ORDER:
        near = ", ".join(difflib.get_close_matches(config.optimizer, list_optimizers(), n=3))
        why = "needs second derivatives" if config.optimizer in SECOND_ORDER else "timm has no such optimizer"
        raise InputError(
            f"train.optimizer {config.optimizer}: {why}; there are {near or 'adam, adamw, sgd'} and others"
        )
    try:
        return create_optimizer_v2(
            parameters, config.optimizer, config.lr, weight_decay=config.weight_decay, momentum=config.momentum
        )
    except (AssertionError, ImportError) as error:  # APEX's and bitsandbytes' need CUDA and their package
        raise InputError(f"train.optimizer {config.optimizer}: can't be had here ({error})") from None


SECOND_ORDER = ("adahessian",)


def make_scheduler(optimizer: torch.optim.Optimizer, config: TrainConfig, steps: int) -> lr_scheduler.LRScheduler:
    """The learning rates' course, moved on once a step; `steps` make an epoch.

    A rise comes before it (warmup_epochs; onecycle's own rise takes that long instead), and, once weights are averaged,
    SWA's constant rate after it.
    """
    warm, total = config.warmup_epochs * steps, config.epochs * steps
    end = min(config.swa_start * steps, total) if config.weight_averaging == "swa" else total
    rates = [group["lr"] for group in optimizer.param_groups]
    parts = []  # (its first step, scheduler)
    if end < total:  # made first: OneCycleLR overwrites the rates that a LambdaLR made after it would multiply
        swa = lr_scheduler.LambdaLR(optimizer, [lambda _, rate=rate: config.swa_lr / rate for rate in rates])
    if warm and config.scheduler != "onecycle":
        parts.append((0, lr_scheduler.LinearLR(optimizer, 0.01, total_iters=warm)))
    if config.scheduler == "onecycle" and end:  # Smith & Topin 2018
        rise = (warm + 1) / end if warm else 0.3
        moves = not {"betas", "momentum"}.isdisjoint(optimizer.defaults)  # adafactor and the like have neither
        cycle = lr_scheduler.OneCycleLR(optimizer, rates, total_steps=end, pct_start=rise, cycle_momentum=moves)
        parts.append((0, cycle))
    elif config.scheduler == "cosine" and end:
        parts.append((warm, lr_scheduler.CosineAnnealingLR(optimizer, end - warm)))
    elif config.scheduler == "step" and end:
        parts.append((warm, lr_scheduler.StepLR(optimizer, config.step_epochs * steps, config.gamma)))
    elif end:
        gamma = config.gamma if config.scheduler == "exponential" else 1.0
        parts.append((warm, lr_scheduler.LambdaLR(optimizer, lambda step: gamma ** (step // steps))))
    if end < total:
        parts.append((end, swa))
    starts, schedulers = zip(*parts, strict=True)
    return schedulers[0] if len(parts) == 1 else lr_scheduler.SequentialLR(optimizer, [*schedulers], [*starts[1:]])


class Budget:
    """A course of the learning rate that is over when its seconds are, in the place of a scheduler.

    It goes on as the schedule does from its beginning to its end (Li, Yumer & Ramanan 2020: of a budget the schedule
    has to be wholly in it); how far a step goes is planned again every few steps, from what steps and looks at the
    validation photos have taken. `left` steps are planned, None before the first plan; `over` says that none is left.
    """

    POINTS, RECENT, EVERY = 1000, 50, 10
    KEPT = ("progress", "spent", "look", "left")

    def __init__(
        self, optimizer: torch.optim.Optimizer, config: TrainConfig, seconds: float, epoch_steps: int, look: float
    ) -> None:
        """seconds: for all that is still to come; epoch_steps: after so many, and at the end, comes a look at the
        validation photos; look: about how many steps one costs."""
        self.optimizer, self.seconds, self.epoch_steps = optimizer, seconds, epoch_steps
        self.curves = curves_of(optimizer, config, self.POINTS)
        self.progress, self.spent, self.left, self.look, self.share = 0.0, 0.0, None, None, look
        self.took, self.done, self.asked = collections.deque(maxlen=self.RECENT), 0, None
        self.began = time.perf_counter()
        self.apply()

    def state_dict(self) -> dict:
        self.spent, self.began = self.spent + time.perf_counter() - self.began, time.perf_counter()
        return {name: getattr(self, name) for name in self.KEPT}

    def load_state_dict(self, state: dict) -> None:
        for name in self.KEPT:
            setattr(self, name, state[name])
        self.seconds, self.began = self.seconds + self.spent, time.perf_counter()

    @property
    def remaining(self) -> float:
        """Seconds."""
        return self.seconds - self.spent - (time.perf_counter() - self.began)

    @property
    def over(self) -> bool:
        return self.left == 0

    def apply(self) -> None:
        """Set the rates (and momenta) that belong to this progress."""
        place = round(self.progress * self.POINTS)
        for group, curve in zip(self.optimizer.param_groups, self.curves, strict=True):
            group.update({name: values[place] for name, values in curve.items()})

    def took_look(self, seconds: float) -> None:
        """A look at the validation photos took so long."""
        self.look = seconds

    def follow(self, steps: int) -> None:
        """So many steps are left: a plan that this process made, or the first one for all."""
        self.left = steps

    def begin(self) -> None:
        """A stretch of steps begins: what was before is not counted as a step's."""
        self.asked = time.perf_counter()

    def step(self) -> None:
        """A step was taken."""
        now = time.perf_counter()
        if self.done > 0:  # the first one waits for workers and warms up
            self.took.append(now - self.asked)
        self.asked, self.done = now, self.done + 1
        if self.left:
            self.progress += (1 - self.progress) / self.left
            self.left -= 1
        self.apply()

    @property
    def due(self) -> bool:
        """Is it time for a plan? So early that even a minute has one, later every few steps."""
        return self.done == 3 or (self.done > 0 and self.done % self.EVERY == 0 and self.left != 0)

    def plan(self) -> int:
        """Steps that still fit, with a look at the end of each epoch and of all: an int."""
        each = sum(self.took) / len(self.took)
        look = self.share * each if self.look is None else self.look
        return max(0 if self.left else 1, math.floor((self.remaining - look) / (each + look / self.epoch_steps)))


def curves_of(optimizer, config, points):
    """What a schedule sets over its course: for each group of parameters {"lr": [points + 1 values], ...}."""
    groups = [{"params": [torch.zeros(1, requires_grad=True)], "lr": group["lr"]} for group in optimizer.param_groups]
    dummy = make_optimizer(groups, config)
    scheduler = make_scheduler(dummy, dataclasses.replace(config, epochs=1), points + 1)
    names = [name for name in ("lr", "betas", "momentum") if name in dummy.param_groups[0]]
    found = [{name: [group[name]] for name in names} for group in dummy.param_groups]
    for _ in range(points):
        dummy.step()
        scheduler.step()
        for group, curve in zip(dummy.param_groups, found, strict=True):
            for name in names:
                curve[name].append(group[name])
    return found


Course = lr_scheduler.LRScheduler | Budget  # what moves the learning rates, a step at a time


def make_course(
    optimizer: torch.optim.Optimizer, config: TrainConfig, steps: int, valid_photos: int, seconds: float | None = None
) -> Course:
    """What moves the learning rates, `steps` to an epoch: a schedule over epochs, or one over `seconds`."""
    if seconds is None:
        return make_scheduler(optimizer, config, steps)
    look = valid_photos / config.batch_size / 3  # no gradients: a third of a step's work
    return Budget(optimizer, config, seconds, steps * config.val_interval, look)
