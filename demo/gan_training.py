"""The training of demo.gan, as its own rows, clock and files go; and how well the run's folds know its pictures."""

import hashlib
import time
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from tqdm import tqdm

import dataset
import model
from demo import gan_networks
from demo.gan_metrics import GanMetrics, cycle_labels, draw_grid, find_collapse
from demo.gan_trainer import Clock, GanTrainer, balanced_batches, betas_of
from foldface import devices
from foldface.data import loader
from foldface.files import InputError, atomic_write, folder_lock, refuse_unwritable, write_csv
from foldface.nn import predicting
from foldface.nn.resume import stopping_between_steps

COLUMNS = ["epoch", "seconds", "d_loss", "g_loss", "frechet", "kernel", "variety", "notice"]
ENDING_SECONDS = 3.0  # for the last grid of pictures, tables and weights


def read_photos(rows, config) -> np.ndarray:
    """All photos without augmentation, (n, size, size, 3) uint8: they stay in memory, 12 KB each at 64 pixels."""
    data, size = config.data, config.gan.image_size
    photos = loader.PhotoDataset(rows, "none", size, False, fit=data.resize_mode)
    found = np.empty((len(rows), size, size, 3), np.uint8)
    with tqdm(total=len(rows), desc="reading", unit="photo", disable=None) as bar:
        for indices, batch, errors in loader.make(photos, loader.SeededBatchSampler(len(rows), 64), data.workers):
            if any(errors):
                k = next(k for k, error in enumerate(errors) if error)
                raise InputError(f"{rows['file'].iloc[int(indices[k])]}: can't be read any more ({errors[k]})")
            found[indices.numpy()] = batch.numpy()
            bar.update(len(batch))
    return found


def train(config, overwrite=False, metrics_of=GanMetrics):
    """Train until gan.epochs or gan.minutes are over and write runs/NAME/gan. Returns the rows of its log.csv.

    metrics_of: what measures how far the pictures are from the photos, a GanMetrics.
    """
    gan, home = config.gan, Path(config.run) / "gan"
    refuse_unwritable(home, "name another --run")
    task = dataset.infer_classes(config)
    task.refuse_labels("demo.gan")
    if task.numeric:
        raise InputError("demo.gan makes pictures of classes, and this task predicts a number")
    rows = dataset.prepare(config)
    rows = rows[rows["source"] == "train"].reset_index(drop=True)
    target = rows["target"].to_numpy()
    empty = [name for k, name in enumerate(task.classes) if not (target == k).any()]
    if empty:
        raise InputError(f"{config.data.train}: no photo of {', '.join(empty)}: a GAN needs photos of every label")
    if np.bincount(target).max() < 2:
        raise InputError(f"{config.data.train}: has one photo a label: a GAN needs at least two")
    if len(rows) < gan.batch_size:
        raise InputError(f"{len(rows)} photos are fewer than gan.batch_size {gan.batch_size}")
    device, _ = devices.choose_device(config, {})
    about = {"gan": gan.kind, "image_size": gan.image_size, "width": gan.width, "classes": list(task.classes)}
    about["photos"] = len(rows)
    photos = "\n".join([config.data.resize_mode, *rows["ImageID"], *map(str, target)])
    learned = hashlib.sha1(photos.encode()).hexdigest()
    fixed = about | {"batch_size": gan.batch_size, "lr": gan.lr, "betas": list(betas_of(gan)), "seed": config.seed}
    fixed["photos and labels"] = learned
    with folder_lock(home):
        photos, path = read_photos(rows, config), home / "state.pt"
        store, kinds = torch.from_numpy(photos), torch.tensor(target)
        trainer = GanTrainer(config, len(rows), task.size, device)
        if path.is_file() and not overwrite:
            trainer.resume(path, fixed)
            print(f"{home}: resuming in epoch {trainer.epoch + 1}")
        else:
            for old in [path, *home.glob("*.png"), *home.glob("*.safetensors"), home / "log.csv"]:
                old.unlink(missing_ok=True)
            trainer.prepare(store, kinds)
        started = time.monotonic()
        metrics, kinds = metrics_of(photos, target, task.size), kinds.to(device)
        clock = Clock(gan.minutes, trainer.spent, ENDING_SECONDS + 1.5 * (time.monotonic() - started))
        saved, over = time.monotonic(), clock.over
        if over and not trainer.steps:
            raise InputError(
                f"gan.minutes {gan.minutes:g}: are over before training begins (reading and preparing took "
                f"{clock.spent:.0f} s, the last measurement takes about {clock.ending:.0f} s): give more"
            )

        def save():
            with atomic_write(path) as partial:
                torch.save({"pair": trainer.state(), "fixed": fixed}, partial)

        with stopping_between_steps() as stop:
            while trainer.epoch < gan.epochs and not over:
                batches = balanced_batches(target, gan.batch_size, [config.seed, trainer.epoch])
                sums = torch.tensor(trainer.losses, device=device)
                title = f"epoch {trainer.epoch + 1}/{gan.epochs}"
                bar = tqdm(total=len(batches), initial=trainer.step, desc=title, unit="step", disable=None, leave=False)
                with bar:
                    for place in batches[trainer.step :]:
                        index = torch.from_numpy(place)
                        real = store[index].to(device, non_blocking=True).permute(0, 3, 1, 2).float() / 127.5 - 1
                        index, flipped = index.to(device, non_blocking=True), torch.rand(len(real), device=device) < 0.5
                        real = torch.where(flipped[:, None, None, None], real.flip(3), real)
                        done = (trainer.epoch + trainer.step / len(batches)) / gan.epochs
                        trainer.set_rates(max(done, clock.done))
                        sums += torch.stack(trainer.train_step(real, kinds[index], index, flipped))
                        trainer.step += 1
                        bar.update()
                        due = time.monotonic() - saved > 60 * config.save_minutes
                        if stop.asked or due:
                            trainer.losses, trainer.spent, saved = sums.tolist(), clock.spent, time.monotonic()
                            save()
                        if stop.asked:
                            stop.end()
                        if clock.over:
                            break
                over, trainer.spent = clock.over, clock.spent
                losses = (sums / trainer.step).tolist()
                trainer.epoch, trainer.step, trainer.losses = trainer.epoch + 1, 0, [0.0, 0.0]
                row = {"epoch": trainer.epoch, "seconds": trainer.spent, "d_loss": losses[0], "g_loss": losses[1]}
                measured = trainer.epoch % gan.measure_epochs == 0 or over or trainer.epoch == gan.epochs
                started = time.monotonic()
                row |= metrics.measure(trainer.eval_model) if measured else dict.fromkeys(COLUMNS[4:7], float("nan"))
                if measured:
                    clock.ending = ENDING_SECONDS + 1.2 * (time.monotonic() - started)
                    over = over or clock.over
                last = over or trainer.epoch == gan.epochs
                if not np.isfinite(losses).all():
                    raise InputError(f"epoch {trainer.epoch}: a loss is {losses}: lower gan.lr")
                trainer.log.append(row)
                row["notice"] = find_collapse(trainer.log)
                log_epoch(row, gan.epochs)
                seen = [one["frechet"] for one in trainer.log if np.isfinite(one["frechet"])]
                if measured and row["frechet"] == min(seen):
                    model.save(home / "best.safetensors", trainer.eval_model, about | row)
                draw_grid(trainer.eval_model, task.classes, home / f"epoch{trainer.epoch:04d}.png")
                write_csv(home / "log.csv", pd.DataFrame(trainer.log, columns=COLUMNS))
                if last:
                    model.save(home / "last.safetensors", trainer.eval_model, about | row)
                    trainer.spent = clock.spent
                    save()
    return trainer.log


