"""What a score is: the classes that all scores are made of. Needs no torch.

Targets are (n,): class indices of the task's answer, or numbers. Answers too, or the probabilities (n, k) of the k
classes, which need not sum to one: a sum of several members' votes is scored as it is.
"""

from collections.abc import Callable

import numpy as np

from foldface.task import Task


class Score:
    """One way to score answers. `value` is all that a new one needs.

    numbers: does it score numbers, not classes; less_is_better: is 0 the best, as of an error; probabilities: does it
    score the (n, k) probabilities of the classes, not the answers.
    """

    numbers = less_is_better = probabilities = False

    def value(self, task: Task, target: np.ndarray, answer: np.ndarray) -> float:
        """The score of answers (n,), or, if `probabilities`, of (n, k)."""
        raise NotImplementedError

    def title(self, task: Task) -> str:
        """The score as it is printed; "" = by its name."""
        return ""

    def most_samples(self, task: Task, photos: int) -> int:
        """How many samples of the people are drawn for an interval at most: fewer where each takes long."""
        return 1000

    def resampled(
        self, task: Task, target: np.ndarray, answer: np.ndarray, person: np.ndarray, n: int
    ) -> Callable[[np.ndarray], np.ndarray]:
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

    def sums(
        self, task: Task, target: np.ndarray, answer: np.ndarray, person: np.ndarray, n: int
    ) -> tuple[np.ndarray, np.ndarray]:
        """The numerators and denominators of each person: (n, k) float each."""
        raise NotImplementedError

    def resampled(
        self, task: Task, target: np.ndarray, answer: np.ndarray, person: np.ndarray, n: int
    ) -> Callable[[np.ndarray], np.ndarray]:
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

    def sums(
        self, task: Task, target: np.ndarray, answer: np.ndarray, person: np.ndarray, n: int
    ) -> tuple[np.ndarray, np.ndarray]:
        photos = np.bincount(person, minlength=n)[:, None].astype(float)
        return np.bincount(person, self.each(task, target, answer), n)[:, None], photos
