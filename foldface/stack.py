"""Stacking (Wolpert 1992): a model that learns answers from out-of-fold predictions and from what else is known.

Its inputs are, of each photo: the predictions of each run, columns of the user's tables, and embeddings of the runs'
networks (tools.embed). Each head has a model of its own, a logistic regression (of numbers ridge) or scikit-learn's
histogram gradient boosting; which one, how strong, and whether any beats the plain vote, is chosen by the score on
people that it was not fitted to. All of that is repeated without the people that it is scored on. Needs no torch.
"""

import warnings
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd
from sklearn.ensemble import HistGradientBoostingClassifier, HistGradientBoostingRegressor
from sklearn.exceptions import ConvergenceWarning
from sklearn.impute import SimpleImputer
from sklearn.linear_model import LogisticRegression, Ridge
from sklearn.model_selection import GroupKFold
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from foldface import blend, metrics
from foldface.data import columns
from foldface.files import InputError, quoted, read_csv
from foldface.names import number_of
from foldface.oof import OofPredictions
from foldface.settings import Config
from foldface.task import Task

STRENGTHS = (0.003, 0.03, 0.3)  # C of the logistic regression, and 1 / alpha of ridge, that are tried
INNER_FOLDS = 3  # on which the kind of model is chosen
MOST_CATEGORIES = 30  # of a column; those that are rarer count as none of them
MIN_PROBABILITY = 1e-4
MIN_GAIN = 1e-6  # of the score, by less a model does not take the place of the plain vote
EMBEDDINGS = "oof_embedding.csv", "embedding.csv"  # of the out-of-fold photos, and of those to answer for


# --------------------------------------------------------------------------------------------------- its inputs


def of_predictions(task: Task, members: np.ndarray) -> np.ndarray:
    """Predictions (m, n, k), or numbers (m, n) -> inputs (n, d): log probabilities of each head, log odds of labels."""
    if task.numeric:
        return members.T
    if task.multilabel:
        p = np.clip(members, MIN_PROBABILITY, 1 - MIN_PROBABILITY)
        return np.concatenate(list(np.log(p / (1 - p))), 1)
    parts = [part for member in members for part in task.by_head(member).values()]
    return np.log(np.maximum(np.concatenate(parts, 1), MIN_PROBABILITY))


def of_cells(known: pd.DataFrame, asked: pd.DataFrame) -> tuple[np.ndarray, np.ndarray]:
    """Columns of tables as text -> inputs (n, d) and (N, d): numbers, NaN where a cell is empty; or a column of 0 and 1
    for each category."""
    found = []
    for name in known:
        both = [frame[name].str.strip() for frame in (known, asked)]
        cells = pd.concat(both).unique()
        if all(number_of(cell) is not None for cell in cells if cell):
            found.append([pd.to_numeric(column.replace("", np.nan)).to_numpy(float)[:, None] for column in both])
        else:
            kept = both[0][both[0] != ""].value_counts().index[:MOST_CATEGORIES]
            found.append([(column.to_numpy()[:, None] == kept.to_numpy()).astype(float) for column in both])
    return tuple(np.concatenate(side, 1) for side in zip(*found, strict=True))


def read_embeddings(run: str, photos: tuple[np.ndarray, np.ndarray]) -> list[np.ndarray]:
    """The embeddings that tools.embed wrote of a run: (n, d) of the photos of oof.csv, (N, d) of those to answer for.

    photos: the ImageIDs of both. Raises InputError where there are none, or of other photos.
    """
    found = []
    for name, wanted in zip(EMBEDDINGS, photos, strict=True):
        path = Path(run) / name
        frame = read_csv(path, ["ImageID"], f"python -m tools.embed --run {quoted(run)} writes it")
        numbers = [column for column in frame if column != "ImageID"]
        frame = read_csv(path, ["ImageID"], numbers=numbers).drop_duplicates("ImageID").set_index("ImageID")
        lost = [photo for photo in wanted if photo not in frame.index]
        if lost or not np.isfinite(frame.to_numpy()).all():
            what = f"has no row of {lost[0]}" if lost else "holds what is no number"
            raise InputError(f"{path}: {what}: python -m tools.embed --run {quoted(run)} writes it again")
        found.append(frame.loc[wanted].to_numpy(float))
    return found


