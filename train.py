"""Train one fold: alone, fold 0 of train_kfold.py, a hold-out that is grouped by person and stratified by class.

    python train.py                                            the sample data, two minutes on a laptop
    python train.py --config recipes/people_small.json --data.train DIR --data.crops DIR --run runs/try

The same command resumes a stopped training. Reads photos or crops, writes runs/NAME/fold0/best.safetensors and
log.csv, oof.csv, metrics.json; train_kfold.py with the same settings adds the other folds.
"""

from __future__ import annotations

import contextlib
import dataclasses
import math
import os
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

import dataset
from dataset import prepare
from foldface import cli, metrics, predictions, runs, tracking
from foldface.cli import run_main
from foldface.data import drawn_masks
from foldface.data.folds import folds_of, split
from foldface.files import InputError, folder_lock, refuse_unwritable, write_csv
from foldface.nn.training_log import Validation
from foldface.runtime import PROCESS_START, is_main_process
from foldface.settings import Config
from foldface.task import Task

if TYPE_CHECKING:  # these import torch, which --help does without
    from accelerate import Accelerator

    from foldface.data.loader import PhotoLoader
    from foldface.nn.learner import Learner
    from foldface.ranks import Ranks

# ------------------------------------------------------------------------------------------------------ the fit


def fit(
    train_rows: pd.DataFrame,
    valid_rows: pd.DataFrame | None,
    config: Config,
    fold: int,
    accelerator: Accelerator,
    seconds: float | None = None,
    tracker: tracking.Tracker = tracking.NONE,
    epochs: int | None = None,
) -> None:
    """Train on `train_rows` and keep the weights of the epoch with the best score on `valid_rows`; without those, the
    last ones.

    train_rows, valid_rows: rows of dataset.prepare with `file`, `label` and `target`. Writes into runs/NAME/fold{k}:
    best.safetensors, log.csv (a row an epoch), speed.csv, oof.csv (last: its presence means finished) and, while it
    runs, state.pt, from which the same call resumes. seconds: time limit, replaces train.epochs. tracker: gets each
    epoch and the fold's scores. epochs: stop after so many of train.epochs. Raises InputError when a photo can't be
    read.
    """
    import loss
    import model
    from foldface.data import loader
    from foldface.nn import averaging, optim, resume
    from foldface.nn.heads import Heads
    from foldface.nn.learner import Learner

    task = config.predicted
    folder = Path(config.run) / predictions.fold_name(fold)
    heads = Heads(task, config.model.heads)
    net = model.make(config, heads.size, fold, accelerator)
    criterion, targets = loss.make(heads, train_rows, config.loss)
    seed = runs.fold_seed(config, fold)
    draw_mask = drawn_masks.drawer(config, train_rows, model.read_crop_settings(config))
    train_loader, valid_loader = loader.make_both(config, train_rows, valid_rows, seed, accelerator, draw_mask)

    average = averaging.make_average(net, config.train)
    parameters = optim.parameter_groups(net, config.train)
    optimizer = optim.make_optimizer(parameters, config.train, fused=accelerator.scaler is None)
    valid_photos = 0 if valid_rows is None else len(valid_rows)
    scheduler = optim.make_course(optimizer, config.train, len(train_loader), valid_photos, seconds)
    mixup = loss.make_mixup(config.train)
    learner = Learner(
        net,
        criterion,
        targets,
        optimizer,
        scheduler,
        config,
        accelerator,
        average=average,
        mixup=mixup,
        folder=folder,
        about=model.describe(config, heads, net, accelerator.mixed_precision, fold, train_rows),
        belongs=resume.belongs(config, fold, train_rows),
    )

    learner.resume()  # from state.pt, if there is one
    batches, listen = len(train_loader), tracker.log if tracker.active else None
    for row, speed in zip(learner.log, learner.speed, strict=True):
        tracker.log(row | rate(speed), row["epoch"] * batches)
    while not (learner.finished or learner.epoch == epochs):
        title = title_of(config, fold, learner, epochs)
        stats = learner.train_epoch(train_loader, title, listen)
        training = training_scores(task, train_rows, stats.answers.numpy())
        validation = evaluate(learner, valid_loader, valid_rows) if valid_loader and learner.should_validate else None
        row = learner.end_epoch(stats, training, validation)  # counters, log row, best weights, state.pt
        tracker.log(row | rate(stats.speed), row["epoch"] * batches)
        log_epoch(task, title, row, stats.speed)
    accelerator.free_memory()
    write_csv(folder / "speed.csv", pd.DataFrame(learner.speed))
    if valid_rows is None:
        if is_main_process():
            model.save(folder / "best.safetensors", learner.answering, learner.about | learner.log[-1])
        learner.state_path.unlink(missing_ok=True)  # weights without it: the final fit is finished
    else:
        finish(config, folder, valid_rows, fold, learner, tracker)


