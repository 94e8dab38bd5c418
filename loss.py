"""What training minimises: targets, and losses of classes and of numbers. Each loss gives a value per photo.

To add a loss of classes: @register("loss", NAME), below, or in a file of your own (docs/extending.md).
"""

import functools

import numpy as np
import pandas as pd
import timm
import torch
from timm.loss import AsymmetricLossMultiLabel

from foldface import devices
from foldface.head import Head
from foldface.nn.heads import ORDINAL_LOGIT_BIAS, Heads
from foldface.registry import lookup, register
from foldface.settings import LossConfig, TrainConfig
from foldface.task import Task


def class_weights(size: int, balance: str, label: torch.Tensor | np.ndarray) -> torch.Tensor:
    """Weights of `size` classes by how often they occur among labels (n,): (size,) float32, 1 on average over photos.

    balance: none = all 1; inverse = 1 / count; effective = 1 / effective number, (1 - b) / (1 - b^count) with b = 0.999
    (Cui et al. 2019).
    """
    counts = torch.bincount(torch.as_tensor(label).clone(), minlength=size).double()
    if balance == "none":
        return torch.ones(len(counts))
    rarity = 1 / counts if balance == "inverse" else (1 - 0.999) / (1 - 0.999**counts)
    rarity = torch.where(counts > 0, rarity, 0.0)
    return (rarity * counts.sum() / (rarity * counts).sum()).float()


def one_hot(target: torch.Tensor, size: int) -> torch.Tensor:
    """(n,) int64 class indices -> (n, size) float32, zeros for -1 (unknown)."""
    return (target[:, None] == torch.arange(size, device=target.device)).float()


def make(heads: Heads, rows: pd.DataFrame, config: LossConfig) -> tuple["Loss", "Targets"]:
    """The loss and the targets of training rows. rows: see Targets."""
    return Loss(heads, config, rows["label"].to_numpy()), Targets(heads.task, rows, config)


def make_mixup(config: TrainConfig) -> timm.data.Mixup | None:
    """timm's Mixup, which chooses mixup or CutMix at random for each batch; None if both settings are 0."""
    if not config.mixup and not config.cutmix:
        return None
    return timm.data.Mixup(config.mixup, config.cutmix, prob=config.mixup_prob, label_smoothing=0.0)


class Targets:
    """The targets of all n training photos, as tensors to index.

    classes (n, k) float32: a distribution over the answer's k classes (k = 0 if the answer is a number);
    number (n,) float32: in the unit of its head, NaN = unknown; weight (n,) float32: of the photo's loss;
    beside (n, heads) int64: the class of each named head that is not part of the answer, -1 = unknown.
    """

    def __init__(self, task: Task, rows: pd.DataFrame, config: LossConfig) -> None:
        """rows: a column `label`, a column per head, and p0, p1, ... of soft pseudo labels (NaN in the other rows)."""
        self.classes = torch.empty(len(rows), 0)
        self.number = torch.full((len(rows),), float("nan"))
        self.weight = torch.ones(len(rows))
        if not task.numeric:
            label = torch.tensor(rows["label"].to_numpy(), dtype=torch.int64)
            if task.multilabel:
                yes = torch.from_numpy(task.sets(rows["label"]).astype("float32"))
                self.classes = yes * (1 - config.smoothing) + config.smoothing / 2
            else:
                self.classes = torch.from_numpy(task.smoothed(config.name, config.smoothing))[label]
            if task.probabilities[0] in rows:
                soft = torch.tensor(rows[task.probabilities].to_numpy("float32"))
                known = ~soft.isnan().any(1)
                self.classes[known] = soft[known] / (1 if task.multilabel else soft[known].sum(1, keepdim=True))
            if not task.multilabel:  # whose labels are weighed one by one
                self.weight = self.classes @ class_weights(task.size, config.balance, label)
        if task.number:
            self.number = torch.tensor(rows[task.number.key].to_numpy("float32"))
        beside = [head for head in task.heads if head.kind == "named" and head not in task.answered]
        columns = [torch.tensor(rows[head.key].to_numpy("int64")) for head in beside]
        self.beside = torch.stack(columns, 1) if columns else torch.empty(len(rows), 0, dtype=torch.int64)

    def __len__(self) -> int:
        return len(self.weight)

    def of(self, index: torch.Tensor, device: torch.device) -> list[torch.Tensor]:
        """[classes, number, weight, beside] of the photos `index` (b,) int64, on a device."""
        parts = (self.classes, self.number, self.weight, self.beside)
        return [part[index].to(device, non_blocking=True) for part in parts]


