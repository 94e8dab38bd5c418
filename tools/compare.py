"""Train recipes on the same folds with the same seeds, and compare their out-of-fold scores with intervals.

    python -m tools.compare recipes/people_small.json recipes/try/{focal,mixup}.json --config recipes/people_small.json
    python -m tools.compare recipes/try/*.json --config recipes/quick.json --folds 0 --seeds 0 1 --run runs/compare
    T=recipes/try; python -m tools.compare $T/backbone_resnet{34,152}.json{,+$T/frozen.json} --config $T/sgd.json

Each recipe (a+b: b over a) is read after --config and the command line's settings and trained by train_kfold.py as
RUN/NAME, with --seeds as RUN/NAME-seed<k>. Finished runs are not trained again; a stopped start goes on.
Writes RUN/compare.html, a page, and what it shows as RUN/compare.md, compare.png and curves.png: the out-of-fold score
(such as macro F1) with its interval, F1 by head, how many runs learn, training and validation accuracy of the last
epoch, accuracy on a test set, minutes, photos/s and memory; the difference of each pair; loss and scores by epoch.
"""

import json
import sys
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd

from foldface import cli, metrics, predictions
from foldface.cli import run_main
from foldface.files import InputError, atomic_write, read_csv, read_json, refuse_unwritable, run_command
from foldface.settings import task_of
from foldface.task import Task
from tools import compare_page

SPEED = ["seconds", "photos_per_second", "waited", "memory_gb", "other_seconds"]
USED = ("task", "data", "crop", "model", "loss", "train")  # --help shows these groups of settings
FLAGS = {
    "--seeds": {"type": int, "nargs": "+", "default": [], "help": "train each recipe with each of these seeds"},
    "--folds": {"type": int, "nargs": "+", "default": [], "help": "folds to train (default: train.only_folds)"},
}
STOPPED = (130, -2, -15)  # exit statuses of a training that was interrupted


def folder_name(name, seed):
    """The folder of a run below --run. seed: None without --seeds."""
    return name if seed is None else f"{name}-seed{seed}"


def train(recipes, seeds, home, words):
    """Train all recipes with all seeds, in their order, so that one may start from an earlier one's weights
    (model.init_from_run: of the same seed). Returns {(recipe, seed): why it was not trained}."""
    lost, jobs = {}, [(name, seed) for name in recipes for seed in seeds]
    for number, (name, seed) in enumerate(jobs, start=1):
        print(f"--- {number} of {len(jobs)}: {folder_name(name, seed)}", flush=True)
        own = [*words, *(word for path in recipes[name] for word in ("--config", str(path)))]
        own += ["--run", str(home / folder_name(name, seed)), *(() if seed is None else ("--seed", str(seed)))]
        try:
            start = cli.read(__doc__, argv=own).model.init_from_run
        except InputError as error:
            lost[name, seed] = str(error)
            print(f"error: {name}: {error}", file=sys.stderr)
            continue
        if start in recipes:
            own += ["--model.init_from_run", folder_name(start, seed)]
        code = run_command([sys.executable, str(Path(__file__).parent.with_name("train_kfold.py")), *own])
        if code in STOPPED:
            raise KeyboardInterrupt
        if code:
            lost[name, seed] = f"its training ended with exit {code}, see its own line above"
    return lost


