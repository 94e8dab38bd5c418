"""Which labels are likely wrong, by out-of-fold predictions alone: corrections.csv to approve, never applied by itself.

    python -m tools.label_errors --run runs/first                     those that confident learning flags
    python -m tools.label_errors --run runs/first --people 30         the 30 people whose labels are least likely right
    python train_kfold.py --data.corrections runs/first/corrections.csv --run runs/second ...

Look at runs/NAME/clean.html, delete the rows of corrections.csv that you don't believe, then train on it. Each head by
itself: where all photos of a person share a label (gender, age), they vote together; where they don't (mask), two that
say each other's label are a swap. A label is the one that was trained on: with data.age_boundary 58 the model learned
that 58 is the oldest class. A model must have seen none of the people it judges: oof.csv's have not.
"""

from pathlib import Path

import numpy as np
import pandas as pd

import dataset
from foldface import predictions, runs
from foldface.cli import run_main
from foldface.faces import manifest
from foldface.files import InputError, read_csv, write_csv
from foldface.report import html
from foldface.task import plain

COLUMNS = ["photo", "id", "column", "value", "given", "probability", "by_chance", "evidence"]
SHARED = 0.95  # of the groups with several photos that must agree for a head to be one of the person's
FALSE = 0.5  # of the flagged labels that may be right after all
TINY = 1e-6


def calibrated(label, logits):
    """Probabilities (n, k) of logits, softened until they fit how often labels (n,) are what they say: temperature
    scaling (Guo et al. 2017). Without it a head that is often and surely wrong (age) would crowd out the others."""
    from scipy.optimize import minimize_scalar
    from scipy.special import log_softmax

    def cost(log_temperature):
        return -log_softmax(logits / np.exp(log_temperature), 1)[np.arange(len(label)), label].mean()

    found = minimize_scalar(cost, bounds=(-1.5, 3.0), method="bounded")
    return np.exp(log_softmax(logits / np.exp(found.x), 1))


def judged(unit, label, probabilities):
    """Judge the labels of units (people or photos): DataFrame indexed by unit of given, told (class indices),
    probability (that a label is what it says, by the model), by_chance (how many labels would look as unlikely if all
    were right) and flagged (by confident learning, Northcutt et al. 2021, and more of them than chance explains).

    unit, label: (n,); probabilities: (n, k). The photos of a unit vote by their mean log probability.
    """
    from cleanlab.filter import find_label_issues
    from cleanlab.rank import get_label_quality_scores

    logs = pd.DataFrame(np.log(np.maximum(probabilities, TINY))).groupby(unit, sort=True).mean()
    given = pd.Series(label).groupby(unit, sort=True).agg(lambda values: values.mode()[0]).to_numpy()
    names, dense = np.unique(given, return_inverse=True)  # cleanlab wants every class to be there
    fair = calibrated(dense, logs.to_numpy()[:, names])
    frame = pd.DataFrame({"given": given, "told": names[fair.argmax(1)]}, index=logs.index)
    frame["probability"] = get_label_quality_scores(dense, fair, method="self_confidence")
    frame["by_chance"] = expected(fair, frame["probability"].to_numpy())
    if len(names) < 2:
        return frame.assign(flagged=False)
    issue = find_label_issues(dense, fair, filter_by="confident_learning", n_jobs=1)
    return frame.assign(flagged=issue & (frame["by_chance"] <= FALSE * frame["probability"].rank(method="max")))


def expected(fair, probability):
    """How many units would have a label as unlikely as `probability` (m,), were labels drawn by `fair` (n, k): (m,).

    It makes heads comparable: of a head that nobody knows well (age), many right labels look unlikely.
    """
    values = np.sort(fair, axis=None)
    sums = np.concatenate([[0.0], np.cumsum(values)])
    return sums[np.searchsorted(values, probability, side="right")]


def trained_on(oof, rows):
    """The rows that the photos of oof.csv were trained on, in its order: DataFrame with label and a column a head.

    oof.csv's own target is by the bounds that answers are scored by. Raises InputError for a photo that is no longer
    among the rows to train on.
    """
    rows = rows.set_index("ImageID")
    gone = ~oof["ImageID"].isin(rows.index)
    if gone.any():
        raise InputError(
            f"oof.csv: {gone.sum()} photos, such as {oof['ImageID'][gone].iloc[0]}, are no longer among the rows "
            "to train on: train again"
        )
    return rows.loc[oof["ImageID"]].reset_index()


def find(task, oof, label):
    """All doubts about labels: DataFrame of COLUMNS, head, told, flagged; what chance explains least comes first.

    label: (n,) the answers that were trained on. A row is a person's label, or a photo's; of a cut head the value is
    left empty (see `with_numbers`).
    """
    person, parts = oof["id"].to_numpy(str), []
    truth, told = task.decode(np.asarray(label)), task.by_head(oof[task.probabilities].to_numpy(float))
    for head in task.answered:
        label, probabilities = truth[head.name], told[head.name]
        several = pd.Series(label).groupby(person).agg(["size", "nunique"]).query("size > 1")
        shared = len(several) > 0 and (several["nunique"] == 1).mean() >= SHARED
        unit = person if shared else oof["ImageID"].to_numpy(str)
        frame = judged(unit, label, probabilities)
        frame = frame[frame["told"] != frame["given"]]
        say = pd.Series(probabilities.argmax(1)).groupby(unit)
        photos, agree = say.size(), [int((say.get_group(u) == t).sum()) for u, t in frame["told"].items()]
        names = np.array(head.classes, dtype=object)
        of = dict(zip(oof["ImageID"], person, strict=True))
        evidence = [
            f"{count} of {photos[u]} photos say {names[t]}" if shared else f"the photo says {names[t]}"
            for count, (u, t) in zip(agree, frame["told"].items(), strict=True)
        ]
        parts.append(
            frame.assign(
                photo="" if shared else frame.index,
                id=frame.index if shared else [of[name] for name in frame.index],
                column=head.column,
                value="" if head.kind == "cut" else names[frame["told"]],
                given=names[frame["given"]],
                evidence=evidence,
                head=head.name,
            )
        )
    found = pd.concat(parts, ignore_index=True)
    return swaps(found, len(oof)).sort_values(["by_chance", "id", "photo"], ignore_index=True)


