"""How a generator is measured: grids of its pictures, distances to the photos, signs of a collapse."""

from pathlib import Path

import numpy as np
import torch
from PIL import Image

from demo import gan_networks
from foldface.files import atomic_write
from foldface.nn.features import Distance, Features, mean_pairwise_distance
from foldface.report import charts

N_MEASURED = 2000  # pictures that distances are measured with
GRID_ROWS = 8
DISCRIMINATOR_WON = 0.1  # loss of the discriminator below which it has won
MIN_VARIETY = 0.5  # share of the photos' variety below which the pictures of a label are alike
MAX_DISTANCE_RATIO = 1.5  # to the best distance


def cycle_labels(count: int, classes: int) -> torch.Tensor:
    """`count` class indices with as many of each class as possible: (count,) int64."""
    return torch.arange(count) % classes


def draw_grid(net, classes: list[str], path: Path) -> None:
    """Write a PNG of GRID_ROWS pictures a label, a column a label, made from the same noise at each call."""
    kind = cycle_labels(GRID_ROWS * len(classes), len(classes))
    made = gan_networks.pictures(net, kind, seed=0)
    made = made.reshape(GRID_ROWS, len(classes), *made.shape[1:])

    def draw(ax):
        side = made.shape[2]
        ax.imshow(made.transpose(0, 2, 1, 3, 4).reshape(GRID_ROWS * side, len(classes) * side, 3))
        ax.set_xticks([side * (k + 0.5) for k in range(len(classes))], classes, fontsize=8, rotation=30, ha="right")
        ax.set_yticks([])
        ax.spines[["left", "bottom"]].set_visible(False)

    image = charts.pixels(draw, 0.4 + 0.9 * len(classes), 0.9 * GRID_ROWS + 0.6)
    with atomic_write(path, sync=False) as partial:
        Image.fromarray(image).save(partial, format="png")


class GanMetrics:
    """Distances of pictures to photos in the feature space of lite0 at 96 pixels."""

    def __init__(self, photos: np.ndarray, target: np.ndarray, classes: int):
        """photos: (n, s, s, 3) uint8; target: (n,) class indices below `classes`."""
        self.extract, self.classes = Features(), classes
        rng = np.random.default_rng(0)
        self.kind = cycle_labels(N_MEASURED, classes)
        counts = [int((self.kind == k).sum()) for k in range(classes)]  # as many photos of a label as pictures
        chosen = [rng.permutation(np.flatnonzero(target == k))[:count] for k, count in enumerate(counts)]
        real = self.extract.many(photos[np.concatenate(chosen)])
        self.distance = Distance(real)
        self.real_variety = self.variety(real, np.repeat(range(classes), list(map(len, chosen))))

    def variety(self, features: np.ndarray, kind: np.ndarray) -> float:
        """The mean distance between two pictures of one label. features: (n, d); kind: (n,) class indices."""
        return float(np.mean([mean_pairwise_distance(features[kind == k][:100]) for k in range(self.classes)]))

    def measure(self, net, seed: int = 1) -> dict[str, float]:
        """{frechet, kernel, variety} of a generator's pictures; variety 1 = as different from each other as photos."""
        found = self.extract.many(gan_networks.pictures(net, self.kind, seed))
        return {
            "frechet": self.distance.frechet(found),
            "kernel": self.distance.kernel(found),
            "variety": self.variety(found, self.kind.numpy()) / self.real_variety,
        }


def find_collapse(log: list[dict]) -> str:
    """The signs of a collapse in one line, "" if there are none. log: rows of log.csv, the newest last.

    The signs: the discriminator's loss is near 0 while the generator's rises; the pictures of a label are alike; the
    distance is far above the best one.
    """
    now, signs = log[-1], []
    low = min(row["g_loss"] for row in log)
    if now["d_loss"] < DISCRIMINATOR_WON and now["g_loss"] > low + 1:
        signs.append(f"the discriminator has won (loss {now['d_loss']:.3f}, the generator's {now['g_loss']:.2f})")
    measured = [row for row in log if np.isfinite(row["frechet"])]
    if measured and measured[-1] is now:
        if now["variety"] < MIN_VARIETY:
            signs.append(f"pictures of a label are alike ({now['variety']:.2f} of the photos' variety)")
        best = min(measured, key=lambda row: row["frechet"])
        if now["frechet"] > MAX_DISTANCE_RATIO * best["frechet"]:
            signs.append(f"{now['frechet'] / best['frechet']:.1f} times as far as at epoch {best['epoch']}")
    return "; ".join(signs)
