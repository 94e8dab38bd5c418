"""Tables and folders of photos -> rows: one schema whatever the layout, labels corrected, what is wrong said.

A row is a photo, or a box in one. Columns of the rows that all scripts share:

    source   train | extra | pseudo | test | eval
    split    of a folder that comes split: train | valid | test, else ""
    ImageID  the photo's name in our CSVs: its path below the folder, or what the table calls it
    photo    path of the photo as it was taken; `file` is what is read instead: its crop, or the photo itself
    id       the person, or what else photos share that belong together: a string
    mask, gender, age, ...    a column a head of the task: class index (-1 = unknown) or number (NaN = unknown)
    label    the answer to train on: a class, by data.age_boundary; or a number
    gap      true where a number is too near to a bound to be trained on (data.age_gap)
    target   the answer to be scored on, by the task's own bounds
    fold     of a pseudo row, the fold that alone trains it; folds.py gives the others theirs
    x1, y1, x2, y2    of layout boxes: the part of the photo that is read, in pixels

Nothing here imports torch.
"""

import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pandas as pd

from files import InputError, read_csv
from layouts import BOX, LAYOUTS, Fence, Problems, boxes_of, grouped, photos_below

PSEUDO_COLUMNS = ["ImageID", "fold", "ans", "confidence"]
MANIFEST_COLUMNS = ["photo", "crop", "status", "detector", "score", "x1", "y1", "x2", "y2", "faces", "sha1"]
ENOUGH = 0.95  # a run on less of its rows than this is no run on this data


# ----------------------------------------------------------------------------------------------------- the rows


def settle(settings):
    """Put the classes that the data has, sorted, where the task names none; returns the labels.Task.

    They go into the run's args.json and its weights, which nothing that follows may contradict.
    """
    task = settings.predicted
    if task.settled:
        return task
    rows = LAYOUTS[settings.data.layout](settings.data.train, task, Problems(), settings.data)
    for head in settings.task.heads:
        if not task.head(head.name).classes and task.head(head.name).kind == "named":
            head.classes = sorted(set(rows[head.name].astype(str)))
            if len(head.classes) < 2:
                raise InputError(
                    f"{settings.data.train}: {len(head.classes)} classes of {head.name} found"
                    + (f" ({head.classes[0]})" if head.classes else "")
                    + ": a class a folder, or a table's column, and at least two of them"
                )
    return settings.predicted


def training_rows(settings):
    """All rows that may be trained on, without folds: (rows, Problems).

    Raises InputError for a bad row if data.strict, and where too few rows are left.
    """
    data, problems, task = settings.data, Problems(), settle(settings)
    rows = grouped(LAYOUTS[data.layout](data.train, task, problems, data), data, problems)
    parts = [rows.assign(source="train")]
    for extra in data.extra:
        found = LAYOUTS[extra.layout](extra.path, task, problems, data)
        parts.append(found.drop(columns=["grouped", "split"], errors="ignore").assign(source="extra"))
    problems.stop_if_strict(data.strict)
    rows = pd.concat(parts, ignore_index=True)
    rows["split"] = rows["split"].fillna("") if "split" in rows else ""
    if data.corrections:
        rows = correct(rows, data.corrections, task)
    if not (rows["source"] == "train").any():
        raise InputError(
            f"{data.train}: no photo to train on is left" + (f": {problems.rows[0]['reason']}" if problems.rows else "")
        )
    rows["label"], rows["target"] = task.answer_of(rows, trained=True), task.answer_of(rows)
    rows["gap"] = False
    if task.number and task.number.kind == "cut" and data.age_gap:
        for bound in task.number.trained:
            values = rows[task.number.name]
            rows["gap"] |= (values >= bound - data.age_gap) & (values < bound + data.age_gap)
    if data.pseudo:
        rows = pd.concat([rows, pseudo_rows(settings, task)], ignore_index=True)
    return rows, problems


def only(rows, task, words):
    """The rows whose heads have one of the classes that data.only names ("mask=normal"); all if it names none.

    Rows with pseudo labels are held by the classes of their answer.
    """
    wanted = {}
    for name, _, value in (word.partition("=") for word in words):
        wanted.setdefault(name, []).append(task.head(name).classes.index(value))
    kept = np.ones(len(rows), bool)
    for name, classes in wanted.items():
        answered = name in [head.name for head in task.answered]
        kept &= np.isin(task.decode(rows["label"])[name] if answered else rows[name], classes)
    return rows[kept]


