"""Rows -> folds: people dealt evenly, identical photos kept together, leaks refused, what each fold holds shown.

    python train_kfold.py --train.only_folds []      make and show the folds, train nothing

Adds to the rows of dataset.py:

    twin     number that byte-identical photos share
    near     number that photos share which look nearly the same (data.duplicates)
    linked   number that all photos of a group share, whatever their source: those of one id, and of ids that a twin or
             a near photo links
    fold     the fold that validates the row (train), that alone trains it (pseudo), -1 (extra, and rows that a given
             split only trains) or -2 (test: put aside)

Nothing here imports torch.
"""

import hashlib
import os
import warnings
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd
from scipy.sparse import coo_array, csgraph

from foldface.data.iterative import splitter_of
from foldface.data.problems import Problems
from foldface.files import InputError, read_csv, refuse_special, write_csv
from foldface.names import folded
from foldface.registry import lookup, register
from foldface.scorers import sklearn
from foldface.settings import Config
from foldface.task import Task

FOLD_COLUMNS = ["id", "fold"]
RECORD = "data.json"  # of a run: what its data was like (`identity`), its folds, who was trained on beside them
TRAIN_ONLY_FOLD, TEST_FOLD = -1, -2  # folds of rows that every fold trains, and of the test set
UNEVEN = 0.01  # of a fold's share of the people: folds may differ by so many, or by one


def twins(rows: pd.DataFrame) -> np.ndarray:
    """Number the rows so that byte-identical photos, and only they, share a number: (n,) int64.

    The manifest's sha1 is used where there is one. Else sizes and a block from the middle tell nearly all apart, and
    only what agrees in both is read whole: 18,900 photos take about a second instead of a minute.
    """

    def middle_block(photo):
        refuse_special(photo)
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
                keys[index] = middle_block(photo)
            except OSError:
                keys[index] = ("unreadable", photo)
            met.setdefault(keys[index], []).append(index)
        for same in met.values():
            for index in same if len(same) > 1 else []:
                keys[index] = digest(photos[index]) or ("unreadable", photos[index])
    return pd.factorize(pd.Series(keys, dtype=object))[0]


def digest(photo):
    """sha1 of a photo's bytes, "" if they can't be read."""
    try:
        return hashlib.sha1(Path(photo).read_bytes()).hexdigest()
    except OSError:  # it vanished just now
        return ""


def digests(rows: pd.DataFrame) -> np.ndarray:
    """sha1 of the bytes of each row's photo: (n,) str, "" where it is not known. The manifest's where there is one."""
    known = rows["sha1"] if "sha1" in rows else [""] * len(rows)
    return np.array([sha1 or digest(photo) for sha1, photo in zip(known, rows["photo"], strict=True)], str)


def groups(rows: pd.DataFrame) -> np.ndarray:
    """Number the rows so that all photos of a person, and of people with an identical (or, if there is a column near,
    nearly identical) photo, share a number: (n,) int. Ids that are the same to a reader are one."""
    code, ids = pd.factorize(rows["id"])
    person = pd.factorize(np.array([folded(one) for one in ids], object))[0][code]
    size, ends = person.max() + 1, []
    for name in [name for name in ("twin", "near") if name in rows]:
        ends.append(pd.factorize(rows[name])[0] + size)
        size = int(ends[-1].max()) + 1
    starts, ends = np.tile(person, len(ends)), np.concatenate(ends)
    links = coo_array((np.ones(len(starts), np.int8), (starts, ends)), shape=(size, size))
    return csgraph.connected_components(links, directed=False)[1][person]


