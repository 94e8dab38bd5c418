"""Find labels that are likely wrong, by out-of-fold predictions: writes corrections.csv for you to approve.

    python -m tools.label_errors --run runs/first                     all that confident learning flags
    python -m tools.label_errors --run runs/first --people 30         the 30 people whose labels are least likely right
    python train_kfold.py --data.corrections runs/first/corrections.csv --run runs/second ...

Look at runs/NAME/clean.html, delete the wrong rows of corrections.csv, then train with it. Each head is checked alone,
and of several labels a photo each label, as yes or no.
Where all photos of a person share a label (gender, age), they vote together; where they don't (mask), two photos that
are predicted as each other's label are a swap. A label is the one that was trained on: with train_bounds [30, 58], age
58 is in the oldest class. Each person is predicted by a model that was not trained on them, as oof.csv has it.
"""

from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd
from scipy.optimize import minimize_scalar
from scipy.special import log_softmax

import dataset
from foldface import predictions, runs
from foldface.cli import run_main
from foldface.faces import manifest
from foldface.files import InputError, quoted, read_csv, write_csv
from foldface.head import plain
from foldface.report import html

COLUMNS = ["photo", "id", "column", "value", "given", "probability", "by_chance", "evidence"]
MIN_SHARED = 0.95  # share of people whose photos must agree for a label to belong to the person
MAX_FALSE_SHARE = 0.5  # of the flagged labels that may be right
MIN_PROBABILITY = 1e-6


def calibrate(label: np.ndarray, logits: np.ndarray) -> np.ndarray:
    """Probabilities (n, k) of logits by temperature scaling (Guo et al. 2017) to labels (n,).

    Without it, a head that is often and confidently wrong (age) would fill the list.
    """

    def cost(log_temperature):
        return -log_softmax(logits / np.exp(log_temperature), 1)[np.arange(len(label)), label].mean()

    found = minimize_scalar(cost, bounds=(-1.5, 3.0), method="bounded")
    return np.exp(log_softmax(logits / np.exp(found.x), 1))


def score_labels(unit: np.ndarray, label: np.ndarray, probabilities: np.ndarray) -> pd.DataFrame:
    """Score the labels of units (people or photos): one row a unit, indexed by it.

    Columns: given, predicted (class indices); probability of the given label; by_chance (how many labels would look as
    unlikely if all were right); flagged (by confident learning, Northcutt et al. 2021, and less than half by chance).
    unit, label: (n,); probabilities: (n, k). The photos of a unit vote by their mean log probability.
    """
    from cleanlab import filter, rank

    logs = pd.DataFrame(np.log(np.maximum(probabilities, MIN_PROBABILITY))).groupby(unit, sort=True).mean()
    given = pd.Series(label).groupby(unit, sort=True).agg(lambda values: values.mode()[0]).to_numpy()
    names, dense = np.unique(given, return_inverse=True)  # cleanlab needs every class to occur
    fair = calibrate(dense, logs.to_numpy()[:, names])
    frame = pd.DataFrame({"given": given, "predicted": names[fair.argmax(1)]}, index=logs.index)
    frame["probability"] = rank.get_label_quality_scores(dense, fair, method="self_confidence")
    frame["by_chance"] = expected_by_chance(fair, frame["probability"].to_numpy())
    if len(names) < 2:
        return frame.assign(flagged=False)
    issue = filter.find_label_issues(dense, fair, filter_by="confident_learning", n_jobs=1)
    return frame.assign(
        flagged=issue & (frame["by_chance"] <= MAX_FALSE_SHARE * frame["probability"].rank(method="max"))
    )


def expected_by_chance(fair: np.ndarray, probability: np.ndarray) -> np.ndarray:
    """How many units would have a label as unlikely as `probability` (m,), were labels drawn from `fair` (n, k): (m,).

    It makes heads comparable: many right labels of a difficult head (age) look unlikely.
    """
    values = np.sort(fair, axis=None)
    sums = np.concatenate([[0.0], np.cumsum(values)])
    return sums[np.searchsorted(values, probability, side="right")]


def trained_on(oof, rows):
    """The training rows of oof.csv's photos, in its order: DataFrame with label and a column for each head.

    (oof.csv's own target has the bounds of the score, not those of training.) Raises InputError for a photo that is no
    longer among the rows to train on.
    """
    rows = rows.set_index("ImageID")
    gone = ~oof["ImageID"].isin(rows.index)
    if gone.any():
        raise InputError(
            f"oof.csv: {gone.sum()} photos, such as {oof['ImageID'][gone].iloc[0]}, are no longer among the rows "
            "to train on: train again"
        )
    return rows.loc[oof["ImageID"]].reset_index()


