"""Score submissions where the truth is known, with intervals over people, and differences to the first of them.

    python -m tools.score_submission answers.csv submission.csv other.csv
    S=runs/small F=runs/faces; python -m tools.score_submission answers.csv $S{300,900}.csv $F{300,900}.csv \\
        --people 300 900 300 900 --curves small small faces faces --picture learning_curve.png

answers.csv has the submission's columns, with the true answers, and maybe a column that says which photos belong
together (--group, else `id`). Prints the task's score, the usual ones and the share of each head that is answered
right, each with its 95 % interval. --run names a run whose task it is. --picture draws the scores by the number of
people that each submission's models were trained on.
"""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd

from foldface import cli, metrics, runs
from foldface.cli import run_main
from foldface.data.tables import read_table
from foldface.files import InputError, refuse_unwritable
from foldface.names import index_in, one_of, spellings
from foldface.report import charts
from foldface.score import MeanOfPhotos, Score
from foldface.submission import classes_named
from foldface.task import Task
from tools.compare import describe_difference

FLAGS = {
    "files": {"nargs": "+", "metavar": "FILE", "help": "the true answers, then the submissions"},
    "--group": {
        "default": "",
        "help": "column of the true answers: which photos belong together (default: id)",
    },
    "--people": {"type": int, "nargs": "+", "default": [], "help": "how many people each was trained on"},
    "--curves": {"nargs": "+", "default": [], "help": "the curve that each belongs to (default: one for all)"},
    "--picture": {"default": "", "help": "PNG file that shows the scores by --people"},
}


class ShareOfHead(MeanOfPhotos):
    """The share of photos of which one head is answered right."""

    def __init__(self, head: str) -> None:
        self.head = head

    def each(self, task: Task, target: np.ndarray, answer: np.ndarray) -> np.ndarray:
        return (task.decode(target)[self.head] == task.decode(answer)[self.head]).astype(float)


def scores_of(task: Task) -> dict[str, Score]:
    """{title: Score} of what is printed, the task's own score first."""
    names = [*metrics.own_names(task), *(["mae", "within"] if task.numeric else ["f1", "accuracy"])]
    found = {metrics.title(task, name): metrics.score_named(name) for name in dict.fromkeys(names)}
    if len(task.answered) > 1:
        found |= {head.name: ShareOfHead(head.name) for head in task.answered}
    return found


def read_answers(task: Task, path: str, frame: pd.DataFrame, columns: Sequence[str]) -> np.ndarray:
    """Answers (n,) of a table's columns: a class by name or index, labels, a number, a column a head; or probabilities
    (n, k) where each class has a column. Raises InputError for a cell that is none of these."""
    classes = classes_named(task, columns)
    if task.size and len(classes) == len(columns) == task.size:
        cells = frame[list(columns)].apply(pd.to_numeric, errors="coerce").to_numpy(float)
        refuse_bad_rows(path, frame, columns[0], ~np.isfinite(cells).all(1), "a probability for each class")
        return cells[:, np.argsort(list(classes.values()))]
    heads = {head: name for name in columns for head in task.answered if name in (head.name, head.column)}
    if len(heads) == len(columns) == len(task.answered) > 1:
        return task.encode(*(class_indices(path, frame, heads[head], head.classes) for head in task.answered))
    if len(columns) > 1:
        raise InputError(f"{path}: the columns {one_of(columns)} are no answers of this task, {task.describe()}")
    name = columns[0]
    if task.multilabel:
        found = task.read_sets(frame[name])
        refuse_bad_rows(path, frame, name, found < 0, f"labels of {one_of(task.classes)}")
        return found
    numbers = pd.to_numeric(frame[name], errors="coerce").to_numpy(float)
    if task.numeric:
        refuse_bad_rows(path, frame, name, ~np.isfinite(numbers), "a number")
        return numbers
    if task.size == 2 and ((numbers > 0) & (numbers < 1)).any():  # the probability of one class
        refuse_bad_rows(path, frame, name, ~((numbers >= 0) & (numbers <= 1)), "a probability")
        second = classes.get(name, 1)
        return np.stack([1 - numbers, numbers] if second else [numbers, 1 - numbers], 1)
    return class_indices(path, frame, name, task.classes)


def class_indices(path, frame, column, classes):
    """Class indices (n,) of a column that names them, or has their indices."""
    known, cells = spellings(classes), dict.fromkeys(frame[column])
    found = {cell: index_in(known, cell) for cell in cells}
    if None in found.values() and all(cell.isdecimal() and int(cell) < len(classes) for cell in cells):
        found = {cell: int(cell) for cell in cells}
    bad = frame[column].map(lambda cell: found[cell] is None).to_numpy(bool)
    refuse_bad_rows(path, frame, column, bad, f"a class, {one_of(classes)}, or its index")
    return frame[column].map(found).to_numpy(np.int64)


def refuse_bad_rows(path, frame, column, bad, wanted):
    """Raise InputError where a row is bad: (n,) bool."""
    if bad.any():
        row = int(np.argmax(bad))
        raise InputError(f"{path}: row {row + 2}: {column} is {frame[column].iloc[row]!a}, which is not {wanted}")


