"""How photos lie about, and what their tables, folders and names say of them: a reader for each layout.

    competition    train.csv (id, gender, race, age, path) and images/<path>/<mask1-5, incorrect_mask, normal>
    aaf, utkface   photos whose names hold age and gender
    folder         a folder a class, maybe below train, valid and test
    boxes          JSON of {"image", "label", "bbox": [x1, y1, x2, y2]}
    table          a CSV with a column that names the photo and those of the task's heads

A bad row or photo is never dropped in silence: it becomes a problem, with file, row and reason.
"""

import os
import re
from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np
import pandas as pd
import regex

from foldface.data import tables
from foldface.data.paths import Fence, located, photos_below
from foldface.data.photos import turned_box, turned_by
from foldface.data.problems import Problems
from foldface.files import InputError, read_csv, read_json, warn_once
from foldface.names import Finder
from foldface.registry import lookup, register
from foldface.settings import DataConfig
from foldface.task import Task

STEMS = {f"mask{n}": "wear" for n in range(1, 6)} | {"incorrect_mask": "incorrect", "normal": "normal"}
BOX = ["x1", "y1", "x2", "y2"]
MATCH_SECONDS = 2  # that the regular expression data.group may take on one path
AAF_NAME = re.compile(r"(\d{5})A(\d{2,3})(?:\.\w+)?", re.IGNORECASE)
AAF_LAST_FEMALE = 7380
UTKFACE_NAME = re.compile(r"(\d{1,3})_([01])_([0-4])_(\d+)(?:\.\w+)*")
RACES = ("white", "black", "asian", "indian", "other")
SPLITS = {"train": "train", "valid": "valid", "val": "valid", "validation": "valid", "test": "test"}


# A layout by its name (data.layout): (path, task, Problems, config.data) -> rows of ImageID, photo, id and a column a
# head.


@register("layout", "competition")
def read_competition(folder, task, problems, data):
    """train.csv and images/<path>/<seven photos> of the mask competition -> rows."""
    fence = Fence(Path(folder) / "images", data.roots)
    table = Path(folder) / "train.csv"
    columns = ["id", *(head.column for head in task.heads if head.column != "mask"), "path"]
    frame = read_csv(table, columns, "data.train should be the folder that holds train.csv")
    group = data.group if data.group in frame.columns else "id"
    found, seen, finder = [], set(), Finder(Path(folder) / "images")
    for line, row in enumerate(records(frame), start=2):
        identity, path = row[group], row["path"]
        _, reason = task.parse(row | {"mask": "wear"})
        if reason:
            pass
        elif not identity:
            reason = f"{group} is empty"
        elif not path:
            reason = "path is empty"
        else:
            path, reason = located(finder, fence, "path", path, os.path.isdir)
        if not reason and path in seen:
            reason = f"path '{path}' stands on an earlier row already"
        if reason:
            problems.add(table, line, reason, len(STEMS))
            continue
        seen.add(path)
        home = Path(folder) / "images" / path
        content = sorted(os.listdir(home)) if os.path.isdir(home) else None
        photos = [name for name in content or [] if not name.startswith(".")]
        if not photos:
            what = "doesn't exist" if content is None else "holds no photo"
            problems.add(table, line, f"the folder {home} {what}", len(STEMS))
        for name in photos:
            mask = STEMS.get(os.path.splitext(name)[0].lower())
            if mask is None:
                problems.add(home / name, None, f"is named none of {', '.join(STEMS)}")
            elif astray := fence.refuses(f"{path}/{name}"):
                problems.add(home / name, None, astray)
            else:
                values, _ = task.parse(row | {"mask": mask})
                found.append((f"{path}/{name}", os.path.join(home, name), identity, *values.values()))
    finder.report(table)
    return as_rows(found, task).assign(grouped=group == data.group)


def records(frame):
    """The rows of a DataFrame as dicts, one at a time: a million at once would take a gigabyte."""
    for cells in zip(*(frame[name] for name in frame.columns), strict=True):
        yield dict(zip(frame.columns, cells, strict=True))


def as_rows(found, task, more=()):
    """[(ImageID, photo, id, a value a head, ...)] -> DataFrame."""
    return pd.DataFrame(found, columns=["ImageID", "photo", "id", *(head.key for head in task.heads), *more])


def refuse_missing(task, columns, layout):
    """Raise InputError where the task wants a column that a layout doesn't have."""
    missing = [head.column for head in task.heads if head.column not in columns]
    if missing:
        raise InputError(
            f"layout {layout} has no column {missing[0]}, which task.heads wants; it has {', '.join(columns)}"
            + ('; for a class a folder set task.heads to [{"name": "class"}]' if "class" in columns else "")
        )


