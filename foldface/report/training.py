"""The report of a run, runs/NAME/report.html: train.py and train_kfold.py write it at their end.

    python -m tools.report --run runs/first

It shows losses and scores by epoch, confusions, F1 by class with intervals, calibration, errors by age, and the most
confident mistakes, all out of fold. The page needs no network; it holds thumbnails of your photos: don't publish it.
"""

import contextlib
from pathlib import Path

import numpy as np
import pandas as pd
from sklearn.metrics import confusion_matrix

from foldface import metrics, predictions
from foldface.data.photos import PhotoError, read_photo
from foldface.faces import manifest
from foldface.files import InputError, read_json
from foldface.report import charts, html, summary
from foldface.settings import Config
from foldface.task import Task

N_MISTAKES, N_TRACKED, N_CONFUSED = 36, 12, 10  # mistakes in the gallery; for a tracker; pairs that are confused
MAX_CLASSES, MAX_CLASSES_SHARES = 40, 20  # of a confusion matrix; of one with shares


def logs_of(run):
    """{name of the fold's folder: its log.csv, a DataFrame of numbers}."""
    paths = sorted(Path(run).glob("fold*/log.csv"), key=lambda path: int(path.parent.name[4:]))
    return {path.parent.name: pd.read_csv(path) for path in paths}


# -------------------------------------------------------------------------------------------------- the training


def training(task, run):
    """Section: losses, scores and learning rate by epoch and fold; the cost of each fold."""
    logs = logs_of(run)
    if not logs:
        return []

    def rate(ax):
        for log in logs.values():
            ax.plot(log["epoch"], log["lr"], "o-", ms=3, lw=1)
        ax.set(title="learning rate at the epoch's end", xlabel="epoch")
        charts.whole_epochs(ax)

    rows = []
    for name in logs:
        path = Path(run) / name / "speed.csv"
        if path.is_file():
            speed = pd.read_csv(path)
            minutes = (speed["seconds"].sum() + speed["other_seconds"].sum()) / 60
            rate_, waited = speed["photos_per_second"].median(), speed["waited"].mean()
            rows.append([name, len(speed), f"{minutes:.1f}", f"{rate_:.0f}", f"{waited:.1%}"])
    by_fold = {name: [log] for name, log in logs.items()}
    costs = html.table(["fold", "epochs", "minutes", "photos/s", "waiting for photos"], rows)
    return [html.side_by_side(*charts.curve_charts(by_fold, task), charts.svg(rate)), costs]


# -------------------------------------------------------------------------------------------------- the predictions


def scores(task, saved):
    """Section: the scores of metrics.json."""
    rows = []
    for name in (name for name in metrics.score_names(task) if name in saved):
        low, high = saved.get(f"{name}_low"), saved.get(f"{name}_high")
        interval = f"{low:.3f} to {high:.3f}" if low is not None else ""
        rows.append([metrics.full_title(task, name), saved[name], interval])
    last = f"{task.score}_last_epoch"
    if last in saved:
        rows.append([f"{metrics.title(task)} of the last epochs (not selected)", saved[last], ""])
    for name, value in saved.get("test", {}).items():
        if name == task.score:
            low, high = saved["test"][f"{name}_low"], saved["test"][f"{name}_high"]
            rows.append([f"{metrics.title(task)} of the test set", value, f"{low:.3f} to {high:.3f}"])
    return [html.table(["out of fold", "", "95 %"], rows)]


def matrix(names: list[str], truth, predicted, title: str) -> tuple:
    """A confusion matrix for charts.svg(*...): colours are shares of a row, numbers are photos.

    truth, predicted: (n,) indices of names. Returns (function that draws, width, height in inches).
    """
    counts = counted(truth, predicted, len(names))
    shares = counts / np.maximum(counts.sum(1, keepdims=True), 1)

    def draw(ax):
        ax.imshow(shares, cmap="Blues", vmin=0, vmax=1)
        ax.set(title=title, xlabel="answer", ylabel="truth")
        ax.set_xticks(range(len(names)), names, rotation=90, fontsize=7)
        ax.set_yticks(range(len(names)), names, fontsize=7)
        for row, column in zip(*np.nonzero(counts), strict=True):
            share = shares[row, column]
            text = (
                f"{counts[row, column]}\n{share:.0%}" if len(names) <= MAX_CLASSES_SHARES else f"{counts[row, column]}"
            )
            colour = "white" if share > 0.6 else "black"
            ax.text(column, row, text, ha="center", va="center", fontsize=6, color=colour)

    side = min(9.0, 2.2 + 0.42 * len(names))
    return draw, side, side


