"""Tables and folders of photos -> rows of one schema, whatever the layout. `prepare` is what training calls.

A row is a photo, or a box in one. Columns of the rows that all scripts share:

    source   train | extra | pseudo | test | eval
    split    of a folder that comes split: train | valid | test, else ""
    ImageID  the photo's name in our CSVs: its path below the folder, or its name in the table. Photos of the N-th set
             of data.extra have extraN/ before it, so that all names differ
    photo    path of the original photo
    file     path of what is read: the photo's crop, or the photo itself; "" = can't be read
    id       the group that must not be split, such as a person: a string. Two tables may give one id to two people, so
             ids of data.extra have extraN/ before them, and ids of data.eval have eval/. They have not if data.group
             makes the ids, or if a layout's ids are the same everywhere (aaf, utkface)
    mask, gender, age, ...    a column per head of the task: class index (-1 = unknown) or number (NaN = unknown)
    label    what is trained: a class, cut at the train_bounds of the heads; or a number
    target   what is scored: a class, cut at the bounds of the heads; or a number
    gap      true if a number is too close to a bound to be trained on (train_gap)
    fold     the fold that validates the row (foldface/data/folds.py); of a pseudo row, the only fold that trains on it
    x1, y1, x2, y2    layout boxes: the part of the photo that is read, in pixels

Nothing here imports torch.
"""

import os
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd

from foldface import names, runs
from foldface.data import cleaning, corrections, pseudo, tables
from foldface.data.folds import (
    RECORD,
    assign_folds,
    balance_table,
    beside_folds,
    fold_table,
    folds_of,
    groups,
    split,
    twins,
)
from foldface.data.layouts import BOX, boxes_of, grouped, read_layout
from foldface.data.leaks import (
    digest_of,
    identity,
    refuse_leaks,
    refuse_other_data,
    refuse_other_folds,
    refuse_seen_weights,
)
from foldface.data.paths import photos_below
from foldface.data.problems import Problems
from foldface.faces import manifest
from foldface.files import InputError, read_csv, read_json, write_csv, write_json
from foldface.settings import Config, DataConfig, ExtraConfig, as_dict, put
from foldface.task import Task

# ----------------------------------------------------------------------------------------------------- the rows


MOST_SHOWN = 20  # classes that are named in a line


def infer_classes(config: Config, overwrite: bool = False) -> Task:
    """Find the classes in the data, sorted, for heads that name none; put them into `config` and return its task.

    A resumed run (not `overwrite`) keeps the order of classes in its args.json, since its weights depend on it.
    """
    task = config.predicted
    if task.settled:
        return task
    problems = Problems()
    rows = read_layout(config.data.layout, config.data.train, task, problems, config.data)
    if not len(rows):
        problems.stop_if_strict(True)
    classes = {}
    for head in config.task.heads:
        if not task.head(head.name).classes and task.head(head.name).kind in ("named", "multilabel"):
            cells = rows[task.head(head.name).key].astype(str)
            cells = cells.str.split().explode().dropna() if head.kind == "multilabel" else cells
            counts = cells.value_counts().to_dict()
            found, notes = names.classes_of(counts, f"{config.data.train}: {head.name}")
            print(*notes, sep="\n", end="\n" if notes else "")
            begun = [] if overwrite else classes_of_run(config.run, head.name)
            classes[head.name] = {"classes": begun if sorted(begun) == sorted(found) else found}
            if len(found) < 2:
                some = "".join(f" ({name})" for name in found)
                raise InputError(f"{config.data.train}: {len(found)} classes of {head.name} found{some}: a class a "
                                 "folder, or a table's column, and at least two of them")  # fmt: skip
            shown = ", ".join(f"{name} ({counts.get(name, 0)})" for name in found[:MOST_SHOWN])
            more = f" and {len(found) - MOST_SHOWN} more" if len(found) > MOST_SHOWN else ""
            print(f"{config.data.train}: {head.name} has {len(found)} classes: {shown}{more}")
    put(config, "task.heads", [head | classes.get(head["name"], {}) for head in as_dict(config)["task"]["heads"]])
    return config.predicted


