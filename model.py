"""Build a network, a backbone from timm with its heads; load trained networks from disk.

A weights file is safetensors. Its metadata ("about", see `describe`) says how to build the model and how to prepare
photos, so that inference does it as training did.
"""

import dataclasses
import json
import math
import typing
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd
import timm
import torch
from accelerate import Accelerator
from accelerate.utils import set_seed
from safetensors import safe_open
from safetensors.torch import load_file

from foldface import runs
from foldface.data.leaks import start_weights
from foldface.data.loader import pixel_scale
from foldface.data.remote import crop_folder
from foldface.faces.crops import TEMPLATES
from foldface.files import InputError, read_json
from foldface.head import N_BINS
from foldface.nn import agecnn, batchnorm, from_timm, side_by_side, weights
from foldface.nn.heads import Heads
from foldface.nn.progressive import refuse_first_size
from foldface.nn.weights import WrongWeights, load_backbone, weights_of
from foldface.nn.weights import save as save
from foldface.predictions import fold_name
from foldface.registry import refuse_unknown
from foldface.settings import BesideConfig, Config, DataConfig, ModelConfig, of_earlier, task_of
from foldface.task import Task


def build(
    backbone: str,
    outputs: int,
    pretrained: bool | str,
    image_size: int,
    dropout: float = 0.0,
    drop_path: float = 0.0,
    init: str = "default",
    beside: Sequence[BesideConfig] = (),
    sources: Sequence[object | None] = (),
) -> torch.nn.Module:
    """A timm model or an ONNX network: (n, 3, image_size, image_size) float32 -> (n, outputs), read by heads.Heads.

    pretrained: True (timm's weights from the hub or its cache), False, a weights file, or "package:NAME". init: how
    weights begin that are not pretrained, see weights.initialise. beside: networks whose features stand beside its own.
    sources: of it and of those beside it what a weights file says: of an ONNX network a from_onnx.Source, of timm's
    its model_args; then no other file is read.
    Raises InputError for an unknown backbone, and for weights that can't be had or don't fit.
    """
    sources = list(sources) or [None] * (1 + len(beside))
    if not beside:
        return one_network(backbone, outputs, pretrained, image_size, dropout, drop_path, init, sources[0])
    first = one_network(backbone, outputs, pretrained, image_size, 0.0, drop_path, init, sources[0])
    others = [network_beside(one, first, image_size, source) for one, source in zip(beside, sources[1:], strict=True)]
    net = side_by_side.SideBySide(first, backbone, others, outputs, dropout)
    quiet_classifier(net)
    return net


def one_network(backbone, outputs, pretrained, image_size, dropout, drop_path, init, source):
    """`build` for one network alone. source: what a weights file says of it, or None."""
    if weights.is_onnx(backbone):
        model = onnx_model(backbone, outputs, pretrained, image_size, dropout, drop_path, source)
    else:
        model = from_timm.network(backbone, outputs, pretrained, image_size, dropout, drop_path, source)
    if isinstance(pretrained, str):
        try:
            load_backbone(model, weights_of(pretrained))
        except WrongWeights as error:
            own = "its own" if weights.is_onnx(backbone) else "timm's for it from the hub"
            raise InputError(
                f"model.pretrained {pretrained}: {error}: these are of another network than model.backbone {backbone}: "
                f"take {own} "
                "(--model.pretrained true), a file of its weights (--model.pretrained FILE), or random ones "
                "(--model.pretrained false)"
            ) from None
    if init != "default":
        weights.initialise(model, init)
    elif not isinstance(model, agecnn.AgeCNN):  # those show what initialisation alone does
        quiet_classifier(model)
    if source is None:
        refuse_few_pixels(model, backbone, image_size)
    return model


def refuse_few_pixels(net, backbone, side):
    """Raise InputError for photos of so few pixels that a layer has none left to look at."""
    try:
        with torch.no_grad():  # not inference_mode: a network may keep what it computes for later, to train with
            net.eval()(torch.zeros(1, 3, side, side))
    except RuntimeError as error:
        reason = str(error).strip().splitlines()[0]
        raise InputError(f"data.image_size {side}: {backbone} needs larger photos ({reason})") from None
    finally:
        net.train()


