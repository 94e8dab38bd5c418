"""What tools.compare shows: RUN/compare.html, RUN/compare.png and RUN/curves.png."""

import numpy as np
import pandas as pd

from foldface import metrics
from foldface.files import quoted
from foldface.report import html
from foldface.report.charts import PAGE_WIDTH, curve_charts, svg, write_curves, write_png


def drawings(recipes, scores):
    """(a function that draws the score of each recipe on an Axes, one that draws the difference to the first, how many
    recipes there are), both with intervals."""
    runs = {name: list(recipes[name].values()) for name in scores.names}
    first, base = next(iter(runs.values()))[0], scores.names[0]
    task, several = first.task, scores.ends == (0, 1)
    value = {name: np.mean([run.metrics[task.score] for run in found]) for name, found in runs.items()}
    ordered = sorted(runs, key=lambda name: metrics.sign(task) * value[name])
    what = "range over seeds" if several else "95 %"

    def own(ax):
        for k, name in enumerate(ordered):
            low, high = (
                min(run.metrics[task.score if several else f"{task.score}_low"] for run in runs[name]),
                max(run.metrics[task.score if several else f"{task.score}_high"] for run in runs[name]),
            )
            ax.plot([low, high], [k, k], color="0.6", lw=2)
            ax.plot(value[name], k, "o", color="black")
        ax.set(yticks=np.arange(len(ordered)), yticklabels=ordered)
        ax.set(xlabel=f"out-of-fold {metrics.title(task)}, {what}")
        ax.grid(axis="x", color="0.93")

    def gains(ax):
        for k, name in enumerate(ordered):
            gain, low, high = scores.difference(name, base)
            colour = "0.6" if low <= 0 <= high else "tab:green" if metrics.sign(task) * low > 0 else "tab:red"
            ax.plot([low, high], [k, k], color=colour, lw=2)
            ax.plot(gain, k, "o", color=colour)
        ax.set(yticks=np.arange(len(ordered)), yticklabels=ordered)
        ax.set(xlabel=f"difference to {base}, {what}; grey: contains 0")
        ax.axvline(0, color="0.8", zorder=0)
        ax.grid(axis="x", color="0.93")

    return own, gains, len(ordered)


def picture(recipes, scores, path):
    """Write a PNG: the score of each recipe, and its difference to the first one, with intervals."""
    own, gains, count = drawings(recipes, scores)

    def draw(axes):
        own(axes[0])
        gains(axes[1])

    write_png(path, draw, 11, 1.2 + 0.32 * count, columns=2, share="y")


def write(recipes, scores, markdown, home):
    """Write RUN/compare.html: the first screen, the tables of compare.md, the charts."""
    own, gains, count = drawings(recipes, scores)
    task, base = next(run.task for runs in recipes.values() for run in runs.values()), scores.names[0]
    points = np.nanmean(scores.points, 1) * metrics.sign(task)
    best = scores.names[int(points.argmax())]
    gain, low, high = scores.difference(best, base)
    if best == base:
        verdict = f"No recipe is better than {base}, the first."
    else:
        sure = "chance could explain it" if low <= 0 <= high else "the interval does not contain 0"
        verdict = f"{gain:+.3f} ({low:+.3f} to {high:+.3f}) to {base}, the first: {sure}."
    winner = html.big(f"{abs(points.max()):.3f}", f"{metrics.title(task)}: {best}") + html.text(verdict)
    run = home / next(iter(recipes[best].values())).name
    folders = [home.joinpath(one.name) for runs in recipes.values() for one in runs.values()]
    pages = [f"{folder.name}/report.html" for folder in folders if (folder / "report.html").is_file()]
    first = html.lead(
        [
            (
                "Which is best?",
                [winner],
            ),
            ("What next?", [html.command(f"python inference.py --run {quoted(run)}", "answers by the best recipe")]),
            ("Pages of the runs", [html.anchors(pages)] if pages else []),
        ]
    )
    height = 1.0 + 0.3 * count
    logs = logs_by_recipe(recipes)
    drawn = [svg(own, PAGE_WIDTH, height), svg(gains, PAGE_WIDTH, height), *curve_charts(logs, task)]
    sections = [("Recipes", html.of_markdown(markdown)), ("Charts", [html.side_by_side(*drawn)])]
    intro = "All recipes are trained on the same folds and scored on people that their model has not seen."
    html.write(home / "compare.html", f"{home}: comparison", intro, sections, first)


def logs_by_recipe(recipes):
    """{recipe: its log.csv of each fold; of several seeds the mean over the folds of each}."""
    logs = {}
    for name, runs in recipes.items():
        by_seed = [pd.concat(run.logs).groupby("epoch").mean().reset_index() for run in runs.values()]
        logs[name] = by_seed if len(runs) > 1 else next(iter(runs.values())).logs
    return logs


def curves(recipes, path):
    """Write loss and scores by epoch of {recipe: {seed: Result}} as a PNG: a colour a recipe, a thin line a seed (of
    one seed, a fold)."""
    task = next(run.task for runs in recipes.values() for run in runs.values())
    write_curves(path, logs_by_recipe(recipes), task)
