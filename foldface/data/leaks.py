"""Refuse leaks between splits, runs and starting weights before anything is trained."""

import hashlib
import sys
from pathlib import Path

import numpy as np
import pandas as pd

from foldface import predictions, runs
from foldface.data import layouts
from foldface.data.folds import RECORD, TEST_FOLD, digests, read_folds, split
from foldface.data.remote import crop_folder
from foldface.files import InputError, read_csv, read_json, warn_once
from foldface.settings import Config, of_earlier

IDENTITY = [
    "source",
    "split",
    "ImageID",
    "id",
    "label",
    "target",
    "gap",
]  # and the heads: what identifies a row, without paths


def refuse_leaks(training: pd.DataFrame, validation: pd.DataFrame) -> None:
    """Raise InputError if a person or a byte-identical photo is on both sides of a split; with the column `near` a
    nearly identical photo, with `linked` a group of connected people and photos."""
    both = set(training["id"]) & set(validation["id"])
    if both:
        person = min(both)
        sources = "/".join(sorted(set(training["source"][training["id"] == person])))
        raise InputError(
            f"leak: person {person} is validated on and also trained on ({sources} rows); "
            f"{len(both)} such people: take them out of one side"
        )
    for name, how in (
        ("twin", "is, byte for byte,"),
        ("near", "is, nearly,"),
        ("linked", "belongs, by ids and identical photos, together with"),
    ):
        seen = training[name].isin(validation[name]) if name in training else np.zeros(len(training), bool)
        if seen.any():
            row = training[seen].iloc[0]
            other = validation[validation[name] == row[name]].iloc[0]
            raise InputError(
                f"leak: {row['photo']} ({row['source']}) is trained on and {how} the photo "
                f"{other['photo']} that is validated on; {int(seen.sum())} such photos: take them out of one side"
            )


def refuse_other_folds(config: Config) -> None:
    """Raise InputError unless the pseudo labels come from models of the same folds: others saw validation rows."""
    if not config.data.pseudo:
        return
    theirs, ours = Path(config.data.pseudo).with_name("folds.csv"), Path(config.run) / "folds.csv"
    before, now = (
        read_folds(path, "pseudo labels are only safe beside the folds that made them").sort_index()
        for path in (theirs, ours)
    )
    if not before.equals(now):
        raise InputError(
            f"leak: {config.data.pseudo} was made with the folds of {theirs}, {ours} has others, so its "
            f"labels have seen people that are validated on: copy {theirs} to {ours} in a new --run"
        )
    refuse_other_models(config.predicted, config.data.pseudo)


def refuse_other_models(task, path):
    """Raise InputError where a pseudo label for fold k is not a prediction of fold k's own model: the others have seen
    the people that fold k validates on. A fold without predictions beside the labels gets a warning."""
    columns = ["ans"] if task.numeric else task.probabilities
    rows = read_csv(path, predictions.PSEUDO_COLUMNS, numbers=["ans", *columns])
    columns = ["ans", *(name for name in columns if name in rows and name != "ans")]
    for fold, mine in rows.groupby("fold"):
        beside = Path(path).with_name(f"fold{int(float(fold))}.csv")
        if not beside.is_file():
            print(
                f"warning: {path}: whether its labels are fold {fold}'s own can't be checked without {beside}",
                file=sys.stderr,
            )
            continue
        frame = predictions.read_fold(task, beside).drop_duplicates("ImageID").set_index("ImageID")
        known = frame.reindex(mine["ImageID"])[columns].to_numpy(float)
        other = ~(abs(known - mine[columns].to_numpy(float)) < 2e-6 * (1 + abs(known))).all(1)
        if other.any():
            row = mine[other].iloc[0]
            raise InputError(
                f"leak: {path}, row {row.name + 2}: {row['ImageID']} is to train fold {fold}, but that is not what "
                f"{beside} says of it ({int(other.sum())} such rows): another model made it, which has seen the "
                f"people that fold {fold} validates on; run pseudo_label.py again"
            )


def start_run(config: Config) -> Path:
    """The folder of the run in model.init_from_run: a path, or the name of a run beside this one."""
    return start_folder(config.model.init_from_run, config.run)


def refuse_seen_weights(rows: pd.DataFrame, config: Config) -> None:
    """Raise InputError where a fold would start from weights that were trained on people or photos that it validates
    on, or on those of the test set (`seen_by`)."""
    start, pretrained = config.model.init_from_run, config.model.pretrained
    if start and not (start_run(config) / "folds.csv").is_file():
        raise InputError(f"model.init_from_run {start}: {start_run(config)} is no run of ours, it has no folds.csv")
    wanted = list(range(config.train.folds) if config.train.only_folds is None else config.train.only_folds)
    for k in wanted + [predictions.FINAL] * config.train.final:
        weights = weights_before(start, pretrained, config.run, k)
        if weights is None:
            return
        ids, photos = seen_by(weights)
        mine = pd.concat([split(rows, k)[1], rows[rows["source"] == "test"]])
        seen = mine["id"].isin(ids).to_numpy()
        if photos:
            seen = seen | np.isin(digests(mine), list(photos))
        people = sorted(set(mine["id"][seen]))
        if people:
            who, scored = f"fold {k}", f"that fold {k} validates on"
            if k == predictions.FINAL:
                who, scored = "the final fit", "of the test set"
            raise InputError(
                f"leak: {who} would start from {weights}, which was trained on person {people[0]} and "
                f"{len(people) - 1} more people {scored}: each fold may start from its own (--model.init_from_run)"
            )


