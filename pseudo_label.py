"""Confident predictions -> rows to train on, each for the one fold whose model made it.

    python pseudo_label.py --run runs/sample
    python train_kfold.py --data.pseudo runs/sample/pseudo.csv --run runs/sample-2
    python pseudo_label.py --run runs/sample-2                     a second round, from the better models
    python pseudo_label.py --temperature                           with confidences as the out-of-fold answers bear out
    python pseudo_label.py --answers answers.csv                   where the truth is known: how many are right

Reads runs/NAME/fold{k}.csv, writes runs/NAME/pseudo.csv (or into --output). Fold k's rows come from the model that
never saw fold k's people and train fold k alone, so out-of-fold scores stay honest (Lee 2013 for the method, with that
care added).
"""

import sys

import numpy as np
import pandas as pd

from foldface import blend, metrics, oof, predictions, runs
from foldface.cli import run_main
from foldface.files import InputError, quoted, read_csv, write_csv


def choose(task, frame, threshold, most):
    """The rows of one fold's predictions to believe: DataFrame of ImageID, ans, confidence, p0.., surest first.

    frame: a fold's CSV. threshold: least probability of the answer, or of a number's being near enough. most: rows a
    class at most, 0 = no cap. Both: a number, or a list of one a class.
    """
    kept = frame.drop_duplicates("ImageID")
    if task.multilabel:
        return choose_sets(task, kept, threshold, most)
    if task.numeric:
        kept = kept[kept["confidence"].astype(float) >= threshold]
    else:
        least = np.broadcast_to(threshold, task.size)
        confidence = kept[task.probabilities].max(axis=1).astype(float)
        kept = kept.assign(confidence=confidence)[confidence >= least[kept["ans"].to_numpy()]]
    kept = kept.sort_values(["confidence", "ImageID"], ascending=[False, True], kind="stable")
    if task.numeric:
        kept = kept[: most or None]
    else:
        cap = np.broadcast_to(most, task.size)[kept["ans"]]
        kept = kept[(kept.groupby("ans").cumcount() < cap) | (cap == 0)]
    return kept[["ImageID", "ans", "confidence", *task.probabilities]]


def choose_sets(task, frame, threshold, most):
    """`choose` of several labels a photo: all of them, yes or no, are as sure as threshold says; the confidence is that
    of the least sure one. Of `most` rows a label those count that have it."""
    probabilities = frame[task.probabilities].to_numpy(float)
    sure = np.maximum(probabilities, 1 - probabilities)
    kept = frame.assign(confidence=sure.min(1))[(sure >= np.broadcast_to(threshold, task.size)).all(1)]
    kept = kept.sort_values(["confidence", "ImageID"], ascending=[False, True], kind="stable")
    room = np.broadcast_to(np.where(np.asarray(most) > 0, most, len(kept)), task.size).copy()
    chosen = []
    for labels in task.sets(kept["ans"]):
        chosen.append(bool((room[labels] > 0).all()))
        room -= labels * chosen[-1]
    return kept[np.array(chosen, bool)][["ImageID", "ans", "confidence", *task.probabilities]]


def tell_right(task, rows, path):
    """Print what share of the rows is right by a CSV of ImageID, ans: only for scoring, nothing is chosen by it."""
    truth = read_csv(path, ["ImageID", "ans"]).drop_duplicates("ImageID").set_index("ImageID")["ans"]
    known = rows[rows["ImageID"].isin(truth.index)]
    if not len(known):
        raise InputError(f"{path}: names none of the photos")
    answer, true = known["ans"].to_numpy(), truth.loc[known["ImageID"]]
    true = task.read_sets(true) if task.multilabel else task.read(true)
    readable = true >= 0 if task.multilabel else np.isfinite(true)
    if not readable.all():
        line = int(np.argmin(readable))
        raise InputError(f"{path}: the answer of {known['ImageID'].iloc[line]} is none of this task")
    if task.numeric:
        scores = metrics.scores(task, true, answer)
        print(f"{len(known)} by {path}: " + ", ".join(f"{metrics.title(task, k)} {v:.3f}" for k, v in scores.items()))
        return
    right = answer == true
    print(f"right by {path}: {right.mean():.1%} of {len(known)}")
    for k, name in enumerate(task.classes):
        mine = task.has(answer, k)
        if mine.any():
            print(f"  {name:22} {task.has(true[mine], k).mean():6.1%} of {mine.sum()}")


