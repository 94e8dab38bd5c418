"""One fit on one split; by itself, a grouped stratified hold-out: fold 0 of train_kfold.py.

    python train.py                                            the sample data, two minutes on a laptop
    python train.py --config recipes/people_small.json --data.train DIR --data.crops DIR --run runs/try

Stopped, the same command goes on where it was. Reads photos or crops, writes runs/NAME/fold0/best.safetensors and
log.csv, oof.csv, metrics.json; train_kfold.py with the same settings adds the other folds.
"""

import contextlib
import dataclasses
import os
import shutil
import time
from pathlib import Path

import numpy as np
import pandas as pd

import dataset
from dataset import prepare
from foldface import cli, metrics, predictions, runs, tracking
from foldface.cli import run_main
from foldface.data.folds import folds_of, split
from foldface.data.leaks import start_run
from foldface.files import InputError, folder_lock, read_json, refuse_unwritable, write_csv
from foldface.nn import optim, resume
from foldface.nn.learner import Learner, Validation, make_accelerator
from foldface.report.training import draw_history
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
    from foldface.nn.heads import Heads

    task, folder = config.predicted, Path(config.run) / f"fold{fold}"
    heads = Heads(task, config.model.heads)
    net = make_net(config, heads.size, fold, accelerator)
    criterion, targets = loss.make(heads, train_rows, config.loss)
    train_loader, valid_loader = make_loaders(config, train_rows, valid_rows, fold, accelerator)
    average = optim.make_average(net, config.train)
    parameters = optim.parameter_groups(net, config.train)
    optimizer = optim.make_optimizer(parameters, config.train, fused=accelerator.scaler is None)
    scheduler = make_scheduler(config, optimizer, len(train_loader), len(valid_rows), seconds)
    mixup = loss.make_mixup(config.train)
    about = describe(config, heads, net, accelerator.mixed_precision, fold, train_rows)
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


def fold_seed(config, fold):
    """The seed of a fold's initial weights, order and augmentation."""
    return config.seed * 1009 + fold


def make_net(config, outputs, fold, accelerator):
    """Seed everything by the fold, then build its network, with so many outputs, on the accelerator's device: its
    lowest layers (train.freeze_layers) don't learn."""
    import timm
    import torch
    from accelerate.utils import set_seed

    import model
    from foldface.nn import batchnorm
    from foldface.nn import weights as weights_module

    seed, chosen = fold_seed(config, fold), config.model
    set_seed(seed)
    weights = start_of(config, fold)
    pretrained, drop = False if weights else chosen.pretrained, (chosen.dropout, chosen.drop_path)
    net = model.build(chosen.backbone, outputs, pretrained, config.data.image_size, *drop, chosen.init)
    if weights:
        weights_module.load_backbone(net, weights_module.weights_of(str(weights)))
    if accelerator.num_processes > 1:
        set_seed(seed, device_specific=True)  # dropout differs by process; the weights are process 0's
        if accelerator.device.type == "cuda" and not chosen.freeze_bn:
            net = timm.layers.convert_sync_batchnorm(net)
    for layer in batchnorm.lowest_layers(net, config.train.freeze_layers):
        layer.requires_grad_(False)
    return net.to(accelerator.device, memory_format=torch.channels_last)


def make_loaders(config, train_rows, valid_rows, fold, accelerator):
    """The PhotoLoaders of the training rows (shuffled, augmented) and of the validation rows (as they are): of several
    processes each is given its slice of every batch."""
    from foldface.data import loader

    data, train = config.data, config.train
    rank_slice = accelerator.process_index, accelerator.num_processes
    if len(train_rows) < 2 * accelerator.num_processes:
        raise InputError(f"{len(train_rows)} photos are too few for {accelerator.num_processes} processes")
    weights = balanced(train_rows) if train.sampler == "balanced" else None
    batches = loader.SeededBatchSampler(
        len(train_rows), train.batch_size, True, fold_seed(config, fold), rank_slice=rank_slice, weights=weights
    )
    memory = data.memory_gb / accelerator.num_processes
    photos = loader.PhotoDataset(
        train_rows, data.augment, data.image_size, True, data.random_erasing, data.resize_mode, memory, data.flip
    )
    train_loader = loader.make(photos, batches, data.workers)
    memory -= photos.kept.nbytes / 1e9
    photos = loader.PhotoDataset(valid_rows, data.augment, data.image_size, False, 0.0, data.resize_mode, memory)
    batches = loader.SeededBatchSampler(len(valid_rows), 2 * train.batch_size, rank_slice=rank_slice)
    return train_loader, loader.make(photos, batches, data.workers)


