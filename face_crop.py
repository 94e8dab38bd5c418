"""Photos -> square face crops, once: everything in data.train, data.extra and data.eval goes to data.crops.

    python face_crop.py                                            the sample data
    python face_crop.py --data.train DIR --data.eval DIR --data.crops DIR
    python face_crop.py --crop.detectors [facenet,retinaface,person,centre]      the second-place team's order
    torchrun --nproc_per_node 4 -- face_crop.py --data.crops DIR     four processes share the photos, on any machines
    python face_crop.py --crop.shards 10000   pack the crops into CROPS/shards, tar files of 10,000, dealt by fold
    python face_crop.py --retry               look again at photos without a face, with more detectors if you name more
    python face_crop.py --only eval           the photos to answer for; those to train on need not be there

Stop it whenever you like: the same command goes on, and what is done is not done again. Each photo gets a row in
manifest.csv, the faceless and the unreadable too; review.png shows the doubtful ones. Training and inference read the
crops through the manifest.
"""

import contextlib
import copy
import io
import os
import tempfile
import time
from pathlib import Path

import pandas as pd

from dataset import answerable, eval_rows, prepare, training_rows
from foldface import cli
from foldface.cli import run_main
from foldface.data.shard_index import INDEX
from foldface.faces.job import crop_plan
from foldface.faces.manifest import own_names
from foldface.faces.pack import pack
from foldface.files import InputError, folder_lock, refuse_unwritable
from foldface.ranks import ALONE, Ranks, several
from foldface.runtime import is_main_process
from foldface.settings import Config, put
from foldface.urls import scheme_of

# ------------------------------------------------------------------------------------------------------- the job


def plan(config: Config, only: str | None = None) -> pd.DataFrame:
    """What is to be cropped: DataFrame of photo, crop (its path below the crop folder), id, source, ImageID; a row a
    photo. Photos of one name in several sets of data.extra have one path here: `distinct_paths` changes it.

    only: "train" or "eval", the photos of one side; None = both."""
    parts = []
    if only != "eval":
        rows, _ = training_rows(config.without_pseudo())
        parts.append(rows[["source", "ImageID", "photo", "id"]])
    if only == "eval" or (not only and answerable(config)):
        answer = eval_rows(config)[["source", "ImageID", "photo"]]
        parts.append(answer.assign(id="eval/" + answer["ImageID"]))
    elif not only:
        print(f"data.eval '{config.data.eval}' names no photos to answer for; only those to train on are cropped")
    rows = pd.concat(parts, ignore_index=True).drop_duplicates("photo", ignore_index=True)
    name = own_names(rows)
    rows["crop"] = [
        f"{source}/{os.path.splitext(name)[0]}.jpg" for source, name in zip(rows["source"], name, strict=True)
    ]
    double = rows["crop"].duplicated(keep=False)  # a.jpg and a.png in one folder
    rows.loc[double, "crop"] = rows["source"] + "/" + name + ".jpg"
    return rows[["photo", "crop", "id", "source", "ImageID"]]


def crop_all(config: Config, retry: bool = False, only: str | None = None, ranks: Ranks = ALONE) -> pd.DataFrame:
    """Crop everything that the settings name; returns the manifest as a DataFrame. retry: look again at the photos that
    no detector found; crop.detectors may then be longer than it was. only: as `plan` takes it. ranks: the processes
    that share the photos."""
    folder, crop = config.data.crops, config.crop
    if not folder:
        raise InputError("data.crops is empty: name the folder that the crops go to")
    if scheme_of(folder):
        raise InputError(f"data.crops {folder}: is a URL: name the folder that the crops go to")
    refuse_unwritable(folder, "name another --data.crops")
    if (Path(folder) / INDEX).is_file():
        raise InputError(f"{folder}: is a folder of shards: name the folder of the crops that they were made of")
    if crop.shards and only:
        raise InputError("crop.shards packs all crops together: leave --only out")
    todo = plan(config, only)
    with folder_lock(folder):
        manifest = crop_plan(todo, folder, crop, retry, ranks)
        if crop.shards:
            groups = ranks.broadcast(shard_groups(config, manifest, todo) if ranks.index == 0 else None)
            pack(folder, groups, crop.shards, config.seed, ranks)
    return manifest


def shard_groups(config: Config, manifest: pd.DataFrame, todo: pd.DataFrame) -> pd.DataFrame:
    """Which crops are packed together: DataFrame of crop, group (fold0, ..., test, extra, eval), person.

    Folds are dealt as a run with these settings deals them; photos that it leaves out are in the group rest.
    """
    with tempfile.TemporaryDirectory() as run, contextlib.redirect_stdout(io.StringIO()):
        trial = copy.deepcopy(config)
        for key, value in {"run": run, "train.only_folds": [], "data.strict": False, "data.pseudo": ""}.items():
            put(trial, key, value)
        rows = prepare(trial)
    rows = rows.drop_duplicates("photo").set_index("photo")
    group = rows["source"].where((rows["source"] != "train") | (rows["fold"] < 0), "fold" + rows["fold"].astype(str))
    source = todo.set_index("photo")["source"]
    packed = manifest[(manifest["crop"] != "") & manifest["photo"].isin(source.index)].drop_duplicates("crop")
    asked = packed["photo"].map(source).eq("eval")
    other = asked.map({True: "eval", False: "rest"})
    return pd.DataFrame(
        {
            "crop": packed["crop"],
            "group": packed["photo"].map(group).fillna(other),
            "person": packed["photo"].map(rows["linked"].astype(str)).fillna(packed["photo"]),
        }
    )


USED = ("task", "data", "crop")  # --help shows these groups of settings
FLAGS = {
    "--retry": {
        "action": "store_true",
        "help": "look again at the photos that no detector found; crop.detectors may then be longer than it was",
    },
    "--only": {
        "choices": ["train", "eval"],
        "default": None,
        "help": "crop one side alone: the photos of data.train and data.extra, or those of data.eval",
    },
}


def main(argv: list[str] | None = None) -> None:
    config = cli.read(__doc__, FLAGS, argv, USED)
    start, ranks = time.perf_counter(), ALONE
    if several():
        from foldface import devices

        ranks = devices.join_ranks(config)
    manifest = crop_all(config, config.retry, config.only, ranks)
    if not is_main_process():
        return
    seconds, folder = time.perf_counter() - start, config.data.crops
    counts = manifest["detector"].value_counts().items()
    print(
        f"{len(manifest)} photos in {seconds:.0f} s: "
        + ", ".join(f"{count} by {name}" if name else f"{count} without a crop" for name, count in counts)
    )
    bad = manifest[manifest["crop"] == ""]
    for row in bad.head(5).itertuples():
        print(f"no crop: {row.photo}: {row.status}")
    if config.crop.shards:
        print(f"shards: {folder}/shards; train from them with --data.crops {folder}/shards")
    print(f"crops: {folder}; what became of each photo: {folder}/manifest.csv; look at {folder}/review.png")


if __name__ == "__main__":
    run_main(main)
