"""data.pseudo: photos to answer for as rows to train on, each with the answer of one fold's model, in that fold."""

import sys

import numpy as np
import pandas as pd

from foldface.data.layouts import BOX, groups_by_name
from foldface.files import InputError, read_csv
from foldface.predictions import PSEUDO_COLUMNS
from foldface.settings import Config
from foldface.task import Task


def pseudo_rows(config: Config, task: Task, photos: pd.DataFrame, by_column: bool = False) -> pd.DataFrame:
    """The rows of data.pseudo: photos to answer for, with the answer of one fold's model, for that fold alone.

    photos: dataset.eval_rows; by_column: data.group is a column of data.train. Raises InputError for a damaged row.
    """
    path = config.data.pseudo
    frame = read_csv(path, PSEUDO_COLUMNS, "pseudo_label.py writes it", numbers=task.probabilities)
    photos = photos.drop_duplicates("ImageID").set_index("ImageID")
    answer, folds, sure = (pd.to_numeric(frame[name], errors="coerce") for name in ("ans", "fold", "confidence"))
    many = config.train.folds
    end = 2**task.size if task.multilabel else task.size
    what = "a set of labels" if task.multilabel else "a class"
    answers = f"a number of {task.number.name}" if task.numeric else f"{what}, 0 to {end - 1}"
    whole = (answer >= 0) & (answer < end) & (answer % 1 == 0)
    soft = config.data.pseudo_soft and not task.numeric
    if soft and not all(name in frame for name in task.probabilities):
        raise InputError(f"{path}: data.pseudo_soft wants the probabilities p0, p1, ...: run pseudo_label.py again")
    for bad, what in (
        (~frame["ImageID"].isin(photos.index), f"is not in {config.data.eval}"),
        (~folds.isin(range(many)), f"fold is not one of the folds 0 to {many - 1}"),
        (~(np.isfinite(answer) if task.numeric else whole), f"ans is not {answers}"),
        (~sure.between(0, 1), "confidence is not between 0 and 1"),
        (pd.DataFrame({"ImageID": frame["ImageID"], "fold": folds}).duplicated(), "stands there for its fold already"),
        (
            soft and ~probable(task, frame[task.probabilities].to_numpy()),
            "p0, p1, ... are not probabilities" + " that sum to one" * (not task.multilabel),
        ),
    ):
        if np.any(bad):
            line = int(np.argmax(bad))
            raise InputError(f"{path}, row {line + 2}: {frame['ImageID'][line]}: {what}")
    heads = {head.key: -1 if head.kind == "named" else np.nan for head in task.heads}
    if task.numeric:
        heads[task.number.key] = answer.to_numpy(float)
    if task.multilabel:
        heads[task.answered[0].key] = answer.to_numpy(np.int64)
    found = pd.DataFrame(
        {
            "ImageID": frame["ImageID"],
            "photo": photos.loc[frame["ImageID"], "photo"].to_numpy(),
            "id": eval_ids(photos.loc[frame["ImageID"]].reset_index(), config.data.group, by_column),
            **heads,
            "source": "pseudo",
            "split": "",
            "label": answer if task.numeric else answer.astype(int),
            "target": -1,
            "gap": False,
            "fold": folds.astype(int),
        }
    )
    for name in BOX:
        if name in photos:
            found[name] = photos.loc[frame["ImageID"], name].to_numpy()
    return pd.concat([found, frame[task.probabilities]], axis=1) if soft else found


def once(rows: pd.DataFrame, task: Task) -> pd.DataFrame:
    """Pseudo rows of all folds with each photo once, for the final fit: the answer of most folds' models, of equally
    many that of the first fold; the median of numbers; the mean of probabilities (data.pseudo_soft)."""
    if not len(rows):
        return rows
    photo, soft = rows.groupby("ImageID")["label"], [name for name in task.probabilities if name in rows]
    if task.numeric:
        middle = photo.transform("median")
        rows = rows.assign(label=middle, **{task.number.key: middle})
    if soft:
        rows = rows.assign(**{name: rows.groupby("ImageID")[name].transform("mean") for name in soft})
    agree = rows.groupby(["ImageID", "label"])["label"].transform("size")
    most = rows.assign(agree=agree).sort_values(["agree", "fold"], ascending=[False, True], kind="stable")
    return rows.loc[most.drop_duplicates("ImageID").index.sort_values()]


def probable(task, values):
    """Which rows of (n, classes) are probabilities of a task: (n,) bool."""
    one = (values <= 1).all(1) if task.multilabel else abs(values.sum(1) - 1) < 0.01
    return np.isfinite(values).all(1) & (values >= 0).all(1) & one


def eval_ids(photos, group, by_column):
    """What photos to answer for belong to, (n,) str: what data.group says of them, else each to itself.

    photos: rows of `eval_rows`; by_column: data.group is a column of data.train.
    """
    alone = "eval/" + photos["ImageID"]
    if not group:
        return alone
    if not by_column:
        known = pd.Series(groups_by_name(group, photos["ImageID"]), photos.index)
    else:
        known = photos["id"] if "id" in photos else pd.Series("", photos.index)
    without = known == ""
    if without.any():
        print(
            f"warning: data.group {group} says nothing of {without.sum()} of {len(photos)} pseudo-labelled photos, "
            f"such as {photos['ImageID'][without].iloc[0]}: each counts as a group of its own",
            file=sys.stderr,
        )
    return known.where(~without, alone)
