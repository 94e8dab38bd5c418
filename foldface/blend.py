"""Choices made on out-of-fold predictions, and what they are worth on people that they were not made on.

A choice (weights of several runs, the answer's age boundary, a bias) is fitted to some people and scored on others,
fold by fold: what a choice gains on the rows that it was fitted to says nothing.

Shapes: m members (runs), n photos, k classes: (m, n, k), or (m, n) where the answer is a number. Needs no torch.
"""

import itertools

import numpy as np

from foldface import metrics

ROUNDS = 40  # of hill climbing: weights are multiples of 1/40 at the finest
TINY = 1e-9
STEPS = np.round(np.arange(-1.5, 1.51, 0.1), 1)  # log bias of a class, looked through one after the other


def answer_of(summed):
    """What summed votes answer: (n, k) -> the largest's class (n,); (n,) numbers are the answer themselves."""
    return summed.argmax(1) if summed.ndim == 2 else summed


def votes(probabilities, vote):
    """(m, n, k) probabilities -> what is averaged: themselves (soft), or an answer's vote (hard), or each class's
    rank among the photos in 0..1 (rank: members whose probabilities are not on one scale). Numbers stay as they are."""
    if probabilities.ndim == 2:
        return probabilities
    if vote == "hard":
        answers = probabilities.argmax(2)
        return (answers[:, :, None] == np.arange(probabilities.shape[2])) + 1e-3 * probabilities
    if vote == "rank":
        return probabilities.argsort(1, kind="stable").argsort(1, kind="stable") / max(probabilities.shape[1] - 1, 1)
    return probabilities


def climb(task, stack, target):
    """Weights (m,) that sum to one: hill climbing with replacement on the score (Caruana et al. 2004).

    stack: (m, n, k) of `votes`, or (m, n) numbers; target: (n,). Member after member is added to a sum, always the one
    that lifts the score the most, the same one again if need be; the best sum met on the way is kept.
    """
    counts, total = np.zeros(len(stack)), np.zeros_like(stack[0])
    best, kept = -np.inf, counts
    for done in range(1, ROUNDS + 1):
        share = done if task.numeric else 1  # classes don't change by a factor, numbers do
        found = [metrics.gain(task, target, answer_of((total + member) / share)) for member in stack]
        pick = int(np.argmax(found))
        counts, total = counts + (np.arange(len(stack)) == pick), total + stack[pick]
        if found[pick] > best:
            best, kept = found[pick], counts
    return kept / kept.sum()


def at_boundary(task, probabilities, numbers, boundary):
    """Probabilities (..., n, k) with the last class of the cut head from `boundary` on.

    numbers: (..., n, columns) of task.number.columns, of the same members.
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


def choose_boundary(task, scores_at, target, usual):
    """The boundary of best score; of equals the one nearest to `usual`. scores_at: {boundary: (n, k)}."""
    return max(
        scores_at, key=lambda bound: (metrics.gain(task, target, scores_at[bound].argmax(1)), -abs(bound - usual))
    )


def movable(task):
    """The (head, class) that have a bias, the rarest heads' last classes first: of each head one class has none."""
    found = []
    for head in reversed(task.answered):
        fixed = 1 if head.kind == "cut" else 0
        classes = [k for k in range(len(head.classes)) if k != fixed]
        found += [(head.name, k) for k in (reversed(classes) if head.kind == "cut" else classes)]
    return found


def choose_bias(task, scores, target):
    """A log bias {(head, class): size} of best score. scores: (n, k) above 0.

    One a class of each head, not of their product: the rare of 18 classes are too few photos for a bias of their own.
    One after the other is looked through, three times; of equally good sizes that nearest to 0 is taken.
    """
    logs, bias = np.log(np.maximum(scores, TINY)), dict.fromkeys(movable(task), 0.0)
    for _ in range(3):
        before = dict(bias)
        for key in bias:
            tried = ((logs + spread_bias(task, bias | {key: step})).argmax(1) for step in STEPS)
            found = [metrics.gain(task, target, answer) for answer in tried]
            bias[key] = max(zip(found, -abs(STEPS), STEPS.tolist(), strict=True))[2]
        if bias == before:
            break
    return bias


def spread_bias(task, bias):
    """{(head, class): size} -> (k,)."""
    part = task.decode(np.arange(task.size))
    return sum((size * (part[head] == k) for (head, k), size in bias.items()), np.zeros(task.size))


def nested(fit, target, part):
    """Answers (n,) of a choice, each by a choice that was made without its person.

    fit(rows) -> a function of rows that answers; rows: (n,) bool. part: (n,) which part a photo's person is in.
    """
    answer = np.empty_like(target)
    for k in np.unique(part):
        answer[part == k] = fit(part != k)(part == k)
    return answer


def parts_of(people, folds):
    """Which part a photo's person is in, for `nested`: the folds (n,), or, of a single fold, five parts of people."""
    if len(np.unique(folds)) > 1:
        return np.asarray(folds)
    names, person = np.unique(people, return_inverse=True)
    return np.random.default_rng(0).permutation(len(names))[person] % 5