class Inputs(NamedTuple):
    """What is known of the n photos of oof.csv and the N to answer for: (n, d), (N, d) float, NaN = not known."""

    known: np.ndarray
    asked: np.ndarray


def inputs_of(config: Config, known: OofPredictions, runs: list[str], means: np.ndarray, ids: np.ndarray) -> Inputs:
    """The inputs that a command names. means: each run's predictions (m, N, k) for the photos `ids` (N,)."""
    parts = [[of_predictions(known.task, known.predictions), of_predictions(known.task, means)]]
    if config.columns:
        heads = {name for head in known.task.heads for name in head.table_columns}
        named = [name for name in config.columns if name in heads]
        if named:
            raise InputError(f"--columns {named[0]}: holds what is predicted: leave it out")
        cells = columns.training_cells(config, config.columns, known.photos), columns.eval_cells(config, config.columns)
        parts.append(of_cells(*cells))
    if config.embeddings:
        parts += [read_embeddings(run, (known.photos, ids)) for run in runs]
    return Inputs(*(np.concatenate(side, 1) for side in zip(*parts, strict=True)))


# --------------------------------------------------------------------------------------------------- its models


def candidates(kind: str, score: str, numeric: bool) -> list[tuple[str, object]]:
    """[(kind, an unfitted model)]. kind: linear, boosting, or auto, which is both; score: name of the task's.

    Of classes each is there twice: as they are, and with rare classes weighing as much, which macro F1 asks for.
    """
    found, trees = [], {"max_iter": 80, "learning_rate": 0.06, "max_leaf_nodes": 6, "l2_regularization": 1}
    trees |= {"early_stopping": False, "random_state": 0}
    for weight in (None,) if numeric else (None, "balanced"):
        for strength in STRENGTHS if kind != "boosting" else ():
            last = Ridge(1 / strength) if numeric else LogisticRegression(C=strength, max_iter=200, class_weight=weight)
            steps = make_pipeline(SimpleImputer(keep_empty_features=True), StandardScaler(), last)
            found.append(("linear", steps))
        if kind != "linear" and numeric:
            loss = "absolute_error" if score in ("mae", "within") else "squared_error"
            found.append(("boosting", HistGradientBoostingRegressor(loss=loss, **trees)))
        elif kind != "linear":
            found.append(("boosting", HistGradientBoostingClassifier(class_weight=weight, **trees)))
    return found


def answers_of(model, inputs: np.ndarray, size: int) -> np.ndarray:
    """A fitted model's answers: probabilities (n, size), or, where size is 0, numbers (n,)."""
    if not size:
        return model.predict(inputs)
    found = np.full((len(inputs), size), MIN_PROBABILITY)
    found[:, model.classes_] = np.maximum(model.predict_proba(inputs), MIN_PROBABILITY)
    return found / found.sum(1, keepdims=True)


class Head(NamedTuple):
    """One part of the answer: its name, target (n,), classes (0 = a number), and what the plain vote says of it."""

    name: str
    target: np.ndarray
    size: int
    plain: np.ndarray


def heads_of(task: Task, target: np.ndarray, votes: np.ndarray) -> list[Head]:
    """The parts that are learned each by itself: heads, labels, or the number. votes: (n, k) or (n,)."""
    if task.numeric:
        return [Head(task.answered[0].name, target, 0, votes)]
    if task.multilabel:
        own = task.sets(target).astype(int)
        return [
            Head(name, own[:, k], 2, np.stack([1 - votes[:, k], votes[:, k]], 1)) for k, name in enumerate(task.classes)
        ]
    truth, parts = task.decode(target), task.by_head(votes)
    return [Head(head.name, truth[head.name], len(head.classes), parts[head.name]) for head in task.answered]


