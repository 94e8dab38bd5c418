"""What is predicted: three attributes, their classes, the 18 answers made of them; how answers are written and scored.

An answer is mask * 6 + gender * 3 + age. Nothing here needs torch.
"""

from pathlib import Path

import numpy as np

from files import InputError, read_csv, write_csv, write_json

MASKS = ("wear", "incorrect", "normal")
GENDERS = ("male", "female")
AGES = ("<30", "30-59", ">=60")
HEADS = {"mask": MASKS, "gender": GENDERS, "age": AGES}
SHAPE = tuple(len(names) for names in HEADS.values())
CLASSES = tuple(f"{mask} {gender} {age}" for mask in MASKS for gender in GENDERS for age in AGES)
PROBABILITIES = [f"p{index}" for index in range(len(CLASSES))]
OOF_COLUMNS = ["ImageID", "id", "fold", "target", "ans"]
YEARS = 101  # ages 0..100
BOUNDARIES = (30, 55, 56, 57, 58, 59, 60)
AGE_COLUMNS = ["years", *(f"from{bound}" for bound in BOUNDARIES)]  # expected age; probability of that age or more
TRUE_BOUNDARY = 60  # where the competition's oldest class begins: what is scored, whatever is trained on


def age_class(age, boundary=TRUE_BOUNDARY):
    """Class of an age: 0 below 30, 1 below `boundary`, else 2. age: years, any shape -> int64, same shape."""
    age = np.asarray(age)
    return (age >= 30).astype(np.int64) + (age >= boundary)


def encode(mask, gender, age):
    """The answer 0..17 of three class indices; arrays broadcast."""
    return np.ravel_multi_index((mask, gender, age), SHAPE)


def decode(answer):
    """The class indices {"mask": ..., "gender": ..., "age": ...} of answers 0..17; arrays keep their shape."""
    return dict(zip(HEADS, np.unravel_index(np.asarray(answer), SHAPE), strict=True))


def age_neighbours():
    """Which classes differ by one age class alone: (18, 18) bool, symmetric, same mask and same gender."""
    index = np.arange(len(CLASSES))
    part = decode(index)
    same = (part["mask"][:, None] == part["mask"]) & (part["gender"][:, None] == part["gender"])
    return same & (abs(part["age"][:, None] - part["age"]) == 1)


def scores(target, answer):
    """Macro F1 over the 18 classes, accuracy, and macro F1 of each attribute.

    target, answer: (n,) int in 0..17. Returns {"f1", "accuracy", "mask_f1", "gender_f1", "age_f1"}, floats in 0..1.
    As in scikit-learn, a class that is in neither the truth nor the answers doesn't count.
    """
    from sklearn.metrics import accuracy_score, f1_score

    truth, told = decode(target), decode(answer)
    result = {
        "f1": f1_score(target, answer, average="macro", zero_division=0),
        "accuracy": accuracy_score(target, answer),
    }
    for head in HEADS:
        result[f"{head}_f1"] = f1_score(truth[head], told[head], average="macro", zero_division=0)
    return {name: float(value) for name, value in result.items()}


def f1_draws(target, answers, people, samples=1000, seed=0):
    """Macro F1 of several answers when people are drawn anew with replacement (bootstrap; Efron 1979).

    Photos of one person err together, so people are drawn, not photos; all answers are scored on the same draws, so
    that their differences may be taken. target: (n,) int in 0..17; answers: list of (n,); people: (n,) ids.
    Returns (len(answers), samples).
    """
    _, person = np.unique(np.asarray(people, dtype=str), return_inverse=True)
    n, k, target = person.max() + 1, len(CLASSES), np.asarray(target)
    # a person's confusion matrix is all that a draw needs: macro F1 follows from sums of them
    true = np.zeros((n, k))
    np.add.at(true, (person, target), 1)
    sums = []
    for answer in answers:
        told, hits, right = np.zeros((n, k)), np.zeros((n, k)), target == np.asarray(answer)
        np.add.at(told, (person, answer), 1)
        np.add.at(hits, (person[right], target[right]), 1)
        sums.append((hits, true + told))
    rng, values = np.random.default_rng(seed), np.empty((len(answers), samples))
    for draw in range(samples):
        times = np.bincount(rng.integers(n, size=n), minlength=n)
        for row, (hits, either) in enumerate(sums):
            both = times @ either
            seen = both > 0
            values[row, draw] = (2 * (times @ hits)[seen] / both[seen]).mean()
    return values


def f1_interval(target, answer, people, samples=1000, level=0.95, seed=0):
    """Interval (low, high) of macro F1 over f1_draws. target, answer: (n,) int in 0..17; people: (n,) ids."""
    draws = f1_draws(target, [answer], people, samples, seed)[0]
    return tuple(float(v) for v in np.quantile(draws, [(1 - level) / 2, (1 + level) / 2]))


