"""CROPS/manifest.csv: its columns, and the crop of each photo."""

import hashlib
import os
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pandas as pd
from tqdm import tqdm

from foldface import names
from foldface.cli import LIMITS
from foldface.data import shards
from foldface.data.remote import crop_folder
from foldface.data.shard_index import INDEX, read_index
from foldface.files import (
    InputError,
    read_csv,
    refuse_special,
)
from foldface.runtime import cores

MANIFEST_COLUMNS = ["photo", "crop", "status", "detector", "score", "x1", "y1", "x2", "y2", "faces", "sha1"]
STAMP = ["size", "mtime"]  # further columns: bytes and mtime in nanoseconds of the photo when it was cropped


def stamp_of(path: Path | str) -> tuple[str, str]:
    """(size, mtime) of a file, bytes and nanoseconds as text as in the manifest; ("", "") if there is no file."""
    try:
        found = os.stat(path)
    except OSError as error:
        if error.errno in LIMITS:
            raise
        return "", ""
    return str(found.st_size), str(found.st_mtime_ns)


def sha1_of(photo):
    """A photo's sha1 as hex, "" if there is no such regular file."""
    try:
        refuse_special(photo)
        return hashlib.sha1(Path(photo).read_bytes()).hexdigest()
    except OSError as error:
        if error.errno in LIMITS:
            raise
        return ""


def digests(photos: Sequence[str], known: np.ndarray) -> pd.DataFrame:
    """The current sha1, size, mtime of photos, a DataFrame; "" for a photo that doesn't exist.

    known: (n, 3), the same of an earlier start; only photos whose size or time has changed are read again.
    """
    with ThreadPoolExecutor(cores(most=8)) as pool:
        stamps = list(pool.map(stamp_of, photos))
        same = [stamp == (size, mtime) for stamp, (_, size, mtime) in zip(stamps, known, strict=True)]
        left = [photo for photo, is_same in zip(photos, same, strict=True) if not is_same]
        read = pool.map(sha1_of, left)
        read = iter(list(tqdm(read, "comparing", len(left), unit="photo", leave=False, disable=None if left else True)))
    sha1 = [was[0] if is_same else next(read) for was, is_same in zip(known, same, strict=True)]
    return pd.DataFrame(stamps, columns=STAMP).assign(sha1=sha1)


def refuse_stale(rows, crops):
    """Raise InputError where a photo has changed since it was cropped, or its crop is missing or empty.

    rows: DataFrame of photo, file (its crop, "" = none), sha1, size, mtime of the manifest. A warning counts
    photos that don't exist, as where only the crops were copied to another machine.
    """
    again = "run face_crop.py with the same settings again: it crops only those"
    rows = rows.drop_duplicates("photo")
    now = digests(rows["photo"].tolist(), rows[["sha1", *STAMP]].to_numpy(str))
    gone = ((now["size"] == "") & (rows["sha1"].to_numpy() != "")).to_numpy()
    changed = (now["sha1"].to_numpy() != rows["sha1"].to_numpy()) & ~gone
    if changed.any():
        raise InputError(
            f"{crops}: {changed.sum()} of {len(rows)} photos were replaced since they were cropped, such as "
            f"{rows['photo'][changed].iloc[0]}: {again}"
        )
    if gone.any():
        print(
            f"warning: {gone.sum()} of {len(rows)} photos don't exist, such as {rows['photo'][gone].iloc[0]}: "
            f"their crops in {crops} are used unchecked",
            file=sys.stderr,
        )
    lost = shards.lost(rows["file"])
    lost += [file for file in rows["file"] if file and not shards.parsed(file) and stamp_of(file)[0] in ("", "0")]
    if lost:
        raise InputError(f"{lost[0]}: is missing or empty, as are {len(lost) - 1} more crops: {again}")


