"""Predict photos with all folds of a run in one pass, and keep progress so that a stopped prediction goes on.

Several processes (foldface/ranks.py) take whole batches: each batch is the one that a single process computes.
"""

import hashlib
import os
from collections.abc import Sequence
from pathlib import Path
from typing import NoReturn

import numpy as np
import pandas as pd
import torch
from torch.nn.functional import interpolate
from tqdm import tqdm

from foldface import devices
from foldface.data import augment, loader
from foldface.data.layouts import BOX
from foldface.data.remote import crop_folder, is_remote
from foldface.data.shards import file_of
from foldface.files import InputError, read_json
from foldface.nn import batchnorm
from foldface.nn.heads import Heads
from foldface.nn.progress import Progress
from foldface.nn.resume import stopping_between_steps
from foldface.ranks import ALONE, Ranks
from foldface.settings import Config, InferenceConfig


def refuse_other_crops(trained: dict, crops: str) -> None:
    """Raise InputError unless photos are prepared as in training: whole, or crops made the same way.

    trained: content of the training's crop.json, {} = whole photos; crops: data.crops now.
    """
    if trained and not crops:
        raise InputError(
            "the model was trained on face crops, data.crops is empty: name the folder of crops made by face_crop.py"
        )
    if not trained and crops:
        raise InputError(f"the model was trained on whole photos, data.crops is {crops}: set it to ''")
    if trained:
        now = read_json(crop_folder(crops) / "crop.json", "run face_crop.py first")
        changed = [
            f"{key} was {trained.get(key)}, is {now.get(key)}" for key in trained if trained[key] != now.get(key)
        ]
        if changed:
            raise InputError(
                f"{crops} was made with other settings than the crops that the model was trained on "
                f"({'; '.join(changed)}): make crops with those settings in another folder"
            )


def key_of(paths: dict[int, Path], rows: pd.DataFrame, config: Config) -> str:
    """A digest of all that predictions depend on: weights, names, sizes, times and boxes of photos, and settings.

    paths: {fold: weights file}; rows: DataFrame of file and, for boxes, x1..y2.
    """
    files = rows["file"].to_numpy(str)
    holders = [file_of(file) for file in files]
    # a shard holds thousands; that of a URL may come later, and its path says which version it is of
    stats = {name: os.stat(name) if os.path.isfile(name) and not is_remote(name) else None for name in set(holders)}
    parts = [stats[name] and (stats[name].st_size, stats[name].st_mtime_ns) for name in holders]
    parts += [hashlib.sha1(path.read_bytes()).hexdigest() for path in paths.values()]
    parts += [config.inference, config.train.amp, config.device, *files]
    parts += rows[BOX].to_numpy().tolist() if BOX[0] in rows else []
    return hashlib.sha1("\n".join(map(str, parts)).encode()).hexdigest()


def views_of(inputs: torch.Tensor, config: InferenceConfig) -> list[torch.Tensor]:
    """Test-time augmentation of photos (n, 3, h, w): [the photos, their four enlarged corners, all of them mirrored].

    config: config.inference, whose `crops` and `flip` choose the views.
    """
    views, size = [inputs], inputs.shape[-1]
    if config.crops:
        part = round(size * 7 / 8)
        corners = [(y, x) for y in (0, size - part) for x in (0, size - part)]
        cut = [inputs[:, :, y : y + part, x : x + part] for y, x in corners]
        views += [interpolate(view, (size, size), mode="bilinear", antialias=True) for view in cut]
    return views + [view.flip(3) for view in views] if config.flip else views


