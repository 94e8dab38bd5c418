"""Experiment trackers (the setting `log`): each fold is a run that gets its scores while it trains.

tensorboard    events in runs/NAME/fold{k}: `tensorboard --logdir runs` shows a run NAME/fold{k}
wandb          a W&B run NAME/fold{k} in the group NAME; its files lie in runs/NAME/wandb
trackio        the same, without an account, in runs/NAME/trackio: `TRACKIO_DIR=runs/NAME/trackio trackio show`
mlflow         a run NAME/fold{k} of the experiment NAME, in runs/NAME/mlflow.db: `mlflow ui` from mlflow shows it

A point's step counts the batches of all epochs. Each epoch is one point: epoch, lr, losses, scores, photos/s; a few
points between two epochs hold the loss of the batches since the last one. runs/NAME/fold{k}/TRACKER.json says which run
of the tracker a fold is, so that an interrupted fold goes on in it. What needs torch is in foldface/trackers.py.
"""

import importlib.util
import os

from foldface.files import InputError
from foldface.settings import Config

# what to install where a tracker's own package has another name, or needs others beside it
INSTALL = {"mlflow": "mlflow-skinny sqlalchemy alembic"}


def chosen(config: Config) -> list[str]:
    """The trackers that `log` names, [] for none."""
    named = [config.log] if isinstance(config.log, str) else config.log
    return [name for name in dict.fromkeys(named) if name != "none"]


def refuse_missing(config: Config) -> None:
    """Raise InputError if log names a package that is not installed.

    (A folder called wandb, which W&B writes, can be imported as a namespace package, which has no file.)
    """
    for name in chosen(config):
        needed = [name]
        if name == "mlflow" and "MLFLOW_TRACKING_URI" not in os.environ:
            needed += ["sqlalchemy", "alembic"]  # it keeps its runs in a file of SQLite then
        for package in needed:
            spec = importlib.util.find_spec(package)
            if spec is None or spec.origin is None:
                what = "" if package == name else f"{package} for "
                raise InputError(
                    f"log is {name}, which is not installed: pip install {INSTALL.get(name, name)}, or --log none"
                    if not what
                    else f"log is {name}, which needs {package}: pip install {INSTALL[name]}, or --log none"
                )


class Tracker:
    """The interface of a tracker; this one does nothing."""

    active = False

    def log(self, values: dict, step: int) -> None:
        """Log numbers after so many batches; points that arrived before an interruption are skipped."""

    def conclude(self, scores: dict, pictures: dict) -> None:
        """Log a finished fold's scores {name: number} as its summary, and {name: [(h, w, 3) uint8]}."""

    def close(self, failed: bool) -> None:
        """All has been logged, or the training failed."""


NONE = Tracker()


class Several(Tracker):
    """Trackers that all get the same."""

    active = True

    def __init__(self, trackers: list[Tracker]):
        self.trackers = trackers

    def log(self, values: dict, step: int) -> None:
        for tracker in self.trackers:
            tracker.log(values, step)

    def conclude(self, scores: dict, pictures: dict) -> None:
        for tracker in self.trackers:
            tracker.conclude(scores, pictures)

    def close(self, failed: bool) -> None:
        for tracker in self.trackers:
            tracker.close(failed)
