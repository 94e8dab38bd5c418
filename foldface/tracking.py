"""Experiment trackers (the setting `log`): each fold is a run that gets its scores while it trains.

tensorboard    events in runs/NAME/fold{k}: `tensorboard --logdir runs` shows a run NAME/fold{k}
wandb          a W&B run NAME/fold{k} in the group NAME; its files lie in runs/NAME/wandb

Each epoch is one point at step = epoch: lr, losses, scores. runs/NAME/fold{k}/tensorboard.json or wandb.json holds the
W&B id and the number of epochs that arrived, so that an interrupted fold goes on in its own W&B run.
"""

import contextlib
import importlib.util
import json
from pathlib import Path

import numpy as np

from foldface.files import InputError, read_json, write_json
from foldface.runtime import is_main_process
from foldface.settings import Config, as_dict, flatten

PROJECT = "foldface"


def refuse_missing(config: Config) -> None:
    """Raise InputError if log names a package that is not installed.

    (A folder called wandb, which W&B writes, can be imported as a namespace package, which has no file.)
    """
    if config.log == "none":
        return
    spec = importlib.util.find_spec(config.log)
    if spec is None or spec.origin is None:
        raise InputError(f"log is {config.log}, which is not installed: pip install {config.log}, or --log none")


@contextlib.contextmanager
def opened(config: Config, fold: int):
    """Yield the fold's Tracker, which does nothing where log is none and on other ranks than 0.

    Raises InputError if W&B refuses, for example without an account.
    """
    kind = {"none": Tracker, "tensorboard": TensorBoard, "wandb": Wandb}[config.log if is_main_process() else "none"]
    tracker = kind(config, fold)
    try:
        yield tracker
    except BaseException:
        tracker.close(failed=True)
        raise
    tracker.close(failed=False)


class Tracker:
    """The interface of a tracker; this one does nothing."""

    active = False

    def __init__(self, config, fold):
        pass

    def log(self, row: dict) -> None:
        """Log an epoch, a row of log.csv; epochs that arrived before an interruption are skipped."""

    def conclude(self, scores: dict, pictures: dict) -> None:
        """Log a finished fold's scores {name: number} as its summary, and {name: [(h, w, 3) uint8]}."""

    def close(self, failed: bool) -> None:
        pass


NONE = Tracker(None, None)


class ResumableTracker(Tracker):
    """A tracker that keeps the number of epochs that arrived before its process last ended properly."""

    active = True

    def __init__(self, config, fold):
        self.folder, self.name = Path(config.run) / f"fold{fold}", Path(config.run).resolve().name
        self.path = self.folder / f"{config.log}.json"
        self.state = read_json(self.path, "remove it") if self.path.is_file() else {}
        self.config = as_dict(config) | {"fold": fold}
        self.epoch = self.arrived = self.state.get("epochs", 0)
        self.open(config)

    def log(self, row):
        if row["epoch"] > self.arrived:
            self.epoch = row["epoch"]
            self.send({name: value if name == "epoch" else float(value) for name, value in row.items()})

    def close(self, failed):
        self.finish(failed)  # only now all has been written
        write_json(self.path, self.state | {"epochs": self.epoch})


class TensorBoard(ResumableTracker):
    def open(self, config):
        from torch.utils import tensorboard

        # TensorBoard shows the later point of an epoch that was logged twice
        self.writer = tensorboard.SummaryWriter(self.folder, purge_step=self.arrived + 1 if self.state else None)
        if not self.state:
            flat = {
                name: value if isinstance(value, (bool, int, float, str)) else json.dumps(value)
                for name, value in flatten(self.config).items()
            }
            for summary in tensorboard.summary.hparams(flat, {f"oof/{config.predicted.score}": None}):
                self.writer.file_writer.add_summary(summary)
            self.state = {"epochs": 0}
            write_json(self.path, self.state)

    def send(self, row):
        for name, value in row.items():
            if name != "epoch":
                self.writer.add_scalar(name, value, row["epoch"])
        self.writer.flush()

    def conclude(self, scores, pictures):
        for name, value in scores.items():
            self.writer.add_scalar(name, value, self.epoch)
        for name, found in pictures.items():
            self.writer.add_images(name, np.stack(found), self.epoch, dataformats="NHWC")

    def finish(self, failed):
        self.writer.close()


class Wandb(ResumableTracker):
    def open(self, config):
        import wandb

        names = {"project": PROJECT, "group": self.name, "name": f"{self.name}/{self.folder.name}"}
        try:
            self.run = wandb.init(**names, id=self.state.get("id"), resume="allow", dir=config.run, config=self.config)
        except wandb.errors.Error as error:
            raise InputError(
                f"log is wandb, and W&B refuses: {error}. Run `wandb login`, set WANDB_MODE=offline, or --log none"
            ) from None
        self.state = {"id": self.run.id, "epochs": self.arrived}
        write_json(self.path, self.state)
        self.arrived = max(self.arrived, self.run.step - 1)  # a resumed W&B run has its next step here

    def send(self, row):
        self.run.log(row, step=row["epoch"], commit=True)  # without commit it arrives with the next epoch

    def conclude(self, scores, pictures):
        import wandb

        self.run.log({name: [wandb.Image(picture) for picture in found] for name, found in pictures.items()})
        self.run.summary.update(scores)

    def finish(self, failed):
        self.run.finish(exit_code=int(failed))
