"""How good answers are: scores, their spread over people (bootstrap), calibration. Needs no torch.

Targets are (n,): class indices of the task's answer, or numbers. Answers too, or the probabilities (n, k) of its
classes, of which the scores of answers take the largest. `people` are the (n,) ids of the photos:
photos of one person err together, so intervals are over people.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike

from foldface import scorers
from foldface.files import InputError
from foldface.head import plain
from foldface.names import one_of
from foldface.registry import lookup, names, refuse_unknown, register
from foldface.score import MeanOfPhotos, Ratio, Score
from foldface.task import Task

BINS = 15  # of the expected calibration error


def macro_f1(target: np.ndarray, answer: np.ndarray, size: int) -> float:
    """The mean of F1 over those of `size` classes that are in the truth or the answers, (n,) int each."""
    true, answered = np.bincount(target, minlength=size), np.bincount(answer, minlength=size)
    both = np.bincount(target[target == answer], minlength=size)
    seen = true + answered > 0
    return float((2 * both[seen] / (true + answered)[seen]).mean())


@register("score", "f1")
class MacroF1(Ratio):
    """The mean over classes of F1. As in scikit-learn, a class in neither the truth nor the answers doesn't count."""

    exact = True

    def value(self, task: Task, target: np.ndarray, answer: np.ndarray) -> float:
        if task.multilabel:
            above, below = self.sums(task, target, answer, np.zeros(len(target), int), 1)
            return float((above[below > 0] / below[below > 0]).mean()) if below.any() else 0.0
        return macro_f1(target, answer, task.size)

    def title(self, task: Task) -> str:
        return "macro F1"

    def sums(
        self, task: Task, target: np.ndarray, answer: np.ndarray, person: np.ndarray, n: int
    ) -> tuple[np.ndarray, np.ndarray]:
        if task.multilabel:
            truth, predicted = task.sets(target), task.sets(answer)
            true, answered, hits = (
                np.stack([np.bincount(person, column, n) for column in labels.T.astype(float)], 1)
                for labels in (truth, predicted, truth & predicted)
            )
            return 2 * hits, true + answered
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
    """The score of this name: ours, the user's or scikit-learn's. Raises InputError where there is none."""
    refuse_unknown_score(name, "score")
    return lookup("score", name)() if name in names("score") else scorers.of_sklearn(name)


def refuse_unknown_score(name: str, setting: str) -> None:
    """Raise InputError for a name that is no score of ours, the user's or scikit-learn's."""
    if name not in names("score") and scorers.of_sklearn(name) is None:
        refuse_unknown("score", name, setting, scorers.sklearn_names(), "and scikit-learn's scorers")


def fitting(task: Task, name: str, setting: str = "task.score") -> Score:
    """The score of this name. Raises InputError where it doesn't go with the task's answer."""
    score = score_named(name)
    if score.numbers != task.numeric:
        ours = one_of([one for one in names("score") if score_named(one).numbers == task.numeric], most=20)
        kind = "a number" if task.numeric else "a class"
        raise InputError(f"{setting} {name}: the answer is {kind}: choose {ours}")
    if task.multilabel and (isinstance(score, (scorers.CohenKappa, scorers.TopK)) or (
        isinstance(score, scorers.OfSklearn) and score.probabilities
    )):  # fmt: skip
        raise InputError(f"{setting} {name} is for one class a photo: choose f1, accuracy, roc_auc, average_precision, "
                         "log_loss, f1_samples, f1_micro, jaccard_samples, ...")  # fmt: skip
    if task.size and isinstance(score, scorers.OfSklearn):
        score.refuse_other_answers(task, setting)
    return score


def score_of(task: Task) -> Score:
    """The score that tells better from worse in a task. Raises InputError where it doesn't go with the answer."""
    return fitting(task, task.score)


def of_probabilities(task: Task, name: str = "") -> bool:
    """Does a score, the task's own unless named, look at probabilities, not at answers?"""
    return score_named(name or task.score).probabilities