def spread(columns):
    """How answers are spread over the classes, beside one another, as lines of text. columns: {title: (n,) int}."""
    share = {
        title: np.bincount(np.asarray(values), minlength=len(CLASSES)) / max(len(values), 1)
        for title, values in columns.items()
    }
    lines = [f"{'class':24}" + "".join(f"{title:>12}" for title in share)]
    for index, name in enumerate(CLASSES):
        lines.append(f"{index:2} {name:21}" + "".join(f"{values[index]:>12.1%}" for values in share.values()))
    return "\n".join(lines)


# -------------------------------------------------------------------------------------- predictions as CSV files


def with_answers(frame, probabilities):
    """Append ans and p0..p17 to a DataFrame. probabilities: (n, 18 or more) in 0..1; ans is the largest."""
    import pandas as pd

    probabilities = np.round(np.asarray(probabilities, dtype=np.float64)[:, : len(CLASSES)], 6)
    frame = frame.reset_index(drop=True).assign(ans=probabilities.argmax(1))
    return pd.concat([frame, pd.DataFrame(probabilities, columns=PROBABILITIES)], axis=1)


def with_ages(frame, answers):
    """Append AGE_COLUMNS to a DataFrame. answers: (n, 18 + 8), as heads.Heads gives them of an age in years."""
    import pandas as pd

    ages = pd.DataFrame(np.asarray(answers)[:, len(CLASSES) :], columns=AGE_COLUMNS)
    return pd.concat([frame.reset_index(drop=True), ages], axis=1)


def fold_files(run):
    """{fold: path} of the predictions of a run, runs/NAME/fold{k}.csv; raises InputError if there are none."""
    found = {int(path.stem[4:]): path for path in Path(run).glob("fold*.csv") if path.stem[4:].isdigit()}
    if not found:
        raise InputError(f"{run}: has no fold0.csv: run inference.py --run {run} first")
    return dict(sorted(found.items()))


def read_fold(path):
    """A fold's predictions: DataFrame of ImageID, ans (int), p0..p17 (float32). InputError if they can't be right."""
    frame = read_csv(path, ["ImageID", "ans"], "inference.py writes it", numbers=PROBABILITIES)
    missing = [name for name in PROBABILITIES if name not in frame.columns]
    if missing:
        raise InputError(f"{path}: has no column {missing[0]}")
    values = frame[PROBABILITIES].to_numpy()
    bad = ~(np.isfinite(values).all(1) & (values >= 0).all(1) & (abs(values.sum(1) - 1) < 0.01))
    if bad.any():
        line = int(bad.argmax()) + 2
        raise InputError(f"{path}, row {line}: p0..p17 are not probabilities that sum to one")
    return frame.assign(ans=values.argmax(1))


def gather(run, folds):
    """Put the finished folds' predictions together: writes oof.csv and metrics.json, prints the scores."""
    import pandas as pd

    folders = {k: Path(run) / f"fold{k}" for k in range(folds) if (Path(run) / f"fold{k}" / "oof.csv").is_file()}
    if not folders:
        return
    best, last = (
        pd.concat(
            [read_csv(folder / name, OOF_COLUMNS, numbers=PROBABILITIES) for folder in folders.values()],
            ignore_index=True,
        )
        for name in ("oof.csv", "oof_last.csv")
    )
    write_csv(Path(run) / "oof.csv", best)
    ages = [folder / "oof_age.csv" for folder in folders.values()]
    if ages[0].is_file():
        frames = [read_csv(path, ["ImageID", *AGE_COLUMNS], numbers=AGE_COLUMNS) for path in ages]
        write_csv(Path(run) / "oof_age.csv", pd.concat(frames, ignore_index=True))
    target, answer = best["target"].astype(int), best["ans"].astype(int)
    found = scores(target, answer)
    low, high = f1_interval(target, answer, best["id"])
    metrics = {"f1": found.pop("f1"), "f1_low": low, "f1_high": high} | found
    metrics["f1_last_epoch"] = scores(last["target"].astype(int), last["ans"].astype(int))["f1"]
    metrics |= {"folds": list(folders), "photos": len(best), "people": int(best["id"].nunique())}
    write_json(Path(run) / "metrics.json", metrics)
    print(
        f"{run}: {len(folders)} of {folds} folds, out-of-fold macro F1 {metrics['f1']:.3f} "
        f"(95 % {low:.3f}-{high:.3f}; {metrics['f1_last_epoch']:.3f} with the last epochs, which nobody chose), "
        f"accuracy {metrics['accuracy']:.3f}, mask {metrics['mask_f1']:.3f}, gender {metrics['gender_f1']:.3f}, "
        f"age {metrics['age_f1']:.3f}"
    )