def make_scheduler(config, optimizer, steps, valid_photos, seconds=None):
    """What moves the learning rates, `steps` to an epoch: a schedule over train.epochs, or one over `seconds`."""
    train = config.train
    if seconds is None:
        return optim.make_scheduler(optimizer, train, steps)
    look = valid_photos / train.batch_size / 3  # no gradients: a third of a step's work
    return optim.Budget(optimizer, train, seconds, steps * train.val_interval, look)


def evaluate(learner, loader, rows):
    """The Validation of an epoch's model: its answers to the photos of `rows`, and what log.csv says of them."""
    answers = learner.predict(loader)
    return Validation(answers, validation_metrics(learner.task, answers.numpy(), rows["target"].to_numpy()))


def start_of(config, fold):
    """The weights that this fold starts from (model.init_from_run), or None. Raises InputError where there are none."""
    if not config.model.init_from_run:
        return None
    home = start_run(config)
    path = home / f"fold{fold}" / "best.safetensors"
    if not path.is_file():
        raise InputError(f"model.init_from_run {config.model.init_from_run}: there is no {path}: train that run first")
    return path


def read_crop_settings(config):
    """How the crops were made ({} for whole photos): it travels with the weights."""
    if not config.data.crops:
        return {}
    return read_json(Path(config.data.crops) / "crop.json", "run face_crop.py again")


def balanced(rows):
    """Probability of each training photo to be drawn (n,): every class as likely, in it every person, of them every
    photo."""
    person = pd.factorize(rows["id"])[0]
    class_people = rows.assign(person=person).groupby("label")["person"].nunique()
    photos = rows.groupby([rows["label"], person])["label"].transform("size")
    return (1 / (len(class_people) * rows["label"].map(class_people) * photos)).to_numpy(float)


def describe(config, heads, net, precision, fold, rows):
    """What the weights file says of itself: how to build the model and prepare its photos, and what an unreadable
    photo is answered with: the labels' shares and, of an age in years, what the training ages come to; of a number the
    median. precision: that it is trained in; rows: DataFrame of training rows."""
    from foldface.data.loader import pixel_scale

    rows = rows[rows["source"] == "train"]
    task, (mean, std) = heads.task, pixel_scale(net)
    if task.numeric:
        prior = [float(rows["target"].median()), np.nan]
    else:
        prior = np.bincount(rows["target"], minlength=task.size) / len(rows)
    if heads.in_numbers:
        known = rows[task.number.key].to_numpy()
        prior = [*prior, known.mean(), *((known >= bound).mean() for bound in task.number.steps)]
    return {
        "backbone": config.model.backbone,
        "heads": config.model.heads,
        "task": dataclasses.asdict(config.task),
        "classes": list(task.classes),
        "image_size": config.data.image_size,
        "fit": config.data.resize_mode,
        "augment": config.data.augment,
        "mean": list(mean),
        "std": list(std),
        "precision": precision,
        "crops": read_crop_settings(config),
        "fold": fold,
        "prior": [float(value) for value in prior],
    }


def training_scores(task, rows, answers):
    """What log.csv says of an epoch's answers (n,) to the training photos: task's scores as train_NAME; {} where
    there are none, as with mixup. Photos are seen augmented and by the model of their step, extra and pseudo rows are
    left out."""
    seen = (rows["source"] == "train").to_numpy() & ~np.isnan(answers)
    if not seen.any():
        return {}
    target, answers = rows["target"].to_numpy()[seen], answers[seen]
    scores = metrics.scores(task, target, answers if task.numeric else answers.astype(int))
    return {f"train_{name}": scores[name] for name in metrics.score_names(task)[:2]}