def confusions(task, oof):
    """Section: confusion matrices of each head and of the answer, and what is most often taken for what."""
    drawn, target, predicted = [], oof["target"].to_numpy(), oof["ans"].to_numpy()
    if len(task.answered) > 1:
        truth, answer = task.decode(target), task.decode(predicted)
        for head in task.answered:
            if len(head.classes) <= MAX_CLASSES:
                counts = counted(truth[head.name], answer[head.name], len(head.classes))
                drawn.append(html.matrix(head.classes, counts, head.name))
    pieces = [html.text("Colours are shares of a row, numbers are photos."), html.side_by_side(*drawn)]
    if task.size > MAX_CLASSES:
        note = f"{task.size} classes are too many to draw; see the most confident mistakes below."
        return [*pieces, html.text(note, note=True)]
    counts = counted(target, predicted, task.size)
    pieces.append(html.matrix(task.classes, counts, f"all {task.size} classes"))
    rows = [
        [task.classes[row], task.classes[column], int(counts[row, column]), f"{share:.0%}"]
        for row, column, share in most_confused(counts, N_CONFUSED)
    ]
    table = html.table(["truth", "answer", "photos", "of the truth's"], rows)
    return [*pieces, "<h3>Most often taken for another</h3>", table] if rows else pieces


def counted(truth: np.ndarray, predicted: np.ndarray, size: int) -> np.ndarray:
    """How many photos of each class (row) were given each answer (column): (size, size) int."""
    return confusion_matrix(truth, predicted, labels=range(size))


def most_confused(counts: np.ndarray, most: int) -> list[tuple[int, int, float]]:
    """[(true class, answer, share of the class's photos)] of the `most` most frequent confusions."""
    wrong = counts - np.diag(np.diag(counts))
    order = np.argsort(-wrong, axis=None, kind="stable")[:most]
    places = [np.unravel_index(k, wrong.shape) for k in order if wrong.flat[k]]
    return [(int(row), int(column), wrong[row, column] / counts[row].sum()) for row, column in places]


def by_class(task, oof):
    """Section: F1, precision and recall of each class, F1 with its 95 % interval over people."""
    target, answer, people = oof["target"].to_numpy(), oof["ans"].to_numpy(), oof["id"].to_numpy(str)
    value, low, high = metrics.f1_by_class(task, target, answer, people)
    each = [(task.has(target, k), task.has(answer, k)) for k in range(task.size)]
    true, answered, right = np.array([(t.sum(), a.sum(), (t & a).sum()) for t, a in each]).T
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
            len(set(people[each[k][0]])),
            f"{value[k]:.3f} ({low[k]:.3f} to {high[k]:.3f})",
            f"{right[k] / max(answered[k], 1):.3f}",
            f"{right[k] / max(true[k], 1):.3f}",
        ]
        for k in seen
    ]
    table = html.table(["class", "photos", "people", "F1", "precision", "recall"], rows)
    return [html.side_by_side(charts.svg(draw, charts.PAGE_WIDTH, 0.8 + 0.24 * len(seen)), table)]


def calibration(task, oof):
    """Section: reliability diagram and expected calibration error."""
    if task.numeric:
        confidence = oof["confidence"].to_numpy(float)
        right = metrics.Within().each(task, oof["target"].to_numpy(), oof["ans"].to_numpy())
        if np.isnan(confidence).all():
            return []
    else:
        probabilities = oof[task.probabilities].to_numpy(float)
        confidence, right = metrics.confidences(task, oof["target"].to_numpy(), probabilities)
    error, rows = metrics.expected_calibration_error(confidence, right)

    def draw(ax):
        mean, true, count = map(np.array, zip(*rows, strict=True))
        ax.plot([0, 1], [0, 1], color="0.8", lw=1)
        ax.scatter(mean, true, s=8 + 120 * count / count.max(), color="tab:blue", alpha=0.7)
        ax.plot(mean, true, color="tab:blue", lw=1)
        ax.set(title="reliability", xlabel="confidence", ylabel="share of right answers", xlim=(0, 1), ylim=(0, 1))

    verdict = "overconfident" if confidence.mean() > right.mean() else "underconfident"
    words = (
        f"Expected calibration error {error:.3f} ({metrics.BINS} bins). Mean confidence {confidence.mean():.3f}, "
        f"share of right answers {right.mean():.3f}: {verdict}."
    )
    return [html.text(words), html.side_by_side(charts.svg(draw))]


def by_number(task, oof, rows):
    """Section: errors along the numbers (ages), with the bounds between classes."""
    head = task.number
    if head is None or (head not in task.answered):
        return []
    number = oof["ImageID"].map(rows.drop_duplicates("ImageID").set_index("ImageID")[head.key]).to_numpy(float)
    if task.numeric:
        wrong, title = abs(oof["ans"] - oof["target"]).to_numpy(float), "mean absolute error"
    else:
        predicted, truth = task.decode(oof["ans"])[head.name], task.decode(oof["target"])[head.name]
        wrong, title = (predicted != truth).astype(float), f"share of wrong classes of {head.name}"
    span = np.ptp(number[np.isfinite(number)])
    step = max(1.0 if span >= 20 else 1e-6, span / 60)
    place = np.round(number / step).astype(int)
    found = [(k * step, wrong[place == k].mean(), int((place == k).sum())) for k in np.unique(place)]

    at, error, count = map(np.array, zip(*found, strict=True))

    def bounds(ax):
        for bound in head.bounds:
            ax.axvline(bound, color="tab:red", lw=1)
        for bound in set(head.trained) - set(head.bounds):
            ax.axvline(bound, color="tab:orange", lw=1, ls="--")

    def photos(ax):
        ax.bar(at, count, width=step * 0.9, color="0.8")
        ax.set(title="photos", xlabel=head.unit or head.name)
        bounds(ax)

    def errors(ax):
        ax.plot(at, error, "o-", ms=3, lw=1)
        ax.set(title=title, xlabel=head.unit or head.name, ylim=(0, None))
        bounds(ax)

    words = "Red: where a class begins. Orange, dashed: where it begins in training." if head.bounds else ""
    return [html.text(words)] * bool(words) + [html.side_by_side(charts.svg(photos), charts.svg(errors))]