def evaluate(learner: Learner, loader: PhotoLoader, rows: pd.DataFrame) -> Validation:
    """Predict the photos of `rows`, which `loader` loads, and score the predictions."""
    answers = learner.predict(loader)
    return Validation(answers, validation_metrics(learner.task, answers.numpy(), rows["target"].to_numpy()))


def training_scores(task: Task, rows: pd.DataFrame, answers: np.ndarray) -> dict[str, float]:
    """Scores of the training photos (metrics.training_names): {train_NAME: value} for log.csv.

    answers: (n,) classes or numbers of EpochStats, NaN = none; {} if all are NaN, as with mixup. They were predicted
    during the epoch, on augmented photos. Extra and pseudo rows are not scored.
    """
    seen = (rows["source"] == "train").to_numpy() & ~np.isnan(answers)
    if not seen.any():
        return {}
    target, answers = rows["target"].to_numpy()[seen], answers[seen]
    scores = metrics.scores(task, target, answers if task.numeric else answers.astype(int))
    return {f"train_{name}": scores[name] for name in metrics.training_names(task)}


def validation_metrics(task: Task, predicted: np.ndarray, target: np.ndarray) -> dict[str, float]:
    """{"val_loss": value, score: value, ...} for log.csv. predicted: (n, width) of Heads.answers; target: (n,) truth.

    val_loss is the cross entropy, or of numbers the mean absolute error.
    """
    if task.numeric:
        answer = predicted[:, 0]
        loss = np.abs(answer - target).mean()
    else:
        answer = predicted[:, : task.size]
        probability = (
            predicted[np.arange(len(target)), target]
            if not task.multilabel
            else (np.where(task.sets(target), answer, 1 - answer))
        )
        loss = -np.log(np.maximum(probability, 1e-7)).mean()
    return {"val_loss": float(loss), **metrics.scores(task, target, answer)}


def title_of(config: Config, fold: int, learner: Learner, epochs: int | None) -> str:
    """Name an epoch: fold 0 epoch 3/5; with train.minutes fold 0 epoch 3, since their number is unknown."""
    who = "final fit" if fold == predictions.FINAL else f"fold {fold}"
    return f"{who} epoch {learner.epoch + 1}" + ("" if learner.budget else f"/{epochs or config.train.epochs}")


def rate(speed: dict[str, float]) -> dict[str, float]:
    """What a tracker gets of an epoch's speed."""
    return {"photos_per_second": speed["photos_per_second"]}


def log_epoch(task: Task, title: str, row: dict, speed: dict[str, float]) -> None:
    """Print an epoch in one line, and what to do if the model waited for photos."""
    wait = ""
    if speed["waited"] > 0.05:
        wait = f", {speed['waited']:.0%} of the time waiting for photos: raise data.workers"
    names = [task.score, *(name for name in metrics.score_names(task) if name not in (task.score, "accuracy"))]
    titles = {name: metrics.title(task, name).replace("macro ", "") for name in names if name in row}
    scores = "  ".join(f"{title} {row[name]:.3f}" for name, title in titles.items())
    print(
        f"{title}  loss {row['train_loss']:.3f}  {scores}{'  ' * bool(scores)}"
        f"{speed['photos_per_second']:.0f} photos/s{wait}",
        flush=True,
    )


# --------------------------------------------------------------------------------------------- folds and scores


def finish(
    config: Config, folder: Path, valid_rows: pd.DataFrame, fold: int, learner: Learner, tracker: tracking.Tracker
) -> None:
    """Write the out-of-fold predictions of the last epoch and of the best one. oof.csv marks the fold as finished."""
    frame = valid_rows[["ImageID", "id"]].assign(fold=fold, target=valid_rows["target"])
    task = learner.task
    best = learner.best.numpy()
    write_csv(folder / "oof_last.csv", predictions.with_answers(task, frame, learner.last.numpy()))
    if learner.heads.in_numbers:
        name = f"oof_{task.number.key}.csv"
        write_csv(folder / name, predictions.with_numbers(task, frame[["ImageID"]], best))
    oof = predictions.with_answers(task, frame, best)
    if tracker.active:
        summarize(tracker, config, fold, valid_rows, oof)
    write_csv(folder / "oof.csv", oof)
    learner.state_path.unlink(missing_ok=True)


