"""Draw the picture of the README: drawn people, their face crops, what a run answers, and its confusion matrices.

    python -m tools.readme_picture                          after `make`: runs/sample -> docs/images/foldface.png
    python -m tools.readme_picture --run runs/mine --to mine.png

Only a run on drawn people may be published: the picture holds photos of the run.
"""

import io
from pathlib import Path

import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from PIL import Image

import dataset
from foldface import metrics, predictions, runs
from foldface.cli import run_main
from foldface.data.photos import read_photo
from foldface.faces.manifest import with_files
from foldface.files import InputError, atomic_write
from foldface.report.training import counted

PEOPLE = 5  # that are shown, of different classes
DPI = 100  # pixels an inch
COLOURS = 128  # of the picture

USED = ("task", "data")  # --help shows these groups of settings
FLAGS = {"--to": {"default": "docs/images/foldface.png", "metavar": "FILE", "help": "file to write"}}


def choose_rows(task, oof: pd.DataFrame, rows: pd.DataFrame) -> pd.DataFrame:
    """PEOPLE photos of as many people and classes, the surest right answers, and one mistake last: rows of oof.csv with
    photo and file."""
    known = oof.merge(rows[["ImageID", "photo", "file"]], on="ImageID")
    known = known.assign(sure=known[task.probabilities].max(axis=1)).sort_values("sure", ascending=False)
    right, wrong = known[known["ans"] == known["target"]], known[known["ans"] != known["target"]]
    shown, people, masks = [], set(), {}
    for row in right.to_dict("records"):
        part = next(iter(task.decode(row["target"]).values()))
        if row["id"] not in people and masks.get(int(part), 0) < 2 and len(shown) < PEOPLE - (len(wrong) > 0):
            shown.append(row)
            people.add(row["id"])
            masks[int(part)] = masks.get(int(part), 0) + 1
    return pd.DataFrame([*shown, *wrong[:1].to_dict("records")])


def draw(task, shown: pd.DataFrame, axes: np.ndarray) -> None:
    """Draw photo, crop and answer of each row on two lines of axes, (2, rows)."""
    for k, row in enumerate(shown.to_dict("records")):
        top, below = axes[0][k], axes[1][k]
        top.imshow(read_photo(row["photo"]))
        below.imshow(read_photo(row["file"]))
        right = row["ans"] == row["target"]
        parts = [head.classes[int(k)] for head, k in zip(task.answered, task.decode(row["ans"]).values(), strict=True)]
        words = "\n".join(parts) + f"\n{row['sure']:.0%} sure" + ("" if right else ": wrong")
        below.set_xlabel(words, fontsize=8, color="black" if right else "tab:red")
        for ax in (top, below):
            ax.set(xticks=[], yticks=[])
            for side in ax.spines.values():
                side.set_visible(False)
    axes[0][0].set_ylabel("photo", fontsize=8)
    axes[1][0].set_ylabel("face crop", fontsize=8)


def draw_matrix(ax, names, truth, answer, title: str) -> None:
    """Draw a confusion matrix: shares of a row."""
    counts = counted(truth, answer, len(names))
    shares = counts / np.maximum(counts.sum(1, keepdims=True), 1)
    ax.imshow(shares, cmap="Blues", vmin=0, vmax=1)
    ax.set_title(title, fontsize=9)
    ax.set_xticks(range(len(names)), names, fontsize=6, rotation=15)
    ax.set_yticks(range(len(names)), names, fontsize=7)
    for row, column in np.ndindex(*counts.shape):
        colour = "white" if shares[row, column] > 0.6 else "black"
        ax.text(column, row, int(counts[row, column]), ha="center", va="center", fontsize=8, color=colour)


def main(argv: list[str] | None = None) -> None:
    config = runs.read_for_run(__doc__, FLAGS, argv, USED)
    task = config.predicted
    oof = predictions.read_oof(task, Path(config.run) / "oof.csv")
    task.refuse_labels("tools.readme_picture")
    if task.numeric:
        raise InputError("tools.readme_picture draws classes; the answer is a number")
    rows, _ = dataset.training_rows(config.without_pseudo())
    rows = with_files(rows[rows["source"] == "train"].drop_duplicates("ImageID"), config.data.crops)
    shown, heads = choose_rows(task, oof, rows), task.answered[:3]
    truth, answer = task.decode(oof["target"]), task.decode(oof["ans"])
    score, low, high = (
        metrics.value(task, oof["target"], oof["ans"]),
        *metrics.interval(task, oof["target"], oof["ans"], oof["id"]),
    )

    made = Figure(figsize=(9, 4), layout="constrained")
    left, right = made.subfigures(1, 2, width_ratios=[2.6, 1])
    draw(task, shown, left.subplots(2, len(shown)))
    for ax, head in zip(right.subplots(len(heads), 1, squeeze=False)[:, 0], heads, strict=True):
        draw_matrix(ax, head.classes, truth[head.name], answer[head.name], head.name)
    words = f"{len(oof)} photos, each by a model that never saw the person: {metrics.title(task)}"
    left.suptitle(f"{words} {score:.2f} ({low:.2f} to {high:.2f})", fontsize=9)
    right.suptitle("a row a true class", fontsize=9)
    drawn = io.BytesIO()
    made.savefig(drawn, format="png", dpi=DPI)
    with Image.open(drawn) as image, atomic_write(Path(config.to)) as partial:
        image.convert("RGB").quantize(COLOURS).save(partial, format="png", optimize=True)  # a third of the bytes
    print(f"{config.to}: {len(shown)} people, {len(heads)} matrices")


if __name__ == "__main__":
    run_main(main)