def read_named(folder, task, problems, data, layout):
    """Photos whose names hold their labels: All-Age-Faces (Cheng et al. 2019), where 00000A02.jpg is serial 0 at two
    years of age, and UTKFace (Zhang et al. 2017), where 25_1_2_20170116.jpg is 25 years, female, Asian. No masks."""
    columns, pattern, example = {
        "aaf": (("mask", "gender", "age"), AAF_NAME, "All-Age-Faces' 00000A02.jpg"),
        "utkface": (("mask", "gender", "age", "race"), UTKFACE_NAME, "UTKFace's 25_1_2_20170116174525125.jpg"),
    }[layout]
    refuse_missing(task, columns, layout)
    found = []
    for name, whole in photos_below(folder, data.roots, problems, f"layout {layout} wants the folder of its photos"):
        match = pattern.fullmatch(os.path.basename(name))
        if match is None:
            problems.add(whole, None, f"is not named like {example}")
            continue
        if layout == "aaf":
            gender = "female" if int(match[1]) <= AAF_LAST_FEMALE else "male"
            identity, row = f"aaf-{match[1]}", {"mask": "normal", "gender": gender, "age": match[2]}
        else:
            gender = ("male", "female")[int(match[2])]
            row = {"mask": "normal", "gender": gender, "age": match[1], "race": RACES[int(match[3])]}
            identity = f"utk-{name}"
        values, reason = task.parse(row)
        if reason:
            problems.add(whole, None, reason)
        else:
            found.append((name, whole, identity, *values.values()))
    return as_rows(found, task)


@register("layout", "aaf")
def read_aaf(folder, task, problems, data):
    return read_named(folder, task, problems, data, "aaf")


@register("layout", "utkface")
def read_utkface(folder, task, problems, data):
    return read_named(folder, task, problems, data, "utkface")


@register("layout", "folder")
def read_folder(folder, task, problems, data):
    """A folder a class, alone or below train, valid and test; folders within a class's folder belong to it."""
    refuse_missing(task, ("class",), "folder")
    top = sorted(p.name for p in Path(folder).iterdir() if p.is_dir()) if Path(folder).is_dir() else []
    top = [name for name in top if not name.startswith(".")]
    splits = {name: SPLITS[name.lower()] for name in top if name.lower() in SPLITS}
    if "train" not in splits.values() or len(splits) < len(top):  # train may be a class too, beside car and boat
        splits = {}
    found, filled = [], set()
    for name, whole in photos_below(folder, data.roots, problems, "layout folder wants a folder of class folders"):
        parts = name.split("/")
        split = splits.get(parts[0], "") if splits else ""
        if splits and not split:
            problems.add(whole, None, f"lies outside of {', '.join(splits)}")
            continue
        home = parts[1:] if splits else parts
        filled.add("/".join(parts[: len(parts) - len(home) + 1]))
        if len(home) < 2:
            problems.add(whole, None, "lies in no class's folder")
            continue
        if any(part != part.strip() for part in parts):
            problems.add(whole, None, "its path has a name that begins or ends with a space: rename it")
            continue
        values, reason = task.parse({"class": home[0]})
        if reason:
            problems.add(whole, None, reason)
        else:
            found.append((name, whole, name, *values.values(), split))
    homes = [f"{split}/{p.name}" for split in splits for p in (Path(folder) / split).iterdir() if p.is_dir()]
    for home in sorted(set(homes or top) - filled):
        if not os.path.basename(home).startswith("."):
            problems.add(Path(folder) / home, None, "holds no photo", 0)
    return as_rows(found, task, ["split"])


@register("layout", "boxes")
def read_boxes(path, task, problems, data):
    """[{"image": path beside the file, "label", "bbox": [x1, y1, x2, y2]}] -> a row a box, named image#number."""
    found = []
    for name, whole, box, item in boxes_of(path, problems, data):
        scalars = {key: value for key, value in item.items() if isinstance(value, str | int | float)}
        row = {key: str(value) for key, value in scalars.items() if not isinstance(value, bool)}
        row["class"] = row.get("label", "")
        missing = [head.column for head in task.heads if head.column not in row]
        values, reason = (None, f"has no {missing[0]}") if missing else task.parse(row)
        if reason:
            problems.add(path, None, f"{name}: {reason}")
        else:
            found.append((name, whole, item["image"], *values.values(), *box))
    return as_rows(found, task, BOX)


