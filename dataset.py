"""Tables and folders of photos -> rows: one schema whatever the layout, labels corrected, what is wrong is printed.

A row is a photo, or a box in one. Columns of the rows that all scripts share:

    source   train | extra | pseudo | test | eval
    split    of a folder that comes split: train | valid | test, else ""
    ImageID  the photo's name in our CSVs: its path below the folder, or what the table calls it; of the n-th set of
             data.extra with extraN/ before it, so that no two photos to train on have one name
    photo    path of the photo as it was taken; `file` is what is read instead: its crop, or the photo itself
    id       the person, or what else photos share that belong together: a string. Each table counts its own people, so
             that of data.extra has extraN/ before it, and that of a photo to answer for eval/; not where data.group
             says what belongs together, or a layout's names are the same everywhere (aaf, utkface)
    mask, gender, age, ...    a column a head of the task: class index (-1 = unknown) or number (NaN = unknown)
    label    the answer to train on: a class, by the train_bounds of its heads; or a number
    gap      true where a number is too near to a bound to be trained on (train_gap)
    target   the answer to be scored on, by the task's own bounds
    fold     of a pseudo row, the fold that alone trains it; foldface/data/folds.py gives the others theirs
    x1, y1, x2, y2    of layout boxes: the part of the photo that is read, in pixels

Nothing here imports torch.
"""

import os
import sys
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
from foldface.data.layouts import BOX, Problems, boxes_of, grouped, read_layout
from foldface.data.leaks import (
    digest_of,
    identity,
    refuse_leaks,
    refuse_other_data,
    refuse_other_folds,
    refuse_seen_weights,
)
from foldface.data.paths import photos_below
from foldface.faces import manifest
from foldface.files import InputError, read_csv, read_json, write_csv, write_json
from foldface.settings import as_dict, put

# ----------------------------------------------------------------------------------------------------- the rows


MOST_SHOWN = 20  # classes that are named in a line


def infer_classes(config, overwrite=False):
    """Put the classes that the data has, in order, where the task names none; returns the labels.Task.

    They go into the run's args.json and its weights, which nothing that follows may contradict: a run that goes on
    (not with overwrite) keeps the order that it was begun with.
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
        if not task.head(head.name).classes and task.head(head.name).kind == "named":
            counts = rows[task.head(head.name).key].astype(str).value_counts().to_dict()
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


def classes_of_run(run, name):
    """The classes of a head in a run's args.json, [] if there are none."""
    path = Path(run) / "args.json"
    heads = read_json(path, "remove it").get("task", {}).get("heads", []) if path.is_file() else []
    return next((head.get("classes", []) for head in heads if head.get("name") == name), [])


def training_rows(config):
    """All rows that may be trained on, without folds: (rows, Problems).

    Raises InputError for a bad row if data.strict, and where too few rows are left.
    """
    data, problems, task = config.data, Problems(), infer_classes(config)
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
    rows["label"], rows["target"] = task.answer_of(rows, trained=True), task.answer_of(rows)
    rows["gap"] = False
    if task.number and task.number.train_gap:
        gap, values = task.number.train_gap, rows[task.number.key]
        for bound in task.number.trained:
            rows["gap"] |= (values >= bound - gap) & (values < bound + gap)
    if data.pseudo:
        rows = pd.concat([rows, pseudo.pseudo_rows(config, task, eval_rows(config), by_column)], ignore_index=True)
    return rows, problems


def one_spelling(rows, where):
    """The rows with one id where ids are the same to a reader (kim and Kim, é in two Unicode forms), which is printed;
    photos whose names are the same to a reader stay two, which is printed too."""
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


def of_extra(found, extra, number, own):
    """The rows of the number-th set of data.extra, their names and ids made its own. own: the rows of data.train."""
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


def only(rows, task, words):
    """The rows that data.only names: whose heads have one of the classes ("mask=normal"), or whose number is so
    ("age>=20", "age<70"); all if it names none. Pseudo labels count by the classes of their answer."""
    kept, wanted = np.ones(len(rows), bool), {}
    for head, how, value in map(task.condition, words):
        if how == "=":
            wanted.setdefault(head, []).append(value)
        else:
            kept &= (rows[head.key] >= value if how == ">=" else rows[head.key] < value) | rows[head.key].isna()
    for head, classes in wanted.items():
        values = task.decode(rows["label"])[head.name] if head in task.answered else rows[head.key]
        kept &= np.isin(values, classes)
    return rows[kept]


