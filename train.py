"""One fit on one split; by itself, a grouped stratified hold-out: fold 0 of train_kfold.py.

    python train.py                                            the sample data, two minutes on a laptop
    python train.py --config recipes/people_small.json --data.train DIR --data.crops DIR --run runs/try

Stopped, the same command goes on where it was. Reads photos or crops, writes runs/NAME/fold0/best.safetensors and
log.csv, oof.csv, metrics.json; train_kfold.py with the same settings adds the other folds.
"""

import contextlib
import os
import time
from pathlib import Path

import numpy as np
import pandas as pd

import dataset
from dataset import prepare
from foldface import cli, metrics, predictions, runs, tracking
from foldface.cli import run_main
from foldface.data.folds import folds_of, split
from foldface.files import InputError, folder_lock, refuse_unwritable, write_csv
from foldface.nn.training_log import Validation
from foldface.runtime import PROCESS_START, is_main_process

# ------------------------------------------------------------------------------------------------------ the fit


def fit(train_rows, valid_rows, config, fold, accelerator, seconds=None, tracker=tracking.NONE):
    """Train on `train_rows`, choose the epoch of best score over all of `valid_rows`.

    train_rows, valid_rows: rows of dataset.prepare with `file`, `label` and `target`. Writes into runs/NAME/fold{k}:
    best.safetensors, log.csv (a row an epoch), speed.csv, oof.csv (last: its presence means finished) and, while it
    runs, state.pt, from which the same call goes on. seconds: what it may take, instead of train.epochs. tracker: gets
    each epoch and the fold's scores. Raises InputError when a photo can't be read.
    """
    import loss
    import model
    from foldface.data import loader
    from foldface.nn import averaging, optim, resume
    from foldface.nn.heads import Heads
    from foldface.nn.learner import Learner

    task, folder = config.predicted, Path(config.run) / f"fold{fold}"
    heads = Heads(task, config.model.heads)
    net = model.make(config, heads.size, fold, accelerator)
    criterion, targets = loss.make(heads, train_rows, config.loss)
    train_loader, valid_loader = loader.make_both(
        config, train_rows, valid_rows, runs.fold_seed(config, fold), accelerator
    )
    average = averaging.make_average(net, config.train)
    parameters = optim.parameter_groups(net, config.train)
    optimizer = optim.make_optimizer(parameters, config.train, fused=accelerator.scaler is None)
    scheduler = optim.make_course(optimizer, config.train, len(train_loader), len(valid_rows), seconds)
    mixup = loss.make_mixup(config.train)
    about = model.describe(config, heads, net, accelerator.mixed_precision, fold, train_rows)
    belongs = resume.belongs(config, fold, train_rows)
    learner = Learner(
        net, criterion, targets, optimizer, scheduler, config, accelerator, average, mixup, folder, about, belongs
    )
    learner.resume()
    for row in learner.log:
        tracker.log(row)
    while not learner.finished:
        title = title_of(config, fold, learner)
        stats = learner.train_epoch(train_loader, title)
        training = training_scores(task, train_rows, stats.answers.numpy())
        validation = evaluate(learner, valid_loader, valid_rows) if learner.should_validate else None
        row = learner.end_epoch(stats, training, validation)  # counters, log row, best weights, state.pt
        tracker.log(row)
        log_epoch(task, title, row, stats.speed)
    accelerator.free_memory()
    write_csv(folder / "speed.csv", pd.DataFrame(learner.speed))
    finish(config, folder, valid_rows, fold, learner, tracker)


def evaluate(learner, loader, rows):
    """The Validation of an epoch's model: its answers to the photos of `rows`, and what log.csv says of them."""
    answers = learner.predict(loader)
    return Validation(answers, validation_metrics(learner.task, answers.numpy(), rows["target"].to_numpy()))


