"""A model's outputs -> probabilities or numbers: one joint head or one each, and ages that may be years, not classes.

Whatever a head of numbers learns (but a sigmoid), it answers with a distribution over its range, from which classes,
or a number and how sure it is, follow.
"""

import numpy as np
import torch
from torch.nn.functional import logsigmoid, softplus

from foldface.head import N_BINS
from foldface.task import Task

LEARNED = {"distribution": N_BINS, "ordinal": N_BINS - 1, "regression": 2, "sigmoid": 1}  # outputs
# of a regression's Laplace distribution, as shares of the range
LAPLACE_CENTRE = 0.4  # its mean where the output is 0
LAPLACE_STEP = 0.15  # how far an output of 1 moves the mean
LAPLACE_FLOOR = 0.005  # its least width
ORDINAL_LOGIT_BIAS = 4.0  # added to an ordinal head's logits: from zero outputs ages begin near 50 years, not near 1
TINY = 1e-12


class Heads:
    """How a network's outputs are read. `size`: how many there are; `width`: numbers in an answer.

    kind: joint (a logit for each class of the answer) or multi (each head apart, the probabilities of those that make
    the answer multiplied: what a face tells of age is then learned from all masks and genders together). learned: what
    the task's head of numbers learns in multi: its classes, or its range as a distribution (Geng 2016's label
    distribution), as one threshold after the other (CORN; Shi, Cao & Raschka 2021), as a Laplace distribution's
    mean and width (regression), or as a sigmoid scaled to it.
    """

    def __init__(self, task: Task, kind: str = "multi") -> None:
        self.task, self.kind = task, kind
        self.learned = task.number.learn if task.number else "classes"
        self.number = task.number if kind == "multi" and self.learned != "classes" else None
        self.sizes = [LEARNED[self.learned] if head is self.number else len(head.classes) for head in task.heads]
        if kind == "joint":
            self.sizes = [task.size]
        self.size = sum(self.sizes)
        self.place = task.heads.index(self.number) if self.number else None
        self.in_numbers = self.number is not None and self.number in task.answered and not task.numeric
        self.width = 2 if task.numeric else task.size + (len(task.number.columns) if self.in_numbers else 0)
        if self.number:
            self.grid = torch.tensor(self.number.grid, dtype=torch.float32)
            self.range, self.copies = self.number.high - self.number.low, {}

    def cut(self, bound):
        """How many of the grid's points lie below a bound."""
        return int(np.searchsorted(self.number.grid.astype(np.float32), bound))

    def points(self, device: torch.device) -> torch.Tensor:
        """The grid (N_BINS,) float32 on a device, copied there once: a copy a step would have a GPU wait."""
        if device not in self.copies:
            self.copies[device] = self.grid.to(device)
        return self.copies[device]

    def split(self, outputs: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """(n, size) outputs -> float32 outputs of each head, in the order of the task: [(n, ...)]; of joint one."""
        return outputs.float().split(self.sizes, 1)

    def log_grid(self, raw: torch.Tensor) -> torch.Tensor:
        """The outputs of a head of numbers -> log probability of each point of its range: (n, N_BINS)."""
        if self.learned == "distribution":
            return raw.log_softmax(1)
        if self.learned == "ordinal":  # output k: is it above point k, if it is above point k - 1?
            raw = raw + ORDINAL_LOGIT_BIAS
            reached = torch.nn.functional.pad(logsigmoid(raw).cumsum(1), (1, 0))
            return reached + torch.nn.functional.pad(logsigmoid(-raw), (0, 1))
        mean, width = self.laplace(raw)
        grid = self.points(raw.device)
        apart = ((grid[1:] + grid[:-1]) / 2 - mean) / width
        below = torch.where(apart < 0, 0.5 * apart.clamp(max=0).exp(), 1 - 0.5 * (-apart.clamp(min=0)).exp())
        below = torch.nn.functional.pad(torch.nn.functional.pad(below, (1, 0)), (0, 1), value=1.0)
        return below.diff(dim=1).clamp(min=TINY).log()

    def laplace(self, raw: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """(n, 2) outputs of a regression -> mean and width in the head's unit, each (n, 1)."""
        unit = LAPLACE_STEP * self.range
        mean = self.number.low + LAPLACE_CENTRE * self.range + unit * raw[:, :1]
        width = LAPLACE_FLOOR * self.range + unit * softplus(raw[:, 1:] - 1)
        return mean, width

    def scaled(self, raw: torch.Tensor) -> torch.Tensor:
        """(n, 1) outputs of a sigmoid -> numbers in the range: (n,)."""
        return self.number.low + self.range * raw[:, 0].sigmoid()

    def by_class(self, log_grid):
        """(n, N_BINS) log probabilities of the range -> (n, classes) by the bounds of training."""
        cuts = [self.cut(bound) for bound in self.number.trained]
        sizes = [high - low for low, high in zip([0, *cuts], [*cuts, N_BINS], strict=True)]
        return torch.stack([part.logsumexp(1) for part in log_grid.split(sizes, 1)], 1)

    def parts(self, outputs: torch.Tensor) -> list[torch.Tensor | None]:
        """(n, size) outputs -> log probabilities of each head's classes, or of joint's: [(n, k)]; None for a number."""
        found = []
        for place, raw in enumerate(self.split(outputs)):
            if self.task.heads[place].kind == "multilabel" and self.kind != "joint":
                found.append(logsigmoid(raw))
            elif place != self.place:
                found.append(raw.log_softmax(1))
            else:
                found.append(self.by_class(self.log_grid(raw)) if self.number.kind == "cut" else None)
        return found

    def log_probabilities(self, outputs: torch.Tensor) -> torch.Tensor:
        """(n, size) outputs -> log probabilities of the answer's classes: (n, task.size) float32."""
        parts = self.parts(outputs)
        if self.kind == "joint":
            return parts[0]
        answered = [part for part, head in zip(parts, self.task.heads, strict=True) if head in self.task.answered]
        total = answered[0]
        for part in answered[1:]:
            total = (total[:, :, None] + part[:, None, :]).flatten(1)
        return total

    def answers(self, outputs: torch.Tensor) -> torch.Tensor:
        """(n, size) outputs -> (n, width): the probabilities of the classes and, where a number stands behind them, its
        head's columns; of a number the number itself and the probability that the truth is within task.tolerance of it.

        All of it may be averaged over views and models.
        """
        if self.task.numeric:
            return self.numbers(self.split(outputs)[self.place])
        found = self.log_probabilities(outputs).exp()
        if not self.in_numbers:
            return found
        shares = self.log_grid(self.split(outputs)[self.place]).exp()
        mean = (shares * self.points(shares.device)).sum(1)  # autocast would take a product (@) in 16 bits
        above = [shares[:, self.cut(bound) :].sum(1) for bound in self.number.steps]
        return torch.cat([found, torch.stack([mean, *above], 1)], 1)

    def numbers(self, raw: torch.Tensor) -> torch.Tensor:
        """The outputs of a head of numbers -> (n, 2): the median of its distribution, how likely it is near enough.

        The median is what costs least in mean absolute error. A sigmoid says nothing of how sure it is: NaN.
        """
        if self.learned == "sigmoid":
            value = self.scaled(raw)
            return torch.stack([value, torch.full_like(value, float("nan"))], 1)
        shares = self.log_grid(raw).exp()
        if self.learned == "regression":
            value = self.laplace(raw)[0][:, 0].clamp(self.number.low, self.number.high)
        else:
            below = shares.cumsum(1)
            at = (below < 0.5).sum(1, keepdim=True).clamp(max=N_BINS - 1)
            share, before = shares.gather(1, at), below.gather(1, at) - shares.gather(1, at)
            step = self.range / (N_BINS - 1)
            inside = ((0.5 - before) / share.clamp(min=TINY)).clamp(0, 1) - 0.5
            value = (self.number.low + step * (at + inside))[:, 0].clamp(self.number.low, self.number.high)
        near = (self.points(raw.device) - value[:, None]).abs() <= self.task.tolerance
        return torch.stack([value, (shares * near).sum(1)], 1)
