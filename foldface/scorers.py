"""scikit-learn's scorers by name, and those of them that need care: few photos of a class, intervals in a moment.

    roc_auc, average_precision    of each class against all others, and the mean over the classes that the photos have
    log_loss                      scikit-learn's, of all classes of the task
    cohen_kappa[_linear, _quadratic]    over all classes of the task
    any other                     scikit-learn's scorer of this name; NAME is also found where it is called neg_NAME,
                                  as an error, where less is better

Needs no torch; scikit-learn is imported by whoever uses it.
"""

import contextlib
import functools
import re
import types
import warnings
from collections.abc import Callable

import numpy as np

from foldface.files import InputError, warn_once
from foldface.registry import register
from foldface.score import MeanOfPhotos, Score
from foldface.task import Task

SHORT = {"rmse": "root_mean_squared_error", "mse": "mean_squared_error", "mcc": "matthews_corrcoef"}
TITLES = {"root_mean_squared_error": "RMSE", "mean_squared_error": "MSE", "matthews_corrcoef": "MCC", "r2": "R2"}
OF_CLUSTERS = re.compile(r"rand_score|mutual_info|homogeneity|completeness|v_measure|fowlkes")
OF_NUMBERS = re.compile(r"_error$|_error_score$|_deviance$|^explained_variance$|^r2$")
MOST_CELLS = 10_000_000  # photos x classes x samples that scikit-learn's own functions are called for
ROWS = 64  # samples of the people that are ranked at a time


def sklearn() -> types.ModuleType:
    """The package, which takes a second to import; its parts come when they are named."""
    import sklearn

    return sklearn


# ------------------------------------------------------------------------------------------------------- rankings


class Ranking(Score):
    """A score of how the probability of a class ranks the photos: of two classes the second's, else their mean."""

    probabilities = True

    def binary(self, truth: np.ndarray, score: np.ndarray) -> float:
        """The score of one class: truth (n,) bool, score (n,) float."""
        raise NotImplementedError

    def weighted(self, true: np.ndarray, false: np.ndarray) -> np.ndarray:
        """The score of each sample, (samples,): how many photos with and without the class stand above each threshold,
        (samples, thresholds) each, the highest threshold first; NaN where one of the two has none."""
        raise NotImplementedError

    def classes(self, task: Task, target: np.ndarray) -> list[int]:
        """The classes that are ranked: those that some photos have and some don't."""
        wanted = [1] if task.size == 2 and not task.multilabel else range(task.size)
        return [k for k in wanted if 0 < task.has(target, k).sum() < len(target)]

    def value(self, task: Task, target: np.ndarray, answer: np.ndarray) -> float:
        found = [self.binary(task.has(target, k), answer[:, k]) for k in self.classes(task, target)]
        return float(np.mean(found)) if found else float("nan")

    def resampled(
        self, task: Task, target: np.ndarray, answer: np.ndarray, person: np.ndarray, n: int
    ) -> Callable[[np.ndarray], np.ndarray]:
        ranked = [
            (person[order], *thresholds(answer[order, k], task.has(target, k)[order]))
            for k in self.classes(task, target)
            for order in [np.argsort(-answer[:, k], kind="stable")]
        ]

        def scores_of(times):
            times = times.astype(np.int32)
            values = np.full((len(ranked), len(times)), np.nan)
            for row, (who, having, ends, having_at) in enumerate(ranked):
                for start in range(0, len(times), ROWS):
                    weight = times[start : start + ROWS].take(who, 1)
                    every = weight.cumsum(1, dtype=np.int32)[:, ends].astype(float)
                    true = np.zeros((len(weight), len(having) + 1))
                    weight[:, having].cumsum(1, out=true[:, 1:])
                    true = true[:, having_at]
                    with np.errstate(invalid="ignore", divide="ignore"):
                        values[row, start : start + ROWS] = self.weighted(true, every - true)
            known = ~np.isnan(values)
            return np.where(known, values, 0).sum(0) / np.where(known.any(0), known.sum(0), np.nan)

        return scores_of


