"""How good answers are: scores, their spread over people (bootstrap), calibration. Needs no torch.

Targets and answers are (n,): class indices of the task's answer, or numbers. `people` are the (n,) ids of the photos:
photos of one person err together, so intervals are over people.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np

from foldface.files import InputError
from foldface.head import plain
from foldface.names import one_of
from foldface.registry import BUILT_IN, lookup, names, register
from foldface.task import Task

BINS = 15  # of the expected calibration error


class Score:
    """One way to score answers. `value` is all that a new one needs.

    numbers: does it score numbers, not classes; less_is_better: is 0 the best, as of an error; probabilities: does it
    score the (n, k) probabilities of the classes, not the answers.
    """

    numbers = less_is_better = probabilities = False

    def value(self, task: Task, target: np.ndarray, answer: np.ndarray) -> float:
        """The score of answers (n,)."""
        raise NotImplementedError

    def title(self, task: Task) -> str:
        """The score as it is printed; "" = by its name."""
        return ""

    def resampled(self, task: Task, target, answer, person, n: int) -> Callable[[np.ndarray], np.ndarray]:
        """A function of (samples, n) int, how often a sample holds each of n people, that gives each sample's score:
        (samples,) float. person: (n_photos,) index of each photo's person."""

        def scores_of(times):
            photos = np.arange(len(target))
            drawn = (np.repeat(photos, count[person]) for count in times)
            return np.array([self.value(task, target[rows], answer[rows]) for rows in drawn])

        return scores_of


class Ratio(Score):
    """A score that is the mean of k ratios, each of two sums over photos: many samples of it are a matrix product."""

    exact = False  # are the sums whole numbers? float32 holds them below 2**24, and is twice as fast

    def sums(self, task: Task, target, answer, person, n: int) -> tuple[np.ndarray, np.ndarray]:
        """The numerators and denominators of each person: (n, k) float each."""
        raise NotImplementedError

    def resampled(self, task: Task, target, answer, person, n: int) -> Callable[[np.ndarray], np.ndarray]:
        above, below = self.sums(task, target, answer, person, n)
        kind = np.float32 if self.exact and n * below.max() < 2**24 else float
        above, below = above.astype(kind), below.astype(kind)

        def scores_of(times):
            times = times.astype(kind)
            parts, wholes = (times @ above).astype(float), (times @ below).astype(float)
            ratio = np.divide(parts, wholes, out=np.zeros_like(wholes), where=wholes > 0)
            return ratio.sum(1) / (wholes > 0).sum(1)

        return scores_of


class MeanOfPhotos(Ratio):
    """A score that is a mean over photos."""

    def each(self, task: Task, target: np.ndarray, answer: np.ndarray) -> np.ndarray:
        """What each photo adds: (n,) float."""
        raise NotImplementedError

    def value(self, task: Task, target: np.ndarray, answer: np.ndarray) -> float:
        return float(self.each(task, target, answer).mean())

    def sums(self, task: Task, target, answer, person, n: int) -> tuple[np.ndarray, np.ndarray]:
        photos = np.bincount(person, minlength=n)[:, None].astype(float)
        return np.bincount(person, self.each(task, target, answer), n)[:, None], photos


@register("score", "f1")
class MacroF1(Ratio):
    """The mean over classes of F1. As in scikit-learn, a class in neither the truth nor the answers doesn't count."""

    exact = True

    def value(self, task: Task, target: np.ndarray, answer: np.ndarray) -> float:
        true, answered = np.bincount(target, minlength=task.size), np.bincount(answer, minlength=task.size)
        both = np.bincount(target[target == answer], minlength=task.size)
        seen = true + answered > 0
        return float((2 * both[seen] / (true + answered)[seen]).mean())

    def title(self, task: Task) -> str:
        return "macro F1"

    def sums(self, task: Task, target, answer, person, n: int) -> tuple[np.ndarray, np.ndarray]:
        right, size = target == answer, task.size
        true, answered, hits = (
            np.bincount(who * size + what, minlength=n * size).reshape(n, size).astype(float)
            for who, what in ((person, target), (person, answer), (person[right], target[right]))
        )
        return 2 * hits, true + answered