def strata(rows, group, multilabel=False):
    """What groups are dealt evenly by, a row a group: DataFrame of group and stratum, sorted by group.

    The stratum is the answer that most of a group's photos have (of equally many the first), so that of people with
    seven photos each gender and age decide; of a number, in which tenth of all groups it lies; of several labels a
    photo (multilabel) all labels that photos of the group have.
    """
    targets = pd.DataFrame({"group": group, "stratum": rows["target"].to_numpy()})
    if rows["target"].dtype.kind == "f":
        people = targets.groupby("group", as_index=False)["stratum"].median()
        rank = people["stratum"].rank(method="first", pct=True).to_numpy()
        return people.assign(stratum=np.minimum((rank * 10).astype(int), 9))
    if multilabel:
        return targets.groupby("group", as_index=False)["stratum"].agg(np.bitwise_or.reduce)
    count = targets.groupby(["group", "stratum"], sort=False).size().reset_index(name="photos")
    most = count.sort_values("photos", ascending=False, kind="stable").drop_duplicates("group")
    return most[["group", "stratum"]].sort_values("group", ignore_index=True)


# A splitter by its name (data.splitter): (people, folds, seed) -> the fold of each person or group, (n,) int64, every
# stratum spread evenly. people: DataFrame of `group` (int, one row each) and `stratum`.


@register("splitter", "pandas_streaming")
def deal_pandas_streaming(people: pd.DataFrame, folds: int, seed: int) -> np.ndarray:
    """The second-place team's: train_test_apart_stratify, a fold at a time."""
    from pandas_streaming.df import train_test_apart_stratify

    rng = np.random.default_rng(seed)
    if people["stratum"].value_counts().min() < folds:
        return spread_out(people["stratum"], rng) % folds  # it would put all people of rare strata into the same folds
    # train_test_apart_stratify takes the first groups of each stratum in sorted order, whatever its random_state:
    # numbering the groups at random is what makes a seed mean something
    fold, number = np.full(len(people), folds - 1), rng.permutation(len(people))
    rest = people.assign(number=number, at=np.arange(len(people)))
    for k in range(folds - 1):
        rest, taken = train_test_apart_stratify(
            rest, group="number", stratify="stratum", test_size=1 / (folds - k), sorted_indices=True
        )
        fold[taken["at"]] = k
    return evened(fold, people["stratum"].to_numpy(), number, folds)


@register("splitter", "sklearn")
def deal_sklearn(people: pd.DataFrame, folds: int, seed: int) -> np.ndarray:
    """scikit-learn's StratifiedKFold. Raises InputError where no class has as many people as there are folds."""
    fold = np.full(len(people), folds - 1)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # a class with fewer people than folds; the table shows it
        dealer = sklearn().model_selection.StratifiedKFold(folds, shuffle=True, random_state=seed)
        try:
            for k, (_, members) in enumerate(dealer.split(people, people["stratum"])):
                fold[members] = k
        except ValueError as error:
            raise InputError(f"data.splitter sklearn: {error}; use pandas_streaming or fewer train.folds") from None
    return fold


def deal(people: pd.DataFrame, folds: int, splitter: str, seed: int) -> np.ndarray:
    """The fold of each of people or groups, (n,) int64, by the splitter of this name.

    people: DataFrame of `group` (int, one row each) and `stratum`. Raises InputError where a splitter of the user's
    gives something else.
    """
    fold = np.asarray(lookup("splitter", splitter)(people, folds, seed))
    if fold.shape != (len(people),) or not np.isin(fold, range(folds)).all():
        raise InputError(f"data.splitter {splitter}: should give each of {len(people)} groups a fold 0 to {folds - 1}")
    return fold.astype(np.int64)


def evened(fold, stratum, number, folds):
    """Move people from the largest fold to the smallest until the folds are even (UNEVEN).

    pandas_streaming rounds each stratum by itself, and all in the same direction: of 30 people, five of each stratum,
    18 would be in one half. Whoever moves is of the stratum that the larger fold has most more of, so that no stratum
    becomes less even. fold, stratum, number (who moves first, the largest): (n,) int -> (n,) int.
    """
    fold, stratum = fold.copy(), pd.factorize(stratum)[0]
    bound = max(1, UNEVEN * len(fold) / folds)
    while True:
        people = np.bincount(fold, minlength=folds)
        large, small = people.argmax(), people.argmin()
        if people[large] - people[small] <= bound:
            return fold
        counts = [np.bincount(stratum[fold == k], minlength=stratum.max() + 1) for k in (large, small)]
        movable = np.flatnonzero((fold == large) & (stratum == (counts[0] - counts[1]).argmax()))
        fold[movable[number[movable].argmax()]] = small


