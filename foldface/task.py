"""What is predicted: a task's heads, and the answer that they make together.

The mask task is one description, MASK_TASK; another is written in the settings (task.heads), such as

    {"heads": [{"name": "kind"}], "score": "accuracy"}                              classes as the data has them
    {"heads": [{"name": "age", "range": [0, 116], "unit": "years"}], "score": "mae"}      a number

Nothing here needs torch.
"""

import itertools
import math
import re

import numpy as np

from foldface.files import InputError
from foldface.names import folded, meaning, number_of, one_of, spellings

MASK_TASK = {
    "heads": [
        {"name": "mask", "classes": ["wear", "incorrect", "normal"]},
        {"name": "gender", "classes": ["male", "female"]},
        {
            "name": "age",
            "classes": ["<30", "30-59", ">=60"],
            "bounds": [30, 60],
            "range": [0, 100],
            "limits": [0, 120],
            "unit": "years",
            "train_bounds": [30, 58],
        },
    ]
}
ROW_COLUMNS = ("source", "split", "ImageID", "photo", "file", "id", "label", "target", "gap", "fold", "twin", "sha1")
ROW_COLUMNS += ("near", "linked")
ROW_COLUMNS += ("near", "grouped", "group", "x1", "y1", "x2", "y2", "shared", "faceless", "answer_id", "size", "mtime")
NOT_KEYS = (*ROW_COLUMNS, "train", "last")  # nor train_f1 of log.csv, nor oof_last.csv
MOST_ANSWERS = 10_000  # of a task: the product of its heads' classes
N_BINS = 101  # at which a distribution over a head's range is learned: 0..100 years, one by one


class Head:
    """One thing that is predicted of a photo.

    kind: "named" (classes by their names), "cut" (a number cut into classes at `bounds`) or "number".
    bounds: where the next class begins, as answers are scored; trained: the same as they are trained on.
    learn, train_gap, sigma, weight: as in HeadConfig. key: its column in our rows, and its part of names of files and
    scores: its name where that can be one (see `Task`).
    """

    def __init__(
        self, name, classes=(), column="", bounds=(), range=(), limits=(), unit="",
        learn="classes", train_bounds=(), train_gap=0.0, sigma=None, weight=1.0,
    ):  # fmt: skip
        self.name, self.classes, self.column, self.unit = name, tuple(classes), column or name, unit
        self.key = name
        self.bounds, self.trained = tuple(bounds), tuple(train_bounds or bounds)
        self.learn, self.train_gap, self.sigma, self.weight = learn, train_gap, sigma, weight
        self.kind = "cut" if bounds else "number" if range else "named"
        self.limits = tuple(limits or range)
        if self.kind != "named" and not (len(range) == len(self.limits) == 2 and range[0] < range[1]):
            raise InputError(f"task.heads: {name} needs a range [least, most] of its numbers, and limits likewise")
        if self.kind != "named" and not (self.limits[0] <= range[0] and range[1] <= self.limits[1]):
            raise InputError(f"task.heads: {name}: its limits {list(self.limits)} should hold its range {list(range)}")
        if self.kind == "cut" and not classes:
            self.classes = cut_names(self.bounds)
        if self.kind == "number" and classes:
            raise InputError(f"task.heads: {name} names classes of a number: give the bounds between them too")
        if range:
            self.low, self.high = map(float, range)
        self.index = spellings(self.classes)

    def describe(self, number):
        """A number in words: as many decimals as tell numbers of the range apart, none of years."""
        return f"{number:.{max(0, 2 - math.floor(math.log10(self.high - self.low)))}f}"

    def parse(self, text):
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

    def index_of(self, name):
        """The index of the class that a name means, whatever its spelling; None if it means none."""
        for spelled in (name, meaning(name), folded(meaning(name))):
            if spelled in self.index:
                return self.index[spelled]
        return None

    def class_of(self, values, bounds=None):
        """Class indices of numbers, of any shape: int64. bounds: the head's own unless others are given."""
        return np.searchsorted(self.bounds if bounds is None else bounds, np.asarray(values, float), side="right")

    @property
    def grid(self):
        """The points at which a distribution over the range is learned: (POINTS,) float64."""
        return np.linspace(self.low, self.high, N_BINS)

    @property
    def steps(self):
        """The bounds that an answer may be read at: all but the last as they are, the last also up to five steps lower.
        A step is a hundredth of the range, or 1 where that is near and the numbers are whole, as years are."""
        step, ends = (self.high - self.low) / (N_BINS - 1), (self.low, self.high, *self.bounds)
        if 0.25 <= step <= 1.5 and all(value == int(value) for value in ends):
            step = 1
        last = [self.bounds[-1] - back * step for back in (5, 4, 3, 2, 1, 0)]
        floor = self.bounds[-2] if len(self.bounds) > 1 else self.low
        return (*self.bounds[:-1], *(bound for bound in last if bound > floor))

    @property
    def columns(self):
        """Columns in which a cut head's distribution is written: its mean, and the probability of each step or more."""
        return [self.unit or "mean", *(f"from{plain(bound)}" for bound in self.steps)]


