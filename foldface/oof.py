"""The out-of-fold predictions of several runs, and what answers made of them score."""

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Protocol

import numpy as np

from foldface import blend, metrics, predictions
from foldface.files import InputError, read_csv
from foldface.task import Task


class Groups(Protocol):
    """What `OofPredictions.share` needs of a shared.Groups, which stands above this file."""

    def share(self, members: np.ndarray) -> np.ndarray: ...
    def share_numbers(self, numbers: np.ndarray) -> np.ndarray: ...
    def units(self, people: np.ndarray) -> np.ndarray: ...


class OofPredictions:
    """The out-of-fold predictions of several runs for the same photos.

    photos (n,) ImageIDs, target (n,), people (n,), part (n,) for blend.nested, predictions (m, n, k) or (m, n),
    numbers (m, n, columns) or None; groups: of `share`, or None; lines: what was printed of their scores.
    """

    def __init__(self, task: Task, runs: Sequence[Path | str]) -> None:
        """Raises InputError where a run has none, or has them for other photos or with other true classes."""
        first = None
        for k, run in enumerate(runs):
            path = Path(run) / "oof.csv"
            frame = predictions.read_oof(task, path)
            first = frame if first is None else first
            if not np.array_equal(frame["ImageID"].to_numpy(), first["ImageID"].to_numpy()):
                if sorted(frame["ImageID"]) != sorted(first["ImageID"]):
                    raise InputError(
                        f"{path}: has other photos than {runs[0]}/oof.csv: train all runs on the same data"
                    )
                twice = frame["ImageID"][frame["ImageID"].duplicated()]
                if len(twice):
                    raise InputError(f"{path}: {twice.iloc[0]} stands there twice: train all runs on the same data")
                frame = frame.set_index("ImageID", drop=False).loc[first["ImageID"]]
            if (frame["target"].to_numpy() != first["target"].to_numpy()).any():
                raise InputError(f"{path}: has other targets than {runs[0]}/oof.csv: train all runs on the same labels")
            mine = predictions.values(task, frame)
            if k == 0:  # room for all: a list of them would be held twice
                self.predictions = np.empty((len(runs), *mine.shape))
            self.predictions[k] = mine
        self.task, self.lines, self.groups = task, [], None
        self.photos = first["ImageID"].to_numpy()
        self.target, self.people = first["target"].to_numpy(), first["id"].to_numpy(str)
        self.part = blend.parts_of(self.people, first["fold"].to_numpy(int))
        self.numbers = read_numbers(task, [Path(run) / "oof.csv" for run in runs], first["ImageID"].to_numpy())

    def share(self, groups: Groups) -> None:
        """Let the photos of each group share the answer of some heads; intervals are over groups. groups: a
        shared.Groups of these photos."""
        self.groups = groups
        for k, mine in enumerate(self.predictions):
            self.predictions[k] = groups.share(mine)
        if self.numbers is not None:
            self.numbers = np.stack([groups.share_numbers(mine) for mine in self.numbers])
        self.people = groups.units(self.people)

    def log_score(self, answer: np.ndarray, title: str, baseline: np.ndarray | None = None) -> bool:
        """Print the score of answers, (n,) or probabilities (n, k), with its interval, and its difference to a
        baseline's; returns whether it is better."""
        return self.log_scores([(answer, title, baseline)])[0]

    def log_interval(self, answer: np.ndarray, name: str) -> None:
        """Print another score than the task's own, by its name, of answers (n,) or (n, k), with its interval."""
        value = metrics.scores(self.task, self.target, answer)[name]
        low, high = metrics.interval(self.task, self.target, answer, self.people, name=name)
        self.lines.append(f"  {metrics.title(self.task, name)} {value:.4f} ({low:.3f}-{high:.3f})")
        print(self.lines[-1])

    def log_scores(self, lines: Sequence[tuple[np.ndarray, str, np.ndarray | None]], name: str = "") -> list[bool]:
        """`log_score` for several (answer, title, baseline or None), all on the same people drawn: a list of bool.

        name: of another score than the task's own."""
        task, better = self.task, []
        sign = (-1 if metrics.score_named(name).less_is_better else 1) if name else metrics.sign(task)
        kept = {id(one): one for answer, _, baseline in lines for one in (answer, baseline) if one is not None}
        values = metrics.bootstrap_scores(task, self.target, list(kept.values()), self.people, name=name)
        sampled = dict(zip(kept, values, strict=True))
        for answer, title, baseline in lines:
            low, high = metrics.quantiles(sampled[id(answer)])
            value = metrics.value(task, self.target, answer, name)
            line, gain = f"{title}: out-of-fold {metrics.title(task, name)} {value:.4f} ({low:.3f}-{high:.3f})", 0.0
            if baseline is not None:
                gain = value - metrics.value(task, self.target, baseline, name)
                low, high = metrics.quantiles(sampled[id(answer)] - sampled[id(baseline)])
                line += f", {gain:+.4f} ({low:+.4f} to {high:+.4f})" + (
                    "; the 95 % interval contains 0" if low <= 0 <= high else ""
                )
            print(line)
            self.lines.append(line)
            better.append(sign * gain > 0)
        return better

    def log_calibration(self, before: np.ndarray, after: np.ndarray) -> None:
        """Print the expected calibration error of two answers, probabilities (n, k)."""
        errors = [
            metrics.expected_calibration_error(*metrics.confidences(self.task, self.target, probabilities))[0]
            for probabilities in (before, after)
        ]
        self.lines.append("expected calibration error {:.3f}, before {:.3f}".format(*errors[::-1]))
        print(self.lines[-1])


