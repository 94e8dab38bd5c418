"""Predictions as CSV files, of each fold and out of fold, and their scores together. Needs no torch.

oof.csv        ImageID, id, fold, target, ans, p0, p1, ...         for a number: confidence instead of p0, p1, ...
fold{k}.csv    ImageID, ans, p0, p1, ...                           target and ans are class indices, or numbers
final.csv      the same, of the final fit (train.final), which is no fold: nothing it says is out of fold
"""

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Protocol

import numpy as np
import pandas as pd

from foldface import metrics
from foldface.files import InputError, quoted, read_csv, write_csv, write_json
from foldface.task import Task

OOF_COLUMNS = ["ImageID", "id", "fold", "target", "ans"]
SPENT = ["seconds", "other_seconds"]  # columns of speed.csv: of each epoch's steps, and of all else
FINAL = -3  # stands where a fold's number does for the final fit; no row has it as its fold
CONFIDENCE = "confidence"  # the probability that a number is within task.tolerance of the truth


def numbers(task: Task) -> list[str]:
    """The columns of a prediction that hold numbers beside ans: p0, p1, ... or the confidence."""
    return [CONFIDENCE] if task.numeric else task.probabilities


def with_answers(task: Task, frame: pd.DataFrame, found: np.ndarray) -> pd.DataFrame:
    """Append ans and its probabilities, or its confidence, to a DataFrame. found: (n, width) of heads.Heads.answers.

    The class is the one of the largest probability after rounding to the six decimals of the file.
    """
    frame = frame.reset_index(drop=True)
    found = np.round(np.asarray(found, dtype=np.float64), 6)
    if task.numeric:
        return frame.assign(ans=found[:, 0], confidence=found[:, 1])
    probabilities = found[:, : task.size]
    frame = frame.assign(ans=task.decide(probabilities))
    return pd.concat([frame, pd.DataFrame(probabilities, columns=task.probabilities)], axis=1)


def with_numbers(task: Task, frame: pd.DataFrame, found: np.ndarray) -> pd.DataFrame:
    """Append the columns of a number's distribution to a DataFrame. found: (n, width) of heads.Heads.answers."""
    columns = pd.DataFrame(np.asarray(found)[:, task.size :], columns=task.number.columns)
    return pd.concat([frame.reset_index(drop=True), columns], axis=1)


def fold_name(fold: int) -> str:
    """What a fold's folder, and its predictions, are called: fold3; of FINAL final."""
    return "final" if fold == FINAL else f"fold{fold}"


class Folders(Protocol):
    """What `folder_of` needs of a Config, which stands above this file: the run's folder, and where answers go."""

    run: str
    output: str


def folder_of(config: Folders) -> Path:
    """The folder with a run's predictions: `output` if inference.py wrote there, else the run's folder."""
    output = Path(config.output or config.run)
    return output if any(output.glob("fold*.csv")) else Path(config.run)


def fold_files(run: Path | str) -> dict[int, Path]:
    """{fold: path} of a run's predictions, runs/NAME/fold{k}.csv. Raises InputError if there are none."""
    found = {int(path.stem[4:]): path for path in Path(run).glob("fold*.csv") if path.stem[4:].isdigit()}
    if not found:
        raise InputError(f"{run}: has no fold0.csv: run inference.py --run {quoted(run)} first")
    return dict(sorted(found.items()))


def voting_files(run: str | Path, folds: Iterable[int], final: str) -> list[Path]:
    """The CSVs of a run that vote: those of its folds, and of its final fit where it has one.

    folds: () = all. final: "with" the folds, "alone" or "without" it. Raises InputError if one is missing.
    """
    there, of_all = fold_files(run), Path(run) / "final.csv"
    if final == "alone":
        if not of_all.is_file():
            raise InputError(f"--final alone: {run} has no final.csv: train_kfold.py --train.final, then inference.py")
        return [of_all]
    missing = [fold for fold in folds if fold not in there]
    if missing:
        raise InputError(f"--folds {missing[0]}: {run} has the folds {', '.join(map(str, there))}")
    found = [there[fold] for fold in folds or there]
    return [*found, of_all] if final == "with" and not folds and of_all.is_file() else found


def read_fold(task: Task, path: Path) -> pd.DataFrame:
    """Read a fold's predictions: DataFrame of ImageID, ans, and `numbers(task)` (float32).

    ans: a number as in the file, float; else the class of the largest probability, int. Raises InputError for values
    that are impossible.
    """
    columns = [*numbers(task), *["ans"] * task.numeric]
    frame = read_csv(path, ["ImageID", "ans", *columns], "inference.py writes it", numbers=columns)
    if task.numeric:
        bad, what = ~np.isfinite(frame["ans"]), "ans is no number"
    else:
        values = frame[columns].to_numpy()
        one = values.max(1) <= 1.01 if task.multilabel else abs(values.sum(1) - 1) < 0.01
        bad = ~(np.isfinite(values).all(1) & (values >= 0).all(1) & one)
        what = (
            f"{columns[0]}..{columns[-1]} are not probabilities that sum to one"
            if not task.multilabel
            else "probabilities are beyond 0 to 1"
        )
    if bad.any():
        raise InputError(f"{path}, row {int(bad.argmax()) + 2}: {what}")
    return frame if task.numeric else frame.assign(ans=task.decide(values))