def spread_out(stratum, rng):
    """Places 0, 1, ... of people in a row that goes through the strata one after the other, at random within each:
    every k-th of it has its share of every stratum, to a person. stratum: (n,) int -> (n,) int64."""
    place = np.empty(len(stratum), np.int64)
    place[np.lexsort((rng.random(len(stratum)), stratum))] = np.arange(len(stratum))
    return place


def read_folds(path: Path | str, remedy: str = "") -> pd.Series:
    """The fold of each person of a folds.csv: Series of int, indexed by id. Raises InputError that names a bad row."""
    frame = read_csv(path, FOLD_COLUMNS, remedy)
    fold = pd.to_numeric(frame["fold"], errors="coerce")
    for bad, what in (
        (frame["id"] == "", "id is empty"),
        (frame["id"].duplicated(), "the person stands there twice"),
        (~(np.isfinite(fold) & (fold % 1 == 0) & (fold >= TEST_FOLD)), "fold should be 0, 1, ... (-1 train, -2 test)"),
    ):
        if bad.any():
            line = int(bad.to_numpy().argmax())
            raise InputError(f"{path}, row {line + 2}: id '{frame['id'][line]}', fold '{frame['fold'][line]}': {what}")
    return pd.Series(fold.to_numpy(int), frame["id"])


def assign_folds(
    rows: pd.DataFrame, config: Config, problems: Problems | None = None, remake: bool = False
) -> pd.DataFrame:
    """Add `fold` to rows: made once and written to folds.csv, then read from there. Raises InputError on a mismatch.

    remake: make them though they are there. Rows of a given split that lie in it twice are left out, and added to the
    Problems.
    """
    path, train = Path(config.run) / "folds.csv", rows["source"] == "train"
    rows = rows.copy()
    if "fold" not in rows:
        rows["fold"] = -1
    rows["fold"] = rows["fold"].fillna(-1).astype(int)
    if remake or not path.is_file():
        own = rows[train].assign(group=groups(rows[train]))
        own["fold"] = given_split(own, config) if (own["split"] != "").any() else dealt(own, config)
        write_csv(path, own[["id", "fold"]].drop_duplicates("id"))
    known = read_folds(path)
    code, ids = pd.factorize(rows.loc[train, "id"])  # a look-up a person, not a photo
    fold = pd.Series(known.reindex(ids).to_numpy(float)[code], rows.index[train])
    if fold.isna().any():
        person = rows.loc[train, "id"][fold.isna()].iloc[0]
        raise InputError(
            f"{path}: person {person} of {config.data.train} has no fold there: the file is of other data; begin a "
            "new --run, or, if nothing has been trained in this one, delete the file"
        )
    if fold.max() >= config.train.folds:
        raise InputError(f"{path}: was made for {int(fold.max()) + 1} folds, train.folds is {config.train.folds}")
    rows.loc[train, "fold"] = fold.astype(int)
    rows = one_side(rows, config, problems)
    rows.loc[(rows["source"] == "train") & (rows["fold"] == TEST_FOLD), "source"] = "test"
    return rows


def one_side(rows, config, problems):
    """The rows without those of a given split that are (or nearly are) on a side that is scored, too: a published test
    set stays what it is, what is trained on yields."""
    split, fold = rows["split"], rows["fold"]
    wrong = split.isin(["train", "valid"]) & (fold == TEST_FOLD)
    if not (split == "test").any():  # it brings none: who is put aside was taken from train
        wrong[:] = False
    if (split == "valid").any():
        wrong |= (split == "train") & (fold == 0)
    wrong &= rows["source"] == "train"
    for photo in rows["photo"][wrong] if problems else []:
        problems.add(photo, None, "is, or looks like, a photo of a side of the split that is scored", 0)
    if wrong.any():
        print(f"{config.data.train}: {wrong.sum()} photos lie on two sides of its split; the scored side keeps them")
    return rows[~wrong].reset_index(drop=True)


