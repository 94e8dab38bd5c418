"""Choices fitted to out-of-fold predictions: weights of several runs, the answer's age boundary, a bias, a temperature.

A choice is scored on people that it was not fitted to, fold by fold (`nested`): a gain on the rows that it was fitted
to means nothing.

Shapes: m members (runs), n photos, k classes: (m, n, k), or (m, n) where the answer is a number. Needs no torch.
"""

import itertools
from collections.abc import Callable

import numpy as np

from foldface import metrics
from foldface.task import Task

ROUNDS = 40  # of hill climbing, so that a weight is a multiple of 1/40 at the finest
MIN_PROBABILITY = 1e-9
LEAST_WRITTEN = 5e-7  # a probability that a file, of six decimals, has as 0 may be as large
THRESHOLDS = np.round(np.arange(0.05, 0.96, 0.05), 2)  # probabilities that are tried for a label
TEMPERATURES = np.geomspace(0.2, 5, 81)  # that are tried; the middle one is 1
STEPS = np.round(np.arange(-1.5, 1.51, 0.1), 1)  # log biases that are tried for a class


def answer_of(summed: np.ndarray) -> np.ndarray:
    """Summed votes -> answers: (n, k) -> the class of the largest, (n,); numbers (n,) stay as they are."""
    return summed.argmax(1) if summed.ndim == 2 else summed


def scored(task: Task, summed: np.ndarray) -> np.ndarray:
    """Summed votes as the task's score looks at them: answers (n,), or, of a score of probabilities, (n, k)."""
    return summed if metrics.of_probabilities(task) else task.decide(summed)


def votes(probabilities: np.ndarray, vote: str) -> np.ndarray:
    """(m, n, k) probabilities -> the votes that are averaged; numbers (m, n) stay as they are.

    vote: soft = the probabilities; hard = one vote for the answer; rank = each class's rank among the photos, 0..1, for
    members whose probabilities have different scales.
    """
    if probabilities.ndim == 2:
        return probabilities
    if vote == "hard":
        answers = probabilities.argmax(2)
        return (answers[:, :, None] == np.arange(probabilities.shape[2])) + 1e-3 * probabilities
    if vote == "rank":
        return probabilities.argsort(1, kind="stable").argsort(1, kind="stable") / max(probabilities.shape[1] - 1, 1)
    return probabilities


# A vote: (task, (members, n, k) probabilities or (members, n) numbers) -> (n,) answers, or what task.score looks at.


def soft_vote(task, members: np.ndarray) -> np.ndarray:
    """The class of the largest mean probability, or the mean number."""
    return scored(task, np.mean(members, axis=0))


def rank_vote(task, members: np.ndarray) -> np.ndarray:
    """The class of the highest mean rank among the photos."""
    return scored(task, votes(np.asarray(members), "rank").mean(0))


def hard_vote(task, members: np.ndarray) -> np.ndarray:
    """The class that most members answer, or the median number.

    A tie goes to the class whose mask, gender and age, each alone, have most votes together; a further tie goes to the
    class with the larger mean probability.
    """
    if task.numeric:
        return np.median(members, axis=0)
    if metrics.of_probabilities(task):
        return votes(np.asarray(members), "hard").mean(0)
    each = np.argmax(members, axis=2)
    counts = (each[:, :, None] == np.arange(task.size)).sum(0)
    part, own = task.decode(np.arange(task.size)), task.decode(each)
    agreement = sum((own[head][:, :, None] == part[head]).sum(0) for head in part)
    # a vote counts more than all attributes of all members, an attribute more than any mean probability
    return ((counts * (len(each) * len(part) + 1) + agreement) * 2 + np.mean(members, axis=0)).argmax(1)


VOTES = {"soft": soft_vote, "hard": hard_vote, "rank": rank_vote}


def votes_without_one(task: Task, vote: str, members: np.ndarray) -> list[np.ndarray]:
    """The vote without the first member, without the second, ...: m answers (n,). members: (m, n, k) or (m, n).

    A tie of a soft vote may be decided otherwise than by soft_vote, since the sums differ in their last digit.
    """
    if vote != "soft":  # ranks and votes tie often
        return [VOTES[vote](task, np.delete(members, k, 0)) for k in range(len(members))]
    total = members.sum(0)  # all but one are the sum less that one: no pass over all members for each
    return [scored(task, (total - one) / (len(members) - 1)) for one in members]


def climb(task: Task, stack: np.ndarray, target: np.ndarray) -> np.ndarray:
    """Weights (m,) that sum to one, by hill climbing with replacement on the score (Caruana et al. 2004).

    stack: (m, n, k) of `votes`, or (m, n) numbers; target: (n,). Each round adds the member that raises the score the
    most to the sum, possibly again; the best sum of all rounds is kept.
    """
    counts, total = np.zeros(len(stack)), np.zeros_like(stack[0])
    best, kept = -np.inf, counts
    for done in range(1, ROUNDS + 1):
        share = done if task.numeric or task.multilabel else 1  # a factor changes these, but not the largest class
        found = [metrics.gain(task, target, scored(task, (total + member) / share)) for member in stack]
        pick = int(np.argmax(found))
        counts, total = counts + (np.arange(len(stack)) == pick), total + stack[pick]
        if found[pick] > best:
            best, kept = found[pick], counts
    return kept / kept.sum()


