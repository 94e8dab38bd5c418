"""What a run came to, as one page to look at: runs/NAME/report.html. train.py and train_kfold.py write it at their end.

    python -m tools.report --run runs/first

Losses and scores by epoch, confusions, F1 by class with intervals, calibration, errors by age, the most confident
mistakes. Everything is out of fold. The page stands alone; photos in it are thumbnails of your own: don't publish it.
"""

import contextlib
from pathlib import Path

import numpy as np
import pandas as pd

from foldface import metrics, predictions
from foldface.faces import manifest
from foldface.files import InputError, read_json
from foldface.report import charts, html

MISTAKES, TRACKED = 36, 12  # in the gallery; in a tracker's
MOST_CLASSES, SHARES = 40, 20  # that a confusion matrix is still drawn for; that it says shares of


def logs_of(run):
    """{fold: its log.csv as DataFrame of numbers}."""
    paths = sorted(Path(run).glob("fold*/log.csv"), key=lambda path: int(path.parent.name[4:]))
    return {path.parent.name: pd.read_csv(path) for path in paths}


# -------------------------------------------------------------------------------------------------- the training


def training(task, run):
    """Losses, the score and the learning rate by epoch and fold; what each fold cost."""
    logs = logs_of(run)
    if not logs:
        return []

    def rate(ax):
        for log in logs.values():
            ax.plot(log["epoch"], log["lr"], "o-", ms=3, lw=1)
        ax.set(title="learning rate at the epoch's end", xlabel="epoch")

    rows = []
    for name in logs:
        path = Path(run) / name / "speed.csv"
        if path.is_file():
            speed = pd.read_csv(path)
            minutes = (speed["seconds"].sum() + speed["other_seconds"].sum()) / 60
            rate_, waited = speed["photos_per_second"].median(), speed["waited"].mean()
            rows.append([name, len(speed), f"{minutes:.1f}", f"{rate_:.0f}", f"{waited:.1%}"])
    by_fold = {name: [log] for name, log in logs.items()}
    curves = charts.svg(lambda axes: charts.draw_curves(axes, by_fold, task), 12, 3.2, columns=3)
    costs = html.table(["fold", "epochs", "minutes", "photos/s", "waiting for photos"], rows)
    return [curves, charts.svg(rate, 4, 3), costs]


# ---------------------------------------------------------------------------------------------------- the answers


def scores(task, saved):
    """What metrics.json says."""
    rows = []
    for name in metrics.score_names(task):
        low, high = saved.get(f"{name}_low"), saved.get(f"{name}_high")
        spread = f"{low:.3f} to {high:.3f}" if low is not None else ""
        rows.append([metrics.title(task, name), saved[name], spread])
    last = f"{task.score}_last_epoch"
    if last in saved:
        rows.append([f"{metrics.title(task)} of the last epochs, which nobody chose", saved[last], ""])
    for name, value in saved.get("test", {}).items():
        if name == task.score:
            low, high = saved["test"][f"{name}_low"], saved["test"][f"{name}_high"]
            rows.append([f"{metrics.title(task)} of the test set", value, f"{low:.3f} to {high:.3f}"])
    return [html.table(["out of fold", "", "95 %"], rows)]


def matrix(names, truth, told, title):
    """A confusion matrix, to be drawn by pages.chart(*...): colours are shares of a row, numbers are photos.

    truth, told: (n,) indices of names. Returns (function that draws, width, height in inches).
    """
    from sklearn.metrics import confusion_matrix

    counts = confusion_matrix(truth, told, labels=range(len(names)))
    shares = counts / np.maximum(counts.sum(1, keepdims=True), 1)

    def draw(ax):
        ax.imshow(shares, cmap="Blues", vmin=0, vmax=1)
        ax.set(title=title, xlabel="answer", ylabel="truth")
        ax.set_xticks(range(len(names)), names, rotation=90, fontsize=7)
        ax.set_yticks(range(len(names)), names, fontsize=7)
        for row, column in zip(*np.nonzero(counts), strict=True):
            share = shares[row, column]
            said = f"{counts[row, column]}\n{share:.0%}" if len(names) <= SHARES else f"{counts[row, column]}"
            colour = "white" if share > 0.6 else "black"
            ax.text(column, row, said, ha="center", va="center", fontsize=6, color=colour)

    side = min(9.0, 2.2 + 0.42 * len(names))
    return draw, side, side