def swaps(found, photos):
    """Two photos of a person that each say the other's label were swapped: said, and both as unlikely as both are
    together. photos: how many there are."""
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
    """Give doubts of a cut head the number that its table has and the one that the model expects, where it learned
    numbers; else the latter stays empty. rows: as trained_on gives them."""
    head = task.number
    if head is None or head not in task.answered:
        return found
    mine = found["head"] == head.name
    units = [photo or person for photo, person in zip(found["photo"][mine], found["id"][mine], strict=True)]
    table = pd.concat([rows.groupby(key)[head.name].median() for key in ("id", "ImageID")])
    found.loc[mine, "given"] = [head.said(table[unit]) for unit in units]
    path = Path(run) / f"oof_{head.name}.csv"
    if not path.is_file():
        return found
    columns = head.columns
    own = read_csv(path, ["ImageID", *columns], numbers=columns).set_index("ImageID")[columns[0]]
    mean = own.loc[oof["ImageID"]].groupby(oof["id"].to_numpy(str)).mean()
    expected = [
        own[photo] if photo else mean[person]
        for photo, person in zip(found["photo"][mine], found["id"][mine], strict=True)
    ]
    found.loc[mine, "value"] = [head.said(value) for value in expected]
    # what is expected may lie in another class than the one that the photos say: then nobody knows
    told = head.class_of(pd.to_numeric(found["value"][mine]), head.trained)
    found.loc[found.index[mine][told != found["told"][mine]], "value"] = ""
    return found


def choose(found, people):
    """The doubts of the `people` people (or, 0, of all that are flagged) whose labels are least likely right; not what
    else of them is doubted less."""
    if not people:
        return found[found["flagged"].astype(bool)]
    first = found.drop_duplicates("id")[:people]
    return found[found["id"].isin(first["id"]) & (found["by_chance"] <= first["by_chance"].max())]


def write_page(config, task, oof, rows, chosen, path):
    """The people who are doubted, with all their photos. rows: as trained_on gives them."""
    rows = manifest.with_files(rows[rows["id"].isin(chosen["id"])], config.data.crops)
    told = oof.set_index("ImageID")["ans"]
    sections = []
    for person in chosen["id"].drop_duplicates():
        mine, photos = chosen[chosen["id"] == person], []
        for row in rows[rows["id"] == person].to_dict("records"):
            answer, label = task.classes[told[row["ImageID"]]], task.classes[row["label"]]
            photos.append((row["file"], [f"label: {label}", f"model: {answer}", row["ImageID"]]))
        doubts = [
            [d["column"], d["given"], d["value"] or "?", d["probability"], d["evidence"]]
            for d in mine.to_dict("records")
        ]
        table = html.table(["column", "label", "should be", "probability of the label", "evidence"], doubts)
        sections.append((str(person), [table, html.gallery(photos)]))
    intro = (
        f"{len(sections)} people or groups, least likely first. corrections.csv holds the rows: delete those "
        "that you don't believe, then name it in data.corrections. Nothing is changed by itself."
    )
    if task.number and task.number.trained != task.number.bounds:
        last = plain(task.number.trained[-1])
        intro += f" Labels are those that were trained on: the last class of {task.number.name} begins at {last}."
    html.write(path, f"{config.run}: labels to look at", intro, sections)


FLAGS = {
    "--people": {
        "type": int,
        "default": 0,
        "metavar": "N",
        "help": "the N people whose labels are least likely right (default: all that confident learning flags)",
    }
}


def main(argv: list[str] | None = None) -> None:
    config = runs.read_for_run(__doc__, FLAGS, argv)
    task, run, output = config.predicted, Path(config.run), runs.output_folder(config)
    if task.numeric:
        raise InputError("clean.py judges classes; the answers that are farthest off stand in the run's report.html")
    oof = predictions.read_oof(task, run / "oof.csv")
    rows, _ = dataset.training_rows(config.without_pseudo())
    rows = trained_on(oof, rows[rows["source"] == "train"].drop_duplicates("ImageID"))
    found = with_numbers(task, find(task, oof, rows["label"]), run, oof, rows)
    chosen = choose(found, config.people)
    ready = chosen[chosen["value"] != ""]
    write_csv(output / "corrections.csv", ready[COLUMNS])
    write_page(config, task, oof, rows, chosen, output / "clean.html")
    print(
        f"{chosen['id'].nunique()} of {oof['id'].nunique()} people may be labelled wrong: {output}/clean.html; "
        f"{len(ready)} corrections to approve: {output}/corrections.csv"
        + (f"; {len(chosen) - len(ready)} without a number to put in their place" if len(ready) < len(chosen) else "")
    )


if __name__ == "__main__":
    run_main(main)
