"""Tables of photos -> rows: one schema whatever the layout, labels corrected, what is wrong said.

A row is a photo. Columns of the rows that all scripts share:

    source   train | extra | pseudo | eval
    ImageID  the photo's name in our CSVs: its path below images/, or what the table calls it
    photo    path of the photo as it was taken; `file` is what is read instead: its crop, or the photo itself
    id       the person, a string
    mask, gender, age    class index, class index, years (-1 where unknown)
    label    class 0..17 to train on, by data.age_boundary
    gap      true where the age is too near to a boundary to be trained on (data.age_gap)
    target   class 0..17 to be scored on, by the real boundary of 60
    fold     of a pseudo row, the fold that alone trains it; folds.py gives the others theirs

Nothing here imports torch.
"""

import os
import re
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pandas as pd

import labels
from files import InputError, read_csv

STEMS = {f"mask{n}": "wear" for n in range(1, 6)} | {"incorrect_mask": "incorrect", "normal": "normal"}
TRAIN_COLUMNS = ["id", "gender", "age", "path"]
TABLE_COLUMNS = ["photo", "id", "mask", "gender", "age"]
PSEUDO_COLUMNS = ["ImageID", "fold", "ans", "confidence"]
MANIFEST_COLUMNS = ["photo", "crop", "status", "detector", "score", "x1", "y1", "x2", "y2", "faces", "sha1"]
AAF_NAME = re.compile(r"(\d{5})A(\d{2,3})\.(?:jpe?g|png)", re.IGNORECASE)
AAF_LAST_FEMALE = 7380
ENOUGH = 0.95  # a run on less of its rows than this is no run on this data


# ------------------------------------------------------------------------------------------------- the layouts


class Problems:
    """What is wrong with the data, in the order in which it was met: file, row, reason."""

    def __init__(self):
        self.rows, self.photos = [], 0

    def add(self, file, row, reason, photos=1):
        """file: the table or photo; row: its line there (1 is the header), or None; photos: how many it stood for."""
        self.photos += photos
        self.rows.append({"file": str(file), "row": row, "reason": reason})

    def stop_if_strict(self, strict):
        """Raise InputError for the first of them, counting the others."""
        if strict and self.rows:
            first, more = self.rows[0], len(self.rows) - 1
            at = f", row {first['row']}" if first["row"] else ""
            raise InputError(
                f"{first['file']}{at}: {first['reason']}"
                + (f" (and {more} more like this)" if more else "")
                + "; mend it, or leave such rows out with --data.strict false"
            )


def read_competition(folder, problems, allowed=()):
    """train.csv and images/<path>/<seven photos> of the mask competition -> rows."""
    fence = Fence(Path(folder) / "images", allowed)
    table = Path(folder) / "train.csv"
    frame = read_csv(table, TRAIN_COLUMNS, "data.train should be the folder that holds train.csv")
    found, seen = [], set()
    for line, row in enumerate(frame.itertuples(index=False), start=2):
        gender, age, reason = parse_gender(row.gender), *parse_age(row.age)
        if gender is None:
            reason = f"gender is '{row.gender}', should be male or female"
        elif not row.id:
            reason = "id is empty"
        elif not row.path:
            reason = "path is empty"
        elif astray := fence.refuses(row.path):
            reason = f"path '{row.path}' {astray}"
        elif row.path in seen:
            reason = f"path '{row.path}' stands on an earlier row already"
        if reason:
            problems.add(table, line, reason, len(STEMS))
            continue
        seen.add(row.path)
        home = Path(folder) / "images" / row.path
        names = sorted(os.listdir(home)) if home.is_dir() else None
        photos = [name for name in names or [] if not name.startswith(".")]
        if not photos:
            what = "doesn't exist" if names is None else "holds no photo"
            problems.add(table, line, f"the folder {home} {what}", len(STEMS))
        for name in photos:
            mask = STEMS.get(os.path.splitext(name)[0].lower())
            if mask is None:
                problems.add(home / name, None, f"is named none of {', '.join(STEMS)}")
            elif astray := fence.refuses(f"{row.path}/{name}"):
                problems.add(home / name, None, astray)
            else:
                found.append(
                    (f"{row.path}/{name}", os.path.join(home, name), row.id, labels.MASKS.index(mask), gender, age)
                )
    return pd.DataFrame(found, columns=["ImageID", "photo", "id", "mask", "gender", "age"])


