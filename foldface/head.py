"""A head: one thing that is predicted of a photo, a class by its name or a number. Nothing here needs torch."""

import itertools
import math
import re
from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import ArrayLike

from foldface.files import InputError
from foldface.names import index_in, one_of, spellings

ROW_COLUMNS = ("source", "split", "ImageID", "photo", "file", "id", "label", "target", "gap", "fold", "twin", "sha1")
ROW_COLUMNS += ("near", "linked")
ROW_COLUMNS += ("near", "grouped", "group", "x1", "y1", "x2", "y2", "shared", "faceless", "answer_id", "size", "mtime")
NOT_KEYS = (*ROW_COLUMNS, "train", "last")  # nor train_f1 of log.csv, nor oof_last.csv
OF_NAMES = ("named", "multilabel")
MOST_LABELS = 62  # of kind multilabel: a set of them is an int64
YES_NO = {
    **dict.fromkeys(("1", "1.0", "yes", "y", "true"), True),
    **dict.fromkeys(("0", "0.0", "no", "n", "false"), False),
}
N_BINS = 101  # at which a distribution over a head's range is learned: 0..100 years, one by one


class Head:
    """One thing that is predicted of a photo.

    kind: "named" (classes by their names), "multilabel" (any number of classes; a set of them is an int, of which bit k
    is class k), "cut" (a number cut into classes at `bounds`) or "number". table_columns: those that it is read from.
    bounds: where the next class begins, as answers are scored; trained: the same as they are trained on.
    learn, train_gap, sigma, weight: as in HeadConfig. key: its column in our rows, and its part of names of files and
    scores: its name where that can be one (see `Task`).
    """

    def __init__(
        self, name: str, classes: Sequence[str] = (), column: str = "", bounds: Sequence[float] = (),
        range: Sequence[float] = (), limits: Sequence[float] = (), unit: str = "", learn: str = "classes",
        train_bounds: Sequence[float] = (), train_gap: float = 0.0, sigma: float | None = None, weight: float = 1.0,
        kind: str = "", columns: Sequence[str] = (), key: str = "",
    ) -> None:  # fmt: skip
        self.name, self.classes, self.column, self.unit = name, tuple(classes), column or name, unit
        self.key = key or name
        self.bounds, self.trained = tuple(bounds), tuple(train_bounds or bounds)
        self.learn, self.train_gap, self.sigma, self.weight = learn, train_gap, sigma, weight
        self.kind = kind or ("cut" if bounds else "number" if range else "named")
        self.table_columns = tuple(columns) or (self.column,)
        self.limits = tuple(limits or range)
        if columns and not classes:
            self.classes = tuple(columns)
        if self.kind not in OF_NAMES and not (len(range) == len(self.limits) == 2 and range[0] < range[1]):
            raise InputError(f"task.heads: {name} needs a range [least, most] of its numbers, and limits likewise")
        if self.kind not in OF_NAMES and not (self.limits[0] <= range[0] and range[1] <= self.limits[1]):
            raise InputError(f"task.heads: {name}: its limits {list(self.limits)} should hold its range {list(range)}")
        if self.kind == "cut" and not classes:
            self.classes = cut_names(self.bounds)
        if self.kind == "number" and classes:
            raise InputError(f"task.heads: {name} names classes of a number: give the bounds between them too")
        if range:
            self.low, self.high = map(float, range)
        self.index = spellings(self.classes)

    def describe(self, number: float) -> str:
        """A number in words: as many decimals as tell numbers of the range apart, none of years."""
        return f"{number:.{max(0, 2 - math.floor(math.log10(self.high - self.low)))}f}"

    def parse(self, text: str) -> tuple[int | float | str | None, str]:
        """A table's cell -> (class index or number, ""), or (None, what is wrong). "" is no value.

        A named head without classes yet takes any name, and gives it back.
        """
        if self.kind == "named":
            if not self.classes:
                return (text, "") if text else (None, f"{self.column} is empty")
            index = self.index_of(text)
            return index, "" if index is not None else f"{self.column} is '{text}', should be {one_of(self.classes)}"
        try:
            value = float(text)
        except ValueError:
            value = float("nan")
        least, most = self.limits
        if not least <= value <= most:
            return None, f"{self.column} is '{text}', should be a number from {plain(least)} to {plain(most)}"
        return min(max(value, self.low), self.high), ""

    def read(self, row: Mapping[str, str]) -> tuple[int | float | str | None, str]:
        """A table's row, {column: text} -> as `parse`: of kind multilabel the set of its classes, or, of a head without
        classes yet, the cell."""
        if self.kind != "multilabel":
            return self.parse(row[self.column])
        if len(self.table_columns) == 1 and self.table_columns[0] == self.column:
            if not self.classes:
                return row[self.column], ""
            found = [self.index_of(name) for name in row[self.column].split()]
            if None in found:
                name = row[self.column].split()[found.index(None)]
                return None, f"{self.column} has '{name}', should be of {one_of(self.classes)}"
            return sum(1 << index for index in set(found)), ""
        cells = [YES_NO.get(row[name].lower()) for name in self.table_columns]
        if None in cells:
            name = self.table_columns[cells.index(None)]
            return None, f"{name} is '{row[name]}', should be 1 or 0, yes or no"
        return sum(1 << self.index[name] for name, yes in zip(self.table_columns, cells, strict=True) if yes), ""

    def index_of(self, name):
        """The index of the class that a name means, whatever its spelling; None if it means none."""
        return index_in(self.index, name)

    def class_of(self, values: ArrayLike, bounds: Sequence[float] | None = None) -> np.ndarray:
        """Class indices of numbers, of any shape: int64. bounds: the head's own unless others are given."""
        return np.searchsorted(self.bounds if bounds is None else bounds, np.asarray(values, float), side="right")

    @property
    def grid(self) -> np.ndarray:
        """The points at which a distribution over the range is learned: (N_BINS,) float64."""
        return np.linspace(self.low, self.high, N_BINS)

    @property
    def steps(self) -> tuple[float, ...]:
        """The bounds that an answer may be read at: all but the last as they are, the last also up to five steps lower.
        A step is a hundredth of the range, or 1 where that is near and the numbers are whole, as years are."""
        step, ends = (self.high - self.low) / (N_BINS - 1), (self.low, self.high, *self.bounds)
        if 0.25 <= step <= 1.5 and all(value == int(value) for value in ends):
            step = 1
        last = [self.bounds[-1] - back * step for back in (5, 4, 3, 2, 1, 0)]
        floor = self.bounds[-2] if len(self.bounds) > 1 else self.low
        return (*self.bounds[:-1], *(bound for bound in last if bound > floor))

    @property
    def columns(self) -> list[str]:
        """Columns in which a cut head's distribution is written: its mean, and the probability of each step or more."""
        return [self.unit or "mean", *(f"from{plain(bound)}" for bound in self.steps)]


