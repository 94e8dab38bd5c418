"""Which photos are not trained on: without a face, too small, doubled, too many of a class, unreadable.

Each is given its reason in `problems`, which becomes rejected.csv. Nothing in the user's folders is touched.
"""

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pandas as pd
from tqdm import tqdm

from foldface.data import duplicates
from foldface.data.layouts import BOX
from foldface.data.photos import PhotoError, cut_box, read_photo
from foldface.data.problems import Problems
from foldface.files import InputError, write_csv
from foldface.runtime import cores
from foldface.settings import Config

MIN_USABLE_SHARE = 0.95  # a run on less of its rows than this is no run on this data


def drop_faceless(rows: pd.DataFrame, config: Config, problems: Problems) -> pd.DataFrame:
    """The rows without photos in which no detector found a face, if crop.missing says so; each is added to `problems`.

    rows: what `with_files` gives. Raises InputError where none of data.train is left.
    """
    if config.crop.missing != "drop" or not rows["faceless"].any():
        return rows
    out = rows[rows["faceless"]]
    for photo in out["photo"]:
        problems.add(photo, None, "no detector found a face in it", 0)
    print(f"left out: {len(out)} photos in which no detector found a face, such as {out['photo'].iloc[0]}")
    rows = rows[~rows["faceless"]].reset_index(drop=True)
    if not (rows["source"] == "train").any():
        raise InputError(
            f"crop.missing drop: no detector found a face in any photo of {config.data.train}: look at "
            f"{config.data.crops}/review.png, name other crop.detectors, or --crop.missing guess"
        )
    return rows


def clean(rows: pd.DataFrame, config: Config, problems: Problems, others: pd.DataFrame) -> pd.DataFrame:
    """The rows without what data.min_side and data.duplicates leave out, each with its reason in `problems`.

    others: source, ImageID and photo of the photos to answer for. Whole photos are looked at, those too. With
    data.duplicates there is a column near, a number that photos share which are nearly the same, and duplicates.csv.
    """
    data, task = config.data, config.predicted
    everything = pd.concat([rows[rows["source"] != "pseudo"], others], ignore_index=True)
    photos = everything["photo"].drop_duplicates(ignore_index=True)
    seen = duplicates.fingerprint(photos.tolist())
    at = rows["photo"].map(dict(zip(photos, range(len(photos)), strict=True))).to_numpy()
    own, out = rows["source"].ne("pseudo").to_numpy(), np.full(len(rows), "", dtype=object)
    least = np.minimum(seen["width"], seen["height"]).to_numpy()[at]
    small = own & (least < data.min_side) & (seen["reason"].to_numpy()[at] == "")
    out[small] = [f"its shorter side is {side} pixels, less than {data.min_side}" for side in least[small]]
    if data.duplicates != "keep":
        pairs, bits = duplicates.near_duplicates(seen)
        rows = rows.assign(near=duplicates.components(pairs, len(photos))[at])
        write_duplicates(config, task, everything, photos, pairs, bits)
        out[~own & rows["near"].isin(rows["near"][own])] = "nearly the same as a photo to train on, pseudo-labelled"
    if data.duplicates == "drop":
        label = rows["label"]
        if task.numeric:  # numbers that are within a fiftieth of the range don't contradict each other
            apart = label - label.groupby(rows["near"]).transform("min")
            label = (apart > (task.number.high - task.number.low) / 50).astype(int)
        out = np.where(out == "", duplicates.drop_duplicates(rows.assign(label=label), rows["near"]), out)
    for photo, why in zip(rows["photo"][out != ""], out[out != ""], strict=True):
        problems.add(photo, None, why, 0)
    if (out != "").any():
        print(f"left out: {(out != '').sum()} photos that are too small or doubled")
    return rows[out == ""].reset_index(drop=True)


def capped(rows: pd.DataFrame, config: Config) -> pd.DataFrame:
    """The rows with those over data.max_per_class marked as gap: they are not trained on, but still validated on."""
    most, task = config.data.max_per_class, config.predicted
    if not most:
        return rows
    own = (rows["source"].isin(["train", "extra"]) & ~((rows["split"] == "valid") | rows["gap"])).to_numpy()
    over = np.zeros(len(rows), bool)
    over[own] = ~duplicates.cap(rows["label"][own], most, config.seed)
    counts = pd.Series(task.written(rows["label"][over])).value_counts()
    print(
        f"data.max_per_class {most}: {over.sum()} photos are not trained on: "
        + ", ".join(f"{count} of {name}" for name, count in counts.items())
    )
    return rows.assign(gap=rows["gap"] | over)


def write_duplicates(config, task, rows, photos, pairs, bits):
    """Write and count the pairs of photos that are nearly the same: runs/NAME/duplicates.csv."""
    first = rows.drop_duplicates("photo").set_index("photo").loc[photos]
    said = (
        task.written(first["label"].fillna(0)) if task.numeric else task.written(first["label"].fillna(0).astype(int))
    )
    first["split"] = first["split"].fillna("")
    first = first.assign(answer=np.where(first["source"] == "eval", "", said.astype(str)))
    parts = [first.iloc[pairs[:, side]][["source", "split", "answer"]].reset_index() for side in (0, 1)]
    frame = pd.concat([parts[0], parts[1].add_prefix("other_")], axis=1).assign(bits=bits)
    path = Path(config.run) / "duplicates.csv"
    write_csv(path, frame)
    apart = (frame["answer"] != frame["other_answer"]) & (frame["answer"] != "") & (frame["other_answer"] != "")
    across = frame["source"].eq("eval") != frame["other_source"].eq("eval")
    print(
        f"{len(frame)} pairs of photos are nearly the same, {apart.sum()} of them with different labels, "
        f"{across.sum()} between data.train and data.eval: {path}"
    )


def drop_unreadable(rows: pd.DataFrame, config: Config, problems: Problems) -> pd.DataFrame:
    """Leave out training photos that can't be read, each with its reason in `problems`; too many stop the run.

    Whole photos are decoded once for this; of crops the manifest knows. Raises InputError below 95 % of the rows.
    """

    def reason(file, box):
        try:
            cut_box(read_photo(file), box)
        except PhotoError as error:
            return str(error)
        return ""

    if config.data.crops:
        reasons = np.where(rows["file"] == "", "unreadable (see the crops' manifest.csv)", "")
    else:
        boxes = rows[BOX].to_numpy(float) if "x1" in rows else [None] * len(rows)
        with ThreadPoolExecutor(cores()) as pool:  # OpenCV decodes outside Python's lock
            found = pool.map(reason, rows["file"], boxes)
            reasons = np.array(
                list(tqdm(found, "checking photos", len(rows), unit="photo", disable=None)),
                dtype=object,
            )
    bad, everything = reasons != "", len(rows) + problems.photos
    for photo, why in zip(rows["photo"][bad], reasons[bad], strict=True):
        problems.add(photo, None, f"can't be read: {why}")
    if bad.any():
        print(f"left out: {int(bad.sum())} photos that can't be read, such as {rows['photo'][bad].iloc[0]}")
    if (~bad).sum() < MIN_USABLE_SHARE * everything:
        first = problems.rows[0]
        raise InputError(
            f"only {int((~bad).sum())} of {everything} rows can be trained on, less than {MIN_USABLE_SHARE:.0%}; "
            f"the first that can't: {first['file']}: {first['reason']}"
        )
    return rows[~bad].reset_index(drop=True)