def values(task: Task, frame: pd.DataFrame) -> np.ndarray:
    """What a table of predictions votes with: its probabilities (n, k), or its numbers (n,)."""
    return frame["ans" if task.numeric else task.probabilities].to_numpy()


def read_oof(task: Task, path: Path) -> pd.DataFrame:
    """Read out-of-fold predictions: DataFrame of OOF_COLUMNS and `numbers(task)`; fold int, target, ans int or float.

    Raises InputError for values that are impossible.
    """
    end = 2**task.size if task.multilabel else task.size
    counted = {"fold": np.inf} | ({} if task.numeric else {"target": end, "ans": end})
    columns = [*numbers(task), *counted]  # numbers keep float64, so they are read as text
    columns = [name for name in columns if not (task.multilabel and name in ("target", "ans"))]  # no float32
    frame = read_csv(path, [*OOF_COLUMNS, *numbers(task)], "train first", numbers=columns)
    if task.multilabel:
        for name in ("target", "ans"):
            whole = frame[name].str.fullmatch(r"\d{1,19}")
            if not whole.all():
                raise InputError(f"{path}, row {int((~whole).to_numpy().argmax()) + 2}: {name} is no set: train again")
            frame[name] = frame[name].astype("int64")
    for name, end in counted.items():
        bad = ~(frame[name].between(0, end, inclusive="left") & (frame[name] % 1 == 0)).to_numpy()
        if bad.any():
            what = "no fold" if name == "fold" else f"no class, 0 to {end - 1}"
            raise InputError(f"{path}, row {int(bad.argmax()) + 2}: {name} is {what}: train again")
    kind = float if task.numeric else int
    try:
        return frame.astype({"fold": int, "target": kind, "ans": kind})
    except ValueError as error:
        raise InputError(f"{path}: target or ans is no number ({error})") from None


def gather(task: Task, run: Path | str, wanted: Sequence[int], more: Mapping[str, object] | tuple[()] = ()) -> None:
    """Join the finished folds' predictions: write oof.csv and metrics.json, print the scores.

    wanted: all folds, trained or not; more: further metrics, {"test": {...}} of a test set.
    """
    folders = {k: Path(run) / f"fold{k}" for k in wanted if (Path(run) / f"fold{k}" / "oof.csv").is_file()}
    if not folders:
        return
    best, last = (
        pd.concat([read_oof(task, folder / name) for folder in folders.values()], ignore_index=True)
        for name in ("oof.csv", "oof_last.csv")
    )
    write_csv(Path(run) / "oof.csv", best)
    if task.number and (folders[min(folders)] / f"oof_{task.number.key}.csv").is_file():
        name, columns = f"oof_{task.number.key}.csv", task.number.columns
        frames = [read_csv(folder / name, ["ImageID", *columns], numbers=columns) for folder in folders.values()]
        write_csv(Path(run) / name, pd.concat(frames, ignore_index=True))
    found = measured(task, best)
    found[f"{task.score}_last_epoch"] = metrics.scores(task, last["target"], scored(task, last))[task.score]
    found |= {"folds": list(folders), "photos": len(best), "people": int(best["id"].nunique())} | dict(more)
    write_json(Path(run) / "metrics.json", found)
    print(fold_table(task, folders, best, found))
    first, *others = describe(task, found)
    print(
        f"{run}: {len(folders)} of {len(wanted)} folds, out-of-fold {first}; "
        f"{found[f'{task.score}_last_epoch']:.3f} with the last epochs, not selected), {', '.join(others)}"
    )
    if "test" in found:
        first, *others = describe(task, found["test"])
        print(f"test set, {found['test']['photos']} photos that no choice was made on: {first}), {', '.join(others)}")
        if "final" in found["test"]:
            first, *others = describe(task, found["test"]["final"])
            print(f"test set, by the final fit: {first}), {', '.join(others)}")


def fold_table(task, folders, oof, found):
    """The scores of each fold, their mean, and those of all photos together, as lines of text.

    folders: {fold: its folder}; oof: the out-of-fold predictions of all of them; found: what `measured` says of them.
    """
    names = [task.score, *(name for name in metrics.score_names(task) if name != task.score)]
    header, rows = ["fold", "photos", "epochs", "minutes", *(metrics.full_title(task, name) for name in names)], []
    scores = []
    for fold, folder in folders.items():
        mine, path = oof[oof["fold"] == fold], Path(folder) / "speed.csv"
        speed = read_csv(path, SPENT, numbers=SPENT)[SPENT].to_numpy() if path.is_file() else np.empty((0, 2))
        scores.append(metrics.scores(task, mine["target"], scored(task, mine)))
        rows.append(
            [fold, len(mine), len(speed), f"{speed.sum() / 60:.1f}", *(f"{scores[-1][name]:.3f}" for name in names)]
        )
    if len(rows) > 1:
        rows.append(["mean", "", "", "", *(f"{np.mean([one[name] for one in scores]):.3f}" for name in names)])
    rows.append(["all", len(oof), "", "", *(f"{found[name]:.3f}" for name in names)])
    rows.append(["95 %", "", "", "", f"{found[f'{task.score}_low']:.3f}-{found[f'{task.score}_high']:.3f}"])
    return in_columns(header, rows)