def with_files(rows: pd.DataFrame, crops: Path | str) -> pd.DataFrame:
    """Add `file`, the file to read for each row: its crop, or the photo if `crops` is empty.

    `file` is "" where face_crop.py could not read the photo. Raises InputError if a photo was never cropped, or was
    replaced since.
    """
    if not crops:
        return rows.assign(file=rows["photo"])
    crops = crop_folder(crops)
    path = Path(crops) / "manifest.csv"
    manifest = read_csv(path, MANIFEST_COLUMNS, "run face_crop.py first, or train on whole photos with --data.crops ''")
    for line, name in enumerate(manifest["crop"], start=2):
        if name.startswith("/") or ".." in name.split("/"):
            raise InputError(f"{path}, row {line}: crop '{name}' leaves the folder {crops}")
    at = placed(manifest, rows)
    if (at < 0).any():
        raise InputError(
            f"{path}: {(at < 0).sum()} of {len(at)} photos have no crop yet, such as "
            f"{os.path.abspath(rows['photo'].iloc[at.argmin()])}: run face_crop.py with the same settings"
        )
    mine = manifest.iloc[at].reindex(columns=[*MANIFEST_COLUMNS, *STAMP], fill_value="").reset_index(drop=True)
    refuse_shared_crops(mine, path)
    rows = rows.assign(file=files_of(crops, mine["crop"]))
    rows["sha1"] = mine["sha1"].to_numpy()
    rows["faceless"] = mine["status"].isin(["missed", "guessed"]).to_numpy()
    refuse_stale(rows.assign(**{name: mine[name].to_numpy() for name in STAMP}), crops)
    return rows


def files_of(crops: Path | str, names: Sequence[str]) -> list[str]:
    """What is read for each crop: its file, or its place in a shard where `crops` is a folder of shards; "" for ""."""
    path = Path(crops) / INDEX
    if not path.is_file():
        return [str(Path(crops) / name) if name else "" for name in names]
    index = read_index(crops)
    paths = {shard: str(Path(crops) / shard) for shard in index["shard"].unique()}
    found = {"": ""}
    for crop, shard, offset, size in zip(*(index[name].tolist() for name in index), strict=True):
        found[crop] = shards.member(paths[shard], offset, size)
    missing = [name for name in names if name not in found]
    if missing:
        raise InputError(f"{path}: has no {missing[0]}: run face_crop.py --crop.shards again")
    return [found[name] for name in names]


def own_names(rows: pd.DataFrame) -> pd.Series:
    """The names of photos below their table or folder, (n,) str; those of data.extra without extraN/."""
    return rows["ImageID"].where(rows["source"] != "extra", rows["ImageID"].str.partition("/")[2])


def placed(manifest: pd.DataFrame, rows: pd.DataFrame) -> np.ndarray:
    """The position of each photo in a manifest, (n,) int; -1 = not there.

    Photos are found by path; where the path is not there (another machine or folder), by the name below their table or
    folder and the sha1. rows: source, ImageID and photo; sha1 if it is known.
    """
    known = {os.path.abspath(photo): k for k, photo in enumerate(manifest["photo"])}
    at = np.array([known.get(os.path.abspath(photo), -1) for photo in rows["photo"]], np.int64)
    lost = np.flatnonzero(at < 0)
    if not len(lost) or not len(manifest):
        return at
    wanted = [names.folded(name).strip("/").split("/") for name in own_names(rows).iloc[lost]]
    theirs = [names.folded(photo).replace("\\", "/").split("/") for photo in manifest["photo"]]
    places = {}
    for depth in {len(parts) for parts in wanted}:
        for k, parts in enumerate(theirs):
            places.setdefault(tuple(parts[-depth:]), []).append(k)
    asked = [(row, places[tuple(parts)]) for row, parts in zip(lost, wanted, strict=True) if tuple(parts) in places]
    asked_rows = rows.iloc[[row for row, _ in asked]]
    if "sha1" in rows:
        found = asked_rows["sha1"]
    else:
        with ThreadPoolExecutor(cores()) as pool:
            found = list(pool.map(sha1_of, asked_rows["photo"]))
    sha1 = manifest["sha1"].tolist()
    for (row, candidates), digest in zip(asked, found, strict=True):
        at[row] = next((k for k in candidates if digest and sha1[k] == digest), -1)
    return at


def refuse_shared_crops(manifest, path):
    """Raise InputError where different photos share a crop, as two sets of data.extra did in earlier versions."""
    shared = manifest[manifest["crop"] != ""].drop_duplicates(["crop", "sha1"])
    shared = shared[shared["crop"].duplicated(keep=False)]
    if len(shared):
        first, second = shared[shared["crop"] == shared["crop"].iloc[0]]["photo"].iloc[:2]
        raise InputError(f"{path}: {first} and {second} have the same crop: run face_crop.py with the same settings")


CORNERS = ["x1", "y1", "x2", "y2"]
