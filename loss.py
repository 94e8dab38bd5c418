"""What training minimises: a loss a photo, of distributions over classes and of numbers."""

import functools

import timm
import torch

from foldface import devices
from foldface.nn.heads import ORDINAL_LOGIT_BIAS
from foldface.registry import lookup, register
from foldface.settings import LossConfig


def class_weights(size, balance, label):
    """Weights of `size` classes by how often they occur among labels (n,): (size,) float32, 1 on average over photos.

    inverse: 1 / count; effective: 1 / effective number, (1 - b) / (1 - b^count) with b = 0.999 (Cui et al. 2019).
    """
    counts = torch.bincount(torch.as_tensor(label).clone(), minlength=size).double()
    if balance == "none":
        return torch.ones(len(counts))
    rarity = 1 / counts if balance == "inverse" else (1 - 0.999) / (1 - 0.999**counts)
    rarity = torch.where(counts > 0, rarity, 0.0)
    return (rarity * counts.sum() / (rarity * counts).sum()).float()


def one_hot(target, size):
    """(n,) int64 class indices -> (n, size) float32, zeros for -1 (unknown)."""
    return (target[:, None] == torch.arange(size, device=target.device)).float()


def make(heads, rows, config):
    """(Loss, Targets) of training rows: DataFrame of label, a column a head and, of soft pseudo labels, p0, p1, ..."""
    return Loss(heads, config, rows["label"].to_numpy()), Targets(heads.task, rows, config)


def make_mixup(config):
    """timm's Mixup of a TrainConfig, which draws of each batch mixup or CutMix; None where neither is asked for."""
    if not config.mixup and not config.cutmix:
        return None
    return timm.data.Mixup(config.mixup, config.cutmix, label_smoothing=0.0)


class Targets:
    """What each training photo should be answered with, as tensors to index.

    classes (n, k) float32, each row a distribution over the answer's classes; number (n,) float32, NaN = unknown;
    weight (n,) float32; beside (n, heads) int64, the class of each head that is not in the answer, -1 = unknown.
    """

    def __init__(self, task, rows, config):
        """rows: DataFrame of label, a column a head, and p0, p1, ... where a pseudo label is soft, else NaN."""
        self.weight, self.number = torch.ones(len(rows)), torch.full((len(rows),), float("nan"))
        self.classes = torch.empty(len(rows), 0)
        if not task.numeric:
            label = torch.tensor(rows["label"].to_numpy(), dtype=torch.int64)
            self.classes = torch.from_numpy(task.smoothed(config.name, config.smoothing))[label]
            if task.probabilities[0] in rows:
                soft = torch.tensor(rows[task.probabilities].to_numpy("float32"))
                known = ~soft.isnan().any(1)
                self.classes[known] = soft[known] / soft[known].sum(1, keepdim=True)
            self.weight = self.classes @ class_weights(task.size, config.balance, label)
        if task.number:
            self.number = torch.tensor(rows[task.number.key].to_numpy("float32"))
        beside = [head for head in task.heads if head.kind == "named" and head not in task.answered]
        columns = [torch.tensor(rows[head.key].to_numpy("int64")) for head in beside]
        self.beside = torch.stack(columns, 1) if columns else torch.empty(len(rows), 0, dtype=torch.int64)

    def __len__(self):
        return len(self.weight)

    def of(self, index, device):
        """Those of the photos index (b,), on a device."""
        parts = (self.classes, self.number, self.weight, self.beside)
        return [part[index].to(device, non_blocking=True) for part in parts]


# A loss by its name (loss.name): (log probabilities (n, k), target distributions (n, k), config.loss) -> (n,) float32.
# Task.smoothed gives neighbour its targets; Loss adds SoftF1 to f1.


@register("loss", "f1")
@register("loss", "neighbour")
@register("loss", "cross_entropy")
def cross_entropy(log_probabilities: torch.Tensor, target: torch.Tensor, config: LossConfig) -> torch.Tensor:
    """Cross entropy of distributions."""
    return -(target * log_probabilities).sum(1)


@register("loss", "focal")
def focal(log_probabilities: torch.Tensor, target: torch.Tensor, config: LossConfig) -> torch.Tensor:
    """Focal loss (Lin et al. 2017): what is answered well already counts less, by loss.gamma."""
    return -(target * log_probabilities * (1 - log_probabilities.exp()) ** config.gamma).sum(1)