def dealt(rows, config):
    """The fold of each row (n,), its group dealt at random and evenly, after data.test_size of the groups went aside.

    Raises InputError where there are fewer groups than folds.
    """
    several = config.predicted.multilabel
    people, data, folds = strata(rows, rows["group"], several), config.data, config.train.folds
    people["fold"] = TEST_FOLD
    rest = ~put_aside(people, config)
    if rest.sum() < folds:
        raise InputError(f"{data.train}: {rest.sum()} people or groups can't be dealt into train.folds = {folds} folds")
    people.loc[rest, "fold"] = deal(
        people[rest][["group", "stratum"]].reset_index(drop=True), folds, splitter_of(config), config.seed
    )
    return rows["group"].map(people.set_index("group")["fold"])


def put_aside(people: pd.DataFrame, config: Config) -> np.ndarray:
    """Which groups data.test_size puts aside as the test set, evenly by stratum: (n,) bool.

    people: what `strata` gives. Raises InputError where the share is less than one group.
    """
    share = config.data.test_size
    if not share:
        return np.zeros(len(people), bool)
    place = spread_out(people["stratum"], np.random.default_rng([config.seed, 1]))
    aside = np.floor((place + 1) * share) > np.floor(place * share)
    if not aside.any():
        raise InputError(f"data.test_size {share}: of {len(people)} people or groups that is not one")
    return aside


def given_split(rows, config):
    """The fold of each row (n,) of data that comes as train, valid and test: valid is fold 0, there is no other.

    Without valid, train is dealt into train.folds; without test, data.test_size is taken from train. A group that
    lies in several goes where it is scored (`one_side`).
    """
    share, where = config.data.test_size, config.data.train
    first = rows["split"].map({"test": 0, "valid": 1, "train": 2}).groupby(rows["group"]).transform("min")
    fold = first.map({0: TEST_FOLD, 1: 0, 2: TRAIN_ONLY_FOLD})
    if share and (fold == TEST_FOLD).any():
        print(f"data.test_size {share} is not applied: {where} brings its own test set, which is taken as it is")
    elif share and (fold == TRAIN_ONLY_FOLD).any():
        several = config.predicted.multilabel
        people = strata(rows[fold == TRAIN_ONLY_FOLD], rows["group"][fold == TRAIN_ONLY_FOLD], several)
        aside = people["group"][put_aside(people, config)]
        fold[(fold == TRAIN_ONLY_FOLD) & rows["group"].isin(aside)] = TEST_FOLD
    rest = rows[fold == TRAIN_ONLY_FOLD]
    if not (fold == 0).any() and len(rest):
        people = strata(rest, rest["group"], config.predicted.multilabel)
        dealer = people[["group", "stratum"]].reset_index(drop=True)
        people["fold"] = deal(dealer, config.train.folds, splitter_of(config), config.seed)
        fold[rest.index] = rest["group"].map(people.set_index("group")["fold"]).astype(int)
    return fold


def folds_of(rows: pd.DataFrame) -> list[int]:
    """The folds that have something to validate on, sorted."""
    return sorted(rows["fold"][(rows["source"] == "train") & (rows["fold"] >= 0)].unique().tolist())


def split(rows: pd.DataFrame, fold: int) -> tuple[pd.DataFrame, pd.DataFrame]:
    """(rows to train on, rows to validate on) of a fold; extra rows train every fold, pseudo rows their own alone.

    Ages near a boundary (train_gap) are left out of training, never of validation.
    """
    mine = rows["fold"] == fold
    source = rows["source"]
    training = ((source == "train") & ~mine) | (source == "extra") | ((source == "pseudo") & mine)
    training &= ~rows["gap"]
    return rows[training].reset_index(drop=True), rows[(source == "train") & mine].reset_index(drop=True)


