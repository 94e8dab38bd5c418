"""A model's outputs -> probabilities: one joint head or three, and an age that may be years instead of classes.

Whatever an age head learns, it answers with a distribution over the years 0..100, from which the three classes follow.
"""

import torch
from torch.nn.functional import logsigmoid, softplus

import labels

LEARNED = {"classes": len(labels.AGES), "distribution": labels.YEARS, "ordinal": labels.YEARS - 1, "regression": 2}
MIDDLE, UNIT = 40.0, 15.0  # years: where the regression begins and how far an output of 1 is from there
OLDER = 4.0  # added to an ordinal head's logits: from zero outputs ages begin near 50 years, not near 1
TINY = 1e-12


class Heads:
    """How a network's outputs are read. `size`: how many there are.

    kind: joint (18 logits) or multi (mask, gender and age, whose probabilities are multiplied: what a face tells of age
    is then learned from all masks and genders together). age, for multi: classes, or years as a distribution (Geng
    2016's label distribution), as one threshold after the other (CORN; Shi, Cao & Raschka 2021), or as a Laplace
    distribution's mean and width (regression). boundary: years from which on an answer is the oldest class.
    """

    def __init__(self, kind, age="classes", boundary=labels.TRUE_BOUNDARY):
        self.kind, self.age, self.boundary = kind, age, boundary
        self.in_years = kind == "multi" and age != "classes"
        self.sizes = (*labels.SHAPE[:2], LEARNED[age]) if kind == "multi" else (len(labels.CLASSES),)
        self.size = sum(self.sizes)
        self.width = len(labels.CLASSES) + len(labels.AGE_COLUMNS) * self.in_years

    def split(self, outputs):
        """(n, size) outputs -> float32 outputs of each head: [(n, 18)], or mask (n, 3), gender (n, 2), age (n, ...)."""
        return outputs.float().split(self.sizes, 1)

    def log_years(self, raw):
        """An age head's outputs -> log probability of each year 0..100: (n, 101)."""
        if self.age == "distribution":
            return raw.log_softmax(1)
        if self.age == "ordinal":  # output k: is the age above k, if it is above k - 1?
            raw = raw + OLDER
            reached = torch.nn.functional.pad(logsigmoid(raw).cumsum(1), (1, 0))
            return reached + torch.nn.functional.pad(logsigmoid(-raw), (0, 1))
        mean, width = self.laplace(raw)
        edges = torch.arange(labels.YEARS - 1, device=raw.device) + 0.5
        apart = (edges - mean) / width
        below = torch.where(apart < 0, 0.5 * apart.clamp(max=0).exp(), 1 - 0.5 * (-apart.clamp(min=0)).exp())
        below = torch.nn.functional.pad(torch.nn.functional.pad(below, (1, 0)), (0, 1), value=1.0)
        return below.diff(dim=1).clamp(min=TINY).log()

    def laplace(self, raw):
        """(n, 2) outputs of a regression -> mean and width in years, each (n, 1)."""
        return MIDDLE + UNIT * raw[:, :1], 0.5 + UNIT * softplus(raw[:, 1:] - 1)

    def by_class(self, log_years):
        """(n, 101) log probabilities of years -> (n, 3) of the age classes."""
        parts = log_years.split((30, self.boundary - 30, labels.YEARS - self.boundary), 1)
        return torch.stack([part.logsumexp(1) for part in parts], 1)

    def parts(self, outputs):
        """(n, size) outputs -> log probabilities of each head: [(n, 18)], or [(n, 3), (n, 2), (n, 3)]."""
        found = [part.log_softmax(1) for part in self.split(outputs)[: 2 if self.in_years else None]]
        return found + ([self.by_class(self.log_years(self.split(outputs)[2]))] if self.in_years else [])

    def log_probabilities(self, outputs):
        """(n, size) outputs -> log probabilities of the 18 classes: (n, 18) float32."""
        parts = self.parts(outputs)
        if self.kind == "joint":
            return parts[0]
        mask, gender, age = parts
        return (mask[:, :, None, None] + gender[:, None, :, None] + age[:, None, None, :]).flatten(1)

    def answers(self, outputs):
        """(n, size) outputs -> (n, width): 18 probabilities and, of an age in years, labels.AGE_COLUMNS.

        All of it may be averaged over views and models.
        """
        found = self.log_probabilities(outputs).exp()
        if not self.in_years:
            return found
        years = self.log_years(self.split(outputs)[2]).exp()
        mean = years @ torch.arange(labels.YEARS, dtype=years.dtype, device=years.device)
        above = [years[:, bound:].sum(1) for bound in labels.BOUNDARIES]
        return torch.cat([found, torch.stack([mean, *above], 1)], 1)