def confusions(task, oof):
    """Matrices of the answer and of each head."""
    drawn, target, told = [], oof["target"].to_numpy(), oof["ans"].to_numpy()
    if len(task.answered) > 1:
        truth, answer = task.decode(target), task.decode(told)
        for head in task.answered:
            if len(head.classes) <= MOST_CLASSES:
                drawn.append(charts.svg(*matrix(head.classes, truth[head.name], answer[head.name], head.name)))
    if task.size > MOST_CLASSES:
        note = f"{task.size} classes are too many to draw; the surest mistakes stand below."
        return [html.side_by_side(*drawn), html.text(note, note=True)]
    drawn.append(charts.svg(*matrix(task.classes, target, told, f"all {task.size} classes")))
    return [html.text("Colours are shares of a row, numbers are photos."), html.side_by_side(*drawn)]


def by_class(task, oof):
    """F1, precision and recall of each class, F1 with its 95 % interval over people."""
    target, answer, people = oof["target"].to_numpy(), oof["ans"].to_numpy(), oof["id"].to_numpy(str)
    value, low, high = metrics.f1_by_class(task, target, answer, people)
    true, answered = np.bincount(target, minlength=task.size), np.bincount(answer, minlength=task.size)
    right = np.bincount(target[target == answer], minlength=task.size)
    seen = np.flatnonzero(true + answered)

    def draw(ax):
        at = np.arange(len(seen))
        ax.hlines(at, low[seen], high[seen], color="0.7", lw=3)
        ax.plot(value[seen], at, "o", color="black", ms=4)
        ax.set_yticks(at, [task.classes[k] for k in seen], fontsize=7)
        ax.set(title="F1 by class, 95 %", xlim=(0, 1))
        ax.invert_yaxis()
        ax.grid(axis="x", color="0.93")

    rows = [
        [
            task.classes[k],
            int(true[k]),
            len(set(people[target == k])),
            f"{value[k]:.3f} ({low[k]:.3f} to {high[k]:.3f})",
            f"{right[k] / max(answered[k], 1):.3f}",
            f"{right[k] / max(true[k], 1):.3f}",
        ]
        for k in seen
    ]
    table = html.table(["class", "photos", "people", "F1", "precision", "recall"], rows)
    return [html.side_by_side(charts.svg(draw, 5, 0.8 + 0.24 * len(seen)), table)]


def calibration(task, oof):
    """Whether an answer of 80 % is right in 80 of 100."""
    if task.numeric:
        confidence = oof["confidence"].to_numpy(float)
        right = metrics.Within().each(task, oof["target"].to_numpy(), oof["ans"].to_numpy())
        if np.isnan(confidence).all():
            return []
    else:
        confidence = oof[task.probabilities].to_numpy(float).max(1)
        right = (oof["target"] == oof["ans"]).to_numpy(float)
    error, rows = metrics.expected_calibration_error(confidence, right)

    def draw(ax):
        told, true, count = map(np.array, zip(*rows, strict=True))
        ax.plot([0, 1], [0, 1], color="0.8", lw=1)
        ax.scatter(told, true, s=8 + 120 * count / count.max(), color="tab:blue", alpha=0.7)
        ax.plot(told, true, color="tab:blue", lw=1)
        ax.set(title="reliability", xlabel="how sure it was", ylabel="share that was right", xlim=(0, 1), ylim=(0, 1))

    more = "more" if confidence.mean() > right.mean() else "less"
    words = (
        f"Expected calibration error {error:.3f} ({metrics.BINS} bins). On average {confidence.mean():.3f} sure and "
        f"{right.mean():.3f} right: {more} sure than it should be."
    )
    return [html.text(words), html.side_by_side(charts.svg(draw, 4, 3.6))]


def by_number(task, oof, rows):
    """Where along the numbers (ages) answers go wrong, with the bounds between classes."""
    head = task.number
    if head is None or (head not in task.answered):
        return []
    number = oof["ImageID"].map(rows.drop_duplicates("ImageID").set_index("ImageID")[head.name]).to_numpy(float)
    if task.numeric:
        wrong, title = abs(oof["ans"] - oof["target"]).to_numpy(float), "mean absolute error"
    else:
        told, truth = task.decode(oof["ans"])[head.name], task.decode(oof["target"])[head.name]
        wrong, title = (told != truth).astype(float), f"share of photos with the wrong class of {head.name}"
    span = np.ptp(number[np.isfinite(number)])
    step = max(1.0 if span >= 20 else 1e-6, span / 60)
    place = np.round(number / step).astype(int)
    found = [(k * step, wrong[place == k].mean(), int((place == k).sum())) for k in np.unique(place)]

    def draw(axes):
        at, error, count = map(np.array, zip(*found, strict=True))
        axes[0].bar(at, count, width=step * 0.9, color="0.8")
        axes[0].set(title="photos", xlabel=head.unit or head.name)
        axes[1].plot(at, error, "o-", ms=3, lw=1)
        axes[1].set(title=title, xlabel=head.unit or head.name, ylim=(0, None))
        for ax in axes:
            for bound in head.bounds:
                ax.axvline(bound, color="tab:red", lw=1)
            for bound in set(head.trained) - set(head.bounds):
                ax.axvline(bound, color="tab:orange", lw=1, ls="--")

    words = "Red: where a class begins. Orange, dashed: where it begins in training." if head.bounds else ""
    return [html.text(words)] * bool(words) + [charts.svg(draw, 9, 3.2, columns=2)]