class Checked(NamedTuple):
    """What is checked alone: a head, or one of several labels a photo, as yes or no.

    column: as corrections name it; classes: what a correction may say, "" where only a number can; looks: a photo's
    likeness to each class, in words; label (n,), probabilities (n, k): of the photos.
    """

    name: str
    column: str
    classes: tuple[str, ...]
    looks: list[str]
    label: np.ndarray
    probabilities: np.ndarray
    correctable: bool = True


def checked(task, label, probabilities: np.ndarray) -> list[Checked]:
    """The heads of a task, or its labels. label: (n,) what was trained on; probabilities: (n, size)."""
    if task.multilabel:
        has = task.sets(label).astype(int)
        return [
            Checked(name, name, ("no", "yes"), [f"unlike {name}", f"like {name}"], has[:, k], np.stack([1 - p, p], 1))
            for k, (name, p) in enumerate(zip(task.classes, probabilities.T, strict=True))
        ]
    truth, by_head = task.decode(np.asarray(label)), task.by_head(probabilities)
    return [
        Checked(head.name, head.column, head.classes, [f"like {name}" for name in head.classes], truth[head.name],
                by_head[head.name], head.kind != "cut")
        for head in task.answered
    ]  # fmt: skip


def find_issues(task, oof: pd.DataFrame, label) -> pd.DataFrame:
    """All labels that differ from their prediction: DataFrame of COLUMNS, head, predicted, flagged.

    label: (n,) class indices that were trained on. A row is the label of a person or of a photo; the least likely by
    chance come first. Of a head that is cut from numbers, `value` is left empty (see `with_numbers`).
    """
    person, parts = oof["id"].to_numpy(str), []
    of = dict(zip(oof["ImageID"], person, strict=True))
    for one in checked(task, label, oof[task.probabilities].to_numpy(float)):
        several = pd.Series(one.label).groupby(person).agg(["size", "nunique"]).query("size > 1")
        shared = len(several) > 0 and (several["nunique"] == 1).mean() >= MIN_SHARED
        unit = person if shared else oof["ImageID"].to_numpy(str)
        frame = score_labels(unit, one.label, one.probabilities)
        frame = frame[frame["predicted"] != frame["given"]]
        votes = pd.Series(one.probabilities.argmax(1)).groupby(unit)
        photos, agree = votes.size(), [int((votes.get_group(u) == t).sum()) for u, t in frame["predicted"].items()]
        names = np.array(one.classes, dtype=object)
        evidence = [
            f"{count} of {photos[u]} photos look {one.looks[t]}" if shared else f"the photo looks {one.looks[t]}"
            for count, (u, t) in zip(agree, frame["predicted"].items(), strict=True)
        ]
        parts.append(
            frame.assign(
                photo="" if shared else frame.index,
                id=frame.index if shared else [of[name] for name in frame.index],
                column=one.column,
                value=names[frame["predicted"]] if one.correctable else "",
                given=names[frame["given"]],
                evidence=evidence,
                head=one.name,
            )
        )
    found = pd.concat(parts, ignore_index=True)
    found = found if task.multilabel else swaps(found, len(oof))  # two photos of a person may well have other labels
    return found.sort_values(["by_chance", "id", "photo"], ignore_index=True)


def swaps(found, photos):
    """Mark pairs of a person's photos that are predicted as each other's label; each gets their joint probability.

    photos: number of all photos.
    """
    found = found.copy()
    single = found[(found["photo"] != "") & (found["value"] != "")]
    for _, mine in single.groupby(["id", "head"]):
        for one in mine.index:
            for other in mine.index[mine.index > one]:
                if mine["value"][one] == mine["given"][other] and mine["value"][other] == mine["given"][one]:
                    both = mine["probability"][one] * mine["probability"][other]
                    by_chance = mine["by_chance"][one] * mine["by_chance"][other] / photos
                    for row, twin in ((one, other), (other, one)):
                        found.loc[row, ["probability", "by_chance", "flagged"]] = both, by_chance, True
                        found.loc[row, "evidence"] = f"{mine['evidence'][row]}; swapped with {mine['photo'][twin]}"
    return found


def with_numbers(task, found, run, oof, rows):
    """Fill in `given` and `value` of a head that is cut from numbers: the table's number and the model's.

    `value` stays empty where the model predicts no numbers. rows: from trained_on.
    """
    head = task.number
    if head is None or head not in task.answered:
        return found
    mine = found["head"] == head.name
    units = [photo or person for photo, person in zip(found["photo"][mine], found["id"][mine], strict=True)]
    table = pd.concat([rows.groupby(key)[head.key].median() for key in ("id", "ImageID")])
    found.loc[mine, "given"] = [head.describe(table[unit]) for unit in units]
    path = Path(run) / f"oof_{head.key}.csv"
    if not path.is_file():
        return found
    columns = head.columns
    own = read_csv(path, ["ImageID", *columns], numbers=columns).set_index("ImageID")[columns[0]]
    mean = own.loc[oof["ImageID"]].groupby(oof["id"].to_numpy(str)).mean()
    expected = [
        own[photo] if photo else mean[person]
        for photo, person in zip(found["photo"][mine], found["id"][mine], strict=True)
    ]
    found.loc[mine, "value"] = [head.describe(value) for value in expected]
    # the predicted number may lie in another class than the predicted one: then the value is unknown
    numbers_class = head.class_of(pd.to_numeric(found["value"][mine]), head.trained)
    found.loc[found.index[mine][numbers_class != found["predicted"][mine]], "value"] = ""
    return found