def seen_by(task: Task, score: Score, answer: ArrayLike) -> np.ndarray:
    """What a score looks at: probabilities (n, k) as they are, or the answers (n,) that they make."""
    answer = np.asarray(answer)
    return answer if score.probabilities else task.decide(answer)


def sign(task: Task) -> int:
    """1 where more of the task's score is better, -1 where less is."""
    return -1 if score_of(task).less_is_better else 1


def worth(task: Task, found: float) -> float:
    """A score as a number of which more is better; what can't be scored (NaN) is worth the least."""
    return -np.inf if np.isnan(found) else sign(task) * found


def gain(task: Task, target: ArrayLike, answer: ArrayLike) -> float:
    """`value`, negated where less is better: the larger the better."""
    return worth(task, value(task, target, answer))


def title(task: Task, name: str = "") -> str:
    """A score as it is printed, the task's own unless named: f1 -> macro F1, mask_f1 -> mask."""
    name = name or task.score
    of_heads = {f"{head.key}_f1": head.name for head in task.heads}
    if name in of_heads and name not in names("score"):
        return of_heads[name]
    return score_named(name).title(task) or name.replace("_", " ")


def full_title(task: Task, name: str) -> str:
    """A score as it stands at the head of a column: mask_f1 -> mask F1."""
    return title(task, name) + " F1" * name.endswith("_f1")


def usual_names(task: Task) -> list[str]:
    """The names of the scores that every task of this kind has."""
    if task.numeric:
        return ["mae", "within"]
    return ["f1", "accuracy"] + [f"{head.key}_f1" for head in task.answered] * (len(task.answered) > 1)


def score_names(task: Task) -> list[str]:
    """The names of `scores`: first the task's own and those of task.reported, where they are not among the usual."""
    usual = usual_names(task)
    return [*(name for name in own_names(task) if name not in usual), *usual]


def own_names(task: Task) -> list[str]:
    """The score that decides, and those that task.reported names: all have an interval."""
    return list(dict.fromkeys([task.score, *task.reported]))


def training_names(task: Task) -> list[str]:
    """The first two scores that answers (n,) are enough for: what is said of the training photos."""
    usual = usual_names(task)
    return [name for name in score_names(task) if name in usual or not of_probabilities(task, name)][:2]


def scores(task: Task, target: ArrayLike, answer: ArrayLike) -> dict[str, float]:
    """{name: float} of `score_names`: macro F1 and accuracy of classes, and macro F1 of each head if several make the
    answer; mean absolute error ("mae") and the share within task.tolerance ("within") of numbers; the task's own, and
    those of task.reported. target (n,); answer (n,), or the probabilities (n, k), without which the scores of
    probabilities are left out."""
    target, answer, result = np.asarray(target), np.asarray(answer), {}
    usual = usual_names(task)
    for name in score_names(task):
        if name in ("f1", "accuracy", "mae", "within") or name not in usual:
            score = score_named(name)
            if answer.ndim == 2 or not score.probabilities:
                result[name] = score.value(task, target, seen_by(task, score, answer))
    if not task.numeric and len(task.answered) > 1:
        truth, answered = task.decode(target), task.decode(answer.argmax(1) if answer.ndim == 2 else answer)
        for head in task.answered:
            result[f"{head.key}_f1"] = macro_f1(truth[head.name], answered[head.name], len(head.classes))
    return {name: float(found) for name, found in result.items()}


def value(task: Task, target: ArrayLike, answer: ArrayLike, name: str = "") -> float:
    """The task's score alone, or the one named, in a fraction of the time that `scores` takes. target (n,); answer (n,)
    or (n, k)."""
    score = score_named(name) if name else score_of(task)
    return float(score.value(task, np.asarray(target), seen_by(task, score, answer)))


