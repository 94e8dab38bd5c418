"""Probabilities of all folds, of one run or several -> submission.csv. Needs no torch.

    python ensemble.py --soft                       mean of the probabilities
    python ensemble.py --hard                       majority of the answers
    python ensemble.py --soft --runs runs/a runs/b  all folds of several runs, one vote each

Prints how the answers are spread over the classes, beside the training labels. What it reads and writes is small:
any number of runs takes seconds.
"""

from pathlib import Path

import numpy as np
import pandas as pd

import args
import dataset
import labels
from files import InputError, guarded, read_csv, write_csv


def members(runs):
    """The predictions of all folds of all runs: (ImageIDs (n,), {name: (n, 18) float32}).

    Raises InputError unless all answer for the same photos in the same order.
    """
    ids, found = None, {}
    for run in runs:
        for path in labels.fold_files(run).values():
            frame = labels.read_fold(path)
            if ids is None:
                ids, first = frame["ImageID"].to_numpy(), path
            if len(frame) != len(ids):
                raise InputError(
                    f"{path}: has {len(frame)} rows, {first} has {len(ids)}: they answer for different photos"
                )
            different = frame["ImageID"].to_numpy() != ids
            if different.any():
                row = int(different.argmax())
                raise InputError(
                    f"{path}, row {row + 2}: is {frame['ImageID'].iloc[row]}, {first} has {ids[row]} there: "
                    "run inference.py on the same info.csv for all"
                )
            found[str(path)] = frame[labels.PROBABILITIES].to_numpy()
    return ids, found


def soft_vote(probabilities):
    """The class of the largest mean probability. probabilities: (members, n, 18) -> (n,) int."""
    return np.mean(probabilities, axis=0).argmax(1)


def hard_vote(probabilities):
    """The class that most members answer. (members, n, 18) -> (n,) int.

    Of classes with equally many votes the one whose mask, gender and age have most votes of their own wins; if that
    is a tie too, the one of the larger mean probability.
    """
    classes = len(labels.CLASSES)
    answers = np.argmax(probabilities, axis=2)
    votes = (answers[:, :, None] == np.arange(classes)).sum(0)
    part, own = labels.decode(np.arange(classes)), labels.decode(answers)
    agreement = sum((own[head][:, :, None] == part[head]).sum(0) for head in labels.HEADS)
    mean = np.mean(probabilities, axis=0)
    # each key decides only where those before it are equal: votes, then attributes, then probability below one
    return (votes * 1e6 + agreement * 1e3 + mean).argmax(1)


def main():
    settings = args.read_for_run(
        __doc__,
        {
            "--soft": {"action": "store_true", "help": "mean of the probabilities (the default)"},
            "--hard": {"action": "store_true", "help": "majority of the answers"},
            "--runs": {
                "nargs": "+",
                "default": [],
                "help": "run folders to put together (default: the folder of --run)",
            },
        },
    )
    if settings.soft and settings.hard:
        raise InputError("--soft and --hard: choose one")
    runs = settings.runs or [settings.run]
    ids, found = members(runs)
    stack = np.stack(list(found.values()))
    answer = hard_vote(stack) if settings.hard else soft_vote(stack)
    wanted = dataset.eval_rows(settings)["ImageID"].to_numpy()
    if len(wanted) != len(ids) or (wanted != ids).any():
        raise InputError(
            f"{settings.data.eval}/info.csv has other rows ({len(wanted)}) than {next(iter(found))} ({len(ids)}): "
            "run inference.py again with the same data.eval"
        )
    write_csv(settings.submission, pd.DataFrame({"ImageID": ids, "ans": answer}))
    columns = {"answers": answer}
    seen = Path(runs[0]) / "oof.csv"
    if seen.is_file():
        columns = {"training": read_csv(seen, ["target"])["target"].astype(int)} | columns
    print(labels.spread(columns))
    print(
        f"{'majority' if settings.hard else 'mean'} of {len(found)} members from {len(runs)} runs, {len(ids)} answers: "
        f"{settings.submission}"
    )


if __name__ == "__main__":
    guarded(main)