@register("score", "accuracy")
class Accuracy(MeanOfPhotos):
    """The share of photos that are answered right."""

    def each(self, task: Task, target: np.ndarray, answer: np.ndarray) -> np.ndarray:
        return (target == answer).astype(float)


@register("score", "mae")
class MeanAbsoluteError(MeanOfPhotos):
    """How far numbers are off, on average."""

    numbers = less_is_better = True

    def each(self, task: Task, target: np.ndarray, answer: np.ndarray) -> np.ndarray:
        return np.abs(target - answer)

    def title(self, task: Task) -> str:
        return "MAE"


@register("score", "within")
class Within(MeanOfPhotos):
    """The share of numbers that are at most task.tolerance off."""

    numbers = True

    def each(self, task: Task, target: np.ndarray, answer: np.ndarray) -> np.ndarray:
        return (np.abs(target - answer) <= task.tolerance).astype(float)

    def title(self, task: Task) -> str:
        return f"within {plain(task.tolerance)} {task.answered[0].unit}".strip()


def score_named(name: str) -> Score:
    """The score of this name. Raises InputError where there is none."""
    return lookup("score", name)()


def score_of(task: Task) -> Score:
    """The score that tells better from worse in a task. Raises InputError where it doesn't go with the answer."""
    score = score_named(task.score)
    if score.numbers != task.numeric:
        fitting = one_of([name for name in names("score") if score_named(name).numbers == task.numeric])
        kind = "a number" if task.numeric else "a class"
        raise InputError(f"task.score {task.score}: the answer is {kind}: choose {fitting}")
    return score


def of_probabilities(task: Task) -> bool:
    """Does the task's score look at probabilities, not at answers?"""
    return score_of(task).probabilities


def sign(task: Task) -> int:
    """1 where more of the task's score is better, -1 where less is."""
    return -1 if score_of(task).less_is_better else 1


def gain(task: Task, target, answer) -> float:
    """`value`, negated where less is better: the larger the better."""
    return sign(task) * value(task, target, answer)


def title(task: Task, name: str = "") -> str:
    """A score as it is printed, the task's own unless named: f1 -> macro F1, mask_f1 -> mask."""
    name = name or task.score
    if name in names("score"):
        return score_named(name).title(task) or name.replace("_", " ")
    key = name.removesuffix("_f1")
    return next((head.name for head in task.heads if head.key == key), key)


def full_title(task: Task, name: str) -> str:
    """A score as it stands at the head of a column: mask_f1 -> mask F1."""
    return title(task, name) + " F1" * name.endswith("_f1")


def score_names(task: Task) -> list[str]:
    """The names of `scores`: first the task's own, where it is of the user's."""
    found = [] if task.score in BUILT_IN["score"] else [task.score]
    if task.numeric:
        return [*found, "mae", "within"]
    return [*found, "f1", "accuracy"] + [f"{head.key}_f1" for head in task.answered] * (len(task.answered) > 1)


def scores(task: Task, target, answer) -> dict[str, float]:
    """{name: float}: macro F1 and accuracy of classes, and macro F1 of each head if several make the answer; mean
    absolute error ("mae") and the share within task.tolerance ("within") of numbers; the task's own score, if it is of
    the user's. target, answer: (n,)."""
    from sklearn.metrics import accuracy_score, f1_score, mean_absolute_error

    own = {} if task.score in BUILT_IN["score"] else {task.score: value(task, target, answer)}
    if task.numeric:
        near = np.abs(np.asarray(target) - np.asarray(answer)) <= task.tolerance
        return own | {"mae": float(mean_absolute_error(target, answer)), "within": float(near.mean())}
    result = own | {
        "f1": f1_score(target, answer, average="macro", zero_division=0),
        "accuracy": accuracy_score(target, answer),
    }
    if len(task.answered) > 1:
        truth, answered = task.decode(target), task.decode(answer)
        for head in task.answered:
            pair = truth[head.name], answered[head.name]
            result[f"{head.key}_f1"] = f1_score(*pair, average="macro", zero_division=0)
    return {name: float(found) for name, found in result.items()}