def correct(rows, path, task):
    """Apply the corrections of a CSV (photo or id, column, value) to the rows and print how many took effect."""
    frame = read_csv(path, ["column", "value"])
    keys = [key for key in ("photo", "id") if key in frame.columns]
    if not keys:
        raise InputError(f"{path}: has neither a column photo nor id; it has {', '.join(frame.columns)}")
    rows, touched, columns = rows.copy(), 0, [head.column for head in task.heads]
    for line, row in enumerate(frame.to_dict("records"), start=2):
        key = next((key for key in keys if str(row[key]) not in ("", "nan")), None)
        if key is None:
            raise InputError(f"{path}, row {line}: names neither a photo nor an id")
        wanted = rows["id" if key == "id" else "ImageID"] == str(row[key]).strip()
        if not wanted.any():
            raise InputError(f"{path}, row {line}: there is no {key} '{row[key]}' among the rows to train on")
        if row["column"] not in columns:
            raise InputError(f"{path}, row {line}: column is '{row['column']}', should be one of {', '.join(columns)}")
        for head in (head for head in task.heads if head.column == row["column"]):
            value, reason = head.parse(row["value"])
            if reason:
                raise InputError(f"{path}, row {line}: {reason}")
            touched += int((rows.loc[wanted, head.name] != value).sum())
            rows.loc[wanted, head.name] = value
    print(f"corrections: {len(frame)} rows of {path} changed {touched} labels")
    return rows


def pseudo_rows(settings, task):
    """The rows of data.pseudo: photos to answer for, with the answer of one fold's model, for that fold alone."""
    path = settings.data.pseudo
    frame = read_csv(path, PSEUDO_COLUMNS, "pseudo_label.py writes it", numbers=task.probabilities)
    photos = eval_rows(settings).drop_duplicates("ImageID").set_index("ImageID")
    unknown = ~frame["ImageID"].isin(photos.index)
    if unknown.any():
        line = int(np.argmax(unknown)) + 2
        raise InputError(
            f"{path}, row {line}: {frame['ImageID'].iloc[line - 2]} is not in {settings.data.eval}/info.csv"
        )
    told, folds = (pd.to_numeric(frame[name], errors="coerce") for name in ("ans", "fold"))
    bad = (~np.isfinite(told) if task.numeric else ~told.isin(range(task.size))) | ~folds.isin(
        range(settings.train.folds)
    )
    if bad.any():
        raise InputError(f"{path}, row {int(np.argmax(bad)) + 2}: fold or ans is no number in its range")
    heads = {head.name: -1 if head.kind == "named" else np.nan for head in task.heads}
    if task.numeric:
        heads[task.number.name] = told.to_numpy(float)
    found = pd.DataFrame(
        {
            "ImageID": frame["ImageID"],
            "photo": photos.loc[frame["ImageID"], "photo"].to_numpy(),
            "id": "eval/" + frame["ImageID"],
            **heads,
            "source": "pseudo",
            "split": "",
            "label": told if task.numeric else told.astype(int),
            "target": -1,
            "gap": False,
            "fold": folds.astype(int),
        }
    )
    for name in BOX:
        if name in photos:
            found[name] = photos.loc[frame["ImageID"], name].to_numpy()
    if not settings.data.pseudo_soft or task.numeric:
        return found
    wrong = [name for name in task.probabilities if name not in frame]
    if wrong or not np.isfinite(frame[task.probabilities].to_numpy()).all():
        raise InputError(f"{path}: data.pseudo_soft wants the probabilities p0, p1, ...: run pseudo_label.py again")
    return pd.concat([found, frame[task.probabilities]], axis=1)


def eval_rows(settings):
    """The photos to answer for: source, ImageID, photo; x1..y2 of boxes; target, -1 where a class folder tells none.

    In the order of info.csv (a row twice there is twice here), of a CSV or JSON file, or sorted, if data.eval is a
    folder of photos or of class folders.
    """
    path = Path(settings.data.eval)
    if path.suffix.lower() == ".json":
        problems = Problems()
        found = [(name, whole, *box) for name, whole, box, _ in boxes_of(path, problems, settings.data)]
        problems.stop_if_strict(True)
        rows = pd.DataFrame(found, columns=["ImageID", "photo", *BOX])
    elif path.is_dir() and not (path / "info.csv").is_file() and not (path / "images").is_dir():
        problems = Problems()
        found = list(photos_below(path, settings.data.roots, problems, "data.eval is what is answered for"))
        problems.stop_if_strict(True)
        rows = pd.DataFrame(found, columns=["ImageID", "photo"])
        task = settings.predicted
        if [head.column for head in task.answered] == ["class"]:
            known = {name: index for index, name in enumerate(task.classes)}
            rows["target"] = [known.get(name.split("/")[0], -1) for name in rows["ImageID"]]
    else:
        rows = listed_rows(path, settings.data.roots)
    if not len(rows):
        raise InputError(f"{path}: has no {'rows' if path.is_file() else 'photos'}: there is nothing to answer for")
    return rows.assign(source="eval")


