"""One fit on one split; by itself, a grouped stratified hold-out: fold 0 of train_kfold.py.

    python train.py                                            the sample data, two minutes on a laptop
    python train.py --config recipes/people_small.json --data.train DIR --data.crops DIR --run runs/try

Stopped, the same command goes on where it was. Reads photos or crops, writes runs/NAME/fold0/best.safetensors and
log.csv, oof.csv, metrics.json; train_kfold.py with the same settings adds the other folds.
"""

import contextlib
import importlib.util
import signal
import threading
import time
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pandas as pd

import args
import labels
from files import InputError, guarded, read_json, replacing, write_csv
from folds import prepare, split

SAVE_MINUTES = 5  # work that a kill may cost
LOG_COLUMNS = ["epoch", "lr", "train_loss", "val_loss", "f1", "accuracy", "mask_f1", "gender_f1", "age_f1"]


# --------------------------------------------------------------------------------------------------- the pieces


def make_accelerator(settings):
    """Hugging Face's Accelerator: device, precision with loss scaling, trackers. fp16 is refused on a CPU."""
    import torch
    from accelerate import Accelerator

    gpu = torch.cuda.is_available() and settings.device in ("auto", "cuda")
    if settings.device == "cuda" and not gpu:
        raise InputError(
            "device is cuda, but torch sees no GPU: install a torch that fits its driver, or --device auto"
        )
    precision = settings.train.amp
    if precision == "auto":  # a V100 (compute capability 7.0) computes bf16 in software only
        precision = "off" if not gpu else "bf16" if torch.cuda.get_device_capability()[0] >= 8 else "fp16"
    if precision == "fp16" and not gpu:
        raise InputError("train.amp fp16 needs a GPU: use off or bf16 on a CPU")
    if gpu:
        torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = True
    trackers = None if settings.log == "none" else settings.log
    if trackers and importlib.util.find_spec(trackers) is None:  # accelerate would say nothing and log nothing
        raise InputError(f"log is {trackers}, which is not installed: pip install {trackers}, or --log none")
    accelerator = Accelerator(
        mixed_precision={"off": "no"}.get(precision, precision),
        cpu=settings.device == "cpu",
        log_with=trackers,
        project_dir=settings.run,
    )
    if trackers:
        content = args.flatten(args.as_dict(settings))
        accelerator.init_trackers("foldface", {key: str(value) for key, value in content.items()})
    return accelerator


def make_optimizer(parameters, settings):
    """Adam (Kingma & Ba 2015), AdamW (Loshchilov & Hutter 2019) or SGD with Nesterov momentum."""
    import torch

    if settings.optimizer == "sgd":
        return torch.optim.SGD(parameters, settings.lr, momentum=0.9, nesterov=True, weight_decay=settings.weight_decay)
    kind = torch.optim.Adam if settings.optimizer == "adam" else torch.optim.AdamW
    return kind(parameters, settings.lr, weight_decay=settings.weight_decay)


