"""Photos -> probabilities, by one model or several folds at once; what is finished is kept."""

import hashlib
import math
import os
import sys
import time
from pathlib import Path

import numpy as np

from foldface import devices
from foldface.files import InputError, atomic_write, read_json
from foldface.nn import resume


def refuse_other_crops(trained, crops):
    """Raise InputError unless photos come as the model was trained on them: whole, or crops made the same way."""
    if trained and not crops:
        raise InputError(
            "the model was trained on face crops, data.crops is empty: name the folder of crops made by face_crop.py"
        )
    if not trained and crops:
        raise InputError(f"the model was trained on whole photos, data.crops is {crops}: set it to ''")
    if trained:
        now = read_json(Path(crops) / "crop.json", "run face_crop.py first")
        changed = [
            f"{key} was {trained.get(key)}, is {now.get(key)}" for key in trained if trained[key] != now.get(key)
        ]
        if changed:
            raise InputError(
                f"{crops} was made otherwise than the crops that the model was trained on "
                f"({'; '.join(changed)}): crop with those settings into another folder"
            )


class Progress:
    """Predictions so far, kept in a file, so that a stopped run goes on. `done` photos of `found` and `reasons` count.

    found: {fold: (n, width) float32}; reasons: (n,) str, why a photo could not be read, "" = it could.
    """

    def __init__(self, path, key, folds, count, width, minutes):
        """path: the file, or None to keep nothing; key: what the predictions hang on, as one string."""
        self.path, self.key, self.seconds, self.saved, self.done = path, key, 60 * minutes, time.monotonic(), 0
        self.found = {fold: np.empty((count, width), np.float32) for fold in folds}
        self.reasons = np.full(count, "", dtype=object)
        if path and path.is_file():
            self.go_on()

    def go_on(self):
        """Take over what the file holds, if it belongs to the same photos and weights."""
        try:
            resume.refuse_compressed(self.path)
            with np.load(self.path, allow_pickle=False) as kept:
                if str(kept["key"]) != self.key:
                    return
                done = int(kept["done"])
                self.reasons[:done] = kept["reasons"]
                for fold, found in self.found.items():
                    found[:done] = kept[f"fold{fold}"]
        except Exception:  # a damaged file fails in many ways, and nothing is lost but time
            done = 0
        if not done:
            print(f"{self.path}: is damaged; beginning at the first photo", file=sys.stderr)
            return
        self.done = done
        print(f"going on at photo {done + 1}")

    def add(self, photos):
        """So many more photos are done; keep them every few minutes."""
        self.done += photos
        self.save()

    def save(self, now=False):
        """Write the file every few minutes, or now."""
        if self.path is None or (not now and time.monotonic() - self.saved < self.seconds):
            return
        parts = {f"fold{fold}": found[: self.done] for fold, found in self.found.items()}
        with atomic_write(self.path) as partial, open(partial, "wb") as file:
            np.savez(file, key=self.key, done=self.done, reasons=self.reasons[: self.done].astype(str), **parts)
        self.saved = time.monotonic()


def key_of(paths, files, config, boxes=()):
    """What predictions hang on, as one string: the weights' bytes, the photos' names, sizes, times and boxes, the
    settings."""
    stats = [os.stat(file) if os.path.isfile(file) else None for file in files]
    said = [stat and (stat.st_size, stat.st_mtime_ns) for stat in stats]
    said += [hashlib.sha1(path.read_bytes()).hexdigest() for path in paths.values()]
    said += [config.inference, config.train.amp, config.device, *files, *boxes]
    return hashlib.sha1("\n".join(map(str, said)).encode()).hexdigest()


def autocast(about, device, config):
    """A context in which a network answers in the precision that it was trained in, as its file says."""
    return devices.autocast(device, devices.answering_precision(device, config.train.amp, about.get("precision")))


def views_of(inputs, config):
    """The views of photos (n, 3, h, w) that answers are averaged over: themselves, four enlarged corners, mirrored."""
    from torch.nn.functional import interpolate

    views, size = [inputs], inputs.shape[-1]
    if config.crops:
        part = round(size * 7 / 8)
        corners = [(y, x) for y in (0, size - part) for x in (0, size - part)]
        cut = [inputs[:, :, y : y + part, x : x + part] for y, x in corners]
        views += [interpolate(view, (size, size), mode="bilinear", antialias=True) for view in cut]
    return views + [view.flip(3) for view in views] if config.flip else views