def training_scores(task, rows, answers):
    """What log.csv says of an epoch's answers (n,) to the training photos: task's scores as train_NAME; {} where
    there are none, as with mixup. Photos are seen augmented and by the model of their step, extra and pseudo rows are
    left out."""
    seen = (rows["source"] == "train").to_numpy() & ~np.isnan(answers)
    if not seen.any():
        return {}
    target, answers = rows["target"].to_numpy()[seen], answers[seen]
    scores = metrics.scores(task, target, answers if task.numeric else answers.astype(int))
    return {f"train_{name}": scores[name] for name in metrics.training_names(task)}


def validation_metrics(task, found, target):
    """What log.csv says of validation answers (n, width): their loss and scores against true targets (n,)."""
    if task.numeric:
        answer = found[:, 0]
        loss = np.abs(answer - target).mean()
    else:
        answer = found[:, : task.size]
        loss = -np.log(np.maximum(found[np.arange(len(target)), target], 1e-7)).mean()
    return {"val_loss": float(loss), **metrics.scores(task, target, answer)}


def title_of(config, fold, learner):
    """An epoch as it is printed: fold 0 epoch 3/5; without an end where minutes count."""
    return f"fold {fold} epoch {learner.epoch + 1}" + ("" if learner.budget else f"/{config.train.epochs}")


def log_epoch(task, title, row, speed):
    """Print an epoch in one line, and what to do if the model waited for photos."""
    wait = (
        f", {speed['waited']:.0%} of the time waiting for photos: raise data.workers" if speed["waited"] > 0.05 else ""
    )
    names = [task.score, *(name for name in metrics.score_names(task) if name not in (task.score, "accuracy"))]
    titles = {name: metrics.title(task, name).replace("macro ", "") for name in names if name in row}
    scores = "  ".join(f"{title} {row[name]:.3f}" for name, title in titles.items())
    print(
        f"{title}  loss {row['train_loss']:.3f}  {scores}  {speed['photos_per_second']:.0f} photos/s{wait}",
        flush=True,
    )


# --------------------------------------------------------------------------------------------- folds and scores


def finish(config, folder, validation, fold, learner, tracker):
    """Write the fold's out-of-fold predictions of its best epoch, and of its last; a fold with oof.csv is finished."""
    frame = validation[["ImageID", "id"]].assign(fold=fold, target=validation["target"])
    task, best = learner.task, learner.best.numpy()
    write_csv(folder / "oof_last.csv", predictions.with_answers(task, frame, learner.last.numpy()))
    if learner.heads.in_numbers:
        name = f"oof_{task.number.key}.csv"
        write_csv(folder / name, predictions.with_numbers(task, frame[["ImageID"]], best))
    oof = predictions.with_answers(task, frame, best)
    if tracker.active:
        summarize(tracker, config, fold, validation, oof)
    write_csv(folder / "oof.csv", oof)
    learner.state_path.unlink(missing_ok=True)


def summarize(tracker, config, fold, validation, oof):
    """Give a tracker the fold's out-of-fold scores with their intervals (oof/), those of all the people in the folds
    that are finished by now (all_folds/), the fold's confusion matrix and its worst mistakes."""
    from foldface.report import training as training_report

    task, finished = config.predicted, {fold: oof}
    for path in Path(config.run).glob("fold*/oof.csv"):
        finished.setdefault(int(path.parent.name[4:]), predictions.read_oof(task, path))
    together = pd.concat([finished[k] for k in sorted(finished)], ignore_index=True)
    scores = {f"oof/{name}": value for name, value in predictions.measured(task, oof).items()}
    scores |= {f"all_folds/{name}": value for name, value in predictions.measured(task, together).items()}
    pictures = training_report.pictures(task, oof, validation, config.data.crops)
    tracker.conclude(scores | {"all_folds/folds": len(finished)}, pictures)