def in_columns(header: Sequence[str], rows: Sequence[Sequence]) -> str:
    """A table as lines of text: the first column to the left, all others to the right; short rows end early."""
    cells = [[str(cell) for cell in row] for row in (header, *rows)]
    widths = [max(len(row[k]) for row in cells if k < len(row)) for k in range(len(header))]
    lines = []
    for row in cells:
        first, *others = [cell.ljust(widths[0]) if k == 0 else cell.rjust(widths[k]) for k, cell in enumerate(row)]
        lines.append("  ".join([first, *others]).rstrip())
    return "\n".join(lines)


def scored(task: Task, frame: pd.DataFrame) -> np.ndarray:
    """What scores look at of a DataFrame of predictions: its probabilities (n, k), or, without them and of numbers,
    ans (n,)."""
    columns = task.probabilities
    return frame[columns if columns and all(name in frame for name in columns) else "ans"].to_numpy()


def measured(task: Task, frame: pd.DataFrame) -> dict[str, float]:
    """metrics.scores of a DataFrame of id, target, ans and probabilities; the task's own, those of task.reported and f1
    with their 95 % intervals."""
    others, answer = metrics.scores(task, frame["target"], scored(task, frame)), scored(task, frame)
    found = {}
    for name in dict.fromkeys([*metrics.own_names(task), *([] if task.numeric else ["f1"])]):
        low, high = metrics.interval(task, frame["target"], answer, frame["id"], name=name)
        found |= {name: others.pop(name), f"{name}_low": low, f"{name}_high": high}
    return found | others


def describe(task: Task, found: Mapping[str, float]) -> list[str]:
    """Scores as text: ["macro F1 0.763 (95 % 0.671-0.837", "accuracy 0.8", ...]; the bracket is open, for more text."""
    low, high = found[f"{task.score}_low"], found[f"{task.score}_high"]
    first = f"{metrics.title(task)} {found[task.score]:.3f} (95 % {low:.3f}-{high:.3f}"
    names = [name for name in metrics.score_names(task) if name != task.score]
    return [first] + [f"{metrics.title(task, name)} {found[name]:.3f}" for name in names if name in found]


def spread(task: Task, columns: Mapping[str, np.ndarray]) -> str:
    """How answers are spread, beside one another, as lines of text: shares of classes, or quantiles of numbers.

    columns: {title: (n,)}.
    """
    titles = "".join(f"{title:>12}" for title in columns)
    if task.numeric:
        lines = [f"{task.answered[0].unit or 'quantile':24}" + titles]
        for share in (0.05, 0.25, 0.5, 0.75, 0.95):
            cells = (f"{np.quantile(values, share):>12.1f}" for values in columns.values())
            lines.append(f"{share:<24.0%}" + "".join(cells))
        return "\n".join(lines)
    lines = [f"{'class':24}" + titles]

    def counts(answers):
        return task.sets(answers).sum(0) if task.multilabel else np.bincount(answers, minlength=task.size)

    shares = [counts(np.asarray(v)) / max(len(v), 1) for v in columns.values()]
    for index, name in enumerate(task.classes):
        lines.append(f"{index:2} {name:21}" + "".join(f"{share[index]:>12.1%}" for share in shares))
    return "\n".join(lines)


UNDERPREDICTED_SHARE, MIN_EXPECTED = 1 / 3, 5  # of the training share; answers expected, for a share to count


def describe_underpredicted(task: Task, training: np.ndarray, answer: np.ndarray) -> str:
    """A line on the classes that are answered less than a third as often as they are in training; "" without any.

    training, answer: (n,) int each. A mean of probabilities hardly ever is the largest for a rare class, which the
    macro F1 counts like the others.
    """
    share = np.bincount(training, minlength=task.size) / len(training)
    count, expected = np.bincount(answer, minlength=task.size), share * len(answer)
    found = np.flatnonzero((count < UNDERPREDICTED_SHARE * expected) & (expected >= MIN_EXPECTED))
    if not len(found):
        return ""
    names = [task.classes[k] for k in found[np.argsort(-share[found], kind="stable")]]
    more = f" and {len(names) - 2} more classes" if len(names) > 2 else ""
    return (
        f"answered less than a third as often as in training: {', '.join(names[:2])}{more}; macro F1 counts each class "
        "alike: try --decide bias, which is used where it helps on people that it was not chosen on"
    )


PSEUDO_COLUMNS = ["ImageID", "fold", "ans", "confidence"]
