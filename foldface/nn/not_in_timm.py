"""Backbones that timm does not have, registered with it: torchvision's AlexNet and facenet-pytorch's FaceNet."""

import types

import timm
import torch
import torchvision
from timm.data import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD

WEIGHTS = {  # {backbone that timm doesn't have: (whose weights, their address)}
    "alexnet": ("torchvision", torchvision.models.AlexNet_Weights.IMAGENET1K_V1.url),
    "facenet": (
        "facenet-pytorch",  # trained on VGGFace2; the file lies beside that package's releases
        "https://github.com/timesler/facenet-pytorch/releases/download/v2.2.9/20180402-114759-vggface2.pt",
    ),
}


class AlexNet(torchvision.models.AlexNet):
    """torchvision's AlexNet (Krizhevsky 2014), the only backbone of the reports that timm does not have."""

    pretrained_cfg = types.MappingProxyType(  # a dict that nobody can change
        {"classifier": "classifier.6", "mean": IMAGENET_DEFAULT_MEAN, "std": IMAGENET_DEFAULT_STD}
    )

    def get_classifier(self) -> torch.nn.Module:
        return self.classifier[-1]


@timm.models.register_model
def alexnet(pretrained=False, num_classes=1000, drop_rate=0.0, **_):
    """AlexNet for timm.create_model. Its weights come as torchvision's file, by name."""
    return AlexNet(num_classes, drop_rate)


@timm.models.register_model
def facenet(pretrained=False, num_classes=512, drop_rate=0.0, **others):
    """FaceNet for timm.create_model. Its weights come as facenet-pytorch's file, by name."""
    from foldface.nn.facenet import FaceNet  # no other backbone needs its package

    if "drop_path_rate" in others:
        raise TypeError("facenet has no residual branches that could be left out: drop_path_rate")
    return FaceNet(num_classes, drop_rate)
