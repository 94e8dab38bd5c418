"""Probabilities of all folds, of one run or several -> submission.csv. Needs no torch.

    python ensemble.py --soft                       mean of the probabilities
    python ensemble.py --hard                       majority of the answers; --rank: mean of the ranks
    python ensemble.py --soft --runs runs/a runs/b  all folds of several runs, one vote each
    python ensemble.py --weights search --runs runs/a runs/b runs/c
    python ensemble.py --decide boundary bias       what counts as which answer, for macro F1

Prints what each run brings out of fold, with intervals, and how the answers are spread over the classes. Weights and
decisions are chosen on out-of-fold predictions, scored on people that they were not chosen on, and used only if they
beat the plain vote there.
"""

from pathlib import Path

import numpy as np
import pandas as pd

import args
import blend
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


def rank_vote(probabilities):
    """The class of the highest mean rank among the photos. (members, n, 18) -> (n,) int."""
    return blend.votes(np.asarray(probabilities), "rank").mean(0).argmax(1)


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


VOTES = {"soft": soft_vote, "hard": hard_vote, "rank": rank_vote}


# --------------------------------------------------------------------------------------- what is known out of fold


class Known:
    """The out-of-fold predictions of several runs for the same photos.

    target (n,), people (n,), part (n,) for blend.nested, probabilities (m, n, 18), ages (m, n, 8) or None.
    """

    def __init__(self, runs):
        """Raises InputError where a run has none, or has them for other photos or with other true classes."""
        found = []
        for run in runs:
            path = Path(run) / "oof.csv"
            frame = read_csv(path, labels.OOF_COLUMNS, "train first", numbers=labels.PROBABILITIES)
            frame = frame.set_index("ImageID", drop=False)
            if found and (set(frame.index) != set(found[0].index) or len(frame) != len(found[0])):
                raise InputError(f"{path}: has other photos than {runs[0]}/oof.csv: train all runs on the same data")
            found.append(frame.loc[found[0].index] if found else frame)
            if (found[-1]["target"] != found[0]["target"]).any():
                raise InputError(f"{path}: has other targets than {runs[0]}/oof.csv: train all runs on the same labels")
        first = found[0]
        self.target, self.people = first["target"].to_numpy(int), first["id"].to_numpy(str)
        self.part = blend.parts_of(self.people, first["fold"].to_numpy(int))
        self.probabilities = np.stack([frame[labels.PROBABILITIES].to_numpy(float) for frame in found])
        self.ages = read_ages([Path(run) / "oof_age.csv" for run in runs], first.index)

    def tell(self, answer, title, bar=None):
        """Print the macro F1 of answers (n,) with its interval, and its difference to a bar's; returns whether it is
        better than the bar."""
        draws = labels.f1_draws(self.target, [answer] if bar is None else [answer, bar], self.people)
        low, high = np.quantile(draws[0], [0.025, 0.975])
        line = f"{title}: out-of-fold macro F1 {blend.macro_f1(self.target, answer):.4f} ({low:.3f}-{high:.3f})"
        gain = None
        if bar is not None:
            gain = blend.macro_f1(self.target, answer) - blend.macro_f1(self.target, bar)
            low, high = np.quantile(draws[0] - draws[1], [0.025, 0.975])
            line += f", {gain:+.4f} ({low:+.4f} to {high:+.4f})" + (
                "; luck could explain it" if low <= 0 <= high else ""
            )
        print(line)
        return gain is not None and gain > 0


def read_ages(paths, ids):
    """labels.AGE_COLUMNS of several runs or folds, (m, n, 8), in the order of ids; None if any of them has none."""
    if not all(path.is_file() for path in paths):
        return None
    frames = [read_csv(path, ["ImageID", *labels.AGE_COLUMNS], numbers=labels.AGE_COLUMNS) for path in paths]
    if any(len(frame) != len(ids) or set(frame["ImageID"]) != set(ids) for frame in frames):
        raise InputError(f"{paths[0]}: has other photos than the predictions beside it: run the same command again")
    first = [frame.drop_duplicates("ImageID").set_index("ImageID") for frame in frames]
    return np.stack([frame.loc[ids, labels.AGE_COLUMNS].to_numpy(float) for frame in first])


def introduce(known, runs, vote):
    """Print each run's own score, and what the vote of all loses without it. Returns the vote's answers (n,)."""
    everyone = VOTES[vote](known.probabilities)
    if len(runs) > 1:
        for k, run in enumerate(runs):
            known.tell(known.probabilities[k].argmax(1), str(run))
        for k, run in enumerate(runs):
            known.tell(everyone, f"  with {run} in it", VOTES[vote](np.delete(known.probabilities, k, 0)))
    known.tell(everyone, f"plain {vote} vote of {len(runs)} runs" if len(runs) > 1 else str(runs[0]))
    return everyone


def search_weights(known, runs, vote, bar):
    """Weights (m,) by hill climbing if they beat the plain vote on people that they were not fitted to, else None."""
    stack = blend.votes(known.probabilities, vote)

    def fit(rows):
        weights = blend.climb(stack[:, rows], known.target[rows])
        return lambda others: np.tensordot(weights, stack[:, others], 1).argmax(1)

    better = known.tell(blend.nested(fit, known.target, known.part), "searched weights, on people not searched on", bar)
    if not better:
        print("the plain vote is not beaten: it stays")
        return None
    weights = blend.climb(stack, known.target)
    print("weights: " + ", ".join(f"{run} {weight:.2f}" for run, weight in zip(runs, weights, strict=True)))
    return weights