# The losses of classes, by loss.name: (log probabilities (n, k), target distributions (n, k), config.loss) -> (n,)
# float32. Three names are cross entropy: neighbour differs in its targets (Task.smoothed); to f1, Loss adds SoftF1.
# A new one needs its name in registry.BUILT_IN too; one in a file of your own does not.


@register("loss", "f1")
@register("loss", "neighbour")
@register("loss", "cross_entropy")
def cross_entropy(log_probabilities: torch.Tensor, target: torch.Tensor, config: LossConfig) -> torch.Tensor:
    """Cross entropy of distributions."""
    return -(target * log_probabilities).sum(1)


@register("loss", "focal")
def focal(log_probabilities: torch.Tensor, target: torch.Tensor, config: LossConfig) -> torch.Tensor:
    """Focal loss (Lin et al. 2017): the surer the model is of the right class, the less a photo counts (loss.gamma)."""
    return -(target * log_probabilities * (1 - log_probabilities.exp()) ** config.gamma).sum(1)


def label_weights(task: Task, balance: str, label: np.ndarray) -> torch.Tensor:
    """How much a yes of each label counts beside a no, (size,) float32: rare ones more, at most a hundredfold.

    inverse: noes / yeses; effective: the same of effective numbers, see `class_weights`. label: (n,) int, sets.
    """
    yes = torch.from_numpy(task.sets(label).sum(0)).double()
    no = len(label) - yes
    if balance == "none":
        return torch.ones(task.size)
    if balance == "effective":
        yes, no = 1 - 0.999**yes, 1 - 0.999**no
    return (no / yes.clamp(min=1e-3)).clamp(0.01, 100).float()


@register("loss", "asymmetric")
def asymmetric(raw: torch.Tensor, target: torch.Tensor, config: LossConfig) -> torch.Tensor:
    """The asymmetric loss of several labels (Ridnik et al. 2021), timm's: of logits and yes or no, (n, k) each."""
    return torch.func.vmap(AsymmetricLossMultiLabel())(raw[:, None], target[:, None])