def stratum_names(task, classes):
    """{class: its name}, without the heads that are the same for all of these classes (n,)."""
    part = task.decode(classes)
    telling = [head for head in task.answered if len(np.unique(part[head.name])) > 1] or task.answered
    return {
        one: " ".join(head.classes[part[head.name][k]] for head in telling) for k, one in enumerate(classes.tolist())
    }


def fold_table(task: Task, rows: pd.DataFrame, folds: Sequence[int]) -> str:
    """What each fold holds, as lines of text: photos, people, and people of each stratum (see `strata`)."""
    own = rows[rows["source"].isin(("train", "test"))]
    people = strata(own, pd.factorize(own["id"])[0], task.multilabel)
    people["fold"] = own["fold"].groupby(pd.factorize(own["id"])[0]).first()
    columns = [*folds, *(k for k in (TRAIN_ONLY_FOLD, TEST_FOLD) if (own["fold"] == k).any())]
    titles = [{TRAIN_ONLY_FOLD: "train", TEST_FOLD: "test"}.get(k, f"fold {k}") for k in columns]
    photos, counts = own["fold"].value_counts(), people["fold"].value_counts()
    lines = [f"{'':26}" + "".join(f"{title:>8}" for title in titles)]
    for name, count in (("photos", photos), ("people, or groups", counts)):
        lines.append(f"{name:26}" + "".join(f"{count.get(k, 0):8}" for k in columns))
    names = {} if task.numeric or task.multilabel else stratum_names(task, np.unique(people["stratum"]))
    strata_of = people.groupby("stratum")
    if task.multilabel:
        strata_of = [(k, people[task.has(people["stratum"], k)]) for k in range(task.size)]
        names = dict(enumerate(task.classes))
    for stratum, mine in strata_of:
        name = names.get(stratum, f"tenth {stratum + 1}")
        count = mine["fold"].value_counts()
        lines.append(f"  {name[:24]:24}" + "".join(f"{count.get(k, 0):8}" for k in columns))
    for source in ("extra", "pseudo"):
        count = int((rows["source"] == source).sum())
        if count:
            lines.append(
                f"{source}: {count} rows, trained on " + ("in every fold" if source == "extra" else "each in its fold")
            )
    return "\n".join(lines)


def balance_table(task: Task, rows: pd.DataFrame, fold: int) -> str:
    """Photos of each class on each side of a fold's split, as lines of text: what is trained on (without what
    data.max_per_class and train_gap leave out, with extra and pseudo rows), validated on, and put aside."""
    sides = dict(zip((f"train, fold {fold}", "valid"), split(rows, fold), strict=True))
    if (rows["source"] == "test").any():
        sides["test"] = rows[rows["source"] == "test"]
    counts = {}
    for name, side in sides.items():
        found = side["label" if name.startswith("train") else "target"]
        counts[name] = task.sets(found).sum(0) if task.multilabel else np.bincount(found, minlength=task.size)
    lines = [f"{'photos of each class':26}" + "".join(f"{name:>15}" for name in sides)]
    for k, name in enumerate(task.classes):
        if any(count[k] for count in counts.values()):
            lines.append(f"  {name[:24]:24}" + "".join(f"{count[k]:15}" for count in counts.values()))
    return "\n".join(lines)


def beside_folds(rows: pd.DataFrame) -> dict[str, list[str]]:
    """What training takes beside the people of folds.csv, for runs that start from this one: {"ids": [people],
    "photos": [sha1 of their bytes]} of the extra and pseudo rows."""
    mine = rows[rows["source"].isin(("extra", "pseudo"))]
    return {"ids": sorted(set(mine["id"])), "photos": sorted({*digests(mine).tolist()} - {""})}