def network_beside(chosen: BesideConfig, first, image_size, source):
    """A network of model.beside, for photos that were prepared for the network `first`."""
    side = chosen.image_size or image_size
    try:
        if not chosen.image_size and weights.is_onnx(chosen.backbone):
            side = onnx_networks().side_of(chosen.backbone)
        net = one_network(chosen.backbone, 1, chosen.pretrained, side, 0.0, 0.0, "default", source)
    except InputError as error:
        raise InputError(f"model.beside: {error}") from None
    scale = pixel_scale(first)
    return side_by_side.Beside(net, chosen.backbone, image_size, side, chosen.zoom, chosen.frozen, scale)


def onnx_networks():
    """foldface.nn.from_onnx, whose packages (onnx, onnx2pytorch) no other backbone needs."""
    from foldface.nn import from_onnx

    return from_onnx


def onnx_model(backbone, outputs, pretrained, image_size, dropout, drop_path, source=None):
    """`build` for onnx:..., with the ONNX file's weights where pretrained is True, else with random ones."""
    if drop_path:
        raise InputError(f"model.drop_path {drop_path}: {backbone} has no residual branches that could be left out")
    from_onnx = onnx_networks()
    net = from_onnx.OnnxNetwork(source or from_onnx.read(backbone, image_size), outputs, image_size, dropout)
    if pretrained is not True and source is None:
        from_onnx.reset(net)
    return net


def make(config: Config, outputs: int, fold: int, accelerator: Accelerator) -> torch.nn.Module:
    """Set all seeds for a fold, then build its network with so many outputs, on the accelerator's device.

    It starts from the weights of model.init_from_run, else from model.pretrained. Its lowest train.freeze_layers layers
    are frozen. Raises InputError as `build` does.
    """
    seed = runs.fold_seed(config, fold)
    chosen = config.model
    set_seed(seed)
    start = start_weights(config, fold)
    beside = [dataclasses.replace(one, pretrained=False) for one in chosen.beside] if start else chosen.beside
    net = build(
        chosen.backbone,
        outputs,
        False if start else chosen.pretrained,
        config.data.image_size,
        chosen.dropout,
        chosen.drop_path,
        chosen.init,
        beside,
    )
    if start:
        load_backbone(net, weights_of(str(start)))
    if accelerator.num_processes > 1:
        set_seed(seed, device_specific=True)  # dropout differs by process; the weights are process 0's
        if accelerator.device.type == "cuda" and not chosen.freeze_bn:
            net = timm.layers.convert_sync_batchnorm(net)
    for layer in batchnorm.lowest_layers(net, config.train.freeze_layers):
        layer.requires_grad_(False)
    if chosen.grad_checkpointing:
        try:
            net.set_grad_checkpointing(True)
        except (AttributeError, AssertionError):
            raise InputError(
                f"model.grad_checkpointing true: {chosen.backbone} doesn't know how: leave it false"
            ) from None
    refuse_first_size(net, config.train.first_size, config.data.image_size, chosen.backbone)
    return net.to(accelerator.device, memory_format=torch.channels_last)


def quiet_classifier(model: torch.nn.Module) -> None:
    """Give the classifier small random weights, so that all classes start almost equally likely.

    Some of timm's start with large ones: EfficientNet's first loss is 6, where chance is ln 18 = 2.9, and a short fit
    loses its first epochs to that.
    """
    classifier = model.get_classifier()
    for part in classifier.each if isinstance(classifier, side_by_side.Classifiers) else (classifier,):
        if isinstance(part, torch.nn.Linear):
            torch.nn.init.normal_(part.weight, std=0.01)
            torch.nn.init.zeros_(part.bias)


def read_crop_settings(config: Config) -> dict:
    """How the crops were made, the content of crop.json; {} for whole photos. It is saved with the weights."""
    if not config.data.crops:
        return {}
    return read_json(crop_folder(config.data.crops) / "crop.json", "run face_crop.py again")