def predict(nets, abouts, heads, rows, config, kept=None, key=""):
    """Answers of all folds for all photos, each photo decoded once. Batch norm is folded in `nets`, in place.

    rows: DataFrame of file ("" where there is nothing to read) and, of boxes, x1..y2. kept: a file to keep progress
    in, which belongs to `key`.
    Returns ({fold: (n, width) float32}, as heads.Heads.answers, and (n,) reasons, "" = read).
    """
    import torch
    from tqdm import tqdm

    from foldface.data import loader
    from foldface.nn import batchnorm
    from foldface.nn.resume import stopping_between_steps

    about, device = next(iter(abouts.values())), devices.choose(config)
    for net in nets.values():
        batchnorm.fold_batch_norm(net.to(device))
    photos = loader.PhotoDataset(rows, about["augment"], about["image_size"], False, fit=about["fit"])
    batches = loader.SeededBatchSampler(len(rows), config.inference.batch_size)
    progress = Progress(kept, key, nets, len(rows), heads.width, config.save_minutes)
    found, reasons = progress.found, progress.reasons
    batches.go_to(0, math.ceil(progress.done / config.inference.batch_size))
    feed = loader.make(photos, batches, config.data.workers)
    with (
        torch.inference_mode(),
        stopping_between_steps() as stop,
        tqdm(total=len(rows), initial=progress.done, desc="predicting", unit="photo", disable=None) as bar,
    ):
        try:
            for indices, batch, errors in feed:
                inputs = loader.normalize(batch.to(device, non_blocking=True), about["mean"], about["std"])
                views = views_of(inputs, config.inference)
                for fold, net in nets.items():
                    with autocast(abouts[fold], device, config):
                        outputs = [net(view) for view in views]
                    mean = (sum(heads.answers(output) for output in outputs) / len(views)).cpu().numpy()
                    refuse_no_numbers(mean, heads, f"fold {fold}")
                    found[fold][indices.numpy()] = mean
                reasons[indices.numpy()] = errors
                progress.add(len(indices))
                bar.update(len(indices))
                if stop.asked:
                    stop.end()
        except (KeyboardInterrupt, loader.WorkerLost):
            progress.save(now=True)
            if stop.asked:  # who stops a whole group of processes kills the workers too
                stop.end()
            raise
    for fold in found:
        found[fold][reasons != ""] = abouts[fold]["prior"]
    return found, reasons


def refuse_unreadable(config, rows, reason):
    """Raise InputError: there is no photo to answer for."""
    raise InputError(
        f"{config.data.eval}: none of the {len(rows)} photos to answer for can be read, such as "
        f"{rows['photo'].iloc[0]} ({reason}): nothing is answered"
    )


def refuse_no_numbers(answers, heads, who):
    """Raise InputError where answers (n, width) are NaN or infinite. (How sure a number is may be unknown: NaN.)"""
    known = answers[:, :1] if heads.task.numeric else answers
    if not np.isfinite(known).all():
        raise InputError(
            f"{who} answers NaN: its weights are damaged, or fp16 is too narrow for them: try --train.amp off, "
            "or train it again"
        )


def answer_photos(nets, abouts, heads, photos, config, batch=64):
    """The folds' mean answers, (n, width) float32, for photos in memory: (h, w, 3) uint8 RGB each."""
    import torch

    from foldface.data import augment, loader

    about, device = next(iter(abouts.values())), devices.choose(config)
    shape = augment.shape(about["augment"], about["image_size"], about["fit"])
    found = []
    with torch.inference_mode():
        for start in range(0, len(photos), batch):
            seen = np.stack([shape(image=photo)["image"] for photo in photos[start : start + batch]])
            inputs = loader.normalize(torch.from_numpy(seen).to(device), about["mean"], about["std"])
            each = []
            for fold, net in nets.items():
                with autocast(abouts[fold], device, config):
                    outputs = net.to(device)(inputs)
                each.append(heads.answers(outputs).cpu().numpy())
            found.append(np.mean(each, 0))
            refuse_no_numbers(found[-1], heads, "the run")
    return np.concatenate(found)