def predict(
    nets: dict[int, torch.nn.Module],
    abouts: dict[int, dict],
    heads: Heads,
    rows: pd.DataFrame,
    config: Config,
    kept: Path | None = None,
    key: str = "",
    ranks: Ranks = ALONE,
) -> tuple[dict[int, np.ndarray], np.ndarray]:
    """Predict all photos with all folds, decoding each photo once. Folds batch norm in `nets`, in place.

    nets, abouts: {fold: model}, {fold: metadata of its weights}; rows: DataFrame of file ("" = none) and, for boxes,
    x1..y2; kept: a file for progress, with its `key`; ranks: the processes that share the batches, who need that file.
    Returns ({fold: (n, width) float32} as of Heads.answers, (n,) str reasons why a photo can't be read, "" = read), of
    several processes complete on rank 0 alone. A photo that can't be read gets the training labels' shares.
    """
    about = next(iter(abouts.values()))
    device, _ = devices.choose_device(config, about)
    for net in nets.values():
        batchnorm.fold_batch_norm(net.to(device))
    photos = loader.PhotoDataset(rows, about["augment"], about["image_size"], False, fit=about["fit"])
    batches = loader.SeededBatchSampler(len(rows), config.inference.batch_size)
    progress = Progress(kept, ranks.broadcast(key), nets, len(rows), heads.width, config.save_minutes, ranks)
    found, reasons = progress.found, progress.reasons
    left = [step for step, (start, end) in enumerate(batches.spans) if not progress.done[start:end].all()]
    batches.take(ranks.share(left))
    todo = sum(map(batches.size, batches.steps))
    feed = loader.make(photos, batches, config.data.workers)
    with (
        torch.inference_mode(),
        stopping_between_steps() as stop,
        tqdm(total=todo, desc=bar_title(ranks), unit="photo", disable=None) as bar,
    ):
        try:
            for indices, batch, errors in feed:
                inputs = loader.normalize(batch.to(device, non_blocking=True), about["mean"], about["std"])
                views = views_of(inputs, config.inference)
                for fold, net in nets.items():
                    with devices.autocast(*devices.choose_device(config, abouts[fold])):
                        outputs = [net(view) for view in views]
                    mean = (sum(heads.answers(output) for output in outputs) / len(views)).cpu().numpy()
                    refuse_no_numbers(mean, heads, f"fold {fold}")
                    found[fold][indices.numpy()] = mean
                reasons[indices.numpy()] = errors
                progress.add(indices.numpy())
                bar.update(len(indices))
                if stop.asked:
                    stop.end()
        except (KeyboardInterrupt, loader.LoadingStopped):
            progress.save(now=True)
            if stop.asked:  # a stop of the process group kills the workers too
                stop.end()
            raise
    progress.collect()
    for fold in found:
        found[fold][reasons != ""] = abouts[fold]["prior"]
    return found, reasons


def bar_title(ranks):
    """What the progress bar counts: the photos, or of several processes those of the first."""
    return "predicting" if ranks.count == 1 else f"predicting, process 1 of {ranks.count}"


def refuse_unreadable(config: Config, rows: pd.DataFrame, reason: str) -> NoReturn:
    """Raise InputError: no photo can be read."""
    raise InputError(
        f"{config.data.eval}: none of the {len(rows)} photos to predict can be read, such as "
        f"{rows['photo'].iloc[0]} ({reason})"
    )


def refuse_no_numbers(answers, heads, who):
    """Raise InputError where answers (n, width) are NaN or infinite. (The confidence of a number may be NaN.)"""
    known = answers[:, :1] if heads.task.numeric else answers
    if not np.isfinite(known).all():
        raise InputError(
            f"{who} predicts NaN: its weights are damaged, or overflow in fp16: try --train.amp off, or train again"
        )


def answer_photos(
    nets: dict[int, torch.nn.Module],
    abouts: dict[int, dict],
    heads: Heads,
    photos: Sequence[np.ndarray],
    config: Config,
    batch: int = 64,
) -> np.ndarray:
    """The folds' mean answers, (n, width) float32, for photos in memory, (h, w, 3) uint8 RGB each."""
    about = next(iter(abouts.values()))
    device, _ = devices.choose_device(config, about)
    shape = augment.shape(about["augment"], about["image_size"], about["fit"])
    found = []
    with torch.inference_mode():
        for start in range(0, len(photos), batch):
            seen = np.stack([shape(image=photo)["image"] for photo in photos[start : start + batch]])
            inputs = loader.normalize(torch.from_numpy(seen).to(device), about["mean"], about["std"])
            each = []
            for fold, net in nets.items():
                with devices.autocast(*devices.choose_device(config, abouts[fold])):
                    outputs = net.to(device)(inputs)
                each.append(heads.answers(outputs).cpu().numpy())
            found.append(np.mean(each, 0))
            refuse_no_numbers(found[-1], heads, "the run")
    return np.concatenate(found)
