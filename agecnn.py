"""Draft."""

import types

import timm
from torch import nn


class ConvBlock(nn.Sequential):
    def __init__(self, inputs, outputs, batch_norm=False):
        norm = [nn.BatchNorm2d(outputs)] if batch_norm else []
        super().__init__(nn.Conv2d(inputs, outputs, 3, padding=1), *norm, nn.ReLU(), nn.MaxPool2d(2))


class AgeCNN(nn.Module):
    pretrained_cfg = types.MappingProxyType({"classifier": "classifier", "mean": (0.5,) * 3, "std": (0.5,) * 3})

    def __init__(self, widths, hidden, num_classes, drop_rate=0.0, batch_norm=False):
        super().__init__()
        self.num_classes = num_classes
        pairs = zip((3, *widths[:-1]), widths, strict=True)
        self.blocks = nn.Sequential(*(ConvBlock(*pair, batch_norm) for pair in pairs))
        self.pool = nn.AdaptiveAvgPool2d(4)
        self.hidden = hidden
        self.dropout = nn.Dropout(drop_rate)
        self.classifier = nn.Linear(100, num_classes)

    def forward(self, photos):
        return self.classifier(self.dropout(self.hidden(self.pool(self.blocks(photos)))))

    def get_classifier(self):
        return self.classifier


@timm.models.register_model
def agecnn(pretrained=False, num_classes=1, drop_rate=0.0, batch_norm=False, **_):
    hidden = nn.Sequential(nn.Flatten(), nn.Linear(256 * 4 * 4, 512), nn.ReLU(), nn.Linear(512, 100), nn.ReLU())
    return AgeCNN((16, 32, 64, 128, 256), hidden, num_classes, drop_rate, batch_norm)


@timm.models.register_model
def agecnn_deep(pretrained=False, num_classes=1, drop_rate=0.0, batch_norm=False, **_):
    hidden = nn.Sequential(nn.Conv2d(512, 1024, 4), nn.ReLU(), nn.Flatten(), nn.Linear(1024, 100), nn.ReLU())
    return AgeCNN((16, 64, 128, 256, 512), hidden, num_classes, drop_rate, batch_norm)


def initialise(net, how):
    if how == "default":
        return
    for part in net.modules():
        if isinstance(part, (nn.modules.conv._ConvNd, nn.Linear)):
            if how == "kaiming":
                nn.init.kaiming_normal_(part.weight, mode="fan_out", nonlinearity="relu")
            else:
                nn.init.xavier_uniform_(part.weight)
            if part.bias is not None:
                nn.init.zeros_(part.bias)