def fit_to_votes(known: OofPredictions, weigh: Callable, choose: Callable, use: Callable) -> Callable:
    """A fit for blend.nested: choose(votes, target) on the weighted votes of the rows that it is given, and
    use(votes, what was chosen) on those of others."""

    def fit(rows):
        votes = np.tensordot(weigh(rows), known.predictions, 1)
        chosen = choose(votes[rows], known.target[rows])
        return lambda others: use(votes[others], chosen)

    return fit


def decide_thresholds(
    known: OofPredictions, weigh: Callable[[np.ndarray], np.ndarray], baseline: np.ndarray
) -> Callable | None:
    """Thresholds of several labels a photo, as a function of (m, n, k) and None -> (n, k) scores in which each
    threshold lies at a half; None if the baseline stands. weigh(rows (n,) bool) -> weights (m,)."""
    task = known.task

    def at(votes, thresholds):
        return task.code(votes >= thresholds)

    fit = fit_to_votes(known, weigh, partial(blend.choose_thresholds, task), at)
    answer = blend.nested(fit, known.target, known.part)
    if not known.log_score(answer, "decided thresholds, on people not decided on", baseline):
        print("a half for each label is not beaten: it stays")
        return None
    everyone = np.ones(len(known.target), bool)
    weights = weigh(everyone)
    thresholds = blend.choose_thresholds(task, np.tensordot(weights, known.predictions, 1), known.target)
    print("thresholds: " + ", ".join(f"{name} {at:.2f}" for name, at in zip(task.classes, thresholds, strict=True)))
    return lambda members, _: blend.at_thresholds(np.tensordot(weights, members, 1), thresholds)


def decide_temperature(known: OofPredictions, weigh: Callable[[np.ndarray], np.ndarray]) -> Callable | None:
    """A temperature, as a function of (m, n, k) and None -> probabilities (n, k); None if the log loss is no lower on
    people that it was not chosen on. weigh(rows (n,) bool) -> weights (m,)."""
    task = known.task

    fit = fit_to_votes(known, weigh, partial(blend.choose_temperature, task), partial(blend.tempered, task))

    def as_they_are(rows):
        return lambda others: blend.tempered(task, np.tensordot(weigh(rows), known.predictions[:, others], 1), 1.0)

    nested, plain = (blend.nested(one, known.target, known.part) for one in (fit, as_they_are))
    title = "decided temperature, on people not decided on"
    lower = known.log_scores([(nested, title, plain)], "log_loss")[0]
    known.log_calibration(plain, nested)
    if not lower:
        print("the probabilities as they are are not beaten: they stay")
        return None
    everyone = np.ones(len(known.target), bool)
    weights = weigh(everyone)
    temperature = blend.choose_temperature(task, np.tensordot(weights, known.predictions, 1), known.target)
    print(f"temperature: {temperature:.2f}")
    return lambda members, _: blend.tempered(task, np.tensordot(weights, members, 1), temperature)


def temperature_of(task: Task, run: Path | str) -> float:
    """The temperature that fits all out-of-fold predictions of a run. Raises InputError where it has none."""
    known = OofPredictions(task, [run])
    return blend.choose_temperature(task, known.predictions[0], known.target)


def read_numbers(task: Task, paths: Sequence[Path], ids: np.ndarray) -> np.ndarray | None:
    """What stands behind a cut head, task.number.columns beside the predictions of several runs or folds:
    (m, n, columns) in the order of ids; None if any of them has none."""
    if task.number is None or task.numeric:
        return None
    columns = task.number.columns
    paths = [path.with_name(f"{path.stem}_{task.number.key}.csv") for path in paths]
    if not all(path.is_file() for path in paths):
        return None
    frames = [read_csv(path, ["ImageID", *columns], numbers=columns) for path in paths]
    if any(len(frame) != len(ids) or set(frame["ImageID"]) != set(ids) for frame in frames):
        raise InputError(f"{paths[0]}: has other photos than the predictions beside it: run the same command again")
    first = [frame.drop_duplicates("ImageID").set_index("ImageID") for frame in frames]
    return np.stack([frame.loc[ids, columns].to_numpy(float) for frame in first])