def bootstrap_scores(
    task: Task,
    target: ArrayLike,
    answers: Sequence,
    people: ArrayLike,
    samples: int = 1000,
    seed: int = 0,
    name: str | Score = "",
) -> np.ndarray:
    """The score of several answers in each of `samples` samples of the people, drawn with replacement (Efron 1979).

    All answers are scored on the same samples, so that their differences may be taken. target (n,); answers: list of
    (n,), or of probabilities (n, k); people: (n,) ids; name: another score than the task's own, or its
    name. Returns (len(answers), samples) float, NaN where a sample can't be scored.
    """
    _, person = np.unique(np.asarray(people, dtype=str), return_inverse=True)
    n, target = person.max() + 1, np.asarray(target)
    score = name if isinstance(name, Score) else score_named(name) if name else score_of(task)
    samples = min(samples, score.most_samples(task, len(target)))
    rng, values = np.random.default_rng(seed), np.empty((len(answers), samples))
    resampled = [score.resampled(task, target, seen_by(task, score, answer), person, n) for answer in answers]
    block = max(1, min(samples, 2_000_000 // n))  # samples at a time: one matrix product, within some 16 MB
    for start in range(0, samples, block):
        count = min(block, samples - start)
        drawn = rng.integers(n, size=(count, n)) + n * np.arange(count)[:, None]
        times = np.bincount(drawn.ravel(), minlength=count * n).reshape(count, n)
        for row, scores_of in enumerate(resampled):
            values[row, start : start + count] = scores_of(times)
    return values


def quantiles(values: ArrayLike, ends: Sequence[float] = (0.025, 0.975)) -> np.ndarray:
    """Quantiles of the values that are numbers; NaN where none is."""
    values = np.asarray(values)[~np.isnan(values)]
    return np.quantile(values, ends) if len(values) else np.full(len(ends), np.nan)


def interval(
    task: Task,
    target: ArrayLike,
    answer: ArrayLike,
    people: ArrayLike,
    samples: int = 1000,
    level: float = 0.95,
    seed: int = 0,
    name: str = "",
) -> tuple[float, float]:
    """The interval (low, high) of a score over `bootstrap_scores`. target, answer: (n,); people: (n,) ids."""
    found = bootstrap_scores(task, target, [answer], people, samples, seed, name)[0]
    low, high = quantiles(found, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)


class ClassF1(NamedTuple):
    """F1 of each class with its 95 % interval over people: (k,) float each."""

    value: np.ndarray
    low: np.ndarray
    high: np.ndarray


def f1_by_class(task: Task, target: np.ndarray, answer: np.ndarray, people: ArrayLike, samples: int = 1000) -> ClassF1:
    """F1 of each of the task's k classes. target, answer: (n,) int; people: (n,) ids."""
    _, person = np.unique(np.asarray(people, dtype=str), return_inverse=True)
    n = person.max() + 1
    above, below = MacroF1().sums(task, target, answer, person, n)
    times = np.random.default_rng(0).multinomial(n, np.full(n, 1 / n), samples).astype(float)
    found = (times @ above) / np.maximum(times @ below, 1)  # 0 in a sample where the class neither is nor is answered
    low, high = np.quantile(found, [0.025, 0.975], axis=0)
    return ClassF1(above.sum(0) / np.maximum(below.sum(0), 1), low, high)


def confidences(task: Task, target: np.ndarray, probabilities: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(confidence (n,), right (n,) 0 or 1) of answers by probabilities (n, k); of several labels a photo, of each
    label of each photo."""
    if task.multilabel:
        right = (probabilities >= 0.5) == task.sets(target)
        return np.maximum(probabilities, 1 - probabilities).ravel(), right.ravel().astype(float)
    return probabilities.max(1), (probabilities.argmax(1) == target).astype(float)


def expected_calibration_error(confidence: np.ndarray, right: np.ndarray, bins: int = BINS) -> tuple[float, list]:
    """ECE (Naeini et al. 2015) and its bins: (error, [(mean confidence, share right, photos)]).

    confidence: (n,) float 0..1; right: (n,) 0 or 1.
    """
    place = np.minimum((confidence * bins).astype(int), bins - 1)
    rows = [
        (confidence[place == k].mean(), right[place == k].mean(), int((place == k).sum())) for k in np.unique(place)
    ]
    return sum(abs(stated - true) * count for stated, true, count in rows) / len(confidence), rows
