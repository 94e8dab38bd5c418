"""Grad-CAM: the layers that have a map, the class to explain, the map over the photo."""

import numpy as np

# ------------------------------------------------------------------------------------------------------- the maps


def spatial_layers(net, size: int) -> dict:
    """{name: module} of the layers whose output is a map of the photo, in the order of computation.

    Outputs are (n, c, h, w), (n, h, w, c) as in Swin, or (n, tokens, c) as in ViT, with more than one place.
    """
    import torch

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


def default_layer(net, layers):
    """The name of the last layer before places are averaged: the last one with a map, in a ViT the last block's first
    norm, since all its tokens still reach the answer."""
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


def maps(net, heads, layers: list, photos: np.ndarray, about: dict, place: int | None, classes) -> np.ndarray:
    """Heat of photos at layers: (n, layers, size, size) float32 in 0..1.

    photos: (n, size, size, 3) uint8; place: index of the head, None = the answer; classes: (n,) the class to explain.
    """
    import torch
    from pytorch_grad_cam import GradCAM

    from foldface.data import loader

    photos = torch.from_numpy(photos).to(device_of(net))
    inputs = loader.normalize(photos, about["mean"], about["std"]).requires_grad_()
    targets, found = [ClassScoreTarget(heads, place, int(index)) for index in classes], []
    for layer in layers:
        with GradCAM(net, [layer], reshape_transform=lambda out: as_map(net, out)) as cam:
            found.append(cam(inputs, targets))
    return np.stack(found, 1)


def overlay(image: np.ndarray, heat: np.ndarray) -> np.ndarray:
    """Heat (h, w) in 0..1 laid over a photo (h, w, 3) uint8: (h, w, 3) uint8."""
    from pytorch_grad_cam.utils.image import show_cam_on_image

    return show_cam_on_image(image.astype(np.float32) / 255, heat, use_rgb=True, image_weight=0.55)