def listed_rows(path, roots):
    """The photos of a CSV: a folder's info.csv (ImageID, photos below images/), or a file (photo, beside it)."""
    if path.suffix.lower() == ".csv":
        table, home, column = path, path.parent, "photo"
    else:
        table, home, column = path / "info.csv", path / "images", "ImageID"
    frame, fence = read_csv(table, [column], "data.eval should be the folder that holds info.csv"), Fence(home, roots)
    for line, name in enumerate(frame[column], start=2):
        if reason := fence.refuses(name) if name else "is empty":
            raise InputError(f"{table}, row {line}: {column} '{name}' {reason}")
    if not len(frame):
        raise InputError(f"{table}: has no rows: there is nothing to answer for")
    return pd.DataFrame({"ImageID": frame[column], "photo": [os.path.join(home, name) for name in frame[column]]})


def with_files(rows, crops):
    """Add `file`, what is to be read for each row: its crop, or the photo if `crops` is empty.

    `file` is "" where face_crop.py could not read the photo. Raises InputError if a photo was never cropped.
    """
    if not crops:
        return rows.assign(file=rows["photo"])
    path = Path(crops) / "manifest.csv"
    manifest = read_csv(path, MANIFEST_COLUMNS, "run face_crop.py first, or train on whole photos with --data.crops ''")
    key = [os.path.abspath(photo) for photo in manifest["photo"]]
    crop = dict(zip(key, manifest["crop"], strict=True))
    sha1 = dict(zip(key, manifest["sha1"], strict=True))
    for line, name in enumerate(manifest["crop"], start=2):
        if name.startswith("/") or ".." in name.split("/"):
            raise InputError(f"{path}, row {line}: crop '{name}' leaves the folder {crops}")
    wanted = [os.path.abspath(photo) for photo in rows["photo"]]
    missing = [photo for photo in wanted if photo not in crop]
    if missing:
        raise InputError(
            f"{path}: {len(missing)} of {len(wanted)} photos have no crop yet, such as {missing[0]}: "
            "run face_crop.py with the same settings"
        )
    return rows.assign(
        file=[str(Path(crops) / crop[photo]) if crop[photo] else "" for photo in wanted],
        sha1=[sha1[photo] for photo in wanted],
    )


def drop_unreadable(rows, settings, problems):
    """Leave out training photos that can't be read, each with its reason in `problems`; too many stop the run.

    Whole photos are decoded once for this; of crops the manifest knows. Raises InputError below 95 % of the rows.
    """
    from tqdm import tqdm

    from images import PhotoError, read_photo

    def reason(file):
        try:
            read_photo(file)
        except PhotoError as error:
            return str(error)
        return ""

    if settings.data.crops:
        reasons = np.where(rows["file"] == "", "unreadable (see the crops' manifest.csv)", "")
    else:
        with ThreadPoolExecutor(os.cpu_count()) as pool:  # OpenCV decodes outside Python's lock
            reasons = np.array(
                list(tqdm(pool.map(reason, rows["file"]), "checking photos", len(rows), unit="photo", disable=None)),
                dtype=object,
            )
    bad, everything = reasons != "", len(rows) + problems.photos
    for photo, why in zip(rows["photo"][bad], reasons[bad], strict=True):
        problems.add(photo, None, f"can't be read: {why}")
    if bad.any():
        print(f"left out: {int(bad.sum())} photos that can't be read, such as {rows['photo'][bad].iloc[0]}")
    if (~bad).sum() < ENOUGH * everything:
        first = problems.rows[0]
        raise InputError(
            f"only {int((~bad).sum())} of {everything} rows can be trained on, less than {ENOUGH:.0%}; "
            f"the first that can't: {first['file']}: {first['reason']}"
        )
    return rows[~bad].reset_index(drop=True)
