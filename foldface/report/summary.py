"""The first screen of a run's page: is it good, where does it fail, what next, and what is not as usual."""

import json
from pathlib import Path

import numpy as np
import pandas as pd

from foldface import metrics, runs
from foldface.files import quoted, read_json
from foldface.report import html
from foldface.settings import OF_ONE_SCRIPT, Config, as_dict, flatten, of_earlier
from foldface.task import Task

N_WORST = 3  # classes that are named on the first screen
# where a run lies and what it is called: they differ in each run and decide nothing
OF_PLACE = ("run", "output", "submission", "log", "device", "data.workers")
MEMORISED = 0.15  # training score above the validation score that is worth a sentence


def lead(config: Config, saved: dict, oof: pd.DataFrame, logs: dict[str, pd.DataFrame]) -> str:
    """The first screen as HTML.

    saved: content of metrics.json; oof: the out-of-fold predictions; logs: {fold's folder: its log.csv}.
    """
    task = config.predicted
    changed = [f"{key} {value}" for key, value in changed_settings(config).items()]
    return html.lead(
        [
            ("Is it good?", how_good(task, saved, oof, logs)),
            ("Where does it fail?", where_it_fails(task, oof)),
            ("What next?", what_next(config, saved)),
            ("Settings that differ from the defaults", [html.code_list(changed) if changed else html.text("None.")]),
        ]
    )


def how_good(task: Task, saved: dict, oof: pd.DataFrame, logs: dict[str, pd.DataFrame]) -> list[str]:
    """The score with its interval, the others, that of a constant answer, that on the photos trained on."""
    name, low, high = task.score, saved[f"{task.score}_low"], saved[f"{task.score}_high"]
    pieces = [html.big(f"{saved[name]:.3f}", f"{metrics.title(task)}, 95 % {low:.3f} to {high:.3f}")]
    pieces.append(html.text(f"On {len(oof)} photos of {oof['id'].nunique()} people or groups not trained on."))
    others = [other for other in metrics.score_names(task) if other != name]
    pieces.append(html.text(", ".join(f"{metrics.full_title(task, n)} {saved[n]:.3f}" for n in others) + "."))
    constant = constant_score(task, oof)
    what = "the median of all" if task.numeric else "the most frequent class"
    if metrics.of_probabilities(task):
        what = "the shares that the classes have"
    elif task.multilabel:
        what = "the labels that at least half of the photos have"
    if not np.isnan(constant):
        pieces.append(html.text(f"Who always answers {what} has {constant:.3f}."))
    last = [log[f"train_{name}"].dropna() for log in logs.values() if f"train_{name}" in log]
    trained = float(np.mean([log.iloc[-1] for log in last if len(log)] or [np.nan]))
    if not task.numeric and trained - saved[name] > MEMORISED:
        pieces.append(
            html.text(
                f"Photos that it was trained on are answered with {trained:.3f}: it knows them by heart. More photos, "
                "stronger data.augment, or fewer train.epochs help."
            )
        )
    return pieces


def constant_score(task: Task, oof: pd.DataFrame) -> float:
    """The task's score of the best constant answer: the most frequent class, or the median; of several labels those
    that at least half of the photos have; of a score of probabilities the share of each class."""
    target = oof["target"].to_numpy()
    if metrics.of_probabilities(task) or task.multilabel:
        shares = np.mean([task.has(target, k) for k in range(task.size)], axis=1)
        return metrics.value(task, target, np.tile(shares, (len(target), 1)))
    answer = np.median(target) if task.numeric else np.bincount(target).argmax()
    return metrics.value(task, target, np.full(len(target), answer, target.dtype))


def where_it_fails(task: Task, oof: pd.DataFrame) -> list[str]:
    """The three classes of least F1, and what they are taken for; of a number the tenths of it that are most off."""
    target, answer = oof["target"].to_numpy(), oof["ans"].to_numpy()
    if task.numeric:
        part = pd.qcut(target, 5, duplicates="drop")
        error = pd.Series(np.abs(target - answer)).groupby(part, observed=True).mean().sort_values(ascending=False)
        rows = [[f"{part.left:.0f} to {part.right:.0f}", float(value)] for part, value in error[:N_WORST].items()]
        return [html.table([task.answered[0].unit or task.answered[0].name, "mean error"], rows)]
    value, low, high = metrics.f1_by_class(task, target, answer, oof["id"].to_numpy(str))
    if task.multilabel:
        count = task.sets(target).sum(0)
        there, rows = sorted(np.flatnonzero(count), key=lambda k: (value[k], k))[:N_WORST], []
        for k in there:
            rows.append([task.classes[k], f"{value[k]:.3f} ({low[k]:.3f} to {high[k]:.3f})", int(count[k])])
        return [html.table(["worst labels", "F1", "photos"], rows)]
    there = np.flatnonzero(np.bincount(target, minlength=task.size))
    rows = []
    for k in sorted(there, key=lambda k: (value[k], k))[:N_WORST]:
        wrong = answer[(target == k) & (answer != k)]
        taken = task.classes[np.bincount(wrong).argmax()] if len(wrong) else ""
        rows.append(
            [task.classes[k], f"{value[k]:.3f} ({low[k]:.3f} to {high[k]:.3f})", int((target == k).sum()), taken]
        )
    return [html.table(["worst classes", "F1", "photos", "taken for"], rows)]


def what_next(config: Config, saved: dict) -> list[str]:
    """The commands that come next, each with what it is for."""
    found = [(runs.next_command(config), "answers for the photos of data.eval; then ensemble.py")]
    if len(saved["folds"]) < config.train.folds and not config.train.only_folds:
        line = f"python train_kfold.py --config {quoted(f'{config.run}/args.json')}"
        found.append((line, f"the other folds: {len(saved['folds'])} of {config.train.folds} are trained"))
    if not config.predicted.numeric:
        found.append((f"python -m tools.label_errors --run {quoted(config.run)}", "labels that are likely wrong"))
    found.append((f"python -m tools.explain --run {quoted(config.run)}", "what it looks at in its worst mistakes"))
    return [html.command(*one) for one in found]


def changed_settings(config: Config) -> dict[str, str]:
    """{dotted name: value, as it would be typed} of the settings of a run that are not as by default."""
    path, now = Path(config.run) / "args.json", flatten(as_dict(config))
    then = of_earlier(read_json(path, "train again")) if path.is_file() else now  # what it was trained with
    usual, found = flatten(as_dict(Config())), {}
    for key, value in (now | then).items():
        if value == usual.get(key) or key not in usual or key in OF_PLACE or key.split(".")[0] in OF_ONE_SCRIPT:
            continue
        if key == "task.heads":
            heads = as_dict(config)["task"]["heads"]
            value = ", ".join(f"{head['name']} ({len(head['classes'])} classes)" for head in heads)
        found[key] = value if isinstance(value, str) and value else json.dumps(value, ensure_ascii=False)
    return found
