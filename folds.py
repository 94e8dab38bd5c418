"""Rows -> folds: people dealt evenly, identical photos kept together, leaks refused, what each fold holds shown.

    python train_kfold.py --train.only_folds []      make and show the folds, train nothing

Adds to the rows of dataset.py:

    twin     number that byte-identical photos share
    fold     the fold that validates the row (train), that alone trains it (pseudo), or -1 (extra)

Nothing here imports torch.
"""

import os
from pathlib import Path

import numpy as np
import pandas as pd

import dataset
import labels
from files import InputError, read_csv, write_csv

FOLD_COLUMNS = ["id", "fold"]


def twins(rows):
    """Number the rows so that byte-identical photos, and only they, share a number: (n,) int64.

    The manifest's sha1 is used where there is one. Else sizes and a block from the middle tell nearly all apart, and
    only what agrees in both is read whole: 18,900 photos take about a second instead of a minute.
    """
    import hashlib

    def digest(photo):
        return hashlib.sha1(Path(photo).read_bytes()).hexdigest()

    def glimpse(photo):
        with open(photo, "rb") as file:
            size = file.seek(0, os.SEEK_END)
            file.seek(size // 2)
            return size, file.read(64)

    photos = rows["photo"].to_numpy()
    if "sha1" in rows:
        keys = rows["sha1"].where(rows["sha1"] != "", rows["photo"]).to_numpy()
    else:
        keys, met = np.empty(len(rows), dtype=object), {}
        for index, photo in enumerate(photos):
            try:
                keys[index] = glimpse(photo)
            except OSError:
                keys[index] = ("unreadable", photo)
            met.setdefault(keys[index], []).append(index)
        for same in met.values():
            for index in same if len(same) > 1 else []:
                keys[index] = digest(photos[index])
    return pd.factorize(pd.Series(keys, dtype=object))[0]


def groups(rows):
    """Number the rows so that all photos of a person, and of people with an identical photo, share a number."""
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import connected_components

    person = pd.factorize(rows["id"])[0]
    twin = pd.factorize(rows["twin"])[0] + person.max() + 1
    size = int(twin.max()) + 1
    links = coo_array((np.ones(len(rows), np.int8), (person, twin)), shape=(size, size))
    return connected_components(links, directed=False)[1][person]


def deal(people, folds, splitter, seed):
    """Deal people into folds, every stratum spread evenly.

    people: DataFrame of `group` (int, one row each) and `stratum`. Returns the fold of each row, (n,) int64.
    """
    rng = np.random.default_rng(seed)
    fold = np.full(len(people), folds - 1)
    if splitter == "sklearn":
        import warnings

        from sklearn.model_selection import StratifiedKFold

        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # a class with fewer people than folds; the table shows it
            dealer = StratifiedKFold(folds, shuffle=True, random_state=seed)
            try:
                for k, (_, members) in enumerate(dealer.split(people, people["stratum"])):
                    fold[members] = k
            except ValueError as error:
                raise InputError(f"data.splitter sklearn: {error}; use pandas_streaming or fewer train.folds") from None
        return fold
    from pandas_streaming.df import train_test_apart_stratify

    # train_test_apart_stratify takes the first groups of each stratum in sorted order, whatever its random_state:
    # numbering the groups at random is what makes a seed mean something
    rest = people.assign(number=rng.permutation(len(people)), at=np.arange(len(people)))
    for k in range(folds - 1):
        rest, taken = train_test_apart_stratify(
            rest, group="number", stratify="stratum", test_size=1 / (folds - k), sorted_indices=True
        )
        fold[taken["at"]] = k
    return fold


def assign_folds(rows, settings):
    """Add `fold` to rows: made once and written to folds.csv, then read from there. Raises InputError on a mismatch."""
    path, train = Path(settings.run) / "folds.csv", rows["source"] == "train"
    rows = rows.copy()
    if "fold" not in rows:
        rows["fold"] = -1
    rows["fold"] = rows["fold"].fillna(-1).astype(int)
    if not path.is_file():
        own = rows[train].assign(group=groups(rows[train]))
        people = own.drop_duplicates("group")
        stratum = people["gender"] * len(labels.AGES) + labels.age_class(people["age"])
        people = people.assign(stratum=stratum)[["group", "stratum"]].sort_values("group", ignore_index=True)
        if len(people) < settings.train.folds:
            raise InputError(
                f"{settings.data.train}: {len(people)} people can't be dealt into train.folds = "
                f"{settings.train.folds} folds"
            )
        dealt = deal(people, settings.train.folds, settings.data.splitter, settings.seed)
        own["fold"] = dealt[own["group"]]
        write_csv(path, own[["id", "fold"]].drop_duplicates("id"))
    frame = read_csv(path, FOLD_COLUMNS)
    if frame["id"].duplicated().any():
        raise InputError(f"{path}: person {frame['id'][frame['id'].duplicated()].iloc[0]} stands there twice")
    known = dict(zip(frame["id"], pd.to_numeric(frame["fold"], errors="coerce"), strict=True))
    fold = rows.loc[train, "id"].map(known)
    if fold.isna().any():
        person = rows.loc[train, "id"][fold.isna()].iloc[0]
        raise InputError(
            f"{path}: person {person} of {settings.data.train} has no fold there: the data changed since "
            "the folds were made; begin a new --run"
        )
    if fold.max() >= settings.train.folds:
        raise InputError(f"{path}: was made for {int(fold.max()) + 1} folds, train.folds is {settings.train.folds}")
    rows.loc[train, "fold"] = fold.astype(int)
    return rows


def split(rows, fold):
    """(rows to train on, rows to validate on) of a fold; extra rows train every fold, pseudo rows their own alone.

    Ages near a boundary (data.age_gap) are left out of training, never of validation.
    """
    mine = rows["fold"] == fold
    source = rows["source"]
    training = ((source == "train") & ~mine) | (source == "extra") | ((source == "pseudo") & mine)
    training &= ~rows["gap"]
    return rows[training].reset_index(drop=True), rows[(source == "train") & mine].reset_index(drop=True)


def refuse_leaks(training, validation):
    """The gate: raise InputError if a person, or a byte-identical photo, is on both sides of a split."""
    both = set(training["id"]) & set(validation["id"])
    if both:
        person = min(both)
        sources = "/".join(sorted(set(training["source"][training["id"] == person])))
        raise InputError(
            f"leak: person {person} is validated on and also trained on ({sources} rows); "
            f"{len(both)} such people: take them out of one side"
        )
    seen = training["twin"].isin(validation["twin"])
    if seen.any():
        row = training[seen].iloc[0]
        twin = validation[validation["twin"] == row["twin"]].iloc[0]
        raise InputError(
            f"leak: {row['photo']} ({row['source']}) is trained on and, byte for byte, the photo "
            f"{twin['photo']} that is validated on; {int(seen.sum())} such photos: take them out of one side"
        )


def refuse_other_folds(settings):
    """Raise InputError unless the pseudo labels come from models of the same folds: else they have seen validation."""
    if not settings.data.pseudo:
        return
    theirs, ours = Path(settings.data.pseudo).with_name("folds.csv"), Path(settings.run) / "folds.csv"
    before, now = (
        read_csv(path, FOLD_COLUMNS, "pseudo labels are only safe beside the folds that made them")
        for path in (theirs, ours)
    )
    if not before.sort_values("id", ignore_index=True).equals(now.sort_values("id", ignore_index=True)):
        raise InputError(
            f"leak: {settings.data.pseudo} was made with the folds of {theirs}, {ours} has others, so its "
            f"labels have seen people that are validated on: copy {theirs} to {ours} in a new --run"
        )
    refuse_other_models(settings.data.pseudo)


def refuse_other_models(path):
    """Raise InputError where a pseudo label for fold k is not what fold k's own model answered: the others have seen
    the people whom fold k validates on. Nothing is said of folds whose predictions don't lie beside the labels."""
    rows = read_csv(path, dataset.PSEUDO_COLUMNS, numbers=labels.PROBABILITIES)
    for fold, mine in rows.groupby("fold"):
        beside = Path(path).with_name(f"fold{int(float(fold))}.csv")
        if not beside.is_file() or labels.PROBABILITIES[0] not in rows:
            print(f"warning: {path}: whether its labels are fold {fold}'s own can't be checked without {beside}")
            continue
        frame = labels.read_fold(beside).drop_duplicates("ImageID").set_index("ImageID")
        known = frame.reindex(mine["ImageID"])[labels.PROBABILITIES].to_numpy()
        other = ~(abs(known - mine[labels.PROBABILITIES].to_numpy()) < 2e-6).all(1)
        if other.any():
            row = mine[other].iloc[0]
            raise InputError(
                f"leak: {path}, row {row.name + 2}: {row['ImageID']} is to train fold {fold}, but that is not what "
                f"{beside} says of it ({int(other.sum())} such rows): another model made it, which has seen the "
                f"people that fold {fold} validates on; run pseudo_label.py again"
            )


def start_run(settings):
    """The folder of the run that model.start names: a path, or a run beside this one."""
    start = Path(settings.model.start)
    return start if len(start.parts) > 1 else Path(settings.run).parent / start


def refuse_seen_weights(rows, settings):
    """Raise InputError where a fold would start from weights that were trained on people whom it validates on.

    A run's fold k has seen all people of its folds.csv but those of fold k.
    """
    start, pretrained = settings.model.start, settings.model.pretrained
    if start:
        home = start_run(settings)
        given = {k: home / f"fold{k}" for k in range(settings.train.folds)}
    elif isinstance(pretrained, str) and Path(pretrained).name == "best.safetensors":
        home = Path(pretrained).parent.parent
        given = dict.fromkeys(range(settings.train.folds), Path(pretrained).parent)
    else:
        return
    if not (home / "folds.csv").is_file():
        if start:
            raise InputError(f"model.start {start}: {home} is no run of ours, it has no folds.csv")
        return
    theirs = read_csv(home / "folds.csv", FOLD_COLUMNS)
    wanted = range(settings.train.folds) if settings.train.only_folds is None else settings.train.only_folds
    for k in wanted:
        seen = set(theirs["id"][theirs["fold"] != given[k].name.removeprefix("fold")])
        both = seen & set(split(rows, k)[1]["id"])
        if both:
            raise InputError(
                f"leak: fold {k} would start from {given[k]}, which was trained on person {min(both)} and "
                f"{len(both) - 1} more whom fold {k} validates on: each fold may start from its own (--model.start)"
            )


def fold_table(rows, folds):
    """What each fold holds, as lines of text: photos, people, and people of each gender and age class."""
    people = rows[rows["source"] == "train"].drop_duplicates("id")
    stratum = people["gender"] * len(labels.AGES) + labels.age_class(people["age"])
    names = [f"{gender[0]} {age}" for gender in labels.GENDERS for age in labels.AGES]
    lines = ["fold  photos  people  " + "".join(f"{name:>8}" for name in names)]
    for k in range(folds):
        counts = np.bincount(stratum[people["fold"] == k], minlength=len(names))
        photos = int(((rows["source"] == "train") & (rows["fold"] == k)).sum())
        lines.append(f"{k:4}{photos:8}{int(counts.sum()):8}  " + "".join(f"{count:8}" for count in counts))
    for source in ("extra", "pseudo"):
        count = int((rows["source"] == source).sum())
        if count:
            lines.append(
                f"{source}: {count} rows, trained on " + ("in every fold" if source == "extra" else "each in its fold")
            )
    return "\n".join(lines)


def prepare(settings):
    """Rows with files, twins and folds, checked and shown: all that a training script needs.

    Writes folds.csv, and rejected.csv if anything was left out.
    """
    rows, problems = dataset.training_rows(settings)
    rows = dataset.with_files(rows, settings.data.crops)
    rows["twin"] = twins(rows)
    rows = assign_folds(rows, settings)
    refuse_other_folds(settings)
    refuse_seen_weights(rows, settings)
    masks = [labels.MASKS.index(name) for name in settings.data.masks]
    rows = rows[np.isin(labels.decode(rows["label"])["mask"], masks)]
    for k in range(settings.train.folds):
        refuse_leaks(*split(rows, k))
    if settings.train.only_folds != []:
        rows = dataset.drop_unreadable(rows, settings, problems)
    if problems.rows:
        path = Path(settings.run) / "rejected.csv"
        write_csv(path, pd.DataFrame(problems.rows).astype({"row": "Int64"}))
        print(f"{len(problems.rows)} rows or photos are left out: see {path}")
    print(fold_table(rows, settings.train.folds))
    return rows
