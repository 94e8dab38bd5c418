"""Adversarial validation: how well a classifier separates the photos to predict from those to train on.

Where the two don't differ its AUC is about 0.5, and scores on folds hold for the predictions. Above about 0.7 something
differs that a model may fail on; the most typical photos of each side show what.

Photos of one person look alike, so a classifier could recognise people. The people to train on are kept together in its
folds; the people among the photos to predict are unknown. So it gets few dimensions, too few to recognise a person by,
and `baseline_auc` measures the AUC between two halves of the people to train on, one of them treated photo by photo
like the photos to predict. Without a difference the AUC is like that or lower, since chance does more in halves.
"""

import numpy as np
import pandas as pd
from sklearn.decomposition import PCA
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score
from sklearn.model_selection import StratifiedGroupKFold, cross_val_predict
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from tqdm import tqdm

from foldface import devices
from foldface.data import loader
from foldface.nn.features import Features

SIDE = 160  # pixels; figures for SIDE and DIMENSIONS: docs/log.md
CV_FOLDS = 5
DIMENSIONS = 16  # of the features after PCA


def extract_features(rows: pd.DataFrame, config) -> np.ndarray:
    """Features of photos by a pretrained backbone (lite0), (n, d) float32; NaN rows for photos that can't be read.

    rows: DataFrame with the column file. Several processes (torchrun) share the batches; each gets all features.
    """
    extract = Features(side=SIDE)  # lite0 for every run: its weights are installed, and it never saw these photos
    photos, batches = loader.PhotoDataset(rows, "none", SIDE, False), loader.SeededBatchSampler(len(rows), 64)
    ranks = devices.join_ranks(config)
    batches.take(ranks.share(batches.steps))
    found, bar = [], tqdm(total=sum(map(batches.size, batches.steps)), desc="features", unit="photo", disable=None)
    with bar:
        for _, batch, errors in loader.make(photos, batches, config.data.workers):
            values = extract(batch).numpy()
            values[[k for k, error in enumerate(errors) if error]] = np.nan
            found.append(values)
            bar.update(len(batch))
    return np.concatenate(ranks.gather(found))


def separate(train: np.ndarray, eval_: np.ndarray, people: np.ndarray) -> tuple[float, np.ndarray]:
    """Classify features as of training or evaluation photos: (AUC, probability of evaluation of each photo, (n + m,)).

    train (n, d), eval_ (m, d): float features; people: (n,) ids of the training photos. Each photo is classified by a
    model that was not trained on it, nor on its person.
    """
    points, label = np.concatenate([train, eval_]), np.repeat([0, 1], [len(train), len(eval_)])
    points = StandardScaler().fit_transform(points)
    low = PCA(min(DIMENSIONS, *points.shape), random_state=0).fit_transform(points)
    group = np.concatenate([np.unique(people, return_inverse=True)[1], len(train) + np.arange(len(eval_))])
    classifier = make_pipeline(StandardScaler(), LogisticRegression(C=0.1, class_weight="balanced", max_iter=500))
    folds = StratifiedGroupKFold(CV_FOLDS, shuffle=True, random_state=0)
    scores = cross_val_predict(classifier, low, label, groups=group, cv=folds, method="predict_proba")[:, 1]
    return float(roc_auc_score(label, scores)), scores


def baseline_auc(train: np.ndarray, people: np.ndarray, rounds: int = 3) -> float:
    """The mean AUC between two random halves of the people to train on, drawn `rounds` times.

    train: (n, d) float features; people: (n,) ids.
    """
    halves = [half_of_people(people, seed) for seed in range(rounds)]
    return float(np.mean([separate(train[half], train[~half], people[half])[0] for half in halves]))


def half_of_people(people: np.ndarray, seed: int) -> np.ndarray:
    """True for the photos of half of the people, drawn at random: (n,) ids -> (n,) bool."""
    names = np.unique(people)
    return np.isin(people, np.random.default_rng(seed).permutation(names)[: len(names) // 2])
