"""Checkpoints -> probabilities for every photo of data.eval, in the order of info.csv, or of a folder's paths.

    python inference.py --run runs/sample
    python inference.py --run runs/try --data.eval DIR --data.crops DIR --inference.flip true
    python inference.py --run runs/trash --data.eval FOLDER        photos, or class folders, which then are scored too

Writes runs/NAME/fold{k}.csv for each fold that was trained; with --output FOLDER into that folder, together with what
other scripts read beside it, so that they take the folder for --run. How photos are prepared is read from the weights,
not from the settings. A photo that can't be read gets the training labels' shares as its probabilities, a warning, and
a row in unreadable.csv beside the predictions.
"""

import hashlib
import math
import os
import shutil
import sys
import time
from pathlib import Path

import numpy as np
import pandas as pd

import answers
import args
import dataset
import devices
import resume
from files import InputError, alone, guarded, read_json, replacing, warn_once, write_csv

CARRIED = ("folds.csv", "oof.csv", "oof_*.csv", "metrics.json", "data.json", "report.html")  # of a run, beside answers
PREPARATION = ("image_size", "fit", "augment", "mean", "std", "crops", "task", "heads", "age", "age_boundary")


def checkpoints(run):
    """{fold: path} of the trained folds of a run; raises InputError if there is none."""
    found = {
        int(path.parent.name[4:]): path
        for path in Path(run).glob("fold*/best.safetensors")
        if path.parent.name[4:].isdigit()
    }
    if not found:
        raise InputError(f"{run}: has no fold*/best.safetensors: train first, or name another --run")
    return dict(sorted(found.items()))


def load_folds(paths):
    """({fold: model}, {fold: what its file says of itself}, how outputs are read); InputError if folds differ."""
    import torch

    import model

    nets, abouts = {}, {}
    for fold, path in paths.items():
        net, heads, abouts[fold] = model.load(path)
        if abouts[fold].get("fold", fold) != fold:
            raise InputError(f"{path}: holds the weights of fold {abouts[fold]['fold']}: copied from there?")
        nets[fold] = net.to(memory_format=torch.channels_last)
    first, about = next(iter(abouts.items()))
    for fold, other in abouts.items():
        different = [key for key in PREPARATION if other[key] != about[key]]
        if model.boundary_of(other) != model.boundary_of(about):  # of one that moved it and one from before
            different.append("bounds")
        if different:
            raise InputError(
                f"{paths[fold]} and {paths[first]} were trained with different {', '.join(different)}: "
                "they are not folds of one run"
            )
    return nets, abouts, heads


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

    def save(self, now=False):
        """Write the file every few minutes, or now."""
        if self.path is None or (not now and time.monotonic() - self.saved < self.seconds):
            return
        parts = {f"fold{fold}": found[: self.done] for fold, found in self.found.items()}
        with replacing(self.path) as partial, open(partial, "wb") as file:
            np.savez(file, key=self.key, done=self.done, reasons=self.reasons[: self.done].astype(str), **parts)
        self.saved = time.monotonic()


def carry(run, output):
    """Copy what other scripts read beside predictions from a run into the folder `output`, so that it does for them
    what the run's folder does."""
    for path in sorted(path for pattern in CARRIED for path in Path(run).glob(pattern)):
        with replacing(output / path.name) as partial:
            shutil.copyfile(path, partial)


def key_of(paths, files, settings, boxes=()):
    """What predictions hang on, as one string: the weights' bytes, the photos' names, sizes, times and boxes, the
    settings."""
    stats = [os.stat(file) if os.path.isfile(file) else None for file in files]
    said = [stat and (stat.st_size, stat.st_mtime_ns) for stat in stats]
    said += [hashlib.sha1(path.read_bytes()).hexdigest() for path in paths.values()]
    said += [settings.inference, settings.train.amp, settings.device, *files, *boxes]
    return hashlib.sha1("\n".join(map(str, said)).encode()).hexdigest()


def autocast(about, device, settings):
    """A context in which a network answers in the precision that it was trained in, as its file says."""
    return devices.autocast(device, devices.answering_precision(device, settings.train.amp, about.get("precision")))


def views_of(inputs, settings):
    """The views of photos (n, 3, h, w) that answers are averaged over: themselves, four enlarged corners, mirrored."""
    from torch.nn.functional import interpolate

    views, size = [inputs], inputs.shape[-1]
    if settings.crops:
        part = round(size * 7 / 8)
        corners = [(y, x) for y in (0, size - part) for x in (0, size - part)]
        cut = [inputs[:, :, y : y + part, x : x + part] for y, x in corners]
        views += [interpolate(view, (size, size), mode="bilinear", antialias=True) for view in cut]
    return views + [view.flip(3) for view in views] if settings.flip else views