def classes_of_run(run: str, name: str) -> list[str]:
    """The classes of the head `name` in a run's args.json, [] if there are none."""
    path = Path(run) / "args.json"
    heads = read_json(path, "remove it").get("task", {}).get("heads", []) if path.is_file() else []
    return next((head.get("classes", []) for head in heads if head.get("name") == name), [])


def training_rows(config: Config) -> tuple[pd.DataFrame, Problems]:
    """All rows that may be trained on (data.train, data.extra, data.pseudo), without folds, and what is wrong with the
    data.

    Raises InputError for a bad row if data.strict, and if no row of data.train is left.
    """
    data = config.data
    problems = Problems()
    task = infer_classes(config)
    rows = read_layout(data.layout, data.train, task, problems, data)
    by_column = "grouped" in rows and bool(rows["grouped"].any())
    rows = grouped(rows, data, problems, by_column)
    parts = [rows.assign(source="train")]
    for number, extra in enumerate(data.extra, start=1):
        found = grouped(read_layout(extra.layout, extra.path, task, problems, data), data, problems, by_column)
        parts.append(of_extra(found.drop(columns="split", errors="ignore"), extra, number, rows))
    problems.stop_if_strict(data.strict)
    rows = one_spelling(pd.concat(parts, ignore_index=True).drop(columns="shared"), data.train)
    rows["split"] = rows["split"].fillna("") if "split" in rows else ""
    if data.corrections:
        rows = corrections.correct(rows, data.corrections, task)
    if not (rows["source"] == "train").any():
        raise InputError(
            f"{data.train}: no photo to train on is left" + (f": {problems.rows[0]['reason']}" if problems.rows else "")
        )
    rows["label"] = task.answer_of(rows, trained=True)
    rows["target"] = task.answer_of(rows)
    rows["gap"] = False
    if task.number and task.number.train_gap:
        gap, values = task.number.train_gap, rows[task.number.key]
        for bound in task.number.trained:
            rows["gap"] |= (values >= bound - gap) & (values < bound + gap)
    if data.pseudo:
        rows = pd.concat([rows, pseudo.pseudo_rows(config, task, eval_rows(config), by_column)], ignore_index=True)
    return rows, problems


def one_spelling(rows: pd.DataFrame, where: str) -> pd.DataFrame:
    """Merge ids that a reader takes for the same (kim and Kim, é in two Unicode forms); photos whose names look the
    same stay apart. Prints both. where: the table or folder, for these messages."""
    same = names.one_spelling(rows["id"].unique())
    if same:
        rows["id"] = rows["id"].replace(same)
        other, kept = next(iter(same.items()))
        print(f"{where}: {len(same)} ids read like another and are taken for it: {other!a} for {kept!a}")
    same = names.one_spelling(rows["ImageID"].unique())
    if same:
        other, kept = next(iter(same.items()))
        print(
            f"{where}: {len(same)} photos have a name that reads like another's; they stay apart: {other!a}, {kept!a}"
        )
    return rows


def of_extra(found: pd.DataFrame, extra: ExtraConfig, number: int, own: pd.DataFrame) -> pd.DataFrame:
    """The rows `found` in set `number` of data.extra, with extraN/ before their names and ids. own: rows of data.train.

    Warns if ids of data.train occur in it, since they are counted as other people.
    """
    home = f"extra{number}/"
    shared = found["shared"] | (extra.layout in ("aaf", "utkface"))
    both = set(found["id"][~shared]) & set(own["id"])
    if both and extra.layout in ("competition", "table"):
        print(
            f"warning: {extra.path}: {len(both)} ids, such as {min(both)}, are ids of data.train too, and count as "
            "those of other people: if they are the same people, name the column in data.group",
            file=sys.stderr,
        )
    return found.assign(
        source="extra", ImageID=home + found["ImageID"], id=found["id"].where(shared, home + found["id"])
    )


def only(rows: pd.DataFrame, task: Task, words: Sequence[str]) -> pd.DataFrame:
    """The rows that fulfil data.only: words such as "mask=normal" (of a head, one of its classes named), "age>=20",
    "age<70". Heads of the answer are compared by `label`, so that pseudo rows are too."""
    kept = np.ones(len(rows), bool)
    wanted = {}
    for head, how, value in map(task.condition, words):
        if how == "=":
            wanted.setdefault(head, []).append(value)
        else:
            kept &= (rows[head.key] >= value if how == ">=" else rows[head.key] < value) | rows[head.key].isna()
    for head, classes in wanted.items():
        values = task.decode(rows["label"])[head.name] if head in task.answered else rows[head.key]
        kept &= np.isin(values, classes)
    return rows[kept]