class Result:
    """A finished run: predictions beside targets, scores, costs. Raises InputError where a file is missing.

    logs: log.csv of each fold; last: {column: mean of the folds' last epochs}, NaN where there is none.
    """

    def __init__(self, home, name):
        self.name, folder = name, home / name
        self.metrics = read_json(folder / "metrics.json", "train it first")
        task = read_json(folder / "args.json", "train it first")
        self.task = Task(**task_of(task))
        self.frame = predictions.read_oof(self.task, folder / "oof.csv").sort_values("ImageID", ignore_index=True)
        self.folds = read_csv(folder / "folds.csv", ["id", "fold"]).sort_values("id", ignore_index=True)
        folders = [folder / f"fold{k}" for k in self.metrics["folds"]]
        speed = pd.concat([read_csv(path / "speed.csv", SPEED, numbers=SPEED) for path in folders])
        self.minutes = (speed["seconds"].sum() + speed["other_seconds"].sum()) / 60
        self.rate, self.memory = speed["photos_per_second"].median(), speed["memory_gb"].max()
        self.logs = [pd.read_csv(path / "log.csv") for path in folders]
        self.measure = "mae" if self.task.numeric else "accuracy"
        self.last = pd.DataFrame([log.iloc[-1] for log in self.logs]).mean(numeric_only=True)

    @property
    def learns(self) -> bool:
        """True if the error is at least 1 % below that of the best constant answer to each fold: the median of numbers,
        the most frequent class."""
        by_fold = self.frame.groupby("fold")["target"]
        if self.task.numeric:
            error = np.abs(self.frame["ans"] - self.frame["target"]).mean()
            constant = np.abs(self.frame["target"] - by_fold.transform("median")).mean()
        else:
            error = (self.frame["ans"] != self.frame["target"]).mean()
            constant = 1 - by_fold.agg(lambda target: target.value_counts().iloc[0]).sum() / len(self.frame)
        return bool(error < 0.99 * constant)


def refuse_others(results: list[Result]) -> None:
    """Raise InputError unless all runs have the same folds and the same task."""
    first = results[0]
    for other in results[1:]:
        if not other.folds.equals(first.folds):
            raise InputError(
                f"{other.name} has other folds than {first.name}: a recipe must not change data.train, train.folds, "
                "data.splitter or seed"
            )
        if not other.task.same(first.task) or other.task.score != first.task.score:
            raise InputError(
                f"{other.name} has another task or score than {first.name}: a recipe must not change the task"
            )


def gather(recipes, seeds, home, lost):
    """{recipe: {seed: Result}} of the runs comparable with the first run of their seed; others go to `lost`."""
    found, first = {}, {}
    for name in recipes:
        for seed in seeds:
            if (name, seed) in lost:
                continue
            try:
                result = Result(home, folder_name(name, seed))
                refuse_others([first.setdefault(seed, result), result])
            except InputError as error:
                lost[name, seed] = str(error)
                continue
            found.setdefault(name, {})[seed] = result
    return found


class Scores(NamedTuple):
    """Scores of the recipes, to take differences of."""

    names: list  # recipes that are scored on all photos (a first stage on bare faces is not)
    values: np.ndarray  # (recipes, draws) of the same people; of several seeds (recipes, seeds), NaN where one lacks
    points: np.ndarray  # (recipes, seeds): the scores themselves
    ends: tuple  # the quantiles of a difference's `values` that are its interval

    def difference(self, one: str, other: str) -> tuple[float, float, float]:
        """(difference, low, high) of two recipes; NaN where they have no seed in common."""
        one, other = self.names.index(one), self.names.index(other)
        point, draws = self.points[one] - self.points[other], self.values[one] - self.values[other]
        draws = draws[~np.isnan(draws)]
        if not len(draws):
            return (float("nan"),) * 3
        return (float(np.nanmean(point)), *np.quantile(draws, self.ends))


def differences(recipes):
    """The Scores of {recipe: {seed: Result}}: of one seed on bootstrap draws of the same people, of several by seed."""
    seeds = list(dict.fromkeys(seed for runs in recipes.values() for seed in runs))
    frames = {seed: [runs[seed].frame for runs in recipes.values() if seed in runs] for seed in seeds}
    whole = {seed: max(found, key=len) for seed, found in frames.items()}
    same = {
        name: runs
        for name, runs in recipes.items()
        if all(run.frame["ImageID"].equals(whole[seed]["ImageID"]) for seed, run in runs.items())
    }
    task = next(run.task for runs in same.values() for run in runs.values())
    points = [[runs[s].metrics[task.score] if s in runs else np.nan for s in seeds] for runs in same.values()]
    if len(seeds) > 1:
        return Scores(list(same), np.array(points), np.array(points), (0, 1))
    frame, found = whole[seeds[0]], [predictions.scored(task, runs[seeds[0]].frame) for runs in same.values()]
    values = metrics.bootstrap_scores(task, frame["target"].to_numpy(), found, frame["id"])
    return Scores(list(same), values, np.array(points), (0.025, 0.975))