def at_boundary(task: Task, probabilities: np.ndarray, numbers: np.ndarray, boundary: float) -> np.ndarray:
    """Probabilities (..., n, k) with the last class of the head of numbers beginning at `boundary`.

    numbers: (..., n, columns), the distribution (task.number.columns) of the same members.
    """
    head = task.number
    above = [numbers[..., 1 + head.steps.index(bound)] for bound in (*head.bounds[:-1], boundary)]
    cuts = [np.ones_like(above[0]), *above, np.zeros_like(above[0])]
    by_class = np.stack([low - high for low, high in itertools.pairwise(cuts)], -1)
    axis = task.answered.index(head)
    shaped = probabilities.reshape(*probabilities.shape[:-1], *task.shape)
    at = probabilities.ndim - 1 + axis
    wide = [1] * len(task.shape)
    wide[axis] = len(head.classes)
    by_class = by_class.reshape(*by_class.shape[:-1], *wide)
    return (shaped.sum(at, keepdims=True) * by_class).reshape(probabilities.shape)


def choose_boundary(task: Task, scores_at: dict[float, np.ndarray], target: np.ndarray, usual: float) -> float:
    """The boundary with the best score; among equals the nearest to `usual`. scores_at: {boundary: (n, k)}."""
    return max(
        scores_at, key=lambda bound: (metrics.gain(task, target, scores_at[bound].argmax(1)), -abs(bound - usual))
    )


def choose_thresholds(task: Task, scores: np.ndarray, target: np.ndarray) -> np.ndarray:
    """The probability from which each label is answered, (k,), with the best score. scores: (n, k).

    They are searched one after the other, twice; among equally good ones the nearest to a half is taken.
    """
    found = np.full(task.size, 0.5)
    for _ in range(2):
        for k in range(task.size):
            tried = []
            for step in THRESHOLDS:
                found[k] = step
                tried.append((metrics.gain(task, target, task.code(scores >= found)), -abs(step - 0.5), step))
            found[k] = max(tried)[2]
    return found


def at_thresholds(scores: np.ndarray, thresholds: np.ndarray) -> np.ndarray:
    """Probabilities (n, k), bent so that each threshold (k,) comes to lie at a half; their order stays."""
    below = 0.5 * scores / thresholds
    return np.where(
        scores < thresholds,
        np.minimum(below, np.nextafter(0.5, 0)),
        0.5 + 0.5 * (scores - thresholds) / (1 - thresholds),
    )


def tempered(task: Task, scores: np.ndarray, temperature: float) -> np.ndarray:
    """Probabilities (n, k) as logits divided by a temperature give them (Guo et al. 2017): above 1 they are less sure,
    below it surer. Their order stays, of several labels a photo also the side of a half that each lies on."""
    if task.multilabel:
        both = np.stack([scores, 1 - scores], -1)
        return normalised_power(both, temperature)[..., 0]
    return normalised_power(scores, temperature)


def normalised_power(scores, temperature):
    logs = np.log(np.maximum(scores, LEAST_WRITTEN)) / temperature
    found = np.exp(logs - logs.max(-1, keepdims=True))
    return found / found.sum(-1, keepdims=True)


def choose_temperature(task: Task, scores: np.ndarray, target: np.ndarray) -> float:
    """The temperature with the least log loss. scores: (n, k); target: (n,)."""
    losses = [metrics.value(task, target, tempered(task, scores, one), "log_loss") for one in TEMPERATURES]
    return float(TEMPERATURES[int(np.argmin(losses))])


def movable(task):
    """The (head, class) pairs that get a bias, last heads and last classes first; one class of each head has none."""
    found = []
    for head in reversed(task.answered):
        fixed = 1 if head.kind == "cut" else 0
        classes = [k for k in range(len(head.classes)) if k != fixed]
        found += [(head.name, k) for k in (reversed(classes) if head.kind == "cut" else classes)]
    return found


def choose_bias(task: Task, scores: np.ndarray, target: np.ndarray) -> dict[tuple[str, int], float]:
    """The log bias {(head, class): size} with the best score. scores: (n, k) above 0.

    Each class of each head has one, not each class of the answer: the rarest of 18 classes have too few photos. The
    biases are searched one after the other, three times; among equally good sizes the nearest to 0 is taken.
    """
    logs, bias = np.log(np.maximum(scores, MIN_PROBABILITY)), dict.fromkeys(movable(task), 0.0)
    for _ in range(3):
        before = dict(bias)
        for key in bias:
            tried = ((logs + spread_bias(task, bias | {key: step})).argmax(1) for step in STEPS)
            found = [metrics.gain(task, target, answer) for answer in tried]
            bias[key] = max(zip(found, -abs(STEPS), STEPS.tolist(), strict=True))[2]
        if bias == before:
            break
    return bias


def spread_bias(task: Task, bias: dict[tuple[str, int], float]) -> np.ndarray:
    """{(head, class): size} -> the bias of each class of the answer, (k,)."""
    part = task.decode(np.arange(task.size))
    return sum((size * (part[head] == k) for (head, k), size in bias.items()), np.zeros(task.size))


def nested(
    fit: Callable[[np.ndarray], Callable[[np.ndarray], np.ndarray]], target: np.ndarray, part: np.ndarray
) -> np.ndarray:
    """Answers, (n,) or (n, k), each by a choice that was fitted without the photo's person.

    fit(rows) -> a function of rows that returns answers; rows: (n,) bool. part: (n,) the part of the photo's person.
    """
    answer = None
    for k in np.unique(part):
        mine = fit(part != k)(part == k)
        answer = np.empty((len(target), *mine.shape[1:]), mine.dtype) if answer is None else answer
        answer[part == k] = mine
    return answer


def parts_of(people: np.ndarray, folds: np.ndarray) -> np.ndarray:
    """The part of each photo's person, for `nested`: the folds (n,), or, with a single fold, five parts of people."""
    if len(np.unique(folds)) > 1:
        return np.asarray(folds)
    names, person = np.unique(people, return_inverse=True)
    return np.random.default_rng(0).permutation(len(names))[person] % 5