def summarize(
    tracker: tracking.Tracker, config: Config, fold: int, valid_rows: pd.DataFrame, oof: pd.DataFrame
) -> None:
    """Send a tracker the fold's out-of-fold scores with their intervals (oof/), the scores of all folds that are
    finished so far (all_folds/), the fold's confusion matrix and its worst mistakes."""
    from foldface.report import training as training_report

    task = config.predicted
    finished = {fold: oof}
    for path in Path(config.run).glob("fold*/oof.csv"):
        finished.setdefault(int(path.parent.name[4:]), predictions.read_oof(task, path))
    together = pd.concat([finished[k] for k in sorted(finished)], ignore_index=True)
    scores = {f"oof/{name}": value for name, value in predictions.measured(task, oof).items()}
    scores |= {f"all_folds/{name}": value for name, value in predictions.measured(task, together).items()}
    pictures = training_report.pictures(task, oof, valid_rows, config.data.crops)
    tracker.conclude(scores | {"all_folds/folds": len(finished)}, pictures)


def answer_test(config: Config, rows: pd.DataFrame, ranks: Ranks) -> dict[str, dict]:
    """Predict the held-out test set with the mean of the finished folds: writes test.csv, returns {"test": scores}.

    A final fit's own scores are in it too, as "final". {} if there is no test set. Nothing was selected on it, so its
    scores are an unbiased estimate for new photos. ranks: the processes that share its photos; rank 0 scores them.
    """
    test_rows = rows[rows["source"] == "test"].reset_index(drop=True)
    if not len(test_rows):
        return {}
    import model
    from foldface.nn import predicting, progress

    task = config.predicted
    paths = model.checkpoints(config.run)
    paths = {k: path for k, path in paths.items() if path.with_name("oof.csv").is_file()}
    paths = ranks.broadcast(paths | runs.final_checkpoint(config.run))  # rank 0 has written the last of them
    nets, abouts, heads = model.load_folds(paths)
    kept = Path(config.run) / "test.npz"
    key = predicting.key_of(paths, test_rows, config)
    by_fold, _ = predicting.predict(nets, abouts, heads, test_rows, config, kept, key, ranks)
    if not is_main_process():
        return {}
    final = by_fold.pop(predictions.FINAL, None)
    mean, named = np.mean(list(by_fold.values()), axis=0), test_rows[["ImageID", "id", "target"]]
    frame = predictions.with_answers(task, named, mean)
    write_csv(Path(config.run) / "test.csv", frame)
    progress.forget(kept)
    found = predictions.measured(task, frame) | {"photos": len(frame)}
    if final is not None:
        found["final"] = predictions.measured(task, predictions.with_answers(task, named, final))
    return {"test": found}


def train_folds(config: Config, folds: Sequence[int], overwrite: bool = False, started: float = PROCESS_START) -> None:
    """Train these folds, except those that are finished; then write the scores and report of all finished folds.

    started: when train.minutes began, as time.monotonic() says it."""
    from foldface import devices, trackers
    from foldface.report import training as training_report

    tracking.refuse_missing(config)
    refuse_unwritable(config.run, "name another --run")
    several = int(os.environ.get("WORLD_SIZE", 1)) > 1
    if "ACCELERATE_MIXED_PRECISION" in os.environ and not several:
        print("accelerate launch started one process (without GPUs it takes --multi_gpu to start several)")
    accelerator = devices.make_accelerator(config) if several else None
    dataset.infer_classes(config, overwrite)
    with runs.beginning(config, overwrite), accelerator.main_process_first() if several else contextlib.nullcontext():
        if not (is_main_process() or (Path(config.run) / "args.json").is_file()):
            raise InputError(f"{config.run}: is not the first process's folder: all machines need one shared --run")
        rows = prepare(config)  # rank 0 makes folds.csv, the other processes read it
        if is_main_process():
            runs.save(config)  # after prepare: if that refuses the data, the run stays as it was
    if (rows["split"] == "valid").any():
        print(f"{config.data.train} brings its own validation set: it is fold 0, and there is no other")
    existing = folds_of(rows)
    chosen = [k for k in folds if k in existing]
    if not chosen:
        raise InputError(f"train.only_folds {list(folds)}: there are the folds {', '.join(map(str, existing))}")
    todo = [k for k in chosen if not (Path(config.run) / f"fold{k}" / "oof.csv").is_file()]
    finished = [k for k in chosen if k not in todo]
    for k in sorted(set(finished)):
        if is_main_process():
            (Path(config.run) / f"fold{k}" / "state.pt").unlink(missing_ok=True)  # left by a kill after oof.csv
        print(f"fold {k} is finished")
    if todo:
        print(runs.origin(config.model))
        accelerator = accelerator or devices.make_accelerator(config)
        for done, k in enumerate(todo):
            train_rows, valid_rows = split(rows, k)
            left = len(todo) - done + config.train.final
            seconds = seconds_for(config, finished, left, started) if config.train.minutes else None
            with folder_lock(config.run, f"fold{k}"), trackers.opened(config, k) as tracker:
                with runs.beginning(config):
                    pass  # only its check: another process may have begun the run anew with other settings
                fit(train_rows, valid_rows, config, k, accelerator, seconds, tracker)
    if config.train.final and final_is_due(config, existing):
        accelerator = accelerator or devices.make_accelerator(config)
        with folder_lock(config.run, "final"), trackers.opened(config, predictions.FINAL) as tracker:
            fit_final(config, rows, existing, accelerator, tracker)
    with folder_lock(config.run, wait=ENDING):  # commands may train folds side by side: the last one gathers all
        tested = answer_test(config, rows, devices.join_ranks(config))
        if is_main_process():
            predictions.gather(config.predicted, config.run, existing, tested)
            training_report.draw_history(config.run, config.predicted)
            if (Path(config.run) / "metrics.json").is_file():
                training_report.write(config, rows)
                print(f"look at it: {config.run}/report.html")


