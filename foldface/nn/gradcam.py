"""Grad-CAM: which layers, which class, and the map over the photo."""

import numpy as np

# ------------------------------------------------------------------------------------------------------- the maps


def spatial_layers(net, size):
    """{name: module} of the layers whose output is laid out over the photo, in the order in which they are computed.

    Their outputs are (n, c, h, w), (n, h, w, c) as in Swin, or (n, tokens, c) as in ViT, with more than one place.
    """
    import torch

    met = {}

    def note(name):
        def hook(module, _, out):
            if isinstance(out, torch.Tensor) and out.dim() in (3, 4) and places(net, out) > 1:
                met[name] = module

        return hook

    handles = [part.register_forward_hook(note(name)) for name, part in net.named_modules() if name]
    with torch.no_grad():
        net(torch.zeros(1, 3, size, size, device=device_of(net)))
    for handle in handles:
        handle.remove()
    return met


def device_of(net):
    """The torch.device that a model lies on."""
    return next(net.parameters()).device


def places(net, out):
    """How many places of the photo an output tells apart."""
    spread = spread_out(net, out)
    return spread.shape[2] * spread.shape[3]


def spread_out(net, out):
    """A layer's output -> (n, c, h, w): ViT's tokens without those that stand for no place, Swin's channels first."""
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
    """The name of the last layer before places are averaged: in a ViT the norm of the last block, in which all tokens
    still reach the answer; elsewhere the last that is laid out over the photo."""
    if getattr(net, "num_prefix_tokens", 0):
        found = [name for name in layers if name.endswith(".norm1")]
        if found:
            return found[-1]
    return list(layers)[-1]


class ClassScoreTarget:
    """What grad-cam differentiates: how much an output speaks for a class of a head, or of the answer, or a number."""

    def __init__(self, heads, place, index):
        self.heads, self.place, self.index = heads, place, index

    def __call__(self, output):
        output = output[None] if output.dim() == 1 else output
        if self.heads.task.numeric:
            return self.heads.numbers(self.heads.split(output)[self.heads.place])[0, 0]
        if self.place is None:
            return self.heads.log_probabilities(output)[0, self.index]
        return self.heads.parts(output)[self.place][0, self.index]


def maps(net, heads, layers, photos, about, place, told):
    """Heat of photos at layers: (n, layers, size, size) float32 in 0..1.

    photos: (n, size, size, 3) uint8; place: the head's, None = the answer; told: (n,) the class that it is about.
    """
    import torch
    from pytorch_grad_cam import GradCAM

    from foldface.data import loader

    photos = torch.from_numpy(photos).to(device_of(net))
    inputs = loader.normalize(photos, about["mean"], about["std"]).requires_grad_()
    targets, found = [ClassScoreTarget(heads, place, int(index)) for index in told], []
    for layer in layers:
        with GradCAM(net, [layer], reshape_transform=lambda out: spread_out(net, out)) as cam:
            found.append(cam(inputs, targets))
    return np.stack(found, 1)


def overlay(image, heat):
    """A photo (h, w, 3) uint8 with heat (h, w) 0..1 laid over it: (h, w, 3) uint8."""
    from pytorch_grad_cam.utils.image import show_cam_on_image

    return show_cam_on_image(image.astype(np.float32) / 255, heat, use_rgb=True, image_weight=0.55)