def describe(config: Config, heads: Heads, net: torch.nn.Module, precision: str, fold: int, rows: pd.DataFrame) -> dict:
    """The metadata of a weights file: how to build the model, how to prepare photos, and `prior`.

    prior: the answer, Heads.width numbers, for a photo that can't be read: the frequencies of the training classes, or
    of a number the median. precision: "no", "fp16" or "bf16", as trained; rows: training rows.
    """
    rows = rows[rows["source"] == "train"]
    task = heads.task
    mean, std = pixel_scale(net)
    if task.numeric:
        prior = [float(rows["target"].median()), np.nan]
    elif task.multilabel:
        prior = task.sets(rows["target"]).mean(0)
    else:
        prior = np.bincount(rows["target"], minlength=task.size) / len(rows)
    if heads.in_numbers:
        known = rows[task.number.key].to_numpy()
        prior = [*prior, known.mean(), *((known >= bound).mean() for bound in task.number.steps)]
    return {
        "backbone": config.model.backbone,
        "heads": config.model.heads,
        "task": dataclasses.asdict(config.task),
        "classes": list(task.classes),
        "image_size": config.data.image_size,
        "fit": config.data.resize_mode,
        "augment": config.data.augment,
        "mean": list(mean),
        "std": list(std),
        "precision": precision,
        "crops": read_crop_settings(config),
        "fold": fold,
        "prior": [float(value) for value in prior],
    } | getattr(net, "about", {})