def mean_range(values, digits: int = 3) -> str:
    """A table cell: the mean, of several values with their range; "" where all are NaN."""
    values = [value for value in values if not np.isnan(value)]
    if not values:
        return ""
    mean = f"{np.mean(values):.{digits}f}"
    return mean if len(values) == 1 else f"{mean} ({min(values):.{digits}f}-{max(values):.{digits}f})"


def table(recipes, scores, lost=None):
    """The Markdown page of {recipe: {seed: Result}}: a table of the recipes, the best first, and a table of pairs.

    lost: {(recipe, seed): why it is not compared}.
    """
    runs = {name: list(found.values()) for name, found in recipes.items()}
    first, base = next(iter(runs.values()))[0], scores.names[0]
    task, measure, several = first.task, first.measure, scores.ends == (0, 1)
    value = {name: np.mean([run.metrics[task.score] for run in found]) for name, found in runs.items()}
    ordered = sorted(runs, key=lambda name: -metrics.sign(task) * value[name])
    others = [name for name in metrics.score_names(task) if name not in (task.score, "accuracy")]
    tested = any("test" in run.metrics for found in runs.values() for run in found)
    short = metrics.title(task, measure)
    titles = [metrics.title(task), *(metrics.title(task, name) for name in others), "learn"]
    titles += [f"training {short}", f"validation {short}"]
    titles += [f"test {short}"] * tested + ["to the first", "minutes", "photos/s", "GB"]
    lines = [f"| recipe | {' | '.join(titles)} |", "|---" * (1 + len(titles)) + "|"]
    for name in ordered:
        found, gain = runs[name], ""
        if name in scores.names and name != base:
            gain = describe_difference(*scores.difference(name, base))
        photos = "" if name in scores.names else f" (on {found[0].metrics['photos']} photos)"
        saved = [run.metrics for run in found]
        cells = [mean_range([m[task.score] for m in saved])]
        if not several:
            cells[0] += f" ({saved[0][f'{task.score}_low']:.3f}-{saved[0][f'{task.score}_high']:.3f})"
        cells += [with_interval(saved, other, several) for other in others]
        cells += [f"{sum(run.learns for run in found)} of {len(found)}"]
        cells += [
            mean_range([run.last.get(column, np.nan) for run in found]) for column in (f"train_{measure}", measure)
        ]
        cells += [mean_range([m.get("test", {}).get(measure, np.nan) for m in saved])] * tested
        cells += [gain, mean_range([run.minutes for run in found], 1)]
        cells += [f"{np.mean([run.rate for run in found]):.0f}", f"{max(run.memory for run in found):.1f}"]
        lines.append(f"| {name}{photos} | {' | '.join(cells)} |")
    interval = "their range over the seeds" if several else "95 % intervals (bootstrap over the same people)"
    lines += [
        "",
        f"Differences of {metrics.title(task)} to {base}, with {interval}; ~ = it contains 0.",
        f"Training and validation {short}: of the last epoch, mean of the folds. Learn: runs whose error is at least",
        "1 % below that of the best constant answer (of numbers the median, of classes the most frequent one).",
        *(f"Not compared: {folder_name(*key)}: {reason}" for key, reason in (lost or {}).items()),
        "",
        "Each pair, row minus column; ~ where the interval contains 0:",
        "",
    ]
    order = [name for name in ordered if name in scores.names]
    lines += ["| | " + " | ".join(str(k + 1) for k in range(len(order))) + " |", "|---|" + "---|" * len(order)]
    for row, name in enumerate(order, start=1):
        cells = []
        for other in order:
            value, low, high = scores.difference(name, other)
            cells.append("" if other == name or np.isnan(value) else "~" if low <= 0 <= high else f"{value:+.3f}")
        lines.append(f"| {row} {name} | " + " | ".join(cells) + " |")
    if not several:
        pairs = len(order) * (len(order) - 1) // 2
        lines += ["", f"Of {pairs} pairs about {pairs * 0.05:.0f} would have no ~ if all recipes were equal."]
    return "\n".join(lines) + "\n"