def read_aaf(folder, problems, allowed=()):
    """All-Age-Faces (Cheng et al. 2019): 00000A02.jpg is serial 0 at two years of age; nobody wears a mask."""
    if not Path(folder).is_dir():
        raise InputError(f"{folder}: no such folder; layout aaf wants the folder of All-Age-Faces")
    found, fence = [], Fence(folder, allowed)
    for home, folders, names in os.walk(folder):
        folders.sort()
        for name in sorted(n for n in names if not n.startswith(".")):
            match = AAF_NAME.fullmatch(name)
            if match is None:
                if name.lower().endswith((".jpg", ".jpeg", ".png")):
                    problems.add(Path(home) / name, None, "is not named like All-Age-Faces' 00000A02.jpg")
                continue
            if reason := fence.refuses(os.path.relpath(Path(home) / name, folder)):
                problems.add(Path(home) / name, None, reason)
                continue
            gender = labels.GENDERS.index("female" if int(match[1]) <= AAF_LAST_FEMALE else "male")
            path = Path(home) / name
            found.append(
                (
                    path.relative_to(folder).as_posix(),
                    str(path),
                    f"aaf-{match[1]}",
                    labels.MASKS.index("normal"),
                    gender,
                    int(match[2]),
                )
            )
    return pd.DataFrame(found, columns=["ImageID", "photo", "id", "mask", "gender", "age"])


def read_table(table, problems, allowed=()):
    """A CSV with photo,id,mask,gender,age; photos lie below the CSV's own folder."""
    frame, root = read_csv(table, TABLE_COLUMNS, "layout table wants a CSV file"), Path(table).parent
    found, seen, fence = [], set(), Fence(root, allowed)
    for line, row in enumerate(frame.itertuples(index=False), start=2):
        gender, age, reason = parse_gender(row.gender), *parse_age(row.age)
        if row.mask not in labels.MASKS:
            reason = f"mask is '{row.mask}', should be one of {', '.join(labels.MASKS)}"
        elif gender is None:
            reason = f"gender is '{row.gender}', should be male or female"
        elif not row.id:
            reason = "id is empty"
        elif not row.photo:
            reason = "photo is empty"
        elif astray := fence.refuses(row.photo):
            reason = f"photo '{row.photo}' {astray}"
        elif row.photo in seen:
            reason = f"photo '{row.photo}' stands on an earlier row already"
        elif not (root / row.photo).is_file():
            reason = f"there is no photo {root / row.photo}"
        if reason:
            problems.add(table, line, reason)
            continue
        seen.add(row.photo)
        found.append((row.photo, f"{root / row.photo}", row.id, labels.MASKS.index(row.mask), gender, age))
    return pd.DataFrame(found, columns=["ImageID", "photo", "id", "mask", "gender", "age"])


LAYOUTS = {"competition": read_competition, "aaf": read_aaf, "table": read_table}


def parse_gender(text):
    """Index of a gender, or None."""
    text = text.lower()
    return labels.GENDERS.index(text) if text in labels.GENDERS else None


def parse_age(text):
    """(years, "") or (None, what is wrong); 29.0 is 29."""
    try:
        age = float(text)
    except ValueError:
        age = float("nan")
    if not 0 <= age <= 120:
        return None, f"age is '{text}', should be a number from 0 to 120"
    return int(age), ""


class Fence:
    """What a table may name: photos below its own folder, links followed, or below a folder that data.roots allows."""

    def __init__(self, root, allowed):
        self.root, self.homes = str(root), {}
        self.roots = tuple(os.path.join(os.path.realpath(folder), "") for folder in (root, *allowed))

    def refuses(self, path):
        """Why a path from a table, relative to the root, is refused; "" if it isn't."""
        if ".." in path.replace("\\", "/").split("/"):
            return f"leaves the folder {self.root}"
        whole = os.path.join(self.root, path)
        home, name = os.path.split(whole)
        if home not in self.homes:  # a folder's links are followed once, not once a photo
            self.homes[home] = os.path.realpath(home)
        real = os.path.realpath(whole) if os.path.islink(whole) else os.path.join(self.homes[home], name)
        if os.path.join(real, "").startswith(self.roots):
            return ""
        return f"leaves the folder {self.root}" + (
            "; data.roots can allow where it lies" if os.path.exists(whole) else ""
        )


# ----------------------------------------------------------------------------------------------------- the rows


def training_rows(settings):
    """All rows that may be trained on, without folds: (rows, Problems).

    Raises InputError for a bad row if data.strict, and where too few rows are left.
    """
    data, problems = settings.data, Problems()
    parts = [LAYOUTS[data.layout](data.train, problems, data.roots).assign(source="train")]
    parts += [LAYOUTS[extra.layout](extra.path, problems, data.roots).assign(source="extra") for extra in data.extra]
    problems.stop_if_strict(data.strict)
    rows = pd.concat(parts, ignore_index=True)
    if data.corrections:
        rows = correct(rows, data.corrections)
    if not (rows["source"] == "train").any():
        raise InputError(
            f"{data.train}: no photo to train on is left" + (f": {problems.rows[0]['reason']}" if problems.rows else "")
        )
    rows["label"] = labels.encode(rows["mask"], rows["gender"], labels.age_class(rows["age"], data.age_boundary))
    rows["target"] = labels.encode(rows["mask"], rows["gender"], labels.age_class(rows["age"]))
    near = [rows["age"].between(bound - data.age_gap, bound + data.age_gap - 1) for bound in (30, data.age_boundary)]
    rows["gap"] = near[0] | near[1]
    if data.pseudo:
        rows = pd.concat([rows, pseudo_rows(settings)], ignore_index=True)
    return rows, problems


