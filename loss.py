"""What training minimises: a loss a photo, of distributions over classes and of years."""

import torch

import labels
from heads import OLDER


def smoothed(name, smoothing):
    """The (18, 18) float32 targets of a loss: row t is the distribution that class t stands for.

    `smoothing` is spread over all classes (Szegedy et al. 2016); for neighbour over the neighbouring age classes of
    the same mask and gender only, the second-place team's idea: 30-59 has two, <30 and >=60 have one.
    """
    eye = torch.eye(len(labels.CLASSES))
    if name == "neighbour":
        near = torch.from_numpy(labels.age_neighbours()).float()
        other = near / near.sum(1, keepdim=True)
    else:
        other = torch.full_like(eye, 1 / len(labels.CLASSES))
    return (1 - smoothing) * eye + smoothing * other


def class_weights(balance, label):
    """Weights of the 18 classes by how often they occur among labels (n,): (18,) float32, 1 on average over photos.

    inverse: 1 / count; effective: 1 / effective number, (1 - b) / (1 - b^count) with b = 0.999 (Cui et al. 2019).
    """
    counts = torch.bincount(torch.as_tensor(label).clone(), minlength=len(labels.CLASSES)).double()
    if balance == "none":
        return torch.ones(len(counts))
    rarity = 1 / counts if balance == "inverse" else (1 - 0.999) / (1 - 0.999**counts)
    rarity = torch.where(counts > 0, rarity, 0.0)
    return (rarity * counts.sum() / (rarity * counts).sum()).float()


class Targets:
    """What each training photo should be answered with, as tensors to index.

    classes (n, 18) float32, each row a distribution; years (n,) float32, -1 = unknown; weight (n,) float32.
    """

    def __init__(self, rows, settings):
        """rows: DataFrame of label (int), age (years), and p0..p17 where a pseudo label is soft, else NaN."""
        label = torch.tensor(rows["label"].to_numpy(), dtype=torch.int64)
        self.classes = smoothed(settings.name, settings.smoothing)[label]
        if labels.PROBABILITIES[0] in rows:
            soft = torch.tensor(rows[labels.PROBABILITIES].to_numpy("float32"))
            known = ~soft.isnan().any(1)
            self.classes[known] = soft[known] / soft[known].sum(1, keepdim=True)
        self.years = torch.tensor(rows["age"].to_numpy("float32"))
        self.weight = self.classes @ class_weights(settings.balance, label)

    def of(self, index, device):
        """Those of the photos index (b,), on a device."""
        return [part[index].to(device, non_blocking=True) for part in (self.classes, self.years, self.weight)]


class Loss(torch.nn.Module):
    """The loss of a model's outputs, photo by photo, so that a batch may be summed up in pieces.

    Heads' losses are added, each with its weight. Years have a loss of their own beside that of the classes which
    follow from them; where the years are unknown (pseudo labels) the classes stand alone.
    """

    def __init__(self, heads, settings, label):
        """heads: heads.Heads; settings: args.Loss; label: (n,) training labels."""
        super().__init__()
        self.heads, self.name, self.weights, self.sigma = heads, settings.name, settings.weights, settings.age_sigma
        self.gamma = settings.gamma if settings.name == "focal" else 0.0
        if settings.name == "f1":
            self.f1 = SoftF1(label, settings.span)

    def forward(self, outputs, classes, years, weight):
        """outputs (n, size); classes (n, 18), years (n,), weight (n,) of Targets -> (n,) float32."""
        parts = self.heads.parts(outputs)
        if self.heads.kind == "joint":
            total = self.compare(parts[0], classes)
        else:
            shaped, total = classes.unflatten(1, labels.SHAPE), 0.0
            for k, part in enumerate(parts):
                others = [axis + 1 for axis in range(len(parts)) if axis != k]
                each = self.compare(part, shaped.sum(others))
                if self.heads.in_years and k == 2:
                    each = each + torch.where(years >= 0, self.of_years(outputs, years.clamp(min=0)), 0.0)
                total = total + self.weights[k] * each
        if self.name == "f1":
            total = total + self.f1(self.heads.log_probabilities(outputs).exp(), classes)
        return total * weight

    def compare(self, log_probabilities, target):
        """Cross entropy (n,) of distributions (n, k); focal (Lin et al. 2017) counts what is sure less."""
        each = target * log_probabilities
        if self.gamma:
            each = each * (1 - log_probabilities.exp()) ** self.gamma
        return -each.sum(1)

    def of_years(self, outputs, years):
        """The loss (n,) of an age in years (n,), by what the head learns."""
        raw = self.heads.split(outputs)[2]
        grid = torch.arange(labels.YEARS, dtype=torch.float32, device=years.device)
        if self.heads.age == "distribution":  # a normal distribution around the true age, over the years that exist
            target = (-((grid - years[:, None]) ** 2) / (2 * self.sigma**2)).softmax(1)
            return -(target * self.heads.log_years(raw)).sum(1)
        if self.heads.age == "ordinal":  # threshold k is a question for those alone who are above k - 1
            k = grid[:-1]
            above = (years[:, None] > k).float()
            asked = years[:, None] > k - 1
            each = torch.nn.functional.binary_cross_entropy_with_logits(raw + OLDER, above, reduction="none")
            return (each * asked).sum(1)
        mean, width = self.heads.laplace(raw)
        return ((years[:, None] - mean).abs() / width + (2 * width).log())[:, 0]


class SoftF1(torch.nn.Module):
    """1 - macro F1 of probabilities over the last `span` photos, as a loss a photo.

    F1 is a ratio of sums: a batch of 32 photos and 18 classes says little of it, and the mean of batches' F1 is no F1.
    So sums of true, told and both are kept over a span, and each photo is charged with what it moves the span's F1:
    the derivative of F1 = 2 both / (true + told) at those sums, times the span. A class that the span does not hold
    is left out. Probabilities, not answers, are summed: argmax has no gradient.
    """

    def __init__(self, label, span):
        super().__init__()
        share = torch.bincount(torch.tensor(label), minlength=len(labels.CLASSES)) / len(label)
        self.span = span
        self.register_buffer("true", share * span)
        self.register_buffer("told", share * span)
        self.register_buffer("both", share * share * span)

    def value(self):
        """Macro F1 of the span, a scalar."""
        held = self.true > 0
        return (2 * self.both[held] / (self.true + self.told)[held]).mean()

    def forward(self, probabilities, classes):
        """probabilities, classes (n, 18) -> (n,): minus what they move the span's macro F1 by, times the span."""
        held, size = self.true > 0, (self.true + self.told).clamp(min=1e-6)
        slope = (2 * classes * size - 2 * self.both) / size**2
        return -(probabilities * slope * held).sum(1) * self.span / held.sum()

    @torch.no_grad()
    def update(self, sums, photos):
        """Move the span on by a step's f1_sums (3, 18) over so many photos, all processes' together."""
        keep = max(0.0, 1 - photos / self.span)
        for total, new in zip((self.true, self.told, self.both), sums, strict=True):
            total.mul_(keep).add_(new)


def f1_sums(probabilities, classes):
    """(n, 18) each -> how much of each class is true, told, and both: (3, 18)."""
    return torch.stack([classes.sum(0), probabilities.sum(0), (classes * probabilities).sum(0)])
