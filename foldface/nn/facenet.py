"""FaceNet (Schroff, Kalenichenko & Philbin 2015) as facenet-pytorch has it, an Inception-ResNet v1 that tells people
apart, as a backbone: the 512 numbers of a face, before they are scaled to length 1, go into our classifier."""

import math
import types
from collections.abc import Callable

from facenet_pytorch import InceptionResnetV1
from torch import nn


class FaceNet(InceptionResnetV1):
    """(n, 3, side, side) float32 -> (n, num_classes). It was trained on 160 pixels; 75 are the least that it takes."""

    pretrained_cfg = types.MappingProxyType(  # a byte as (byte - 127.5) / 128; a dict that nobody can change
        {"classifier": "logits", "mean": (0.5, 0.5, 0.5), "std": (128 / 255,) * 3}
    )

    def __init__(self, num_classes: int, drop_rate: float):
        super().__init__(classify=True, num_classes=num_classes, dropout_prob=drop_rate)

    def get_classifier(self) -> nn.Module:
        return self.logits

    def group_matcher(self, coarse: bool = False) -> Callable[[str], float]:
        """timm's grouping: a function of a module's or parameter's name -> the number of its layer."""
        layers = list(dict.fromkeys(layer_of(name) for name, _ in self.named_parameters()))
        number = {layer: k for k, layer in enumerate(layers)} | {"logits": math.inf}
        return lambda name: number.get(layer_of(name), math.inf)


def layer_of(name):
    """The layer of a parameter, such as conv2d_1a or one block of repeat_1, repeat_1.0."""
    first, *rest = name.split(".")
    return ".".join([first, *rest[:1]]) if first.startswith("repeat_") else first
