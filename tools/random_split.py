"""Measure what a random split of the photos says, and what people say that the model has not seen.

    python -m tools.random_split                                              the sample data, about a minute
    python -m tools.random_split --data.train DIR --data.image_size 96 --train.epochs 8

The same plain training (timm, AdamW, one cycle, whole photos, joint classes) is done twice: once validated on a fifth
of the photos, drawn at random, so that most people stand on both sides; once on a fifth of the people. Both models are
then scored on people that neither of them, nor any choice, has seen. What is printed is measured here and now.
"""

import math
from typing import NamedTuple

import cv2
import numpy as np
import timm
import torch

import dataset
import model
from foldface import cli, metrics
from foldface.cli import run_main
from foldface.data.photos import read_photo
from foldface.files import InputError
from foldface.nn.side_by_side import outputs_of
from foldface.predictions import in_columns

UNSEEN = 0.3  # share of the people that are put aside
VALID = 0.2  # share of the others' photos, or of the other people, to validate on

USED = ("data", "model", "train")  # --help shows these groups of settings


class Split(NamedTuple):
    """Indices of the photos: to train on, to validate on, and of the people that are put aside."""

    train: np.ndarray
    valid: np.ndarray
    unseen: np.ndarray


def split_photos(people: np.ndarray, by_person: bool, seed: int) -> Split:
    """Split photos at random, or by person; the same people are put aside either way.

    people: (n,) ids. Raises InputError for fewer than ten people.
    """
    rng, names = np.random.default_rng(seed), np.unique(people)
    if len(names) < 10:
        raise InputError(f"{len(names)} people or groups are too few to be split three ways: 10 are needed")
    aside, others = np.split(rng.permutation(names), [math.ceil(UNSEEN * len(names))])
    known = np.flatnonzero(~np.isin(people, aside))
    if by_person:
        held = np.isin(people[known], rng.permutation(others)[: math.ceil(VALID * len(others))])
    else:
        held = np.zeros(len(known), bool)
        held[rng.permutation(len(known))[: math.ceil(VALID * len(known))]] = True
    return Split(known[~held], known[held], np.flatnonzero(np.isin(people, aside)))


def read_photos(files, side: int) -> np.ndarray:
    """Whole photos, stretched to side x side: (n, side, side, 3) uint8."""
    return np.stack([cv2.resize(read_photo(file), (side, side), interpolation=cv2.INTER_AREA) for file in files])


def batch_of(photos: np.ndarray, rows: np.ndarray, scale) -> torch.Tensor:
    """Photos as a normalized float tensor (n, 3, side, side)."""
    mean, std = (torch.tensor(values).view(1, 3, 1, 1) for values in scale)
    return (torch.from_numpy(photos[rows]).permute(0, 3, 1, 2).float() / 255 - mean) / std


def train_and_answer(
    config, photos, labels, classes: int, rows: np.ndarray, asked: list[np.ndarray]
) -> list[np.ndarray]:
    """Train a network on `rows` of the photos, and answer for each of `asked`: class indices.

    photos (n, side, side, 3) uint8; labels (n,) int.
    """
    torch.manual_seed(config.seed)
    rng, train = np.random.default_rng(config.seed), config.train
    how = config.model
    net = model.build(how.backbone, classes, how.pretrained, config.data.image_size, beside=how.beside)
    scale = [timm.data.resolve_data_config(net.pretrained_cfg)[key] for key in ("mean", "std")]
    steps = train.epochs * math.ceil(len(rows) / train.batch_size)
    optimizer = torch.optim.AdamW(net.parameters(), train.lr, weight_decay=train.weight_decay)
    scheduler = torch.optim.lr_scheduler.OneCycleLR(optimizer, train.lr, total_steps=steps)
    net.train()
    for epoch in range(train.epochs):
        order, total = rng.permutation(rows), 0.0
        for start in range(0, len(order), train.batch_size):
            part = order[start : start + train.batch_size]
            outputs = outputs_of(net(batch_of(photos, part, scale)))
            found = sum(outputs) / len(outputs)
            loss = torch.nn.functional.cross_entropy(found, torch.from_numpy(labels[part]))
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            scheduler.step()
            total += loss.item() * len(part)
        print(f"  epoch {epoch + 1}/{train.epochs}  loss {total / len(rows):.3f}", flush=True)
    net.eval()
    with torch.no_grad():
        return [np.concatenate([net(batch_of(photos, some, scale)).argmax(1).numpy() for some in parts_of(one)])
                for one in asked]  # fmt: skip


def parts_of(rows: np.ndarray, most: int = 64) -> list[np.ndarray]:
    """Rows in parts of at most so many."""
    return np.array_split(rows, math.ceil(len(rows) / most))


def main(argv: list[str] | None = None) -> None:
    config = cli.read(__doc__, argv=argv, used=USED)
    rows, _ = dataset.training_rows(config.without_pseudo())
    task = config.predicted
    task.refuse_labels("tools.random_split")
    if task.numeric:
        raise InputError("tools.random_split is about classes; the answer is a number")
    rows = rows[rows["source"] == "train"].reset_index(drop=True)
    people, labels = rows["id"].to_numpy(str), rows["target"].to_numpy(np.int64)
    photos, table = read_photos(rows["photo"], config.data.image_size), []
    for words, by_person in (("photos at random", False), ("by person", True)):
        split = split_photos(people, by_person, config.seed)
        both = len(set(people[split.train]) & set(people[split.valid]))
        print(f"split {words}: {len(split.train)} photos to train on, {len(split.valid)} to validate on; "
              f"{both} people are on both sides", flush=True)  # fmt: skip
        asked = [split.valid, split.unseen]
        for name, one, answer in zip(
            ("validation", "unseen people"),
            asked,
            train_and_answer(config, photos, labels, task.size, split.train, asked),
            strict=True,
        ):
            scores = metrics.scores(task, labels[one], answer)
            low, high = metrics.interval(task, labels[one], answer, people[one], name="f1")
            f1 = f"{scores['f1']:.3f} ({low:.3f}-{high:.3f})"
            table.append([f"split {words}: {name}", len(one), len(set(people[one])), f"{scores['accuracy']:.3f}", f1])
    print(in_columns(["scored on", "photos", "people", "accuracy", "macro F1 (95 %)"], table))


if __name__ == "__main__":
    run_main(main)