def true_answers(path: Path, config: Config) -> dict[str, int | float]:
    """{ImageID: answer} of the photos of data.eval whose folder, file name or box says the true class or number."""
    truth = read_layout(config.data.layout, path, config.predicted, Problems(), config.data)
    return dict(zip(truth["ImageID"], config.predicted.answer_of(truth), strict=True))


def eval_rows(config: Config) -> pd.DataFrame:
    """The photos of data.eval, a row each, in the order of info.csv, of a CSV or JSON file, or of a folder's sorted
    paths. A row that info.csv has twice is there twice.

    Columns: source, ImageID, photo; boxes: x1, y1, x2, y2; target if folders or names say the true answer (-1, of
    numbers NaN, for those that don't); id if the table has the column that data.group names. Raises InputError if
    data.eval is empty, or has no photos or bad rows.
    """
    path = Path(config.data.eval)
    if not config.data.eval:
        raise InputError("data.eval is empty: name the photos to answer for, such as --data.eval FOLDER")
    if os.path.exists(path) and not path.is_dir() and path.suffix.lower() not in (*tables.TABLES, ".json"):
        raise InputError(
            f"data.eval {path}: is neither a folder nor a .csv or .json file: name the folder of the photos"
        )
    task = config.predicted
    unknown = np.nan if task.numeric else -1
    if path.suffix.lower() == ".json":
        problems = Problems()
        found = [(name, whole, *box) for name, whole, box, _ in boxes_of(path, problems, config.data)]
        problems.stop_if_strict(True)
        rows = pd.DataFrame(found, columns=["ImageID", "photo", *BOX])
        known = true_answers(path, config) if task.settled and config.data.layout == "boxes" else {}
        if known:
            rows["target"] = [known.get(name, unknown) for name in rows["ImageID"]]
    elif path.is_dir() and not (path / "info.csv").is_file() and not (path / "images").is_dir():
        problems = Problems()
        found = list(photos_below(path, config.data.roots, problems, "data.eval is what is answered for"))
        problems.stop_if_strict(True)
        rows = pd.DataFrame(found, columns=["ImageID", "photo"])
        if task.settled and config.data.layout in ("folder", "aaf", "utkface"):
            known = true_answers(path, config)
            rows["target"] = [known.get(name, unknown) for name in rows["ImageID"]]
            others = sorted({name.split("/")[0] for name in rows["ImageID"] if name not in known and "/" in name})
            if others:
                print(f"{path}: photos in {', '.join(others[:8])} can't be scored: the task has no such class")
    else:
        rows = listed_rows(path, config.data)
    if not len(rows):
        raise InputError(f"{path}: has no {'rows' if path.is_file() else 'photos'}: there is nothing to answer for")
    return rows.assign(source="eval")


def answerable(config: Config) -> bool:
    """True if data.eval exists and is not just an images/ folder without its info.csv."""
    path = Path(config.data.eval)
    if not config.data.eval or not path.exists():
        return False
    return (path / "info.csv").is_file() or not (path / "images").is_dir()


def listed_rows(path: Path, data: DataConfig) -> pd.DataFrame:
    """The photos of a table: a folder's info.csv (ImageID, photos below images/), or a file (as layout table has it).

    Columns: ImageID, photo; answer_id, the row's name in the submission, if the table has data.id_column; id.
    """
    if path.suffix.lower() in tables.TABLES:
        table, frame = path, tables.read_table(path, [data.id_column] if data.id_column else [])
        photos = tables.Photos(table, frame, data)
        column, locate, ids = photos.column, photos.locate, tables.ids_of(frame, data, photos.column)
    else:
        table, column = path / "info.csv", "ImageID"
        frame = read_csv(table, [column], "data.eval should be a folder that holds info.csv, or one of photos alone")
        photos = tables.Listed(path / "images", column, data.roots)
        locate, ids = photos.locate, frame[column]
    found = []
    for line, name in enumerate(frame[column], start=2):
        photo, reason = locate(name) if name else ("", f"{column} is empty")
        if reason:
            raise InputError(f"{table}, row {line}: {reason}")
        found.append(photo)
    if not len(frame):
        raise InputError(f"{table}: has no rows: there is nothing to answer for")
    photos.report(table)
    rows = pd.DataFrame({"ImageID": ids, "photo": found})
    if path.suffix.lower() in tables.TABLES and tables.id_column_of(frame, data):
        rows["answer_id"] = frame[tables.id_column_of(frame, data)]
    return rows.assign(id=frame[data.group]) if data.group in frame else rows