def worst(task, oof, rows, crops, count):
    """The `count` most confident mistakes, or largest errors of a number: [(file, [lines of a caption])]."""
    if task.numeric:
        wrong = oof.assign(off=abs(oof["ans"] - oof["target"])).sort_values("off", ascending=False, kind="stable")
    elif task.multilabel:
        probabilities, truth = oof[task.probabilities].to_numpy(float), task.sets(oof["target"])
        sure = np.where(truth, 1 - probabilities, probabilities).max(1)
        wrong = oof.assign(sure=sure)[(oof["ans"] != oof["target"]).to_numpy()]
        wrong = wrong.sort_values("sure", ascending=False, kind="stable")
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
            lines = [
                f"{head.describe(row['ans'])}, is {head.describe(row['target'])} {head.unit}",
                html.Name(row["ImageID"]),
            ]
        elif task.multilabel:
            names = [" ".join(np.array(task.classes)[task.sets([row[key]])[0]]) or "none" for key in ("ans", "target")]
            lines = [names[0], f"is {names[1]}", html.Name(row["ImageID"])]
        else:
            lines = [f"{row['sure']:.0%} {task.classes[row['ans']]}", f"is {task.classes[row['target']]}"]
            lines.append(html.Name(row["ImageID"]))
        found.append((file, lines))
    return found


def mistakes(task, oof, rows, crops):
    """Section: a gallery of the worst mistakes."""
    try:
        found = worst(task, oof, rows, crops, N_MISTAKES)
    except InputError as error:
        return [html.text(f"Photos can't be shown: {error}", note=True)]
    return [html.gallery(found) if found else html.text("None.")]


def pictures(task: Task, oof: pd.DataFrame, rows: pd.DataFrame, crops: str) -> dict[str, list[np.ndarray]]:
    """The images of a fold for a tracker, {name: [(h, w, 3) uint8]}: the confusion matrix and the worst mistakes."""
    found = {}
    if not task.numeric and not task.multilabel and task.size <= MAX_CLASSES:
        drawn = matrix(task.classes, oof["target"], oof["ans"], f"all {task.size} classes")
        found["confusion"] = [charts.pixels(*drawn)]
    for file, lines in worst(task, oof, rows, crops, N_TRACKED):
        with contextlib.suppress(PhotoError):
            photo = read_photo(file)

            def draw(ax, photo=photo, lines=lines):
                ax.imshow(photo)
                ax.set_title("\n".join(lines), fontsize=6)
                ax.axis("off")

            found.setdefault("mistakes", []).append(charts.pixels(draw, 2.4, 3))
    return found


# ------------------------------------------------------------------------------------------------------- the page


def write(config: Config, rows: pd.DataFrame, output: Path | str | None = None) -> None:
    """Write report.html of a run that has metrics.json into its folder, or into `output`.

    rows: its training rows, from dataset.training_rows.
    """
    run, task = Path(config.run), config.predicted
    saved = read_json(run / "metrics.json", "train first")
    oof = predictions.read_oof(task, run / "oof.csv")
    rows = rows[rows["source"] == "train"]
    sections = [("Scores", scores(task, saved)), ("Training", training(task, run))]
    if not task.numeric:
        sections += [("Confusions", confusions(task, oof))] * (not task.multilabel) + [
            ("By class", by_class(task, oof))
        ]
    sections += [
        ("Calibration", calibration(task, oof)),
        (f"Errors by {task.number.name}" if task.number else "", by_number(task, oof, rows)),
        ("The most confident mistakes" if not task.numeric else "The worst mistakes",
         mistakes(task, oof, rows, config.data.crops)),
    ]  # fmt: skip
    intro = (
        f"{len(oof)} photos of {oof['id'].nunique()} people or groups, each predicted by the model not trained "
        f"on it; folds {', '.join(map(str, saved['folds']))}; {config.model.backbone}, {config.data.image_size} "
        "pixels. Thumbnails are of the photos themselves: keep this page where the photos may be."
    )
    first = summary.lead(config, saved, oof, logs_of(run))
    html.write_report(Path(output or run) / "report.html", str(run), intro, sections, first)


def draw_history(run: Path | str, task: Task) -> None:
    """Draw loss and scores of all folds by epoch, training beside validation, to runs/NAME/history.png."""
    logs = {name: [log] for name, log in logs_of(run).items()}
    if logs:
        charts.write_curves(Path(run) / "history.png", logs, task)
