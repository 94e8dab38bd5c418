"""How the photos to answer for differ from those to train on: a classifier told to tell them apart.

Adversarial validation: if nothing but luck separates the two, its AUC is 0.5, and scores on folds say what the answers
will score. Above 0.7 or so something differs that a model may trip over; the most telling photos show what.

A person's photos look alike, and a classifier that has met a person knows them again. People to train on are kept
together in its own folds; who is who among the photos to answer for nobody says. So it is given few dimensions, in
which there is little to know a person by, and a yardstick is measured beside it: the AUC between two halves of the
people to train on, one half's photos taken one by one as those to answer for are. No difference looks like that, or
less: halves are half as many, and luck does more among few.
"""

import numpy as np

SIDE = 160  # pixels; at 96 other masks (N95) come to an AUC of 0.84, at 160 to 0.97
PARTS = 5  # of the cross-validation
DIMENSIONS = 16  # no difference comes to an AUC of 0.54 (0.53 to 0.55), with 64 dimensions to 0.58 (0.56 to 0.62)


def features(rows, config):
    """What a pretrained backbone (lite0) sees in photos: (n, d) float32, NaN rows for what can't be read.

    rows: DataFrame with file.
    """
    from tqdm import tqdm

    from foldface.data import loader
    from foldface.nn.features import Features

    see = Features(side=SIDE)  # lite0, whatever is trained: it always has its weights and never saw these photos
    photos, batches = loader.PhotoDataset(rows, "none", SIDE, False), loader.SeededBatchSampler(len(rows), 64)
    found, bar = [], tqdm(total=len(rows), desc="looking for differences", unit="photo", disable=None)
    with bar:
        for _, batch, errors in loader.make(photos, batches, config.data.workers):
            seen = see(batch).numpy()
            seen[[k for k, error in enumerate(errors) if error]] = np.nan
            found.append(seen)
            bar.update(len(batch))
    return np.concatenate(found)


def tell_apart(known, asked, people):
    """How well the photos to answer for can be told from those to train on, by features.

    known (n, d), asked (m, d): float features; people: (n,) ids of the known. Returns (auc, told (n + m,)): how likely
    each photo is one to answer for, by a classifier that has not seen it, nor, of the known, its person.
    """
    from sklearn.decomposition import PCA
    from sklearn.linear_model import LogisticRegression
    from sklearn.metrics import roc_auc_score
    from sklearn.model_selection import StratifiedGroupKFold, cross_val_predict
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    points, label = np.concatenate([known, asked]), np.repeat([0, 1], [len(known), len(asked)])
    points = StandardScaler().fit_transform(points)
    low = PCA(min(DIMENSIONS, *points.shape), random_state=0).fit_transform(points)
    group = np.concatenate([np.unique(people, return_inverse=True)[1], len(known) + np.arange(len(asked))])
    judge = make_pipeline(StandardScaler(), LogisticRegression(C=0.1, class_weight="balanced", max_iter=500))
    parts = StratifiedGroupKFold(PARTS, shuffle=True, random_state=0)
    told = cross_val_predict(judge, low, label, groups=group, cv=parts, method="predict_proba")[:, 1]
    return float(roc_auc_score(label, told)), told


def yardstick(known, people, rounds=3):
    """The AUC where there is no difference: between two halves of the people to train on, drawn `rounds` times,
    the mean. known (n, d) float features; people (n,) ids.
    """
    names, found = np.unique(people), []
    for seed in range(rounds):
        drawn = np.random.default_rng(seed).permutation(names)[: len(names) // 2]
        half = np.isin(people, drawn)
        found.append(tell_apart(known[half], known[~half], people[half])[0])
    return float(np.mean(found))
