"""Three small CNNs for age, as backbones for timm: agecnn, which is two of them by its initialisation, and agecnn_deep.

    python train.py --model.backbone agecnn_deep --model.pretrained false --data.image_size 128

They are those of a student report on age regression on UTKFace. What it tells: ConvBlocks of a 3x3 convolution, ReLU
and a 2x2 max pool; five of them, 16-32-64-128-256 and three linear layers (the first network, and the second, which is
the first with other initial weights) or 16-64-128-256-512, a 4x4 convolution to 1024, and linear layers 100 and 1 (the
third). What it found: the first converges by luck, the initial weights decide, the third converges.

Ours: the widths 512 and 100 of the first's hidden linear layers, ReLU between linear layers, dropout before the last
one, and no batch norm in either: with it the third's sigmoid is saturated after three steps of Adam 1e-3 and never
comes back. Kaiming's weights do the same to either network: one step moves the single output by tens.
"""

import types

import timm
from torch import nn


class ConvBlock(nn.Sequential):
    """(n, inputs, h, w) -> (n, outputs, h // 2, w // 2)."""

    def __init__(self, inputs, outputs):
        super().__init__(nn.Conv2d(inputs, outputs, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2))


class AgeCNN(nn.Module):
    """ConvBlocks of these widths, then `hidden`: (n, widths[-1], 4, 4) -> (n, 100), then the classifier.

    Made for 128 x 128 pixels, of which five ConvBlocks leave 4 x 4; of other sizes, from 32 on, the pool makes as many.
    """

    pretrained_cfg = types.MappingProxyType(  # a dict that nobody can change
        {"classifier": "classifier", "mean": (0.5, 0.5, 0.5), "std": (0.5, 0.5, 0.5)}
    )

    def __init__(self, widths, hidden, num_classes, drop_rate):
        super().__init__()
        self.num_classes = num_classes
        self.blocks = nn.Sequential(*map(ConvBlock, (3, *widths), widths))
        self.pool = nn.AdaptiveAvgPool2d(4)
        self.hidden = hidden
        self.dropout = nn.Dropout(drop_rate)
        self.classifier = nn.Linear(100, num_classes)

    def forward(self, photos):
        """Photos (n, 3, h, w) float32 -> raw outputs (n, num_classes)."""
        return self.classifier(self.dropout(self.hidden(self.pool(self.blocks(photos)))))

    def get_classifier(self):
        return self.classifier

    def group_matcher(self, coarse=False):
        """Layers as timm numbers them: ConvBlocks first, then each hidden layer, and what is left, the classifier."""
        return {"blocks": r"blocks\.(\d+)", "hidden": r"hidden\.(\d+)"}


@timm.models.register_model
def agecnn(pretrained=False, num_classes=1, drop_rate=0.0, **others):
    """The report's first network; with `initialise`, its second."""
    refuse(pretrained, others)
    hidden = nn.Sequential(nn.Flatten(), nn.Linear(256 * 4 * 4, 512), nn.ReLU(), nn.Linear(512, 100), nn.ReLU())
    return AgeCNN((16, 32, 64, 128, 256), hidden, num_classes, drop_rate)


@timm.models.register_model
def agecnn_deep(pretrained=False, num_classes=1, drop_rate=0.0, **others):
    """The report's third network."""
    refuse(pretrained, others)
    hidden = nn.Sequential(nn.Conv2d(512, 1024, 4), nn.ReLU(), nn.Flatten(), nn.Linear(1024, 100), nn.ReLU())
    return AgeCNN((16, 64, 128, 256, 512), hidden, num_classes, drop_rate)


def refuse(pretrained, others):
    """Raise for what timm.create_model may be asked of other networks and what would be passed over here in silence."""
    if pretrained:
        raise ValueError("nobody has published weights of agecnn and agecnn_deep")
    if "drop_path_rate" in others:
        raise TypeError("agecnn and agecnn_deep have no residual branches: drop_path_rate")


def initialise(net, how):
    """Draw anew the weights of all convolutions and linear layers of a module, in place, from torch's random state.

    how: default (leave torch's own), kaiming (He et al. 2015: normal, 2 / fan_out its variance), or xavier (Glorot &
    Bengio 2010: uniform, within sqrt(6 / (fan_in + fan_out))); of both the biases are zero. ValueError if none of them.
    """
    draw = {"default": None, "kaiming": kaiming, "xavier": nn.init.xavier_uniform_}
    if how not in draw:
        raise ValueError(f"{how}: there is no such initialisation; there are {', '.join(draw)}")
    for part in net.modules() if draw[how] else ():
        if isinstance(part, (nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.Linear)):
            draw[how](part.weight)
            if part.bias is not None:
                nn.init.zeros_(part.bias)


def kaiming(weight):
    nn.init.kaiming_normal_(weight, mode="fan_out", nonlinearity="relu")
