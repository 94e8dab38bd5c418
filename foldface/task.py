"""What is predicted: a task's heads, and the answer that they make together.

The mask task is one description, MASK_TASK; another is written in the settings (task.heads), such as

    {"heads": [{"name": "kind"}], "score": "accuracy"}                              classes as the data has them
    {"heads": [{"name": "age", "range": [0, 116], "unit": "years"}], "score": "mae"}      a number

Nothing here needs torch.
"""

import math
import re
from collections.abc import Iterable, Mapping, Sequence

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike

from foldface.files import InputError
from foldface.head import OF_NAMES, Head, refuse_bad_heads, usable
from foldface.names import folded, index_in, meaning, number_of, one_of, spellings

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
MOST_YES_NO = 8  # heads of two classes in the answer: their product is hardly ever what is wanted
MOST_ANSWERS = 10_000  # of a task: the product of its heads' classes


class Task:
    """The heads of a task, and how they make its answer.

    The answer is one class (of several heads: of the product of their classes, the last changing fastest), or one
    number. Heads outside of the answer are trained beside it and not scored.

        heads, number                all heads; the one that learns from numbers, or None
        answered, shape              heads that make the answer; how many classes each has, () if it is a number
        classes, probabilities       names of the answer's classes; their columns p0, p1, ... in our CSVs
        score, reported, tolerance   name of the score (foldface/metrics.py); largest error that counts as near
    """

    def __init__(
        self,
        heads: Sequence[dict],
        answer: Sequence[str] = (),
        answer_as: str = "index",
        score: str = "f1",
        tolerance: float = 5.0,
        reported: Sequence[str] = (),
    ) -> None:
        """heads: dicts of Head's fields; the rest as in TaskConfig. InputError where they don't go together."""
        keys = [head["name"] if usable(head["name"]) else f"head{place}" for place, head in enumerate(heads)]
        self.heads = [Head(**head, key=key) for head, key in zip(heads, keys, strict=True)]
        names = [head.name for head in self.heads]
        numeric = [head for head in self.heads if head.kind not in OF_NAMES]
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
        self.multilabel = any(head.kind == "multilabel" for head in self.answered)
        if len(self.answered) > 1 and any(head.kind == "multilabel" for head in self.heads):
            raise InputError("task.heads: a head of kind multilabel makes the answer alone: name it in task.answer")
        if any(head.kind == "multilabel" for head in self.heads) and not self.multilabel:
            raise InputError("task.heads: a head of kind multilabel makes the answer: name it in task.answer")
        self.score, self.tolerance, self.reported = score, tolerance, tuple(reported)
        self.answer_as = answer_as
        self.set_classes()

    def set_classes(self):
        """Work out the answer's classes from those of its heads."""
        if self.multilabel:
            self.shape, self.classes = (), self.answered[0].classes
            self.size, self.probabilities = len(self.classes), [f"p{k}" for k in range(len(self.classes))]
            return
        self.shape = () if self.numeric else tuple(len(head.classes) for head in self.answered)
        yes_no = [head for head in self.answered if len(head.classes) == 2]
        if len(yes_no) >= MOST_YES_NO and not self.numeric:
            first, second = (head.column for head in yes_no[:2])
            raise InputError(
                f"task.heads: {len(yes_no)} heads of two classes make {math.prod(self.shape)} answers; for several "
                'labels a photo take one head: [{"name": "labels", "kind": "multilabel", "columns": '
                f'["{first}", "{second}", ...]}}]'
            )
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

    def same(self, other: "Task") -> bool:
        """Does another task answer the same thing, class for class?"""
        mine, theirs = ([(h.name, h.kind, h.classes, h.bounds) for h in one.answered] for one in (self, other))
        return mine == theirs

    def describe(self) -> str:
        """What the task answers, in words that fit a line."""
        return one_of(self.classes) if self.classes else " and ".join(head.name for head in self.answered)

    @property
    def settled(self) -> bool:
        """Are the classes of all heads known?"""
        return all(head.classes or head.kind == "number" for head in self.heads)

    def head(self, name: str) -> Head:
        """The head of this name."""
        return next(head for head in self.heads if head.name == name)

    def condition(self, words: str) -> tuple[Head, str, float]:
        """One of data.only, such as mask=normal or age>=20 -> (head, "=" | ">=" | "<", class index or number).

        Raises InputError for what is none.
        """
        names = sorted((re.escape(head.name) for head in self.heads), key=len, reverse=True)
        match = re.fullmatch(rf"\s*({'|'.join(names)})\s*(>=|<|=)\s*(.+?)\s*", words)
        head = next((head for head in self.heads if match and head.name == match[1]), None)
        try:
            if head and match[2] == "=" and head.kind not in ("number", "multilabel"):
                return head, "=", head.classes.index(match[3])
            if head and match[2] != "=" and head.kind not in OF_NAMES:
                return head, match[2], float(match[3])
        except ValueError:
            pass
        raise InputError(f"data.only: {words!r} is no class or number of a head; write such as mask=normal or age>=20")

    def parse(self, row: Mapping[str, str]) -> tuple[dict | None, str]:
        """A table's row, {column: text} -> ({head's key: class index or number}, ""), or (None, what is wrong).

        Raises KeyError for a column that isn't there.
        """
        found = {}
        for head in self.heads:
            found[head.key], reason = head.read(row)
            if reason:
                return None, reason
        return found, ""

    def answer_of(self, rows: pd.DataFrame, trained: bool = False) -> np.ndarray:
        """The answer of rows that have a column a head: (n,) class 0.. or number, -1 where a class is unknown.

        trained: by the bounds that training uses instead of those that scores use.
        """
        if self.numeric:
            return rows[self.answered[0].key].to_numpy(float)
        if self.multilabel:
            return rows[self.answered[0].key].to_numpy(np.int64)
        parts = []
        for head in self.answered:
            values = rows[head.key].to_numpy()
            parts.append(head.class_of(values, head.trained if trained else None) if head.kind == "cut" else values)
        return self.encode(*parts)

    def sets(self, codes: ArrayLike) -> np.ndarray:
        """Which labels sets have: (n,) int of a task of several labels -> (n, size) bool."""
        return (np.asarray(codes, np.int64)[:, None] >> np.arange(self.size)) & 1 == 1

    def code(self, labels: ArrayLike) -> np.ndarray:
        """The reverse of `sets`: (n, size) bool -> (n,) int64."""
        return (np.asarray(labels, bool) * (1 << np.arange(self.size, dtype=np.int64))).sum(1)

    def has(self, target: ArrayLike, k: int) -> np.ndarray:
        """Which targets (n,) are, or hold, class k: (n,) bool."""
        return (np.asarray(target) >> k) & 1 == 1 if self.multilabel else np.asarray(target) == k

    def decide(self, votes: np.ndarray) -> np.ndarray:
        """Probabilities or votes (n, k) -> answers (n,): the class of the largest; of several labels the set of those
        of at least a half. Answers and numbers (n,) stay as they are."""
        votes = np.asarray(votes)
        if votes.ndim == 1:
            return votes
        return self.code(votes >= 0.5) if self.multilabel else votes.argmax(1)

    def refuse_labels(self, what: str) -> None:
        """Raise InputError where a photo has several labels, which `what` is not made for."""
        if self.multilabel:
            raise InputError(f"{what} is for one class a photo or a number, not for several labels a photo")

    def encode(self, *parts: ArrayLike) -> np.ndarray:
        """The answer's class of the class indices of its heads; arrays broadcast."""
        return np.ravel_multi_index(tuple(np.asarray(part, np.int64) for part in parts), self.shape)

    def decode(self, answer: ArrayLike) -> dict[str, np.ndarray]:
        """{head: class indices} of answers 0..; arrays keep their shape."""
        found = np.unravel_index(np.asarray(answer), self.shape)
        return {head.name: part for head, part in zip(self.answered, found, strict=True)}

    def by_head(self, probabilities: np.ndarray) -> dict[str, np.ndarray]:
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

    def smoothed(self, loss: str, smoothing: float) -> np.ndarray:
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

    def surest(self, loss: str, smoothing: float, heads: str = "joint") -> np.ndarray:
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

    def written(self, answer: ArrayLike) -> np.ndarray:
        """Answers as submission.csv has them: class indices, or names, or numbers."""
        if self.multilabel:
            names = self.classes if self.answer_as == "name" else tuple(map(str, range(self.size)))
            return np.array([" ".join(name for name, on in zip(names, row, strict=True) if on)
                             for row in self.sets(answer)], dtype=object)  # fmt: skip
        if self.numeric or self.answer_as == "index":
            return np.asarray(answer)
        return np.array(self.classes, dtype=object)[np.asarray(answer, int)]

    def words_of(self, answer: int | float) -> str:
        """One answer for a person to read: a class, the labels of a set ("none" of an empty one), a number."""
        if self.numeric:
            return self.answered[0].describe(answer)
        if self.multilabel:
            return ", ".join(name for k, name in enumerate(self.classes) if int(answer) >> k & 1) or "none"
        return self.classes[int(answer)]

    def read(self, cells: Iterable[str]) -> np.ndarray:
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

    def read_sets(self, cells: Iterable[str]) -> np.ndarray:
        """`read` of several labels a photo: cells of names or indices with blanks between -> sets (n,) int64, -1 for
        what is none."""
        known = spellings(self.classes)
        found = {}
        for cell in dict.fromkeys(cells):
            places = [index_in(known, word) for word in cell.split()]
            if None in places and all(word.isdecimal() and int(word) < self.size for word in cell.split()):
                places = [int(word) for word in cell.split()]
            found[cell] = -1 if None in places else sum(1 << place for place in set(places))
        return np.array([found[cell] for cell in cells], np.int64)

    @property
    def confused(self) -> str:
        """What to say where classes are called numbers and submission.csv has other numbers, their index; else ""."""
        if self.numeric or self.multilabel or self.answer_as == "name":
            return ""
        values = [number_of(name) for name in self.classes]
        wrong = next((k for k, value in enumerate(values) if None not in values and value != k), None)
        return (
            ""
            if wrong is None
            else f"class {self.classes[wrong]} is written as its index, {wrong}: --task.answer_as name writes the names"
        )
