"""The CNNs for age of a report on UTKFace, as backbones for timm: agecnn (its first network, and its second, which
is the first with other initial weights) and agecnn_deep (its third).

    python train.py --config recipes/tasks/utkface_agecnn.json --data.train DIR

A ConvBlock is a 3 x 3 convolution, batch norm, LeakyReLU(0.2) and 2 x 2 max pooling. agecnn: ConvBlocks
16-32-64-128-256, flatten, linear layers 1024-256-1 with ReLU between them. agecnn_deep: ConvBlocks 16-64-128-256-512,
a 4 x 4 convolution to 1024 with batch norm and LeakyReLU, linear layers 100-1 with LeakyReLU between them. Both end in
a sigmoid (learn sigmoid) and see 128 x 128 pixels.

Ours: the pool before the flattening, which leaves 4 x 4 places as they are and makes 4 x 4 of others; dropout before
the last layer, off by default.
"""

import types

import timm
import torch
from torch import nn

SLOPE = 0.2  # of LeakyReLU below zero


class ConvBlock(nn.Sequential):
    """(n, inputs, h, w) -> (n, outputs, h // 2, w // 2)."""

    def __init__(self, inputs: int, outputs: int):
        super().__init__(
            nn.Conv2d(inputs, outputs, 3, padding=1), nn.BatchNorm2d(outputs), nn.LeakyReLU(SLOPE), nn.MaxPool2d(2)
        )


class AgeCNN(nn.Module):
    """ConvBlocks of these widths, then `hidden`: (n, widths[-1], 4, 4) -> (n, features), then the classifier.

    Made for 128 x 128 pixels, of which five ConvBlocks leave 4 x 4; of other sizes, from 32 on, the pool makes as many.
    """

    pretrained_cfg = types.MappingProxyType(  # a dict that nobody can change
        {"classifier": "classifier", "mean": (0.5, 0.5, 0.5), "std": (0.5, 0.5, 0.5)}
    )

    def __init__(self, widths: tuple[int, ...], hidden: nn.Module, features: int, num_classes: int, drop_rate: float):
        super().__init__()
        self.num_classes = num_classes
        self.blocks = nn.Sequential(*map(ConvBlock, (3, *widths), widths))
        self.pool = nn.AdaptiveAvgPool2d(4)
        self.hidden = hidden
        self.dropout = nn.Dropout(drop_rate)
        self.classifier = nn.Linear(features, num_classes)

    def forward(self, photos: torch.Tensor) -> torch.Tensor:
        """Photos (n, 3, h, w) float32 -> raw outputs (n, num_classes)."""
        return self.classifier(self.dropout(self.hidden(self.pool(self.blocks(photos)))))

    def get_classifier(self) -> nn.Module:
        return self.classifier

    def group_matcher(self, coarse: bool = False) -> dict[str, str]:
        """Layers as timm numbers them: ConvBlocks first, then each hidden layer, and what is left, the classifier."""
        return {"blocks": r"blocks\.(\d+)", "hidden": r"hidden\.(\d+)"}


@timm.models.register_model
def agecnn(pretrained=False, num_classes=1, drop_rate=0.0, **others):
    """The report's first network; with `initialise`, its second."""
    refuse(pretrained, others)
    hidden = nn.Sequential(nn.Flatten(), nn.Linear(256 * 4 * 4, 1024), nn.ReLU(), nn.Linear(1024, 256), nn.ReLU())
    return AgeCNN((16, 32, 64, 128, 256), hidden, 256, num_classes, drop_rate)


@timm.models.register_model
def agecnn_deep(pretrained=False, num_classes=1, drop_rate=0.0, **others):
    """The report's third network."""
    refuse(pretrained, others)
    narrow = nn.Sequential(nn.Conv2d(512, 1024, 4), nn.BatchNorm2d(1024), nn.LeakyReLU(SLOPE))
    hidden = nn.Sequential(narrow, nn.Flatten(), nn.Linear(1024, 100), nn.LeakyReLU(SLOPE))
    return AgeCNN((16, 64, 128, 256, 512), hidden, 100, num_classes, drop_rate)


def refuse(pretrained, others):
    """Raise for what timm.create_model may be asked of other networks and what would be passed over here in silence."""
    if pretrained:
        raise ValueError("nobody has published weights of agecnn and agecnn_deep")
    if "drop_path_rate" in others:
        raise TypeError("agecnn and agecnn_deep have no residual branches: drop_path_rate")