def final_is_due(config: Config, existing: Sequence[int]) -> bool:
    """True if the final fit (train.final) is to be done now; else says why not. existing: all folds."""
    run = Path(config.run)
    missing = [k for k in existing if not (run / f"fold{k}" / "oof.csv").is_file()]
    if missing:
        print(f"the final fit waits for the folds {', '.join(map(str, missing))} (train.final)")
    elif finished := runs.final_checkpoint(run) and not (run / "final" / "state.pt").is_file():
        print("the final fit is finished")
    return not (missing or finished)


def fit_final(
    config: Config,
    rows: pd.DataFrame,
    existing: Sequence[int],
    accelerator: Accelerator,
    tracker: tracking.Tracker,
) -> None:
    """The fit on all rows (dataset.final_rows) that follows the folds. rows: of `prepare`; existing: all folds."""
    run = Path(config.run)
    paths = {k: run / f"fold{k}" / "best.safetensors" for k in existing}
    epochs = runs.kept_epochs(paths)
    taken, seconds = math.ceil(np.median(epochs)), None
    own = dataset.final_rows(rows, config.predicted)
    how = f"{taken} of {config.train.epochs} epochs, the median of the folds' {', '.join(map(str, epochs))}"
    if config.train.minutes:
        taken, seconds = None, float(np.median([spent_on(run / f"fold{k}") for k in existing]))
        how = f"{seconds / 60:.1f} minutes, as each fold took"
    print(f"final fit: all {len(own)} photos, {how}; nothing is validated, the last weights are kept")
    # it has no validation for patience to look at
    config = dataclasses.replace(config, train=dataclasses.replace(config.train, patience=0))
    fit(own, None, config, predictions.FINAL, accelerator, seconds, tracker, taken)


ENDING = 3600  # seconds to wait while another command of the same run writes its scores
FINISHING = 5  # seconds that scores, drawings and report.html take


def seconds_for(config: Config, finished: Sequence[int], left: int, started: float) -> float:
    """Seconds for the next of `left` folds: an equal share of what remains of train.minutes.

    Spent are the time since they `started` and the training time of the folds that were `finished` before it.
    Raises InputError if nothing remains.
    """
    spent = FINISHING + time.monotonic() - started
    spent += sum(spent_on(Path(config.run) / f"fold{k}") for k in finished)
    rest = 60 * config.train.minutes - spent
    if rest <= 0:
        raise InputError(f"train.minutes {config.train.minutes}: they are over before training begins; give it more")
    return rest / left


def spent_on(folder: Path) -> float:
    """Seconds that a fold's training took, by its speed.csv; 0 without one."""
    path = folder / "speed.csv"
    return float(pd.read_csv(path)[predictions.SPENT].sum().sum()) if path.is_file() else 0.0


USED = ("task", "data", "crop", "model", "loss", "train")  # --help shows these groups of settings
FLAGS = {
    "--overwrite": {"action": "store_true", "help": "remove what the run holds and start again (else it goes on)"},
}


def main(argv: list[str] | None = None) -> None:
    config = cli.read(__doc__, FLAGS, argv, USED)
    train_folds(config, [0], config.overwrite)
    print(f"next: {runs.next_command(config)}")


if __name__ == "__main__":
    run_main(main)