def decide(known, what, weights, bar):
    """What `what` asks for, as a function (m, n, 18), (m, n, 8) -> (n, 18) scores; None if the bar is not beaten."""

    def mean(probabilities, ages, boundary=None):
        each = probabilities if boundary is None else blend.at_boundary(probabilities, ages, boundary)
        return np.tensordot(weights, each, 1)

    if "boundary" in what and known.ages is None:
        raise InputError("--decide boundary: the runs have no age in years: train with --model.age distribution")
    bounds = labels.BOUNDARIES[1:] if "boundary" in what else [None]
    scores_at = {bound: mean(known.probabilities, known.ages, bound) for bound in bounds}

    def choose(rows):
        target = known.target[rows]
        boundary = None
        if "boundary" in what:
            boundary = blend.choose_boundary({bound: found[rows] for bound, found in scores_at.items()}, target)
        bias = blend.choose_bias(scores_at[boundary][rows], target) if "bias" in what else {}
        return boundary, bias

    def fit(rows):
        boundary, bias = choose(rows)
        factor = np.exp(blend.spread_bias(bias))
        return lambda others: (scores_at[boundary][others] * factor).argmax(1)

    title = f"decided {' and '.join(what)}, on people not decided on"
    if not known.tell(blend.nested(fit, known.target, known.part), title, bar):
        print("the plain answer is not beaten: it stays")
        return None
    boundary, bias = choose(np.ones(len(known.target), bool))
    if boundary:
        print(f"the oldest class begins at {boundary}")
    said = [f"{head} {labels.HEADS[head][k]} {size:+.1f}" for (head, k), size in bias.items() if size]
    if said:
        print(f"log bias: {', '.join(said)}")
    return lambda probabilities, ages: np.exp(blend.spread_bias(bias)) * mean(probabilities, ages, boundary)


# ------------------------------------------------------------------------------------------------------ the answers


def by_run(runs, found, ids):
    """Means over each run's folds: probabilities (m, n, 18) and ages (m, n, 8), None where a run has no years."""
    probabilities, ages = [], []
    for run in runs:
        paths = list(labels.fold_files(run).values())
        probabilities.append(np.mean([found[str(path)] for path in paths], axis=0, dtype=float))
        years = read_ages([path.with_name(f"{path.stem}_age.csv") for path in paths], ids)
        ages.append(None if years is None else years.mean(0))
    return np.stack(probabilities), None if any(age is None for age in ages) else np.stack(ages)


FLAGS = {
    "--soft": {"action": "store_true", "help": "mean of the probabilities (the default)"},
    "--hard": {"action": "store_true", "help": "majority of the answers"},
    "--rank": {"action": "store_true", "help": "mean of each class's rank among the photos"},
    "--runs": {"nargs": "+", "default": [], "help": "run folders to put together (default: the folder of --run)"},
    "--weights": {
        "choices": ["equal", "search"],
        "default": "equal",
        "help": "search: hill climbing on out-of-fold macro F1, taken if it beats the plain vote on other people",
    },
    "--decide": {
        "nargs": "+",
        "choices": ["boundary", "bias"],
        "default": [],
        "help": "choose the age at which the oldest class begins (ages in years), a bias of each head's classes",
    },
}


def main():
    settings = args.read_for_run(__doc__, FLAGS)
    chosen = [name for name in VOTES if getattr(settings, name)]
    if len(chosen) > 1:
        raise InputError(f"{' and '.join('--' + name for name in chosen)}: choose one")
    vote, runs = chosen[0] if chosen else "soft", settings.runs or [settings.run]
    choosing = settings.weights == "search" or settings.decide
    if settings.decide and vote != "soft":
        raise InputError("--decide chooses on mean probabilities: leave --hard and --rank out")
    ids, found = members(runs)
    wanted = dataset.eval_rows(settings)["ImageID"].to_numpy()
    if len(wanted) != len(ids) or (wanted != ids).any():
        raise InputError(
            f"{settings.data.eval}/info.csv has other rows ({len(wanted)}) than {next(iter(found))} ({len(ids)}): "
            "run inference.py again with the same data.eval"
        )
    columns = {}
    try:
        known = Known(runs)
        columns["training"] = known.target
        plain = introduce(known, runs, vote)
    except InputError as error:
        if choosing:
            raise
        print(f"what the vote is worth can't be said: {error}")
    weights = search_weights(known, runs, vote, plain) if settings.weights == "search" else None
    decision, equal = None, np.full(len(runs), 1 / len(runs))
    if settings.decide:
        shares = equal if weights is None else weights
        bar = np.tensordot(shares, known.probabilities, 1).argmax(1)
        decision = decide(known, settings.decide, shares, bar)
    probabilities, ages = by_run(runs, found, ids)
    if decision:
        answer = decision(probabilities, ages).argmax(1)
    elif weights is not None:
        answer = np.tensordot(weights, blend.votes(probabilities, vote), 1).argmax(1)
    else:  # nothing was chosen, or nothing chosen was better
        answer = VOTES[vote](np.stack(list(found.values())))
    write_csv(settings.submission, pd.DataFrame({"ImageID": ids, "ans": answer}))
    print(labels.spread(columns | {"answers": answer}))
    print(
        f"{ {'hard': 'majority', 'soft': 'mean', 'rank': 'mean rank'}[vote] } of {len(found)} members from {len(runs)} "
        f"runs, {len(ids)} answers: {settings.submission}"
    )


if __name__ == "__main__":
    guarded(main)