def choose(found: pd.DataFrame, people: int) -> pd.DataFrame:
    """Rows of the `people` people with the least likely labels, without their likelier ones; 0 = all flagged rows."""
    if not people:
        return found[found["flagged"].astype(bool)]
    first = found.drop_duplicates("id")[:people]
    return found[found["id"].isin(first["id"]) & (found["by_chance"] <= first["by_chance"].max())]


def write_page(config, task, oof, rows, chosen, path):
    """Write the page: each person with a doubtful label, with all their photos. rows: from trained_on."""
    rows = manifest.with_files(rows[rows["id"].isin(chosen["id"])], config.data.crops)
    answers = oof.set_index("ImageID")["ans"]
    sections = []
    for person in chosen["id"].drop_duplicates():
        mine, photos = chosen[chosen["id"] == person], []
        for row in rows[rows["id"] == person].to_dict("records"):
            answer, label = (task.words_of(value) for value in (answers[row["ImageID"]], row["label"]))
            photos.append((row["file"], [f"label: {label}", f"model: {answer}", html.Name(row["ImageID"])]))
        issues = [
            [d["column"], d["given"], d["value"] or "?", d["probability"], d["evidence"]]
            for d in mine.to_dict("records")
        ]
        table = html.table(["column", "label", "should be", "probability of the label", "evidence"], issues)
        sections.append((str(person), [table, html.gallery(photos)]))
    intro = (
        f"{len(sections)} people or groups, least likely first. corrections.csv holds the rows: delete those "
        "that are wrong, then name the file in data.corrections. Nothing is changed before that."
    )
    if task.number and task.number.trained != task.number.bounds:
        last = plain(task.number.trained[-1])
        intro += f" Labels are those that were trained on: the last class of {task.number.name} begins at {last}."
    html.write(path, f"{config.run}: labels to check", intro, sections, first_screen(config, oof, chosen, path))


def first_screen(config, oof, chosen, path) -> str:
    """How many labels may be wrong, of which column, and what to do about it."""
    people, everyone, file = chosen["id"].nunique(), oof["id"].nunique(), path.with_name("corrections.csv")
    how_many = [html.big(f"{people} of {everyone}", "people or groups may have a wrong label")]
    if len(chosen):
        counts = chosen.groupby("column").agg(labels=("id", "size"), people=("id", "nunique"))
        words = [f"{name}: {row['labels']} labels of {row['people']}" for name, row in counts.iterrows()]
        how_many += map(html.text, words)
    train = (
        f"python train_kfold.py --config {quoted(f'{config.run}/args.json')} "
        f"--data.corrections {quoted(file)} --run {quoted(f'{config.run}-corrected')}"
    )
    steps = [html.text(f"Look at them below and delete from {file} the rows that you don't believe; then")]
    steps.append(html.command(train, "trains with the corrected labels: your table is not changed"))
    return html.lead([("How many?", how_many), ("What next?", steps if len(chosen) else [html.text("Nothing.")])])


USED = ("task", "data")  # --help shows these groups of settings
FLAGS = {
    "--people": {
        "type": int,
        "default": 0,
        "metavar": "N",
        "help": "the N people with the least likely labels (default: all that confident learning flags)",
    }
}


def main(argv: list[str] | None = None) -> None:
    config = runs.read_for_run(__doc__, FLAGS, argv, USED)
    task, run, output = config.predicted, Path(config.run), runs.output_folder(config)
    if task.numeric:
        raise InputError(
            "tools.label_errors checks classes; the run's report.html shows the largest errors of a number"
        )
    oof = predictions.read_oof(task, run / "oof.csv")
    rows, _ = dataset.training_rows(config.without_pseudo())
    rows = trained_on(oof, rows[rows["source"] == "train"].drop_duplicates("ImageID"))
    found = with_numbers(task, find_issues(task, oof, rows["label"]), run, oof, rows)
    chosen = choose(found, config.people)
    ready = chosen[chosen["value"] != ""]
    write_csv(output / "corrections.csv", ready[COLUMNS])
    write_page(config, task, oof, rows, chosen, output / "clean.html")
    print(
        f"{chosen['id'].nunique()} of {oof['id'].nunique()} people may have a wrong label: {output}/clean.html; "
        f"{len(ready)} corrections to approve: {output}/corrections.csv"
        + (f"; {len(chosen) - len(ready)} without a number to replace it" if len(ready) < len(chosen) else "")
    )


if __name__ == "__main__":
    run_main(main)
