"""Grad-CAM: the layers that have a map, the class to explain, the map over the photo."""

import numpy as np
import pandas as pd
import torch
from pytorch_grad_cam import GradCAM
from pytorch_grad_cam.utils.image import show_cam_on_image

from foldface import devices
from foldface.data import loader
from foldface.files import InputError
from foldface.nn.heads import Heads
from foldface.nn.side_by_side import SideBySide
from foldface.settings import Config
from foldface.task import Task

# ------------------------------------------------------------------------------------------------------- the maps


def spatial_layers(net: torch.nn.Module, size: int) -> dict:
    """{name: module} of the layers whose output is a map of the photo, in the order of computation.

    Outputs are (n, c, h, w), (n, h, w, c) as in Swin, or (n, tokens, c) as in ViT, with more than one place.
    """
    found = {}

    def note(name):
        def hook(module, _, out):
            if isinstance(out, torch.Tensor) and out.dim() in (3, 4) and places(net, out) > 1:
                found[name] = module

        return hook

    handles = [part.register_forward_hook(note(name)) for name, part in net.named_modules() if name]
    with torch.no_grad():
        net(torch.zeros(1, 3, size, size, device=device_of(net)))
    for handle in handles:
        handle.remove()
    return found


def device_of(net):
    """The torch.device of a model."""
    return next(net.parameters()).device


def places(net, out) -> int:
    """The number of places of the photo in a layer's output."""
    height, width = as_map(net, out).shape[2:]
    return height * width


def grid(net, layer, size: int) -> tuple[int, int]:
    """The places of the photo, high and wide, in the output of one of `spatial_layers` for a photo of size x size."""
    found = []
    handle = layer.register_forward_hook(lambda module, _, out: found.append(tuple(as_map(net, out).shape[2:])))
    net(next(net.parameters()).new_zeros(1, 3, size, size))
    handle.remove()
    return found[0]


def as_map(net, out):
    """A layer's output -> (n, c, h, w): without ViT's prefix tokens; Swin's channels first."""
    if out.dim() == 3:
        tokens = out[:, getattr(net, "num_prefix_tokens", 0) :]
        side = round(tokens.shape[1] ** 0.5)
        if side * side != tokens.shape[1]:
            return out[:, :, None, None][:, :1]  # no square of places
        return tokens.transpose(1, 2).unflatten(2, (side, side))
    if out.shape[1] == out.shape[2] < out.shape[3]:  # (n, h, w, c); photos are square
        return out.permute(0, 3, 1, 2)
    return out


def default_layer(net: torch.nn.Module, layers: dict[str, torch.nn.Module]) -> str:
    """The name of the last layer before places are averaged: the last one with a map, in a ViT the last block's first
    norm, since all its tokens still reach the answer. Of several networks (model.beside) it is the first one's."""
    if isinstance(net, SideBySide):
        layers = {name: layer for name, layer in layers.items() if name.startswith("first.")}
    if getattr(net, "num_prefix_tokens", 0):
        found = [name for name in layers if name.endswith(".norm1")]
        if found:
            return found[-1]
    return list(layers)[-1]


class ClassScoreTarget:
    """The value that Grad-CAM differentiates: the score of a class of a head or of the answer, or a number."""

    def __init__(self, heads, place, index):
        self.heads, self.place, self.index = heads, place, index

    def __call__(self, output):
        output = output[None] if output.dim() == 1 else output
        if self.heads.task.numeric:
            return self.heads.numbers(self.heads.split(output)[self.heads.place])[0, 0]
        if self.place is None:
            return self.heads.log_probabilities(output)[0, self.index]
        return self.heads.parts(output)[self.place][0, self.index]


def maps(
    net: torch.nn.Module,
    heads: Heads,
    layers: list,
    photos: np.ndarray,
    about: dict,
    place: int | None,
    classes: np.ndarray,
) -> np.ndarray:
    """Heat of photos at layers: (n, layers, size, size) float32 in 0..1.

    photos: (n, size, size, 3) uint8; place: index of the head, None = the answer; classes: (n,) the class to explain.
    """
    photos = torch.from_numpy(photos).to(device_of(net))
    inputs = loader.normalize(photos, about["mean"], about["std"]).requires_grad_()
    targets, found = [ClassScoreTarget(heads, place, int(index)) for index in classes], []
    for layer in layers:
        with GradCAM(net, [layer], reshape_transform=lambda out: as_map(net, out)) as cam:
            found.append(cam(inputs, targets))
    return np.stack(found, 1)


def overlay(image: np.ndarray, heat: np.ndarray) -> np.ndarray:
    """Heat (h, w) in 0..1 laid over a photo (h, w, 3) uint8: (h, w, 3) uint8."""
    return show_cam_on_image(image.astype(np.float32) / 255, heat, use_rgb=True, image_weight=0.55)


