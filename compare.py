"""Recipes side by side: same folds, same seeds, and what luck could explain.

    python compare.py recipes/people_small.json recipes/focal.json recipes/mixup.json --config recipes/people_small.json
    python compare.py recipes/*.json --config recipes/people_small.json --train.folds 2 --run runs/compare

Each recipe is laid over --config and the command line's settings and trained by train_kfold.py as RUN/<recipe's name>.
What is finished is not done again; a stopped start goes on. Writes RUN/compare.md and RUN/compare.png: the out-of-fold
score (such as macro F1) with its interval, F1 by head, minutes, photos/s and memory, and the difference of each pair.
"""

import sys
from pathlib import Path

import numpy as np
import pandas as pd

import answers
import args
import labels
from files import InputError, guarded, read_csv, read_json, refuse_unwritable, replacing, run_command

SPEED = ["seconds", "photos_per_second", "waited", "memory_gb", "other_seconds"]


def train(recipes, home, words):
    """Train all recipes in their order, so that one may start from an earlier one's weights (model.start)."""
    for number, (name, recipe) in enumerate(recipes.items(), start=1):
        print(f"--- {number} of {len(recipes)}: {name}", flush=True)
        command = [sys.executable, str(Path(__file__).with_name("train_kfold.py"))]
        command += [*words, "--config", str(recipe), "--run", str(home / name)]
        code = run_command(command)
        if code:
            raise InputError(f"{recipe}: its training ended with exit {code}, see above; the same command goes on")


class Result:
    """What a finished run says: answers beside targets, scores, costs. Raises InputError where something is missing."""

    def __init__(self, home, name):
        self.name, folder = name, home / name
        self.metrics = read_json(folder / "metrics.json", "train it first")
        task = read_json(folder / "args.json", "train it first")
        self.task = labels.Task(**task["task"], age_boundary=task["data"]["age_boundary"])
        self.frame = answers.read_oof(self.task, folder / "oof.csv").sort_values("ImageID", ignore_index=True)
        self.folds = read_csv(folder / "folds.csv", ["id", "fold"]).sort_values("id", ignore_index=True)
        paths = [folder / f"fold{k}" / "speed.csv" for k in self.metrics["folds"]]
        speed = pd.concat([read_csv(path, SPEED, numbers=SPEED) for path in paths])
        self.minutes = (speed["seconds"].sum() + speed["other_seconds"].sum()) / 60
        self.rate, self.memory = speed["photos_per_second"].median(), speed["memory_gb"].max()


def refuse_others(results):
    """Raise InputError unless all recipes were dealt the same folds: else they are scored by other models' people."""
    first = results[0]
    for other in results[1:]:
        if not other.folds.equals(first.folds):
            raise InputError(
                f"{other.name} has other folds than {first.name}: a recipe must not change data.train, train.folds, "
                "data.splitter or seed"
            )
        if not other.task.same(first.task) or other.task.score != first.task.score:
            raise InputError(f"{other.name} is scored otherwise than {first.name}: a recipe must not change the task")


def differences(results):
    """The score of results on bootstrap draws of the same people: (values (r, draws), names of those that took part).

    A recipe that is scored on other photos (a first stage on bare faces) takes no part.
    """
    first = max(results, key=lambda result: len(result.frame)).frame
    same = [result for result in results if result.frame["ImageID"].equals(first["ImageID"])]
    told, task = [result.frame["ans"].to_numpy() for result in same], results[0].task
    return task.draws(first["target"].to_numpy(), told, first["id"]), [result.name for result in same]