class Loss(torch.nn.Module):
    """The loss of a model's outputs, a value per photo, so that the losses of micro-batches add up to the batch's.

    It is the weighted sum of the heads' losses. A head of numbers that also makes classes has two: of the classes, and
    of the number; only the first where the number is unknown (pseudo labels).
    """

    def __init__(self, heads: Heads, config: LossConfig, label: np.ndarray) -> None:
        """label: (n,) labels of the training photos, of which loss f1 takes the class frequencies."""
        super().__init__()
        self.heads = heads
        self.task = heads.task
        self.name = config.name
        self.f1_sums = f1_sums  # for Learner, which can't import this script
        self.sigma = (heads.number.sigma or 0.03 * heads.range) if heads.number else None  # in the number's unit
        self.compare = functools.partial(lookup("loss", config.name), config=config)
        if self.task.multilabel:
            self.register_buffer("yes_weight", label_weights(self.task, config.balance, label))
        if config.name == "f1":
            self.f1 = SoftF1(self.task.size, label, SPAN)

    def forward(
        self,
        outputs: torch.Tensor,
        classes: torch.Tensor,
        number: torch.Tensor,
        weight: torch.Tensor,
        beside: torch.Tensor,
    ) -> torch.Tensor:
        """outputs (n, Heads.size) of the network; the others as Targets.of gives them -> loss (n,) float32."""
        parts = self.heads.parts(outputs)
        if self.heads.kind == "joint":
            total = self.compare(parts[0], classes)
        else:
            total = self.of_heads(parts, outputs, classes, number, beside)
        if self.name == "f1":
            total = total + self.f1(self.heads.log_probabilities(outputs).exp(), classes)
        return total * weight

    def of_heads(self, parts, outputs, classes, number, beside):
        """The weighted sum (n,) of the heads' losses. parts: Heads.parts, the log probabilities of each head."""
        shaped = classes.unflatten(1, self.task.shape) if self.task.shape else None  # (n, classes of each head)
        total = 0.0
        axis = 0  # of the head in `shaped`
        column = 0  # of the head in `beside`
        for place, (head, part) in enumerate(zip(self.task.heads, parts, strict=True)):
            each = 0.0
            if head.kind == "multilabel":
                each = self.of_labels(self.heads.split(outputs)[place], classes)
            elif head in self.task.answered and part is not None:
                others = [k + 1 for k in range(len(self.task.shape)) if k != axis]
                each = self.compare(part, shaped.sum(others) if others else shaped)  # the head's marginal distribution
                axis += 1
            elif head.kind == "named":
                each = self.compare(part, one_hot(beside[:, column], part.shape[1]))
                column += 1
            elif part is not None:
                each = self.of_cut(part, head, number)
            if place == self.heads.place:
                known = ~number.isnan()
                each = each + torch.where(known, self.of_number(outputs, number.nan_to_num(head.low)), 0.0)
            total = total + head.weight * each
        return total

    def of_labels(self, raw: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        """The loss (n,) of several labels, summed over them: raw logits and targets, (n, k) each. A yes counts as
        loss.balance says."""
        if self.name == "asymmetric":
            return self.compare(raw, target)
        each = torch.nn.functional.binary_cross_entropy_with_logits
        return each(raw, target, pos_weight=self.yes_weight, reduction="none").sum(1)

    def of_cut(self, part: torch.Tensor, head: Head, number: torch.Tensor) -> torch.Tensor:
        """The loss (n,) of a head's classes, cut from numbers (n,), if it is not part of the answer; 0 where the number
        is unknown. part: (n, classes) log probabilities."""
        bounds = devices.constant(tuple(head.trained), number.device)
        target = torch.bucketize(number.nan_to_num(head.low), bounds, right=True)
        return self.compare(part, one_hot(target, part.shape[1])) * ~number.isnan()

    def of_number(self, outputs: torch.Tensor, number: torch.Tensor) -> torch.Tensor:
        """The loss (n,) of true numbers (n,), by what their head learns (task.heads' `learn`, see Heads)."""
        raw = self.heads.split(outputs)[self.heads.place]
        grid = self.heads.points(number.device)
        learned = self.heads.learned
        if learned == "sigmoid":  # the absolute error, in percent of the range
            return (number - self.heads.scaled(raw)).abs() * 100 / self.heads.range
        if learned == "distribution":  # a normal distribution around the true number, over the range
            target = (-((grid - number[:, None]) ** 2) / (2 * self.sigma**2)).softmax(1)
            return -(target * self.heads.log_grid(raw)).sum(1)
        if learned == "ordinal":  # CORN: threshold k is trained only on photos whose number is above threshold k - 1
            above = (number[:, None] > grid[:-1]).float()
            asked = number[:, None] > grid[:-1] - self.heads.range / (len(grid) - 1)
            each = torch.nn.functional.binary_cross_entropy_with_logits(
                raw + ORDINAL_LOGIT_BIAS, above, reduction="none"
            )
            return (each * asked).sum(1)
        mean, width = self.heads.laplace(raw)  # regression: negative log likelihood of a Laplace distribution
        return ((number[:, None] - mean).abs() / width + (2 * width).log())[:, 0]


SPAN = 2048  # photos over which loss f1 computes macro F1: a batch alone holds too few of the rare classes


class SoftF1(torch.nn.Module):
    """1 - macro F1 of probabilities over the last `span` photos, as a loss a photo.

    F1 is a ratio of sums: a batch of 32 photos and 18 classes is too small for it, and the mean of batches' F1 is no
    F1. So sums of true, predicted and both are kept over a span. The loss of a photo is how far it moves the span's F1:
    the derivative of F1 = 2 both / (true + predicted) at those sums, times the span. A class that does not occur in the
    span is left out. Probabilities, not answers, are summed: argmax has no gradient.
    """

    def __init__(self, size: int, label: np.ndarray, span: int) -> None:
        """size: classes; label: (n,) training labels, whose frequencies are the first sums; span: photos."""
        super().__init__()
        share = torch.bincount(torch.tensor(label), minlength=size) / len(label)
        self.span = span
        self.register_buffer("true", share * span)
        self.register_buffer("predicted", share * span)
        self.register_buffer("both", share * share * span)

    def value(self) -> torch.Tensor:
        """Macro F1 of the span, a scalar."""
        held = self.true > 0
        return (2 * self.both[held] / (self.true + self.predicted)[held]).mean()

    def forward(self, probabilities: torch.Tensor, classes: torch.Tensor) -> torch.Tensor:
        """probabilities, classes (n, k) -> (n,): minus what each photo adds to the span's macro F1, times the span."""
        held = self.true > 0
        size = (self.true + self.predicted).clamp(min=1e-6)
        slope = (2 * classes * size - 2 * self.both) / size**2
        return -(probabilities * slope * held).sum(1) * self.span / held.sum()

    @torch.no_grad()
    def update(self, sums: torch.Tensor, photos: int) -> None:
        """Move the span on by the f1_sums (3, k) of a step of so many photos, summed over all processes."""
        keep = max(0.0, 1 - photos / self.span)
        for total, new in zip((self.true, self.predicted, self.both), sums, strict=True):
            total.mul_(keep).add_(new)


def f1_sums(probabilities: torch.Tensor, classes: torch.Tensor) -> torch.Tensor:
    """(n, k) each -> (3, k): for each class the sums over photos of true, of predicted, and of true x predicted."""
    return torch.stack([classes.sum(0), probabilities.sum(0), (classes * probabilities).sum(0)])