def refuse_other_tensors(file: safe_open, model: torch.nn.Module) -> None:
    """Raise ValueError unless an open safetensors file holds the tensors of a model, by name and shape. Nothing but the
    file's header is read, and the model may be on the device "meta": neither takes memory."""
    own = {name: tuple(value.shape) for name, value in model.state_dict().items()}
    given = {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118 (it is no dict)
    for name in own | given:
        if own.get(name) != given.get(name):
            raise ValueError(f"{name} is {given.get(name, 'not there')} in the file, {own.get(name, 'not')} in the net")


def refuse_untrue(about: dict, heads: Heads) -> None:
    """Raise ValueError if a file's metadata can't be true: files may come from strangers. Raise InputError for an
    unknown augmentation or detector, which a file in `plugins` may add."""
    refuse_unknown("augment", about["augment"], "data.augment")
    kinds = {kind.__name__: kind for kind in (DataConfig, ModelConfig)}
    choices = {
        name: typing.get_args(typing.get_type_hints(kinds[kind])[setting])
        for name, kind, setting in (
            ("fit", "DataConfig", "resize_mode"),
            ("heads", "ModelConfig", "heads"),
        )
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
        for name in crops["detectors"]:
            refuse_unknown("detector", name, "crop.detectors")
        if not crops["detectors"] or crops["align"] not in (True, False, *TEMPLATES) or not 0 <= crops["margin"] <= 10:
            raise ValueError(f"crops are {crops!r}: no face is cut out like that")
    for name, least in (("mean", -math.inf), ("std", 0)):
        if len(about[name]) != 3 or not all(math.isfinite(value) and value > least for value in about[name]):
            raise ValueError(f"{name} is {about[name]}, not three numbers{' above 0' if least == 0 else ''}")
    prior = about["prior"]
    needed = prior[:1] if heads.task.numeric else prior  # how sure a number is may be unknown: NaN
    if len(prior) != heads.width or not all(math.isfinite(value) for value in needed):
        raise ValueError(f"prior holds {len(prior)} numbers, not {heads.width} finite ones")
    side_by_side.refuse_untrue(about.get("beside", []))
    if type(about.get("fold", 0)) is not int:
        raise ValueError(f"fold is {about['fold']!r}, no number")


def load(path: str | Path) -> tuple[torch.nn.Module, Heads, dict]:
    """(model in eval mode on the CPU, its Heads, about) from a file that `save` wrote. Raises InputError for any other
    file, and for metadata that can't be true. Names and shapes of tensors are compared before any tensor is read."""
    try:
        with safe_open(path, "pt") as file:
            about = json.loads((file.metadata() or {})["about"])
            about |= {"augment": of_earlier({"data": {"augment": about["augment"]}})["data.augment"]}
            about |= {"task": task_of_weights(about)}
            heads = Heads(Task(**about["task"]), about["heads"])
            refuse_untrue(about, heads)
            networks, most = [about, *about.get("beside", [])], Path(path).stat().st_size
            sources = [
                onnx_networks().saved(one, most) if weights.is_onnx(one["backbone"]) else one.get("model_args", {})
                for one in networks
            ]
            for one in networks:
                from_timm.refuse_untrue(one.get("model_args", {}))
            beside = [
                BesideConfig(one["backbone"], False, one["image_size"], one["zoom"], one["frozen"])
                for one in networks[1:]
            ]
            how = about["backbone"], heads.size, False, about["image_size"]
            with torch.device("meta"):
                empty = build(*how, beside=beside, sources=sources)
            refuse_other_tensors(file, empty)
        model = build(*how, beside=beside, sources=sources)
        model.load_state_dict(load_file(path))
    except InputError as error:
        raise InputError(f"{path}: {error}") from None
    except Exception as error:  # a damaged file fails in many ways
        what = f"{type(error).__name__}: {error}".splitlines()[0]
        raise InputError(f"{path}: is no checkpoint of ours ({what})") from None
    broken = next((name for name, value in model.state_dict().items() if not torch.isfinite(value).all()), None)
    if broken:
        raise InputError(f"{path}: {broken} holds NaN or infinite weights: train this fold again")
    return model.eval(), heads, about


def task_of_weights(about: dict) -> dict:
    """What a weights file says of its task: the arguments of task.Task. Earlier files name beside the task what ages
    learn and where the last class of ages began in training."""
    if "age" not in about:
        return task_of({"task": about["task"]})
    boundary = about["age_boundary"]  # earlier still it moved by hundredths of the range, so not in [0, 80]
    for head in about["task"]["heads"] if "bounds" not in about else ():
        if head.get("bounds") and head.get("range"):
            step = (head["range"][1] - head["range"][0]) / (N_BINS - 1)
            boundary = boundary if boundary in [head["bounds"][-1] - back * step for back in range(6)] else None
    then = {"task": about["task"], "data": {"age_boundary": boundary}, "model": {"age": about["age"]}}
    return task_of(then)


READ_BY = ("name", "classes", "column", "bounds", "range", "train_bounds", "learn")  # of a head


def preparation(about: dict) -> dict:
    """What folds of one run share: how photos are prepared, and how outputs are read."""
    heads = [[head.get(key) for key in READ_BY] for head in about["task"]["heads"]]
    return {key: about[key] for key in PREPARATION} | {"task": about["task"] | {"heads": heads}}


PREPARATION = ("image_size", "fit", "augment", "mean", "std", "crops", "heads")


def checkpoints(run: str | Path) -> dict[int, Path]:
    """{fold: path of best.safetensors} of the trained folds of a run; raises InputError if there is none."""
    found = {
        int(path.parent.name[4:]): path
        for path in Path(run).glob("fold*/best.safetensors")
        if path.parent.name[4:].isdigit()
    }
    if not found:
        raise InputError(f"{run}: has no fold*/best.safetensors: train first, or name another --run")
    return dict(sorted(found.items()))


def load_folds(paths: dict[int, Path]) -> tuple[dict[int, torch.nn.Module], dict[int, dict], Heads]:
    """({fold: model}, {fold: its metadata, see `describe`}, the Heads of all). paths: as `checkpoints` gives them.

    Raises InputError if the folds differ in how photos are prepared or outputs are read.
    """
    nets, abouts = {}, {}
    for fold, path in paths.items():
        net, heads, abouts[fold] = load(path)
        if abouts[fold].get("fold", fold) != fold:
            other = fold_name(abouts[fold]["fold"])
            raise InputError(f"{path}: holds the weights of {other.replace('fold', 'fold ')}: copied from there?")
        nets[fold] = net.to(memory_format=torch.channels_last)
    first, about = next(iter(abouts.items()))
    for fold, other in abouts.items():
        mine, theirs = preparation(other), preparation(about)
        different = [key for key in mine if mine[key] != theirs[key]]
        if different:
            raise InputError(
                f"{paths[fold]} and {paths[first]} were trained with different {', '.join(different)}: "
                "they are not folds of one run"
            )
    return nets, abouts, heads