def worst(task, oof, rows, crops, count):
    """The answers that were surest and wrong (or farthest off): [(file, [lines of a caption])], `count` at most."""
    if task.numeric:
        wrong = oof.assign(off=abs(oof["ans"] - oof["target"])).sort_values("off", ascending=False, kind="stable")
    else:
        sure = oof[task.probabilities].to_numpy(float).max(1)
        wrong = oof.assign(sure=sure)[(oof["ans"] != oof["target"]).to_numpy()]
        wrong = wrong.sort_values("sure", ascending=False, kind="stable")
    wrong = wrong[:count]
    rows = rows.drop_duplicates("ImageID").set_index("ImageID").loc[wrong["ImageID"]].reset_index()
    found = []
    for file, row in zip(manifest.with_files(rows, crops)["file"], wrong.to_dict("records"), strict=True):
        if task.numeric:
            head = task.answered[0]
            lines = [f"{head.said(row['ans'])}, is {head.said(row['target'])} {head.unit}", row["ImageID"]]
        else:
            lines = [f"{row['sure']:.0%} {task.classes[row['ans']]}", f"is {task.classes[row['target']]}"]
            lines.append(row["ImageID"])
        found.append((file, lines))
    return found


def mistakes(task, oof, rows, crops):
    """The gallery of the worst answers."""
    try:
        found = worst(task, oof, rows, crops, MISTAKES)
    except InputError as error:
        return [html.text(f"Photos can't be shown: {error}", note=True)]
    return [html.gallery(found) if found else html.text("None.")]


def pictures(task, oof, rows, crops):
    """What a tracker gets beside the scores, of one fold: {name: [(h, w, 3) uint8]}, the confusion matrix and the
    worst mistakes."""
    from foldface.data.photos import PhotoError, read_photo

    found = {}
    if not task.numeric and task.size <= MOST_CLASSES:
        drawn = matrix(task.classes, oof["target"], oof["ans"], f"all {task.size} classes")
        found["confusion"] = [charts.pixels(*drawn)]
    for file, lines in worst(task, oof, rows, crops, TRACKED):
        with contextlib.suppress(PhotoError):
            photo = read_photo(file)

            def draw(ax, photo=photo, lines=lines):
                ax.imshow(photo)
                ax.set_title("\n".join(lines), fontsize=6)
                ax.axis("off")

            found.setdefault("mistakes", []).append(charts.pixels(draw, 2.4, 3))
    return found


# ------------------------------------------------------------------------------------------------------- the page


def write(config, rows, output=None):
    """Write report.html of a run that has metrics.json into its folder, or into `output`. rows: those it was trained
    on, as dataset.training_rows gives them."""
    run, task = Path(config.run), config.predicted
    saved = read_json(run / "metrics.json", "train first")
    oof = predictions.read_oof(task, run / "oof.csv")
    rows = rows[rows["source"] == "train"]
    sections = [("Scores", scores(task, saved)), ("Training", training(task, run))]
    if not task.numeric:
        sections += [("Confusions", confusions(task, oof)), ("By class", by_class(task, oof))]
    sections += [
        ("How sure it is", calibration(task, oof)),
        (f"Errors by {task.number.name}" if task.number else "", by_number(task, oof, rows)),
        ("The most confident mistakes" if not task.numeric else "The worst mistakes",
         mistakes(task, oof, rows, config.data.crops)),
    ]  # fmt: skip
    intro = (
        f"{len(oof)} photos of {oof['id'].nunique()} people or groups, each answered by the model that was not trained "
        f"on it; folds {', '.join(map(str, saved['folds']))}; {config.model.backbone}, {config.data.image_size} "
        "pixels. Thumbnails are of the photos themselves: keep this page where the photos may be."
    )
    html.write_report(Path(output or run) / "report.html", str(run), intro, sections)


def draw_history(run, task):
    """Draw loss and scores of all folds by epoch, training beside validation, to runs/NAME/history.png."""
    logs = {name: [log] for name, log in logs_of(run).items()}
    if logs:
        charts.write_curves(Path(run) / "history.png", logs, task)