def to_explain(task: Task, probabilities: np.ndarray, target: float) -> int:
    """The class whose evidence is shown: the likeliest; of several labels the one that is most wrong.
    probabilities: (k,); target: the true answer, NaN = unknown."""
    if task.multilabel and not np.isnan(target):
        return int(abs(probabilities - task.sets([int(target)])[0]).argmax())
    return int(probabilities.argmax())


class Explainer:
    """The folds of a run, the layers to explain, the class whose evidence is shown, and the processes that share it."""

    def __init__(self, config: Config, folds: tuple[dict, dict, Heads], layers: list[str], head: str, of: str) -> None:
        """folds: of model.load_folds; layers: names, [] = the last one; head: a name, "" = the answer; of: a class,
        "" = the predicted one."""
        self.nets, self.abouts, self.heads = folds
        self.about, self.task = next(iter(self.abouts.values())), self.heads.task
        self.config, self.ranks = config, devices.join_ranks(config)
        self.device, _ = devices.choose_device(config, {})
        for net in self.nets.values():
            net.to(self.device)
        first = next(iter(self.nets.values()))
        known = spatial_layers(first, self.about["image_size"])
        self.layers = layers or [default_layer(first, known)]
        for name in self.layers:
            if name not in known:
                near = [other for other in known if "." not in other or other.count(".") == 1]
                raise InputError(f"--layers {name}: has no map of the photo; layers that have: {', '.join(near[:40])}")
        self.place, self.of = None, None
        if head:
            if head not in [one.name for one in self.task.answered] or self.heads.kind == "joint":
                raise InputError(f"--head {head}: the model has no such head")
            self.place = self.task.heads.index(self.task.head(head))
        if of:
            names = self.task.heads[self.place].classes if head else self.task.classes
            if of not in names:
                raise InputError(f"--of {of}: is no class; the classes are {', '.join(names)}")
            self.of = names.index(of)

    def explain(self, rows: pd.DataFrame) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """(the model's input photos (n, size, size, 3) uint8, heat (n, layers, size, size), classes (n,)).

        Without a class to explain it is the answered one; of several labels a photo that which is most wrong by the
        column `target`, where rows have it, else the likeliest."""
        photos = loader.PhotoDataset(
            rows, self.about["augment"], self.about["image_size"], False, fit=self.about["fit"]
        )
        seen, heat, classes = [], [], []
        for k, fold in enumerate(rows["fold"]):
            _, image, error = photos[k, 0]
            if error:
                raise InputError(f"{rows['file'].iloc[k]}: can't be read ({error})")
            fold = int(fold) if int(fold) in self.nets else next(iter(self.nets))
            net, inputs = self.nets[fold], torch.from_numpy(image[None]).to(self.device)
            inputs = loader.normalize(inputs, self.about["mean"], self.about["std"])
            if self.of is not None or self.task.numeric:
                answer = self.of or 0
            else:
                with torch.no_grad():
                    with devices.autocast(*devices.choose_device(self.config, self.abouts[fold])):
                        outputs = net(inputs)
                    parts = self.heads.parts(outputs)
                    found = self.heads.log_probabilities(outputs) if self.place is None else parts[self.place]
                target = rows["target"].iloc[k] if "target" in rows else np.nan
                answer = to_explain(self.task, found[0].exp().cpu().numpy(), target)
            modules = dict(net.named_modules())
            chosen = [modules[name] for name in self.layers]
            heat.append(maps(net, self.heads, chosen, image[None], self.about, self.place, [answer])[0])
            seen.append(image)
            classes.append(answer)
        return np.stack(seen), np.stack(heat), np.array(classes)

    def coarse_layers(self, most: int) -> dict[str, tuple[int, int]]:
        """{name: places (high, wide)} of the chosen layers with at most so many places a side: too few for shapes."""
        net, size = next(iter(self.nets.values())), self.about["image_size"]
        modules = dict(net.named_modules())
        found = {name: grid(net, modules[name], size) for name in self.layers}
        return {name: places for name, places in found.items() if min(places) <= most}

    def earlier(self) -> list[str]:
        """Two layers with more places than the default one: of a third and of two thirds of the way."""
        layers = spatial_layers(next(iter(self.nets.values())), self.about["image_size"])
        known = [name for name in layers if name.count(".") == 1] or list(layers)
        return [known[len(known) // 3], known[2 * len(known) // 3]]

    def class_name(self, index: int) -> str:
        """The name of a class index of the head, or of the answer."""
        if self.task.numeric:
            return f"more {self.task.answered[0].unit or 'of it'}"
        return (self.task.classes if self.place is None else self.task.heads[self.place].classes)[index]