def plain(number: float) -> str:
    """A number as text, 2500000 and 0.25 and not 2.5e+06."""
    return str(int(number)) if number == int(number) else str(round(number, 6))


def cut_names(bounds):
    """Names of the classes between bounds: <30, 30-59, >=60; of fractions <0.3, 0.3 to 0.6, >=0.6."""
    whole = all(bound == int(bound) for bound in bounds)
    names = [f"<{plain(bounds[0])}"]
    for low, high in itertools.pairwise(bounds):
        names.append(f"{plain(low)}-{plain(high - 1)}" if whole else f"{plain(low)} to {plain(high)}")
    return (*names, f">={plain(bounds[-1])}")


def usable(name: str) -> bool:
    """Can a head's name be its column in our rows, and a part of names of files and scores? Not where rows have a
    column of that name themselves, nor with blanks and signs in it."""
    return name.isidentifier() and name not in NOT_KEYS and not re.fullmatch(r"(p|head)\d+", name)


def refuse_bad_heads(heads: Sequence[Head], numeric: Sequence[Head]) -> None:
    """Raise InputError for heads that can't be."""
    names = [head.name for head in heads]
    if not heads:
        raise InputError('task.heads is empty: name at least one, such as {"name": "class"}')
    for head in heads:
        if names.count(head.name) > 1 or not head.name.strip():
            why = "stands there twice" if names.count(head.name) > 1 else "is no name"
            raise InputError(
                f"task.heads: {head.name!r} {why}: call it otherwise; the table's column can be given as "
                f'"column": "{head.column}"'
            )
        if head.kind == "cut" and list(head.bounds) != sorted(set(head.bounds)):
            raise InputError(f"task.heads: {head.name} needs bounds that rise")
        if head.kind == "cut" and len(head.classes) != len(head.bounds) + 1:
            raise InputError(
                f"task.heads: {head.name} has {len(head.bounds)} bounds, which make {len(head.bounds) + 1} classes, "
                f"and names {len(head.classes)}"
            )
        if head.kind == "cut" and not all(head.low < bound <= head.high for bound in head.bounds):
            raise InputError(f"task.heads: {head.name}: its bounds should lie within its range")
        if head.kind == "cut" and (
            len(head.trained) != len(head.bounds)
            or list(head.trained) != sorted(set(head.trained))
            or not all(head.low < bound <= head.high for bound in head.trained)
        ):
            raise InputError(
                f"task.heads: {head.name}: train_bounds {list(head.trained)} take the place of its bounds "
                f"{list(head.bounds)} in training: give as many, which rise, within its range"
            )
        if head.kind != "cut" and (head.trained or head.train_gap):
            field = "train_bounds" if head.trained else "train_gap"
            raise InputError(f"task.heads: {head.name} has no bounds between classes, which {field} is about")
        if head.kind in OF_NAMES and (head.learn != "classes" or head.sigma):
            raise InputError(
                f"task.heads: {head.name} holds no numbers, which learn and sigma are about: leave them out"
            )
        if head.kind == "cut" and head.learn == "sigmoid":
            raise InputError(f"task.heads: {head.name}: sigmoid learns one number, and it has classes: choose another")
        if head.kind == "multilabel" and len(head.classes) > MOST_LABELS:
            raise InputError(f"task.heads: {head.name} has {len(head.classes)} labels, more than {MOST_LABELS}")
        if head.kind != "multilabel" and len(head.table_columns) > 1:
            raise InputError(f'task.heads: {head.name} has columns, which are of "kind": "multilabel"')
        if (
            head.kind == "multilabel"
            and set(head.table_columns) - {head.column}
            and (set(head.table_columns) != set(head.classes))
        ):
            raise InputError(f"task.heads: {head.name}: its columns are called otherwise than its classes")
        if (
            head.kind == "multilabel"
            and any(len(name.split()) != 1 for name in head.classes)
            and (head.table_columns == (head.column,))
        ):
            raise InputError(f"task.heads: {head.name} has a class with a blank in its name, which parts the labels")
        if len(head.classes) == 1:
            raise InputError(f"task.heads: {head.name} has one class: there is nothing to tell apart")
        if "" in head.classes:
            raise InputError(f"task.heads: {head.name} has a class without a name")
        if len(set(head.classes)) < len(head.classes):
            raise InputError(f"task.heads: {head.name} names a class twice")
    if len(numeric) > 1:
        raise InputError(
            f"task.heads: {numeric[0].name} and {numeric[1].name} both come from numbers: one such head a task"
        )