def make_scheduler(optimizer, settings, steps):
    """The learning rate's course, moved on once a step; `steps` make an epoch."""
    from torch.optim import lr_scheduler

    total = steps * settings.epochs
    if settings.scheduler == "onecycle":  # Smith & Topin 2018
        return lr_scheduler.OneCycleLR(optimizer, settings.lr, total_steps=total)
    if settings.scheduler == "cosine":
        return lr_scheduler.CosineAnnealingLR(optimizer, total)
    if settings.scheduler == "step":
        return lr_scheduler.StepLR(optimizer, settings.step_epochs * steps, settings.gamma)
    gamma = settings.gamma if settings.scheduler == "exponential" else 1.0
    return lr_scheduler.LambdaLR(optimizer, lambda step: gamma ** (step // steps))


def read_crop_settings(settings):
    """How the crops were made ({} for whole photos): it travels with the weights."""
    if not settings.data.crops:
        return {}
    return read_json(Path(settings.data.crops) / "crop.json", "run face_crop.py again")


class Learner:
    """A model and all that moves it: whatever a fit needs to go on in mid-epoch as if it had never stopped.

    Public: net, epoch and step (how far it is), log (a dict an epoch), best and last (validation probabilities).
    """

    KEPT = ("epoch", "step", "loss", "seen", "log", "best_f1", "best", "last")

    def __init__(self, settings, label, fold, steps, accelerator):
        """label: (n,) training labels; steps: batches an epoch."""
        import torch

        import images
        import loss
        import model

        torch.manual_seed(settings.seed * 1009 + fold)
        chosen, size = settings.model, settings.data.image_size
        net = model.build(chosen.backbone, chosen.heads, chosen.pretrained, size, chosen.dropout)
        net = net.to(memory_format=torch.channels_last)
        self.scale = [
            net.pretrained_cfg.get(key, default) for key, default in zip(("mean", "std"), images.IMAGENET, strict=True)
        ]
        self.freeze_bn = chosen.freeze_bn
        self.settings, self.accelerator, self.device = settings.train, accelerator, accelerator.device
        self.net, self.optimizer = accelerator.prepare(net, make_optimizer(net.parameters(), settings.train))
        self.scheduler = make_scheduler(self.optimizer.optimizer, settings.train, steps)
        self.criterion = loss.make(settings.loss, label).to(self.device)
        self.label = torch.tensor(label, dtype=torch.int64)
        self.epoch, self.step, self.loss, self.seen = 0, 0, 0.0, 0
        self.log, self.best_f1, self.best, self.last = [], -1.0, None, None
        self.path, self.saved = Path(settings.run) / f"fold{fold}" / "state.pt", time.monotonic()

    @property
    def module(self):
        """The model itself, without what accelerate wraps around it."""
        return self.accelerator.unwrap_model(self.net)

    def parts(self):
        """What has a state_dict."""
        parts = {"model": self.module, "optimizer": self.optimizer.optimizer, "scheduler": self.scheduler}
        return parts | ({"scaler": self.accelerator.scaler} if self.accelerator.scaler else {})

    def save(self):
        """Write everything to state.pt, atomically."""
        import torch

        content = {name: part.state_dict() for name, part in self.parts().items()}
        content |= {name: getattr(self, name) for name in self.KEPT}
        content["rng"] = torch.get_rng_state()
        content["cuda_rng"] = torch.cuda.get_rng_state_all() if torch.cuda.is_available() else []
        with replacing(self.path) as partial:
            torch.save(content, partial)
        self.saved = time.monotonic()

    def load(self):
        """Go back to what was saved, if anything was. Raises InputError if the file is damaged."""
        import torch

        if not self.path.is_file():
            return
        try:
            content = torch.load(self.path, "cpu", weights_only=True)
            for name, part in self.parts().items():
                part.load_state_dict(content[name])
            for name in self.KEPT:
                setattr(self, name, content[name])
        except Exception as error:  # a damaged file fails in many ways, all with one way out
            first = str(error).strip().splitlines()[0]
            raise InputError(f"{self.path}: can't go on from it ({first}); remove it to train this fold anew") from None
        torch.set_rng_state(content["rng"])
        if content["cuda_rng"] and torch.cuda.is_available():
            torch.cuda.set_rng_state_all(content["cuda_rng"])
        print(f"{self.path.parent}: going on at epoch {self.epoch + 1}, step {self.step + 1}")

    def train_step(self, indices, photos):
        """One update. indices (b,) int64 into the labels, photos (b, h, w, 3) uint8 -> loss times b, on the device.

        Nothing here waits for the GPU.
        """
        import images
        import model

        inputs = images.normalize(photos.to(self.device, non_blocking=True), *self.scale)
        answer = model.log_probabilities(self.net(inputs))
        loss = self.criterion(answer, self.label[indices].to(self.device, non_blocking=True))
        self.accelerator.backward(loss)
        if self.settings.clip_grad:
            self.accelerator.clip_grad_norm_(self.net.parameters(), self.settings.clip_grad)
        self.optimizer.step()
        if not self.optimizer.step_was_skipped:  # fp16: a step whose gradients overflowed doesn't count
            self.scheduler.step()
        self.optimizer.zero_grad()
        return loss.detach() * len(indices)

    def train_epoch(self, feed, title):
        """The rest of the epoch. feed: a loader of images.py. Returns {"seconds", "photos_per_second", "waited"},
        the last a share of the seconds. On Ctrl-C, and every few minutes, everything is saved.
        """
        import torch
        from tqdm import tqdm

        import model

        self.net.train()
        if self.freeze_bn:
            model.freeze_batch_norm(self.net)
        before, waited, start = self.seen, 0.0, time.perf_counter()
        total = torch.tensor(self.loss, dtype=torch.float32, device=self.device)
        bar = tqdm(
            total=feed.batch_sampler.count, initial=self.seen, desc=title, unit="photo", leave=False, disable=None
        )

        with bar, stopping_between_steps() as stop:
            asked = time.perf_counter()
            for indices, photos, errors in feed:
                waited += time.perf_counter() - asked
                refuse_unreadable(errors, indices, feed.dataset.files)
                total += self.train_step(indices, photos)
                self.step, self.seen = self.step + 1, self.seen + len(indices)
                bar.update(len(indices))
                if not bar.disable and self.step % 20 == 0:  # .item() waits for the GPU: now and then, not every step
                    bar.set_postfix(loss=f"{total.item() / self.seen:.3f}", F1=f"{max(self.best_f1, 0):.3f}")
                if stop.asked or time.monotonic() - self.saved > SAVE_MINUTES * 60:
                    self.loss = total.item()
                    self.save()
                if stop.asked:
                    raise KeyboardInterrupt
                asked = time.perf_counter()
        self.loss = total.item()
        seconds = time.perf_counter() - start
        return {"seconds": seconds, "photos_per_second": (self.seen - before) / seconds, "waited": waited / seconds}

    def predict(self, feed):
        """Probabilities of all photos of a loader, in its order: (n, 18) float32 on the CPU."""
        import torch

        import images
        import model

        self.net.eval()
        found = []
        with torch.inference_mode():
            for indices, photos, errors in feed:
                refuse_unreadable(errors, indices, feed.dataset.files)
                inputs = images.normalize(photos.to(self.device, non_blocking=True), *self.scale)
                found.append(model.log_probabilities(self.net(inputs)).exp())
        return torch.cat(found).cpu()


@contextlib.contextmanager
def stopping_between_steps():
    """Within the block Ctrl-C only sets `asked` of what this gives; a second one interrupts at once.

    An interrupt in mid-step would leave a model that has taken a step which nobody counted.
    """
    stop = SimpleNamespace(asked=False)
    before = signal.getsignal(signal.SIGINT)

    def ask(*_):
        stop.asked = True
        signal.signal(signal.SIGINT, before)

    main_thread = threading.current_thread() is threading.main_thread()
    if main_thread:
        signal.signal(signal.SIGINT, ask)
    try:
        yield stop
    finally:
        if main_thread:
            signal.signal(signal.SIGINT, before)


def refuse_unreadable(errors, indices, files):
    """Raise InputError if a photo that was readable when training began no longer is."""
    for error, index in zip(errors, indices.tolist(), strict=True):
        if error:
            raise InputError(f"{files[index]}: can't be read any more ({error}); start again to leave it out")


# ------------------------------------------------------------------------------------------------------ the fit


def fit(rows, validation, settings, fold, accelerator):
    """Train on `rows`, choose the epoch of best macro F1 over all of `validation`; the result is in runs/NAME/fold{k}.

    rows, validation: rows of folds.py with `file`, `label` and `target`. Writes best.safetensors, log.csv (a row an
    epoch), speed.csv, oof.csv (last: its presence means finished) and, while it runs, state.pt, from which the same
    call goes on. Raises InputError when a photo can't be read.
    """
    import images
    import model

    data, train, folder = settings.data, settings.train, Path(settings.run) / f"fold{fold}"
    batches = images.Batches(len(rows), train.batch_size, shuffle=True, seed=settings.seed * 1009 + fold)
    feed = images.loader(images.Photos(rows["file"], data.augment, data.image_size, True), batches, data.workers)
    check = images.loader(
        images.Photos(validation["file"], data.augment, data.image_size, False),
        images.Batches(len(validation), 2 * train.batch_size),
        data.workers,
    )
    learner = Learner(settings, rows["label"].to_numpy(), fold, len(batches), accelerator)
    learner.load()
    about = describe(settings, fold, learner.scale, rows["target"][rows["source"] == "train"])
    speed = []
    while learner.epoch < train.epochs and not stalled(learner.log, train.patience):
        batches.epoch, batches.start = learner.epoch, learner.step
        speed.append(learner.train_epoch(feed, f"fold {fold} epoch {learner.epoch + 1}/{train.epochs}"))
        learner.last = learner.predict(check)
        row = judge(learner, validation["target"].to_numpy())
        learner.log.append(row)
        learner.epoch, learner.step, learner.loss, learner.seen = learner.epoch + 1, 0, 0.0, 0
        if row["f1"] > learner.best_f1:
            learner.best_f1, learner.best = row["f1"], learner.last
            model.save(folder / "best.safetensors", learner.module, about | row)
        write_csv(folder / "log.csv", pd.DataFrame(learner.log, columns=LOG_COLUMNS))
        learner.save()
        accelerator.log({f"fold{fold}/{name}": value for name, value in row.items()}, step=learner.epoch)
        tell(fold, train.epochs, row, speed[-1])
    accelerator.free_memory()
    if speed:
        write_csv(folder / "speed.csv", pd.DataFrame(speed))
    finish(folder, validation, fold, learner)


def describe(settings, fold, scale, target):
    """What the weights file says of itself: how to build the model and prepare its photos, and the labels' shares."""
    return {
        "backbone": settings.model.backbone,
        "heads": settings.model.heads,
        "classes": list(labels.CLASSES),
        "image_size": settings.data.image_size,
        "augment": settings.data.augment,
        "mean": list(scale[0]),
        "std": list(scale[1]),
        "crops": read_crop_settings(settings),
        "fold": fold,
        "prior": (np.bincount(target, minlength=len(labels.CLASSES)) / len(target)).tolist(),
    }


def judge(learner, target):
    """The row of log.csv of an epoch: losses, and scores of its validation probabilities against true targets."""
    probabilities = learner.last.numpy()
    chosen = np.maximum(probabilities[np.arange(len(target)), target], 1e-7)
    return {
        "epoch": learner.epoch + 1,
        "lr": learner.optimizer.param_groups[0]["lr"],
        "train_loss": learner.loss / learner.seen,
        "val_loss": float(-np.log(chosen).mean()),
        **labels.scores(target, probabilities.argmax(1)),
    }


def tell(fold, epochs, row, speed):
    """Print an epoch in one line, and what to do if the model waited for photos."""
    wait = (
        f", {speed['waited']:.0%} of the time waiting for photos: raise data.workers" if speed["waited"] > 0.05 else ""
    )
    print(
        f"fold {fold} epoch {row['epoch']}/{epochs}  loss {row['train_loss']:.3f}  F1 {row['f1']:.3f}  "
        f"mask {row['mask_f1']:.3f}  gender {row['gender_f1']:.3f}  age {row['age_f1']:.3f}  "
        f"{speed['photos_per_second']:.0f} photos/s{wait}",
        flush=True,
    )


def stalled(log, patience):
    """Has macro F1 not risen for `patience` epochs? log: rows of log.csv."""
    if not patience or len(log) <= patience:
        return False
    values = [row["f1"] for row in log]
    return max(values[-patience:]) <= max(values[:-patience])


# --------------------------------------------------------------------------------------------- folds and scores


def finish(folder, validation, fold, learner):
    """Write the fold's out-of-fold predictions of its best epoch, and of its last; a fold with oof.csv is finished."""
    frame = validation[["ImageID", "id"]].assign(fold=fold, target=validation["target"])
    write_csv(folder / "oof_last.csv", labels.with_answers(frame, learner.last.numpy()))
    write_csv(folder / "oof.csv", labels.with_answers(frame, learner.best.numpy()))
    learner.path.unlink(missing_ok=True)


def train_folds(settings, folds):
    """Train these folds, those that are finished left alone, and put together all that are finished."""
    args.save(settings)
    rows = prepare(settings)
    todo = [k for k in folds if not (Path(settings.run) / f"fold{k}" / "oof.csv").is_file()]
    for k in sorted(set(folds) - set(todo)):
        print(f"fold {k} is finished")
    if todo:
        accelerator = make_accelerator(settings)
        for k in todo:
            training, validation = split(rows, k)
            fit(training, validation, settings, k, accelerator)
        accelerator.end_training()
    labels.gather(settings.run, settings.train.folds)


def main():
    settings = args.read(__doc__)
    train_folds(settings, [0])
    print(f"next: python inference.py --run {settings.run}")


if __name__ == "__main__":
    guarded(main)