def boxes_of(path: Path | str, problems: Problems, data: DataConfig) -> Iterator[tuple[str, str, list[float], dict]]:
    """The boxes of a JSON file that can be used: yields (image#number, the photo's path, four numbers, its dict).

    The numbers are pixels of the upright photo. Where EXIF turns photos, data.box_pixels says what the file's are.
    """
    content = read_json(path, "layout boxes wants a JSON file")
    if not isinstance(content, list):
        raise InputError(f'{path}: should be a list of {{"image": ..., "label": ..., "bbox": [x1, y1, x2, y2]}}')
    fence, finder, count, turns = Fence(Path(path).parent, data.roots), Finder(Path(path).parent), {}, {}
    for number, item in enumerate(content, start=1):
        image = item.get("image") if isinstance(item, dict) else None
        if not isinstance(image, str) or not image:
            problems.add(path, None, f"entry {number} names no image")
            continue
        box = item.get("bbox")
        try:
            x1, y1, x2, y2 = map(float, box if isinstance(box, list) else [])
            wide = np.isfinite([x1, y1, x2, y2]).all() and x2 - x1 >= 1 and y2 - y1 >= 1 and x2 >= 1 and y2 >= 1
        except (TypeError, ValueError, OverflowError):  # the last for a whole number of 400 digits
            wide = False
        if not wide:
            problems.add(path, None, f"entry {number}: bbox of {image} is {box}, should be [x1, y1, x2, y2]")
            continue
        real, reason = located(finder, fence, "image", image)
        whole = str(Path(path).parent / real)
        if reason:
            problems.add(path, None, f"entry {number}: {reason}")
        elif not os.path.isfile(whole):
            problems.add(path, None, f"entry {number}: there is no photo {whole}")
        else:
            count[image] = count.get(image, -1) + 1
            if image not in turns:
                turns[image] = turned_by(whole)
            box = [x1, y1, x2, y2]
            if data.box_pixels == "stored":
                box = turned_box(box, *turns[image])
            yield f"{image}#{count[image]}", whole, box, item
    turned = sum(turn > 1 for turn, _, _ in turns.values())
    if turned:
        warn_once(
            f"{path}: {turned} of {len(turns)} photos are turned by their EXIF tag; their boxes are taken to be in the "
            f"pixels of the photo as it is {data.box_pixels} (data.box_pixels: upright or stored)"
        )
    finder.report(path)


@register("layout", "table")
def read_table(table, task, problems, data):
    """A CSV with the heads' columns, one that names the photo (tables.Photos finds it, and where the photos lie) and,
    if photos belong together, id."""
    labels = [name for head in task.heads for name in head.table_columns]
    frame = tables.read_table(table, labels, "layout table wants a CSV file")
    photos = tables.Photos(table, frame, data, labels)
    group = data.group if data.group in frame.columns else "id" if "id" in frame.columns else photos.column
    repeated = "" if data.group else tables.repeated_column(frame, {*labels, photos.column, group})
    if repeated and frame[group].is_unique:
        warn_once(
            f"{table}: column {repeated} repeats ({frame[repeated].nunique()} values in {len(frame)} rows): if photos "
            f"of one {repeated} are alike, say --data.group {repeated}: folds then keep them together, and scores hold"
        )
    found, seen = [], set()
    for line, (name, row) in enumerate(zip(tables.ids_of(frame, data, photos.column), records(frame), strict=True), 2):
        photo = row[photos.column]
        values, reason = task.parse(row)
        if reason:
            pass
        elif not photo:
            reason = f"{photos.column} is empty"
        elif not row[group]:
            reason = f"{group} is empty"
        else:
            real, reason = photos.locate(photo)
        if not reason and real in seen:
            reason = f"{photos.column} '{photo}' stands on an earlier row already"
        elif not reason and not os.path.isfile(real):
            reason = f"there is no photo {real}"
        if reason:
            problems.add(table, line, reason)
            continue
        seen.add(real)
        found.append((name, real, row[group], *values.values()))
    photos.report()
    return as_rows(found, task).assign(grouped=group == data.group)


def read_layout(name: str, path: Path | str, task: Task, problems: Problems, data: DataConfig) -> pd.DataFrame:
    """The rows of a layout by its name: ImageID, photo, id and a column a head; what is wrong goes to problems."""
    return lookup("layout", name)(path, task, problems, data)


def grouped(rows: pd.DataFrame, data: DataConfig, problems: Problems, by_column: bool = False) -> pd.DataFrame:
    """The rows with the id that data.group gives each photo, and `shared`: does an id mean the same in every source?

    Photos that it gives none are problems. by_column: it is a column of data.train, so no regular expression.
    Raises InputError for what is neither.
    """
    done = bool(rows.pop("grouped").any()) if "grouped" in rows else False
    if not data.group or done or by_column:
        return rows.assign(shared=done)
    ids = np.array(groups_by_name(data.group, rows["ImageID"]), dtype=object)
    kept = np.array([bool(name) for name in ids], bool)
    for name in rows["photo"][~kept]:
        problems.add(name, None, f"data.group {data.group} matches nothing in its name")
    return rows[kept].assign(id=ids[kept], shared=True).reset_index(drop=True)


def groups_by_name(group: str, names: Iterable[str], setting: str = "data.group") -> list[str]:
    """What a regular expression, such as data.group, finds in each name: [str or "" where it finds nothing].

    That is the first of its groups that isn't empty, or, if it has none, its match. Raises InputError if it is none,
    and where it takes longer than MATCH_SECONDS on a name: it may come from a stranger's run, and (a|aa)+$ takes years.
    """
    try:
        pattern = regex.compile(group)
    except (regex.error, RecursionError) as error:
        raise InputError(f"{setting} {group}: no column of that name, and no regular expression ({error})") from None
    matches = []
    for name in names:
        try:
            matches.append(pattern.search(name, timeout=MATCH_SECONDS))
        except TimeoutError:
            raise InputError(
                f"{setting} {group}: takes more than {MATCH_SECONDS} s on {name}: write it without a repetition "
                "inside a repetition"
            ) from None
    return [next(filter(None, match.groups() or [match[0]]), "") if match else "" for match in matches]