def value(task: Task, target, answer) -> float:
    """The task's score alone, in a fraction of the time that `scores` takes. target, answer: (n,)."""
    return float(score_of(task).value(task, np.asarray(target), np.asarray(answer)))


def bootstrap_scores(
    task: Task, target, answers: Sequence, people, samples: int = 1000, seed: int = 0, name: str = ""
) -> np.ndarray:
    """The score of several answers in each of `samples` samples of the people, drawn with replacement (Efron 1979).

    All answers are scored on the same samples, so that their differences may be taken. target (n,); answers: list of
    (n,); people: (n,) ids; name: of another score than the task's own. Returns (len(answers), samples) float.
    """
    _, person = np.unique(np.asarray(people, dtype=str), return_inverse=True)
    n, target, score = person.max() + 1, np.asarray(target), score_named(name) if name else score_of(task)
    rng, values = np.random.default_rng(seed), np.empty((len(answers), samples))
    resampled = [score.resampled(task, target, np.asarray(answer), person, n) for answer in answers]
    block = max(1, min(samples, 2_000_000 // n))  # samples at a time: one matrix product, within some 16 MB
    for start in range(0, samples, block):
        count = min(block, samples - start)
        drawn = rng.integers(n, size=(count, n)) + n * np.arange(count)[:, None]
        times = np.bincount(drawn.ravel(), minlength=count * n).reshape(count, n)
        for row, scores_of in enumerate(resampled):
            values[row, start : start + count] = scores_of(times)
    return values


def interval(
    task: Task, target, answer, people, samples: int = 1000, level: float = 0.95, seed: int = 0, name: str = ""
) -> tuple[float, float]:
    """The interval (low, high) of a score over `bootstrap_scores`. target, answer: (n,); people: (n,) ids."""
    found = bootstrap_scores(task, target, [answer], people, samples, seed, name)[0]
    low, high = np.quantile(found, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)


class ClassF1(NamedTuple):
    """F1 of each class with its 95 % interval over people: (k,) float each."""

    value: np.ndarray
    low: np.ndarray
    high: np.ndarray


def f1_by_class(task: Task, target: np.ndarray, answer: np.ndarray, people, samples: int = 1000) -> ClassF1:
    """F1 of each of the task's k classes. target, answer: (n,) int; people: (n,) ids."""
    _, person = np.unique(np.asarray(people, dtype=str), return_inverse=True)
    n = person.max() + 1
    above, below = MacroF1().sums(task, target, answer, person, n)
    times = np.random.default_rng(0).multinomial(n, np.full(n, 1 / n), samples).astype(float)
    found = (times @ above) / np.maximum(times @ below, 1)  # 0 in a sample where the class neither is nor is answered
    low, high = np.quantile(found, [0.025, 0.975], axis=0)
    return ClassF1(above.sum(0) / np.maximum(below.sum(0), 1), low, high)


def expected_calibration_error(confidence: np.ndarray, right: np.ndarray, bins: int = BINS) -> tuple[float, list]:
    """ECE (Naeini et al. 2015) and its bins: (error, [(mean confidence, share right, photos)]).

    confidence: (n,) float 0..1; right: (n,) 0 or 1.
    """
    place = np.minimum((confidence * bins).astype(int), bins - 1)
    rows = [
        (confidence[place == k].mean(), right[place == k].mean(), int((place == k).sum())) for k in np.unique(place)
    ]
    return sum(abs(stated - true) * count for stated, true, count in rows) / len(confidence), rows