def predict(nets, abouts, heads, rows, settings, kept=None, key=""):
    """Answers of all folds for all photos, each photo decoded once. Batch norm is folded in `nets`, in place.

    rows: DataFrame of file ("" where there is nothing to read) and, of boxes, x1..y2. kept: a file to keep progress
    in, which belongs to `key`.
    Returns ({fold: (n, width) float32}, as heads.Heads.answers, and (n,) reasons, "" = read).
    """
    import torch
    from tqdm import tqdm

    import images
    import model
    from resume import stopping_between_steps

    about, device = next(iter(abouts.values())), devices.choose(settings)
    for net in nets.values():
        model.fold_batch_norm(net.to(device))
    photos = images.Photos(rows, about["augment"], about["image_size"], False, fit=about["fit"])
    batches = images.Batches(len(rows), settings.inference.batch_size)
    progress = Progress(kept, key, nets, len(rows), heads.width, settings.save_minutes)
    found, reasons = progress.found, progress.reasons
    batches.start = math.ceil(progress.done / settings.inference.batch_size)
    feed = images.loader(photos, batches, settings.data.workers)
    with (
        torch.inference_mode(),
        stopping_between_steps() as stop,
        tqdm(total=len(rows), initial=progress.done, desc="predicting", unit="photo", disable=None) as bar,
    ):
        try:
            for indices, batch, errors in feed:
                inputs = images.normalize(batch.to(device, non_blocking=True), about["mean"], about["std"])
                views = views_of(inputs, settings.inference)
                for fold, net in nets.items():
                    with autocast(abouts[fold], device, settings):
                        outputs = [net(view) for view in views]
                    mean = (sum(heads.answers(output) for output in outputs) / len(views)).cpu().numpy()
                    refuse_no_numbers(mean, heads, f"fold {fold}")
                    found[fold][indices.numpy()] = mean
                reasons[indices.numpy()] = errors
                progress.done += len(indices)
                progress.save()
                bar.update(len(indices))
                if stop.asked:
                    stop.end()
        except (KeyboardInterrupt, images.WorkerLost):
            progress.save(now=True)
            if stop.asked:  # who stops a whole group of processes kills the workers too
                stop.end()
            raise
    for fold in found:
        found[fold][reasons != ""] = abouts[fold]["prior"]
    return found, reasons


def refuse_unreadable(settings, rows, reason):
    """Raise InputError: there is no photo to answer for."""
    raise InputError(
        f"{settings.data.eval}: none of the {len(rows)} photos to answer for can be read, such as "
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


def some_inputs(rows, about, count):
    """What a model is shown of `count` of the photos, from first to last: (n, 3, s, s) float32. Raises InputError if
    there are fewer than half as many that can be read."""
    import torch

    import images

    photos = images.Photos(rows, about["augment"], about["image_size"], False, fit=about["fit"])
    found = [photos[k, 0] for k in np.unique(np.linspace(0, len(rows) - 1, count).astype(int))]
    readable = [image for _, image, error in found if not error]
    if len(readable) < count // 2:
        raise InputError(
            f"inference.backend int8 takes its ranges from at least {count // 2} of the photos to answer for, "
            f"{len(readable)} of {len(rows)} could be used: take inference.backend onnx"
        )
    inputs = images.normalize(torch.from_numpy(np.stack(readable)), about["mean"], about["std"])
    return inputs.contiguous().numpy()


def answer_photos(nets, abouts, heads, photos, settings, batch=64):
    """The folds' mean answers, (n, width) float32, for photos in memory: (h, w, 3) uint8 RGB each."""
    import torch

    import augment
    import images

    about, device = next(iter(abouts.values())), devices.choose(settings)
    shape = augment.shape(about["augment"], about["image_size"], about["fit"])
    found = []
    with torch.inference_mode():
        for start in range(0, len(photos), batch):
            seen = np.stack([shape(image=photo)["image"] for photo in photos[start : start + batch]])
            inputs = images.normalize(torch.from_numpy(seen).to(device), about["mean"], about["std"])
            each = []
            for fold, net in nets.items():
                with autocast(abouts[fold], device, settings):
                    outputs = net.to(device)(inputs)
                each.append(heads.answers(outputs).cpu().numpy())
            found.append(np.mean(each, 0))
            refuse_no_numbers(found[-1], heads, "the run")
    return np.concatenate(found)


def main():
    settings = args.read_for_run(__doc__)
    paths, output = checkpoints(settings.run), args.output_folder(settings)
    rows = dataset.eval_rows(settings)
    nets, abouts, heads = load_folds(paths)
    refuse_other_crops(next(iter(abouts.values()))["crops"], settings.data.crops)
    rows = dataset.with_files(rows, settings.data.crops)
    if settings.inference.backend != "torch":
        import export

        nets = export.exported(nets, abouts, paths, output)
        if settings.inference.backend == "int8":
            nets = export.quantized(nets, some_inputs(rows, next(iter(abouts.values())), 2 * export.CALIBRATED), heads)
    files, kept = rows["file"].to_numpy(str), output / "inference.npz"
    if not any(map(os.path.isfile, files)):  # before minutes are spent
        refuse_unreadable(settings, rows, "there is no such file")
    boxes = rows[dataset.BOX].to_numpy().tolist() if "x1" in rows else []
    with alone(output):
        found, reasons = predict(nets, abouts, heads, rows, settings, kept, key_of(paths, files, settings, boxes))
    bad = reasons != ""
    if bad.all():
        refuse_unreadable(settings, rows, reasons[0])
    report = output / "unreadable.csv"
    if bad.any():
        write_csv(report, pd.DataFrame({"ImageID": rows["ImageID"][bad], "reason": reasons[bad]}))
        warn_once(
            f"{int(bad.sum())} of {len(rows)} photos can't be read and get the training labels' shares: "
            f"{rows['photo'][bad].iloc[0]}; all of them: {report}"
        )
    elif report.is_file():
        os.remove(report)
    task, names = heads.task, rows[["ImageID"]]
    for fold, told in found.items():
        if heads.in_numbers:
            path = output / f"fold{fold}_{task.number.name}.csv"
            write_csv(path, answers.with_numbers(task, names, told))
        write_csv(output / f"fold{fold}.csv", answers.with_answers(task, names, told))
    kept.unlink(missing_ok=True)
    if output.resolve() != Path(settings.run).resolve():
        carry(settings.run, output)
    args.remember(settings, "data.eval")  # ensemble.py and pseudo_label.py answer for the same photos
    print(
        f"{len(rows)} photos, {len(found)} folds: {output}/fold*.csv; next: python ensemble.py --soft --runs {output}"
    )


if __name__ == "__main__":
    guarded(main)
