"""Confident predictions -> rows to train on, each for the one fold whose model made it.

    python pseudo_label.py --run runs/sample
    python train_kfold.py --data.pseudo runs/sample/pseudo.csv --run runs/sample-2
    python pseudo_label.py --run runs/sample-2                     a second round, from the better models
    python pseudo_label.py --answers answers.csv                   where the truth is known: how many are right

Reads runs/NAME/fold{k}.csv, writes runs/NAME/pseudo.csv. Fold k's rows come from the model that never saw fold k's
people and train fold k alone, so out-of-fold scores stay honest (Lee 2013 for the method, with that care added).
"""

from pathlib import Path

import numpy as np
import pandas as pd

import args
import dataset
import labels
from files import InputError, guarded, read_csv, write_csv


def choose(frame, threshold, most):
    """The rows of one fold's predictions to believe: DataFrame of ImageID, ans, confidence, p0..p17, surest first.

    frame: a fold's CSV. threshold: least probability of the answer. most: rows a class at most, 0 = no cap. Both: a
    number, or a list of one a class.
    """
    least, caps = (np.broadcast_to(value, len(labels.CLASSES)) for value in (threshold, most))
    confidence, answer = frame[labels.PROBABILITIES].max(axis=1).astype(float), frame["ans"].to_numpy()
    kept = frame.assign(confidence=confidence)[confidence >= least[answer]].drop_duplicates("ImageID")
    kept = kept.sort_values(["confidence", "ImageID"], ascending=[False, True], kind="stable")
    cap = caps[kept["ans"]]
    kept = kept[(kept.groupby("ans").cumcount() < cap) | (cap == 0)]
    return kept[["ImageID", "ans", "confidence", *labels.PROBABILITIES]]


def tell_right(rows, path):
    """Print what share of the rows is right by a CSV of ImageID, ans: only for scoring, nothing is chosen by it."""
    truth = read_csv(path, ["ImageID", "ans"]).drop_duplicates("ImageID").set_index("ImageID")["ans"]
    known = rows[rows["ImageID"].isin(truth.index)]
    right = known["ans"].to_numpy() == pd.to_numeric(truth.loc[known["ImageID"]], errors="coerce").to_numpy()
    if not len(known):
        raise InputError(f"{path}: names none of the photos")
    print(f"right by {path}: {right.mean():.1%} of {len(known)}")
    for k, name in enumerate(labels.CLASSES):
        chosen = known["ans"].to_numpy() == k
        if chosen.any():
            print(f"  {name:22} {right[chosen].mean():6.1%} of {chosen.sum()}")


FLAGS = {"--answers": {"default": "", "help": "CSV of the true answers (ImageID, ans): say how many are right"}}


def main():
    settings = args.read_for_run(__doc__, FLAGS)
    for key in ("threshold", "max_per_class"):
        value = getattr(settings.pseudo, key)
        if isinstance(value, list) and len(value) != len(labels.CLASSES):
            raise InputError(f"pseudo.{key} lists {len(value)} numbers: give one, or one for each of the 18 classes")
    run, parts, everything = Path(settings.run), [], 0
    unreadable = run / "unreadable.csv"
    skip = set(read_csv(unreadable, ["ImageID"])["ImageID"]) if unreadable.is_file() else set()
    for fold, path in labels.fold_files(run).items():
        frame = labels.read_fold(path)
        chosen = choose(frame[~frame["ImageID"].isin(skip)], settings.pseudo.threshold, settings.pseudo.max_per_class)
        parts.append(chosen.assign(fold=fold))
        everything += len(frame)
        counts = np.bincount(chosen["ans"], minlength=len(labels.CLASSES))
        print(f"fold {fold}: {len(chosen)} of {len(frame)} photos, by class {' '.join(map(str, counts))}")
    rows = pd.concat(parts, ignore_index=True)[["ImageID", *dataset.PSEUDO_COLUMNS[1:], *labels.PROBABILITIES]]
    if rows.empty:
        raise InputError(
            f"{run}: no prediction reaches pseudo.threshold {settings.pseudo.threshold}: lower it, or train better"
        )
    write_csv(run / "pseudo.csv", rows)
    if settings.answers:
        tell_right(rows, settings.answers)
    print(
        f"{len(rows)} of {everything} predictions kept: {run}/pseudo.csv; "
        f"next: python train_kfold.py --data.pseudo {run}/pseudo.csv --run {run}-2"
    )


if __name__ == "__main__":
    guarded(main)