def read_submission(truth_path: str, truth: pd.DataFrame, path: str) -> tuple[pd.DataFrame, list[str]]:
    """A submission's rows in the order of the truth's, and its answers' columns, which the truth has too."""
    frame = read_table(path, [])
    id_column, *columns = frame.columns
    lost = [name for name in frame.columns if name not in truth]
    if lost or not columns:
        raise InputError(f"{truth_path}: has no column {lost[0]}, which {path} has" if lost else
                         f"{path}: has no column beside {id_column}")  # fmt: skip
    for name, table in ((truth_path, truth), (path, frame)):
        again = table[id_column].duplicated()
        if again.any():
            raise InputError(f"{name}: {id_column} {table[id_column][again].iloc[0]!a} stands there twice")
    at = pd.Index(frame[id_column]).get_indexer(truth[id_column])
    if (at < 0).any():
        first = truth[id_column].iloc[int(np.argmax(at < 0))]
        raise InputError(f"{path}: answers {(at >= 0).sum()} of the {len(truth)} photos of {truth_path}, not {first!a}")
    if len(frame) > len(truth):
        print(f"{path}: {len(frame) - len(truth)} of its {len(frame)} answers are not in {truth_path}, and not scored")
    return frame.iloc[at], columns


def scores_with_intervals(
    task: Task, target: np.ndarray, answers: Sequence[np.ndarray], people: np.ndarray
) -> dict[str, list[tuple[tuple, tuple]]]:
    """{title of a score: [((score, low, high), (difference to the first, low, high)) of each of the answers]}.

    target (n,); answers: of (n,) or (n, k) each; people: (n,) ids.
    """
    found = {}
    for title, score in scores_of(task).items():
        if score.probabilities and any(answer.ndim == 1 for answer in answers):
            raise InputError(f"{title} is a score of probabilities: each submission needs a column for each class")
        drawn = metrics.bootstrap_scores(task, target, answers, people, name=score)
        value = [score.value(task, target, metrics.seen_by(task, score, answer)) for answer in answers]
        found[title] = [
            ((value[k], *metrics.quantiles(drawn[k])), (value[k] - value[0], *metrics.quantiles(drawn[k] - drawn[0])))
            for k in range(len(answers))
        ]
    return found


def draw(scores: dict[str, list], people: Sequence[int], curves: Sequence[str]) -> charts.Draw:
    """What draws the scores of submissions by the people they were trained on, an Axes a score.

    scores: of `scores_with_intervals`.
    """

    def onto(axes):
        for ax, (title, found) in zip(np.atleast_1d(axes), scores.items(), strict=True):
            for k, curve in enumerate(dict.fromkeys(curves)):
                mine = [(n, *one) for n, (one, _), of in zip(people, found, curves, strict=True) if of == curve]
                x, y, low, high = np.array(sorted(mine)).T
                x = x * (1 + 0.04 * k)  # so that intervals of several curves lie beside each other
                ax.errorbar(x, y, [y - low, high - y], marker="o", ms=4, lw=1.2, capsize=3, label=curve)
            ax.set(xscale="log", title=title, xlabel="people to train on")
            ax.set_xticks(sorted(set(people)), [f"{n:,}" for n in sorted(set(people))])
            ax.minorticks_off()
            ax.grid(color="0.93")
        if len(set(curves)) > 1:
            place = {"loc": "upper center", "bbox_to_anchor": (0.5, -0.18), "ncols": 2}  # below, where no curve is
            np.atleast_1d(axes)[0].legend(frameon=False, fontsize=8, **place)

    return onto


def print_table(paths: Sequence[str], scores: dict[str, list], about: str) -> None:
    """Print a table, a row a submission. scores: of `scores_with_intervals`."""
    print(f"| {about} | {' | '.join(scores)} |")
    print("|---" * (len(scores) + 1) + "|")
    for k, path in enumerate(paths):
        cells = []
        for of_all in scores.values():
            (value, low, high), difference = of_all[k]
            cells.append(f"{value:.3f} ({low:.3f}-{high:.3f})" + (f", {describe_difference(*difference)}" if k else ""))
        print(f"| {path} | {' | '.join(cells)} |")
    if len(paths) > 1:
        print(
            f"\n95 % intervals over people; differences to {paths[0]} on the same people drawn, ~ where it contains 0"
        )


def main(argv: list[str] | None = None) -> None:
    config = cli.read(__doc__, FLAGS, argv, ("task",))
    if "run" in config.typed:
        config = runs.read_for_run(__doc__, FLAGS, argv, ("task",))
    task, truth_path, paths = config.predicted, config.files[0], config.files[1:]
    if not paths:
        raise InputError("name the true answers, then submissions: answers.csv submission.csv")
    if not task.settled:
        kind = task.answered[0].name
        raise InputError(f"task.heads: the classes of {kind} come from the data: name a run that has them with --run")
    for flag, values in (("--people", config.people), ("--curves", config.curves)):
        if values and len(values) != len(paths):
            raise InputError(f"{flag}: has {len(values)} values for {len(paths)} submissions: give one for each")
    if config.picture:
        if not config.people:
            raise InputError("--picture: draws scores by --people: say how many each submission was trained on")
        refuse_unwritable(Path(config.picture).parent, "name another --picture")
    truth = read_table(truth_path, [])
    if not len(truth):
        raise InputError(f"{truth_path}: has no rows")
    answers = []
    for path in paths:
        frame, columns = read_submission(truth_path, truth, path)
        answers.append(read_answers(task, path, frame, columns))
    group = config.group or ("id" if "id" in truth and "id" not in frame else "")  # a submission's id is a photo's
    if group and group not in truth:
        raise InputError(f"{truth_path}: has no column {group}, which --group names")
    people = truth[group].to_numpy(str) if group else np.arange(len(truth))
    target = task.decide(read_answers(task, truth_path, truth, columns))
    scores = scores_with_intervals(task, target, answers, people)
    several = f" of {len(np.unique(people))} people" if group == "id" else ""
    print_table(paths, scores, f"{len(truth)} answers{several}")
    if config.picture:
        picture = draw(scores, config.people, config.curves or [""] * len(paths))
        charts.write_png(Path(config.picture), picture, 2.6 * len(scores), 3.2, len(scores))
        print(f"look at it: {config.picture}")


if __name__ == "__main__":
    run_main(main)