def eval_rows(config):
    """The photos to answer for: source, ImageID, photo; x1..y2 of boxes; target where folders or names tell the truth,
    -1 (of numbers NaN) where they don't; id where their table has the column that data.group names.

    In the order of info.csv (a row twice there is twice here), of a CSV or JSON file, or sorted, if data.eval is a
    folder of photos or of class folders.
    """
    path = Path(config.data.eval)
    if not config.data.eval:
        raise InputError("data.eval is empty: name the photos to answer for, such as --data.eval FOLDER")
    if os.path.exists(path) and not path.is_dir() and path.suffix.lower() not in (*tables.TABLES, ".json"):
        raise InputError(
            f"data.eval {path}: is neither a folder nor a .csv or .json file: name the folder of the photos"
        )
    if path.suffix.lower() == ".json":
        problems = Problems()
        found = [(name, whole, *box) for name, whole, box, _ in boxes_of(path, problems, config.data)]
        problems.stop_if_strict(True)
        rows = pd.DataFrame(found, columns=["ImageID", "photo", *BOX])
        task = config.predicted
        if task.settled and config.data.layout == "boxes":
            truth = read_layout("boxes", path, task, Problems(), config.data)
            known = dict(zip(truth["ImageID"], task.answer_of(truth), strict=True))
            if known:
                rows["target"] = [known.get(name, np.nan if task.numeric else -1) for name in rows["ImageID"]]
    elif path.is_dir() and not (path / "info.csv").is_file() and not (path / "images").is_dir():
        problems = Problems()
        found = list(photos_below(path, config.data.roots, problems, "data.eval is what is answered for"))
        problems.stop_if_strict(True)
        rows = pd.DataFrame(found, columns=["ImageID", "photo"])
        task = config.predicted
        if task.settled and config.data.layout in ("folder", "aaf", "utkface"):
            truth = read_layout(config.data.layout, path, task, Problems(), config.data)
            known = dict(zip(truth["ImageID"], task.answer_of(truth), strict=True))
            rows["target"] = [known.get(name, np.nan if task.numeric else -1) for name in rows["ImageID"]]
            unknown = sorted({name.split("/")[0] for name in rows["ImageID"] if name not in known and "/" in name})
            if unknown:
                print(f"{path}: photos in {', '.join(unknown[:8])} can't be scored: the task has no such class")
    else:
        rows = listed_rows(path, config.data)
    if not len(rows):
        raise InputError(f"{path}: has no {'rows' if path.is_file() else 'photos'}: there is nothing to answer for")
    return rows.assign(source="eval")


def answerable(config):
    """Is there something at data.eval that could be answered for?"""
    path = Path(config.data.eval)
    return (
        bool(config.data.eval) and path.exists() and ((path / "info.csv").is_file() or not (path / "images").is_dir())
    )


def listed_rows(path, data):
    """The photos of a table: a folder's info.csv (ImageID, photos below images/), or a file (as layout table has it).

    data: config.data. answer_id: what the submission calls a row, where data.id_column names it.
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


def with_folds(rows, config, problems, now):
    """`assign_folds` for a run: its data is what it was when training began, and until then folds.csv is dealt again
    at each start, unless it was brought. Writes data.json. Raises InputError."""
    path = Path(config.run) / "folds.csv"
    record = read_json(path.with_name(RECORD), "remove it") if path.with_name(RECORD).is_file() else {}
    if not isinstance(record, dict):
        raise InputError(f"{path.with_name(RECORD)}: is not as it was written: remove it")
    refuse_other_data(config, record, now)
    begun, brought = runs.begun(config.run), path.is_file()
    if not begun and record.get("dealt") and record.get("folds") == digest_of(path):
        brought = False
    rows = assign_folds(rows, config, problems, remake=not brought)
    if not (begun and record):
        about = {"folds": digest_of(path), "dealt": not brought, "extra": beside_folds(rows)}
        write_json(path.with_name(RECORD), now | about)
    return rows


def prepare(config):
    """Rows with files, twins and folds, checked and shown: all that a training script needs.

    Writes folds.csv and data.json, and rejected.csv if anything was left out.
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
    rows["linked"] = groups(rows)
    rows = with_folds(rows, config, problems, identity(given, config))
    rows = cleaning.capped(rows, config)
    refuse_other_folds(config)
    refuse_seen_weights(rows, config)
    rows = only(rows, task, config.data.only)
    folds, aside = folds_of(rows), rows[rows["source"] == "test"]
    for k in folds:
        training, validation = split(rows, k)
        refuse_leaks(training, pd.concat([validation, aside]))
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