def joined(task: Task, votes: np.ndarray, parts: list[np.ndarray]) -> np.ndarray:
    """Answers of all parts -> probabilities (n, k) of the task, or numbers (n,).

    votes: the plain vote, (n, k). What it says of heads together (of the mask, where the gender is male) stays: each
    head's probabilities are multiplied by what its part says over what the vote says of that head.
    """
    if task.numeric:
        return parts[0]
    if task.multilabel:
        return np.stack([part[:, 1] for part in parts], 1)
    found, own = votes + MIN_PROBABILITY / task.size, task.decode(np.arange(task.size))
    for part, (name, plain) in zip(parts, task.by_head(found).items(), strict=True):
        found = found * (part / plain)[:, own[name]]
    return found / found.sum(1, keepdims=True)


def left_out(model, inputs: np.ndarray, head: Head, parts: list) -> np.ndarray:
    """A model's answers for the photos of `head`, each fitted without the photo's person: parts, of GroupKFold."""
    predicted = np.array(head.plain, float)
    for fit, rest in parts:
        if not head.size or len(np.unique(head.target[fit])) > 1:
            predicted[rest] = answers_of(model.fit(inputs[fit], head.target[fit]), inputs[rest], head.size)
    return predicted


def fitted(task: Task, target, votes, heads: list[Head], inputs: np.ndarray, people: np.ndarray, kind: str):
    """[(kind, fitted model) of each head]; ("plain", None) where no model beats the plain vote of the head.

    All are of the same n photos: target and people (n,), votes (n, k) or (n,), inputs (n, d). A head's model is the one
    with which the whole answer has the best score, the heads before it as they were chosen, those after it as the plain
    vote has them.
    """
    inner = min(INNER_FOLDS, len(np.unique(people)))
    parts = list(GroupKFold(inner).split(inputs, groups=people)) if inner > 1 else []
    predicted, chosen = [head.plain for head in heads], []
    best = metrics.gain(task, target, blend.scored(task, joined(task, votes, predicted)))
    for place, head in enumerate(heads):
        found = "plain", None
        constant = len(np.unique(head.target)) < 2
        for name, model in [] if constant or not parts else candidates(kind, task.score, not head.size):
            mine = left_out(model, inputs, head, parts)
            gain = metrics.gain(
                task,
                target,
                blend.scored(task, joined(task, votes, [*predicted[:place], mine, *predicted[place + 1 :]])),
            )
            if gain > best + MIN_GAIN:
                best, found, kept = gain, (name, model), mine
        if found[1] is not None:
            predicted[place] = kept
            found[1].fit(inputs, head.target)
        chosen.append(found)
    return chosen


def search(
    known: OofPredictions, inputs: Inputs, kind: str, means: np.ndarray, baseline: np.ndarray
) -> np.ndarray | None:
    """Fit a stack and print what it gains over the plain vote, `baseline`, on people that it was not fitted to. Returns
    the probabilities (N, k), or numbers (N,), of the photos to answer for; None if it gains nothing.

    kind: auto, linear or boosting; means: each run's predictions for those photos, (m, N, k) or (m, N).
    """
    task, votes = known.task, known.predictions.mean(0)
    heads = heads_of(task, known.target, votes)

    def models_of(rows):
        mine = [head._replace(target=head.target[rows], plain=head.plain[rows]) for head in heads]
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ConvergenceWarning)
            return fitted(task, known.target[rows], votes[rows], mine, inputs.known[rows], known.people[rows], kind)

    def answers(models, votes, values):
        plain = heads_of(task, np.zeros(len(votes), int), votes)
        found = [
            part.plain if model is None else answers_of(model, values, part.size)
            for (_, model), part in zip(models, plain, strict=True)
        ]
        return joined(task, votes, found)

    def fit(rows):
        models = models_of(rows)
        return lambda others: answers(models, votes[others], inputs.known[others])

    scores = blend.nested(fit, known.target, known.part)
    scores = known.groups.share(scores) if known.groups else scores
    title = f"stacked on {inputs.known.shape[1]} inputs, on people not fitted to"
    if not known.log_score(blend.scored(task, scores), title, baseline):
        print("the plain vote is not beaten: it stays")
        return None
    models = models_of(np.ones(len(known.target), bool))
    if all(model is None for _, model in models):
        print("on all people together the plain vote of each head is not beaten: it stays")
        return None
    print("stacked: " + ", ".join(f"{head.name} {name}" for head, (name, _) in zip(heads, models, strict=True)))
    return answers(models, means.mean(0), inputs.asked)