def thresholds(score: np.ndarray, truth: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Where a ranking is looked at, of scores (n,) that fall and truth (n,) bool: (the photos that have the class, the
    last photo of each threshold, how many have the class up to there). Between two thresholds with photos that have the
    class all others count as one."""
    ends = np.flatnonzero(np.diff(score, append=np.nan) != 0)
    having_at = truth.cumsum()[ends]
    new = np.diff(having_at, prepend=0) > 0
    kept = new | np.append(new[1:], True)
    return np.flatnonzero(truth), ends[kept], having_at[kept]


@register("score", "roc_auc")
class RocAuc(Ranking):
    """The area under the ROC curve."""

    def binary(self, truth: np.ndarray, score: np.ndarray) -> float:
        return sklearn().metrics.roc_auc_score(truth, score)

    def weighted(self, true: np.ndarray, false: np.ndarray) -> np.ndarray:
        before = np.hstack([np.zeros((len(true), 1)), true[:, :-1]])
        steps = np.diff(false, axis=1, prepend=0)
        return (steps * (true + before) / 2).sum(1) / (true[:, -1] * false[:, -1])

    def title(self, task: Task) -> str:
        return "ROC AUC"


@register("score", "average_precision")
class AveragePrecision(Ranking):
    """The area under the precision-recall curve, as a sum of steps."""

    def binary(self, truth: np.ndarray, score: np.ndarray) -> float:
        return sklearn().metrics.average_precision_score(truth, score)

    def weighted(self, true: np.ndarray, false: np.ndarray) -> np.ndarray:
        every = true + false
        precision = np.divide(true, every, out=np.zeros_like(true), where=every > 0)
        found = (np.diff(true, axis=1, prepend=0) * precision).sum(1) / true[:, -1]
        return np.where(false[:, -1] > 0, found, np.nan)

    def title(self, task: Task) -> str:
        return "average precision"


# ------------------------------------------------------------------------------------------- means over the photos


def normalised(answer: np.ndarray) -> np.ndarray:
    """Votes (n, k) as probabilities that sum to one: float64. Rows that do so to five digits stay as they are: a
    division would part what is equal."""
    answer = np.asarray(answer, float)
    total = np.maximum(answer.sum(1, keepdims=True), 1e-300)
    return answer / np.where(abs(total - 1) < 1e-5, 1, total)


@register("score", "log_loss")
class LogLoss(MeanOfPhotos):
    """The mean of minus the log of the true class's probability, clipped as scikit-learn clips it."""

    probabilities = less_is_better = True

    def each(self, task: Task, target: np.ndarray, answer: np.ndarray) -> np.ndarray:
        if task.multilabel:  # the mean over the labels, each yes or no
            yes, answer = task.sets(target), np.asarray(answer, float)
            sure = np.where(yes, answer, 1 - answer)
            return -np.log(np.clip(sure, np.finfo(float).eps, 1)).mean(1)
        sure = normalised(answer)[np.arange(len(target)), target]
        return -np.log(np.clip(sure, np.finfo(float).eps, 1))

    def title(self, task: Task) -> str:
        return "log loss"


class TopK(MeanOfPhotos):
    """The share of photos whose true class is among the k likeliest."""

    probabilities = True

    def __init__(self, k: int):
        self.k = k

    def each(self, task: Task, target: np.ndarray, answer: np.ndarray) -> np.ndarray:
        likeliest = np.argsort(answer, axis=1, kind="mergesort")[:, ::-1][:, : self.k]  # ties as scikit-learn has them
        return (likeliest == target[:, None]).any(1).astype(float)

    def title(self, task: Task) -> str:
        return f"top-{self.k} accuracy"


# ------------------------------------------------------------------------------------------ functions of confusions


class OfConfusions(Score):
    """A score that depends on nothing but how often each class was answered as each."""

    def of_pairs(self, task: Task, target: np.ndarray, answer: np.ndarray, weight: np.ndarray) -> float:
        """The score of pairs of a true and an answered class, (p,) each, that occur `weight` (p,) times."""
        raise NotImplementedError

    def value(self, task: Task, target: np.ndarray, answer: np.ndarray) -> float:
        return self.of_pairs(task, target, answer, np.ones(len(target)))

    def resampled(
        self, task: Task, target: np.ndarray, answer: np.ndarray, person: np.ndarray, n: int
    ) -> Callable[[np.ndarray], np.ndarray]:
        pairs, pair = np.unique(np.asarray(target) * task.size + answer, return_inverse=True)
        truth, answered = pairs // task.size, pairs % task.size

        def scores_of(times):
            found = []
            for count in times:
                weight = np.bincount(pair, count[person], len(pairs))
                there = weight > 0
                found.append(self.of_pairs(task, truth[there], answered[there], weight[there]))
            return np.array(found)

        return scores_of


class CohenKappa(OfConfusions):
    """Cohen's kappa: agreement beyond chance; linear or quadratic: a miss counts by how many classes it is off."""

    def __init__(self, weights: str | None = None):
        self.weights = weights

    def of_pairs(self, task: Task, target: np.ndarray, answer: np.ndarray, weight: np.ndarray) -> float:
        labels = np.arange(task.size)
        with warnings.catch_warnings(), np.errstate(invalid="ignore", divide="ignore"):
            warnings.simplefilter("ignore")  # all photos of one class, all answered so: 0 / 0
            return float(
                sklearn().metrics.cohen_kappa_score(
                    target, answer, labels=labels, weights=self.weights, sample_weight=weight
                )
            )

    def title(self, task: Task) -> str:
        return f"{self.weights or 'Cohen'} kappa"


register("score", "cohen_kappa")(CohenKappa)
register("score", "cohen_kappa_linear")(functools.partial(CohenKappa, "linear"))
register("score", "cohen_kappa_quadratic")(functools.partial(CohenKappa, "quadratic"))


# ----------------------------------------------------------------------------------------------- all others by name


class OfSklearn(Score):
    """scikit-learn's scorer of a name: what it looks at and what is better, it says itself."""

    def __init__(self, name: str, scorer_name: str):
        self.name, self.scorer = name, sklearn().metrics.get_scorer(scorer_name)
        self.less_is_better = name != scorer_name  # neg_NAME, as NAME
        self.numbers = OF_NUMBERS.search(scorer_name) is not None
        self.probabilities = not self.numbers and self.looks_at_probabilities()

    def looks_at_probabilities(self) -> bool:
        estimator = estimator_class()(2)
        with warnings.catch_warnings(), contextlib.suppress(ValueError):  # it asks before it refuses
            warnings.simplefilter("ignore")
            self.scorer(estimator, np.eye(2)[[0, 1, 1, 0]] * 0.4 + 0.3, np.array([0, 1, 1, 0]))
        return estimator.asked == "predict_proba"

    def value(self, task: Task, target: np.ndarray, answer: np.ndarray) -> float:
        estimator = estimator_class()(task.size)
        if task.multilabel:
            target, answer = (task.sets(one).astype(int) for one in (target, answer))
        answer = normalised(answer) if self.probabilities else answer
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # a class that no photo has
                found = float(self.scorer(estimator, answer, target))
        except ValueError as error:
            warn_once(f"{self.name} can't be computed of {len(target)} photos: {' '.join(str(error).split())[:160]}")
            return float("nan")
        return -found if self.less_is_better else found

    def most_samples(self, task: Task, photos: int) -> int:
        return 1000 if not self.probabilities else min(1000, max(50, MOST_CELLS // (photos * task.size)))

    def refuse_other_answers(self, task: Task, setting: str) -> None:
        """Raise InputError where scikit-learn has no such score for as many classes as the task has."""
        target = np.tile(np.arange(task.size), 2)
        if task.multilabel:
            target = np.eye(task.size, dtype=int)[target]
            target[0] = 1
        answer = target if task.multilabel else 0.5 * np.eye(task.size)[target] + 0.5 / task.size
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                self.scorer(estimator_class()(task.size), answer if self.probabilities else target, target)
        except ValueError as error:
            raise InputError(f"{setting} {self.name}: {' '.join(str(error).split())[:300]}") from None

    def title(self, task: Task) -> str:
        return TITLES.get(SHORT.get(self.name, self.name), "")


class LabelsOfSklearn(OfSklearn, OfConfusions):
    """scikit-learn's scorer of answers: its intervals take a moment, whatever the number of photos."""

    def of_pairs(self, task: Task, target: np.ndarray, answer: np.ndarray, weight: np.ndarray) -> float:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            found = float(self.scorer(estimator_class()(task.size), answer, target, sample_weight=weight))
        return -found if self.less_is_better else found

    def value(self, task: Task, target: np.ndarray, answer: np.ndarray) -> float:
        return OfSklearn.value(self, task, target, answer)

    def resampled(
        self, task: Task, target: np.ndarray, answer: np.ndarray, person: np.ndarray, n: int
    ) -> Callable[[np.ndarray], np.ndarray]:
        how = Score if task.multilabel else OfConfusions  # of labels there are too many pairs of sets
        return how.resampled(self, task, target, answer, person, n)


@functools.cache
def estimator_class():
    """A classifier of scikit-learn's whose predictions are what it is given: probabilities (n, k) or answers (n,)."""
    base = sklearn().base

    class Told(base.ClassifierMixin, base.BaseEstimator):
        def __init__(self, size):
            self.size, self.asked = size, ""
            self.classes_ = np.arange(size or 2)  # of numbers there are none, and scikit-learn looks at the last

        def __sklearn_is_fitted__(self):
            return True

        def predict(self, answers):
            self.asked = self.asked or "predict"
            return answers

        def predict_proba(self, answers):
            self.asked = "predict_proba"
            return answers

    return Told


@functools.cache
def of_sklearn(name: str) -> Score | None:
    """scikit-learn's score of a name, None where it has none."""
    if match := re.fullmatch(r"top_(\d{1,4})_accuracy", name):
        return TopK(int(match[1]))
    if not re.fullmatch(r"[a-z]\w*", name) or OF_CLUSTERS.search(name):
        return None
    known = sklearn().metrics.get_scorer_names()
    asked = SHORT.get(name, name)
    if asked == "top_k_accuracy":
        return TopK(2)
    scorer_name = next((one for one in (asked, f"neg_{asked}") if one in known), None)
    if scorer_name is None:
        return None
    found = OfSklearn(asked, scorer_name)
    found.name = name
    return found if found.numbers or found.probabilities else LabelsOfSklearn(asked, scorer_name)


def sklearn_names() -> list[str]:
    """The names that `of_sklearn` knows."""
    known = sklearn().metrics.get_scorer_names()
    return [*SHORT, *(name.removeprefix("neg_") for name in known if not OF_CLUSTERS.search(name))]
