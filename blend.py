"""Choices made on out-of-fold predictions, and what they are worth on people that they were not made on.

A choice (weights of several runs, the answer's age boundary, a bias) is fitted to some people and scored on others,
fold by fold: what a choice gains on the rows that it was fitted to says nothing.

Shapes: m members (runs), n photos, 18 classes. Needs numpy alone.
"""

import numpy as np

import labels

ROUNDS = 40  # of hill climbing: weights are multiples of 1/40 at the finest
MOVABLE = (("age", 2), ("age", 0), ("gender", 1), ("mask", 1), ("mask", 2))  # classes with a bias, the others have none
TINY = 1e-9
STEPS = np.round(np.arange(-1.5, 1.51, 0.1), 1)  # log bias of a class, looked through one after the other


def macro_f1(target, answer):
    """Macro F1 of answers (n,) as labels.scores gives it, in a fraction of the time."""
    size = len(labels.CLASSES)
    true, told = np.bincount(target, minlength=size), np.bincount(answer, minlength=size)
    both = np.bincount(target[target == answer], minlength=size)
    seen = true + told > 0
    return float((2 * both[seen] / (true + told)[seen]).mean())


def votes(probabilities, vote):
    """(m, n, 18) probabilities -> what is averaged: themselves (soft), or an answer's vote (hard), or each class's
    rank among the photos in 0..1 (rank: members whose probabilities are not on one scale)."""
    if vote == "hard":
        answers = probabilities.argmax(2)
        return (answers[:, :, None] == np.arange(probabilities.shape[2])) + 1e-3 * probabilities
    if vote == "rank":
        return probabilities.argsort(1, kind="stable").argsort(1, kind="stable") / max(probabilities.shape[1] - 1, 1)
    return probabilities


def climb(stack, target):
    """Weights (m,) that sum to one: hill climbing with replacement on macro F1 (Caruana et al. 2004).

    stack: (m, n, 18) of `votes`; target: (n,). Member after member is added to a sum, always the one that lifts macro
    F1 the most, the same one again if need be; the best sum met on the way is kept.
    """
    counts, total = np.zeros(len(stack)), np.zeros_like(stack[0])
    best, kept = -1.0, counts
    for _ in range(ROUNDS):
        found = [macro_f1(target, (total + member).argmax(1)) for member in stack]
        pick = int(np.argmax(found))
        counts, total = counts + (np.arange(len(stack)) == pick), total + stack[pick]
        if found[pick] > best:
            best, kept = found[pick], counts
    return kept / kept.sum()


def at_boundary(probabilities, ages, boundary):
    """Probabilities (..., n, 18) with the oldest class from `boundary` years on.

    ages: (..., n, 8) labels.AGE_COLUMNS of the same members.
    """
    above = [ages[..., 1 + labels.BOUNDARIES.index(bound)] for bound in (30, boundary)]
    by_age = np.stack([1 - above[0], above[0] - above[1], above[1]], -1)
    rest = probabilities.reshape(*probabilities.shape[:-1], -1, len(labels.AGES)).sum(-1)
    return (rest[..., None] * by_age[..., None, :]).reshape(probabilities.shape)


def choose_boundary(scores_at, target):
    """The boundary of best macro F1; of equals the one nearest to 58. scores_at: {boundary: (n, 18)}."""
    return max(scores_at, key=lambda bound: (macro_f1(target, scores_at[bound].argmax(1)), -abs(bound - 58)))


def choose_bias(scores, target):
    """A log bias {(head, class): size} of best macro F1. scores: (n, 18) above 0.

    One a class of each head, not seventeen: the rare of the 18 classes are too few photos for a bias of their own.
    One after the other is looked through, three times; of equally good sizes that nearest to 0 is taken.
    """
    logs, bias = np.log(np.maximum(scores, TINY)), dict.fromkeys(MOVABLE, 0.0)
    for _ in range(3):
        before = dict(bias)
        for key in MOVABLE:
            found = [macro_f1(target, (logs + spread_bias(bias | {key: step})).argmax(1)) for step in STEPS]
            bias[key] = max(zip(found, -abs(STEPS), STEPS.tolist(), strict=True))[2]
        if bias == before:
            break
    return bias


def spread_bias(bias):
    """{(head, class): size} -> (18,)."""
    part = labels.decode(np.arange(len(labels.CLASSES)))
    return sum((size * (part[head] == k) for (head, k), size in bias.items()), np.zeros(len(labels.CLASSES)))


def nested(fit, target, part):
    """Answers (n,) of a choice, each by a choice that was made without its person.

    fit(rows) -> a function of rows that answers; rows: (n,) bool. part: (n,) which part a photo's person is in.
    """
    answer = np.empty(len(target), dtype=int)
    for k in np.unique(part):
        answer[part == k] = fit(part != k)(part == k)
    return answer


def parts_of(people, folds):
    """Which part a photo's person is in, for `nested`: the folds (n,), or, of a single fold, five parts of people."""
    if len(np.unique(folds)) > 1:
        return np.asarray(folds)
    names, person = np.unique(people, return_inverse=True)
    return np.random.default_rng(0).permutation(len(names))[person] % 5
