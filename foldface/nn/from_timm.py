"""Backbones by timm's names: a model that timm knows, hf-hub:OWNER/NAME (or OWNER/NAME@REVISION), local-dir:FOLDER.

    python train.py --model.backbone local-dir:mine --model.pretrained true
    python train.py --model.backbone hf-hub:timm/resnet18.a1_in1k --model.pretrained true

Folder and repository hold what timm's save_for_hf writes: config.json (the architecture, its model_args, the pixels
that it was trained on) and model.safetensors. Both are data: no program in them is run, only plain tensors are read,
and model_args are values that build an architecture of timm's.

A weights file of ours holds the architecture and its model_args, so that it is read without folder and hub; one that
names a folder or a repository is refused.
"""

import inspect
import json
import math
import re
import urllib.request
from pathlib import Path
from typing import NamedTuple

import timm
import torch
from huggingface_hub import constants, hf_hub_download
from timm.models import build_model_with_cfg
from torch import nn

from foldface.files import InputError, read_json
from foldface.nn.weights import from_hub, load_backbone, weights_of

SOURCE = re.compile("(hf-hub|hf_hub|local-dir):(.*)", re.IGNORECASE | re.DOTALL)
REPOSITORY = re.compile(r"([\w.-]+/[\w.-]+)(?:@([\w./-]+))?")
WEIGHTS = ("model.safetensors", "pytorch_model.bin")
OURS = ("num_classes", "drop_rate", "drop_path_rate", "img_size")  # of model_args, what our settings say
BUILDERS = (timm.create_model, build_model_with_cfg)
# not of a network's shape: where weights come from, what is left out of it, where it lies
REFUSED = {name for builder in BUILDERS for name in inspect.signature(builder).parameters}
REFUSED |= {"features_only", "out_indices", "device", "dtype", "scriptable"}
MOST = 4096  # the largest number in model_args: layers, channels


class Described(NamedTuple):
    """What a config.json says: timm's name of the architecture, the arguments that build it, and of the pixels that it
    expects {"mean": [r, g, b], "std": [r, g, b]}, as far as it says so; fixed: is it made for one size of photos?"""

    architecture: str
    args: dict
    pixels: dict
    fixed: bool


def source_of(backbone: str) -> tuple[str, str]:
    """("hf-hub" or "local-dir", what follows) of a backbone's name; ("", name) of a model that timm knows."""
    found = SOURCE.fullmatch(backbone)
    return (found[1].lower().replace("_", "-"), found[2]) if found else ("", backbone)


def network(
    backbone: str,
    outputs: int,
    pretrained: bool | str,
    image_size: int,
    dropout: float,
    drop_path: float,
    saved: dict | None = None,
) -> nn.Module:
    """A network of timm's with so many outputs: with its published weights where pretrained is True, else with random
    ones. saved: the model_args in a weights file, for which no other file is read. Raises InputError in one line."""
    kind, name = source_of(backbone)
    if kind and saved is not None:
        raise InputError(f"backbone {backbone}: weights don't name a folder or the hub: train again")
    found = (
        described(backbone, kind, name) if kind else Described(backbone, saved or {}, {}, "img_size" in (saved or {}))
    )
    refuse_unknown(found.architecture, backbone)
    args = {key: value for key, value in found.args.items() if key not in OURS}
    options = args | {"num_classes": outputs, "drop_rate": dropout}
    if drop_path:
        options["drop_path_rate"] = drop_path
    config = timm.get_pretrained_cfg(found.architecture)
    if found.fixed or (config is not None and config.fixed_input_size):
        options["img_size"] = image_size  # a transformer's position embedding is made for one size
    try:
        if not kind:
            return from_hub(backbone, options) if pretrained is True else timm.create_model(backbone, **options)
        net = published(backbone, found, options) if pretrained is True else plain(found, options)
    except TypeError as error:
        if found.args and "drop_path_rate" not in str(error):
            raise InputError(f"model.backbone {backbone}: {found.architecture} can't be built: {error}") from None
        if "drop_path_rate" not in str(error):
            raise
        raise InputError(f"model.drop_path {drop_path}: {backbone} has no residual branches to leave out") from None
    args |= {key: value for key, value in options.items() if key == "img_size"}
    net.about = {"backbone": found.architecture, "model_args": args}  # joins what a weights file says of itself
    return net


def refuse_unknown(architecture, backbone):
    """Raise InputError for a model that timm doesn't have, with names that are near."""
    if timm.is_model(architecture):
        return
    if architecture != backbone:
        raise InputError(f"model.backbone {backbone}: its config.json names {architecture}, which timm doesn't have")
    near = timm.list_models(f"*{backbone}*")[:3] or timm.list_models(f"{backbone[:6]}*")[:3]
    raise InputError(
        f"model.backbone {backbone}: timm has no such model"
        + (f"; it has {', '.join(near)}" if near else "; one of your own: name its file with --plugins FILE.py")
    )


def plain(found, options):
    """The network of a Described, with random weights."""
    try:
        return timm.create_model(found.architecture, pretrained_cfg_overlay=found.pixels, **options)
    except (AssertionError, RuntimeError, ValueError, KeyError) as error:
        raise InputError(
            f"{found.architecture} can't be built with its model_args {found.args}: {first_line(error)}"
        ) from None