def log_epoch(row: dict, epochs: int) -> None:
    """Print one line for an epoch that was measured or that shows a collapse."""
    if np.isfinite(row["frechet"]) or row["notice"]:
        far = f"  distance {row['frechet']:.1f}" if np.isfinite(row["frechet"]) else ""
        warned = f"  ({row['notice']})" if row["notice"] else ""
        print(
            f"epoch {row['epoch']}/{epochs}  {row['seconds'] / 60:.1f} min  discriminator {row['d_loss']:.3f}  "
            f"generator {row['g_loss']:.3f}{far}{warned}",
            flush=True,
        )


def classify_pictures(config, count: int) -> None:
    """Print the share of `count` pictures of each label that the run's own folds classify as that label."""
    net, about = gan_networks.load(Path(config.run) / "gan" / "best.safetensors")
    net.to(devices.choose_device(config, {})[0])
    nets, abouts, heads = model.load_folds(model.checkpoints(config.run))
    if list(heads.task.classes) != about["classes"]:
        raise InputError(f"{config.run}: its classifier has other classes than its GAN")
    kind = cycle_labels(count * len(about["classes"]), len(about["classes"]))
    for how, make in (("as they come", gan_networks.pictures), ("as the demo chooses them", gan_networks.chosen)):
        answers = predicting.answer_photos(nets, abouts, heads, make(net, kind, seed=2), config)
        right = answers[:, : heads.task.size].argmax(1) == kind.numpy()
        each = ", ".join(f"{name} {right[kind.numpy() == k].mean():.2f}" for k, name in enumerate(about["classes"]))
        print(
            f"{right.mean():.3f} of {len(kind)} pictures {how} are classified as the label they were made for: {each}"
        )