def table(results, values, names):
    """The Markdown page: a table of the recipes, best first, and one of the pairs."""
    task, base = results[0].task, names[0]
    ordered = sorted(results, key=lambda result: -task.sign * result.metrics[task.score])
    others = [name for name in task.score_names if name not in (task.score, "accuracy")]
    titles = [task.title, *(task.title_of(name) for name in others), "to the first", "minutes", "photos/s", "GB"]
    lines = [f"| recipe | {' | '.join(titles)} |", "|---" * (1 + len(titles)) + "|"]
    value = {result.name: result.metrics[task.score] for result in results}
    for result in ordered:
        m, gain = result.metrics, ""
        if result.name in names and result.name != base:
            gain = said(values[names.index(result.name)] - values[0], value[result.name] - value[base])
        photos = "" if result.name in names else f" (on {m['photos']} photos)"
        low, high = m[f"{task.score}_low"], m[f"{task.score}_high"]
        cells = [f"{m[task.score]:.3f} ({low:.3f}-{high:.3f})", *(f"{m[name]:.3f}" for name in others), gain]
        cells += [f"{result.minutes:.1f}", f"{result.rate:.0f}", f"{result.memory:.1f}"]
        lines.append(f"| {result.name}{photos} | {' | '.join(cells)} |")
    lines += [
        "",
        f"Differences of {task.title} to {base}, with 95 % intervals from drawing the same people anew for both;",
    ]
    lines += ["~ = the interval holds 0: luck with these people could explain it.", ""]
    order = [result.name for result in ordered if result.name in names]
    lines += ["Each pair, row minus column, where luck with these people can't explain it (~ elsewhere):", ""]
    lines += ["| | " + " | ".join(str(k + 1) for k in range(len(order))) + " |", "|---|" + "---|" * len(order)]
    for row, name in enumerate(order, start=1):
        cells = []
        for other in order:
            apart = values[names.index(name)] - values[names.index(other)]
            low, high = np.quantile(apart, [0.025, 0.975])
            cells.append("" if other == name else "~" if low <= 0 <= high else f"{value[name] - value[other]:+.3f}")
        lines.append(f"| {row} {name} | " + " | ".join(cells) + " |")
    pairs = len(order) * (len(order) - 1) // 2
    lines += ["", f"Of {pairs} pairs about {pairs * 0.05:.0f} would be marked if no recipe differed from another."]
    return "\n".join(lines) + "\n"


def said(draws, value):
    """A difference with its interval, and ~ where it holds 0."""
    low, high = np.quantile(draws, [0.025, 0.975])
    return f"{value:+.3f} ({low:+.3f} to {high:+.3f})" + (" ~" if low <= 0 <= high else "")


def picture(results, values, names, path):
    """The score of each recipe with its interval, and its difference to the first with its own, as a PNG."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    task = results[0].task
    drawn = [result for result in results if result.name in names]
    ordered = sorted(drawn, key=lambda result: task.sign * result.metrics[task.score])
    at, base = np.arange(len(ordered)), next(result for result in results if result.name == names[0])
    figure, (left, right) = pyplot.subplots(1, 2, figsize=(11, 1.2 + 0.32 * len(ordered)), sharey=True)
    for k, result in enumerate(ordered):
        m = result.metrics
        left.plot([m[f"{task.score}_low"], m[f"{task.score}_high"]], [k, k], color="0.6", lw=2)
        left.plot(m[task.score], k, "o", color="black")
        draws = values[names.index(result.name)] - values[0]
        low, high = np.quantile(draws, [0.025, 0.975])
        colour = "0.6" if low <= 0 <= high else "tab:green" if task.sign * low > 0 else "tab:red"
        right.plot([low, high], [k, k], color=colour, lw=2)
        right.plot(m[task.score] - base.metrics[task.score], k, "o", color=colour)
    left.set(yticks=at, yticklabels=[result.name for result in ordered], xlabel=f"out-of-fold {task.title}, 95 %")
    right.set(xlabel=f"difference to {base.name}, 95 %; grey: luck could explain it")
    right.axvline(0, color="0.8", zorder=0)
    for axes in (left, right):
        axes.spines[["top", "right"]].set_visible(False)
        axes.grid(axis="x", color="0.93")
    figure.tight_layout()
    with replacing(path) as partial:
        figure.savefig(partial, format="png", dpi=120)
    pyplot.close(figure)


def recipes_and_words(argv):
    """A command line -> ({name: path} of the recipes, all other words): recipes are the words before the first flag."""
    count = next((k for k, word in enumerate(argv) if word.startswith("--")), len(argv))
    found = {Path(word).stem: Path(word).expanduser() for word in argv[:count]}
    if len(found) < count:
        raise InputError("two recipes have one name: each needs its own folder")
    for path in found.values():
        if not path.is_file():
            raise InputError(f"{path}: no such recipe; recipes come first, then --config and other settings")
    return found, argv[count:]


def main():
    recipes, words = recipes_and_words(sys.argv[1:])
    settings = args.read(__doc__, argv=words)  # refuses what train_kfold.py would refuse, before anything is trained
    if not recipes:
        raise InputError("name the recipes to compare: python compare.py recipes/a.json recipes/b.json")
    home = Path(settings.run if "run" in settings.given else "runs/compare")
    refuse_unwritable(home, "name another --run")
    train(recipes, home, words)
    results = [Result(home, name) for name in recipes]
    refuse_others(results)
    values, names = differences(results)
    page = table(results, values, names)
    with replacing(home / "compare.md") as partial:
        partial.write_text(page, encoding="utf-8")
    picture(results, values, names, home / "compare.png")
    print(page + f"{home}/compare.md, {home}/compare.png")


if __name__ == "__main__":
    guarded(main)
