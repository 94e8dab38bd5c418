"""Charts drawn by matplotlib: as SVG for pages, as pixels for trackers, as PNG files; and the curves of a training."""

import contextlib
import io
from collections.abc import Callable, Iterator
from html import escape
from pathlib import Path

import numpy as np
import pandas as pd
from matplotlib.axes import Axes

from foldface import metrics
from foldface.files import atomic_write
from foldface.task import Task

Draw = Callable[[object], None]  # is given the figure's Axes, or an array of them where it has several columns


@contextlib.contextmanager
def figure(draw: Draw, width: float, height: float, columns: int = 1, share: str = "none") -> Iterator:
    """A matplotlib Figure of width x height inches, with what `draw` draws on its axes; closed afterwards.

    share: the axis, "x" or "y", that all columns have in common.
    """
    from matplotlib import pyplot

    pyplot.switch_backend("Agg")
    # the same chart has the same bytes; a $ in the name of a class is no formula
    with pyplot.rc_context({"svg.hashsalt": "foldface", "font.size": 9, "text.parse_math": False}):
        shared = {"sharex": share == "x", "sharey": share == "y"}
        made, axes = pyplot.subplots(1, columns, figsize=(width, height), **shared)
        draw(axes)
        for one in made.axes:
            one.spines[["top", "right"]].set_visible(False)
        made.tight_layout()
        yield made
    pyplot.close(made)


PAGE_WIDTH = 3.7  # inches of a chart that a phone shows as it is


def svg(draw: Draw, width: float = PAGE_WIDTH, height: float = 2.9) -> str:
    """A chart as an <svg> element, which is read out by the title of its axes."""
    file = io.StringIO()
    with figure(draw, width, height) as made:
        made.savefig(file, format="svg", metadata={"Date": None})
        words = "; ".join(filter(None, (ax.get_title() for ax in made.axes))) or "a chart"
    drawn = file.getvalue()
    label = escape(f"chart: {words}", quote=True)
    return drawn[drawn.index("<svg") :].replace("<svg", f'<svg role="img" aria-label="{label}"', 1)


def pixels(draw: Draw, width: float = 5.2, height: float = 3.2) -> np.ndarray:
    """A chart as an image, (h, w, 3) uint8 RGB, with 100 pixels an inch."""
    with figure(draw, width, height) as made:
        made.set_dpi(100)
        made.canvas.draw()
        return np.asarray(made.canvas.buffer_rgba())[..., :3].copy()


def write_png(path: Path, draw: Draw, width: float, height: float, columns: int = 1, share: str = "none") -> None:
    """Write a chart as a PNG file with 110 pixels an inch, atomically."""
    with figure(draw, width, height, columns, share) as made, atomic_write(path) as partial:
        made.savefig(partial, format="png", dpi=110)


def draw_curves(axes: np.ndarray, logs: dict[str, list[pd.DataFrame]], task: Task) -> None:
    """Draw loss and the first two scores of `task` by epoch on three Axes: training dashed, validation solid.

    logs: {name: [content of a log.csv]}. A name has one colour. Several logs of a name are thin lines, and their mean
    is a bold one.
    """
    for ax, measure in zip(axes, curves_of(task), strict=True):
        draw_curve(ax, logs, *measure)
    legend_below(axes[0])


def curve_charts(logs: dict[str, list[pd.DataFrame]], task: Task) -> list[str]:
    """The three charts of `draw_curves` as <svg> elements of their own."""

    def drawing(measure):
        def draw(ax):
            draw_curve(ax, logs, *measure)
            legend_below(ax)

        return draw

    return [svg(drawing(measure)) for measure in curves_of(task)]


def curves_of(task: Task) -> list[tuple[str, str, str]]:
    """(column of training, column of validation, title) of the measures that curves show."""
    scores = metrics.score_names(task)[:2]
    return [("train_loss", "val_loss", "loss")] + [(f"train_{n}", n, metrics.title(task, n)) for n in scores]


def draw_curve(ax, logs: dict[str, list[pd.DataFrame]], training: str, validation: str, title: str) -> None:
    """Draw one measure by epoch: see `draw_curves`."""
    for k, (name, several) in enumerate(logs.items()):
        by_epoch = [log.set_index("epoch") for log in several]
        for column, style in ((training, "--"), (validation, "-")):
            # not every epoch is validated, and runs of earlier versions have no training scores
            lines = [log[column].dropna() for log in by_epoch if column in log]
            for line in lines if len(lines) > 1 else ():
                ax.plot(line.index, line, style, color=f"C{k % 10}", lw=0.6, alpha=0.4)
            if lines:
                mean = pd.concat(lines, axis=1).mean(axis=1).sort_index()
                label = {"label": name} if style == "-" else {}
                ax.plot(mean.index, mean, style, color=f"C{k % 10}", marker="o", markersize=3, **label)
    ax.set(title=title, xlabel="epoch")
    whole_epochs(ax)
    ax.grid(color="0.93")


def legend_below(ax: Axes) -> None:
    """Name the curves below the axes, where no curve can lie."""
    place = {"loc": "upper center", "bbox_to_anchor": (0.5, -0.18), "ncols": 3}
    ax.legend(title="validation; dashed: training", frameon=False, fontsize=7, title_fontsize=7, **place)


def whole_epochs(ax: Axes) -> None:
    """Ticks at whole epochs alone: there is no epoch 1.5."""

    ax.xaxis.get_major_locator().set_params(integer=True, min_n_ticks=1)


def write_curves(path: Path, logs: dict[str, list[pd.DataFrame]], task: Task) -> None:
    """Write `draw_curves` as a PNG file."""
    write_png(path, lambda axes: draw_curves(axes, logs, task), 12, 3.6, columns=3, share="x")