def correct(rows, path):
    """Apply the corrections of a CSV (photo or id, column, value) to the rows and print how many took effect."""
    frame = read_csv(path, ["column", "value"])
    keys = [key for key in ("photo", "id") if key in frame.columns]
    if not keys:
        raise InputError(f"{path}: has neither a column photo nor id; it has {', '.join(frame.columns)}")
    rows, touched = rows.copy(), 0
    for line, row in enumerate(frame.to_dict("records"), start=2):
        key = next((key for key in keys if str(row[key]) not in ("", "nan")), None)
        if key is None:
            raise InputError(f"{path}, row {line}: names neither a photo nor an id")
        wanted = rows["id" if key == "id" else "ImageID"] == str(row[key]).strip()
        if not wanted.any():
            raise InputError(f"{path}, row {line}: there is no {key} '{row[key]}' among the rows to train on")
        if row["column"] == "age":
            value, reason = parse_age(row["value"])
        elif row["column"] in ("mask", "gender"):
            names = labels.HEADS[row["column"]]
            value = names.index(row["value"]) if row["value"] in names else None
            reason = f"{row['column']} is '{row['value']}', should be one of {', '.join(names)}"
        else:
            raise InputError(f"{path}, row {line}: column is '{row['column']}', should be mask, gender or age")
        if value is None:
            raise InputError(f"{path}, row {line}: {reason}")
        touched += int((rows.loc[wanted, row["column"]] != value).sum())
        rows.loc[wanted, row["column"]] = value
    print(f"corrections: {len(frame)} rows of {path} changed {touched} labels")
    return rows


def pseudo_rows(settings):
    """The rows of data.pseudo: photos to answer for, with the answer of one fold's model, for that fold alone."""
    path = settings.data.pseudo
    frame = read_csv(path, PSEUDO_COLUMNS, "pseudo_label.py writes it", numbers=labels.PROBABILITIES)
    photos = eval_rows(settings).drop_duplicates("ImageID").set_index("ImageID")["photo"]
    unknown = ~frame["ImageID"].isin(photos.index)
    if unknown.any():
        line = int(np.argmax(unknown)) + 2
        raise InputError(
            f"{path}, row {line}: {frame['ImageID'].iloc[line - 2]} is not in {settings.data.eval}/info.csv"
        )
    answers, folds = (pd.to_numeric(frame[name], errors="coerce") for name in ("ans", "fold"))
    bad = ~answers.isin(range(len(labels.CLASSES))) | ~folds.isin(range(settings.train.folds))
    if bad.any():
        raise InputError(f"{path}, row {int(np.argmax(bad)) + 2}: fold or ans is no number in its range")
    found = pd.DataFrame(
        {
            "ImageID": frame["ImageID"],
            "photo": photos.loc[frame["ImageID"]].to_numpy(),
            "id": "eval/" + frame["ImageID"],
            "mask": -1,
            "gender": -1,
            "age": -1,
            "source": "pseudo",
            "label": answers.astype(int),
            "target": -1,
            "gap": False,
            "fold": folds.astype(int),
        }
    )
    if not settings.data.pseudo_soft:
        return found
    wrong = [name for name in labels.PROBABILITIES if name not in frame]
    if wrong or not np.isfinite(frame[labels.PROBABILITIES].to_numpy()).all():
        raise InputError(f"{path}: data.pseudo_soft wants the probabilities p0..p17: run pseudo_label.py again")
    return pd.concat([found, frame[labels.PROBABILITIES]], axis=1)


def eval_rows(settings):
    """The photos to answer for, in the order of info.csv: source, ImageID, photo. A row twice there is twice here."""
    folder = Path(settings.data.eval)
    table = folder / "info.csv"
    frame = read_csv(table, ["ImageID"], "data.eval should be the folder that holds info.csv")
    fence = Fence(folder / "images", settings.data.roots)
    for line, name in enumerate(frame["ImageID"], start=2):
        if reason := fence.refuses(name) if name else "is empty":
            raise InputError(f"{table}, row {line}: ImageID '{name}' {reason}")
    if not len(frame):
        raise InputError(f"{table}: has no rows: there is nothing to answer for")
    return pd.DataFrame(
        {
            "source": "eval",
            "ImageID": frame["ImageID"],
            "photo": [os.path.join(folder, "images", name) for name in frame["ImageID"]],
        }
    )


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
