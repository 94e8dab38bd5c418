"""What moves a model: optimizers and their groups of parameters, the learning rate's course, averaged weights.

settings are args.Train everywhere. torch and timm are imported where they are used.
"""


def parameter_groups(net, settings):
    """Parameters with their learning rates: the backbone may have its own, and each layer less than the one above."""
    from timm.optim import param_groups_layer_decay

    backbone = settings.backbone_lr or settings.lr
    if settings.layer_decay < 1:
        found = param_groups_layer_decay(net, settings.weight_decay, layer_decay=settings.layer_decay)
        groups = [{key: group[key] for key in ("params", "weight_decay")} for group in found]
        for group, scale in zip(groups, (group["lr_scale"] for group in found), strict=True):
            group["lr"] = settings.lr if scale == 1 else backbone * scale  # the classifier's scale alone is 1
        return groups
    if backbone == settings.lr:
        return list(net.parameters())
    head = {id(value) for value in net.get_classifier().parameters()}
    return [
        {"params": [value for value in net.parameters() if id(value) not in head], "lr": backbone},
        {"params": [value for value in net.parameters() if id(value) in head], "lr": settings.lr},
    ]


def make_optimizer(parameters, settings):
    """Adam (Kingma & Ba 2015), AdamW (Loshchilov & Hutter 2019) or SGD with Nesterov momentum."""
    import torch

    if settings.optimizer == "sgd":
        return torch.optim.SGD(parameters, settings.lr, momentum=0.9, nesterov=True, weight_decay=settings.weight_decay)
    kind = torch.optim.Adam if settings.optimizer == "adam" else torch.optim.AdamW
    return kind(parameters, settings.lr, weight_decay=settings.weight_decay)


def make_scheduler(optimizer, settings, steps):
    """The learning rates' course, moved on once a step; `steps` make an epoch.

    It may have a rise before it (warmup_epochs) and, once weights are averaged, SWA's constant rate after it.
    """
    from torch.optim import lr_scheduler

    warm, total = settings.warmup_epochs * steps, settings.epochs * steps
    end = min(settings.swa_start * steps, total) if settings.average == "swa" else total
    rates = [group["lr"] for group in optimizer.param_groups]
    parts, starts = [], []
    if warm:
        parts.append(lr_scheduler.LinearLR(optimizer, 0.01, total_iters=warm))
        starts.append(warm)
    if settings.scheduler == "onecycle":  # Smith & Topin 2018
        parts.append(lr_scheduler.OneCycleLR(optimizer, rates, total_steps=max(end - warm, 1)))
    elif settings.scheduler == "cosine":
        parts.append(lr_scheduler.CosineAnnealingLR(optimizer, max(end - warm, 1)))
    elif settings.scheduler == "step":
        parts.append(lr_scheduler.StepLR(optimizer, settings.step_epochs * steps, settings.gamma))
    else:
        gamma = settings.gamma if settings.scheduler == "exponential" else 1.0
        parts.append(lr_scheduler.LambdaLR(optimizer, lambda step: gamma ** (step // steps)))
    if end < total:
        parts.append(lr_scheduler.LambdaLR(optimizer, [lambda _, rate=r: settings.swa_lr / rate for r in rates]))
        starts.append(end)
    return parts[0] if len(parts) == 1 else lr_scheduler.SequentialLR(optimizer, parts, starts)


def make_average(net, settings):
    """A model of averaged weights beside `net`, or None: SWA (Izmailov et al. 2018) or timm's moving average."""
    if settings.average == "swa":
        from torch.optim.swa_utils import AveragedModel

        return AveragedModel(net)
    if settings.average == "ema":
        from timm.utils import ModelEmaV3

        return ModelEmaV3(net, settings.ema_decay, use_warmup=True)
    return None