def identity(rows: pd.DataFrame, config: Config) -> dict:
    """What the data is, wherever it lies: {photos, people, rows, crops}; rows: sha1 of all that training takes from the
    rows, crops: how they were made, None for whole photos. Paths are no part of it, nor are the photos' bytes."""
    taken = [*IDENTITY, *(head.key for head in config.predicted.heads)]
    taken += [name for name in [*layouts.BOX, "fold", *config.predicted.probabilities] if name in rows]
    text = rows[taken].to_csv(index=False, float_format="%.6f", lineterminator="\n")
    crops = None
    if config.data.crops:
        crops = read_json(crop_folder(config.data.crops) / "crop.json", "run face_crop.py with the same settings")
    return {
        "photos": len(rows),
        "people": int(rows["id"].nunique()),
        "rows": hashlib.sha1(text.encode()).hexdigest(),
        "crops": crops,
    }


def digest_of(path: Path) -> str:
    """sha1 of who is in which fold by a folds.csv, whatever its order and line ends; "" without one."""
    if not Path(path).is_file():
        return ""
    return hashlib.sha1(read_folds(path).sort_index().to_csv(lineterminator="\n").encode()).hexdigest()


def refuse_other_data(config: Config, record: dict, now: dict) -> None:
    """Raise InputError if this run was trained on other data than `now`, or with another folds.csv.

    record: content of data.json, {} without one; now: from `identity`.
    """
    run = Path(config.run)
    if not record or not runs.begun(run):
        return
    way_out = "choose another --run, or start this one again with --overwrite"
    if record.get("rows") != now["rows"]:
        then, today = (f"{one.get('photos')} photos of {one.get('people')} people or groups" for one in (record, now))
        what = f"{then}, now {today}" if then != today else f"{then}, as now, with other names, ids or labels"
        raise InputError(f"{run}: was begun on other data: {what}: {way_out}")
    if record.get("crops") != now["crops"]:
        crops = config.data.crops or "whole photos"
        raise InputError(f"{run}: was begun on crops made in another way than {crops}: {way_out}")
    if record.get("folds") != digest_of(run / "folds.csv"):
        raise InputError(f"{run}: folds.csv was changed after training began: put the former one back, or {way_out}")


def start_folder(start, run):
    """`start_run` of a run's folder and its model.init_from_run."""
    start = Path(start)
    return start if len(start.parts) > 1 else Path(run).parent / start


def weights_before(start, pretrained, run, fold):
    """The folder of the weights that a fold of a run starts from, RUN/fold{k} or RUN/final; None if they are no run's.

    start, pretrained: model.init_from_run and model.pretrained of the run.
    """
    if start:
        return start_folder(start, run) / predictions.fold_name(fold)
    if isinstance(pretrained, str) and Path(pretrained).name == "best.safetensors":
        return Path(pretrained).parent
    return None


def seen_by(weights):
    """The people, and the photos (sha1 of their bytes), that weights (a Path, RUN/fold{k}) were trained on, and the
    weights that they started from: two sets of str.

    A run's fold k has seen all people of its folds.csv but those of fold k, its final fit all of them; and both what
    data.json says of the extra rows.
    """
    ids, photos, met = set(), set(), set()
    while weights is not None and weights not in met and (weights.parent / "folds.csv").is_file():
        met.add(weights)
        home, own = weights.parent, weights.name.removeprefix("fold")
        theirs = read_folds(home / "folds.csv")
        ids |= set(theirs.index[~theirs.isin([TEST_FOLD, int(own)] if own.isdigit() else [TEST_FOLD])])
        record, before = (
            read_json(home / name, "train that run again") if (home / name).is_file() else {}
            for name in (RECORD, "args.json")
        )
        before = of_earlier(before)
        if "extra" in record:
            ids |= set(record["extra"]["ids"])
            photos |= set(record["extra"]["photos"])
        elif before.get("data.extra") or before.get("data.pseudo"):
            warn_once(f"{home} does not say which people its data.extra and data.pseudo held: they are not compared")
        weights = weights_before(before.get("model.init_from_run"), before.get("model.pretrained"), home, own)
    if met and weights is not None and weights not in met:
        warn_once(f"{weights}, which {home} started from, is not there: the people it was trained on are not compared")
    return ids, photos


def start_weights(config: Config, fold: int) -> Path | None:
    """The weights that this fold starts from (model.init_from_run), or None. Raises InputError where there are none."""
    if not config.model.init_from_run:
        return None
    home = start_run(config)
    path = home / predictions.fold_name(fold) / "best.safetensors"
    if not path.is_file():
        how = " with --train.final" if fold == predictions.FINAL else ""
        raise InputError(
            f"model.init_from_run {config.model.init_from_run}: there is no {path}: train that run first{how}"
        )
    return path
