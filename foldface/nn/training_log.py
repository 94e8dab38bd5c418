"""What training says of itself: what an epoch came to, the columns of log.csv, whether the score still improves."""

from typing import TYPE_CHECKING, NamedTuple

from foldface import metrics
from foldface.task import Task

if TYPE_CHECKING:
    import torch


class EpochStats(NamedTuple):
    """What an epoch's steps came to."""

    train_loss: float
    """mean over the photos"""
    answers: "torch.Tensor"
    """what each training photo was answered with: (n,) float32 on the CPU, NaN where it was not drawn, or was mixed"""
    speed: dict[str, float]
    """columns of speed.csv: seconds, photos_per_second, waited (share of the seconds without photos), memory_gb"""


class Validation(NamedTuple):
    """What an epoch's model answers to the validation photos, and how good that is."""

    answers: "torch.Tensor"
    """(n, width) float32, as heads.Heads.answers"""
    scores: dict[str, float]
    """{column of log.csv: value}"""


LOG_COLUMNS = ["epoch", "lr", "train_loss", "val_loss"]  # and the scores of the task, see log_columns


def log_columns(task: Task) -> list[str]:
    """The columns of log.csv: the validation scores by their names, those of the training photos with train_ before."""
    return [*LOG_COLUMNS, *metrics.score_names(task), *(f"train_{name}" for name in metrics.training_names(task))]


def stalled(log: list[dict], patience: int, task: Task) -> bool:
    """Has the score not improved for `patience` epochs? log: rows of log.csv."""
    if not patience or len(log) <= patience:
        return False
    values = [metrics.worth(task, row[task.score]) for row in log]
    return max(values[-patience:]) <= max(values[:-patience])