def at_temperature(task, frame, temperature):
    """A fold's predictions with their probabilities as a temperature gives them: a copy; answers stay."""
    probabilities = blend.tempered(task, frame[task.probabilities].to_numpy(float), temperature)
    return frame.assign(**dict(zip(task.probabilities, probabilities.T, strict=True)))


def warn_beyond_reach(config, task):
    """Warn where pseudo.threshold lies at or above what label smoothing lets a model aim at: noise alone passes it."""
    if task.numeric or config.loss.name == "f1":  # macro F1 rewards all that is surer
        return
    most = 1 - np.full(task.size, config.loss.smoothing) / 2  # of several labels a photo, each yes or no
    if not task.multilabel:
        most = task.surest(config.loss.name, config.loss.smoothing, config.model.heads)
    beyond = np.broadcast_to(config.pseudo.threshold, task.size) >= most - 1e-6
    if config.loss.smoothing and beyond.any():
        k = int(beyond.argmax())
        least = np.broadcast_to(config.pseudo.threshold, task.size)[k]
        print(
            f"warning: pseudo.threshold {least:g}: with loss.smoothing {config.loss.smoothing:g} training aims at "
            f"{most[k]:.3f} for {task.classes[k]} at most: take a lower threshold",
            file=sys.stderr,
        )


USED = ("task", "pseudo")  # --help shows these groups of settings
FLAGS = {
    "--answers": {"default": "", "help": "CSV of the true answers (ImageID, ans): say how many are right"},
    "--temperature": {
        "action": "store_true",
        "help": "compare pseudo.threshold with probabilities at the temperature that fits the out-of-fold predictions: "
        "of answers with 0.8 about eight in ten are right",
    },
}


def main(argv: list[str] | None = None) -> None:
    config = runs.read_for_run(__doc__, FLAGS, argv, USED)
    task = config.predicted
    for key in ("threshold", "max_per_class"):
        value = getattr(config.pseudo, key)
        if isinstance(value, list) and len(value) != task.size:
            raise InputError(
                f"pseudo.{key} lists {len(value)} numbers: give one, or one for each of {task.size} classes"
            )
    if config.temperature and task.numeric:
        raise InputError("--temperature is about probabilities of classes; the answer of this task is a number")
    if not config.temperature:
        warn_beyond_reach(config, task)
    output, run, parts, everything = runs.output_folder(config), predictions.folder_of(config), [], 0
    temperature = oof.temperature_of(task, run) if config.temperature else None
    if temperature:
        print(f"{run}: probabilities at the temperature {temperature:.2f}")
    unreadable = run / "unreadable.csv"
    skip = set(read_csv(unreadable, ["ImageID"])["ImageID"]) if unreadable.is_file() else set()
    for fold, path in predictions.fold_files(run).items():
        frame = predictions.read_fold(task, path)
        if task.numeric and frame["confidence"].isna().all():
            learn = f"--task.heads.{task.number.name}.learn distribution"
            raise InputError(f"{path}: a sigmoid doesn't say how sure it is: train with {learn}")
        frame = at_temperature(task, frame, temperature) if temperature else frame
        believed = frame[~frame["ImageID"].isin(skip)]
        chosen = choose(task, believed, config.pseudo.threshold, config.pseudo.max_per_class)
        parts.append(chosen.assign(fold=fold))
        everything += len(frame)
        counts = [] if task.numeric else [int(task.has(chosen["ans"], k).sum()) for k in range(task.size)]
        by_class = "" if task.numeric else f", by class {' '.join(map(str, counts))}"
        print(f"fold {fold}: {len(chosen)} of {len(frame)} photos{by_class}")
    rows = pd.concat(parts, ignore_index=True)[["ImageID", *predictions.PSEUDO_COLUMNS[1:], *task.probabilities]]
    if rows.empty:
        raise InputError(
            f"{run}: no prediction reaches pseudo.threshold {config.pseudo.threshold}: lower it, or train better"
        )
    write_csv(output / "pseudo.csv", rows)
    if config.answers:
        tell_right(task, rows, config.answers)
    print(
        f"{len(rows)} of {everything} predictions kept: {output}/pseudo.csv; "
        f"next: python train_kfold.py --data.pseudo {quoted(output / 'pseudo.csv')} "
        f"--run {quoted(f'{output}-2')}"
    )


if __name__ == "__main__":
    run_main(main)