def answer_test(config, rows):
    """The finished folds' mean answers for the test set that was put aside: writes test.csv, returns its scores.

    {} where there is no test set. Nothing was chosen by it, so its scores are what other photos may expect.
    """
    aside = rows[rows["source"] == "test"].reset_index(drop=True)
    if not len(aside):
        return {}
    import model
    from foldface.nn import predicting

    task = config.predicted
    paths = model.checkpoints(config.run)
    paths = {k: path for k, path in paths.items() if path.with_name("oof.csv").is_file()}
    found, _ = predicting.predict(*model.load_folds(paths), aside, config)
    frame = aside[["ImageID", "id", "target"]]
    frame = predictions.with_answers(task, frame, np.mean(list(found.values()), 0))
    write_csv(Path(config.run) / "test.csv", frame)
    return {"test": predictions.measured(task, frame) | {"photos": len(frame)}}


def origin(config) -> str:
    """What training starts from, in words."""
    name, pretrained = config.model.backbone, config.model.pretrained
    if config.model.init_from_run:
        return f"{name} starts from the weights of the run {config.model.init_from_run}"
    if pretrained is False:
        return f"{name} starts from random weights (model.pretrained false)"
    where = "its published weights" if pretrained is True else f"the weights of {pretrained}"
    return f"{name} starts from {where}"


def train_folds(config, folds, overwrite=False):
    """Train these folds, those that are finished left alone, and put together all that are finished."""
    from foldface import devices
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
        rows = prepare(config)  # the others read the folds.csv that the first has made
        if is_main_process():
            runs.save(config)  # not before: what the data refuses leaves the run as it was
    if (rows["split"] == "valid").any():
        print(f"{config.data.train} brings its own validation set: it is fold 0, and there is no other")
    there, asked = folds_of(rows), folds
    folds = [k for k in asked if k in there]
    if not folds:
        raise InputError(f"train.only_folds {list(asked)}: there are the folds {', '.join(map(str, there))}")
    todo = [k for k in folds if not (Path(config.run) / f"fold{k}" / "oof.csv").is_file()]
    for k in sorted(set(folds) - set(todo)):
        if is_main_process():
            (Path(config.run) / f"fold{k}" / "state.pt").unlink(missing_ok=True)  # of a kill in the very last moment
        print(f"fold {k} is finished")
    if todo:
        print(origin(config))
        accelerator = accelerator or devices.make_accelerator(config)
        for done, k in enumerate(todo):
            training, validation = split(rows, k)
            earlier = [one for one in folds if one not in todo]
            seconds = seconds_for(config, earlier, len(todo) - done) if config.train.minutes else None
            with folder_lock(config.run, f"fold{k}"), tracking.opened(config, k) as tracker:
                with runs.beginning(config):
                    pass  # another process may have started it again since
                fit(training, validation, config, k, accelerator, seconds, tracker)
    if is_main_process():
        with folder_lock(config.run, wait=ENDING):  # of folds that are trained side by side the last one gathers all
            predictions.gather(config.predicted, config.run, there, answer_test(config, rows))
            training_report.draw_history(config.run, config.predicted)
            if (Path(config.run) / "metrics.json").is_file():
                training_report.write(config, rows)
                print(f"look at it: {config.run}/report.html")


ENDING = 3600  # seconds that a training waits for another one of the run to write its scores
FINISHING = 5  # seconds for scores, drawings and report.html


def seconds_for(config, earlier, left):
    """Seconds that the next of `left` folds may take: its share of what train.minutes leaves, counted from the start of
    this process and with what the folds that earlier starts have finished took. Raises InputError where nothing is
    left."""
    spent = FINISHING + time.monotonic() - PROCESS_START
    for k in earlier:
        path = Path(config.run) / f"fold{k}" / "speed.csv"
        if path.is_file():
            spent += pd.read_csv(path)[["seconds", "other_seconds"]].sum().sum()
    rest = 60 * config.train.minutes - spent
    if rest <= 0:
        raise InputError(f"train.minutes {config.train.minutes}: they are over before training begins; give it more")
    return rest / left


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
