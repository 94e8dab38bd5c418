"""Batch norm: freeze it, refresh its statistics for averaged weights, fold it into the convolution before it."""

import collections
from collections.abc import Iterable

import timm
import torch

from foldface.files import InputError


def lowest_layers(model: torch.nn.Module, count: int) -> list[torch.nn.Module]:
    """The modules of the `count` lowest layers in timm's groups, stem first, and those that never learn (model.beside),
    beside which the first network's layers are counted. Raises InputError if there are fewer."""
    fixed = list(getattr(model, "fixed", ()))
    if not count:
        return fixed
    whole, model = model, getattr(model, "first", model)
    groups = model.group_matcher(coarse=True) if hasattr(model, "group_matcher") else {}
    layers = timm.models.group_modules(model, groups) if groups else {}
    most = max(len(layers) - (model is whole), 0)  # its classifier is no layer to freeze
    if count > most:
        raise InputError(
            f"train.freeze_layers {count}: this backbone has {most} layers to freeze: --train.freeze_layers "
            + (f"{most}, or less" if most else "0 trains them all")
        )
    names = {name for layer in sorted(layers)[:count] for name in layers[layer]}
    return fixed + [module for name, module in model.named_modules() if name in names]


def freeze_batch_norm(model: torch.nn.Module) -> None:
    """Put only batch norm into eval mode: its statistics stay, its weights learn. Call it after each model.train()."""
    for part in model.modules():
        if isinstance(part, torch.nn.modules.batchnorm._BatchNorm):
            part.eval()


def refresh_batch_norm(
    model: torch.nn.Module, inputs: Iterable[torch.Tensor], kept: Iterable[torch.nn.Module] = ()
) -> None:
    """Compute batch norm's statistics again from inputs (an iterable of (b, 3, h, w)), for averaged weights, whose
    activations differ from those of each averaged model. The modules `kept` keep theirs, as frozen layers do while the
    others train (torch's update_bn would change them too)."""
    held = {id(part) for module in kept for part in module.modules()}
    layers = [part for part in model.modules() if isinstance(part, torch.nn.modules.batchnorm._BatchNorm)]
    layers = [part for part in layers if id(part) not in held]
    if not layers:
        return
    momenta, _ = [part.momentum for part in layers], model.eval()
    for part in layers:
        part.reset_running_stats()
        part.momentum = None  # the mean over all batches
        part.train()
    with torch.no_grad():
        for batch in inputs:
            model(batch)
    for part, momentum in zip(layers, momenta, strict=True):
        part.momentum = momentum
    model.eval()


class LayerTracer(torch.fx.Tracer):
    """Traces a model down to torch's layers, to timm's layers without batch norm and to ONNX networks."""

    def is_leaf_module(self, module, name):
        inside = any(isinstance(part, torch.nn.BatchNorm2d) for part in module.modules() if part is not module)
        whole = type(module).__module__.startswith("timm.layers") and not inside
        return whole or getattr(module, "traced_whole", False) or super().is_leaf_module(module, name)


def norm_pairs(model):
    """[(convolution, batch norm, its name)] where only a batch norm in eval mode uses a convolution's output; [] where
    torch.fx can't trace the model."""
    if not any(isinstance(part, torch.nn.BatchNorm2d) and not part.training for part in model.modules()):
        return []
    try:
        graph = LayerTracer().trace(model)
    except Exception:  # control flow that depends on the input fails in many ways
        return []
    layers, pairs = dict(model.named_modules()), []
    calls = collections.Counter(node.target for node in graph.nodes if node.op == "call_module")
    for node in graph.nodes:
        before = node.args[0] if node.op == "call_module" and node.args else None
        if not isinstance(before, torch.fx.Node) or before.op != "call_module" or len(before.users) > 1:
            continue
        norm, conv = layers[node.target], layers[before.target]
        linear = isinstance(conv, torch.nn.Conv2d) and isinstance(norm, torch.nn.BatchNorm2d)
        once = calls[node.target] == calls[before.target] == 1
        if linear and once and not norm.training and norm.running_mean is not None:
            pairs.append((conv, norm, node.target))
    return pairs


def after_norm(norm):
    """The dropout and the activation inside timm's batch norm, as a list."""
    return [part for part in (getattr(norm, "drop", None), getattr(norm, "act", None)) if part is not None]


def fold_batch_norm(model: torch.nn.Module) -> int:
    """Fold batch norm into the convolutions before it, in place (Jacob et al. 2018): in eval mode both are linear.

    Outputs stay the same except for rounding. Returns the number of folded layers; 0 where torch.fx can't trace the
    model.
    """
    pairs = norm_pairs(model)
    for conv, norm, name in pairs:
        conv.weight, conv.bias = torch.nn.utils.fusion.fuse_conv_bn_weights(
            conv.weight, conv.bias, norm.running_mean, norm.running_var, norm.eps, norm.weight, norm.bias
        )
        model.set_submodule(name, torch.nn.Sequential(*after_norm(norm)))
    return len(pairs)