def validation_metrics(task, found, target):
    """What log.csv says of validation answers (n, width): their loss and scores against true targets (n,)."""
    if task.numeric:
        answer = found[:, 0]
        loss = np.abs(answer - target).mean()
    else:
        answer = found[:, : task.size].argmax(1)
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
    from foldface.report import training as training_module

    task, finished = config.predicted, {fold: oof}
    for path in Path(config.run).glob("fold*/oof.csv"):
        finished.setdefault(int(path.parent.name[4:]), predictions.read_oof(task, path))
    together = pd.concat([finished[k] for k in sorted(finished)], ignore_index=True)
    scores = {f"oof/{name}": value for name, value in predictions.measured(task, oof).items()}
    scores |= {f"all_folds/{name}": value for name, value in predictions.measured(task, together).items()}
    pictures = training_module.pictures(task, oof, validation, config.data.crops)
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


WRITTEN = ["args.json", "folds.csv", "rejected.csv", "unreadable.csv", "oof.csv", "metrics.json", "pseudo.csv"]
WRITTEN += ["inference.npz", "fold[0-9]", "fold[0-9][0-9]", "fold[0-9].csv", "fold[0-9][0-9].csv"]
WRITTEN += ["oof_*.csv", "fold[0-9]_*.csv", "fold[0-9][0-9]_*.csv", "test.csv", "duplicates.csv", "history.png"]
WRITTEN += ["report.html", "report.json"]
WRITTEN += ["data.json", "clean.html", "corrections.csv", "explain.html", "explain.png", "eda.html"]


@contextlib.contextmanager
def beginning(config, overwrite=False):
    """While the block runs no other process begins this run, or reads it with other settings than it was begun with.

    With `overwrite` what is there is removed first. Raises InputError, and removes nothing, where another process
    trains a fold or predicts.
    """
    run = Path(config.run)
    with contextlib.ExitStack() as stack:
        stack.enter_context(folder_lock(run, "beginning", wait=600))
        if is_main_process() and overwrite:
            for name in ("", *(path.name[1:].removesuffix(".lock") for path in run.glob(".fold[0-9]*.lock"))):
                stack.enter_context(folder_lock(run, name))
            reset_run(run)
        if is_main_process():
            runs.refuse_other_settings(config)
        yield


def reset_run(run):
    """Remove what training and all that follows it wrote into a run's folder, and nothing else that lies there."""
    if not (Path(run) / "args.json").is_file():
        return  # no run of ours
    for pattern in WRITTEN:
        for path in Path(run).glob(pattern):
            shutil.rmtree(path) if path.is_dir() else path.unlink()


def train_folds(config, folds, overwrite=False):
    """Train these folds, those that are finished left alone, and put together all that are finished."""
    tracking.refuse_missing(config)
    refuse_unwritable(config.run, "name another --run")
    several = int(os.environ.get("WORLD_SIZE", 1)) > 1
    if "ACCELERATE_MIXED_PRECISION" in os.environ and not several:
        print("accelerate launch started one process (without GPUs it takes --multi_gpu to start several)")
    accelerator = make_accelerator(config) if several else None
    dataset.infer_classes(config, overwrite)
    with beginning(config, overwrite), accelerator.main_process_first() if several else contextlib.nullcontext():
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
        import model

        print(model.origin(config))
        accelerator = accelerator or make_accelerator(config)
        for done, k in enumerate(todo):
            training, validation = split(rows, k)
            earlier = [one for one in folds if one not in todo]
            seconds = seconds_for(config, earlier, len(todo) - done) if config.train.minutes else None
            with folder_lock(config.run, f"fold{k}"), tracking.opened(config, k) as tracker:
                with beginning(config):
                    pass  # another process may have begun it anew since
                fit(training, validation, config, k, accelerator, seconds, tracker)
    if is_main_process():
        with folder_lock(config.run, wait=ENDING):  # of folds that are trained side by side the last one gathers all
            predictions.gather(config.predicted, config.run, there, answer_test(config, rows))
            draw_history(config.run, config.predicted)
            if (Path(config.run) / "metrics.json").is_file():
                from foldface.report import training as training_module

                training_module.write(config, rows)
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