def published(backbone, found, options):
    """The network of a Described, with the weights beside its config.json: fitted to other sizes as timm does it.

    Raises InputError where tensors are missing: timm takes random ones in their place."""
    path = weights_beside(backbone)
    tensors = weights_of(str(path))
    with torch.device("meta"):
        net = plain(found, options)
    classifier = net.pretrained_cfg.get("classifier") or ()
    heads = tuple(f"{part}." for part in ([classifier] if isinstance(classifier, str) else classifier))
    names = [name for name in net.state_dict() if not name.endswith("num_batches_tracked")]
    lost = [name for name in names if name not in tensors and not (heads and name.startswith(heads))]
    if lost:
        raise InputError(f"model.pretrained true: {path}: has no {lost[0]}, which {found.architecture} has")
    theirs = next((len(tensors[f"{head}weight"]) for head in heads if f"{head}weight" in tensors), 0)
    overlay = found.pixels | {"state_dict": tensors, "source": "", "custom_load": False, "num_classes": theirs}
    try:
        net = timm.create_model(found.architecture, pretrained=True, pretrained_cfg_overlay=overlay, **options)
    except (RuntimeError, KeyError) as error:
        raise InputError(
            f"model.pretrained true: {path}: doesn't fit {found.architecture} ({first_line(error)})"
        ) from None
    if net.pretrained_cfg.get("state_dict") is None:  # an architecture of the user's, which loads nothing by itself
        load_backbone(net, tensors)
    else:
        del net.pretrained_cfg["state_dict"]
    return net


def first_line(error):
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


# --------------------------------------------------------------------------------------------- what the folder says


def described(backbone: str, kind: str, name: str) -> Described:
    """What the config.json of a folder or a repository says. kind, name: of `source_of`. Raises InputError."""
    path = hub_file(backbone, "config.json") if kind == "hf-hub" else Path(name).expanduser() / "config.json"
    if path is None or not path.is_file():
        raise InputError(
            f"model.backbone {backbone}: there is no config.json, as timm's save_for_hf writes it beside the weights"
        )
    content = read_json(path, "timm's save_for_hf writes it")
    try:
        pixels = content.get("pretrained_cfg", content)
        args = content.get("model_args") or {}
        refuse_untrue(args)
        if args.get("in_chans", 3) != 3:
            raise ValueError(f"it sees {args['in_chans']} channels, photos have 3")
        scale = {key: pixels[key] for key in ("mean", "std") if pixels.get(key) is not None}
        for key, values in scale.items():
            if len(values) != 3 or not all(math.isfinite(value) and (key == "mean" or value > 0) for value in values):
                raise ValueError(f"{key} is {values}, not three numbers")
        fixed = bool(pixels.get("fixed_input_size")) or "img_size" in args
        architecture = content["architecture"]
        if not isinstance(architecture, str):
            raise TypeError(f"architecture is {architecture!r}")
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        reason = f"has no {error}" if isinstance(error, KeyError) else str(error)
        raise InputError(f"model.backbone {backbone}: {path}: is not as timm writes it ({reason})") from None
    return Described(architecture, args, {key: tuple(values) for key, values in scale.items()}, fixed)


def refuse_untrue(args: dict) -> None:
    """Raise ValueError for model_args that are more than values of a network's shape: files come from anywhere."""
    if not isinstance(args, dict):
        raise ValueError("model_args is no object")
    wrong = [name for name in args if name in REFUSED or not name.isidentifier()]
    if wrong:
        raise ValueError(f"model_args may not name {wrong[0]}")
    if len(json.dumps(args)) > 2000 or not all(map(small, args.values())):
        raise ValueError(f"model_args holds more than words, yes or no, and numbers up to {MOST}")


def small(value):
    """Is a value of model_args a short word, yes or no, a number up to MOST, or a list or object of such?"""
    if isinstance(value, (list, dict)):
        return all(map(small, value.values() if isinstance(value, dict) else value))
    return value is None or isinstance(value, (bool, str)) or abs(value) <= MOST  # also false for NaN


def weights_beside(backbone: str) -> Path:
    """The weights file of a folder or a repository. Raises InputError where there is none."""
    kind, name = source_of(backbone)
    for file in WEIGHTS:
        path = hub_file(backbone, file) if kind == "hf-hub" else Path(name).expanduser() / file
        if path is not None and path.is_file():
            return path
    raise InputError(
        f"model.pretrained true: {backbone} has no {' and no '.join(WEIGHTS)}: name the file of its weights "
        "(--model.pretrained FILE), or start from random ones (--model.pretrained false)"
    )


def hub_file(backbone: str, file: str) -> Path | None:
    """A file of a repository, from the local cache or the hub; None where the repository has no such file.

    Raises InputError at once, without retries, where it is not in the cache and the hub can't be reached."""
    found = REPOSITORY.fullmatch(source_of(backbone)[1])
    if not found:
        raise InputError(f"model.backbone {backbone}: should be hf-hub:OWNER/NAME, or hf-hub:OWNER/NAME@REVISION")
    repository, revision = found.groups()
    try:
        return Path(hf_hub_download(repository, file, revision=revision, local_files_only=True))
    except (OSError, ValueError):  # not in the cache
        pass
    try:
        urllib.request.urlopen(urllib.request.Request(constants.ENDPOINT, method="HEAD"), timeout=5).close()
        return Path(hf_hub_download(repository, file, revision=revision))
    except (OSError, ValueError, RuntimeError) as error:
        if type(error).__name__ in ("EntryNotFoundError", "RemoteEntryNotFoundError"):
            return None
        raise InputError(
            f"model.backbone {backbone}: {file} is not in the cache and can't be had from the hub "
            f"({getattr(error, 'reason', None) or first_line(error)}): copy the repository from a machine with "
            f"internet (hf download {repository} --local-dir FOLDER) and give --model.backbone local-dir:FOLDER"
        ) from None