class Loss(torch.nn.Module):
    """The loss of a model's outputs, photo by photo, so that a batch may be summed up in pieces.

    Heads' losses are added, each with its weight. Numbers have a loss of their own beside that of the classes which
    follow from them; where the number is unknown (pseudo labels) the classes stand alone.
    """

    def __init__(self, heads, config, label):
        """heads: heads.Heads; settings: args.Loss; label: (n,) training labels."""
        super().__init__()
        self.heads, self.task, self.name = heads, heads.task, config.name
        self.f1_sums = f1_sums
        self.sigma = (heads.number.sigma or 0.03 * heads.range) if heads.number else None
        self.compare = functools.partial(lookup("loss", config.name), config=config)
        if config.name == "f1":
            self.f1 = SoftF1(self.task.size, label, SPAN)

    def forward(self, outputs, classes, number, weight, beside):
        """outputs (n, size); classes (n, k), number (n,), weight (n,), beside (n, heads) of Targets -> (n,) float32."""
        parts = self.heads.parts(outputs)
        if self.heads.kind == "joint":
            total = self.compare(parts[0], classes)
        else:
            total = self.of_heads(parts, outputs, classes, number, beside)
        if self.name == "f1":
            total = total + self.f1(self.heads.log_probabilities(outputs).exp(), classes)
        return total * weight

    def of_heads(self, parts, outputs, classes, number, beside):
        """The weighted sum (n,) of the heads' losses. parts: log probabilities of each, from outputs."""
        shaped, total = classes.unflatten(1, self.task.shape) if self.task.shape else None, 0.0
        axis = column = 0
        for place, (head, part) in enumerate(zip(self.task.heads, parts, strict=True)):
            each = 0.0
            if head in self.task.answered and part is not None:
                others = [k + 1 for k in range(len(self.task.shape)) if k != axis]
                each = self.compare(part, shaped.sum(others) if others else shaped)
                axis += 1
            elif head.kind == "named":
                target = beside[:, column]
                each, column = self.compare(part, one_hot(target, part.shape[1])), column + 1
            elif part is not None:
                each = self.of_cut(part, head, number)
            if place == self.heads.place:
                known = ~number.isnan()
                each = each + torch.where(known, self.of_number(outputs, number.nan_to_num(head.low)), 0.0)
            total = total + head.weight * each
        return total

    def of_cut(self, part, head, number):
        """The loss (n,) of a cut head beside the answer: of its classes, nothing where the number is unknown."""
        bounds = devices.constant(tuple(head.trained), number.device)
        target = torch.bucketize(number.nan_to_num(head.low), bounds, right=True)
        return self.compare(part, one_hot(target, part.shape[1])) * ~number.isnan()

    def of_number(self, outputs, number):
        """The loss (n,) of numbers (n,), by what the head learns; in units of its range's hundredth where it counts
        how far off a number is."""
        raw, grid = self.heads.split(outputs)[self.heads.place], self.heads.points(number.device)
        learned = self.heads.learned
        if learned == "sigmoid":
            return (number - self.heads.scaled(raw)).abs() * 100 / self.heads.range
        if learned == "distribution":  # a normal distribution around the true number, over the range
            target = (-((grid - number[:, None]) ** 2) / (2 * self.sigma**2)).softmax(1)
            return -(target * self.heads.log_grid(raw)).sum(1)
        if learned == "ordinal":  # threshold k is a question for those alone who are above k - 1
            above = (number[:, None] > grid[:-1]).float()
            asked = number[:, None] > grid[:-1] - self.heads.range / (len(grid) - 1)
            each = torch.nn.functional.binary_cross_entropy_with_logits(
                raw + ORDINAL_LOGIT_BIAS, above, reduction="none"
            )
            return (each * asked).sum(1)
        mean, width = self.heads.laplace(raw)
        return ((number[:, None] - mean).abs() / width + (2 * width).log())[:, 0]


SPAN = 2048  # photos over which loss f1 computes macro F1: a batch alone holds too few of the rare classes


class SoftF1(torch.nn.Module):
    """1 - macro F1 of probabilities over the last `span` photos, as a loss a photo.

    F1 is a ratio of sums: a batch of 32 photos and 18 classes says little of it, and the mean of batches' F1 is no F1.
    So sums of true, predicted and both are kept over a span, and each photo is charged with what it moves the span's
    F1: the derivative of F1 = 2 both / (true + predicted) at those sums, times the span. A class that the span does not
    hold is left out. Probabilities, not answers, are summed: argmax has no gradient.
    """

    def __init__(self, size, label, span):
        super().__init__()
        share = torch.bincount(torch.tensor(label), minlength=size) / len(label)
        self.span = span
        self.register_buffer("true", share * span)
        self.register_buffer("predicted", share * span)
        self.register_buffer("both", share * share * span)

    def value(self):
        """Macro F1 of the span, a scalar."""
        held = self.true > 0
        return (2 * self.both[held] / (self.true + self.predicted)[held]).mean()

    def forward(self, probabilities, classes):
        """probabilities, classes (n, k) -> (n,): minus what they move the span's macro F1 by, times the span."""
        held, size = self.true > 0, (self.true + self.predicted).clamp(min=1e-6)
        slope = (2 * classes * size - 2 * self.both) / size**2
        return -(probabilities * slope * held).sum(1) * self.span / held.sum()

    @torch.no_grad()
    def update(self, sums, photos):
        """Move the span on by a step's f1_sums (3, k) over so many photos, all processes' together."""
        keep = max(0.0, 1 - photos / self.span)
        for total, new in zip((self.true, self.predicted, self.both), sums, strict=True):
            total.mul_(keep).add_(new)


def f1_sums(probabilities, classes):
    """(n, k) each -> how much of each class is true, predicted, and both: (3, k)."""
    return torch.stack([classes.sum(0), probabilities.sum(0), (classes * probabilities).sum(0)])