def with_folds(rows: pd.DataFrame, config: Config, problems: Problems, now: dict) -> pd.DataFrame:
    """Add `fold`, from folds.csv or newly dealt, and write data.json, the record of the run's data.

    Before the first training step folds.csv is dealt anew at each start, unless the user brought it; after it folds and
    data may not change. now: leaks.identity of the data. Raises InputError if they did change.
    """
    path = Path(config.run) / "folds.csv"
    record = read_json(path.with_name(RECORD), "remove it") if path.with_name(RECORD).is_file() else {}
    if not isinstance(record, dict):
        raise InputError(f"{path.with_name(RECORD)}: is not as it was written: remove it")
    refuse_other_data(config, record, now)
    begun = runs.begun(config.run)
    brought = path.is_file()  # by the user
    if not begun and record.get("dealt") and record.get("folds") == digest_of(path):
        brought = False
    rows = assign_folds(rows, config, problems, remake=not brought)
    if not (begun and record):
        about = {"folds": digest_of(path), "dealt": not brought, "extra": beside_folds(rows)}
        write_json(path.with_name(RECORD), now | about)
    return rows


def final_rows(rows: pd.DataFrame, task: Task) -> pd.DataFrame:
    """What the final fit trains on, of the rows of `prepare`: those of all folds but the test set, each pseudo-labelled
    photo once (`pseudo.once`)."""
    pseudo_labels = rows["source"] == "pseudo"
    kept = pd.concat([rows[rows["source"].isin(("train", "extra"))], pseudo.once(rows[pseudo_labels], task)])
    return kept[~kept["gap"].astype(bool)].reset_index(drop=True)


def prepare(config: Config) -> pd.DataFrame:
    """Read, clean and check the rows, assign their folds and print what each holds: all that a training script needs.

    Writes folds.csv and data.json, and rejected.csv if anything was left out. Raises InputError for bad data, and if a
    person would be on both sides of a fold.
    """
    given, problems = training_rows(config)
    task = config.predicted
    rows = given
    if config.data.min_side or config.data.duplicates != "keep":
        others = eval_rows(config)[["source", "ImageID", "photo"]] if answerable(config) else given[:0]
        rows = cleaning.clean(given, config, problems, others)
    rows = manifest.with_files(rows, config.data.crops)
    rows = cleaning.drop_faceless(rows, config, problems)
    rows["twin"] = twins(rows)
    rows["linked"] = groups(rows)  # what must be in one fold: people, joined where they share a photo

    rows = with_folds(rows, config, problems, identity(given, config))
    rows = cleaning.capped(rows, config)
    refuse_other_folds(config)
    refuse_seen_weights(rows, config)
    rows = only(rows, task, config.data.only)
    folds = folds_of(rows)
    test_rows = rows[rows["source"] == "test"]
    for k in folds:
        train_rows, valid_rows = split(rows, k)
        refuse_leaks(train_rows, pd.concat([valid_rows, test_rows]))
    if not folds:
        raise InputError(f"{config.data.train}: no fold has a photo to validate on")
    if config.train.only_folds != []:
        rows = cleaning.drop_unreadable(rows, config, problems)
    if problems.rows:
        path = Path(config.run) / "rejected.csv"
        write_csv(path, pd.DataFrame(problems.rows).astype({"row": "Int64"}))
        print(f"{len(problems.rows)} rows or photos are left out: see {path}")
    print(fold_table(task, rows, folds))
    if not task.numeric:
        wanted = [k for k in config.train.only_folds or folds if k in folds]
        print(balance_table(task, rows, (wanted or folds)[0]))
    return rows