def plain(number):
    """A number as text, 2500000 and 0.25 and not 2.5e+06."""
    return str(int(number)) if number == int(number) else str(round(number, 6))


def cut_names(bounds):
    """Names of the classes between bounds: <30, 30-59, >=60; of fractions <0.3, 0.3 to 0.6, >=0.6."""
    whole = all(bound == int(bound) for bound in bounds)
    names = [f"<{plain(bounds[0])}"]
    for low, high in itertools.pairwise(bounds):
        names.append(f"{plain(low)}-{plain(high - 1)}" if whole else f"{plain(low)} to {plain(high)}")
    return (*names, f">={plain(bounds[-1])}")


class Task:
    """The heads of a task, and how they make its answer.

    The answer is one class (of several heads: of the product of their classes, the last changing fastest), or one
    number. Heads outside of the answer are trained beside it and not scored.

        heads, number                all heads; the one that learns from numbers, or None
        answered, shape              heads that make the answer; how many classes each has, () if it is a number
        classes, probabilities       names of the answer's classes; their columns p0, p1, ... in our CSVs
        score, tolerance             name of the score (foldface/metrics.py); largest error that counts as near
    """

    def __init__(self, heads, answer=(), answer_as="index", score="f1", tolerance=5.0):
        """heads: dicts of Head's fields; the rest as in TaskConfig. InputError where they don't go together."""
        self.heads = [Head(**head) for head in heads]
        for place, head in enumerate(self.heads):
            head.key = head.name if usable(head.name) else f"head{place}"
        names = [head.name for head in self.heads]
        numeric = [head for head in self.heads if head.kind != "named"]
        refuse_bad_heads(self.heads, numeric)
        self.number = numeric[0] if numeric else None
        unknown = [name for name in answer if name not in names]
        if unknown:
            raise InputError(f"task.answer names {unknown[0]}, which is no head; there are {', '.join(names)}")
        self.answered = [head for head in self.heads if head.name in (answer or names)]
        self.numeric = any(head.kind == "number" for head in self.answered)
        if self.numeric and len(self.answered) > 1:
            raise InputError(
                f"task: {' and '.join(head.name for head in self.answered)} can't make one answer, since one is a "
                'number: name those that do, such as "answer": ["' + self.answered[0].name + '"]'
            )
        self.score, self.tolerance = score, tolerance
        self.answer_as = answer_as
        self.set_classes()

    def set_classes(self):
        """Work out the answer's classes from those of its heads."""
        self.shape = () if self.numeric else tuple(len(head.classes) for head in self.answered)
        if math.prod(self.shape) > MOST_ANSWERS:  # a stranger's run could name billions
            raise InputError(f"task.heads: {math.prod(self.shape)} answers are more than {MOST_ANSWERS}: name fewer in "
                             "task.answer")  # fmt: skip
        index = np.arange(int(np.prod(self.shape)) if self.shape else 0)
        parts = np.unravel_index(index, self.shape) if len(index) else []
        named = [[head.classes[k] for k in part] for head, part in zip(self.answered, parts, strict=bool(parts))]
        self.classes = tuple(" ".join(names) for names in zip(*named, strict=True))
        if len(set(self.classes)) < len(self.classes):
            raise InputError("task.heads: two answers would have one name: name the classes of the heads otherwise")
        self.size = len(self.classes)
        self.probabilities = [f"p{k}" for k in index]

    def same(self, other):
        """Does another task answer the same thing, class for class?"""
        mine, theirs = ([(h.name, h.kind, h.classes, h.bounds) for h in one.answered] for one in (self, other))
        return mine == theirs

    def describe(self):
        """What the task answers, in words that fit a line."""
        return one_of(self.classes) if self.classes else " and ".join(head.name for head in self.answered)

    @property
    def settled(self):
        """Are the classes of all heads known?"""
        return all(head.classes or head.kind == "number" for head in self.heads)

    def head(self, name):
        """The head of this name."""
        return next(head for head in self.heads if head.name == name)

    def condition(self, words):
        """One of data.only, such as mask=normal or age>=20 -> (head, "=" | ">=" | "<", class index or number).

        Raises InputError for what is none.
        """
        names = sorted((re.escape(head.name) for head in self.heads), key=len, reverse=True)
        match = re.fullmatch(rf"\s*({'|'.join(names)})\s*(>=|<|=)\s*(.+?)\s*", words)
        head = next((head for head in self.heads if match and head.name == match[1]), None)
        try:
            if head and match[2] == "=" and head.kind != "number":
                return head, "=", head.classes.index(match[3])
            if head and match[2] != "=" and head.kind != "named":
                return head, match[2], float(match[3])
        except ValueError:
            pass
        raise InputError(f"data.only: {words!r} is no class or number of a head; write such as mask=normal or age>=20")

    def parse(self, row):
        """A table's row, {column: text} -> ({head's key: class index or number}, ""), or (None, what is wrong).

        Raises KeyError for a column that isn't there.
        """
        found = {}
        for head in self.heads:
            found[head.key], reason = head.parse(row[head.column])
            if reason:
                return None, reason
        return found, ""

    def answer_of(self, rows, trained=False):
        """The answer of rows that have a column a head: (n,) class 0.. or number, -1 where a class is unknown.

        trained: by the bounds that training uses instead of those that scores use.
        """
        if self.numeric:
            return rows[self.answered[0].key].to_numpy(float)
        parts = []
        for head in self.answered:
            values = rows[head.key].to_numpy()
            parts.append(head.class_of(values, head.trained if trained else None) if head.kind == "cut" else values)
        return self.encode(*parts)

    def encode(self, *parts):
        """The answer's class of the class indices of its heads; arrays broadcast."""
        return np.ravel_multi_index(tuple(np.asarray(part, np.int64) for part in parts), self.shape)

    def decode(self, answer):
        """{head: class indices} of answers 0..; arrays keep their shape."""
        found = np.unravel_index(np.asarray(answer), self.shape)
        return {head.name: part for head, part in zip(self.answered, found, strict=True)}

    def by_head(self, probabilities):
        """{head: (n, its classes)} of probabilities of answers (n, size): what is summed over all other heads."""
        joint = probabilities.reshape(-1, *self.shape)
        axes = range(1, joint.ndim)
        return {
            head.name: joint.sum(tuple(axis for axis in axes if axis != place))
            for place, head in enumerate(self.answered, start=1)
        }

    def neighbours(self):
        """Which classes differ by one class of a head cut from numbers, and in nothing else: (k, k) bool, symmetric."""
        part, near = self.decode(np.arange(self.size)), np.zeros((self.size, self.size), bool)
        apart = {name: abs(index[:, None] - index) for name, index in part.items()}
        for head in self.answered:
            if head.kind == "cut":
                same = [apart[other.name] == 0 for other in self.answered if other is not head]
                near |= np.all([apart[head.name] == 1, *same], 0)
        return near

    def smoothed(self, loss, smoothing):
        """The (k, k) float32 targets of a loss for the task's k classes: row t is the distribution of class t.

        `smoothing` is spread over all classes (Szegedy et al. 2016); by the loss neighbour over the neighbouring age
        classes of the same mask and gender only, the second-place team's idea: 30-59 has two, <30 and >=60 have one.
        """
        eye = np.eye(self.size, dtype=np.float32)
        if loss == "neighbour":
            near = self.neighbours().astype(np.float32)
            other = near / near.sum(1, keepdims=True)
        else:
            other = np.full_like(eye, 1 / max(self.size, 1))
        return (1 - smoothing) * eye + smoothing * other

    def surest(self, loss, smoothing, heads="joint"):
        """The probability of each class of the answer at which the smoothed loss is least, for a photo whose class is
        beyond doubt: (k,) float64. More than that is no reward of training.

        heads: as in ModelConfig. Heads apart each learn the targets summed over the others, and their probabilities
        are multiplied; a head of numbers that learns more than its classes may become as sure as it likes.
        """
        targets = self.smoothed(loss, smoothing).astype(float)
        if heads == "joint":
            return targets.diagonal().copy()
        found, own = np.ones(self.size), self.decode(np.arange(self.size))
        for head in self.answered:
            if head.learn == "classes":
                found *= self.by_head(targets)[head.name][np.arange(self.size), own[head.name]]
        return found

    def written(self, answer):
        """Answers as submission.csv has them: class indices, or names, or numbers."""
        if self.numeric or self.answer_as == "index":
            return np.asarray(answer)
        return np.array(self.classes, dtype=object)[np.asarray(answer, int)]

    def read(self, cells):
        """The reverse of `written`: cells of a CSV's column ans -> (n,) float, NaN for what is no answer. Names may be
        spelled otherwise; an index counts too, unless a class's name is a number."""
        by_name = self.answer_as == "name" and not self.numeric
        known = spellings(self.classes) if by_name else {}
        by_index = not (by_name and any(number_of(name) is not None for name in self.classes))

        def read(cell):
            for text in (cell, meaning(cell), folded(meaning(cell))) if by_name else ():
                if text in known:
                    return known[text]
            try:
                return float(cell) if by_index else float("nan")
            except ValueError:
                return float("nan")

        found = {cell: read(cell) for cell in dict.fromkeys(cells)}
        return np.array([found[cell] for cell in cells], float)

    @property
    def confused(self):
        """What to say where classes are called numbers and submission.csv has other numbers, their index; else ""."""
        if self.numeric or self.answer_as == "name":
            return ""
        values = [number_of(name) for name in self.classes]
        wrong = next((k for k, value in enumerate(values) if None not in values and value != k), None)
        return (
            ""
            if wrong is None
            else f"class {self.classes[wrong]} is written as its index, {wrong}: --task.answer_as name writes the names"
        )


def usable(name):
    """Can a head's name be its column in our rows, and a part of names of files and scores? Not where rows have a
    column of that name themselves, nor with blanks and signs in it."""
    return name.isidentifier() and name not in NOT_KEYS and not re.fullmatch(r"(p|head)\d+", name)


def refuse_bad_heads(heads, numeric):
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
        if head.kind == "named" and (head.learn != "classes" or head.sigma):
            raise InputError(
                f"task.heads: {head.name} holds no numbers, which learn and sigma are about: leave them out"
            )
        if head.kind == "cut" and head.learn == "sigmoid":
            raise InputError(f"task.heads: {head.name}: sigmoid learns one number, and it has classes: choose another")
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