def with_interval(saved: list[dict], name: str, several: bool) -> str:
    """A table cell: a score of metrics.json, of one seed with its interval where it has one. saved: one a seed."""
    cell = mean_range([one.get(name, np.nan) for one in saved])
    if several or f"{name}_low" not in saved[0]:
        return cell
    return f"{cell} ({saved[0][f'{name}_low']:.3f}-{saved[0][f'{name}_high']:.3f})"


def describe_difference(value: float, low: float, high: float) -> str:
    """A difference with its interval, and ~ where that contains 0; "" for NaN."""
    if np.isnan(value):
        return ""
    return f"{value:+.3f} ({low:+.3f} to {high:+.3f})" + (" ~" if low <= 0 <= high else "")


def recipes_and_words(argv):
    """A command line -> ({name: [paths]} of the recipes, all other words).

    Recipes are the words before the first flag; a+b is the file a with b over it.
    """
    count = next((k for k, word in enumerate(argv) if word.startswith("--")), len(argv))
    found = {}
    for word in argv[:count]:
        paths = [Path(part).expanduser() for part in ([word] if Path(word).is_file() else word.split("+"))]
        for path in paths:
            if not path.is_file():
                raise InputError(f"{path}: no such recipe; recipes come first, then --config and other settings")
        name = "+".join(path.stem for path in paths)
        if name in found:
            raise InputError(f"two recipes are called {name}: each needs a folder of its own")
        found[name] = paths
    return found, argv[count:]


def without(words, flags):
    """The words of a command line without these flags and their values."""
    kept, inside = [], False
    for word in words:
        if word.startswith("--"):
            inside = word.split("=")[0] in flags
        if not inside:
            kept.append(word)
    return kept


def main(argv: list[str] | None = None) -> None:
    recipes, words = recipes_and_words(sys.argv[1:] if argv is None else argv)
    # refuse what train_kfold.py would refuse, before any training
    config = cli.read(__doc__, FLAGS, words, USED)
    if not recipes:
        raise InputError(
            "name the recipes to compare: python -m tools.compare recipes/people_small.json recipes/try/focal.json"
        )
    if config.seeds and "seed" in config.typed:
        raise InputError("--seed and --seeds: give one of the two")
    words, seeds = without(words, FLAGS), list(dict.fromkeys(config.seeds)) or [None]
    if config.folds:
        words += ["--train.only_folds", json.dumps(config.folds)]
        cli.read(__doc__, argv=words, used=USED)
    home = Path(config.run if "run" in config.typed else "runs/compare")
    refuse_unwritable(home, "name another --run")
    lost = train(recipes, seeds, home, words)
    found = gather(recipes, seeds, home, lost)
    if found:
        scores = differences(found)
        page = table(found, scores, lost)
        with atomic_write(home / "compare.md") as partial:
            partial.write_text(page, encoding="utf-8")
        compare_page.picture(found, scores, home / "compare.png")
        compare_page.curves(found, home / "curves.png")
        compare_page.write(found, scores, page, home)
        print(page + f"{home}/compare.html, {home}/compare.md, {home}/compare.png, {home}/curves.png")
    if lost:
        (name, seed), reason = next(iter(lost.items()))
        more = f" (and {len(lost) - 1} more, see compare.md)" if len(lost) > 1 and found else ""
        raise InputError(f"{folder_name(name, seed)} is not in the comparison: {reason}{more}")


if __name__ == "__main__":
    run_main(main)
